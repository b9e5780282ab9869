"""Random directions: Gaussian noise on every unit at once (section 3.1, Fig. 2 of Morcos et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from repro.units import Cut, check_images, evaluating, prepare, score_columns, scores


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

    Every image, unit and position gets its own draw, after the nonlinearity, with standard deviation `scale` times that
    of the unit. The paper leaves open whether its axis multiplies the variance or the standard deviation; here the latter.

    Parameters
    ----------
    model : nn.Module
        Maps images to logits (N, classes).
    x, y : Tensors (N, ...) and (N,)
        Images and integer labels.
    scales : sequence of float
        Factors >= 0 on the units' standard deviations.
    repeats : int
        Runs with new draws; within a run all scales share them.
    layers : sequence of str, optional
        Unit layers; all by default.
    seed : int
        Of the draws.
    x_fit : Tensor, optional
        Images the standard deviations are taken over; `x` by default.

    Returns
    -------
    DataFrame
        A row a point: repeat, scale, loss (nats), accuracy in [0, 1] (and accuracy_top5 from 100 classes on).
    """
    scales = list(scales) if isinstance(scales, Sequence | np.ndarray) and not isinstance(scales, str) else [scales]
    wrong = [s for s in scales if not isinstance(s, int | float | np.number) or not 0 <= s < np.inf]
    if wrong or not scales:
        raise ValueError(f"scales: expected finite numbers >= 0, got {wrong[0] if wrong else 'none'!r}")
    for argument, number, low in (("repeats", repeats, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < low:
            raise ValueError(f"{argument}: expected an integer >= {low}, got {number!r}")
    cut, x, y = prepare(model, x, y, layers)
    blocks = list(cut.blocks(len(x)))
    with evaluating(model):
        spread = standard_deviations(cut, x if x_fit is None else check_images(x_fit, "x_fit"))
        sums = torch.zeros(repeats, len(scales), 3 if cut.classes >= 100 else 2, dtype=torch.float64)
        work = repeats * len(scales) * len(x)
        with tqdm(total=work, unit="image", unit_scale=True, desc="noise", delay=2) as bar:
            for repeat in range(repeats):
                for b, block in enumerate(blocks):
                    for i, scale in enumerate(scales):
                        stream = np.random.SeedSequence((int(seed), repeat, b)).generate_state(1, np.uint64)[0]
                        generator = torch.Generator(cut.device).manual_seed(int(stream >> 1))
                        edit = _noisy(float(scale), spread, generator)
                        sums[repeat, i] += scores(cut.run(x[block], edit), y[block]).cpu()
                        bar.update(block.stop - block.start)
    where = {"repeat": np.repeat(np.arange(repeats), len(scales)), "scale": np.tile(np.array(scales, float), repeats)}
    return pd.DataFrame(where | score_columns(sums.flatten(0, 1), len(x)))


def _noisy(scale: float, spread: dict[str, torch.Tensor], generator: torch.Generator):
    def edit(name: str, h: torch.Tensor) -> torch.Tensor:
        draw = torch.randn(h.shape, generator=generator, device=h.device, dtype=h.dtype)
        return h + scale * spread[name] * draw

    return edit


def standard_deviations(cut: Cut, x_fit: torch.Tensor) -> dict[str, torch.Tensor]:
    """Spread of every unit over images and positions: {layer: (1, C) or (1, C, 1, 1)}."""
    sums = {name: torch.zeros(2, units, dtype=torch.float64, device=cut.device) for name, units in cut.layers.items()}
    count = dict.fromkeys(cut.layers, 0)
    for _, activations in cut.activations(x_fit.to(cut.device)):
        for name, h in activations.items():
            h = h.double().transpose(0, 1).flatten(1)  # (C, N · positions)
            sums[name] += torch.stack([h.sum(1), h.square().sum(1)])
            count[name] += h.shape[1]
    spread = {}
    for name, (total, squares) in sums.items():
        variance = (squares - total**2 / count[name]) / count[name]
        spread[name] = variance.clamp_min(0).sqrt().float().reshape((1, -1) + (1,) * (len(cut.shapes[name]) - 1))
    return spread
