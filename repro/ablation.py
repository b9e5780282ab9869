"""Ablation of single units and of growing sets of units (section 2.2, Figs. 1, 3 to 7 and A1 of Morcos et al. 2018).

To ablate a unit is to clamp its activation, after the nonlinearity, to a constant: 0, or the unit's mean (appendix A.2); or,
as a control, to what it is on other images.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import nn

from repro.checks import check_integer, check_names
from repro.evaluation import check_scores, evaluating, image_scores, score_columns, scores
from repro.graph import Tail
from repro.units import Cut, Link, prepare
from repro.values import clamp_values
from repro.work import budget, progress

MEMORY = 2**28  # bytes of sorted weights kept at once
FEW = 16  # channels among which most images have an active one
SCORED = 2**13  # images scored at once, where that takes longer to start than to do


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
    value : {"zero", "mean", "mean_per_position", "resampled"} or {layer: tensor}
        What an ablated unit is clamped to; a tensor has shape (C,) or (C, H, W). "resampled": each unit takes, on
        each image, its activation on an image drawn at random for this unit and image; this keeps the layers' activations on
        x_fit in memory.
    x_fit : Tensor, optional
        Images the means are taken over, or activations are drawn from; `x` by default.

    Returns
    -------
    DataFrame
        One row per unit: layer, unit, loss (nats), accuracy in [0, 1] (and accuracy_top5 from 100 classes on), delta_loss and
        delta_accuracy (ablated − intact).

    Raises
    ------
    ValueError
        Names the argument: a model whose logits are not finite or fit no labels, an unknown layer or value, images or
        labels of another kind.
    """
    cut, x, y = prepare(model, x, y, layers)
    with evaluating(model), progress(total=len(cut.units) * len(x), desc="single units") as bar:
        total = each_unit(cut, clamp_values(cut, value, x, x_fit), bar, x, y)
    whole, change = total[:1], total[1:]
    columns, deltas = (score_columns(sums, len(x), "value") for sums in (whole + change, change))
    columns |= {f"delta_{name}": deltas[name] for name in ("loss", "accuracy")}
    return pd.concat([pd.DataFrame(cut.units, columns=["layer", "unit"]), pd.DataFrame(columns)], axis=1)


def each_unit(cut: Cut, clamp: Mapping[str, torch.Tensor], bar, x, y) -> torch.Tensor:
    """Sums of scores over images, and their changes by the ablation of each unit: (1 + units, S), as in `evaluation.scores`."""
    chains = {layer: cut.chain(layer, {layer: clamp[layer]}) for layer in cut.layers}
    work = partial(_single_units, chains, clamp, cut, bar, x, y)
    total = cut.total(work, len(x), [link for links in chains.values() for link in links])
    check_scores(total[:1], "model")
    return total


def _single_units(chains, clamp, cut: Cut, bar, x, y, block: slice) -> torch.Tensor:
    """Scores of a block of images, and their changes by the ablation of each unit: (1 + units, S)."""
    x, y, h = x[block], y[block], {}
    intact = image_scores(cut.run(x, lambda layer, a: h.setdefault(layer, a) if chains[layer] else a), y)  # (S, n)
    found = [intact.sum(1, dtype=torch.float64)[None].cpu()]
    for layer, links in chains.items():
        if links:
            found.append(_without_terms(links, h.pop(layer), y, intact, bar, budget(cut.device, chained=True)))
        else:
            alone = {layer: torch.eye(cut.layers[layer], dtype=torch.bool, device=cut.device)}
            runs = run_ablated(cut, cut.start(x, [layer]), block, alone, clamp, bar)
            found.append(torch.cat([scores(logits, y) for logits in runs]).cpu() - found[0])
    return torch.cat(found)


