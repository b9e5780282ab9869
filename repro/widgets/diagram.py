"""What the interactive diagrams have in common: how numbers, scripts and styles travel to the browser."""

from __future__ import annotations

import base64
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from torch import nn

HERE = Path(__file__).parent
SHARED = "./shared.js"


def module(name: str) -> str:
    """The source of an ES module of this folder with what it imports from shared.js in front of it.

    Jupyter and the static page load a widget's module as one text, from which nothing relative can be imported.
    """
    lines = (HERE / f"{name}.js").read_text(encoding="utf-8").splitlines(keepends=True)
    own = "".join(line for line in lines if not line.endswith(f'from "{SHARED}";\n'))
    return (HERE / SHARED).read_text(encoding="utf-8") + own


def style() -> str:
    """The style sheet of all diagrams."""
    return (HERE / "widgets.css").read_text(encoding="utf-8")


def pack(values, dtype: str = "float32") -> dict[str, str]:
    """Numbers as base64, little-endian, row by row: {dtype, data}."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "data": base64.b64encode(array.tobytes()).decode()}


def unpack(packed: dict[str, str]) -> np.ndarray:
    """What `pack` packed, flat."""
    dtype = np.dtype(packed["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(packed["data"]), dtype)


def linear_layers(model: nn.Module) -> list[dict]:
    """Weights (outputs × inputs) and biases of a multilayer perceptron, packed."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [{"weight": pack(layer.weight), "bias": pack(layer.bias)} for layer in layers]


def check_grey(x: torch.Tensor, argument: str) -> None:
    """Refuse images (N, C, H, W) of more than one channel, which the diagrams cannot show."""
    if x.shape[1] != 1:
        raise ValueError(f"{argument}: expected a data set of grey images, one channel each, got {x.shape[1]} channels")


class Diagram(anywidget.AnyWidget):
    """A diagram that computes in the browser.

    Attributes
    ----------
    data : dict
        What the diagram draws; does not change.
    """

    _css = style()
    data = traitlets.Dict().tag(sync=True)
    name = ""  # of its module
    choices: tuple[str, ...] = ()  # what the reader changes, and Python may change too

    def state(self) -> dict:
        """What the module needs to draw itself without a kernel."""
        return {name: getattr(self, name) for name in ("data", *self.choices)}

    def __repr__(self) -> str:  # without the data
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.choices)})"
