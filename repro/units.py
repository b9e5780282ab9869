"""A network cut at its unit layers: the one primitive on which every analysis stands.

A *unit* is one number of an MLP's hidden layer or one feature map of a convolutional layer, taken *after* the nonlinearity
(section 2.2 of Morcos et al. 2018): dim 1 of an activation (N, C) or (N, C, H, W). `Cut` finds the unit layers of any
``nn.Module``, hands out their activations, and runs the rest of the network from a layer onwards:

    cut = Cut(model, x)                 # cut.layers == {"relu1": 128, "relu2": 128}
    tail = cut.start(x, "relu1")        # what the layers above relu1 need, computed once
    logits = tail(ablated(tail.h))      # as often as one likes

Layers carry torchvision's feature-extraction names ("relu1", "layer1.0.relu_1"). A model that torch.fx cannot trace is used
through forward hooks: the same names for its modules, the same results, nothing saved, one warning.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

NONLINEARITIES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
)
FUNCTIONS = {kind.__name__.lower() for kind in NONLINEARITIES} | {"leaky_relu", "relu_", "leaky_relu_", "elu_"}
CHANNELWISE = (  # what acts on each channel by itself; PReLU may have one slope a channel
    *(kind for kind in NONLINEARITIES if kind is not nn.PReLU),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
CHANNELWISE_FUNCTIONS = FUNCTIONS | {"dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
INPLACE_OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv")}

Edit = Callable[[str, torch.Tensor], torch.Tensor]  # (layer, activation) -> activation, of the same shape


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
        self.model = model
        parameter = next(model.parameters(), None)
        self.device = x.device if parameter is None else parameter.device
        sample = x[:2].to(self.device)
        with evaluating(model):
            self._program, outputs, logits = _program(model, sample)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ValueError("model: expected a classifier with logits (N, classes)")
        self.classes = logits.shape[1]
        found = self._choose(layers, outputs)
        self.layers = {name: outputs[name][0][1] for name in found}
        self.shapes = {name: outputs[name][0][1:] for name in found}

    def _choose(self, layers, outputs) -> list[str]:
        units = [name for name, (shape, nonlinear) in outputs.items() if nonlinear and len(shape) in (2, 4)]
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
                raise ValueError(f"layers: the model has no layer {name!r}; expected some of {', '.join(units or outputs)}")
            if len(outputs[name][0]) not in (2, 4):
                shape = tuple(outputs[name][0])
                raise ValueError(f"layers: {name!r} gives {shape}; units need (N, C) or (N, C, H, W)")
        return [name for name in outputs if name in set(layers)]

    def run(self, x: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Logits (N, classes) of images x (N, ...); `edit` may change the activation of every layer as it passes."""
        return self._program.run(x, set(self.layers), edit)

    def start(self, x: torch.Tensor, layer: str) -> Tail:
        """Run up to `layer` and keep what the layers above it need."""
        return self._program.start(x, layer, set(self.layers))

    def chain(self, layer: str, clamp: Mapping[str, torch.Tensor]) -> list[Link] | None:
        """The network from `layer` to the logits as a chain of links, the units of the layers in `clamp` being ablated to
        those values; None where the network is no such chain, or does not hold all these layers."""
        links = self._program.chain(layer, clamp)
        return links if links and set(clamp) <= {link.layer for link in links} else None

    def activations(self, x: torch.Tensor) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Blocks of images with the activations (n, C) or (n, C, H, W) of every layer."""
        for block in self.blocks(len(x)):
            kept: dict[str, torch.Tensor] = {}
            self.run(x[block], lambda name, h, kept=kept: kept.setdefault(name, h))
            yield block, kept

    def blocks(self, n: int, links: Sequence[Link] = ()) -> Iterator[slice]:
        """Cut n images into blocks: on a chain, such that a block's pre-activations stay in a core's cache; otherwise its
        largest activation takes about 32 MB. On a GPU: an eighth of what is free."""
        largest = max(shape.numel() for shape in [*self.shapes.values(), *(link.shape for link in links)])
        budget = 2**21 if links else 2**25
        if self.device.type != "cpu":
            budget = torch.cuda.mem_get_info(self.device)[0] // 8
        size = max(1, min(budget // (4 * largest), 8192))
        for first in range(0, n, size):
            yield slice(first, min(first + size, n))


def unit_layers(model: nn.Module, x: torch.Tensor) -> list[tuple[str, int]]:
    """Names and numbers of units of a model's unit layers, in forward order.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (N, ...)
        Images; two of them are run through the model to learn the shapes.
    """
    return list(Cut(model, check_images(x)).layers.items())


class Tail:
    """The rest of a network from a unit layer onwards, for one block of images.

    Attributes
    ----------
    h : Tensor (N, C) or (N, C, H, W)
        The layer's activation.
    """

    def __init__(self, h: torch.Tensor, rest: Callable[[torch.Tensor, Edit | None], torch.Tensor]):
        self.h, self._rest = h, rest

    def __call__(self, h: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Logits (N, classes) with activation `h` in the layer; `edit` acts on the layers above only."""
        return self._rest(h, edit)


