"""What every analysis asks of its input, and how logits are scored."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Eval mode without gradients; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_images(x: torch.Tensor, argument: str = "x") -> torch.Tensor:
    """Images (N, ...) of a floating type, finite, at least one; else a ValueError that names the argument."""
    if not _plain(x) or not x.is_floating_point() or x.ndim < 2:
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{argument}: expected a floating-point tensor of images (N, ...), got {kind}")
    if len(x) == 0:
        raise ValueError(f"{argument}: expected at least one image, got none")
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():  # a sum is faster, but may overflow
        raise ValueError(f"{argument}: expected finite numbers, found NaN or infinity")
    return x


def check_fit(x_fit: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Images that statistics are taken over: `x` by default, else others of that size and type."""
    if x_fit is None:
        return x
    if check_images(x_fit, "x_fit").shape[1:] != x.shape[1:] or x_fit.dtype != x.dtype:
        kinds = [f"{images.dtype} (N, {', '.join(map(str, images.shape[1:]))})" for images in (x, x_fit)]
        raise ValueError(f"x_fit: expected images like x, {kinds[0]}, got {kinds[1]}")
    return x_fit.detach()


def _plain(tensor) -> bool:
    """A tensor with numbers in it, on a device that computes."""
    strided = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    return strided and tensor.device.type != "meta" and not tensor.is_quantized


def check_labels(y: torch.Tensor, n: int, classes: int | None = None) -> torch.Tensor:
    """n integer labels in [0, classes), at least two different ones; as int64."""
    integers = _plain(y) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not integers or y.ndim != 1:
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"y: expected a tensor of integer labels (N,), got {kind}")
    if len(y) != n:
        raise ValueError(f"y: expected {n} labels, one an image, got {len(y)}")
    y = y.long()
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        raise ValueError(f"y: expected labels from 0 to {(classes or math.inf) - 1}, got {y.min()} to {y.max()}")
    if len(y.unique()) < 2:
        raise ValueError("y: expected images of at least two classes, got one")
    return y


def check_integer(argument: str, number, low: int) -> int:
    """An integer >= low."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < low:
        raise ValueError(f"{argument}: expected an integer >= {low}, got {number!r}")
    return int(number)


def image_scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of every image the cross-entropy in nats, whether it is correct and, from 100 classes on, whether the label is
    among the first five: (2 or 3, ..., N) for logits (..., N, classes) and labels (N,)."""
    label = logits.gather(-1, y.expand(logits.shape[:-1])[..., None]).squeeze(-1)
    largest = logits.amax(-1)
    top = logits == largest[..., None]
    # Among equal logits the first counts; looking for it takes as long as all the rest, and it is seldom needed.
    correct = label == largest if top.count_nonzero() == largest.numel() else top.byte().argmax(-1) == y
    loss = (
        (logits - largest[..., None]).exp_().sum(-1).log_().add_(largest - label)
    )  # in this order: small losses stay exact
    found = [loss, correct.to(loss.dtype)]
    if logits.shape[-1] >= 100:
        found.append((logits.topk(5, dim=-1).indices == y[:, None]).any(-1).to(loss.dtype))
    return torch.stack(found)


def scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`image_scores` summed over images: (..., 2 or 3) float64 for logits (..., N, classes) and labels (N,)."""
    return image_scores(logits, y).sum(-1, dtype=torch.float64).movedim(0, -1)


def check_scores(sums: torch.Tensor, argument: str) -> None:
    """Refuse sums of `scores` that are not finite: no table holds a NaN."""
    if not torch.isfinite(sums).all():
        raise ValueError(
            f"{argument}: expected one with finite outputs, found NaN, infinity, or a loss beyond all numbers"
        )


def score_columns(sums: torch.Tensor, n: int) -> dict[str, list[float]]:
    """Columns loss, accuracy (and accuracy_top5) of a table from `scores` summed over n images, (rows, 2 or 3)."""
    names = ("loss", "accuracy", "accuracy_top5")
    return dict(zip(names, (sums / n).T.cpu().tolist(), strict=False))
