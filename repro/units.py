"""A network cut at its unit layers: the one primitive on which every analysis stands.

A *unit* is one number of an MLP's hidden layer or one feature map of a convolutional layer, taken *after* the
nonlinearity (section 2.2 of Morcos et al. 2018): dim 1 of an activation (N, C) or (N, C, H, W). `Cut` finds the unit
layers of any ``nn.Module``, hands out their activations, and runs the rest of the network from some of them onwards:

    cut = Cut(model, x)                     # cut.layers == {"relu1": 128, "relu2": 128}
    tail = cut.start(x, ["relu1"])          # everything that does not depend on relu1, computed once
    logits = tail(lambda layer, h: 0.5 * h)  # as often as one likes

Where the network above a layer is a plain chain, `Cut.chain` gives it as sums over units (`Link`), of which an ablation
changes a few terms. Models that torch.fx cannot trace give the same results through hooks, with one warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from repro.evaluation import check_images, check_labels, check_layers, evaluating
from repro.graph import FUNCTIONS, NONLINEARITIES, Edit, Graph, Step, Tail, program

# What acts on each channel by itself; a PReLU may have one slope a channel.
CHANNELWISE = (
    *(kind for kind in NONLINEARITIES if kind is not nn.PReLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
CHANNELWISE_FUNCTIONS = FUNCTIONS - {"prelu"} | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # what these do in eval mode
CACHE = 2**21  # bytes of a block of activations that stays in a core's cache

progress = partial(tqdm, unit="image", unit_scale=True, delay=2)


class Cut:
    """A model, cut at its unit layers.

    Parameters
    ----------
    model : nn.Module
        Maps images (N, ...) to logits (N, classes). It is run in eval mode and handed back as it came.
    x : Tensor (N, ...)
        A few images are enough: they tell the shapes.
    layers : sequence of str, optional
        Unit layers by name; by default every nonlinearity but the output, in forward order.

    Attributes
    ----------
    layers : dict of str to int
        Units of each layer, in forward order.
    shapes : dict of str to torch.Size
        Shape of one image's activation: (C,) or (C, H, W).
    classes : int
        Number of logits.

    Raises
    ------
    ValueError
        `layers` names something that is no layer, or whose output is not (N, C) or (N, C, H, W); no unit layer found.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, layers: Sequence[str] | None = None):
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}")
        parameter = next(model.parameters(), x)
        self.device, self.dtype = parameter.device, parameter.dtype
        if self.device.type == "meta":
            raise ValueError("model: expected weights, got a model on the meta device")
        if any(isinstance(module, BATCH_NORM) and module.running_var is None for module in model.modules()):
            raise ValueError(
                "model: a batch norm without running statistics makes each image's logits depend on the others"
            )
        with evaluating(model):
            try:
                sample = x[:2].to(self.device)
                truth = model(sample.clone())  # which it may change
            except Exception as error:  # torch's words, or the model's, for shapes and types that do not fit
                line = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"x: the model cannot run images {x.dtype} {tuple(x.shape)}: {line}") from error
            self._program, outputs, logits = program(model, sample, truth)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ValueError("model: expected a classifier with logits (N, classes)")
        self.classes = logits.shape[1]
        self.shapes = {name: outputs[name][0] for name in check_layers(layers, outputs)}
        self._widest = max(shape.numel() for shape, _ in outputs.values())
        self.layers = {name: shape[0] for name, shape in self.shapes.items()}

    @property
    def units(self) -> list[tuple[str, int]]:
        """(layer, unit) of every unit, layer by layer."""
        return [(layer, unit) for layer, n in self.layers.items() for unit in range(n)]

    def run(self, x: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Logits (N, classes) of images x (N, ...); `edit` may change the activation of every layer as it passes."""
        return self.start(x)(edit)

    def start(self, x: torch.Tensor, layers: Sequence[str] | None = None) -> Tail:
        """Run all that does not depend on `layers` (default: all of them), and keep what the rest needs of it."""
        return self._program.start(x, self.layers if layers is None else layers)

    def chain(self, layer: str, clamp: Mapping[str, torch.Tensor]) -> list[Link]:
        """The network from `layer` to the logits as links, the layers of `clamp`, this one among them, being ablated to
        these values (1, C, ...); empty where the network is no such chain or does not hold all these layers."""
        links = [Link(layer, self.shapes[layer], value=clamp[layer].expand(1, *self.shapes[layer]))]
        steps = self._program.chain(layer)
        for step in steps:
            if not _extend(links, step):
                return []
            link = links[-1]
            if step.name in clamp:
                if link.layer or len(step.shape) != len(link.shape) or step.shape[0] != link.shape[0]:
                    return []
                link.layer, link.value = step.name, clamp[step.name].expand(1, *step.shape)
                link.before, link.after = link.after, []
        end = links.pop()
        if not steps or end.layer or end.after or not set(clamp) <= {link.layer for link in links}:
            return []
        for link in links:
            if link.value is not None and link.value.any():
                link.constant = link.constant + link.mix(link.value, link.weight)
            else:
                link.value = None
        return links

    def source(self, layer: str) -> nn.Module:
        """The convolution or linear layer that makes the units of `layer`."""
        source = self._program.source(layer)
        if source is None:
            raise ValueError(f"layers: found no convolution or linear layer that makes the units of {layer!r}")
        return source

    def activations(self, x: torch.Tensor) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Blocks of images with the activations (n, C) or (n, C, H, W) of every layer."""
        with progress(total=len(x), desc="activations") as bar:
            for block in self.blocks(len(x)):
                kept: dict[str, torch.Tensor] = {}
                self.run(x[block], lambda name, h, kept=kept: kept.setdefault(name, h))
                yield block, kept
                bar.update(block.stop - block.start)

    def blocks(self, n: int, links: Sequence[Link] = (), copies: int = 1, kind: str = "") -> Iterator[slice]:
        """Cut n images into blocks that keep to the budget of a kind of device, by default the model's: the largest
        activation on the way, and on a chain the largest from there on, so many times. Where there are enough images at
        least four, so that each core has some."""
        size = max(self.budget(kind=kind) // (4 * self._widest * (1 if links else copies)), 8)
        if links:
            largest = max(shape.numel() for shape in [*self.shapes.values(), *(link.shape for link in links)])
            size = min(size, max(self.budget(links, kind) // (4 * largest * copies), 32))
        size = min(size, 8192, max(math.ceil(n / 4), 128))
        yield from (slice(first, min(first + size, n)) for first in range(0, n, size))

    def budget(self, links: Sequence[Link] = (), kind: str = "") -> int:
        """Bytes of an activation to work on at once: a core's cache on a chain, else 32 MB; on a GPU an eighth of what is
        free."""
        if (kind or self.device.type) == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] // 8
        return CACHE if links else 16 * CACHE

    def map(self, function: Callable[[slice], torch.Tensor], n: int, links=(), **how) -> Iterator[torch.Tensor]:
        """`function` of all `blocks` of n images, in order, a core each: operations on a block in a core's cache are too
        short to be shared among cores."""
        blocks, threads = list(self.blocks(n, links, **how)), torch.get_num_threads()
        workers = min(threads, len(blocks)) if self.device.type == "cpu" and isinstance(self._program, Graph) else 1
        if workers == 1:
            yield from map(function, blocks)
            return
        torch.set_num_threads(threads // workers)
        try:
            with ThreadPoolExecutor(workers) as pool:
                yield from pool.map(torch.no_grad()(function), blocks)
        finally:
            torch.set_num_threads(threads)


def unit_layers(model: nn.Module, x: torch.Tensor) -> list[tuple[str, int]]:
    """Names and numbers of units of a model's unit layers, in forward order.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (N, ...)
        Images; two of them are run through the model to learn the shapes.
    """
    return list(Cut(model, check_images(x)).layers.items())


def prepare(model, x, y, layers=None) -> tuple[Cut, torch.Tensor, torch.Tensor]:
    """Check images and labels, cut the model, and move both to its device."""
    check_images(x)
    check_labels(y, len(x))
    cut = Cut(model, x, layers)
    y = check_labels(y, len(x), cut.classes)
    return cut, x.detach().to(cut.device), y.to(cut.device)


@dataclass
class Link:
    """One step of a chain, from one pre-activation z (n, C, ...) to the next one z' (n, O, ...).

    A nonlinearity, and whatever else acts on each channel by itself such as pooling, is followed by a linear or
    convolutional layer, which mixes channels and is a sum over them:

        h = before(z),  g = after(h),  z' = bias + Σ_k mix_k(g_k)

    What acts on channels by themselves commutes with clamping some units of h. So with `value` = after(what each is
    clamped to) and `constant` = bias + Σ_k mix_k(value_k), which takes one image to compute,

        z' = constant + Σ_{k kept} mix_k(g_k − value_k):

    to ablate a unit is to leave its term out. This is exact for every value, also for one that differs between
    positions or meets zero padding at the borders. A batch norm that follows is folded into `weight` and `constant`.
    """

    layer: str | None  # whose units may be ablated here
    shape: torch.Size  # of one image's z: (C,) or (C, H, W)
    before: list[Callable] = field(default_factory=list)
    after: list[Callable] = field(default_factory=list)
    weight: torch.Tensor | None = None  # a convolution's (O, C, h, w); or (O, C, P), P numbers a channel
    convolution: dict | None = None  # stride, padding, dilation
    value: torch.Tensor | None = None  # (1, C, ...), None for zero
    constant: torch.Tensor | None = None  # (1, O, ...)

    def __call__(self, z: torch.Tensor, kept: int | None = None, outputs: int | None = None) -> torch.Tensor:
        """z' (n, outputs, ...) from z (n, kept, ...) with only the first `kept` units present."""
        return self.sum(self.terms(self.activation(z), kept), outputs)

    def activation(self, z: torch.Tensor) -> torch.Tensor:
        """h, of the shape of z."""
        for operation in self.before:
            z = operation(z)
        return z

    def terms(self, h: torch.Tensor, kept: int | None = None) -> torch.Tensor:
        """d = g − value, (n, kept, ...)."""
        for operation in self.after:
            h = operation(h)
        return h if self.value is None else h - self.value[:, :kept]

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


def _extend(links: list[Link], step: Step) -> bool:
    """Take one more operation into a chain; False if it is of no kind that chains are made of."""
    link, module = links[-1], step.module
    if module is not None and (module._forward_hooks or module._forward_pre_hooks):
        return False  # it does more than its kind
    flatten = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    if flatten or isinstance(module, NOTHING) or (step.function == "flatten" and step.args == (1,)):
        return True  # a linear layer's columns are counted by channel
    if isinstance(module, CHANNELWISE) or step.function in CHANNELWISE_FUNCTIONS:
        link.after.append(step.run)
        link.value = None if link.value is None else step.run(link.value)
        return True
    if isinstance(module, BATCH_NORM):
        return len(links) > 1 and not (link.layer or link.after) and _fold(module, links[-2])
    if isinstance(module, nn.Linear) and len(step.shape) == 1:
        link.weight = module.weight.unflatten(1, (link.shape[0], -1))
    elif isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        link.weight = module.weight
        link.convolution = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
    else:
        return False
    bias = module.weight.new_zeros(step.shape[0]) if module.bias is None else module.bias
    link.constant = bias.reshape(1, -1, *[1] * (len(step.shape) - 1)).expand(1, *step.shape)
    links.append(Link(None, step.shape))
    return True


def _fold(norm: nn.Module, link: Link) -> bool:
    """Let the mixing of `link` do the batch norm's work, too; False if it cannot."""
    if norm.num_features != len(link.weight):
        return False
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    per_output = (-1, *[1] * (link.constant.ndim - 2))
    link.constant = (link.constant * scale.reshape(per_output) + shift.reshape(per_output)).type_as(link.constant)
    link.weight = (link.weight * scale.reshape(-1, *[1] * (link.weight.ndim - 1))).type_as(link.weight)
    return True
