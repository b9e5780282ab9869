"""Ablation of single units and of growing sets of units (section 2.2, Figs. 1, 3 to 7 and A1 of Morcos et al. 2018).

To ablate a unit is to clamp its activation, after the nonlinearity, to a constant: 0, or the unit's mean (appendix A.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from repro.units import Cut, Link, check_images, evaluating, image_scores, in_threads, prepare, score_columns, scores

CACHE = 2**18  # numbers in a buffer that stays in a core's cache
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
    total = sum(cut.layers.values()) * len(x)
    tables = []
    with evaluating(model), tqdm(total=total, unit="image", unit_scale=True, desc="units", delay=2) as bar:
        clamp = clamp_values(cut, value, x if x_fit is None else check_images(x_fit, "x_fit"))
        for layer, units in cut.layers.items():
            links = cut.chain(layer, {layer: clamp[layer]})
            changes = partial(_changes_of_chain if links else _changes, cut, layer, links, clamp[layer])
            intact = change = 0
            blocks = list(cut.blocks(len(x), links or ()))
            for whole, sums in in_threads(lambda b, f=changes: f(x[b], y[b]), blocks, x.device):
                intact, change = intact + whole, change + sums
                bar.update(units * len(x) / len(blocks))
            columns = score_columns(intact + change, len(x))
            columns |= {f"delta_{name}": values for name, values in score_columns(change, len(x)).items()}
            columns.pop("delta_accuracy_top5", None)
            tables.append(pd.DataFrame({"layer": layer, "unit": range(units), **columns}))
    return pd.concat(tables, ignore_index=True)


def _changes(cut: Cut, layer: str, _, v: torch.Tensor, x: torch.Tensor, y: torch.Tensor):
    """Scores of a block of images, (2,), and their change by each unit's ablation, (units, 2), in any network."""
    tail = cut.start(x, layer)
    h, intact = tail.h.clone(), scores(tail(tail.h), y)
    change = torch.zeros(cut.layers[layer], len(intact), dtype=torch.float64, device=x.device)
    for unit in range(len(change)):
        h[:, unit] = v[:, unit]
        change[unit] = scores(tail(h), y) - intact
        h[:, unit] = tail.h[:, unit]
    return intact.cpu(), change.cpu()


