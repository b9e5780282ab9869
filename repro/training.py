"""Training: the loop that makes a recipe's network, alone (`Run`) or beside others of its shape (`Group`).

A network is trained on one CPU thread, so that there the same recipe gives the same network, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from repro import data
from repro.checks import BATCH_NORM
from repro.evaluation import full_precision
from repro.recipe import SCHEDULES, Recipe, build, check_recipes, training_set

COMPILED = 2000  # steps of training from which on a GPU compiles a network: an estimate, never timed
EPSILON = 1e-3  # added to the denominator of selectivity in the loss: units whose mean activation is far below it count as dead


def device() -> torch.device:
    """Where networks are trained and measured: REPRO_DEVICE (auto, cpu or cuda); auto takes a GPU if there is one."""
    name = os.environ.get("REPRO_DEVICE", "auto")
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"REPRO_DEVICE: expected auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("REPRO_DEVICE: asks for cuda, but torch finds no GPU here; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Run:
    """A network in training, advanced epoch by epoch; its state can be stored and resumed, on a CPU without a difference.

    Attributes
    ----------
    epoch : int
        Epochs done.
    done : bool
    accuracy : float
        Running training accuracy of the last epoch, in [0, 1].
    """

    def __init__(self, recipe: Recipe, on: torch.device | None = None):
        self.recipe, self.device = recipe, on or device()
        gpu = self.device.type == "cuda"
        images = recipe.model != "mlp"
        self.layout = torch.channels_last if images else torch.contiguous_format
        x, y = training_set(recipe)
        self.x, self.y = x.to(self.device, memory_format=self.layout), y.to(self.device)
        self.model = build(recipe).to(self.device, memory_format=self.layout)
        self.optimizer = _optimizer(recipe, self.model.parameters(), recipe.lr)
        self.batch_size = min(recipe.batch_size, len(self.x))
        if self.batch_size == 1 and any(isinstance(module, BATCH_NORM) for module in self.model.modules()):
            field = "batch_size" if recipe.batch_size == 1 else "n_train"
            raise ValueError(
                f"{field}: expected at least 2 for a model with batch norm, which a single image defeats, got 1"
            )
        self.steps = len(self.x) // self.batch_size  # an epoch
        compiled = gpu and images and not recipe.alpha and self.steps * recipe.epochs >= COMPILED
        self.forward = torch.compile(self.model) if compiled else self.model
        self.epoch, self.done, self.accuracy = 0, recipe.epochs == 0, 0.0

    def advance(self) -> None:
        """Train one more epoch."""
        recipe, cpu = self.recipe, self.device.type == "cpu"
        order = _order(recipe, self.epoch, len(self.x)).to(self.device)
        correct = torch.zeros((), device=self.device)
        self.model.train()
        devices = [] if cpu else [self.device]
        recording = activations(self.model) if recipe.alpha else contextlib.nullcontext()
        with (
            one_thread() if cpu else fastest(),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
            recording as hidden,
        ):
            # Not torch.manual_seed, which seeds every GPU, also those whose state is not put back.
            torch.default_generator.manual_seed(recipe.stream("dropout") + self.epoch)
            if not cpu:
                torch.cuda.manual_seed(recipe.stream("dropout") + self.epoch)
            for step in range(self.steps):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                for group in self.optimizer.param_groups:
                    group["lr"] = recipe.lr * _schedule(recipe, self.epoch * self.steps + step, self.steps)
                labels = self.y[batch]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    logits = self.forward(self.x[batch]).float()
                    loss = F.cross_entropy(logits, labels)
                if recipe.alpha:
                    loss = loss - recipe.alpha * mean_selectivity(hidden, labels)
                    hidden.clear()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                correct += (logits.detach().argmax(1) == labels).sum()
        self.epoch += 1
        self.accuracy = correct.item() / (self.steps * self.batch_size)
        memorized = recipe.stop_when_memorized and self.accuracy == 1
        self.done = self.epoch == recipe.epochs or memorized
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"training diverged in epoch {self.epoch} (loss {loss.item()}): {recipe}")

    def network(self) -> nn.Module:
        """The network as it is now: a copy on the CPU, in eval mode, its weights rounded to half precision."""
        return _finished(copy.deepcopy(self.model), self.recipe)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a later process needs to go on."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": value for name, value in entry.items() if value is not None}
        state["epoch"] = torch.tensor(self.epoch)
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def resume(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a stored state of the same recipe."""
        weights: dict[str, torch.Tensor] = {}
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = value
            elif kind == "optimizer":
                i, what = rest.split(".")
                entries.setdefault(int(i), {})[what] = value
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": entries})
        # Fused optimizers read a weight and its moments side by side in memory: all must have the weight's own layout.
        for parameter, entry in self.optimizer.state.items():
            entry |= {
                name: torch.empty_like(parameter).copy_(value)
                for name, value in entry.items()
                if value is not None and value.shape == parameter.shape
            }
        self.epoch = int(state["epoch"])
        self.done = self.epoch == self.recipe.epochs