@dataclass
class Link:
    """One step of a network that is a chain, from one pre-activation to the next: nonlinearity, then mixing of channels.

    The nonlinearity, and whatever else acts on each channel by itself such as pooling, is applied to the pre-activation z
    of the link below; a linear or convolutional layer then mixes channels, and is a sum over them:

        g = operations(z),  z' = bias + Σ_k mix_k(g_k)

    What acts on channels by themselves commutes with clamping some of them. With `value` what g_k is where unit k is
    clamped, and `constant` = bias + Σ_k mix_k(value_k), which one image suffices to compute,

        z' = constant + Σ_{k kept} mix_k(g_k − value_k):

    to ablate a unit is to leave its term out. This is exact for every value, also for one that differs between positions
    or meets zero padding at the borders.

    Attributes
    ----------
    layer : str or None
        The unit layer whose units may be ablated here.
    shape : torch.Size
        Of one image's z: (C,) or (C, H, W).
    operations : list of callables
        (n, C, ...) -> (n, C, ...), each channel by itself; they may overwrite what they are given.
    weight : Tensor (O, C, ...)
        A convolution's, or for g (n, C, ...) a matrix (O, C, P) with P columns a channel. A batch norm is folded in.
    convolution : dict or None
        Stride, padding and dilation, if it is a convolution.
    value : Tensor (1, C, ...) or None
        None stands for zero.
    constant : Tensor (1, O, ...)
    """

    layer: str | None
    shape: torch.Size
    operations: list[Callable] = field(default_factory=list)
    weight: torch.Tensor | None = None
    convolution: dict | None = None
    value: torch.Tensor | None = None
    constant: torch.Tensor | None = None

    def __call__(self, z: torch.Tensor, kept: int | None = None, outputs: int | None = None) -> torch.Tensor:
        """z' (n, outputs, ...) from z (n, kept, ...), with the first `kept` units present and the others ablated."""
        return self.sum(self.terms(z, kept), outputs)

    def sum(self, d: torch.Tensor, outputs: int | None = None) -> torch.Tensor:
        """constant + Σ_k mix_k(d_k) over the first units, (n, outputs, ...) from d = g − value, (n, kept, ...)."""
        constant, kept = self.constant[:, :outputs], d.shape[1]
        if kept == 0 or outputs == 0:
            return constant.expand(len(d), *constant.shape[1:]).clone()  # the next link may overwrite it
        return self.mix(d, self.weight[:outputs, :kept]) + constant

    def terms(self, z: torch.Tensor, kept: int | None = None) -> torch.Tensor:
        """g − value, (n, kept, ...)."""
        for operation in self.operations:
            z = operation(z)
        return z if self.value is None else z - self.value[:, :kept]

    def mix(self, g: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Σ_k mix_k(g_k): (n, C, ...) -> (n, O, ...), for the channels and outputs that `weight` holds."""
        if self.convolution is not None:
            return F.conv2d(g, weight, **self.convolution)
        return (weight.flatten(1) @ g.flatten(1).T).T  # this way round, few outputs (the logits) cost half as much

    def subtract(self, z: torch.Tensor, g: torch.Tensor, weight: torch.Tensor) -> None:
        """z −= Σ_k mix_k(g_k), in place; for one unit of a linear layer, an outer product."""
        if self.convolution is not None:
            z.sub_(self.mix(g, weight))
        else:
            z.addmm_(g.flatten(1), weight.flatten(1).T, alpha=-1)


def _fold(norm: nn.Module, link: Link) -> bool:
    """Let the mixing of `link` do the batch norm's work, too."""
    if norm.running_var is None or norm.num_features != len(link.weight):
        return False
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    dtype, channels = link.weight.dtype, (-1,) + (1,) * (link.constant.ndim - 2)
    link.constant = (link.constant * scale.reshape(channels) + shift.reshape(channels)).to(dtype)
    link.weight = (link.weight * scale.reshape((-1,) + (1,) * (link.weight.ndim - 1))).to(dtype)
    return True


def in_threads(function: Callable, blocks: Iterable, device: torch.device) -> Iterator:
    """`function` of every block of images, in order, one thread a block: operations on a block in a core's cache are too
    short to be shared among cores."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield from map(function, blocks)
        return
    torch.set_num_threads(1)
    try:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            yield from pool.map(torch.no_grad()(function), blocks)
    finally:
        torch.set_num_threads(threads)


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
    """(how to run it, {layer: (output shape, is a nonlinearity)}, logits); the graph is used where it repeats the model."""
    truth = model(sample)
    try:
        graph = _Graph(model)
        outputs, logits = graph.outputs(sample)
        if torch.allclose(logits, truth, atol=1e-5, equal_nan=True):
            return graph, outputs, logits
        reason = "its traced graph gives other logits"
    except Exception as error:  # torch.fx raises many kinds for code it cannot trace
        reason = str(error).partition("\n")[0] or type(error).__name__
    warnings.warn(f"the model is measured through hooks, which is slower: it cannot be traced ({reason})", stacklevel=4)
    hooks = _Hooks(model)
    return hooks, *hooks.outputs(sample)


class _Graph:
    """A model as a torch.fx graph without in-place operations, run node by node."""

    def __init__(self, model: nn.Module):
        import torchvision
        from torchvision.models.feature_extraction import NodePathTracer

        tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops))
        self.model, self.graph = model, tracer.trace(model)
        self.names = dict(tracer.node_to_qualname)
        self.modules = dict(model.named_modules())
        self._functionalize()
        self.nodes = [node for node in self.graph.nodes if node.users or node.op in ("placeholder", "output")]
        self.by_name = {self.names[node]: node for node in self.nodes if node in self.names}
        self.result = self.nodes[-1].args[0]

    def _functionalize(self) -> None:
        """Make every in-place operation return a new tensor, and let what follows it use that one: activations that are
        kept for several runs must not change under them."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in order:
            target = node.target
            in_place = node.kwargs.get("inplace", False)
            if node.op == "call_module":
                in_place = getattr(self.modules[target], "inplace", False)
            elif node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
                node.target, in_place = target[:-1], True
            elif node.op == "call_function" and target in INPLACE_OPERATORS:
                node.target, in_place = INPLACE_OPERATORS[target], True
            elif node.op == "call_function" and getattr(target, "__name__", "") in FUNCTIONS:
                if target.__name__.endswith("_"):
                    node.target, in_place = getattr(F, target.__name__[:-1]), True
                elif node.args[-1] is True:  # F.relu(x, True)
                    node.args, in_place = node.args[:-1], True
            if in_place:
                if "inplace" in node.kwargs:
                    node.kwargs = {**node.kwargs, "inplace": False}
                changed = node.args[0]
                changed.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])

    def _call(self, node, env):
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "call_module":
            module = self.modules[node.target]
            if getattr(module, "inplace", False):
                args = (args[0].clone(), *args[1:])
            return module(*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return operator.attrgetter(node.target)(self.model)  # get_attr

    def _execute(self, nodes, env, keep, layers=(), edit=None) -> None:
        """Run `nodes` in `env`, a dict of node to value; values that nothing needs any more are let go."""
        last = {argument: node for node in nodes for argument in node.all_input_nodes}
        for node in nodes:
            if node.op in ("placeholder", "output"):
                continue
            value = self._call(node, env)
            if edit is not None and self.names.get(node) in layers:
                value = edit(self.names[node], value)
            env[node] = value
            for argument in node.all_input_nodes:
                if last[argument] is node and argument not in keep:
                    del env[argument]

    def outputs(self, sample):
        env = {self.nodes[0]: sample}
        self._execute(self.nodes, env, keep=set(self.nodes))
        self.shapes = {node: value.shape for node, value in env.items() if isinstance(value, torch.Tensor)}
        found = {}
        for name, node in self.by_name.items():
            value = env.get(node)
            if isinstance(value, torch.Tensor) and value.ndim >= 2 and node is not self.result and node.op != "placeholder":
                found[name] = value.shape, self._is_nonlinearity(node)
        return found, env[self.result]

    def _is_nonlinearity(self, node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[node.target], NONLINEARITIES)
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        return node.op in ("call_function", "call_method") and name in FUNCTIONS

    def run(self, x, layers, edit=None):
        env = {self.nodes[0]: x}
        self._execute(self.nodes, env, {self.result}, layers, edit)
        return env[self.result]

    def chain(self, layer, clamp) -> list[Link] | None:
        node = self.by_name[layer]
        links = [self._link(node, clamp)]
        while node is not self.result:
            source = node
            if len(source.users) != 1:
                return None
            node = next(iter(source.users))
            if node.all_input_nodes != [source] or not self._extend(links, source, node, clamp):
                return None
            name, link = self.names.get(node), links[-1]
            if name in clamp and link.layer != name:
                if link.layer or self.shapes[node][1] != link.shape[0]:
                    return None
                link.layer, link.value = name, clamp[name].expand(1, *self.shapes[node][1:])
        last = links.pop()
        if last.layer or last.operations:
            return None
        for link in links:
            if link.value is not None and link.value.any():
                link.constant = link.constant + link.mix(link.value, link.weight)
            else:
                link.value = None
        return links

    def _link(self, node, clamp) -> Link:
        name, shape = self.names[node], self.shapes[node][1:]
        return Link(name, shape, value=clamp[name].expand(1, *shape)) if name in clamp else Link(None, shape)

    def _extend(self, links, source, node, clamp) -> bool:
        """Add one operation to a chain; False if it is of no kind that chains are made of."""
        link, module = links[-1], self.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return True  # a linear layer's columns are counted by channel
        if isinstance(module, CHANNELWISE) or getattr(node.target, "__name__", "") in CHANNELWISE_FUNCTIONS:
            relu = isinstance(module, nn.ReLU)
            operation = torch.relu_ if relu else lambda h: self._call(node, {source: h})
            link.operations.append(operation)
            link.value = None if link.value is None else operation(link.value.clone())
            return True
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return len(links) > 1 and not link.operations and not link.layer and _fold(module, links[-2])
        if isinstance(module, nn.Linear) and len(self.shapes[source]) == 2:
            link.weight = module.weight.unflatten(1, (link.shape[0], -1))
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
            link.weight = module.weight
            link.convolution = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
        else:
            return False
        shape = self.shapes[node][1:]
        bias = module.weight.new_zeros(shape[0]) if module.bias is None else module.bias
        link.constant = bias.reshape((1, -1) + (1,) * (len(shape) - 1)).expand(1, *shape)
        links.append(self._link(node, clamp))
        return True

    def start(self, x, layer, layers) -> Tail:
        cut = self.by_name[layer]
        position = self.nodes.index(cut)
        above = {cut}
        for node in self.nodes[position + 1 :]:
            if any(argument in above for argument in node.all_input_nodes):
                above.add(node)
        rest = [node for node in self.nodes if node in above and node is not cut]
        needed = {argument for node in rest for argument in node.all_input_nodes} - above | {cut}
        # Everything that does not depend on the layer is computed here, once; ancestors of `needed` suffice.
        wanted = set(needed)
        for node in reversed(self.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        env = {self.nodes[0]: x}
        self._execute([node for node in self.nodes if node in wanted], env, needed)
        frontier = {node: env[node] for node in needed}

        def tail(h, edit):
            env = {**frontier, cut: h}
            self._execute(rest, env, {self.result, *needed} - {cut}, layers, edit)
            return env[self.result]

        return Tail(frontier.pop(cut), tail)


class _Hooks:
    """A model run as it is, with forward hooks on its modules; "run the rest" repeats everything."""

    def __init__(self, model: nn.Module):
        self.model = model

    def _forward(self, x, edit):
        """Run the model; `edit(name, module, output)` returns what each call of each module puts out."""
        calls: dict[str, int] = {}

        def hook(name, module, _, output):
            calls[name] = calls.get(name, -1) + 1
            return edit(f"{name}_{calls[name]}" if calls[name] else name, module, output)

        handles = [
            module.register_forward_hook(lambda *args, name=name: hook(name, *args))
            for name, module in self.model.named_modules()
            if name
        ]
        try:
            return self.model(x)
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self, sample):
        found, last = {}, {}

        def record(name, module, output):
            if isinstance(output, torch.Tensor) and output.ndim >= 2:
                found[name] = output.shape, isinstance(module, NONLINEARITIES)
                last[name] = output
            return output

        logits = self._forward(sample, record)
        return {name: entry for name, entry in found.items() if last[name] is not logits}, logits

    def run(self, x, layers, edit=None):
        # An in-place module changes its input, and an edit must not reach back into it: hence the clone.
        return self._forward(x, lambda name, _, h: edit(name, h.clone()) if edit and name in layers else h)

    def chain(self, layer, clamp) -> None:
        return None

    def start(self, x, layer, layers) -> Tail:
        kept = {}
        self._forward(x, lambda name, _, h: kept.setdefault(name, h.clone()) if name == layer else h)

        def tail(h, edit):
            above = False

            def replace(name, h_above):
                nonlocal above
                if name == layer:
                    above = True
                    return h
                return edit(name, h_above) if edit and above else h_above

            return self.run(x, {*layers, layer}, replace)

        return Tail(kept[layer], tail)


# Checked input and scores, shared by the analyses ---------------------------------------------------------------------


def check_images(x: torch.Tensor, argument: str = "x") -> torch.Tensor:
    """Images (N, ...) of a floating type, finite, at least one; else a ValueError that names the argument."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{argument}: expected a floating-point tensor of images (N, ...), got {kind}")
    if len(x) == 0:
        raise ValueError(f"{argument}: expected at least one image, got none")
    if not torch.isfinite(x).all():
        raise ValueError(f"{argument}: expected finite numbers, found NaN or infinity")
    return x


def check_labels(y: torch.Tensor, n: int, classes: int | None = None) -> torch.Tensor:
    """n integer labels in [0, classes), at least two different ones; as int64."""
    if not isinstance(y, torch.Tensor) or y.ndim != 1 or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"y: expected a tensor of integer labels (N,), got {kind}")
    if len(y) != n:
        raise ValueError(f"y: expected {n} labels, one an image, got {len(y)}")
    if n and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        raise ValueError(f"y: expected labels from 0 to {(classes or math.inf) - 1}, got {y.min()} to {y.max()}")
    if len(y.unique()) < 2:
        raise ValueError("y: expected images of at least two classes, got one")
    return y.long()


def prepare(model, x, y, layers=None) -> tuple[Cut, torch.Tensor, torch.Tensor]:
    """Check images and labels, cut the model, and move both to its device."""
    check_images(x)
    check_labels(y, len(x))
    try:
        cut = Cut(model, x, layers)
    except RuntimeError as error:  # torch's own words for shapes and types that do not fit
        first = str(error).partition("\n")[0]
        raise ValueError(f"x: the model cannot run images {x.dtype} {tuple(x.shape)}: {first}") from error
    y = check_labels(y, len(x), cut.classes)
    return cut, x.to(cut.device), y.to(cut.device)


def image_scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of every image the cross-entropy in nats, whether it is correct, and (from 100 classes on) whether the label is among
    the first five: (2 or 3, ..., N) for logits (..., N, classes) and labels (N,) or (..., N)."""
    largest, first = logits.max(-1)
    loss = (logits - largest[..., None]).exp_().sum(-1).log_()
    loss += largest - logits.gather(-1, y.expand(logits.shape[:-1])[..., None]).squeeze(-1)
    found = [loss, (first == y).to(loss.dtype)]
    if logits.shape[-1] >= 100:
        found.append((logits.topk(5, dim=-1).indices == y[..., None]).any(-1).to(loss.dtype))
    return torch.stack(found)


def scores(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`image_scores` summed over images: (..., 2 or 3) float64 for logits (..., N, classes) and labels (N,)."""
    return image_scores(logits, y).sum(-1, dtype=torch.float64).movedim(0, -1)


def score_columns(sums: torch.Tensor, n: int) -> dict[str, list[float]]:
    """Columns loss, accuracy (and accuracy_top5) of a table from `scores` summed over n images, (rows, 2 or 3)."""
    names = ("loss", "accuracy", "accuracy_top5")
    return dict(zip(names, (sums / n).T.cpu().tolist(), strict=False))