def _changes_of_chain(cut: Cut, layer: str, links: list[Link], _, x: torch.Tensor, y: torch.Tensor):
    """The same where the network above the layer is a chain: z loses the unit's term, on images where it has one.

    z − mix_k(d_k), d = g − value; images with d_k = 0 keep their scores.
    """
    first, *rest = links
    d = first.terms(cut.start(x, layer).h)  # (n, C, ...)
    z = first.mix(d, first.weight) + first.constant
    z = z.contiguous() if rest else z
    intact = image_scores(_finish(rest, z.clone()), y)  # (2, n)
    active = (d != 0).reshape(*d.shape[:2], -1).any(2).T  # (C, n)
    units, images = active.nonzero(as_tuple=True)
    ends = active.sum(1).cumsum(0).tolist()
    sums = torch.zeros(len(active), len(intact), dtype=torch.float64, device=x.device)
    columns = first.weight.transpose(0, 1).contiguous().transpose(0, 1)
    d = d.transpose(0, 1).contiguous()  # (C, n, ...)
    rows = max(1, CACHE // z[0].numel())
    unit = start = 0
    while unit < len(ends):
        last = unit + 1
        while last < len(ends) and ends[last] <= start + rows:
            last += 1
        pairs = slice(start, ends[last - 1])
        changed = z.index_select(0, images[pairs])
        for k in range(unit, last):
            own = slice(ends[k - 1] if k else 0, ends[k])
            if own.stop > own.start:
                first.subtract(changed[own.start - start : own.stop - start], d[k, images[own], None], columns[:, k : k + 1])
        if len(changed):
            change = image_scores(_finish(rest, changed), y[images[pairs]]) - intact[:, images[pairs]]
            sums.index_add_(0, units[pairs], change.T.double())
        unit, start = last, pairs.stop
    return intact.sum(1, dtype=torch.float64).cpu(), sums.cpu()


def _finish(links: list[Link], z: torch.Tensor) -> torch.Tensor:
    """Logits of pre-activations z, which are overwritten."""
    for link in links:
        z = link(z)
    return z


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
    with evaluating(model), tqdm(total=sum(map(len, at)) * len(x), unit="image", unit_scale=True, desc="cumulative", delay=2) as bar:
        clamp = clamp_values(cut, value, x if x_fit is None else check_images(x_fit, "x_fit"))
        links = cut.chain(next(iter(cut.layers)), clamp)
        plans = [_sorted(cut, links, seq, counts) if links else _masks(cut, seq, counts) for seq, counts in zip(sequences, at, strict=True)]
        curves = partial(_curves_of_chain, cut, links, plans) if links else partial(_curves, cut, clamp, plans)
        sums = 0
        blocks = list(cut.blocks(len(x), links or ()))
        for part in in_threads(lambda b: torch.cat(list(curves(x[b], y[b]))), blocks, x.device):
            sums = sums + part
            bar.update(sum(map(len, at)) * len(x) / len(blocks))
    counts = np.concatenate(at)
    where = {"order": np.repeat(np.arange(len(at)), [len(c) for c in at]), "n_ablated": counts}
    where["fraction_ablated"] = counts / sum(cut.layers.values())
    return pd.DataFrame(where | score_columns(sums, len(x)))


def _masks(cut, sequence, counts):
    plan = []
    for n in counts:
        masks = {name: torch.zeros(units, dtype=torch.bool, device=cut.device) for name, units in cut.layers.items()}
        for name, unit in sequence[:n]:
            masks[name][unit] = True
        plan.append(masks)
    return plan


def _curves(cut, clamp, plans, x, y):
    lowest = next(iter(cut.layers))
    tail = cut.start(x, lowest)  # what lies below is shared by all points of all orders
    for plan in plans:
        edits = (_clamping(masks, clamp) for masks in plan)
        yield torch.stack([scores(tail(edit(lowest, tail.h), edit), y).cpu() for edit in edits])


def _sorted(cut, links, sequence, counts):
    """Links with their channels sorted by the time of ablation, last first: those still present always come first."""
    time = {link.layer: torch.full((link.shape[0],), len(sequence)) for link in links if link.layer}
    for t, (name, unit) in enumerate(sequence):
        time[name][unit] = t
    order = [time[l.layer].argsort(descending=True) if l.layer else torch.arange(l.shape[0]) for l in links]
    kept = [[int((time[l.layer] >= n).sum()) if l.layer else l.shape[0] for n in counts] for l in links]
    out = []
    for link, channels, outputs in zip(links, order, [*order[1:], slice(None)]):
        value = link.value if link.value is None else link.value[:, channels]
        out.append(replace(link, weight=link.weight[outputs][:, channels].contiguous(), value=value, constant=link.constant[:, outputs]))
    return order, list(zip(*kept, strict=True)), out


def _curves_of_chain(cut, links, plans, x, y):
    d = links[0].terms(cut.start(x, links[0].layer).h)
    z = links[0].mix(d, links[0].weight) + links[0].constant
    z = z.contiguous()
    for order, steps, (first, *rest) in plans:
        own_d = d.index_select(1, order[0])
        own_z = z.index_select(1, order[1]) if rest else z.clone()
        previous = fresh = d.shape[1]
        points = []
        for kept in steps:
            kept = [*kept, None]
            now, outputs = kept[:2]
            if now <= fresh / 2:  # anew, before rounding errors outgrow what is left
                fresh, own_z = now, first.sum(own_d[:, :now], outputs).contiguous()
            elif now < previous and outputs != 0:
                first.subtract(own_z[:, :outputs], own_d[:, now:previous], first.weight[:outputs, now:previous])
            a = own_z[:, :outputs].clone(memory_format=torch.contiguous_format)
            previous = now
            for link, i, o in zip(rest, kept[1:], kept[2:]):
                a = link(a, i, o)
            points.append(scores(a, y).cpu())
        yield torch.stack(points)


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
