"""Ablation of single units and of growing sets of units (section 2.2, Figs. 1, 3 to 7 and A1 of Morcos et al. 2018).

To ablate a unit is to clamp its activation, after the nonlinearity, to a constant: 0, or the unit's mean (appendix A.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from repro.units import Cut, check_images, evaluating, prepare, score_columns, scores

VALUES = ("zero", "mean", "mean_per_position")


def single_unit(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    layers: Sequence[str] | None = None,
    value: str | Mapping[str, torch.Tensor] = "zero",
    x_fit: torch.Tensor | None = None,
) -> pd.DataFrame:
    """Loss and accuracy with each unit ablated alone.

    Parameters
    ----------
    model : nn.Module
        Maps images to logits (N, classes).
    x, y : Tensors (N, ...) and (N,)
        Images and integer labels.
    layers : sequence of str, optional
        Unit layers; all by default.
    value : {"zero", "mean", "mean_per_position"} or {layer: tensor}
        What an ablated unit is clamped to; a tensor has shape (C,) or (C, H, W).
    x_fit : Tensor, optional
        Images the means are taken over; `x` by default.

    Returns
    -------
    DataFrame
        A row a unit: layer, unit, loss (nats), accuracy in [0, 1] (and accuracy_top5 from 100 classes on), delta_loss and
        delta_accuracy (ablated − intact).
    """
    cut, x, y = prepare(model, x, y, layers)
    with evaluating(model):
        clamp = clamp_values(cut, value, x if x_fit is None else check_images(x_fit, "x_fit"))
        intact = sum(scores(cut.run(x[block]), y[block]) for block in cut.blocks(len(x)))
        tables = []
        with tqdm(total=sum(cut.layers.values()) * len(x), unit="image", unit_scale=True, desc="units", delay=2) as bar:
            for layer, units in cut.layers.items():
                sums = torch.zeros(units, len(intact), dtype=torch.float64)
                for block in cut.blocks(len(x)):
                    tail = cut.start(x[block], layer)
                    h = tail.h.clone()
                    for unit in range(units):
                        h[:, unit] = clamp[layer][:, unit]
                        sums[unit] += scores(tail(h), y[block]).cpu()
                        h[:, unit] = tail.h[:, unit]
                        bar.update(len(h))
                tables.append(pd.DataFrame({"layer": layer, "unit": range(units), **score_columns(sums, len(x))}))
    table = pd.concat(tables, ignore_index=True)
    whole = score_columns(intact[None].cpu(), len(x))
    for column in ("loss", "accuracy"):
        table[f"delta_{column}"] = table[column] - whole[column][0]
    return table


def cumulative(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    layers: Sequence[str] | None = None,
    orders: int | Sequence[Sequence[tuple[str, int]]] = 10,
    steps: int = 20,
    value: str | Mapping[str, torch.Tensor] = "zero",
    seed: int = 0,
    x_fit: torch.Tensor | None = None,
) -> pd.DataFrame:
    """Loss and accuracy while more and more units are ablated, in several orders.

    Parameters
    ----------
    model, x, y, layers, value, x_fit
        As in `single_unit`.
    orders : int or sequences of (layer, unit)
        How many random orders of all units, or the orders themselves, of all units or of some.
    steps : int
        Points beside the intact one: round(linspace(0, n, steps + 1)) without repeats, n the length of an order.
    seed : int
        Of the random orders.

    Returns
    -------
    DataFrame
        A row a point: order, n_ablated, fraction_ablated (of all units in `layers`), loss (nats), accuracy.
    """
    cut, x, y = prepare(model, x, y, layers)
    sequences = list(_orders(cut, orders, seed))
    at = [points(len(sequence), steps) for sequence in sequences]
    with evaluating(model):
        clamp = clamp_values(cut, value, x if x_fit is None else check_images(x_fit, "x_fit"))
        tables = []
        work = sum(map(len, at)) * len(x)
        with tqdm(total=work, unit="image", unit_scale=True, desc="cumulative", delay=2) as bar:
            for order, (sequence, counts) in enumerate(zip(sequences, at, strict=True)):
                rows = []
                for n in counts:
                    masks = {name: torch.zeros(units, dtype=torch.bool) for name, units in cut.layers.items()}
                    for name, unit in sequence[:n]:
                        masks[name][unit] = True
                    edit = _clamping(masks, clamp)
                    rows.append(sum(scores(cut.run(x[b], edit), y[b]) for b in cut.blocks(len(x))))
                    bar.update(len(x))
                table = {"order": order, "n_ablated": counts, "fraction_ablated": counts / sum(cut.layers.values())}
                tables.append(pd.DataFrame(table | score_columns(torch.stack(rows), len(x))))
    return pd.concat(tables, ignore_index=True)


def auc(curves: pd.DataFrame, by: str | Sequence[str] = "order", normalize: bool = False) -> pd.Series:
    """Area under cumulative ablation curves: accuracy over the fraction of units ablated, trapezoid rule.

    Parameters
    ----------
    curves : DataFrame
        With columns fraction_ablated, accuracy and those named in `by`.
    by : str or sequence of str
        What tells the curves apart.
    normalize : bool
        Divide each area by the curve's accuracy before any ablation.

    Returns
    -------
    Series
        One area a curve, up to the curve's last point, indexed by `by`.
    """
    by = [by] if isinstance(by, str) else list(by)
    missing = {*by, "fraction_ablated", "accuracy"} - set(curves.columns)
    if missing or curves.empty:
        raise ValueError(f"curves: expected a table with columns {', '.join(sorted(missing)) or 'and rows'}")

    def area(curve: pd.DataFrame) -> float:
        curve = curve.sort_values("fraction_ablated")
        accuracy = curve["accuracy"].to_numpy()
        whole = np.trapezoid(accuracy, curve["fraction_ablated"].to_numpy())
        if normalize:
            return whole / accuracy[0] if accuracy[0] > 0 else np.nan
        return whole

    grouped = curves.groupby(by if len(by) > 1 else by[0], sort=False, dropna=False)
    return grouped[["fraction_ablated", "accuracy"]].apply(area).rename("auc")


def points(n: int, steps: int) -> np.ndarray:
    """Numbers of ablated units at which a curve is measured, from 0 to n."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps: expected an integer >= 1, got {steps!r}")
    return np.unique(np.round(np.linspace(0, n, steps + 1)).astype(int))


