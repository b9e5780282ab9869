"""A network cut at its unit layers: the one primitive on which every analysis stands.

A *unit* is one number of an MLP's hidden layer or one feature map of a convolutional layer, taken *after* the
nonlinearity (section 2.2 of Morcos et al. 2018): dim 1 of an activation (N, C) or (N, C, H, W). `Cut` finds the unit
layers of any ``nn.Module``, hands out their activations, and runs the rest of the network from some of them onwards:

    cut = Cut(model, x)                     # cut.layers == {"relu1": 128, "relu2": 128}
    tail = cut.start(x, ["relu1"])          # everything that does not depend on relu1, computed once
    logits = tail(lambda layer, h: 0.5 * h)  # as often as one likes

Where the network above a layer is a plain chain, `Cut.chain` gives it as sums over units (`Link`), of which an ablation
changes a few terms. Layers carry torchvision's feature-extraction names ("relu1", "layer1.0.relu_1"). A model that
torch.fx cannot trace is used through forward hooks: its modules' names, the same results, nothing saved, one warning.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

NONLINEARITIES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
)
FUNCTIONS = {kind.__name__.lower() for kind in NONLINEARITIES} | {"leaky_relu", "relu_", "leaky_relu_", "elu_"}
INPLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv")
# What acts on each channel by itself; a PReLU may have one slope a channel.
CHANNELWISE = (
    *(kind for kind in NONLINEARITIES if kind is not nn.PReLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
CHANNELWISE_FUNCTIONS = FUNCTIONS - {"prelu"} | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # what these do in eval mode
CACHE = 2**21  # bytes of a block of activations that stays in a core's cache

Edit = Callable[[str, torch.Tensor], torch.Tensor]  # (layer, activation) -> another activation of that shape
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
        self.device, self.dtype, self._model = parameter.device, parameter.dtype, model
        with evaluating(model):
            self._program, outputs, logits = _program(model, x[:2].to(self.device))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ValueError("model: expected a classifier with logits (N, classes)")
        self.classes = logits.shape[1]
        self.shapes = {name: outputs[name][0] for name in _choose(layers, outputs)}
        self.layers = {name: shape[0] for name, shape in self.shapes.items()}

    def run(self, x: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Logits (N, classes) of images x (N, ...); `edit` may change the activation of every layer as it passes."""
        return self.start(x)(edit)

    def start(self, x: torch.Tensor, layers: Sequence[str] | None = None) -> Tail:
        """Run all that does not depend on `layers` (default: all of them), and keep what the rest needs of it."""
        return self._program.start(x, self.layers if layers is None else layers)

    def chain(self, layer: str, clamp: Mapping[str, torch.Tensor]) -> list[Link]:
        """The network from `layer` to the logits as links, the layers of `clamp` being ablated to these values
        (1, C, ...); empty where the network is no such chain or does not hold all these layers."""
        links = self._program.chain(layer, clamp)
        return links if set(clamp) <= {link.layer for link in links} else []

    def activations(self, x: torch.Tensor) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Blocks of images with the activations (n, C) or (n, C, H, W) of every layer."""
        with progress(total=len(x), desc="activations") as bar:
            for block in self.blocks(len(x)):
                kept: dict[str, torch.Tensor] = {}
                self.run(x[block], lambda name, h, kept=kept: kept.setdefault(name, h))
                yield block, kept
                bar.update(block.stop - block.start)

    def blocks(self, n: int, links: Sequence[Link] = (), copies: int = 1) -> Iterator[slice]:
        """Cut n images into blocks; a block's largest activation, so many times, keeps to the budget. Where there are
        enough images at least four, so that each core has some."""
        largest = max(shape.numel() for shape in [*self.shapes.values(), *(link.shape for link in links)])
        size = max(self.budget(links) // (4 * largest * copies), 32 if links else 8)
        size = min(size, 8192, max(math.ceil(n / 4), 128))
        yield from (slice(first, min(first + size, n)) for first in range(0, n, size))

    def budget(self, links: Sequence[Link] = ()) -> int:
        """Bytes of an activation to work on at once: a core's cache on a chain, else 32 MB; on a GPU an eighth of what is
        free."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] // 8
        return CACHE if links else 16 * CACHE

    def map(self, function: Callable[[slice], torch.Tensor], n: int, links=(), copies=1) -> Iterator[torch.Tensor]:
        """`function` of all `blocks` of n images, in order, a core each: operations on a block in a core's cache are too
        short to be shared among cores."""
        blocks, threads = list(self.blocks(n, links, copies)), torch.get_num_threads()
        workers = min(threads, len(blocks)) if self.device.type == "cpu" and isinstance(self._program, _Graph) else 1
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


