"""What input must be: each check returns it or raises a ValueError that names the argument."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from torch import nn

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MOST_LISTED = 20  # layers that a message lists


@contextlib.contextmanager
def renamed(names: Mapping[str, str]):
    """Within, errors name an argument as the caller knows it: `names` maps its name inside to that outside."""
    try:
        yield
    except ValueError as error:
        argument, colon, what = str(error).partition(":")
        if argument not in names:
            raise
        raise ValueError(f"{names[argument]}{colon}{what}") from error


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
    if not _is_dense(x) or not x.is_floating_point() or x.ndim < 2:
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


def _is_dense(tensor) -> bool:
    """A tensor with numbers in it, on a device that computes."""
    strided = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    return strided and tensor.device.type != "meta" and not tensor.is_quantized


def check_integers(y: torch.Tensor, argument: str) -> None:
    """Refuse what is no tensor of integers (N,)."""
    integers = _is_dense(y) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not integers or y.ndim != 1:
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"{argument}: expected a tensor of integer labels (N,), got {kind}")


def check_labels(y: torch.Tensor, n: int, classes: int | None = None, argument: str = "y") -> torch.Tensor:
    """n integer labels in [0, classes), at least two different ones; as int64."""
    check_integers(y, argument)
    if len(y) != n:
        raise ValueError(f"{argument}: expected {n} labels, one per image, got {len(y)}")
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
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    )


def _no_units(layer) -> str:
    """What keeps the channels of a layer from being units; "" if nothing does."""
    shape = f"(N, {', '.join(map(str, layer.shape))})"
    if layer.channels_last:
        return f"{shape}, channels last"
    return shape if len(layer.shape) not in (1, 3) else ""


def check_value(value, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """What the units of a layer are clamped to, (C,) or (C, H, W), as (1, C), (1, C, 1, 1) or (1, C, H, W)."""
    if not _is_dense(value) or value.is_complex() or tuple(value.shape) not in (tuple(shape), tuple(shape[:1])):
        shapes = " or ".join(dict.fromkeys(map(str, (tuple(shape[:1]), tuple(shape)))))
        raise ValueError(f"value: expected a tensor of shape {shapes} for layer {name!r}")
    value = value.to(dtype)
    if not torch.isfinite(value).all():
        raise ValueError(f"value: expected finite numbers for layer {name!r}")
    return value.reshape((1, *value.shape) + (1,) * (len(shape) - value.ndim))


def check_names(argument: str, names: str | Iterable[str], least: int = 1) -> list[str]:
    """One name or several, at least `least`, as a list without repeats."""
    try:
        listed = [names] if isinstance(names, str) else list(names)
    except TypeError:  # nothing to iterate over, as an array without an axis
        listed = [None]
    if len(listed) < least or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{argument}: expected the names of one or several columns, got {names!r}")
    return list(dict.fromkeys(listed))


def distinct(argument: str, values) -> list:
    """What is in an iterable, each once, in order."""
    try:
        return list(dict.fromkeys([values] if isinstance(values, str) else values))
    except TypeError as error:
        raise ValueError(f"{argument}: expected a sequence, got {values!r:.100} ({error})") from error


def check_table(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A DataFrame that has these columns."""
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"table: expected a DataFrame, got {type(table).__name__}")
    for column in columns:
        if not isinstance(column, str):
            raise ValueError(f"table: expected the names of its columns, got {column!r}")
        if column not in table:
            found = ", ".join(map(str, table.columns))
            raise ValueError(f"table: expected a column {column!r}, found {found}")
    return table


def check_scales(scales) -> list[float]:
    """Finite numbers >= 0, at least one."""
    if isinstance(scales, np.ndarray | pd.Series) or _is_dense(scales):
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