def _without_terms(links: Sequence[Link], h: torch.Tensor, y, intact: torch.Tensor, bar, room: int) -> torch.Tensor:
    """Changes of the scores by the ablation of each unit, (C, S), where the rest of the network is a chain.

    With d = g − value, ablating unit k alone gives z − mix_k(d_k): for a linear layer an outer product. Images with
    d_k = 0, such as those on which a unit is silent, keep their scores. All other pairs (unit, image) are put together,
    unit by unit, until they about fill a buffer that stays in cache, and go through the links above at once.
    """
    first, *rest = links
    d = first.terms(h)  # (n, C, ...)
    z = first.sum(d).contiguous()  # (n, O, ...)
    units, images, terms, counts = _active_pairs(d)
    # Without its one active unit, an image is left with the constant.
    alone = (images.bincount(minlength=len(d)) == 1)[images]
    lonely = bool(alone.any())
    weights = first.weight.transpose(0, 1).contiguous().transpose(0, 1).split(1, dim=1)  # C times (O, 1, ...)
    bounds = np.cumsum([0, *counts])
    starts = np.unique(bounds[:-1] * z[0].nbytes // room, return_index=True)[1].tolist()
    change = torch.zeros(len(counts), len(intact), dtype=torch.float64)  # on the CPU: a GPU adds in any order
    waiting, scored = [], 0
    for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True):
        pairs = slice(bounds[start], bounds[stop])
        changed = z.index_select(0, images[pairs])
        of_units = changed.split(counts[start:stop]), terms[pairs].split(counts[start:stop]), weights[start:stop]
        for z_k, d_k, weight_k in zip(*of_units, strict=True):
            first.subtract(z_k, d_k, weight_k)
        if lonely:  # set, not reached by subtraction: else rounding decides between equal logits
            changed[alone[pairs]] = first.constant
        for link in rest:
            changed = link(changed)
        waiting.append(changed.T)  # (classes, pairs)
        bar.update((stop - start) * len(y))
        if pairs.stop - scored >= SCORED or stop == len(counts):
            pairs, scored = slice(scored, pairs.stop), pairs.stop
            ablated = image_scores(torch.cat(waiting, 1).T, y.index_select(0, images[pairs]))
            difference = ablated - intact.index_select(1, images[pairs])
            change.index_add_(0, units[pairs].cpu(), difference.T.double().cpu())
            waiting = []
    return change