@dataclass
class Tail:
    """The rest of a network for one block of images; called with an edit of its layers, it gives logits (N, classes).

    `h` holds the activations of those layers that no other of them feeds, from a traced network.
    """

    run: Callable[[Edit | None], torch.Tensor]
    h: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, edit: Edit | None = None) -> torch.Tensor:
        return self.run(edit)


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
    before: list[Callable] = field(default_factory=list)  # these operations may overwrite what they are given
    after: list[Callable] = field(default_factory=list)
    weight: torch.Tensor | None = None  # a convolution's (O, C, h, w); or (O, C, P), P numbers a channel
    convolution: dict | None = None  # stride, padding, dilation
    value: torch.Tensor | None = None  # (1, C, ...), None for zero
    constant: torch.Tensor | None = None  # (1, O, ...)

    def __call__(self, z: torch.Tensor, kept: int | None = None, outputs: int | None = None) -> torch.Tensor:
        """z' (n, outputs, ...) from z (n, kept, ...) with only the first `kept` units present; z is overwritten."""
        return self.sum(self.terms(self.activation(z), kept), outputs)

    def activation(self, z: torch.Tensor) -> torch.Tensor:
        """h, of the shape of z, which is overwritten."""
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
            return constant.expand(len(d), *constant.shape[1:]).clone()  # a copy, as the next link may overwrite it
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


# How a model is run: as a traced graph, or through hooks --------------------------------------------------------------


def _program(model: nn.Module, sample: torch.Tensor):
    """(how to run it, {layer: (shape, is a nonlinearity)}, logits); the graph is used where it repeats the model."""
    truth = model(sample)
    try:
        graph = _Graph(model)
        outputs, logits = graph.outputs(sample)
        if torch.allclose(logits, truth, atol=1e-5, equal_nan=True):
            return graph, outputs, logits
        reason = "its traced graph gives other logits"
    except Exception as error:  # torch.fx raises many kinds for code it cannot trace
        reason = str(error).partition("\n")[0] or type(error).__name__
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals["__name__"].startswith(__package__):
        frame, level = frame.f_back, level + 1
    warning = f"the model is measured through hooks, which is slower: it cannot be traced ({reason})"
    warnings.warn(warning, stacklevel=level)
    hooks = _Hooks(model)
    return hooks, *hooks.outputs(sample)


def _choose(layers, outputs) -> list[str]:
    """Unit layers in forward order: those named in `layers`, or all."""
    units = [name for name, (shape, nonlinear) in outputs.items() if nonlinear and len(shape) in (1, 3)]
    if layers is None:
        if not units:
            raise ValueError(
                "model: found no unit layer (the output of a ReLU-like nonlinearity, (N, C) or (N, C, H, W)); "
                f"name layers by hand: layers=[...] from {', '.join(outputs) or 'none'}"
            )
        return units
    if isinstance(layers, str) or not list(layers):
        raise ValueError(f"layers: expected a list of layer names, got {layers!r}")
    for name in layers:
        if name not in outputs:
            expected = ", ".join(units or outputs)
            raise ValueError(f"layers: the model has no layer {name!r}; expected some of {expected}")
        if len(outputs[name][0]) not in (1, 3):
            shape = ", ".join(map(str, outputs[name][0]))
            raise ValueError(f"layers: {name!r} gives (N, {shape}); units need (N, C) or (N, C, H, W)")
    return [name for name in outputs if name in set(layers)]