class Group:
    """MLPs that train together, as one batched program: their weights are stacked, each member keeps its own seed, data
    order, label shuffle and learning rate, and gets what a `Run` of its own would give it, but for rounding.

    Parameters
    ----------
    recipes : sequence of Recipe
        One of the lists that `together` gives.

    Attributes
    ----------
    epoch, done
        As of a `Run`.
    """

    def __init__(self, recipes: Sequence[Recipe], on: torch.device | None = None):
        self.recipes, self.device = recipes, on or device()
        self.x = training_set(recipes[0])[0].to(self.device)
        self.y = torch.stack([training_set(recipe)[1] for recipe in recipes]).to(self.device)
        self.models = [build(recipe).to(self.device).train() for recipe in recipes]
        self.weights, _ = torch.func.stack_module_state(self.models)  # {name: (members, ...)}
        self.optimizer = _optimizer(recipes[0], self.weights.values(), 1.0)
        self.lrs = torch.tensor([recipe.lr for recipe in recipes], device=self.device)
        self.batch_size = min(recipes[0].batch_size, len(self.x))
        self.epoch, self.done = 0, recipes[0].epochs == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (members, batch, classes) of images (members, batch, ...), each member's own."""
        for name, module in self.models[0].named_children():
            if isinstance(module, nn.Flatten):
                x = x.flatten(2).mT  # (members, features, batch): gradients of the weights then lie as the weights do
            elif isinstance(module, nn.Linear):
                x = torch.baddbmm(self.weights[f"{name}.bias"][..., None], self.weights[f"{name}.weight"], x)
            else:
                x = module(x)
        return x.mT

    def advance(self) -> None:
        """Train all members one more epoch."""
        first, size = self.recipes[0], self.batch_size
        with ThreadPoolExecutor() as pool:  # a permutation of many images takes as long as many steps
            orders = list(pool.map(lambda recipe: _order(recipe, self.epoch, len(self.x)), self.recipes))
        orders = torch.stack(orders).to(self.device)
        steps = len(self.x) // size
        with full_precision(), torch.enable_grad():
            for step in range(steps):
                batch = orders[:, step * size : (step + 1) * size]  # (members, batch)
                labels = self.y.gather(1, batch)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=first.precision == "bfloat16"):
                    logits = self.forward(self.x[batch]).float()  # (members, batch, classes)
                    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / size
                self.optimizer.zero_grad()
                loss.backward()
                self._step(_schedule(first, self.epoch * steps + step, steps))
        self.epoch += 1
        self.done = self.epoch == first.epochs
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"training diverged in epoch {self.epoch} (loss {loss.item()}): {self.recipes}")

    def _step(self, factor: float) -> None:
        """A step of the optimizer, in which each member has its own learning rate, times a factor."""
        [options] = self.optimizer.param_groups
        if len({recipe.lr for recipe in self.recipes}) == 1:
            options["lr"] = self.recipes[0].lr * factor
            self.optimizer.step()
            return
        # The optimizer's learning rate stays 1: of that step each member takes its own share.
        before = [weight.detach().clone() for weight in self.weights.values()]
        self.optimizer.step()
        with torch.no_grad():
            for weight, old in zip(self.weights.values(), before, strict=True):
                torch.lerp(old, weight, (self.lrs * factor).reshape(-1, *[1] * (old.ndim - 1)), out=weight)

    def networks(self) -> list[nn.Module]:
        """The members as they are now, as `Run.network` gives them."""
        found = []
        for i, (model, recipe) in enumerate(zip(self.models, self.recipes, strict=True)):
            model = copy.deepcopy(model)
            model.load_state_dict({name: weight[i] for name, weight in self.weights.items()})
            found.append(_finished(model, recipe))
        return found