def _active_pairs(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Pairs of a unit and an image where d (n, C, ...) is not 0, unit by unit: units (pairs,), images (pairs,), their d
    (pairs, 1, ...), and how many pairs each unit has."""
    d = d.transpose(0, 1).contiguous()  # (C, n, ...)
    active = _active(d)
    pairs = torch.from_numpy(np.flatnonzero(active.cpu())).to(d.device)  # torch's nonzero takes ten times as long
    counts = active.sum(1)
    units = torch.repeat_interleave(counts)
    return units, pairs - d.shape[1] * units, d.flatten(0, 1).index_select(0, pairs)[:, None], counts.tolist()


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
        One row per point: order, n_ablated, fraction_ablated (of all units in `layers`), loss (nats), accuracy in [0, 1] (and
        accuracy_top5 from 100 classes on).

    Raises
    ------
    ValueError
        As `single_unit`; for an order with an unknown unit or with one twice, and steps below 1.
    """
    cut, x, y = prepare(model, x, y, layers)
    curves = [(_times(cut, order), points(len(order), steps)) for order in sequences(cut.units, orders, seed)]
    where = pd.DataFrame([(i, n) for i, (_, at) in enumerate(curves) for n in at], columns=["order", "n_ablated"])
    where["fraction_ablated"] = where["n_ablated"] / len(cut.units)
    with evaluating(model), progress(total=len(where) * len(x), desc="cumulative") as bar:
        clamp = clamp_values(cut, value, x, x_fit)
        links = cut.chain(next(iter(cut.layers)), clamp)
        at_once = max(1, MEMORY // sum(link.weight.nbytes for link in links)) if links else len(curves)
        sums = []
        for first in range(0, len(curves), at_once):
            batch = curves[first : first + at_once]
            if links:
                work = partial(_in_chain, links, [_sort(links, *curve) for curve in batch])
            else:
                work = partial(_in_any, clamp, _masks(cut, batch))
            sums.append(cut.total(partial(work, cut, bar, x, y), len(x), links))
    total = torch.cat(sums)
    check_scores(total[:1], "model")
    return where.assign(**score_columns(total, len(x), "value"))


def sequences(units: Sequence[tuple[str, int]], orders: int | Sequence, seed: int) -> list[list[tuple[str, int]]]:
    """Orders of units (layer, unit): as many random ones of all units as `orders` says, or the sequences it holds, checked."""
    if isinstance(orders, int | np.integer):
        streams = [(check_integer("seed", seed, 0), order) for order in range(check_integer("orders", orders, 1))]
        return [[units[i] for i in np.random.default_rng(stream).permutation(len(units))] for stream in streams]
    try:
        given = [[(str(name), operator.index(unit)) for name, unit in sequence] for sequence in orders]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"orders: expected an integer >= 1 or a list of orders, each a sequence of (layer, unit), got {orders!r}"
        ) from error
    if not given:
        raise ValueError("orders: expected at least one sequence of (layer, unit), got none")
    known = set(units)
    for sequence in given:
        unknown = set(sequence) - known
        if unknown or not sequence or len(set(sequence)) < len(sequence):
            what = f"unknown unit {sorted(unknown)[0]}" if unknown else "an empty sequence or a unit named twice"
            raise ValueError(f"orders: expected different units of {', '.join(dict(units))}, got {what}")
    return given


def points(n: int, steps: int) -> np.ndarray:
    """Numbers of ablated units at which a curve is measured, from 0 to n."""
    steps = min(check_integer("steps", steps, 1), n)  # more would repeat points
    return np.unique(np.round(np.linspace(0, n, steps + 1)).astype(int))


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
        One area per curve, up to the curve's last point, indexed by `by`; NaN where `normalize` would divide by zero.

    Raises
    ------
    ValueError
        For missing columns, numbers that are not finite, fractions outside [0, 1], a `by` that does not tell curves apart, and
        `normalize` where a curve has no point at fraction 0.
    """
    by = _check_curves(curves, by, normalize)

    groups = curves.groupby(by if len(by) > 1 else by[0], sort=False, dropna=False, observed=True)
    fraction, accuracy = (curves[name].to_numpy(float) for name in ("fraction_ablated", "accuracy"))
    sizes = groups.size()
    rows = np.lexsort((fraction, groups.ngroup()))  # curve by curve, each along its fractions
    lengths, areas = sizes.to_numpy(), np.empty(len(sizes))
    first = np.cumsum(lengths) - lengths
    for length in np.unique(lengths):  # curves of one length are the rows of a matrix
        alike = lengths == length
        at = rows[first[alike, None] + np.arange(length)]
        areas[alike] = np.trapezoid(accuracy[at], fraction[at])
    if normalize:
        intact = accuracy[rows[first]]
        areas /= np.where(intact == 0, np.nan, intact)
    return pd.Series(areas, sizes.index, name="auc")


def _check_curves(curves: pd.DataFrame, by: str | Sequence[str], normalize: bool) -> list[str]:
    """The columns, a list, that tell cumulative ablation curves apart."""
    by = check_names("by", by)
    if not isinstance(normalize, bool | np.bool_):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    there = list(curves.columns) if isinstance(curves, pd.DataFrame) else []
    missing = {"fraction_ablated", "accuracy"} - set(there)
    if missing or curves.empty or not curves.columns.is_unique:
        raise ValueError(f"curves: expected a table with columns {', '.join(sorted(missing)) or 'and rows'}")
    if unknown := [name for name in by if name not in there]:
        raise ValueError(f"by: the curves have no column {unknown[0]!r}; expected some of {', '.join(map(str, there))}")
    numbers = curves[["fraction_ablated", "accuracy"]]
    if not all(is_numeric_dtype(kind) for kind in numbers.dtypes) or not np.isfinite(numbers.to_numpy(float)).all():
        raise ValueError("curves: expected finite numbers as fraction_ablated and accuracy")
    if not numbers["fraction_ablated"].between(0, 1).all():
        raise ValueError("curves: expected fractions from 0 to 1 as fraction_ablated")
    if curves.duplicated([*by, "fraction_ablated"]).any():
        raise ValueError(f"by: {', '.join(by)} does not tell the curves apart; name further columns, such as network")
    if normalize and (curves.groupby(by, dropna=False)["fraction_ablated"].min() > 0).any():
        raise ValueError("normalize: expected a point at fraction_ablated 0 in every curve")
    return by


def _times(cut: Cut, order: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
    """How many units are ablated before each, {layer: (C,)}; before those that never are, all."""
    times = {name: np.full(units, len(order)) for name, units in cut.layers.items()}
    for t, (name, unit) in enumerate(order):
        times[name][unit] = t
    return times


def _masks(cut: Cut, curves) -> dict[str, torch.Tensor]:
    """Which units are ablated at each point of each curve: {layer: bool (points, C)}."""
    masks = {name: [times[name] < at[:, None] for times, at in curves] for name in cut.layers}
    return {name: torch.from_numpy(np.concatenate(mask)).to(cut.device) for name, mask in masks.items()}


def _in_any(clamp, masks: dict[str, torch.Tensor], cut: Cut, bar, x, y, block: slice) -> torch.Tensor:
    """Scores of a block of images at all points of all curves, (points, S), in any network."""
    runs = run_ablated(cut, cut.start(x[block]), block, masks, clamp, bar)
    return torch.cat([scores(logits, y[block]) for logits in runs]).cpu()


def run_ablated(cut: Cut, tail: Tail, block: slice, masks, clamp, bar) -> Iterator[torch.Tensor]:
    """Logits of a block of n images with one set of units after the other ablated; `masks` {layer: bool (sets, C)}.

    The rest of the network is run for as many sets at once as the budget allows: yields (sets, n, classes).
    """
    n = block.stop - block.start
    values = {name: value if len(value) == 1 else value[block] for name, value in clamp.items()}
    image = max(tail.largest, *(shape.numel() for shape in cut.shapes.values())) * 4  # bytes
    at_once = max(1, budget(cut.device) // (image * n)) if tail.repeats else 1
    for sets in zip(*(mask.split(at_once) for mask in masks.values()), strict=True):
        ablated, copies = dict(zip(masks, sets, strict=True)), len(sets[0])

        def clamped(name: str, h: torch.Tensor, ablated=ablated, copies=copies) -> torch.Tensor:
            mask = ablated[name].reshape(copies, 1, -1, *[1] * (h.ndim - 2))
            return torch.where(mask, values[name].to(h.dtype), h.unflatten(0, (copies, -1))).flatten(0, 1)

        yield tail(clamped, copies).unflatten(0, (copies, -1))
        bar.update(copies * n)


def _in_chain(links: Sequence[Link], curves: Sequence[Sorted], cut: Cut, bar, x, y, block: slice) -> torch.Tensor:
    """What `_in_any` gives, where the network above the lowest layer is a chain.

    The first link's z = constant + Σ_{k present} mix_k(d_k) loses the newly ablated units' terms only; d and the intact
    z are the same for all orders. The links above it have changed inputs, and run with the units present alone.
    """
    d = links[0].terms(cut.start(x[block], [links[0].layer]).h[links[0].layer])  # (n, C, ...)
    d_by_unit, z_by_output = (t.transpose(0, 1).contiguous() for t in (d, links[0].sum(d)))  # (C, n, ...), (O, n, ...)
    active = _active(d_by_unit)
    found = []
    for channels, present, (first, *rest) in curves:
        own, z = (t[kept].transpose(0, 1) for t, kept in zip((d_by_unit, z_by_output), channels, strict=False))
        before = summed = d.shape[1]  # units present at the point before, and when z was last summed
        # With so many units present, or fewer, an image has none that is active.
        alive_from = _first_active(active, channels[0])
        last = int(alive_from.max())
        for units, outputs, *above in present:
            if units <= summed / 4:  # sum anew, lest rounding errors outgrow what is left
                summed, z = units, first.sum(own[:, :units], outputs).clone()
            elif units < before and outputs != 0:
                first.subtract(z[:, :outputs], own[:, units:before], first.weight[:outputs, units:before])
            before = units
            a = z[:, :outputs]
            if units <= last:  # set, not reached by subtraction, as in `_without_terms`
                a[alive_from >= units] = first.constant[:, :outputs]
            for link, inputs, outs in zip(rest, [outputs, *above], above, strict=False):
                a = link(a, inputs, outs)
            found.append(scores(a, y[block]))
            bar.update(len(a))
    return torch.stack(found).cpu()


def _active(d: torch.Tensor) -> torch.Tensor:
    """Where d (C, n, ...) holds anything but zeros: (C, n)."""
    return (d != 0).reshape(*d.shape[:2], -1).any(2)


def _first_active(active: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The place in an order of channels of the first that is active (C, n) on each image; C where none is: (n,)."""
    first = torch.full((active.shape[1],), len(order), device=active.device)
    images = torch.arange(active.shape[1], device=active.device)
    for start, channels in ((0, order[:FEW]), (FEW, order[FEW:])):
        if len(channels) and len(images):
            found, at = active[channels][:, images].byte().max(0)
            first[images[found > 0]] = start + at[found > 0]
            images = images[found == 0]
    return first


class Sorted(NamedTuple):
    """A chain with its channels sorted by when they are ablated, the last ones first: those present always come first."""

    channels: list[torch.Tensor]  # of every link, and of the logits
    present: list[list[int]]  # at each point, how many of each of these
    links: list[Link]  # with weights, values and constants sorted so


def _sort(links: Sequence[Link], times: Mapping[str, np.ndarray], at: Sequence[int]) -> Sorted:
    widths = [(link.layer, link.shape[0]) for link in links] + [(None, len(links[-1].weight))]  # no logit is ablated
    times = [times.get(layer, np.full(width, at[-1])) for layer, width in widths]
    channels = [torch.from_numpy(np.argsort(-t, kind="stable")).to(links[0].weight.device) for t in times]
    present = [[int((t >= n).sum()) for t in times] for n in at]
    links = [
        replace(
            link,
            weight=link.weight[above][:, own].contiguous(),
            value=None if link.value is None else link.value[:, own],
            constant=link.constant[:, above],
        )
        for link, own, above in zip(links, channels[:-1], channels[1:], strict=True)
    ]
    return Sorted(channels, present, links)