class _Graph:
    """A model as a torch.fx graph without in-place operations, run node by node."""

    def __init__(self, model: nn.Module):
        import torchvision
        from torchvision.models.feature_extraction import NodePathTracer

        tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops))
        self.model, graph = model, tracer.trace(model)
        self.modules = dict(model.named_modules())
        earlier = set()
        for node in graph.nodes:
            earlier.add(node)
            if self._make_pure(node):  # what follows shall see the result, as if its argument had been overwritten
                node.args[0].replace_all_uses_with(node, lambda user: user not in earlier)
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        self.names = tracer.node_to_qualname
        *self.nodes, output = graph.nodes
        self.input, self.result = self.nodes[0], output.args[0]

    def _make_pure(self, node) -> bool:
        """Let an in-place operation return a new tensor; False if it was none."""
        target, name = node.target, getattr(node.target, "__name__", "")
        if node.op == "call_module" and getattr(self.model.get_submodule(target), "inplace", False):
            self.modules[target] = copy.copy(self.modules[target])
            self.modules[target].inplace = False
        elif node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
            node.target = target[:-1]
        elif node.op == "call_function" and name in INPLACE_OPERATORS:
            node.target = getattr(operator, name[1:])
        elif node.op == "call_function" and name.endswith("_") and hasattr(F, name[:-1]):
            node.target = getattr(F, name[:-1])
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_function" and name in FUNCTIONS and node.args[-1] is True:  # F.relu(x, True)
            node.args = node.args[:-1]
        else:
            return False
        return True

    def _call(self, node, env):
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "call_module":
            return self.modules[node.target](*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return operator.attrgetter(node.target)(self.model)  # get_attr

    def _execute(self, nodes, env, keep, layers=(), edit=None) -> None:
        """Run `nodes` in `env`, a dict of node to value; values that nothing needs any more are let go."""
        last = {argument: node for node in nodes for argument in node.all_input_nodes}
        for node in nodes:
            env[node] = self._call(node, env)
            if edit is not None and self.names.get(node) in layers:
                env[node] = edit(self.names[node], env[node])
            for argument in node.all_input_nodes:
                if last[argument] is node and argument not in keep:
                    del env[argument]

    def outputs(self, sample):
        env = {self.input: sample}
        self._execute(self.nodes[1:], env, keep=self.nodes)
        self.shapes = {n: v.shape[1:] for n, v in env.items() if isinstance(v, torch.Tensor) and v.ndim > 1}
        inner = [node for node in self.nodes[1:] if node in self.shapes and node is not self.result]
        self.by_name = {self.names[node]: node for node in inner}
        found = {name: (self.shapes[node], self._is_nonlinearity(node)) for name, node in self.by_name.items()}
        return found, env[self.result]

    def _is_nonlinearity(self, node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[node.target], NONLINEARITIES)
        return _function(node) in FUNCTIONS

    def start(self, x, layers) -> Tail:
        cuts, above = {self.by_name[name] for name in layers}, set()
        roots = set()  # cut, and fed by no other cut
        for node in self.nodes:
            if not above.isdisjoint(node.all_input_nodes):
                above.add(node)
            elif node in cuts:
                roots.add(node)
                above.add(node)
        rest = [node for node in self.nodes if node in above - roots]
        below = [node for node in self.nodes[1:] if node not in above - roots]
        needed = {argument for node in rest for argument in node.all_input_nodes} | roots
        env = {self.input: x}
        self._execute(below, env, needed)

        def run(edit):
            now = dict(env)
            if edit is not None:
                now |= {root: edit(self.names[root], env[root]) for root in roots}
            self._execute(rest, now, {self.result}, layers, edit)
            return now[self.result]

        return Tail(run, {self.names[root]: env[root] for root in roots})

    def chain(self, layer, clamp) -> list[Link]:
        node = self.by_name[layer]
        links = [self._link(node, clamp)]
        while node is not self.result:
            source, node = node, next(iter(node.users))
            alone = len(source.users) == 1 and node.all_input_nodes == [source]
            if not alone or not self._extend(links, source, node, clamp):
                return []
            link, name = links[-1], self.names.get(node)
            if name in clamp and link.layer != name:
                if link.layer or self.shapes[node][0] != link.shape[0]:
                    return []
                link.layer, link.value = name, clamp[name].expand(1, *self.shapes[node])
                link.before, link.after = link.after, []
        last = links.pop()
        if last.layer or last.after:
            return []
        for link in links:
            if link.value is not None and link.value.any():
                link.constant = link.constant + link.mix(link.value, link.weight)
            else:
                link.value = None
        return links

    def _link(self, node, clamp) -> Link:
        shape, name = self.shapes[node], self.names.get(node)
        return Link(name, shape, value=clamp[name].expand(1, *shape)) if name in clamp else Link(None, shape)

    def _extend(self, links, source, node, clamp) -> bool:
        """Take one more operation into a chain; False if it is of no kind that chains are made of."""
        link, function, shape = links[-1], _function(node), self.shapes.get(node)
        module = self.modules[node.target] if node.op == "call_module" else None
        flatten = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        if flatten or isinstance(module, NOTHING) or (function == "flatten" and node.args[1:] == (1,)):
            return True  # a linear layer's columns are counted by channel
        if isinstance(module, CHANNELWISE) or function in CHANNELWISE_FUNCTIONS:
            relu = isinstance(module, nn.ReLU) or function == "relu"
            operation = torch.relu_ if relu else lambda h: self._call(node, {source: h})
            link.after.append(operation)
            link.value = None if link.value is None else operation(link.value.clone())
            return True
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return len(links) > 1 and not (link.layer or link.after) and _fold(module, links[-2])
        if isinstance(module, nn.Linear) and len(self.shapes[source]) == 1:
            link.weight = module.weight.unflatten(1, (link.shape[0], -1))
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
            link.weight = module.weight
            link.convolution = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        else:
            return False
        bias = module.weight.new_zeros(shape[0]) if module.bias is None else module.bias
        link.constant = bias.reshape(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
        links.append(self._link(node, clamp))
        return True


def _function(node) -> str:
    """Name of the function or method that a node calls."""
    if node.op == "call_method":
        return node.target
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _fold(norm: nn.Module, link: Link) -> bool:
    """Let the mixing of `link` do the batch norm's work, too; False if it cannot."""
    if norm.running_var is None or norm.num_features != len(link.weight):
        return False
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    per_output = (-1, *[1] * (link.constant.ndim - 2))
    link.constant = (link.constant * scale.reshape(per_output) + shift.reshape(per_output)).type_as(link.constant)
    link.weight = (link.weight * scale.reshape(-1, *[1] * (link.weight.ndim - 1))).type_as(link.weight)
    return True


class _Hooks:
    """A model run as it is, with forward hooks on its modules; "the rest" is the whole of it, every time."""

    def __init__(self, model: nn.Module):
        self.model = model

    def _forward(self, x, edit):
        """Run the model; `edit(name, module, output)` gives what stands for the output of each call of each module."""
        calls: dict[str, int] = {}

        def hook(name, module, _, output):
            calls[name] = calls.get(name, -1) + 1
            return edit(f"{name}_{calls[name]}" if calls[name] else name, module, output)

        modules = [(name, module) for name, module in self.model.named_modules() if name]
        handles = [module.register_forward_hook(partial(hook, name)) for name, module in modules]
        try:
            return self.model(x)
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self, sample):
        found, last = {}, {}

        def record(name, module, output):
            if isinstance(output, torch.Tensor) and output.ndim >= 2:
                found[name] = output.shape[1:], isinstance(module, NONLINEARITIES)
                last[name] = output
            return output

        logits = self._forward(sample, record)
        return {name: entry for name, entry in found.items() if last[name] is not logits}, logits

    def start(self, x, layers) -> Tail:
        # An in-place module changes its input, and an edit must not reach back into it: hence the clone.
        def run(edit):
            return self._forward(x, lambda name, _, h: edit(name, h.clone()) if edit and name in layers else h)

        return Tail(run)

    def chain(self, layer, clamp) -> list[Link]:
        return []


# Checked input and scores, shared by the analyses ---------------------------------------------------------------------


def check_images(x: torch.Tensor, argument: str = "x") -> torch.Tensor:
    """Images (N, ...) of a floating type, finite, at least one; else a ValueError that names the argument."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{argument}: expected a floating-point tensor of images (N, ...), got {kind}")
    if len(x) == 0:
        raise ValueError(f"{argument}: expected at least one image, got none")
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():  # a sum is faster, but may overflow
        raise ValueError(f"{argument}: expected finite numbers, found NaN or infinity")
    return x


def check_labels(y: torch.Tensor, n: int, classes: int | None = None) -> torch.Tensor:
    """n integer labels in [0, classes), at least two different ones; as int64."""
    if not isinstance(y, torch.Tensor) or y.ndim != 1 or y.dtype == torch.bool or y.dtype.is_floating_point:
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"y: expected a tensor of integer labels (N,), got {kind}")
    if len(y) != n:
        raise ValueError(f"y: expected {n} labels, one an image, got {len(y)}")
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        raise ValueError(f"y: expected labels from 0 to {(classes or math.inf) - 1}, got {y.min()} to {y.max()}")
    if len(y.unique()) < 2:
        raise ValueError("y: expected images of at least two classes, got one")
    return y.long()


def check_integer(argument: str, number, low: int) -> int:
    """An integer >= low."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < low:
        raise ValueError(f"{argument}: expected an integer >= {low}, got {number!r}")
    return int(number)


def prepare(model, x, y, layers=None) -> tuple[Cut, torch.Tensor, torch.Tensor]:
    """Check images and labels, cut the model, and move both to its device."""
    check_images(x)
    check_labels(y, len(x))
    try:
        cut = Cut(model, x, layers)
    except (RuntimeError, IndexError) as error:  # torch's own words for shapes and types that do not fit
        first = str(error).partition("\n")[0]
        raise ValueError(f"x: the model cannot run images {x.dtype} {tuple(x.shape)}: {first}") from error
    y = check_labels(y, len(x), cut.classes)
    return cut, x.to(cut.device), y.to(cut.device)


def image_scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of every image the cross-entropy in nats, whether it is correct and, from 100 classes on, whether the label is
    among the first five: (2 or 3, ..., N) for logits (..., N, classes) and labels (N,)."""
    label = logits.gather(-1, y.expand(logits.shape[:-1])[..., None]).squeeze(-1)
    largest = logits.amax(-1)
    top = logits == largest[..., None]
    # Among equal logits the first counts; looking for it takes as long as all the rest, and it is seldom needed.
    correct = label == largest if top.count_nonzero() == largest.numel() else top.byte().argmax(-1) == y
    loss = (logits - largest[..., None]).exp_().sum(-1).log_().add_(largest).sub_(label)
    found = [loss, correct.to(loss.dtype)]
    if logits.shape[-1] >= 100:
        found.append((logits.topk(5, dim=-1).indices == y[:, None]).any(-1).to(loss.dtype))
    return torch.stack(found)


def scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`image_scores` summed over images: (..., 2 or 3) float64 for logits (..., N, classes) and labels (N,)."""
    return image_scores(logits, y).sum(-1, dtype=torch.float64).movedim(0, -1)


def score_columns(sums: torch.Tensor, n: int) -> dict[str, list[float]]:
    """Columns loss, accuracy (and accuracy_top5) of a table from `scores` summed over n images, (rows, 2 or 3)."""
    names = ("loss", "accuracy", "accuracy_top5")
    return dict(zip(names, (sums / n).T.cpu().tolist(), strict=False))
