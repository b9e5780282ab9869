"""How a model is run when it is measured, and how its logits are scored."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn

CUDNN, BLAS, MKLDNN = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
PRODUCTS = (CUDNN.conv, CUDNN.rnn, BLAS.matmul, MKLDNN.conv, MKLDNN.matmul)  # whose factors torch may shorten


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Run a model in eval mode, without gradients, autocast or TF32; afterwards the model is restored."""
    kind = next(model.parameters(), torch.empty(0)).device.type
    with (
        restored(model, model.parameters()),
        torch.no_grad(),
        torch.autocast(kind, enabled=False),
        full_precision(),
        untuned(),
    ):
        try:
            model.eval()
        except NotImplementedError as error:  # as of what torch.export makes of a model
            raise ValueError(f"model: expected the network itself, which has an eval mode ({error})") from error
        for module in model.modules():
            if module._compiled_call_impl is not None:  # by module.compile(), which hides the layers in it
                module._compiled_call_impl = None
        yield


@contextlib.contextmanager
def untuned():
    """Let a GPU convolve as cuDNN thinks best, not as it times best: ablation meets too many shapes to time them all."""
    before = CUDNN.benchmark
    CUDNN.benchmark = False
    try:
        yield
    finally:
        CUDNN.benchmark = before


@contextlib.contextmanager
def restored(model: nn.Module, weights: Iterable[torch.Tensor] = ()):
    """On leaving, undo what was written into a model: attributes of its modules (their mode is one), entries of their dicts and
    lists, and the numbers in buffers, in other tensors and in `weights`."""
    own = [vars(module) for module in model.modules()]
    dicts = [*own, *(value for attributes in own for value in attributes.values() if isinstance(value, dict))]
    lists = [value for attributes in own for value in attributes.values() if isinstance(value, list)]
    earlier_dicts, earlier_lists = ([copy.copy(value) for value in values] for values in (dicts, lists))
    loose = (value for attributes in own for value in attributes.values() if isinstance(value, torch.Tensor))
    tensors = {id(tensor): tensor for tensor in itertools.chain(weights, model.buffers(), loose)}
    numbers = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for now, before in zip(dicts, earlier_dicts, strict=True):
            now.update(before)
            for name in now.keys() - before.keys():
                del now[name]
        for now, before in zip(lists, earlier_lists, strict=True):
            now[:] = before
        for now, before in numbers:
            if not torch.equal(now, before):
                with torch.no_grad():
                    now.copy_(before)


@contextlib.contextmanager
def full_precision():
    """Compute float32 products in full. By default a GPU's convolutions round their factors to 10 bits (TF32), and so do matrix
    products, also a CPU's, where asked: an error larger than the effect of many units."""
    try:
        asked = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switches were set, to what the older one has no word for
        asked = "highest"
    each = [kind.fp32_precision for kind in PRODUCTS]
    _set_precision("highest", ["ieee"] * len(PRODUCTS))
    try:
        yield
    finally:
        _set_precision(asked, each)


def _set_precision(asked: str, each: Sequence[str]) -> None:
    """Set torch's newer switches and its older ones alike: torch raises an error if they disagree when they are read."""
    torch.set_float32_matmul_precision(asked)
    CUDNN.allow_tf32 = "tf32" in each[:2]
    for kind, precision in zip(PRODUCTS, each, strict=True):
        kind.fp32_precision = precision


def image_scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of every image the cross-entropy in nats, whether it is correct and, from 100 classes on, whether the label is
    among the first five: (S, ..., N), S = 2 or 3, for logits (..., N, classes) and labels (N,)."""
    if logits.dtype.itemsize < 4:  # half precision is for networks, not for what is said of them
        logits = logits.float()
    label = logits.gather(-1, y.expand(logits.shape[:-1])[..., None]).squeeze(-1)
    largest = logits.amax(-1)
    top = logits == largest[..., None]
    # Among equal logits the first counts; looking for it takes as long as all the rest, and it is seldom needed.
    correct = label == largest if top.count_nonzero() == largest.numel() else top.byte().argmax(-1) == y
    # Summed in this order small losses stay exact.
    loss = (logits - largest[..., None]).exp_().sum(-1).log_().add_(largest - label)
    found = [loss, correct.to(loss.dtype)]
    if logits.shape[-1] >= 100:
        earlier = torch.arange(logits.shape[-1], device=y.device) < y[:, None]
        ahead = (logits > label[..., None]) | ((logits == label[..., None]) & earlier)
        found.append((ahead.sum(-1) < 5).to(loss.dtype))
    return torch.stack(found)


def scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`image_scores` summed over images: (..., S) float64 for logits (..., N, classes) and labels (N,)."""
    return image_scores(logits, y).sum(-1, dtype=torch.float64).movedim(0, -1)


def check_scores(sums: torch.Tensor, argument: str) -> None:
    """Raise a ValueError that blames `argument` if sums of `scores` are not finite: no table holds a NaN."""
    if not torch.isfinite(sums).all():
        raise ValueError(
            f"{argument}: expected one with finite outputs, found NaN, infinity, or a loss beyond all numbers"
        )


def score_columns(sums: torch.Tensor, n: int, argument: str = "model") -> dict[str, list[float]]:
    """Columns loss, accuracy (and accuracy_top5) of a table from `scores` summed over n images, (rows, 2 or 3), checked."""
    check_scores(sums, argument)
    names = ("loss", "accuracy", "accuracy_top5")
    return dict(zip(names, (sums / n).T.cpu().tolist(), strict=False))
