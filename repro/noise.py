"""Random directions: Gaussian noise on every unit at once (section 3.1, Fig. 2 of Morcos et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from repro.checks import check_integer, check_scales
from repro.evaluation import check_scores, evaluating, score_columns, scores
from repro.units import Cut, Link, prepare
from repro.values import clamp_values, standard_deviations
from repro.work import progress

Draws = dict[str, torch.Tensor]  # noise of scale 1 on every layer, (n, C) or (n, C, H, W)
Noisy = Callable[[Draws, Sequence[float]], Iterator[torch.Tensor]]  # the logits (n, classes) with noise of each scale


def sweep(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    scales: Sequence[float],
    repeats: int = 10,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    x_fit: torch.Tensor | None = None,
) -> pd.DataFrame:
    """Loss and accuracy with zero-mean Gaussian noise added to all units of all layers.

    Every image, unit and position gets its own draw, after the nonlinearity, with standard deviation `scale` times that of the
    unit. The paper leaves open whether its axis multiplies the variance or the standard deviation; here the latter.

    Parameters
    ----------
    model, x, y, layers
        As in `ablation.single_unit`.
    scales : sequence of float
        Factors >= 0 on the units' standard deviations.
    repeats : int
        Runs with new draws; within a run all scales share them.
    seed : int
        Of the draws.
    x_fit : Tensor, optional
        Images the standard deviations are taken over; `x` by default.

    Returns
    -------
    DataFrame
        A row per point: repeat, scale, loss (nats), accuracy in [0, 1] (and accuracy_top5 from 100 classes on).

    Raises
    ------
    ValueError
        As `ablation.single_unit`; for scales that are negative or not finite, and repeats below 1.
    """
    scales = check_scales(scales)
    check_integer("repeats", repeats, 1)
    check_integer("seed", seed, 0)
    cut, x, y = prepare(model, x, y, layers)
    with evaluating(model), progress(total=repeats * len(scales) * len(x), desc="noise") as bar:
        spread = standard_deviations(cut, x, x_fit)
        links = cut.chain(next(iter(cut.layers)), clamp_values(cut, "zero", x))
        linear = bool(links) and not links[0].after  # from the first layer's units to the next pre-activation
        begin = partial(_in_chain, links) if linear else _in_any

        def work(block: slice) -> torch.Tensor:
            """Scores of a block of images, (repeats · scales, S)."""
            noisy, found = begin(cut, x[block]), []
            for repeat in range(repeats):
                for logits in noisy(_draw(cut, spread, block, (int(seed), repeat)), scales):
                    found.append(scores(logits, y[block]))
                    bar.update(len(logits))
            return torch.stack(found).cpu()

        # Each block has draws of its own: the same blocks on every GPU, however much memory is free.
        sums = cut.total(work, len(x), links if linear else (), copies=len(cut.layers), fixed=True)
        if not torch.isfinite(sums).all():  # by the scales, unless the network is so without noise
            check_scores(cut.total(lambda block: scores(cut.run(x[block]), y[block]).cpu(), len(x)), "model")
    where = {"repeat": np.repeat(np.arange(repeats), len(scales)), "scale": np.tile(scales, repeats)}
    return pd.DataFrame(where | score_columns(sums, len(x), "scales"))


def _draw(cut: Cut, spread: Draws, block: slice, stream: tuple[int, int]) -> Draws:
    """Noise for a block of images, from a stream of its own: it does not matter who draws first."""
    state = np.random.SeedSequence((*stream, block.start)).generate_state(1, np.uint64)[0]
    generator, n = torch.Generator(cut.device).manual_seed(int(state >> 1)), block.stop - block.start
    options = dict(device=cut.device, dtype=cut.dtype, generator=generator)
    return {name: torch.randn(n, *shape, **options).mul_(spread[name]) for name, shape in cut.shapes.items()}


def _in_any(cut: Cut, x: torch.Tensor) -> Noisy:
    """In any network what lies below the first layer is computed once."""
    tail = cut.start(x)

    def noisy(draws, scales):
        for scale in scales:
            yield tail(lambda layer, h, scale=scale: torch.add(h, draws[layer].to(h.dtype), alpha=scale))

    return noisy


def _in_chain(links: Sequence[Link], cut: Cut, x: torch.Tensor) -> Noisy:
    """On a chain, where mixing is linear, the first link turns scale · draws into scale · Σ_k mix_k(draws_k), and one product
    serves all scales."""
    first, *rest = links
    intact = first.sum(cut.start(x, [first.layer]).h[first.layer])

    def noisy(draws, scales):
        change = first.mix(draws[first.layer].to(first.weight.dtype), first.weight)
        for scale in scales:
            z = torch.add(intact, change, alpha=scale)
            for link in rest:
                h = link.activation(z)
                if link.layer:
                    h.add_(draws[link.layer], alpha=scale)
                z = link.sum(link.terms(h))
            yield z

    return noisy