def together(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """Recipes sorted into lists that can train as a `Group`: MLPs that differ in seed, learning rate and corruption.

    One with dropout stays alone: its draws would not be those it makes by itself. So does one with another loss.
    """
    lists: dict[Recipe, list[Recipe]] = {}
    for recipe in recipes:
        alone = recipe.model != "mlp" or recipe.dropout > 0 or recipe.stop_when_memorized or recipe.alpha != 0
        shape = recipe if alone else replace(recipe, seed=0, lr=1.0, corruption=0.0)
        lists.setdefault(shape, []).append(recipe)
    return list(lists.values())


def _optimizer(recipe: Recipe, parameters, lr: float) -> torch.optim.Optimizer:
    options = {"lr": lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
    return torch.optim.Adam(parameters, betas=(recipe.momentum, 0.999), **options)


def _order(recipe: Recipe, epoch: int, n: int) -> torch.Tensor:
    """Order of the n images in an epoch: from the seed and its number alone, so a resumed run needs no random state."""
    return torch.from_numpy(np.random.default_rng((recipe.stream("order"), epoch)).permutation(n))


@contextlib.contextmanager
def activations(model: nn.Module):
    """Yields a list to which every ReLU appends what it gives, (n, C) or (n, C, H, W), as the model runs."""
    hidden: list[torch.Tensor] = []
    kinds = (module for module in model.modules() if isinstance(module, nn.ReLU))
    handles = [module.register_forward_hook(lambda *call: hidden.append(call[-1])) for module in kinds]
    try:
        yield hidden
    finally:
        for handle in handles:
            handle.remove()


def mean_selectivity(hidden: Sequence[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """Class selectivity of units as a batch shows it, mean over each layer's units and then over layers; differentiable.

    A small constant in the denominator makes it 0 for dead units (Leavitt & Morcos 2021), and keeps the gradients of nearly
    silent ones, which would overflow the weights, at bay. A batch of one class shows none: 0.
    """
    members = F.one_hot(y).float()
    members = members[:, members.any(0)]
    if members.shape[1] < 2:
        return members.new_zeros(())
    members = members / members.sum(0)  # (n, classes present): an average over each class
    layers = []
    for h in hidden:
        h = h.float() if h.ndim == 2 else h.float().mean((2, 3))
        means = members.T @ h  # (classes, C)
        largest = means.amax(0)
        others = (means.sum(0) - largest) / (len(means) - 1)
        layers.append(((largest - others) / (largest + others + EPSILON)).mean())
    return torch.stack(layers).mean()


def _schedule(recipe: Recipe, step: int, steps: int) -> float:
    """Factor on the learning rate in a step, counted from 0, of `steps` an epoch."""
    return SCHEDULES[recipe.schedule]((step + 0.5) / (recipe.epochs * steps))


def _finished(model: nn.Module, recipe: Recipe) -> nn.Module:
    """`model` itself, trained as the recipe says, on the CPU, in eval mode, its weights rounded to half precision.

    Checkpoints are stored in half precision, so that is what every measurement sees, stored or not.
    """
    model = model.to("cpu", memory_format=torch.contiguous_format).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(f"training diverged: a weight is beyond half precision: {recipe}")
    return model.requires_grad_(False)


@contextlib.contextmanager
def one_thread():
    """One CPU thread, and whole products: sums then run in one order, whatever the machine and torch's settings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with full_precision():
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def fastest(suppress_errors: bool = True):
    """A GPU convolves in the way that it finds fastest for each shape, in whole products where not in bfloat16; what cannot be
    compiled, for want of Triton or of a compiler, runs as it is, with a warning, or raises if errors are not suppressed."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        # One process trains networks of many shapes; torch stops compiling after the eighth.
        with full_precision(), torch._dynamo.config.patch(suppress_errors=suppress_errors, recompile_limit=64):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@torch.inference_mode(False)  # a caller's would keep gradients away
def train(recipe: Recipe) -> nn.Module:
    """Train the network of a recipe, on the device that REPRO_DEVICE names.

    Parameters
    ----------
    recipe : Recipe

    Returns
    -------
    nn.Module
        In eval mode, on the CPU, weights rounded to half precision as they would be stored.

    Raises
    ------
    ValueError
        For a recipe that its data set does not fit.
    FloatingPointError
        If training diverges.
    """
    check_recipes("recipe", [recipe])
    run = Run(recipe)
    with tqdm(total=recipe.epochs, unit="epoch", desc=recipe.model, delay=2) as bar:
        while not run.done:
            run.advance()
            bar.update()
            bar.set_postfix(accuracy=f"{run.accuracy:.3f}", refresh=False)
    return run.network()


@torch.inference_mode(False)
def estimate(recipe: Recipe) -> float:
    """Roughly how long training takes here, in seconds: a few steps on a slice of the data set, scaled."""
    check_recipes("recipe", [recipe])
    n_train = len(data.load(recipe.dataset).subset(recipe.n_train).y_train)
    if recipe.epochs == 0:
        return 0.0
    slice_ = min(n_train, recipe.batch_size * 3)
    run = Run(replace(recipe, n_train=slice_, epochs=2))
    run.advance()  # warm-up
    start = time.perf_counter()
    run.advance()
    per_image = (time.perf_counter() - start) / (run.steps * run.batch_size)
    return per_image * n_train * recipe.epochs
