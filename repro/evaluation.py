"""What every analysis asks of its input, and how logits are scored."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from torch import nn

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CUDNN, BLAS, CPU = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
NAMED = 20  # layers that a message lists
PRODUCTS = (CUDNN.conv, CUDNN.rnn, BLAS.matmul, CPU.conv, CPU.matmul)  # whose factors torch may shorten


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Eval mode without gradients, in the model's own precision, float32 as it is; the model is afterwards as it was."""
    kind = next(model.parameters(), torch.empty(0)).device.type
    with kept(model, model.parameters()), torch.no_grad(), torch.autocast(kind, enabled=False), whole_products():
        try:
            model.eval()
        except NotImplementedError as error:  # as of what torch.export makes of a model
            raise ValueError(f"model: expected the network itself, which has an eval mode ({error})") from error
        for module in model.modules():
            if module._compiled_call_impl is not None:  # by module.compile(), which hides the layers in it
                module._compiled_call_impl = None
        yield


@contextlib.contextmanager
def kept(model: nn.Module, weights: Iterable[torch.Tensor] = ()):
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
def whole_products():
    """Products of float32 numbers in full: on a GPU convolutions shorten their factors to 10 bits (TF32) by default, matrix
    products where asked, and what ablation changes would drown in the rounding."""
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
    """Torch's newer switches; and its older ones, which have to agree with them when anybody reads those."""
    torch.set_float32_matmul_precision(asked)
    CUDNN.allow_tf32 = "tf32" in each[:2]
    for kind, precision in zip(PRODUCTS, each, strict=True):
        kind.fp32_precision = precision


def check_model(model: nn.Module) -> nn.Module:
    """A module with weights, whose logits of an image do not depend on the others."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}")
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ValueError("model: expected weights, got a model on the meta device")
    if any(map(torch.nn.parameter.is_lazy, model.parameters())):
        raise ValueError("model: expected weights, got a lazy layer without; run the model once")
    if any(isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError(
            "model: expected the network itself, got what torch.jit or torch.compile made of it (which keeps it as _orig_mod)"
        )
    if any(isinstance(module, BATCH_NORM) and module.running_var is None for module in model.modules()):
        raise ValueError(
            "model: a batch norm without running statistics makes each image's logits depend on the others"
        )
    return model


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


def check_integers(y: torch.Tensor, argument: str) -> None:
    """Refuse what is no tensor of integers (N,)."""
    integers = _plain(y) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not integers or y.ndim != 1:
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"{argument}: expected a tensor of integer labels (N,), got {kind}")


def check_labels(y: torch.Tensor, n: int, classes: int | None = None, argument: str = "y") -> torch.Tensor:
    """n integer labels in [0, classes), at least two different ones; as int64."""
    check_integers(y, argument)
    if len(y) != n:
        raise ValueError(f"{argument}: expected {n} labels, one an image, got {len(y)}")
    y = y.long()
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        most = "" if classes is None else f" to {classes - 1}"
        raise ValueError(f"{argument}: expected labels from 0{most}, got {y.min()} to {y.max()}")
    if len(y.unique()) < 2:
        raise ValueError(f"{argument}: expected images of at least two classes, got one")
    return y


def check_layers(layers: Sequence[str] | None, outputs: Mapping) -> list[str]:
    """Unit layers in forward order, those named or all, of a model's {name: `graph.Layer`}."""
    wrong = {name: fault for name, layer in outputs.items() if (fault := _no_units(layer))}
    units = [name for name, layer in outputs.items() if layer.nonlinear and name not in wrong]
    if layers is None:
        if not units:
            faults = [f"; {name!r} gives {wrong[name]}" for name in wrong if outputs[name].nonlinear]
            others = _some([name for name in outputs if name not in wrong])
            raise ValueError(
                "model: found no unit layer, the output of a ReLU-like nonlinearity, (N, C) or (N, C, H, W)"
                f"{faults[0] if faults else ''}; name layers by hand: layers=[...] from {others or 'none'}"
            )
        return units
    try:
        names = [] if isinstance(layers, str) else list(layers)
    except TypeError:
        names = []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"layers: expected a list of layer names, got {layers!r}")
    for name in names:
        if name not in outputs:
            expected = _some(units or outputs)
            raise ValueError(f"layers: the model has no layer {name!r} below its logits; expected some of {expected}")
        if name in wrong:
            raise ValueError(f"layers: {name!r} gives {wrong[name]}; units need (N, C) or (N, C, H, W)")
    return [name for name in outputs if name in names]


