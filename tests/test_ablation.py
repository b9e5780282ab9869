"""Every fast path against the plain one: hook, clamp, run the whole network."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from repro import ablation, models, units
from tests import networks, plain

EVERY = {name: rest for name, *rest in networks.every()}
VALUES = ["zero", "mean", "mean_per_position"]


def close(ours, theirs):
    """Losses to float32 rounding; accuracies but for images whose two highest logits lie within 1e-4."""
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=2e-5, atol=2e-5)
    if "delta_loss" in ours:
        np.testing.assert_allclose(ours["delta_loss"], theirs["delta_loss"], rtol=2e-5, atol=2e-5)
    assert ((ours["accuracy"] - theirs["accuracy"]).abs() <= theirs["ties"] + 1e-9).all()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", EVERY)
def test_single_unit_equals_the_plain_loop(name, value):
    model, x, y = EVERY[name]
    names = list(units.Cut(model, x).layers)
    names = names if len(names) < 12 else names[:2] + names[-3:]
    ours = ablation.single_unit(model, x, y, names, value)
    layers = units.Cut(model, x, names).layers
    rng = np.random.default_rng(0)
    every = [(layer, k) for layer, n in layers.items() for k in range(n)]
    chosen = [every[i] for i in sorted(rng.permutation(len(every))[:40])]
    theirs = plain.single_unit(model, x, y, layers, value, units=chosen)
    assert list(zip(ours.layer, ours.unit, strict=True)) == every
    ours = theirs[["layer", "unit"]].merge(ours)
    close(ours, theirs)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", EVERY)
def test_cumulative_equals_the_plain_loop(name, value):
    model, x, y = EVERY[name]
    layers = list(units.Cut(model, x).layers)[-3:]
    found = units.Cut(model, x, layers).layers
    ours = ablation.cumulative(model, x, y, layers, orders=2, steps=6, value=value, seed=3)
    sequences = ablation.sequences(units.Cut(model, x, layers).units, 2, 3)
    counts = sorted(ours.n_ablated.unique())
    theirs = plain.cumulative(model, x, y, found, sequences, counts, value)
    assert (ours.order.to_numpy() == theirs.order.to_numpy()).all()
    assert (ours.n_ablated.to_numpy() == theirs.n_ablated.to_numpy()).all()
    close(ours, theirs)


@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    n=st.integers(2, 30),
    steps=st.integers(1, 40),
    value=st.sampled_from([*VALUES, "given"]),
    seed=st.integers(0, 10**6),
)
def test_any_mlp(widths, n, steps, value, seed):
    model = networks.randomized(models.mlp(12, widths, 3), seed)
    x, y = networks.images(max(n, 3), (3, 2, 2), 3, seed)
    layers = units.Cut(model, x).layers
    if value == "given":
        value = {name: torch.randn(k, generator=torch.Generator().manual_seed(seed)) for name, k in layers.items()}
    close(ablation.single_unit(model, x, y, value=value), plain.single_unit(model, x, y, layers, value))
    ours = ablation.cumulative(model, x, y, orders=1, steps=steps, value=value, seed=seed)
    sequence = ablation.sequences(units.Cut(model, x).units, 1, seed)[0]
    theirs = plain.cumulative(model, x, y, layers, [sequence], list(ours.n_ablated), value)
    close(ours, theirs)


@given(
    channels=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    strides=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    batch_norm=st.booleans(),
    value=st.sampled_from(VALUES),
    seed=st.integers(0, 10**6),
)
def test_any_convnet(channels, strides, batch_norm, value, seed):
    model = models.convnet(channels, strides[: len(channels)], 3, 2, batch_norm)
    model = networks.randomized(model, seed)
    x, y = networks.images(11, (2, 6, 6), 3, seed)
    layers = units.Cut(model, x).layers
    close(ablation.single_unit(model, x, y, value=value), plain.single_unit(model, x, y, layers, value))
    ours = ablation.cumulative(model, x, y, orders=1, steps=7, value=value, seed=seed)
    sequence = ablation.sequences(units.Cut(model, x).units, 1, seed)[0]
    theirs = plain.cumulative(model, x, y, layers, [sequence], list(ours.n_ablated), value)
    close(ours, theirs)


def test_orders_are_different_ones_of_the_units_of_all_layers():
    model, x, y = EVERY["deep mlp"]
    curves = ablation.cumulative(model, x, y, orders=3, steps=20)
    assert len({tuple(curve.loss) for _, curve in curves.groupby("order")}) == 3
    every = units.Cut(model, x).units
    orders = ablation.sequences(every, 50, 0)
    assert all(sorted(order) == sorted(every) for order in orders)
    first = pd.Series([order[0][0] for order in orders]).value_counts()  # a layer has its share of the first places
    assert first["relu1"] > first["relu4"] > 0 and len(first) == 4


def test_functional_relus_count_as_modules_do():
    modules, functions = networks.randomized(networks.Residual()), networks.randomized(networks.Functional())
    functions.load_state_dict(modules.state_dict())
    x, y = networks.images()
    ours, theirs = (ablation.single_unit(model, x, y) for model in (functions, modules))
    assert ours.layer.unique().tolist() == ["relu", "relu_1"]
    pd.testing.assert_frame_equal(ours.drop(columns="layer"), theirs.drop(columns="layer"))


def test_values_per_unit_and_position():
    model, x, y = EVERY["convnet without"]
    shapes = units.Cut(model, x).shapes
    generator = torch.Generator().manual_seed(0)
    value = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    layers = units.Cut(model, x).layers
    close(
        ablation.single_unit(model, x, y, ["relu2"], value=value),
        plain.single_unit(model, x, y, {"relu2": layers["relu2"]}, value),
    )


def test_means_are_taken_over_x_fit():
    model, x, y = EVERY["mlp"]
    layers = units.Cut(model, x).layers
    other = networks.images(50, seed=9)[0]
    ours = ablation.single_unit(model, x, y, value="mean", x_fit=other)
    close(ours, plain.single_unit(model, x, y, layers, "mean", x_fit=other))
    assert not np.allclose(ours.loss, ablation.single_unit(model, x, y, value="mean").loss)


def test_columns_and_points():
    model, x, y = EVERY["mlp"]
    table = ablation.single_unit(model, x, y)
    assert list(table) == ["layer", "unit", "loss", "accuracy", "delta_loss", "delta_accuracy"]
    curves = ablation.cumulative(model, x, y, orders=3, steps=4)
    assert list(curves) == ["order", "n_ablated", "fraction_ablated", "loss", "accuracy"]
    assert curves.query("order == 0").n_ablated.tolist() == [0, 5, 10, 15, 20]
    assert curves.fraction_ablated.max() == 1
    assert ablation.cumulative(model, x, y, orders=1, steps=500).n_ablated.tolist() == list(range(21))
    pd.testing.assert_frame_equal(curves, ablation.cumulative(model, x, y, orders=3, steps=4))
    assert not curves.equals(ablation.cumulative(model, x, y, orders=3, steps=4, seed=1))


def test_top5_from_a_hundred_classes_on():
    model = networks.randomized(models.mlp(12, [10], 100))
    x, y = networks.images(20, (3, 2, 2), 100 // 10)
    curve = ablation.cumulative(model, x, y, orders=1, steps=2)
    top5 = (model(x).topk(5).indices == y[:, None]).any(1).double().mean().item()
    assert curve.accuracy_top5[0] == pytest.approx(top5)
    assert "accuracy_top5" in ablation.single_unit(model, x, y)


def test_of_equal_logits_the_first_count_also_among_five():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 120, bias=False))
    x, y = torch.randn(30, 12), torch.arange(30) % 10
    ablated = ablation.cumulative(model, x, y, orders=1, steps=1).iloc[-1]
    assert (ablated.accuracy, ablated.accuracy_top5) == (0.1, 0.5)


@pytest.mark.parametrize("widths", [[4], [24], [12, 8]])
def test_equal_logits_stay_equal_where_all_that_is_left_is_silent(widths):
    """Without biases: rounding in what is subtracted would pick any class, and move accuracies by whole images."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 16, generator=generator), torch.arange(300) % 5
    model = models.mlp(16, widths, 5).eval()  # biases start at zero
    layers = dict(units.unit_layers(model, x))
    orders = ablation.sequences([(name, k) for name, n in layers.items() for k in range(n)], 3, 0)
    curves = ablation.cumulative(model, x, y, orders=orders, steps=40)
    counts = curves.n_ablated.unique()
    assert curves.accuracy.tolist() == pytest.approx(plain.cumulative(model, x, y, layers, orders, counts).accuracy)
    alone, truth = ablation.single_unit(model, x, y), plain.single_unit(model, x, y, layers)
    assert alone.accuracy.tolist() == pytest.approx(truth.accuracy)


