"""A model as a program that can be run in part: traced by torch.fx or, where that fails, through forward hooks.

Both kinds name a model's layers, run all that does not depend on some of them (`start`) and, from there, the rest with
edited activations as often as one likes (`Tail`). A traced one also tells whether what lies above a layer is a plain
chain of operations (`chain`). Layers carry torchvision's feature-extraction names ("relu1", "layer1.0.relu_1"), but for one
kind (`_names`).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from repro.checks import BATCH_NORM
from repro.evaluation import restored

NONLINEARITIES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
)
FUNCTIONS = {kind.__name__.lower() for kind in NONLINEARITIES} | {"leaky_relu", "relu_", "leaky_relu_", "elu_"}
# What acts on each channel by itself; a PReLU may have one slope per channel.
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CHANNELWISE = tuple({*NONLINEARITIES, *POOLING} - {nn.PReLU})
CHANNELWISE_FUNCTIONS = FUNCTIONS - {"prelu"} | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
REDUCTIONS = ("mean", "sum", "amax", "amin")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # what these do in eval mode
MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOOKED = "the model is measured through hooks"  # how a warning begins
CLAMPS = ("clamp", "clip", "clamp_min", torch.clamp, torch.clip, torch.clamp_min)
INPLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv")

Edit = Callable[[str, torch.Tensor], torch.Tensor]  # (layer, activation) -> another activation of that shape


@contextlib.contextmanager
def already_warned() -> Iterator[None]:
    """Silence, within, the warning that a model cannot be traced: it was given when the model was first cut."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", HOOKED)
        yield


class Layer(NamedTuple):
    """What is known of a layer: the shape of one image's activation, and whether units are found along its first dim."""

    shape: torch.Size
    nonlinear: bool
    channels_last: bool  # as a linear layer leaves them, behind what were positions to it


@dataclass
class Tail:
    """The rest of a network for one block of n images: tail(edit) gives logits (n, classes), tail(edit, times) those of
    `times` copies of the block, one behind the other, all of which the edit sees at once: (times · n, classes).

    Attributes
    ----------
    repeats : bool
        Whether `times` may be more than 1; never of a network that is run through hooks.
    largest : int
        Numbers of one image's largest activation on the way; 0 if unknown.
    h : dict of str to Tensor
        Intact activations of those of the layers that no other of them feeds; empty if run through hooks.
    """

    run: Callable[[Edit | None, int], torch.Tensor]
    repeats: bool = False
    largest: int = 0
    h: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, edit: Edit | None = None, times: int = 1) -> torch.Tensor:
        return self.run(edit, times)


@dataclass
class Step:
    """One operation of a chain; `run` maps the result of the one before it to its own, of this shape per image."""

    name: str
    shape: torch.Size
    kind: str  # what it does to channels, as `_kind` has it
    module: nn.Module | None
    run: Callable[[torch.Tensor], torch.Tensor]


def _kind(
    module: nn.Module | None, function: str, args: tuple, kwargs: dict, below: torch.Size, shape: torch.Size
) -> str:
    """What an operation does to activations of the shape `below`: act on each "channel" by itself, mix channels (a "linear"
    layer or a "convolution"), "scale" what was mixed (a batch norm), "flatten", "nothing"; "" if something else."""
    if module is not None and not _plain(module):
        return ""  # it may do more than its kind
    if isinstance(module, CHANNELWISE) or function in CHANNELWISE_FUNCTIONS:
        return "channel"
    if function in REDUCTIONS and _over_positions(kwargs.get("dim", next(iter(args), None)), len(below) + 1):
        return "channel"
    if isinstance(module, nn.Linear) and len(shape) == 1:
        return "linear"
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return "convolution"
    if isinstance(module, BATCH_NORM):
        return "scale"
    flatten = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    if flatten or (function == "flatten" and args == (1,)):  # as `Graph._lay_flat` has it
        return "flatten"
    training = kwargs.get("training", next(iter(args[1:2]), True))
    off = function in ("dropout", "dropout2d") and training is False
    return "nothing" if off or isinstance(module, NOTHING) else ""


