"""Ablation of single units and of growing sets of units (section 2.2, Figs. 1, 3 to 7 and A1 of Morcos et al. 2018).

To ablate a unit is to clamp its activation, after the nonlinearity, to a constant: 0, or the unit's mean (appendix A.2); or,
as a control, to what it is on other images.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np
import pandas as pd
import torch
from torch import nn

from repro.evaluation import (
    check_curves,
    check_fit,
    check_integer,
    check_orders,
    check_scores,
    check_value,
    evaluating,
    image_scores,
    score_columns,
    scores,
)
from repro.graph import Tail
from repro.units import Cut, Link, prepare, progress

SCORED = 2**13  # images scored at once, where that takes longer to start than to do
MEMORY = 2**28  # bytes of sorted weights kept at once
VALUES = ("zero", "mean", "mean_per_position", "resampled")


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
        What an ablated unit is clamped to; a tensor has shape (C,) or (C, H, W). "resampled": on every image the unit's
        activation on another, drawn once, for each unit its own; keeps the layers' activations on x_fit in memory.
    x_fit : Tensor, optional
        Images the means are taken over, or activations are drawn from; `x` by default.

    Returns
    -------
    DataFrame
        A row a unit: layer, unit, loss (nats), accuracy in [0, 1] (and accuracy_top5 from 100 classes on), delta_loss and
        delta_accuracy (ablated − intact).
    """
    cut, x, y = prepare(model, x, y, layers)
    n_units = sum(cut.layers.values())
    with evaluating(model), progress(total=n_units * len(x), desc="single units") as bar:
        clamp = clamp_values(cut, value, check_fit(x_fit, x), len(x))
        chains = {layer: _chain(cut, layer, {layer: clamp[layer]}) for layer in cut.layers}
        links = [link for links in chains.values() for link in links]
        total = sum(cut.map(lambda b: _single_units(cut, _of(clamp, b), chains, bar, x[b], y[b]), len(x), links))
    whole, change = total[:1], total[1:]
    check_scores(whole, "model")
    check_scores(change, "value")
    columns = score_columns(whole + change, len(x))
    columns |= {f"delta_{name}": score_columns(change, len(x))[name] for name in ("loss", "accuracy")}
    return pd.concat([pd.DataFrame(cut.units, columns=["layer", "unit"]), pd.DataFrame(columns)], axis=1)


def _single_units(cut: Cut, clamp, chains, bar, x, y) -> torch.Tensor:
    """Scores of a block of images, and their changes by the ablation of each unit: (1 + units, 2)."""
    h: dict[str, torch.Tensor] = {}
    intact = image_scores(cut.run(x, lambda layer, a: h.setdefault(layer, a) if chains[layer] else a), y)  # (2, n)
    found = [intact.sum(1, dtype=torch.float64)[None].cpu()]
    for layer, links in chains.items():
        if links:
            found.append(_without_terms(links, h.pop(layer), y, intact, bar, cut.budget(links)))
        else:
            alone = {layer: torch.eye(cut.layers[layer], dtype=torch.bool, device=cut.device)}
            runs = run_ablated(cut, cut.start(x, [layer]), len(x), alone, clamp, bar)
            found.append(torch.cat([scores(logits, y) for logits in runs]).cpu() - found[0])
    return torch.cat(found)


