"""A small piece of work that goes through training, measuring and drawing, and what can happen to it.

Its processes are forked from one that has imported this module and has only one thread: they start in milliseconds.
"""

import builtins
import errno
import itertools
import json
import os
import random
import resource
import signal
import sys
import time

import pyarrow.pandas_compat  # noqa: F401  what follows is imported by use otherwise, by each process anew
import torch
import torch._dynamo
import torchvision.models.feature_extraction  # noqa: F401

from repro import checkpoints, data, experiment, plots, store
from repro.training import Recipe

torch.set_num_threads(1)
data.load("digits")

NETWORK = dict(dataset="digits", n_train=128, batch_size=32, width=8)
RECIPES = [
    Recipe(**NETWORK, epochs=4),
    Recipe(**NETWORK, epochs=3, corruption=1.0, dropout=0.2, seed=1),
    Recipe(**NETWORK, epochs=2, optimizer="adam", lr=0.01, seed=2),
]
SNAPSHOTS = [0, 1]


def train():
    for recipe in RECIPES:
        with store.lock(recipe.key):
            checkpoints.obtain(recipe, [*SNAPSHOTS, None], quiet=True)


def measure():
    experiment.measure("history", RECIPES, epochs=SNAPSHOTS)
    experiment.measure("cumulative", RECIPES, orders=2, steps=3)
    experiment.measure("selectivity", RECIPES, split="test")


def draw():
    figure = plots.Figure("fig1", "digits", panels="a")
    with figure.panel("a", "MLP") as ax:
        plots.curves(ax, experiment.measure("cumulative", RECIPES, orders=2, steps=3), hue="corruption")
    figure.save()


STEPS = {"train": train, "measure": measure, "draw": draw}


def work(folder, before=(), doomed=None, moment=0, counting=False):
    """All steps; if one is `doomed`, the process is killed at that call of a function in it, or at its end."""
    os.environ |= {"REPRO_STORE": str(folder / "data"), "REPRO_FIGURES": str(folder / "figures"), "REPRO_DEVICE": "cpu"}
    for stream in (1, 2):
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    checkpoints.SAVE_EVERY = -1  # a state after every epoch
    for happen, *arguments in before:
        happen(*arguments)
    counts = {}
    calls = itertools.count()

    def count(*_):
        if next(calls) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    for name, step in STEPS.items():
        if name == doomed:
            sys.setprofile(count)
        elif counting:
            calls, moment = itertools.count(), -1
            sys.setprofile(count)
        step()
        sys.setprofile(None)
        if name == doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        counts[name] = next(calls)
    if counting:
        (folder / "counts").write_text(json.dumps(counts))


# What happens -------------------------------------------------------------------------------------------------


def fill_up(budget):
    """From now on only so many bytes can be written to the store; a write that does not fit is done in part."""
    left = budget

    def limited(path, mode="r", *arguments, **options):
        file = builtins.open(path, mode, *arguments, **options)  # noqa: SIM115
        if mode == "wb":
            write = file.write

            class Disk:
                fileno, flush = file.fileno, file.flush
                __enter__ = lambda self: self  # noqa: E731
                __exit__ = lambda self, *error: file.__exit__(*error)  # noqa: E731

                def write(self, content):
                    nonlocal left
                    write(content[:left])
                    left -= len(content)
                    if left < 0:
                        left = 0
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            return Disk()
        return file

    store.open = limited


def limit_files(size):
    """No file can grow beyond `size` bytes; the system says so."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def turn_the_clock(seed):
    """Every look at any clock finds it moved by up to a year, in either direction."""
    rng = random.Random(seed)
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, lambda: rng.uniform(-1, 1) * 3e7)
    checkpoints.SAVE_EVERY = 60