def test_orders_given_by_hand():
    model, x, y = EVERY["mlp"]
    some = [("relu2", 3), ("relu1", 0), ("relu1", 4)]
    curve = ablation.cumulative(model, x, y, orders=[some], steps=3)
    assert curve.n_ablated.tolist() == [0, 1, 2, 3]
    assert curve.fraction_ablated.iloc[-1] == pytest.approx(3 / 20)
    close(curve, plain.cumulative(model, x, y, units.Cut(model, x).layers, [some], [0, 1, 2, 3]))


def test_a_fully_ablated_network_answers_with_its_bias():
    model, x, y = EVERY["mlp"]
    curve = ablation.cumulative(model, x, y, orders=1, steps=1)
    loss = torch.nn.functional.cross_entropy(model.head.bias.expand(len(y), -1), y).item()
    assert curve.loss.iloc[-1] == pytest.approx(loss, rel=1e-6)


def test_auc():
    curves = pd.DataFrame(
        {
            "network": ["a"] * 6,
            "order": [0, 0, 0, 1, 1, 1],
            "fraction_ablated": [0, 0.5, 1.0, 1.0, 0, 0.5],
            "accuracy": [1.0, 0.5, 0.0, 0.2, 0.8, 0.8],
        }
    )
    assert ablation.auc(curves).to_dict() == pytest.approx({0: 0.5, 1: 0.65})
    assert ablation.auc(curves, normalize=True).to_dict() == pytest.approx({0: 0.5, 1: 0.8125})
    assert ablation.auc(curves, by=["network", "order"])["a", 1] == pytest.approx(0.65)
    with pytest.raises(ValueError, match="^by: the curves have no column 'epoch'; expected some of network, order"):
        ablation.auc(curves, by="epoch")
    with pytest.raises(ValueError, match="^curves: expected a table with columns accuracy"):
        ablation.auc(curves.drop(columns="accuracy"))
    with pytest.raises(ValueError, match="^by: order does not tell the curves apart"):
        ablation.auc(pd.concat([curves, curves.assign(network="b")]))
    with pytest.raises(ValueError, match="^normalize: expected a point at fraction_ablated 0 in every curve"):
        ablation.auc(curves[1:], normalize=True)
    with pytest.raises(ValueError, match="^curves: expected fractions from 0 to 1"):
        ablation.auc(curves.assign(fraction_ablated=2 * curves.fraction_ablated))
    with pytest.raises(ValueError, match="curves"):
        ablation.auc(curves[:0])


