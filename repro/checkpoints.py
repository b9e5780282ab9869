"""Networks by recipe: read from the store or, where it lacks them, trained and stored.

An epoch stands for the network as it was then; None for the end of training.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import nn
from tqdm.auto import tqdm

from repro import store
from repro.analyses import plain
from repro.recipe import FORMAT, Recipe, build, check_recipes
from repro.training import Group, Run, device, together

AT_ONCE = 64  # networks that train together on a GPU
SAVE_EVERY = 60  # seconds between stored states of a network in training


@torch.inference_mode(False)  # it may have to be trained, or is to be
def network(recipe: Recipe, epoch: int | None = None) -> nn.Module:
    """The network of a recipe, read from the store or trained now; `epoch`: as it was after so many epochs."""
    check_recipes("recipe", [recipe], [] if epoch is None else [epoch], "epoch")
    epoch = snapshot(recipe, epoch)
    with store.lock(recipe.key):
        return obtain(recipe, [epoch])[epoch]


def obtain(recipe: Recipe, epochs: Sequence[int | None], quiet: bool = False) -> dict[int | None, nn.Module]:
    """Networks after some epochs (None: the last), read or trained; the caller holds the recipe's lock."""
    models = {epoch: _read(recipe, epoch) for epoch in epochs}
    if None in models.values():
        _train(recipe, [epoch for epoch, model in models.items() if model is None and epoch is not None], quiet)
        models = {epoch: _read(recipe, epoch) for epoch in epochs}
    # Here and not where a network is trained: a process may be killed when it has written all, and its last state stays.
    if store.network_path(recipe.key).exists():  # else the state is that of a training which is to go on
        store.state_path(recipe.key).unlink(missing_ok=True)
    return models


def _train(recipe: Recipe, snapshots: Sequence[int], quiet: bool = False) -> None:
    """Train, store the snapshots and the final network; go on from the stored state of an interrupted run."""
    start = saved = time.monotonic()
    run = Run(recipe)
    # A network that is there stays as it is: only its snapshots are wanted.
    last = max(snapshots) if store.network_path(recipe.key).exists() else recipe.epochs
    work = store.state_path(recipe.key)
    state = store.read_tensors(work, _origin(recipe, None))
    if state is not None:
        passed = [epoch for epoch in snapshots if epoch <= int(state["epoch"])]
        if all(store.network_path(recipe.key, epoch).exists() for epoch in passed):
            run.resume(state)
    title = f"training {recipe.key}"
    with tqdm(total=last, initial=run.epoch, unit="epoch", desc=title, leave=False, delay=2, disable=quiet) as bar:
        while True:
            if run.epoch in snapshots:
                _write(recipe, run.epoch, run.network(), start)
            if run.done or run.epoch >= last:
                break
            run.advance()
            bar.update()
            bar.set_postfix(accuracy=f"{run.accuracy:.3f}", refresh=False)
            if not run.done and time.monotonic() - saved > SAVE_EVERY:
                store.write_tensors(work, run.state(), _origin(recipe, None), made(start))
                saved = time.monotonic()
    for epoch in snapshots:
        if epoch > run.epoch:  # all images were memorized before: more training would not have happened
            _write(recipe, epoch, run.network(), start)
    if run.done:
        _write(recipe, None, run.network(), start)


def train_together(wanted: Mapping[Recipe, Collection[int | None]]) -> None:
    """Train in groups those missing networks that can be, and store them as they are after the wanted epochs and the last; the
    others are trained one by one, later."""
    groups = together(missing(wanted))
    for members in (group[first : first + AT_ONCE] for group in groups for first in range(0, len(group), AT_ONCE)):
        with contextlib.ExitStack() as locks:
            free = [recipe for recipe in members if locks.enter_context(store.lock(recipe.key, wait=False))]
            free = missing({recipe: wanted[recipe] for recipe in free})  # what nobody made in the meantime
            if len(free) > 1:
                # If one diverges, all train alone: then it is seen which, and the others lose nothing by it. So they do if
                # the GPU is too small for all of them.
                with contextlib.suppress(FloatingPointError, torch.OutOfMemoryError):
                    _train_group(free, {None}.union(*(wanted[recipe] for recipe in free)))
    torch.cuda.empty_cache()  # what the groups took is left to the processes that measure


def _train_group(recipes: list[Recipe], epochs: set[int | None]) -> None:
    """Train networks as one group, and store them as they are after some epochs (None: the last)."""
    start, group = time.monotonic(), Group(recipes)
    for _ in tqdm(range(recipes[0].epochs + 1), unit="epoch", desc=f"training {len(recipes)} networks"):
        if (epoch := snapshot(recipes[0], group.epoch)) in epochs:
            for recipe, model in zip(recipes, group.networks(), strict=True):
                _write(recipe, epoch, model, start)
        if not group.done:
            group.advance()


def _origin(recipe: Recipe, epoch: int | None) -> dict:
    return plain({"recipe": asdict(recipe), "format": FORMAT} | ({} if epoch is None else {"epoch": epoch}))


def made(start: float) -> dict:
    """Where, and in how many seconds, something was made since `start`."""
    on = device()
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else platform.machine()
    return {"device": name, "seconds": round(time.monotonic() - start, 2)}


def _write(recipe: Recipe, epoch: int | None, model: nn.Module, start: float) -> None:
    path = store.network_path(recipe.key, epoch)
    if path.exists():  # tables were measured on it, and another machine rounds otherwise
        return
    parameters = {name for name, _ in model.named_parameters()}  # batch-norm statistics stay in full precision
    tensors = {name: t.half() if name in parameters else t for name, t in model.state_dict().items()}
    store.write_tensors(path, tensors, _origin(recipe, epoch), made(start))


def _read(recipe: Recipe, epoch: int | None) -> nn.Module | None:
    path = store.network_path(recipe.key, epoch)
    tensors = store.read_tensors(path, _origin(recipe, epoch))
    if tensors is None:
        return None
    model = build(recipe)
    try:
        model.load_state_dict({name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})
    except RuntimeError as error:  # a whole file, but of another network
        raise store.damaged(path, error) from error
    return model.eval().requires_grad_(False)


def missing(wanted: Mapping[Recipe, Collection[int | None]]) -> list[Recipe]:
    """Recipes of which the store lacks a network after one of these epochs."""
    return [
        recipe
        for recipe, epochs in wanted.items()
        if not all(store.network_path(recipe.key, epoch).exists() for epoch in epochs)
    ]


def snapshot(recipe: Recipe, epoch: int | None) -> int | None:
    """The epoch as files are named by it: None at the end of training, so that the last snapshot is the network itself."""
    return None if epoch == recipe.epochs else epoch
