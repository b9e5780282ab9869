"""How selective a unit is for one class, and how much it tells of the class (sections 2.3 and 3.4, Figs. 6, 7, A2 to A4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from repro.checks import check_integer, check_labels
from repro.evaluation import evaluating
from repro.units import prepare
from repro.values import activations, over_positions
from repro.work import progress

CHUNK = 2**22  # activations binned at once
MOST_BINS = 10_000


def selectivity_index(class_means: np.ndarray) -> np.ndarray:
    """Class selectivity (µmax − µ−max) / (µmax + µ−max).

    µmax is a unit's largest class-conditional mean activation, µ−max the mean over all its other classes.

    Parameters
    ----------
    class_means : array (units, classes)
        Mean activations, >= 0, of at least two classes.

    Returns
    -------
    array (units,)
        0: the same for all classes; 1: active for one class alone; NaN: dead, silent for every class.

    Raises
    ------
    ValueError
        For means that are negative or not finite, and fewer than two classes.
    """
    means = _numbers("class_means", class_means).astype(np.float64)
    if means.ndim != 2 or means.shape[1] < 2:
        raise ValueError(f"class_means: expected an array (units, classes >= 2), got shape {means.shape}")
    if not np.isfinite(means).all() or (means < 0).any():
        raise ValueError("class_means: expected finite mean activations >= 0 (the index is made for ReLU-like units)")
    largest = means.max(1)
    others = (means.sum(1) - largest) / (means.shape[1] - 1)
    with np.errstate(invalid="ignore"):
        index = (largest - others) / (largest + others)
    return np.clip(index, 0, 1)  # rounding; keeps NaN


def mutual_information(activations: np.ndarray, y: np.ndarray, bins: int = 10) -> np.ndarray:
    """Mutual information between each unit's activation and the class, in bits.

    Activations are discretised per unit: zero, where ReLU units often are, is a bin of its own, the others fall into `bins`
    bins of equal frequency. The plug-in estimate is corrected after Miller and Madow (1955) and clipped to what is possible.

    Parameters
    ----------
    activations : array (N, units)
    y : array (N,)
        Integer labels of at least two classes.
    bins : int
        Bins for the activations other than zero, >= 2.

    Returns
    -------
    array (units,)
        In [0, log2(classes)], classes being those present in `y`.

    Raises
    ------
    ValueError
        For activations that are not finite, labels that are no integers or of one class, and other than 2 to 10,000 bins.
    """
    a = _numbers("activations", activations)
    if a.ndim != 2 or len(a) == 0 or not np.isfinite(a).all():
        raise ValueError(f"activations: expected finite numbers (N, units), got shape {a.shape}")
    y = _numbers("y", y)
    kind = np.int64 if y.dtype.kind in "iu" else y.dtype.newbyteorder("=")
    # A copy: torch does not take every array, such as one that is reversed or read-only.
    y = check_labels(torch.from_numpy(y.astype(kind)), len(a)).numpy()
    if check_integer("bins", bins, 2) > MOST_BINS:
        raise ValueError(f"bins: expected at most {MOST_BINS}, got {bins}")
    a = a.T if a.dtype.kind == "f" else a.T.astype(np.float64)
    return _information(np.ascontiguousarray(a), y, bins)


def _numbers(argument: str, values) -> np.ndarray:
    """Real numbers as an array of a type that torch knows too."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # sequences of different lengths; tensors that hold no numbers
        found = np.empty(0, object)
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        raise ValueError(f"{argument}: expected an array of numbers, got {values!r:.100}")
    return found


