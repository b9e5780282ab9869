"""What units do on images: their activations, their means, which they may be clamped to, and their spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from repro.checks import check_fit, check_value
from repro.units import Cut
from repro.work import progress

VALUES = ("zero", "mean", "mean_per_position", "resampled")


def activations(cut: Cut, x: torch.Tensor) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
    """Blocks of images with the activations (n, C) or (n, C, H, W) of every layer."""
    x = x.to(cut.device)
    with progress(total=len(x), desc="activations") as bar:
        for block in cut.blocks(len(x)):
            kept: dict[str, torch.Tensor] = {}
            cut.run(x[block], lambda name, h, kept=kept: kept.setdefault(name, h))
            if missing := cut.layers.keys() - kept.keys():
                raise ValueError(f"layers: {sorted(missing)[0]!r} does not run on all images; leave it out")
            yield block, kept
            bar.update(block.stop - block.start)


def clamp_values(
    cut: Cut, value: str | Mapping[str, torch.Tensor], x: torch.Tensor, x_fit: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """What each unit is clamped to, on the model's device: {layer: (1, C), (1, C, 1, 1) or (1, C, H, W)}; if "resampled", another
    value on each image of x: (N, C, ...)."""
    x_fit = check_fit(x_fit, x)
    if isinstance(value, Mapping):
        if unknown := value.keys() - cut.program.layers.keys():  # those of layers that stay intact do no harm
            names = ", ".join(sorted(map(repr, unknown)))
            raise ValueError(f"value: the model has no layer {names}; expected tensors for {', '.join(cut.shapes)}")
        given = {name: check_value(value.get(name), name, shape, cut.dtype) for name, shape in cut.shapes.items()}
        return {name: tensor.to(cut.device) for name, tensor in given.items()}
    if not isinstance(value, str) or value not in VALUES:
        raise ValueError(f"value: expected {', '.join(VALUES)} or {{layer: tensor}}, got {value!r}")
    if value == "zero":
        ones = {name: (1, s[0], *[1] * (len(s) - 1)) for name, s in cut.shapes.items()}
        return {name: torch.zeros(one, dtype=cut.dtype, device=cut.device) for name, one in ones.items()}
    if value == "resampled":
        return _resampled(cut, x_fit, len(x))
    means = _means(cut, x_fit, over_positions if value == "mean" else lambda h: h)
    return {name: mean.to(cut.dtype) for name, mean in means.items()}


def _resampled(cut: Cut, x_fit: torch.Tensor, n: int) -> dict[str, torch.Tensor]:
    """Activations on images drawn with replacement, for each unit its own draws: {layer: (n, C, ...)}."""
    generator, blocks = torch.Generator().manual_seed(0), [h for _, h in activations(cut, x_fit)]
    found = {}
    for name, units in cut.layers.items():
        h = torch.cat([block.pop(name) for block in blocks])
        donors = torch.randint(len(h), (n, units), generator=generator, device="cpu").to(cut.device)
        found[name] = h[donors, torch.arange(units, device=cut.device)]
    return found


def standard_deviations(cut: Cut, x: torch.Tensor, x_fit: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Spread of every unit over images and positions: {layer: (1, C) or (1, C, 1, 1)}."""
    moments = _means(
        cut, check_fit(x_fit, x), lambda h: torch.stack([over_positions(h), over_positions(h.square())], 1)
    )
    found = {}
    for name, both in moments.items():
        mean, square = both.unbind(1)
        found[name] = (square - mean.square()).clamp_min(0).sqrt().to(cut.dtype)
    return found


def _means(cut: Cut, x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over images of a function of each layer's activations, in double precision: {layer: (1, ...)}."""
    totals = dict.fromkeys(cut.layers, 0.0)
    for _, block in activations(cut, x):
        for name, h in block.items():
            totals[name] = totals[name] + function(h.double()).sum(0, keepdim=True)
    return {name: total / len(x) for name, total in totals.items()}


def over_positions(h: torch.Tensor) -> torch.Tensor:
    """Activations, those of feature maps averaged over space: (n, C) or (n, C, 1, 1)."""
    return h if h.ndim == 2 else h.mean((2, 3), keepdim=True)
