"""What can be measured of one network, by name; `measure_model` does it for any classifier, without a recipe."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from repro import ablation, beyond, data, noise, selectivity, units
from repro.checks import check_images, check_integer, check_integers, check_labels, is_integer
from repro.data import Dataset
from repro.evaluation import evaluating, score_columns, scores
from repro.graph import already_warned

HANDED = ("model", "x", "y", "x_test", "y_test", "x_fit")  # to an analysis, beside its options
LONG = 10  # seconds from which on a measurement is announced
SPLITS = {"train": "training", "test": "test"}


def history(model: nn.Module, x, y, x_test, y_test) -> pd.DataFrame:
    """Loss (nats) and accuracy on the training and on the test images, in one row."""
    row = {}
    for split, images, labels in (("train", x, y), ("test", x_test, y_test)):
        cut, images, labels = units.prepare(model, images, labels)
        with evaluating(model):
            total = sum(scores(cut.run(images[b]), labels[b]) for b in cut.blocks(len(images)))
        row |= {f"{split}_{name}": values for name, values in score_columns(total[None], len(images)).items()}
    return pd.DataFrame(row)


@dataclass(frozen=True)
class Analysis:
    """A measurement of one network: its function, and a version to raise when the same call begins to mean another."""

    function: Callable[..., pd.DataFrame]
    version: int = 1
    both_splits: bool = False  # takes training and test images, whatever `split` says

    @functools.cached_property
    def options(self) -> dict:
        """What can be asked of it, {name: default}; `inspect.Parameter.empty` for what must be given."""
        parameters = inspect.signature(self.function).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in HANDED}


ANALYSES = {
    "cumulative": Analysis(ablation.cumulative),
    "single_unit": Analysis(ablation.single_unit),
    "noise": Analysis(noise.sweep),
    "selectivity": Analysis(selectivity.table),
    "history": Analysis(history, both_splits=True),
    "weights": Analysis(beyond.weights, version=2),
    "class_drops": Analysis(beyond.class_drops),
    "ranked": Analysis(beyond.ranked, both_splits=True),
    "projections": Analysis(beyond.projections),
}


# A network of one's own -------------------------------------------------------------------------------------------------

OWN = {"single_unit": {}, "cumulative": {}, "noise": {"scales": [0, *np.logspace(-1.5, 1, 11)]}, "selectivity": {}}
CHOOSY = ("selectivity", "weights")  # refuse some networks, and take little time: what goes first
POINTS = ("orders", "steps", "repeats", "scales", "by")  # options that say how often the network is run
# As in the paper; the others judge a network without held-out data.
ON_TEST_IMAGES = ("single_unit", "selectivity", "class_drops")


def measure_model(
    model: nn.Module,
    data: str | Dataset,
    analyses: Iterable[str] | Mapping[str, dict] = tuple(OWN),
    layers: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
    images: int | None = None,
) -> dict[str, pd.DataFrame]:
    """Measure any classifier, without a recipe: what `measure` does for the paper's networks, and nothing is stored.

    How long it takes at most is said beforehand, where that is long; progress bars follow.

    Parameters
    ----------
    model : nn.Module
        Maps images (N, C, H, W) to logits; measured on the device where it is.
    data : str or Dataset
        As `repro.data.load` takes it, such as "folder:PATH" (here, or under REPRO_DATA), which standardises each channel by
        the training images' mean and SD; or a data set in memory, prepared as the network was trained.
    analyses : names, or dict of name to options
        Of `measure`; means and standard deviations are taken over the images that are measured.
        "single_unit", "selectivity" and "class_drops" take test images, "history" and "ranked" both, the others
        training images.
    layers : sequence of str, optional
        Unit layers; all by default.
    outputs : sequence of int, optional
        Which output of the model stands for each class of the data; needed where it has other outputs than these.
    images : int, optional
        Measure at most so many images of each split, a fixed random choice.

    Returns
    -------
    dict of str to DataFrame
        Analysis to its table, with the columns network, model (the class of the model), dataset, classes (their number), and
        <analysis>_on, as in `measure`.

    Raises
    ------
    ValueError
        Unknown analysis or option; a model without unit layers, or whose outputs do not fit the classes.
    """
    wanted = _with_options(analyses)
    tables = dict(each_table(model, data, wanted, layers, outputs, images))
    return {name: tables[name] for name in wanted}


def each_table(model, data, analyses, layers=None, outputs=None, images=None) -> Iterator[tuple[str, pd.DataFrame]]:
    """What `measure_model` returns, one name and table after the other as they are done."""
    wanted = _with_options(analyses)
    dataset, parts = _images_of(data, images)
    cut = units.Cut(model, parts["train"][0], layers)
    splits = {name: _splits(name) for name in wanted}
    parts = {
        split: _relabelled(part, dataset, cut.classes, outputs)
        for split, part in parts.items()
        if any(split in measured for measured in splits.values())
    }
    with evaluating(model):
        seconds = {
            name: _most_seconds(cut, name, parts[splits[name][0]][0], options) for name, options in wanted.items()
        }
    if sum(seconds.values()) > LONG:
        each = ", ".join(f"{name} {_duration(some)}" for name, some in seconds.items())
        tqdm.write(f"this takes at most {_duration(sum(seconds.values()))} ({each})", file=sys.stderr)
    kind = type(model).__name__
    origin = {"network": kind, "model": kind, "dataset": dataset.name, "classes": len(dataset.classes)}
    for name in sorted(wanted, key=lambda name: name not in CHOOSY):
        function, options = ANALYSES[name].function, wanted[name]
        if "layers" in ANALYSES[name].options:
            options = {"layers": layers} | options
        with already_warned():
            table = function(
                model, *(tensor.to(cut.device) for split in splits[name] for tensor in parts[split]), **options
            )
        on = {f"{name}_on": images_in_words(name, splits[name][0], images)}
        yield name, pd.concat([pd.DataFrame(origin | on, index=table.index), table], axis=1)


def _splits(name: str) -> tuple[str, ...]:
    """The images that an analysis of one's own network takes."""
    if ANALYSES[name].both_splits:
        return tuple(SPLITS)
    return ("test",) if name in ON_TEST_IMAGES else ("train",)