def _over_positions(dims: int | Sequence[int] | None, ndim: int) -> bool:
    """Whether a reduction over these dims leaves images and channels as they are."""
    return all(isinstance(dim, int) and dim % ndim > 1 for dim in (dims if isinstance(dims, Sequence) else [dims]))


def _plain(module: nn.Module) -> bool:
    """A module of torch.nn that does what its class does, no more."""
    hooked = module._forward_hooks or module._forward_pre_hooks or torch.nn.modules.module._has_any_global_hook()
    return not hooked and _torchs(module) and "forward" not in vars(module)


def _torchs(module: nn.Module) -> bool:
    """A module of a class of torch.nn; where its weights are parametrized, torch makes a class of its own upon it."""
    kind = type(module)
    kind = kind.__base__ if nn.utils.parametrize.is_parametrized(module) else kind
    return kind.__module__.startswith("torch.nn.")


def _channels_last(shape: torch.Size, source: nn.Module | None) -> bool:
    """Whether activations (H, W, C) come from a module that takes their last dim for the channels."""
    if len(shape) != 3 or not isinstance(source, nn.Linear | nn.LayerNorm):
        return False
    return (shape[-1],) == (source.normalized_shape if isinstance(source, nn.LayerNorm) else (source.out_features,))


def program(model: nn.Module, x: torch.Tensor) -> Graph | Hooks:
    """How to run a model, found out with a few images: as a graph if that gives the model's logits, else through hooks."""
    truth = _logits(model, x)
    again = _logits(model, _one_more(x))[: len(x)]
    tolerance = math.sqrt(torch.finfo(truth.dtype).eps) * truth.abs().nan_to_num(0, 0).max().item()
    if again.shape != truth.shape or not torch.allclose(again, truth, rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(
            "model: expected logits that depend on each image alone, got others beside another image or when run again "
            "(dropout that is on in eval mode, as F.dropout without training=self.training? statistics of a batch?)"
        )
    try:
        graph = Graph(model, x)
        if torch.allclose(graph.logits, truth, atol=1e-5, equal_nan=True):
            return graph
        reason = "its traced graph gives other logits"
    except Exception as error:  # torch.fx raises many kinds for code it cannot trace
        reason = str(error).partition("\n")[0] or type(error).__name__
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(__package__):
        frame, level = frame.f_back, level + 1
    warning = (
        f"{HOOKED}, which is slower and finds the nonlinearities alone that are modules: it cannot be traced ({reason})"
    )
    warnings.warn(warning, stacklevel=level)
    return Hooks(model, x)


def _logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        logits = model(x.clone())  # which it may change
    except Exception as error:  # torch's words, or the model's, for shapes and types that do not fit
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"x: the model cannot run images {x.dtype} (N, {', '.join(map(str, x.shape[1:]))}): {line}"
        ) from error
    found = isinstance(logits, torch.Tensor) and logits.is_floating_point()
    if not found or logits.ndim != 2 or len(logits) != len(x):
        raise ValueError("model: expected a classifier with logits (N, classes)")
    return logits


def _one_more(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x[:1]])


