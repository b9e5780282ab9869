"""From recipes to one table: `measure` pulls what it needs, and computes only what the store lacks.

A table that is there needs no network, a network that is there needs no training, and a data set is read only when
something has to be computed. So redrawing from the cache, from checkpoints and from scratch is the same code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from tqdm.auto import tqdm

from repro import checkpoints, data, store
from repro.analyses import ANALYSES, SPLITS, check_count, check_options, check_written, images_in_words, plain, some_of
from repro.analyses import measure_model as measure_model  # of a network without a recipe
from repro.checkpoints import network as network  # by recipe
from repro.checks import distinct
from repro.recipe import FORMAT, Recipe, check_recipes, digest, key, training_set
from repro.training import device

WORKERS_WITHIN = 600  # seconds that a cluster has for its first worker: batch systems let jobs wait


class Missing(LookupError):
    """Results that are not in the store and were not to be computed.

    Attributes
    ----------
    networks : list of Recipe
        Networks that would have to be trained.
    tables : list of str
        Analyses that would have to be run, one entry per network and snapshot.
    """

    def __init__(self, networks: list[Recipe], tables: list[str]):
        super().__init__(f"{len(tables)} tables and {len(networks)} networks are not in the store")
        self.networks, self.tables = networks, tables


# From recipes to a table ----------------------------------------------------------------------------------------------


@torch.inference_mode(False)  # networks may have to be trained
def measure(
    analysis: str,
    recipes: Iterable[Recipe],
    split: str = "train",
    epochs: Sequence[int] | None = None,
    images: int | None = None,
    compute: str = "missing",
    jobs: int | None = None,
    **options,
) -> pd.DataFrame:
    """One tidy table of an analysis of many networks.

    Parameters
    ----------
    analysis : {"cumulative", "single_unit", "noise", "selectivity", "history", "weights", "class_drops", "ranked", "projections"}
        history gives train_loss, train_accuracy, test_loss and test_accuracy; the last four are in `repro.beyond`.
    recipes : iterable of Recipe
        Networks; those that the store lacks are trained.
    split : {"train", "test"}
        Which images are measured, and means and spreads taken over; training images come with the (shuffled) labels the
        network was trained on.
    epochs : sequence of int, optional
        Measure the networks as they were after these epochs (0: untrained), not after the last one.
    images : int, optional
        Measure at most so many images, a fixed random choice.
    compute : {"missing", "nothing"}
        What to do where the store lacks a table: compute it, or raise `Missing`.
    jobs : int, optional
        Processes; REPRO_JOBS by default, else one. Where REPRO_SCHEDULER names a Dask scheduler, its workers.
    **options
        Of the analysis, as its function takes them.

    Returns
    -------
    DataFrame
        Columns: network (the recipe's key), the recipe's fields, epoch, <analysis>_device (the GPU's name or the CPU's
        architecture), <analysis>_on (which images were measured, such as "up to 200 test images"; both bear the analysis's
        name so that tables measured in different ways merge), and the analysis's own.

    Raises
    ------
    ValueError
        Unknown analysis, split or option, an epoch a recipe does not have, no recipe.
    Missing
        With compute="nothing".
    FloatingPointError
        If the training of a network diverges.
    repro.store.Damaged
        If a stored table or network is damaged, or made from something else.
    """
    wanted = _list(analysis, recipes, split, epochs, images, compute, jobs, **options)
    tables = {w: store.read_columns(w.path, w.origin) for w in wanted}
    missing = [w for w, table in tables.items() if table is None]
    if missing and compute == "nothing":
        raise Missing(checkpoints.missing(_epochs(missing)), [w.title for w in missing])
    if missing:
        _compute(missing, jobs or _processes())
        tables |= {w: store.read_columns(w.path, w.origin) for w in missing}
        if lost := [w.path for w in missing if tables[w] is None]:
            raise OSError(f"{lost[0]}: was made, but is not there; do all machines share this folder?")
    rows = [len(columns) for columns, _ in tables.values()]
    origins = pd.DataFrame([w.columns(made) for w, (_, made) in tables.items()])
    origins = origins.loc[np.repeat(np.arange(len(rows)), rows)].reset_index(drop=True)
    columns = pa.concat_tables((columns for columns, _ in tables.values()), promote_options="permissive").to_pandas()
    return pd.concat([origins, columns], axis=1)


def files(*arguments, **options) -> list[Path]:
    """The files that `measure` with these arguments reads or makes: tables and networks, also as they were at the end."""
    wanted = _list(*arguments, **options)
    networks = {store.network_path(w.recipe.key, epoch): None for w in wanted for epoch in (w.epoch, None)}
    return [*(w.path for w in wanted), *networks]


def _list(
    analysis, recipes, split="train", epochs=None, images=None, compute="missing", jobs=None, **options
) -> list[_Wanted]:
    """What a call of `measure` asks for, its arguments checked."""
    recipes = distinct("recipes", recipes)
    epochs = None if epochs is None else distinct("epochs", epochs)
    if epochs == []:
        raise ValueError("epochs: expected at least one epoch, or None for the end of training")
    _check(analysis, recipes, split, epochs, images, compute, jobs, options)
    return [
        _Wanted(analysis, recipe, split, checkpoints.snapshot(recipe, epoch), images, options)
        for recipe in recipes
        for epoch in epochs or [None]
    ]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """One table: an analysis with its options, of one network."""

    analysis: str
    recipe: Recipe
    split: str
    epoch: int | None  # None: the end of training
    images: int | None
    options: dict

    @functools.cached_property
    def origin(self) -> dict:
        kind = ANALYSES[self.analysis]
        origin = {
            "analysis": self.analysis,
            "version": kind.version,
            "options": {name: plain(v) for name, v in self.options.items() if plain(v) != plain(kind.options[name])},
            "recipe": vars(self.recipe),
            "format": FORMAT,
        }
        if not kind.both_splits:
            origin["split"] = self.split
        extra = {"epoch": self.epoch, "images": self.images}
        return plain(origin | {name: value for name, value in extra.items() if value is not None})

    @functools.cached_property
    def key(self) -> str:
        # The recipe counts by its key, which does not change when a field with a default is added.
        return digest(self.origin | {"recipe": self.recipe.key})

    @property
    def path(self):
        return store.table_path(self.key)

    @property
    def title(self) -> str:
        return f"{self.analysis} of {self.recipe.key}" + ("" if self.epoch is None else f" after epoch {self.epoch}")

    def columns(self, made: dict) -> dict:
        """Columns that are the same in every row; `made` is what the store says of how the table was made."""
        epoch = self.recipe.epochs if self.epoch is None else self.epoch
        on = images_in_words(self.analysis, self.split, self.images)
        how = {f"{self.analysis}_device": made.get("device"), f"{self.analysis}_on": on}
        return {"network": self.recipe.key} | vars(self.recipe) | {"epoch": epoch} | how

    def compute(self, model: nn.Module) -> None:
        """Measure the network and store the table."""
        start = time.monotonic()
        dataset = data.load(self.recipe.dataset)
        parts = {"train": training_set(self.recipe), "test": (dataset.x_test, dataset.y_test)}
        kind, on = ANALYSES[self.analysis], device()
        splits = parts if kind.both_splits else [self.split]
        arguments = [tensor.to(on) for split in splits for tensor in some_of(parts[split], self.images)]
        table = kind.function(model.to(on), *arguments, **self.options)
        model.to("cpu")
        store.write_table(self.path, table, self.origin, checkpoints.made(start))


def _epochs(wanted: Iterable[_Wanted]) -> dict[Recipe, set[int | None]]:
    """{recipe: epochs after which these tables need its network}."""
    epochs: dict[Recipe, set[int | None]] = {}
    for w in wanted:
        epochs.setdefault(w.recipe, set()).add(w.epoch)
    return epochs


def _check(analysis, recipes, split, epochs, images, compute, jobs, options) -> None:
    check_recipes("recipes", recipes, epochs or [], "epochs")
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if not isinstance(compute, str) or compute not in ("missing", "nothing"):
        raise ValueError(f"compute: expected 'missing' or 'nothing', got {compute!r}")
    check_count("images", images)
    check_count("jobs", jobs)
    check_options(analysis, options)
    check_written(options)


# Computing what is missing --------------------------------------------------------------------------------------------


def _processes() -> int:
    """REPRO_JOBS, by default 1."""
    number = os.environ.get("REPRO_JOBS", "1")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"REPRO_JOBS: expected a number from 1, got {number!r}")
    return int(number)


def _compute(missing: list[_Wanted], jobs: int) -> None:
    """Make the missing tables, network by network; one process leaves a network that another works on for later."""
    groups: dict[Recipe, list[_Wanted]] = {}
    for w in missing:
        groups.setdefault(w.recipe, []).append(w)
    title = f"{missing[0].analysis}, {missing[0].recipe.model} on {missing[0].recipe.dataset}"
    _tell("planned", len(missing))
    _warn_of_others(checkpoints.missing(_epochs(missing)))
    with tqdm(total=len(missing), unit="table", desc=title, delay=1) as bar:
        cluster = os.environ.get("REPRO_SCHEDULER")
        if not cluster and device().type == "cuda":  # on a CPU each network trains alone, on a core of its own
            checkpoints.train_together(_epochs(missing))
        if cluster or (jobs > 1 and len(groups) > 1):
            with _workers(jobs) as surroundings:
                parent, queue = None if cluster else os.getpid(), deque(groups.values())
                queue.rotate(os.getpid())  # other notebooks at work on the same networks begin elsewhere
                tasks = (joblib.delayed(_compute_network)(group, surroundings, parent) for group in queue)
                for done in joblib.Parallel(return_as="generator_unordered")(tasks):
                    bar.update(done)
                    _tell("done", done)
            return
        queue, passed = deque(groups.values()), 0
        while queue:
            group = queue.popleft()
            # Once round the queue without a free network: wait for one.
            with store.lock(group[0].recipe.key, wait=passed > len(queue)) as mine:
                if mine:
                    _compute_group(group)
                    bar.update(len(group))
                    _tell("done", len(group))
                    passed = 0
                else:
                    queue.append(group)
                    passed += 1


def _warn_of_others(recipes: Sequence[Recipe]) -> None:
    """Say where the store has tables of networks that it lacks: trained again, as on another processor, they may differ."""
    keys, others = {recipe.key for recipe in recipes if not store.network_path(recipe.key).exists()}, 0
    for path in store.paths() if keys else ():
        with contextlib.suppress(store.Damaged):  # which is said where it is asked for
            others += path.suffix == ".parquet" and key(store.read_entry(path).origin["recipe"]) in keys
    if others:
        warnings.warn(
            f"networks are trained anew of which the store has {others} tables, but not the weights: on another kind of "
            "processor they come out a little different, and tables of both are put side by side; repro figures --fresh "
            "makes all of them anew",
            stacklevel=5,
        )


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[dict[str, str | None]]:
    """Let joblib run on processes of this machine, or on the Dask cluster whose scheduler REPRO_SCHEDULER names.

    Yields environment variables for the workers, None for those that they shall not have: they share this process's folders,
    but not always its environment.
    A task whose worker is lost runs again elsewhere, and finds what was already stored.
    """
    folder, address = os.environ.get("REPRO_DATA"), os.environ.get("REPRO_SCHEDULER")
    shared = {
        "REPRO_STORE": str(store.root().resolve()),
        "REPRO_DATA": os.path.abspath(folder) if folder else None,
        "REPRO_DEVICE": os.environ.get("REPRO_DEVICE"),
    }
    if not address:
        threads = max(1, torch.get_num_threads() // jobs)  # all cores are at work, none of them twice
        with joblib.parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
            yield shared
        return
    # What is not set here may be set there.
    shared = {name: value for name, value in shared.items() if value is not None}
    from dask.distributed import Client

    with Client(address, set_as_default=True) as client:
        if not client.ncores():
            how = f"start some: dask worker {address}"
            warnings.warn(f"{address} has no workers yet, waiting for the first; {how}", stacklevel=6)
            try:  # a task, and not `wait_for_workers`: clusters that adapt start workers when there is work
                client.submit(os.getpid).result(timeout=WORKERS_WITHIN)
            except TimeoutError as error:
                raise TimeoutError(f"REPRO_SCHEDULER: no worker came to {address}; {how}") from error
        for there in (client.run_on_scheduler, client.run):  # joblib would wait for ever for those that lack it
            try:
                there(pkgutil.resolve_name, "repro.experiment:__name__")
            except ImportError as error:
                raise ValueError(
                    f"REPRO_SCHEDULER: the scheduler and every worker of {address} need repro installed ({error})"
                ) from error
        with joblib.parallel_config("dask", n_jobs=-1):
            yield shared


def _compute_network(group: list[_Wanted], surroundings: Mapping[str, str | None], parent: int | None) -> int:
    """Make the tables of one network beside other processes, leaving the terminal to the one that started them."""
    if parent not in (None, os.getpid()):  # joblib may find it better to start no process
        _end_with(parent)
        # tqdm's own lock is a semaphore, which a worker that is terminated would leave behind.
        tqdm.set_lock(threading.RLock())
    for name, value in surroundings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with store.lock(group[0].recipe.key):
        _compute_group(group, quiet=True)
    return len(group)


@functools.cache
def _end_with(parent: int) -> None:
    """Let this process end when the one that started it has, by Ctrl-C or killed: nobody waits for what it makes."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compute_group(group: list[_Wanted], quiet: bool = False) -> None:
    """Make the tables of one network, whose lock is held."""
    wanted = [w for w in group if not w.path.exists()]  # another process may have been faster
    if wanted:
        recipe = wanted[0].recipe
        models = checkpoints.obtain(recipe, [w.epoch for w in wanted], quiet)
        for w in wanted:
            w.compute(models[w.epoch])


def _tell(what: str, number: int) -> None:
    """Let the command that started this notebook know how much work was found or done, through a file it names."""
    if path := os.environ.get("REPRO_PROGRESS"):
        with open(path, "a") as file:
            file.write(f"{what} {number}\n")