def _without_terms(links: Sequence[Link], h: torch.Tensor, y, intact: torch.Tensor, bar, budget: int) -> torch.Tensor:
    """Changes of the scores by the ablation of each unit, (C, 2), where the rest of the network is a chain.

    With d = g − value, ablating unit k alone gives z − mix_k(d_k): for a linear layer an outer product. Images with
    d_k = 0, such as those on which a unit is silent, keep their scores. All other pairs (unit, image) are put together,
    unit by unit, until they fill a buffer that stays in cache, and go through the links above at once.
    """
    first, *rest = links
    d = first.terms(h)  # (n, C, ...)
    z = first.sum(d)  # (n, O, ...)
    z = z.contiguous() if rest else z
    d = d.transpose(0, 1).contiguous()  # (C, n, ...)
    active = (d != 0).reshape(*d.shape[:2], -1).any(2)  # (C, n)
    counts = active.sum(1)
    pairs = torch.from_numpy(np.flatnonzero(active.cpu())).to(y.device)  # torch's nonzero takes ten times as long
    units = torch.repeat_interleave(counts)
    images = pairs - len(y) * units
    terms = d.flatten(0, 1).index_select(0, pairs)[:, None]  # (pairs, 1, ...)
    counts = counts.tolist()
    bounds = [0, *accumulate(counts)]
    weights = first.weight.transpose(0, 1).contiguous().transpose(0, 1).split(1, dim=1)  # C times (O, 1, ...)
    change = torch.zeros(len(d), len(intact), dtype=torch.float64, device=y.device)
    waiting: list[torch.Tensor] = []
    start = 0
    for chunk in _chunks(bounds, budget // (z[0].numel() * z.element_size())):
        some, lengths = slice(bounds[chunk.start], bounds[chunk.stop]), counts[chunk.start : chunk.stop]
        changed = _images(z, images[some])
        for k, z_k, d_k in zip(chunk, changed.split(lengths), terms[some].split(lengths), strict=True):
            if len(z_k):
                first.subtract(z_k, d_k, weights[k])
        for link in rest:
            changed = link(changed)
        waiting.append(changed.T)  # (classes, pairs)
        bar.update(len(chunk) * len(y))
        if some.stop - start >= SCORED or chunk.stop == len(d):
            these, start = slice(start, some.stop), some.stop
            found = image_scores(torch.cat(waiting, 1).T, y.index_select(0, images[these]))
            change.index_add_(0, units[these], (found - intact.index_select(1, images[these])).T.double())
            waiting = []
    return change.cpu()


def _images(z: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """z[images], fast also where z (n, C) lies in memory unit by unit."""
    by_unit = z.ndim == 2 and z.stride(0) == 1
    return z.T.index_select(1, images).T if by_unit else z.index_select(0, images)


def _channels(z: torch.Tensor, channels: torch.Tensor | slice) -> torch.Tensor:
    """A copy of z[:, channels], (n, C) lying in memory unit by unit."""
    if isinstance(channels, slice):
        return z.clone()
    return z.index_select(1, channels) if z.ndim > 2 else z.T.index_select(0, channels).T


def _chunks(bounds: Sequence[int], pairs: int) -> Iterator[range]:
    """Ranges of units that have at most so many pairs together, or of one unit."""
    unit = 0
    while unit < len(bounds) - 1:
        stop = max(unit + 1, bisect_right(bounds, bounds[unit] + pairs) - 1)
        yield range(unit, stop)
        unit = stop


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
    chosen = list(sequences(cut, orders, seed))
    at = [points(len(sequence), steps) for sequence in chosen]
    where = {"order": np.repeat(np.arange(len(at)), list(map(len, at))), "n_ablated": np.concatenate(at)}
    where["fraction_ablated"] = where["n_ablated"] / sum(cut.layers.values())
    with evaluating(model), progress(total=len(where["order"]) * len(x), desc="cumulative") as bar:
        clamp = clamp_values(cut, value, check_fit(x_fit, x), len(x))
        links = _chain(cut, next(iter(cut.layers)), clamp)

        def curves(block: slice, plans) -> torch.Tensor:
            if links:
                return _curves_in_chain(links, cut, plans, bar, x[block], y[block])
            return _curves(_of(clamp, block), cut, plans, bar, x[block], y[block])

        at_once = max(1, MEMORY // sum(link.weight.nbytes for link in links)) if links else len(at)
        plan = partial(_sort, links) if links else partial(_masks, cut)
        sums = []
        for first in range(0, len(at), at_once):
            some = slice(first, first + at_once)
            plans = [plan(*pair) for pair in zip(chosen[some], at[some], strict=True)]
            sums.append(sum(cut.map(partial(curves, plans=plans), len(x), links)))
    total = torch.cat(sums)
    check_scores(total[:1], "model")
    check_scores(total, "value")
    return pd.DataFrame(where | score_columns(total, len(x)))


def _masks(cut: Cut, sequence, counts) -> dict[str, torch.Tensor]:
    """Which units are ablated at every point of a curve: {layer: bool (points, C)}."""
    masks = {name: torch.zeros(len(counts), units, dtype=torch.bool) for name, units in cut.layers.items()}
    for i, n in enumerate(counts):
        for name, unit in sequence[:n]:
            masks[name][i, unit] = True
    return {name: mask.to(cut.device) for name, mask in masks.items()}


def _curves(clamp: Mapping[str, torch.Tensor], cut: Cut, plans, bar, x, y) -> torch.Tensor:
    """Scores of a block of images at all points of all curves, (points, 2), in any network."""
    masks = {name: torch.cat([plan[name] for plan in plans]) for name in cut.layers}
    runs = run_ablated(cut, cut.start(x), len(x), masks, clamp, bar)
    return torch.cat([scores(logits, y) for logits in runs]).cpu()


def run_ablated(cut: Cut, tail: Tail, n: int, masks: dict[str, torch.Tensor], clamp, bar) -> Iterator[torch.Tensor]:
    """Logits (sets, n, classes) of a block of n images with each of some sets of units ablated, {layer: bool (sets, C)}, by
    running the rest of the network for as many sets at once as the budget allows."""
    image = max(tail.largest, *(shape.numel() for shape in cut.shapes.values())) * 4  # bytes
    at_once = max(1, cut.budget() // (image * n)) if tail.repeats else 1
    for some in zip(*(mask.split(at_once) for mask in masks.values()), strict=True):
        times = len(some[0])
        logits = tail(_clamping(dict(zip(masks, some, strict=True)), clamp), times).unflatten(0, (times, -1))
        bar.update(times * n)
        yield logits


def _sort(links: Sequence[Link], sequence, counts):
    """The channels of a chain in the order of ablation, last first, so that those present always come first.

    Returns the order of each link's channels, how many are present at each point, and the links so sorted.
    """
    time = {link.layer: np.full(link.shape[0], len(sequence)) for link in links if link.layer}
    for t, (name, unit) in enumerate(sequence):
        time[name][unit] = t
    times = [time.get(link.layer, np.full(link.shape[0], len(sequence))) for link in links]
    channels = [torch.from_numpy(np.argsort(-t, kind="stable")).to(links[0].weight.device) for t in times]
    present = [[*(int((t >= n).sum()) for t in times), None] for n in counts]  # None: all logits
    order = [*channels, slice(None)]
    links = [
        replace(
            link,
            weight=link.weight[order[i + 1]][:, order[i]].contiguous(),
            value=None if link.value is None else link.value[:, order[i]],
            constant=link.constant[:, order[i + 1]],
        )
        for i, link in enumerate(links)
    ]
    return order, present, links


def _curves_in_chain(links: Sequence[Link], cut: Cut, plans, bar, x, y) -> torch.Tensor:
    """The same where the network above the lowest layer is a chain.

    The first link's z = constant + Σ_{k present} mix_k(d_k) loses the newly ablated units' terms only; d and the intact
    z are the same for all orders. The links above it have changed inputs, and run with the units present alone.
    """
    d = links[0].terms(cut.start(x, [links[0].layer]).h[links[0].layer])  # (n, C, ...)
    d = d if d.ndim > 2 else d.T.contiguous().T
    intact = links[0].sum(d)  # (n, O, ...)
    found = []
    for order, points, (first, *rest) in plans:
        own, z = _channels(d, order[0]), _channels(intact, order[1])
        before = anew = d.shape[1]
        for now, outputs, *above in points:
            if now <= anew / 4:  # sum anew, lest rounding errors outgrow what is left
                anew, z = now, first.sum(own[:, :now], outputs).clone()
            elif now < before and outputs != 0:
                first.subtract(z[:, :outputs], own[:, now:before], first.weight[:outputs, now:before])
            before = now
            a = z[:, :outputs]
            for link, kept, outs in zip(rest, [outputs, *above], above, strict=False):
                a = link(a, kept, outs)
            found.append(scores(a, y))
            bar.update(len(x))
    return torch.stack(found).cpu()


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
    by = check_curves(curves, by, normalize)

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
    steps = min(check_integer("steps", steps, 1), n)  # more would repeat points
    return np.unique(np.round(np.linspace(0, n, steps + 1)).astype(int))


def sequences(cut: Cut, orders: int | Sequence, seed: int) -> Iterator[list[tuple[str, int]]]:
    """Sequences of (layer, unit): so many random orders of all units of `cut`, or the given ones, checked."""
    everything = cut.units
    if isinstance(orders, int | np.integer):
        for order in range(check_integer("orders", orders, 1)):
            rng = np.random.default_rng((check_integer("seed", seed, 0), order))
            yield [everything[i] for i in rng.permutation(len(everything))]
        return
    yield from check_orders(orders, everything)


def clamp_values(
    cut: Cut, value: str | Mapping[str, torch.Tensor], x_fit: torch.Tensor, n: int
) -> dict[str, torch.Tensor]:
    """What each unit is clamped to: {layer: (1, C), (1, C, 1, 1) or (1, C, H, W)} on the model's device; resampled, on each of
    n images to a value of its own: (n, C, ...)."""
    if isinstance(value, Mapping):
        return {
            name: check_value(value.get(name), name, shape, cut.dtype).to(cut.device)
            for name, shape in cut.shapes.items()
        }
    if not isinstance(value, str) or value not in VALUES:
        raise ValueError(f"value: expected {', '.join(VALUES)} or {{layer: tensor}}, got {value!r}")
    if value == "resampled":
        return _resampled(cut, x_fit, n)
    totals = {name: torch.zeros(1, *s, dtype=torch.float64, device=cut.device) for name, s in cut.shapes.items()}
    if value != "zero":
        for _, activations in cut.activations(x_fit.to(cut.device)):
            for name, h in activations.items():
                totals[name] += h.sum(0, dtype=torch.float64)
    means = {name: (total / len(x_fit)).to(cut.dtype) for name, total in totals.items()}
    per_unit = {name: m if m.ndim == 2 else m.mean((2, 3), keepdim=True) for name, m in means.items()}
    return means if value == "mean_per_position" else per_unit


def _resampled(cut: Cut, x_fit: torch.Tensor, n: int) -> dict[str, torch.Tensor]:
    """Activations on images drawn with replacement, for each unit its own draws: {layer: (n, C, ...)}."""
    generator, blocks = torch.Generator().manual_seed(0), [h for _, h in cut.activations(x_fit.to(cut.device))]
    found = {}
    for name, units in cut.layers.items():
        h = torch.cat([block.pop(name) for block in blocks])
        donors = torch.randint(len(h), (n, units), generator=generator).to(cut.device)
        found[name] = h[donors, torch.arange(units, device=cut.device)]
    return found


def _of(clamp: Mapping[str, torch.Tensor], block: slice) -> dict[str, torch.Tensor]:
    """What the images of a block are clamped to."""
    return {name: value if len(value) == 1 else value[block] for name, value in clamp.items()}


def _chain(cut: Cut, layer: str, clamp: Mapping[str, torch.Tensor]) -> list[Link]:
    """The chain from a layer; none where units are clamped to another value on every image."""
    return cut.chain(layer, clamp) if all(len(value) == 1 for value in clamp.values()) else []


def _clamping(masks: Mapping[str, torch.Tensor], clamp: Mapping[str, torch.Tensor]):
    """An edit that clamps the units of each of some sets, {layer: bool (sets, C)}, in that many copies of a block."""

    def edit(name: str, h: torch.Tensor) -> torch.Tensor:
        mask = masks[name].reshape(len(masks[name]), 1, -1, *[1] * (h.ndim - 2))
        return torch.where(mask, clamp[name], h.unflatten(0, (len(mask), -1))).flatten(0, 1)

    return edit
