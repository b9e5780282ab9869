"""Selectivity and mutual information, against hand-made cases and plain twins."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repro import selectivity, units
from tests import networks, plain

EVERY = {name: rest for name, *rest in networks.every()}


def test_index_of_hand_made_units():
    means = [[4.0, 0.0, 0.0], [1.0, 1.0, 1.0], [3.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(selectivity.selectivity_index(means), [1, 0, 0.5, np.nan])


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=4, max_size=4), min_size=1, max_size=20))
def test_index_lies_between_0_and_1(means):
    index = selectivity.selectivity_index(np.array(means))
    dead = (np.array(means) == 0).all(1)
    assert (np.isnan(index) == dead).all()
    assert ((index[~dead] >= 0) & (index[~dead] <= 1)).all()


@pytest.mark.parametrize("means", [[[1.0, -1.0]], [[1.0, np.nan]], [[1.0]], [1.0, 2.0]])
def test_index_refuses(means):
    with pytest.raises(ValueError, match="^class_means: "):
        selectivity.selectivity_index(np.array(means))


def test_information_of_a_unit_that_knows_the_class():
    y = np.arange(4000) % 4
    found = selectivity.mutual_information(np.stack([y + 1.0, (y == 2) * 1.0, np.zeros(4000)], 1), y, bins=8)
    one = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    np.testing.assert_allclose(found, [2.0, one, 0.0], atol=0.01)


def test_information_of_unrelated_units_is_not_overrated():
    rng = np.random.default_rng(0)
    a, y = np.maximum(rng.normal(size=(360, 200)), 0), rng.integers(0, 10, 360)
    found = selectivity.mutual_information(a, y)
    assert found.mean() < 0.1  # without the correction about 0.2; clipping at zero leaves a little
    assert (found >= 0).all() and (found <= math.log2(10)).all()


def test_information_equals_a_plain_twin():
    """Dictionaries of counts in place of arrays, one unit at a time."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 200)
    a = np.maximum(rng.normal(size=(200, 6)) + (y == 1)[:, None], 0)
    a[:, 4] = np.round(a[:, 4])  # ties
    expected = []
    for unit in a.T:
        edges = np.quantile(unit[unit != 0], np.arange(1, 10) / 10)
        bins = [0 if v == 0 else 1 + sum(v >= e for e in edges) for v in unit]
        entropies = []
        for outcomes in (bins, list(y), list(zip(bins, y, strict=True))):
            counts = {}
            for outcome in outcomes:
                counts[outcome] = counts.get(outcome, 0) + 1
            h = -sum(c / 200 * math.log(c / 200) for c in counts.values()) + (len(counts) - 1) / 400
            entropies.append(h / math.log(2))
        expected.append(min(max(entropies[0] + entropies[1] - entropies[2], 0), math.log2(3)))
    np.testing.assert_allclose(selectivity.mutual_information(a, y, bins=10), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("activations", (np.ones(5), np.arange(5))),
        ("activations", (np.full((5, 2), np.nan), np.arange(5))),
        ("y", (np.ones((5, 2)), np.zeros(5, int))),
        ("y", (np.ones((5, 2)), np.arange(4))),
        ("y", (np.ones((5, 2)), np.linspace(0, 1, 5))),
        ("y", (np.ones((5, 2)), np.linspace(0, 1, 5)[::-1])),
        ("bins", (np.ones((5, 2)), np.arange(5), 1)),
    ],
)
def test_information_refuses(words, arguments):
    with pytest.raises(ValueError, match=f"^{words}: "):
        selectivity.mutual_information(*arguments)


FORMS = {
    "reversed": lambda y: y[::-1].copy()[::-1],
    "big-endian": lambda y: y.astype(">i8"),
    "read-only": lambda y: np.broadcast_to(y, y.shape),
    "unsigned": lambda y: y.astype(np.uint16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_labels_in_any_form_are_the_same_labels(form):
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 60)
    a = np.maximum(rng.normal(size=(60, 4)) + y[:, None], 0)
    expected = selectivity.mutual_information(a, y)
    np.testing.assert_array_equal(selectivity.mutual_information(a, FORMS[form](y)), expected)


@pytest.mark.parametrize("name", EVERY)
def test_table_has_the_information_of_hooked_activations(name):
    model, x, y = EVERY[name]
    table = selectivity.table(model, x, y)
    for layer, h in plain.activations(model, x, units.Cut(model, x).layers).items():
        expected = selectivity.mutual_information(h.flatten(2).mean(2) if h.ndim == 4 else h, y)
        np.testing.assert_allclose(table[table.layer == layer].mutual_information, expected, atol=1e-9)
    assert table.mutual_information.max() > 0.1


@pytest.mark.parametrize("name", ["mlp", "convnet without"])
def test_a_network_in_bfloat16_is_measured(name):
    model, x, y = EVERY[name]
    model, x = copy.deepcopy(model).bfloat16(), x.bfloat16()
    table = selectivity.table(model, x, y)
    for layer, h in plain.activations(model, x, units.Cut(model, x).layers).items():
        rows, a = table[table.layer == layer], (h.float().flatten(2).mean(2) if h.ndim == 4 else h.float())
        means = torch.stack([a[y == c].double().mean(0) for c in range(5)], 1)
        np.testing.assert_allclose(rows.selectivity, selectivity.selectivity_index(means), atol=1e-6)
        np.testing.assert_allclose(rows.mutual_information, selectivity.mutual_information(a, y), atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_table_equals_class_means_of_hooked_activations(name):
    model, x, y = EVERY[name]
    table = selectivity.table(model, x, y)
    layers = units.Cut(model, x).layers
    assert list(table) == ["layer", "unit", "selectivity", "mutual_information", "preferred_class", "dead"]
    assert list(table.layer.unique()) == list(layers)
    for layer, h in plain.activations(model, x, layers).items():
        rows = table[table.layer == layer]
        a = h.double().flatten(2).mean(2) if h.ndim == 4 else h.double()
        for unit in range(a.shape[1]):
            means = [a[y == c, unit].mean().item() for c in range(int(y.max()) + 1)]
            row = rows.iloc[unit]
            top = max(means)
            if top == 0:
                assert row.dead and row.preferred_class == -1 and np.isnan(row.selectivity)
                continue
            rest = (sum(means) - top) / (len(means) - 1)
            assert row.selectivity == pytest.approx((top - rest) / (top + rest), abs=1e-4)
            assert means[row.preferred_class] == pytest.approx(top, rel=1e-4)


def test_dead_units_are_told():
    model, x, y = EVERY["mlp"]
    assert selectivity.table(model, x, y).query("unit == 2").dead.all()


def test_negative_activations_are_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 6), torch.nn.GELU(), torch.nn.Linear(6, 3))
    x, y = networks.images(40, (3, 2, 2), 3)
    with pytest.raises(ValueError, match="layers: .* mean activations >= 0"):
        selectivity.table(model, x - 3, y)


@pytest.mark.parametrize("words", ["x", "y", "layers"])
def test_table_names_the_argument(words):
    model, x, y = EVERY["mlp"]
    bad = {"x": dict(x=x * np.nan), "y": dict(y=y[:3]), "layers": dict(layers=["nope"])}[words]
    with pytest.raises(ValueError, match=f"^{words}: "):
        selectivity.table(model, **(dict(x=x, y=y) | bad))