def _some(names: Iterable[str]) -> str:
    """Names by commas; of many the first ones."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _no_units(layer) -> str:
    """What keeps the channels of a layer from being units; "" if nothing does."""
    shape = f"(N, {', '.join(map(str, layer.shape))})"
    if layer.channels_last:
        return f"{shape}, channels last"
    return shape if len(layer.shape) not in (1, 3) else ""


def check_value(value, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """What the units of a layer are clamped to, (C,) or (C, H, W), as (1, C), (1, C, 1, 1) or (1, C, H, W)."""
    if not _plain(value) or value.is_complex() or tuple(value.shape) not in (tuple(shape), tuple(shape[:1])):
        shapes = " or ".join(dict.fromkeys(map(str, (tuple(shape[:1]), tuple(shape)))))
        raise ValueError(f"value: expected a tensor of shape {shapes} for layer {name!r}")
    value = value.to(dtype)
    if not torch.isfinite(value).all():
        raise ValueError(f"value: expected finite numbers for layer {name!r}")
    return value.reshape((1, *value.shape) + (1,) * (len(shape) - value.ndim))


def sequences(units: Sequence[tuple[str, int]], orders: int | Sequence, seed: int) -> list[list[tuple[str, int]]]:
    """Orders of units (layer, unit): as many random ones of all units as `orders` says, or the sequences it holds, checked."""
    if isinstance(orders, int | np.integer):
        streams = [(check_integer("seed", seed, 0), order) for order in range(check_integer("orders", orders, 1))]
        return [[units[i] for i in np.random.default_rng(stream).permutation(len(units))] for stream in streams]
    try:
        given = [[(str(name), operator.index(unit)) for name, unit in sequence] for sequence in orders]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"orders: expected an integer >= 1 or a list of orders, each a sequence of (layer, unit), got {orders!r}"
        ) from error
    if not given:
        raise ValueError("orders: expected at least one sequence of (layer, unit), got none")
    known = set(units)
    for sequence in given:
        unknown = set(sequence) - known
        if unknown or not sequence or len(set(sequence)) < len(sequence):
            what = f"unknown unit {sorted(unknown)[0]}" if unknown else "an empty sequence or a unit named twice"
            raise ValueError(f"orders: expected different units of {', '.join(dict(units))}, got {what}")
    return given


def points(n: int, steps: int) -> np.ndarray:
    """Numbers of ablated units at which a curve is measured, from 0 to n."""
    steps = min(check_integer("steps", steps, 1), n)  # more would repeat points
    return np.unique(np.round(np.linspace(0, n, steps + 1)).astype(int))


def check_scales(scales) -> list[float]:
    """Finite numbers >= 0, at least one."""
    if isinstance(scales, np.ndarray | pd.Series) or _plain(scales):
        scales = scales.tolist()
    scales = list(scales) if isinstance(scales, Sequence) and not isinstance(scales, str) else [scales]
    largest = torch.finfo(torch.float32).max
    wrong = [s for s in scales if not is_number(s) or not 0 <= s <= largest]
    if wrong or not scales:
        raise ValueError(f"scales: expected finite numbers >= 0, got {repr(wrong[0]) if wrong else 'none'}")
    return [float(scale) for scale in scales]


def check_integer(argument: str, number, low: int) -> int:
    """An integer >= low."""
    if not is_integer(number) or number < low:
        raise ValueError(f"{argument}: expected an integer >= {low}, got {number!r}")
    return int(number)


def is_integer(value) -> bool:
    """Whether a value is an integer, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value) -> bool:
    """The same of real numbers."""
    return isinstance(value, Real) and not isinstance(value, bool)


def image_scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of every image the cross-entropy in nats, whether it is correct and, from 100 classes on, whether the label is
    among the first five: (2 or 3, ..., N) for logits (..., N, classes) and labels (N,)."""
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
    """`image_scores` summed over images: (..., 2 or 3) float64 for logits (..., N, classes) and labels (N,)."""
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
