"""A network cut at its unit layers: the one primitive on which every analysis stands.

A *unit* is one number of an MLP's hidden layer or one feature map of a convolutional layer, taken *after* the
nonlinearity (section 2.2 of Morcos et al. 2018): dim 1 of an activation (N, C) or (N, C, H, W). `Cut` finds the unit
layers of any ``nn.Module``, and runs the rest of the network from some of them onwards:

    cut = Cut(model, x)                     # cut.layers == {"relu1": 128, "relu2": 128}
    tail = cut.start(x, ["relu1"])          # everything that does not depend on relu1, computed once
    logits = tail(lambda layer, h: 0.5 * h)  # as often as one likes

Where the network above a layer is a plain chain, `Cut.chain` gives it as sums over units (`Link`), of which an ablation
changes a few terms. Models that torch.fx cannot trace are run through hooks, with one warning: what counts as a layer there
is a module, and results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from repro.checks import check_images, check_labels, check_layers, check_model
from repro.evaluation import evaluating
from repro.graph import Edit, Graph, Step, Tail, program
from repro.work import budget, summed


class Cut:
    """A model, cut at its unit layers: those named, or every nonlinearity but the output; run in eval mode.

    Attributes
    ----------
    layers : dict of str to int
        Units of each layer, in forward order.
    shapes : dict of str to torch.Size
        Shape of one image's activation: (C,) or (C, H, W).
    classes : int
        Number of logits (N, classes).
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, layers: Sequence[str] | None = None):
        few = check_images(x)[:2]  # they tell the shapes
        parameter = next(check_model(model).parameters(), few)
        self.device, self.dtype = parameter.device, parameter.dtype
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        with evaluating(model):
            self.program = program(model.module if parallel else model, few.to(self.device))
        self.classes, outputs = self.program.logits.shape[1], self.program.layers
        self.shapes = {name: outputs[name].shape for name in check_layers(layers, outputs)}
        self.layers = {name: shape[0] for name, shape in self.shapes.items()}
        self._widest = max(layer.shape.numel() for layer in outputs.values())

    @property
    def units(self) -> list[tuple[str, int]]:
        """(layer, unit) of every unit, layer by layer."""
        return [(layer, unit) for layer, n in self.layers.items() for unit in range(n)]

    def run(self, x: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Logits (N, classes) of images x (N, ...); `edit` may change the activation of every layer as it passes."""
        return self.start(x)(edit)

    def start(self, x: torch.Tensor, layers: Sequence[str] | None = None) -> Tail:
        """Run all that does not depend on `layers` (default: all of them), and keep what the rest needs of it."""
        return self.program.start(x, self.layers if layers is None else layers)

    def chain(self, layer: str, clamp: Mapping[str, torch.Tensor]) -> list[Link]:
        """The network from `layer` to the logits as links, the layers of `clamp`, this one among them, being ablated to
        these values (1, C, ...); empty where the network is no such chain or does not hold all these layers, and where
        values (n, C, ...) differ from image to image."""
        steps, links = self.program.chain(layer), [Link(layer, self.shapes[layer])]
        for step in steps:
            if not _extend(links, step):
                return []
            link = links[-1]
            if step.name in clamp:
                if link.layer or len(step.shape) != len(link.shape) or step.shape[0] != link.shape[0]:
                    return []
                link.layer, link.before, link.after = step.name, link.after, []
        end = links.pop()
        whole = steps and not (end.layer or end.after or end.mixing) and set(clamp) <= {link.layer for link in links}
        if not whole or any(len(value) > 1 for value in clamp.values()):
            return []
        for link in links:
            link.clamp(clamp)
        return links

    def total(self, function: Callable, n: int, links: Sequence[Link] = (), **how) -> torch.Tensor:
        """Sum of `function`, of a slice to a tensor, over all `blocks` of n images."""
        parallel = self.device.type == "cpu" and isinstance(self.program, Graph)
        return summed(function, list(self.blocks(n, links, **how)), torch.get_num_threads() if parallel else 1)

    def blocks(self, n: int, links: Sequence[Link] = (), copies: int = 1, fixed: bool = False) -> Iterator[slice]:
        """Slices that cover n images, each as large as the `budget` allows; at least four where there are enough images.

        A block is so small that `copies` of the network's largest activation fit the budget. With `links`, one copy must fit,
        and `copies` of the largest along the chain must fit a core's cache. `fixed` blocks do not depend on how much of a GPU's
        memory is free.
        """
        size = max(budget(self.device, fixed=fixed) // (4 * self._widest * (1 if links else copies)), 8)
        if links:
            largest = max(shape.numel() for shape in [*self.shapes.values(), *(link.shape for link in links)])
            size = min(size, max(budget(self.device, True, fixed) // (4 * largest * copies), 32))
        size = min(size, 8192, max(math.ceil(n / 4), 128))
        yield from (slice(first, min(first + size, n)) for first in range(0, n, size))


def unit_layers(model: nn.Module, x: torch.Tensor) -> list[tuple[str, int]]:
    """Names and numbers of units of a model's unit layers, in forward order.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (N, ...)
        Images; two of them are run through the model to learn the shapes.

    Returns
    -------
    list of (str, int)
        Names as torchvision's feature extraction gives them, but that a module keeps a number of its own: a model's
        `relu_2` is "relu_2".

    Raises
    ------
    ValueError
        Where the model has no unit layer, where logits depend on chance or on other images, or `x` holds no images.
    """
    return list(Cut(model, x).layers.items())


def prepare(model, x, y, layers=None) -> tuple[Cut, torch.Tensor, torch.Tensor]:
    """The model cut; images and labels, checked, on its device."""
    cut = Cut(model, x, layers)
    return cut, x.detach().to(cut.device), check_labels(y, len(x), cut.classes).to(cut.device)


@dataclass
class Link:
    """One step of a chain, from one pre-activation z (n, C, ...) to the next one z' (n, O, ...).

    A nonlinearity, and whatever else acts on each channel by itself such as pooling, is followed by a linear or
    convolutional layer (and perhaps a batch norm), which mixes channels and is a sum over them:

        h = before(z),  g = after(h),  z' = mixing(g) = bias + Σ_k mix_k(g_k)

    `mixing` is the model's own operations, on all channels; `mix` does without the bias, and on those channels alone that
    `weight` holds.
    What acts on channels by themselves commutes with clamping some units of h. So with `value` = after(what each is
    clamped to) and `constant` = mixing(value), which takes one image to compute,

        z' = constant + Σ_{k kept} mix_k(g_k − value_k):

    to ablate a unit is to leave its term out. This holds for every value, also for one that differs between positions or
    meets zero padding at the borders; rounding is that of the largest term, be it a value of a million among units near one.
    """

    layer: str | None  # whose units may be ablated here
    shape: torch.Size  # of one image's z: (C,) or (C, H, W)
    before: list[Callable] = field(default_factory=list)  # operations, one upon the other
    after: list[Callable] = field(default_factory=list)
    mixing: list[Callable] = field(default_factory=list)
    weight: torch.Tensor | None = None  # a convolution's (O, C, h, w); or (O, C, P), P numbers per channel
    convolution: dict | None = None  # stride, padding, dilation
    value: torch.Tensor | None = None  # (1, C, ...), None for zero
    constant: torch.Tensor | None = None  # (1, O, ...)

    def __call__(self, z: torch.Tensor, kept: int | None = None, outputs: int | None = None) -> torch.Tensor:
        """z' (n, outputs, ...) from z (n, kept, ...) with only the first `kept` units present."""
        return self.sum(z if kept == 0 else self.terms(self.activation(z), kept), outputs)

    def activation(self, z: torch.Tensor) -> torch.Tensor:
        """h; pooling may have shrunk z."""
        return _composed(self.before, z)

    def terms(self, h: torch.Tensor, kept: int | None = None) -> torch.Tensor:
        """d = g − value, (n, kept, ...)."""
        g = _composed(self.after, h)
        return g if self.value is None else g - self.value[:, :kept]

    def sum(self, d: torch.Tensor, outputs: int | None = None) -> torch.Tensor:
        """z' (n, outputs, ...) = constant + Σ_k mix_k(d_k) over the units present, d (n, kept, ...)."""
        constant, kept = self.constant[:, :outputs], d.shape[1]
        if kept == 0 or outputs == 0:  # a fully ablated layer is set, never reached by subtraction
            return constant.expand(len(d), *constant.shape[1:])
        return self.mix(d, self.weight[:outputs, :kept]) + constant

    def mix(self, d: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Σ_k mix_k(d_k) for the units and outputs that `weight` holds."""
        if self.convolution is not None:
            return F.conv2d(d, weight, **self.convolution)
        return (weight.flatten(1) @ d.flatten(1).T).T  # this way round, few outputs (the logits) cost half as much

    def subtract(self, z: torch.Tensor, d: torch.Tensor, weight: torch.Tensor) -> None:
        """z −= Σ_k mix_k(d_k), in place: for one unit of a linear layer an outer product."""
        if self.convolution is not None:
            z.sub_(self.mix(d, weight))
        else:
            z.addmm_(d.flatten(1), weight.flatten(1).T, alpha=-1)

    def clamp(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set `value` and `constant`; where no unit may be ablated, the value is zero and the constant the bias."""
        h = self.activation(self.weight.new_zeros(1, *self.shape))
        g = _composed(self.after, values[self.layer].to(h.dtype).expand_as(h) if self.layer else h)
        g = g if self.layer else torch.zeros_like(g)
        self.value, self.constant = (g if g.any() else None), _composed(self.mixing, g)


def _composed(operations: Sequence[Callable], z: torch.Tensor) -> torch.Tensor:
    for operation in operations:
        z = operation(z)
    return z


def _extend(links: list[Link], step: Step) -> bool:
    """Take one more operation into a chain; False if it is of no kind that chains are made of."""
    link, module = links[-1], step.module
    if step.kind == "channel":
        link.after.append(step.run)
    elif step.kind == "flatten":  # a linear layer's columns are counted by channel; what may follow acts on each number
        link.mixing.append(step.run)
    elif step.kind == "scale" and len(links) > 1 and not (link.layer or link.after or link.mixing):
        below, scale = links[-2], (module.running_var.double() + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight
        below.weight = (below.weight * scale.reshape(-1, *[1] * (below.weight.ndim - 1))).type_as(below.weight)
        below.mixing.append(step.run)  # the constant then has the shift
    elif step.kind in ("linear", "convolution"):
        link.weight = module.weight
        if step.kind == "linear":
            link.weight = module.weight.unflatten(1, (link.shape[0], -1))
        else:
            link.convolution = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        link.mixing.append(step.run)
        links.append(Link(None, step.shape))
    else:
        return step.kind == "nothing"
    return True
