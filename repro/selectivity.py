"""How selective a unit is for one class, and how much it tells of the class (sections 2.3 and 3.4, Figs. 6, 7, A2 to A4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from repro.units import check_labels, evaluating, prepare


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
    """
    means = np.asarray(class_means, dtype=np.float64)
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
    """
    a, y = np.asarray(activations), np.asarray(y)
    if a.ndim != 2 or len(a) == 0 or not np.isfinite(a).all():
        raise ValueError(f"activations: expected finite numbers (N, units), got shape {a.shape}")
    y = check_labels(torch.as_tensor(y), len(a)).numpy()
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 2:
        raise ValueError(f"bins: expected an integer >= 2, got {bins!r}")
    present, y = np.unique(y, return_inverse=True)
    result = np.empty(a.shape[1])
    for unit in range(a.shape[1]):
        joint = np.zeros((bins + 1, len(present)))
        np.add.at(joint, (_binned(a[:, unit], bins), y), 1)
        result[unit] = _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint)
    return np.clip(result, 0, np.log2(len(present)))


def _binned(a: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each activation: 0 for zero, 1 to `bins` for the others; equal activations share a bin."""
    index = np.zeros(len(a), dtype=int)
    active = a != 0
    if active.any():
        edges = np.quantile(a[active], np.arange(1, bins) / bins)
        index[active] = 1 + np.searchsorted(edges, a[active], side="right")
    return index


def _entropy(counts: np.ndarray) -> float:
    """Entropy in bits of counts, with the Miller–Madow correction (occupied bins − 1) / 2N nats."""
    counts = counts[counts > 0]
    n = counts.sum()
    p = counts / n
    return (-(p * np.log(p)).sum() + (len(counts) - 1) / (2 * n)) / np.log(2)


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
        A row a unit: layer, unit, selectivity (NaN if dead), mutual_information (bits), preferred_class (−1 if dead), dead.
    """
    cut, x, y = prepare(model, x, y, layers)
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in cut.layers}
    with evaluating(model):
        for _, activations in cut.activations(x):
            for name, h in activations.items():
                pooled[name].append((h if h.ndim == 2 else h.mean((2, 3))).cpu().numpy())
    labels = y.cpu().numpy()
    present, index = np.unique(labels, return_inverse=True)
    shares = np.eye(len(present))[index]
    shares /= shares.sum(0)  # (N, classes): an average over each class
    tables = []
    for name, parts in pooled.items():
        a = np.concatenate(parts)
        means = a.T.astype(np.float64) @ shares
        index = selectivity_index(means)
        dead = np.isnan(index)
        columns = {
            "layer": name,
            "unit": np.arange(len(index)),
            "selectivity": index,
            "mutual_information": mutual_information(a, labels),
            "preferred_class": np.where(dead, -1, present[means.argmax(1)]),
            "dead": dead,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
