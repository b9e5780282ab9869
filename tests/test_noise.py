"""Noise on every unit: its scale against a closed form, and what must not depend on anything else."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from repro import evaluation, models, noise, units, values
from tests import networks, plain

EVERY = {name: rest for name, *rest in networks.every()}


def test_accuracy_equals_its_closed_form():
    """Two units are the two logits: with noise of known spread the chance of a right answer is a normal integral."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 2, generator=generator) * torch.tensor([1.0, 3.0]) + 0.5
    y = x.argmax(1)
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(model[1].weight)
    table = noise.sweep(model, x, y, scales=[0, 0.3, 1, 3], repeats=5)
    spread = x.std(0, correction=0)
    gap = (x[:, 0] - x[:, 1]).abs().double()
    for scale, rows in table.groupby("scale"):
        if scale == 0:
            assert (rows.accuracy == 1).all()
        else:
            z = gap / (scale * spread.square().sum().sqrt() * math.sqrt(2))
            expected = (0.5 * (1 + torch.erf(z))).mean().item()
            assert rows.accuracy.mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", EVERY)
def test_spread_is_that_of_the_activations(name):
    model, x, _ = EVERY[name]
    cut = units.Cut(model, x)
    with evaluation.evaluating(model):
        found = values.standard_deviations(cut, x)
    for layer, h in plain.activations(model, x, cut.layers).items():
        expected = h.double().transpose(0, 1).flatten(1).std(1, correction=0)
        np.testing.assert_allclose(found[layer].flatten(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_without_noise_the_network_is_intact(name):
    model, x, y = EVERY[name]
    table = noise.sweep(model, x, y, scales=[0], repeats=2)
    loss, accuracy = plain.loss_and_accuracy(plain.logits(model, x), y)
    np.testing.assert_allclose(table.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(table.accuracy, accuracy)


@pytest.mark.parametrize("name", EVERY)
def test_a_sweep_equals_the_plain_loop_with_the_same_draws(name):
    model, x, y = EVERY[name]
    cut = units.Cut(model, x)
    scales = [0.1, 1.0]
    table = noise.sweep(model, x, y, scales=scales, repeats=2, seed=4)
    with evaluation.evaluating(model):
        spread = values.standard_deviations(cut, x)
    for row in table.itertuples():
        draws = noise._draw(cut, spread, slice(0, len(x)), (4, row.repeat))  # so few images are one block
        z = plain.logits(model, x, lambda layer, h, d=draws, s=row.scale: h + s * d[layer] if layer in d else h)
        loss, accuracy = plain.loss_and_accuracy(z, y)
        assert row.loss == pytest.approx(loss, rel=1e-4)
        assert abs(row.accuracy - accuracy) <= plain.ties(z) + 1e-9


def test_every_image_unit_and_position_gets_its_own_draw():
    model = models.convnet([6, 6], [1, 1], 3, 2).eval()
    x, _ = networks.images(40, (2, 6, 6), 3)
    cut = units.Cut(model, x)
    one = {name: torch.ones(1, *[1] * len(shape)) for name, shape in cut.shapes.items()}
    draws = noise._draw(cut, one, slice(0, 40), (0, 0))
    flat = torch.cat([draws[name].flatten() for name in cut.shapes])
    assert len(flat.unique()) > 0.999 * len(flat) and abs(flat.mean()) < 0.03 and abs(flat.std() - 1) < 0.03
    again = noise._draw(cut, one, slice(40, 80), (0, 0)), noise._draw(cut, one, slice(0, 40), (0, 1))
    assert all(abs((draws[name] * other[name]).mean()) < 0.05 for other in again for name in cut.shapes)


def test_rows_and_seeds():
    model, x, y = EVERY["mlp"]
    table = noise.sweep(model, x, y, scales=[0.1, 1.0], repeats=3)
    assert list(table) == ["repeat", "scale", "loss", "accuracy"]
    assert table.repeat.tolist() == [0, 0, 1, 1, 2, 2]
    pd.testing.assert_frame_equal(table, noise.sweep(model, x, y, scales=[0.1, 1.0], repeats=3))
    assert table.query("scale == 1").loss.nunique() == 3
    assert not table.equals(noise.sweep(model, x, y, scales=[0.1, 1.0], repeats=3, seed=1))
    alone = noise.sweep(model, x, y, scales=[1.0], repeats=3)
    np.testing.assert_allclose(alone.loss, table.query("scale == 1").loss, rtol=1e-5)  # scales share their draws


def test_a_broken_network_is_not_blamed_on_the_scales():
    model, x, y = (
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        torch.rand(9, 4) * 1e3,
        torch.arange(9) % 2,
    )
    assert len(noise.sweep(model, x, y, scales=torch.tensor([0, 0.5]), repeats=1)) == 2
    with pytest.raises(ValueError, match="^scales: "):
        noise.sweep(model, x, y, scales=[1e38], repeats=1)
    nn.init.constant_(model[2].bias, math.inf)
    with pytest.raises(ValueError, match="^model: "):
        noise.sweep(model, x, y, scales=[0, 0.5], repeats=1)


def test_only_the_named_layers_are_noisy():
    model, x, y = EVERY["mlp"]
    one, two = (noise.sweep(model, x, y, [1.0], layers=[layer]).loss.mean() for layer in ("relu1", "relu2"))
    assert one != two


def test_spread_over_x_fit():
    model, x, y = EVERY["mlp"]
    still = x[:1].expand(5, -1, -1, -1)  # no unit varies: no noise
    table = noise.sweep(model, x, y, [1.0], x_fit=still)
    loss, _ = plain.loss_and_accuracy(plain.logits(model, x), y)
    np.testing.assert_allclose(table.loss, loss, rtol=1e-3)


MODEL, X, Y = EVERY["mlp"]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("scales", dict(scales=[])),
        ("scales", dict(scales=[-1.0])),
        ("scales", dict(scales=[float("nan")])),
        ("scales", dict(scales=["loud"])),
        ("repeats", dict(repeats=0)),
        ("seed", dict(seed=-1)),
        ("layers", dict(layers=["nope"])),
        ("x_fit", dict(x_fit=X[:0])),
        ("x", dict(x=torch.full_like(X, float("nan")))),
        ("y", dict(y=Y.float())),
    ],
)
def test_bad_input_names_the_argument(words, options):
    arguments = dict(x=X, y=Y, scales=[1.0]) | options
    with pytest.raises(ValueError, match=f"^{words}: "):
        noise.sweep(MODEL, **arguments)