def _tracer():
    """A tracer that goes into the modules that are not torch's own, also where their weights are parametrized, and into what
    only hands images on."""
    import torchvision
    from torchvision.models.feature_extraction import NodePathTracer

    class Tracer(NodePathTracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            foreign = isinstance(m, nn.DataParallel) or (nn.utils.parametrize.is_parametrized(m) and not _torchs(m))
            return super().is_leaf_module(m, module_qualified_name) and not foreign

    return Tracer(autowrap_modules=(math, torchvision.ops))


@contextlib.contextmanager
def _lengths_recorded(model: nn.Module) -> Iterator[None]:
    """Let len(x) in the code of a model be x.size(0) while it is traced: Python demands of a length that it is a number."""

    def length(value):
        return value.size(0) if isinstance(value, torch.fx.Proxy) else len(value)

    spaces = [getattr(module.forward, "__globals__", {}) for module in model.modules() if not _torchs(module)]
    spaces = [space for space in {id(space): space for space in spaces}.values() if "len" not in space]
    for space in spaces:
        space["len"] = length
    try:
        yield
    finally:
        for space in spaces:
            space.pop("len", None)


class Graph:
    """A model as a torch.fx graph without in-place operations, run node by node.

    Attributes
    ----------
    layers : dict of str to Layer
        Every activation whose first dimension counts images, in forward order, except the logits.
    logits : Tensor (n, classes)
        Of the n images of `sample`.
    """

    def __init__(self, model: nn.Module, sample: torch.Tensor):
        tracer = _tracer()
        _, *others = inspect.signature(model.forward).parameters.values()
        defaults = {other.name: other.default for other in others if other.default is not other.empty}
        with restored(model), _lengths_recorded(model):
            self.model, graph = model, tracer.trace(model, defaults)  # which leaves constants on the model
            constants = [node for node in graph.nodes if node.op == "get_attr"]
            self.constants = {node: operator.attrgetter(node.target)(model) for node in constants}
        self.modules = dict(model.named_modules())
        self.overwritten = {}  # what the model would overwrite: {node made pure: its argument}
        earlier = set()
        for node in graph.nodes:
            earlier.add(node)
            if self._make_pure(node):  # what follows shall see the result, as if its argument had been overwritten
                self.overwritten[node] = node.args[0]
                node.args[0].replace_all_uses_with(node, lambda user: user not in earlier)
        *self.nodes, output = graph.nodes
        self.input, self.result = self.nodes[0], output.args[0]
        self._check_overwritten(sample)
        self._drop_unused(graph)
        self.names = _names(tracer, graph)
        self.logits = self._learn_shapes(sample)
        for node in self.shapes:
            self._lay_flat(node)
            self._rectify(node)
        self._drop_unused(graph)
        self.layers = self._find_layers()

    def _drop_unused(self, graph) -> None:
        """Leave out what nothing needs, and note the nodes that are left."""
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        *self.nodes, _ = graph.nodes
        self.fed = {self.input}  # what depends on the images
        self.depth = {}  # convolutions and linear layers on the longest way to a node
        for node in self.nodes:
            if not self.fed.isdisjoint(node.all_input_nodes):
                self.fed.add(node)
            below = max((self.depth[argument] for argument in node.all_input_nodes), default=0)
            self.depth[node] = below + isinstance(self._operation(node)[0], MIXING)

    def _make_pure(self, node) -> bool:
        """Let an in-place operation return a new tensor; False if it was none."""
        target, name = node.target, getattr(node.target, "__name__", "")
        if node.kwargs.get("out") is not None:
            raise ValueError("it writes into an argument named out")
        if node.op == "call_module" and getattr(self.model.get_submodule(target), "inplace", False):
            self.modules[target] = copy.copy(self.modules[target])
            self.modules[target].inplace = False
        elif node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
            node.target = target[:-1]
        elif node.op == "call_function" and name in INPLACE_OPERATORS:
            node.target = getattr(operator, name[1:])
        elif node.op == "call_function" and name.endswith("_") and not hasattr(operator, name):
            node.target = getattr(F, name[:-1], None) or getattr(torch, name[:-1])  # no such function: hooks
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_function" and name in FUNCTIONS and node.args[-1] is True:  # F.relu(x, True)
            node.args = node.args[:-1]
        else:
            return False
        return True

    def _check_overwritten(self, sample: torch.Tensor) -> None:
        """Refuse a model that overwrites memory which another of its values, used afterwards, shares as a view."""
        env, place = self._values(sample), {node: i for i, node in enumerate(self.nodes)}
        memory = {node: v.untyped_storage().data_ptr() for node, v in env.items() if isinstance(v, torch.Tensor)}
        for node, argument in self.overwritten.items():
            for other in self.nodes[: place[node]]:
                shared = other is not argument and memory.get(other) == memory[argument] != 0  # 0: of no size
                last_use = max((place.get(user, math.inf) for user in other.users), default=0)  # inf: the output
                if shared and last_use > place[node]:
                    raise ValueError(f"{argument} is overwritten, which shares its memory with {other}")

    def _values(self, sample: torch.Tensor) -> dict:
        """The value of every node, few images being run."""
        env = {self.input: sample}
        self._execute(self.nodes[1:], env, keep=self.nodes)
        return env

    def _call(self, node, env):
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "call_module":
            return self.modules[node.target](*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return args[0] if node.op == "placeholder" else self.constants[node]  # an argument's default

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

    def _learn_shapes(self, sample: torch.Tensor) -> torch.Tensor:
        """Which nodes count images along their first dimension, and the shape of one image's value; returns the logits."""
        env = self._values(sample)
        tensors = {n: v for n, v in env.items() if n in self.fed and isinstance(v, torch.Tensor)}
        more = self._values(_one_more(sample))  # with one more image: what grows with it counts images
        self.images = {
            n for n, v in tensors.items() if v.ndim and (len(v), len(more[n])) == (len(sample), len(sample) + 1)
        }
        self.shapes = {n: tensors[n].shape[1:] for n in self.images if tensors[n].ndim > 1}
        return env[self.result]

    def _find_layers(self) -> dict[str, Layer]:
        inner = [node for node in self.nodes[1:] if node in self.shapes and node is not self.result]
        self.by_name = {self.names[node]: node for node in inner}
        layers = {}
        for name, node in self.by_name.items():
            module, function = self._operation(node)
            nonlinear = isinstance(module, NONLINEARITIES) or function in FUNCTIONS
            own = isinstance(module, nn.Linear | nn.LayerNorm)
            source = module if own else next(self._mixing_below(node), None)
            layers[name] = Layer(self.shapes[node], nonlinear, _channels_last(self.shapes[node], source))
        return layers

    def _lay_flat(self, node) -> None:
        """Let a view or a reshape that lays an image's numbers in a row be `torch.flatten`: it asks for no number of images, as
        x.view(x.size(0), -1) does, so that a tail can stand more than once and what follows is a chain."""
        source = next(iter(node.args), None)
        if node.op == "call_module" or node.target not in ("view", "reshape", "flatten", torch.reshape, torch.flatten):
            return
        if len(self.shapes.get(source, ())) > 1 and len(self.shapes[node]) == 1:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (source, 1), {}

    def _rectify(self, node) -> None:
        """Let x.clamp(min=0) be the ReLU that it is."""
        x, lowest, highest = (*node.args, None, None, None)[:3]
        bounds = {"min": lowest, "max": highest} | node.kwargs
        if node.target in CLAMPS and bounds == {"min": 0, "max": None}:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu, (x,), {}

    def start(self, x: torch.Tensor, layers: Collection[str]) -> Tail:
        """Run all that does not depend on `layers`."""
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

        def run(edit, times):
            now = dict(env)
            if times > 1:
                now |= {n: v.repeat(times, *[1] * (v.ndim - 1)) for n, v in env.items() if n in self.fed}
            if edit is not None:
                now |= {root: edit(self.names[root], now[root]) for root in roots}
            self._execute(rest, now, {self.result}, layers, edit)
            return now[self.result]

        repeats = all(n in self.images and len(v) == len(x) for n, v in env.items() if n in self.fed)
        largest = max(self.shapes[n].numel() for n in {*env, *rest} & self.shapes.keys())
        return Tail(run, repeats, largest, {self.names[root]: env[root] for root in roots})

    def chain(self, layer: str) -> list[Step]:
        """The operations from `layer` to the logits if each takes what the one before it gives alone; else none."""
        node, steps = self.by_name[layer], []
        while node is not self.result:
            source, node = node, next(iter(node.users))
            if len(source.users) > 1 or node.all_input_nodes != [source]:
                return []
            steps.append(self._step(node, source))
        return steps

    def source(self, layer: str) -> nn.Module:
        """The convolution or linear layer that makes the channels of `layer`; of a sum the branch counts, not the shortcut."""
        node = self.by_name[layer]
        channels = self.shapes[node][0]
        for module in self._mixing_below(node):
            if len(module.weight) == channels:
                return module
        raise _sourceless(layer)

    def _mixing_below(self, node) -> Iterator[nn.Module]:
        """Convolutions and linear layers below a node, the nearest first; of several arguments the first counts, of those
        of a sum the deepest."""
        while node.all_input_nodes:
            added = self._operation(node)[1] == "add"
            node = max(node.all_input_nodes, key=self.depth.get) if added else node.all_input_nodes[0]
            module, _ = self._operation(node)
            if isinstance(module, MIXING):
                yield module

    def _step(self, node, source) -> Step:
        (module, function), shape = self._operation(node), self.shapes.get(node, torch.Size())
        run = lambda value: self._call(node, {source: value})  # noqa: E731
        below = self.shapes.get(source, torch.Size())
        kind = _kind(module, function, node.args[1:], node.kwargs, below, shape)
        if node is self.result and (isinstance(module, nn.LogSoftmax) or function == "log_softmax"):
            kind = "nothing"  # to the cross-entropy and to the largest logit
        return Step(self.names.get(node), shape, kind, module, run)

    def _operation(self, node) -> tuple[nn.Module | None, str]:
        """The module of a node, or else the name of its function or method."""
        if node.op == "call_module":
            return self.modules[node.target], ""
        return None, node.target if node.op == "call_method" else getattr(node.target, "__name__", "")


def _names(tracer, graph) -> dict:
    """torchvision's name of every node, but for modules that have a number in their own name: it counts them anew, and
    calls a model's relu_2 relu_1."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    numbered = {name for name in called if re.search(r"_\d+$", name)}
    names: dict = {}
    for node, own in tracer.node_to_qualname.items():
        own = node.target if node.op == "call_module" else own
        names[node] = _unused(own, numbered - {node.target}, names.values())
    return names


def _unused(name: str, *taken: Collection[str]) -> str:
    """The name itself, or with the first number behind it with which it is taken nowhere."""
    candidates = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
    return next(candidate for candidate in candidates if not any(candidate in names for names in taken))


class Hooks:
    """A model run as it is, with forward hooks on its modules; "the rest" is the whole of it, every time. Attributes and
    methods are those of `Graph`: `layers`, `logits`, `start`, `chain` and `source`."""

    def __init__(self, model: nn.Module, sample: torch.Tensor):
        self.model = model
        self.layers, self.logits = self._outputs(sample)

    def _forward(self, x, edit):
        """Run the model; `edit(name, module, output)` gives what stands for the output of each call of each module."""
        modules = {name: module for name, module in self.model.named_modules() if name}
        called: set[str] = set()

        def hook(name, module, _, output):
            call = _unused(name, called, modules.keys() - {name})
            called.add(call)
            return edit(call, module, output)

        handles = [module.register_forward_hook(partial(hook, name)) for name, module in modules.items()]
        try:
            return self.model(x.clone())  # models may change their input
        finally:
            for handle in handles:
                handle.remove()

    def _outputs(self, sample):
        found, last, mixing, nearest = {}, {}, {}, None
        self.sources: dict[str, nn.Module | None] = {}

        def record(name, module, output):
            nonlocal nearest
            if isinstance(module, MIXING):
                mixing[len(module.weight)] = module
            if isinstance(module, (*MIXING, nn.LayerNorm)):
                nearest = module
            if isinstance(output, torch.Tensor) and output.ndim >= 2 and len(output) == len(sample):
                shape = output.shape[1:]
                found[name] = Layer(shape, isinstance(module, NONLINEARITIES), _channels_last(shape, nearest))
                last[name] = output
                self.sources[name] = mixing.get(shape[0])
            return output

        logits = self._forward(sample, record)
        return {name: entry for name, entry in found.items() if last[name] is not logits}, logits

    def start(self, x, layers) -> Tail:
        def change(edit, name, module, h):
            # What an edit sees it may keep, and what it gives may be changed in place by what follows: hence the clone.
            if edit is None or name not in layers:
                return h
            seen = h.clone()
            found = edit(name, seen)
            if found is seen:
                return h
            # What follows may read what an in-place module overwrote, and not what it returns.
            return h.copy_(found) if getattr(module, "inplace", False) else found

        def run(edit, _):
            return self._forward(x, partial(change, edit))

        return Tail(run)

    def chain(self, layer) -> list[Step]:
        return []

    def source(self, layer) -> nn.Module:
        """The last convolution or linear layer before `layer` with as many channels."""
        if self.sources[layer] is None:
            raise _sourceless(layer)
        return self.sources[layer]


def _sourceless(layer: str) -> ValueError:
    return ValueError(f"layers: found no convolution or linear layer that makes the units of {layer!r}")