@pytest.mark.parametrize("normalize", [False, True])
def test_areas_of_many_curves_are_those_of_each_by_itself(normalize):
    rng, parts = np.random.default_rng(0), []
    for (network, order), n in zip(product("ab", [0.0, 1.0, np.nan]), [1, 2, 9, 21, 9, 30], strict=True):
        points = {"fraction_ablated": np.r_[0, rng.random(n - 1)], "accuracy": rng.random(n) * (n != 21)}
        parts.append(pd.DataFrame(points | {"network": network, "order": order}))
    by, curves = ["network", "order"], pd.concat(parts).sample(frac=1, random_state=0)
    areas, expected = ablation.auc(curves, by, normalize), []
    for _, curve in curves.groupby(by, sort=False, dropna=False):
        curve = curve.sort_values("fraction_ablated")
        intact = curve["accuracy"].iloc[0] if normalize else 1
        expected.append(np.trapezoid(curve["accuracy"], curve["fraction_ablated"]) / (intact or np.nan))
    assert areas.isna().sum() == normalize and len(areas) == 6
    pd.testing.assert_series_equal(areas, pd.Series(expected, areas.index, name="auc"), check_exact=True)


MODEL, X, Y = EVERY["mlp"]
BAD = {
    "x: expected finite": dict(x=torch.full_like(X, float("nan"))),
    "x: expected a floating": dict(x=X.long()),
    "x: expected at least one": dict(x=X[:0], y=Y[:0]),
    "x: the model cannot run": dict(x=X[:, :2]),
    "y: expected a tensor of integer": dict(y=Y.float()),
    "y: expected 37 labels": dict(y=Y[:-1]),
    "y: expected labels from 0 to 4": dict(y=Y + 1),
    "y: expected labels from 0": dict(y=Y - 1),
    "y: expected images of at least two": dict(y=torch.zeros_like(Y)),
    "layers: the model has no layer": dict(layers=["nope"]),
    "value: expected zero, mean": dict(value="median"),
    "value: expected a tensor of shape": dict(value={"relu1": torch.zeros(3)}),
    "value: expected finite": dict(value={"relu1": torch.full((11,), torch.inf), "relu2": torch.zeros(9)}),
    "value: the model has no layer 'relu3'; expected tensors for relu1, relu2": dict(
        value={"relu1": torch.zeros(11), "relu2": torch.zeros(9), "relu3": torch.zeros(9)}
    ),
    "x_fit: expected finite": dict(value="mean", x_fit=torch.full_like(X, float("inf"))),
    "model: expected an nn": dict(model=None),
}