def _with_options(analyses: str | Iterable[str] | Mapping[str, dict]) -> dict[str, dict]:
    """{analysis: its options}, checked."""
    try:
        names = [analyses] if isinstance(analyses, str) else analyses
        given = dict(names) if isinstance(names, Mapping) else {name: {} for name in names}
    except TypeError:  # no iterable, or of lists
        given = {None: {}}
    if not all(isinstance(name, str) and isinstance(options, Mapping) for name, options in given.items()):
        raise ValueError(f"analyses: expected names, or a dict of name to a dict of options, got {analyses!r}")
    wanted = {name: OWN.get(name, {}) | dict(options) for name, options in given.items()}
    if not wanted:
        raise ValueError(f"analyses: expected some of {', '.join(ANALYSES)}, got none")
    for name, options in wanted.items():
        check_options(name, options, "analyses")
    return wanted


def _images_of(which: str | Dataset, images: int | None):
    """A data set, and its training and its test images with their labels, at most so many of each."""
    dataset = _loaded(which) if isinstance(which, str) else which
    if not isinstance(dataset, Dataset):
        kind = type(which).__name__
        raise ValueError(f"data: expected a repro.data.Dataset or a name such as 'folder:PATH', got {kind}")
    check_count("images", images)
    parts = (dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)
    if not isinstance(dataset.name, str):
        raise ValueError(f"data: expected its name as text, got {dataset.name!r}")
    if not isinstance(dataset.classes, Iterable):
        raise ValueError(f"data: expected the names of its classes, got {dataset.classes!r}")
    for x, y in parts:
        check_images(x, "data")
        check_integers(y, "data")
        if len(x) != len(y):
            raise ValueError(f"data: expected a label for each image, got {len(y)} for {len(x)}")
    kinds = [f"{x.dtype} {tuple(x.shape[1:])}" for x, _ in parts]
    if kinds[0] != kinds[1]:
        raise ValueError(f"data: expected test images like the training images, {kinds[0]}, got {kinds[1]}")
    found = {split: some_of(part, images) for split, part in zip(SPLITS, parts, strict=True)}
    return replace(dataset, classes=tuple(dataset.classes)), found


def _loaded(name: str) -> Dataset:
    """`data.load`, but that a relative folder may also lie in the current one."""
    kind, _, path = name.partition(":")
    here = Path(path)
    try:
        if kind == "folder" and path and here.exists():
            return data.load(f"folder:{here.resolve()}")
        return data.load(name)
    except (ValueError, OSError) as error:
        message = str(error).removeprefix("name: ")
        missing = "should hold" in message  # not: cannot be read
        aside = f"; nor is there {here.resolve()}" if kind == "folder" and missing and not here.exists() else ""
        raise ValueError(f"data: {message}{aside}") from error