def clamp_values(cut: Cut, value: str | Mapping[str, torch.Tensor], x_fit: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each unit is clamped to: {layer: (1, C), (1, C, 1, 1) or (1, C, H, W)} on the model's device."""
    if isinstance(value, Mapping):
        return {name: _given(value, name, shape).to(cut.device) for name, shape in cut.shapes.items()}
    if value == "zero":
        return {
            name: torch.zeros((1, shape[0]) + (1,) * (len(shape) - 1), device=cut.device)
            for name, shape in cut.shapes.items()
        }
    if value not in VALUES:
        raise ValueError(f"value: expected {', '.join(VALUES)} or {{layer: tensor}}, got {value!r}")
    sums = {name: torch.zeros(shape, dtype=torch.float64, device=cut.device) for name, shape in cut.shapes.items()}
    for _, activations in cut.activations(x_fit.to(cut.device)):
        for name, h in activations.items():
            sums[name] += h.sum(0, dtype=torch.float64)
    means = {name: (total / len(x_fit))[None] for name, total in sums.items()}
    if value == "mean":
        means = {name: m if m.ndim == 2 else m.mean((2, 3), keepdim=True) for name, m in means.items()}
    return {name: m.float() for name, m in means.items()}


def _given(value, name: str, shape: torch.Size) -> torch.Tensor:
    given = value.get(name)
    if not isinstance(given, torch.Tensor) or tuple(given.shape) not in (tuple(shape), tuple(shape[:1])):
        raise ValueError(f"value: expected a tensor of shape {tuple(shape[:1])} or {tuple(shape)} for layer {name!r}")
    if not torch.isfinite(given).all():
        raise ValueError(f"value: expected finite numbers for layer {name!r}")
    return given.reshape((1, *given.shape) + (1,) * (len(shape) - given.ndim)).float()


def _clamping(masks: Mapping[str, torch.Tensor], clamp: Mapping[str, torch.Tensor]):
    """An edit that clamps the masked units of every layer."""

    def edit(name: str, h: torch.Tensor) -> torch.Tensor:
        mask = masks[name].to(h.device).reshape((1, -1) + (1,) * (h.ndim - 2))
        return torch.where(mask, clamp[name], h)

    return edit


def _orders(cut: Cut, orders, seed: int):
    """Sequences of (layer, unit): random orders of all units of `cut`, or the given ones, checked."""
    everything = [(name, unit) for name, units in cut.layers.items() for unit in range(units)]
    if isinstance(orders, int | np.integer) and not isinstance(orders, bool):
        if orders < 1:
            raise ValueError(f"orders: expected an integer >= 1 or sequences of (layer, unit), got {orders}")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed: expected an integer >= 0, got {seed!r}")
        for order in range(orders):
            rng = np.random.default_rng((int(seed), order))
            yield [everything[i] for i in rng.permutation(len(everything))]
        return
    try:
        sequences = [[(name, int(unit)) for name, unit in sequence] for sequence in orders]
    except (TypeError, ValueError) as error:
        raise ValueError(f"orders: expected an integer >= 1 or sequences of (layer, unit), got {orders!r}") from error
    if not sequences:
        raise ValueError("orders: expected at least one sequence of (layer, unit), got none")
    for sequence in sequences:
        unknown = set(sequence) - set(everything)
        if unknown or not sequence or len(set(sequence)) < len(sequence):
            what = f"unknown unit {sorted(unknown)[0]}" if unknown else "an empty sequence or a unit named twice"
            raise ValueError(f"orders: expected different units of {', '.join(cut.layers)}, got {what}")
        yield sequence