@pytest.mark.parametrize("name", ["mlp", "untraceable"])
@pytest.mark.filterwarnings("ignore:the model is measured through hooks")
def test_values_of_layers_that_stay_intact_do_no_harm(name):
    untraceable = networks.randomized(networks.Untraceable()), *networks.images(shape=(3, 2, 2), classes=4)
    model, x, y = EVERY.get(name, untraceable)
    layers = units.Cut(model, x).layers
    *_, last = layers
    value = {layer: torch.ones(n) for layer, n in layers.items()}
    alone = ablation.single_unit(model, x, y, [last], value={last: value[last]})
    pd.testing.assert_frame_equal(ablation.single_unit(model, x, y, [last], value=value), alone)
    with pytest.raises(ValueError, match=f"^value: the model has no layer 'nope'; expected tensors for {last}$"):
        ablation.single_unit(model, x, y, [last], value=value | {"nope": value[last]})


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("analysis", [ablation.single_unit, ablation.cumulative])
def test_bad_input_names_the_argument(analysis, words):
    arguments = dict(model=MODEL, x=X, y=Y) | BAD[words]
    with pytest.raises(ValueError, match=f"^{words}"):
        analysis(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("steps", dict(steps=0)),
        ("steps", dict(steps=2.5)),
        ("orders", dict(orders=0)),
        ("orders", dict(orders=[])),
        ("orders", dict(orders=[[("relu1", 99)]])),
        ("orders", dict(orders=[[("relu1", 1), ("relu1", 1)]])),
        ("orders", dict(orders="all")),
        ("seed", dict(seed=-1)),
    ],
)
def test_bad_options_name_the_argument(words, options):
    with pytest.raises(ValueError, match=f"^{words}: expected"):
        ablation.cumulative(MODEL, X, Y, **options)


@pytest.mark.parametrize("channels", [1, ablation.FEW, ablation.FEW + 1, 50])
def test_the_first_active_channel_is_found_among_few_and_many(channels):
    active = torch.rand(channels, 300, generator=torch.Generator().manual_seed(0)) < 0.1
    active[:, :20] = False
    active[:-1, 20:40], active[-1, 20:40] = False, True
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(1))
    expected = [next((at for at, c in enumerate(order) if active[c, i]), channels) for i in range(300)]
    assert ablation._first_active(active, order).tolist() == expected