def _information(a: np.ndarray, y: np.ndarray, bins: int = 10) -> np.ndarray:
    """Mutual information, in bits, of activations (units, N) and labels (N,), some units at a time."""
    units, n = a.shape
    present, y = np.unique(y, return_inverse=True)
    at_once = max(1, CHUNK // max(n, (bins + 1) * len(present)))
    y = y.astype(np.int32)
    found = np.empty(units)
    with progress(total=units, unit="unit", desc="mutual information") as bar:
        for first in range(0, units, at_once):
            index = _binned(a[first : first + at_once], bins)  # (units, N)
            some = len(index)
            cell = (index + (bins + 1) * np.arange(some, dtype=np.int32)[:, None]) * np.int32(len(present)) + y
            joint = np.bincount(cell.ravel(), minlength=some * (bins + 1) * len(present))
            joint = joint.reshape(some, bins + 1, len(present))
            bin_, class_, both = map(_entropy, (joint.sum(2), joint.sum(1), joint.reshape(some, -1)))
            found[first : first + some] = bin_ + class_ - both
            bar.update(some)
    return np.clip(found, 0, np.log2(len(present)))


def _binned(a: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each activation (units, N): 0 for zero, 1 to `bins` for the others; equal activations share a bin."""
    active = a != 0
    count = active.sum(1)[:, None]
    ordered = np.sort(np.where(active, a, np.array(np.inf, a.dtype)), axis=1)  # the active ones first
    last = np.maximum(count - 1, 0)
    place = last * np.arange(1, bins) / bins  # of the quantiles among them, (units, bins − 1)
    low = place.astype(int)
    below = np.take_along_axis(ordered, low, 1).astype(np.float64)
    above = np.take_along_axis(ordered, np.minimum(low + 1, last), 1)
    with np.errstate(invalid="ignore"):  # units that are never active
        exact = below + (above - below) * (place - low)
    edges = exact.astype(a.dtype)  # a >= edge, in the type of a: the next number up if that fell below
    edges = np.where(edges < exact, np.nextafter(edges, np.array(np.inf, a.dtype)), edges)
    index = np.ones(a.shape, np.int16)
    for edge in edges.T:
        index += a >= edge[:, None]
    return index * active


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropies in bits of rows of counts, with the Miller–Madow correction (occupied bins − 1) / 2N nats."""
    n = counts.sum(1)
    p = counts / n[:, None]
    plugin = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    return (plugin + ((counts > 0).sum(1) - 1) / (2 * n)) / np.log(2)


def table(model: nn.Module, x: torch.Tensor, y: torch.Tensor, layers: Sequence[str] | None = None) -> pd.DataFrame:
    """Selectivity and mutual information of every unit; feature maps are first averaged over space.

    Parameters
    ----------
    model : nn.Module
        Maps images to logits (N, classes).
    x, y : Tensors (N, ...) and (N,)
        Images (the paper takes the test set) and integer labels; the classes are those present in `y`.
    layers : sequence of str, optional
        Unit layers; all by default.

    Returns
    -------
    DataFrame
        A row per unit: layer, unit, selectivity (NaN if dead), mutual_information (bits), preferred_class (−1 if dead), dead.

    Raises
    ------
    ValueError
        As `ablation.single_unit`; where a unit's mean activation on a class is negative or not finite.
    """
    cut, x, y = prepare(model, x, y, layers)
    labels = y.cpu().numpy()
    present, place = np.unique(labels, return_inverse=True)
    members = np.eye(len(present))[place]  # (N, classes)
    shares = members / members.sum(0)  # an average over each class
    pooled = {name: np.empty((units, len(x)), np.float32) for name, units in cut.layers.items()}
    with evaluating(model):
        for block, found in activations(cut, x):
            for name, h in found.items():
                pooled[name][:, block] = over_positions(h.float()).flatten(1).T.cpu().numpy()
    tables = []
    for name, a in pooled.items():
        with np.errstate(invalid="ignore"):
            means = a.astype(np.float64) @ shares
        if not np.isfinite(means).all():
            raise ValueError(f"model: expected finite activations, found NaN or infinity in layer {name!r}")
        if (means < 0).any():
            raise ValueError(
                f"layers: the index needs mean activations >= 0, as of ReLU-like units; not so in {name!r}"
            )
        index = selectivity_index(means)
        dead = np.isnan(index)
        columns = {
            "layer": name,
            "unit": np.arange(len(index)),
            "selectivity": index,
            "mutual_information": _information(a, labels),
            "preferred_class": np.where(dead, -1, present[means.argmax(1)]),
            "dead": dead,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