def _relabelled(part, dataset: Dataset, logits: int, outputs: Sequence[int] | None):
    """Images with labels that count the model's outputs."""
    x, y = part
    classes = len(dataset.classes)
    if outputs is None and logits == classes:
        return x, check_labels(y, len(x), classes, "data")
    if outputs is None:
        some = ", ".join(map(str, dataset.classes[:5])) + ", …" * (classes > 5)
        raise ValueError(
            f"outputs: {dataset.name} has {classes} classes ({some}), the model {logits} outputs; pass a model with {classes}, "
            "or say which output of it stands for each class"
        )
    listed = list(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, Mapping | Set) else []
    integers = all(is_integer(i) and 0 <= i < logits for i in listed)
    if not integers or not len(listed) == classes == len(set(listed)):
        raise ValueError(f"outputs: expected {classes} different integers from 0 to {logits - 1}, got {outputs!r}")
    return x, torch.as_tensor(listed, device=y.device)[check_labels(y, len(x), classes, "data")]


def _most_seconds(cut: units.Cut, analysis: str, x: torch.Tensor, options: Mapping) -> float:
    """How long an analysis takes if it runs the network above the ablated layer anew for each of its points.

    That it often need not, and that many images at once cost less than a few, makes this an upper bound.
    """
    few = x[:8].to(cut.device)

    def run_from(layers) -> float:
        tail = cut.start(few, layers)
        start = time.perf_counter()
        tail(lambda _, h: h.clone()).cpu()  # which waits for a GPU
        return (time.perf_counter() - start) / len(few) * len(x)

    def each_unit() -> float:
        return sum(n * run_from([layer]) for layer, n in cut.layers.items())

    run_from(None)  # warm-up
    if analysis in ("single_unit", "class_drops"):
        return each_unit()
    defaults = ANALYSES[analysis].options
    counts = [options.get(name, defaults[name]) for name in POINTS if name in defaults]
    points = run_from(None) * math.prod(map(_how_many, counts))
    return 2 * points + each_unit() if analysis == "ranked" else points  # both ways, once it is known what matters


def _how_many(value) -> int:
    """A number, or how many values there are: orders may be sequences of different lengths, scales a single one."""
    if isinstance(value, int | np.integer):
        return int(value)
    return len(value) if isinstance(value, Sized) and getattr(value, "ndim", 1) else 1


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# What analyses are asked with ------------------------------------------------------------------------------------------


def check_count(argument: str, value) -> None:
    """Refuse what is neither None nor an integer >= 1."""
    if value is not None:
        check_integer(argument, value, 1)


def check_options(analysis, options, argument: str = "analysis") -> None:
    """Refuse an analysis that there is not, and options that it does not have or lacks."""
    if not isinstance(analysis, str) or analysis not in ANALYSES:
        raise ValueError(f"{argument}: unknown analysis {analysis!r}; expected one of {', '.join(ANALYSES)}")
    known = ANALYSES[analysis].options
    for name in options.keys() - known.keys():
        raise ValueError(f"{name}: {analysis} has no such option; expected some of {', '.join(known) or 'none'}")
    for name, default in known.items():
        value = options.get(name, default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name}: {analysis} needs this option")


def check_written(options: Mapping) -> None:
    """Refuse options that cannot be written down, by which a table is found."""
    for name, value in options.items():
        try:
            json.dumps(plain(value))
        except TypeError as error:
            kind = type(value).__name__
            raise ValueError(f"{name}: expected numbers, text or sequences of them, got {kind} ({error})") from error


def plain(value):
    """`value` as JSON would give it back."""
    if isinstance(value, dict):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    return value


def images_in_words(analysis: str, split: str, images: int | None) -> str:
    """Which images an analysis is made on: "up to 200 test images"."""
    which = " and ".join(SPLITS.values()) if ANALYSES[analysis].both_splits else SPLITS[split]
    return f"up to {images:,} {which} images" if images else f"{which} images"


def some_of(part, images: int | None):
    """At most so many of the images and labels (x, y), a fixed random choice."""
    x, y = part
    if images is None or images >= len(x):
        return x, y
    keep = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(x))[:images]))
    if len(y[keep].unique()) < 2 <= len(y.unique()):
        raise ValueError(f"images: expected enough for two classes, got {images}, all of one class")
    return x[keep], y[keep]
