"""Later work's measurements against the plain way: hook, edit, run the whole network."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from repro import ablation, beyond, models, selectivity, units
from repro.values import clamp_values
from tests import networks, plain

EVERY = {name: rest for name, *rest in networks.every()}
SMALL = [name for name in EVERY if name != "resnet"]


# Weights ----------------------------------------------------------------------------------------------------


def folded(convolution, norm):
    """L1 norms of a convolution's weights with a batch norm folded in, a filter each."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (convolution.weight * scale[:, None, None, None]).abs().sum((1, 2, 3)).detach().numpy()


def test_folded_weights_are_those_of_a_network_without_batch_norm():
    model, x, y = EVERY["convnet with batch norm"]
    table = beyond.weights(model, x, y, folded=True)
    for i in range(1, 12):
        ours = table[table.layer == f"relu{i}"].l1_norm
        np.testing.assert_allclose(ours, folded(getattr(model, f"conv{i}"), getattr(model, f"norm{i}")), rtol=1e-5)
    assert not np.allclose(table.l1_norm, beyond.weights(model, x, y).l1_norm)


def test_only_the_batch_norm_that_follows_counts():
    model, x, y = EVERY["residual branch"]
    table, bare = beyond.weights(model, x, y, folded=True), beyond.weights(model, x, y)
    np.testing.assert_allclose(table[table.layer == "above"].l1_norm, folded(model.left, model.norm), rtol=1e-5)
    pd.testing.assert_frame_equal(table[table.layer == "below"], bare[bare.layer == "below"])  # has none
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_frozen_batch_norm_is_folded_too():
    thawed = networks.randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()))
    frozen = nn.Sequential(*thawed)
    frozen[1] = FrozenBatchNorm2d(4)
    frozen[1].load_state_dict({name: v for name, v in thawed[1].state_dict().items() if v.ndim})
    x = torch.randn(2, 3, 4, 4)
    with warnings.catch_warnings(action="error"):  # it can be traced
        ours, theirs = (beyond.weights(model, x, None, ["2"], folded=True) for model in (frozen, thawed))
    assert not [name for name in vars(frozen) if "constant" in name]
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.parametrize("analysis", [beyond.class_drops, beyond.projections, beyond.weights])
def test_a_network_of_nan_is_refused(analysis):
    model = networks.randomized(networks.Residual())
    nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(ValueError, match=r"^(model|value): "):
        analysis(model, *networks.images())


def test_without_batch_norm_there_is_nothing_to_fold():
    model, x, y = EVERY["mlp"]
    pd.testing.assert_frame_equal(beyond.weights(model, x, y, folded=True), beyond.weights(model, x, y))


# Damage to classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_class_drops_equal_the_plain_loop(name):
    model, x, y = EVERY[name]
    layers = dict(list(units.Cut(model, x).layers.items())[-2:])
    table = beyond.class_drops(model, x, y, list(layers))
    zero = plain.constants(model, x, layers)
    intact = plain.logits(model, x).argmax(1) == y
    rows = []
    for layer, n in layers.items():
        for k in range(n):
            edit = plain.clamped(plain.mask(layers, [(layer, k)]), zero)
            change = (plain.logits(model, x, edit).argmax(1) == y).double() - intact.double()
            rows += [(layer, k, c, change[y == c].mean().item()) for c in y.unique().tolist()]
    theirs = pd.DataFrame(rows, columns=["layer", "unit", "class", "delta_accuracy"])
    assert list(table.columns) == ["layer", "unit", "class", "share", "delta_accuracy"]
    assert table[["layer", "unit", "class"]].equals(theirs[["layer", "unit", "class"]])
    np.testing.assert_allclose(table.delta_accuracy, theirs.delta_accuracy, atol=1e-9)
    shares = table.groupby("class").share.first()
    np.testing.assert_allclose(shares, [(y == c).double().mean() for c in shares.index])


def test_classes_make_up_the_whole():
    model, x, y = EVERY["convnet with batch norm"]
    table = beyond.class_drops(model, x, y).merge(selectivity.table(model, x, y)).assign(network="n")
    damage = beyond.class_damage(table)
    whole = ablation.single_unit(model, x, y)
    assert damage[["layer", "unit"]].equals(whole[["layer", "unit"]])
    np.testing.assert_allclose(damage["drop"], -whole.delta_accuracy, atol=1e-9)
    assert (damage.largest_drop >= damage["drop"] - 1e-12).all()
    assert damage.preferred_drop.isna().equals(damage.dead)
    assert (damage.preferred_drop.dropna() <= damage.largest_drop[~damage.dead]).all()


# In order ---------------------------------------------------------------------------------------------------


def by_hand(units, values):
    """Units (layer, unit) by their rank as a share of their layer, dead ones first; equal shares in the order of layers."""
    shares = []
    for position, layer in enumerate(dict.fromkeys(layer for layer, _ in units)):
        mine = [unit for unit in units if unit[0] == layer]
        mine.sort(key=lambda unit: -np.inf if np.isnan(values[unit]) else values[unit])
        shares += [((rank + 1) / len(mine), position, unit) for rank, unit in enumerate(mine)]
    return [unit for _, _, unit in sorted(shares)]


def test_ranked_curves_are_those_of_the_orders_by_hand():
    model, x, y = EVERY["mlp"]
    more = networks.images(60, classes=5, seed=4)
    table = beyond.ranked(model, x, y, *more, steps=20)  # a point per unit: each tells which units are gone
    found = selectivity.table(model, *more).set_index(["layer", "unit"])
    found["importance"] = ablation.single_unit(model, *more).delta_loss.to_numpy()
    found["l1_norm"] = beyond.weights(model, x, y).l1_norm.to_numpy()
    orders = {name: by_hand(list(found.index), found[name]) for name in beyond.PROPERTIES}
    assert len(set(map(tuple, orders.values()))) == 4
    assert list(dict.fromkeys(table.by)) == list(orders)
    for name, ascending in orders.items():
        for direction, order in (("ascending", ascending), ("descending", ascending[::-1])):
            curve = table[(table.by == name) & (table.direction == direction)]
            one = ablation.cumulative(model, x, y, orders=[order], steps=20)
            pd.testing.assert_frame_equal(curve[list(one)].reset_index(drop=True), one, rtol=1e-4)


@pytest.mark.parametrize("argument", ["x", "y", "x_test", "y_test"])
def test_ranked_names_the_images_that_are_bad(argument):
    model, x, y = EVERY["mlp"]
    arguments = dict(x=x, y=y, x_test=x, y_test=y)
    arguments[argument] = arguments[argument][1:] if argument.startswith("y") else x * np.nan
    with pytest.raises(ValueError, match=f"^{argument}: expected "):
        beyond.ranked(model, **arguments, by=["selectivity"])


def test_every_layer_loses_the_same_share_and_dead_units_go_first(monkeypatch):
    model, x, y = EVERY["convnet without"]
    given = {}
    whole = ablation.cumulative

    def remember(*arguments, orders, **options):
        given["orders"] = orders
        return whole(*arguments, orders=orders, **options)

    monkeypatch.setattr(ablation, "cumulative", remember)
    layers = ["relu9", "relu10", "relu11"]
    table = beyond.ranked(model, x, y, x, y, layers, by=["selectivity"], steps=4)
    assert table[["by", "direction"]].drop_duplicates().to_numpy().tolist() == [
        ["selectivity", "ascending"],
        ["selectivity", "descending"],
    ]
    ascending, descending = given["orders"]
    assert descending == ascending[::-1]
    sizes = units.Cut(model, x, layers).layers
    for n in range(len(ascending) + 1):
        taken = [sum(layer == name for layer, _ in ascending[:n]) for name in layers]
        shares = [count / sizes[name] for count, name in zip(taken, layers, strict=True)]
        assert max(shares) - min(shares) <= max(1 / size for size in sizes.values()) + 1e-9
    found = selectivity.table(model, x, y, layers).set_index(["layer", "unit"]).selectivity.fillna(-1)
    for name in layers:
        assert found[[unit for unit in ascending if unit[0] == name]].is_monotonic_increasing


@pytest.mark.parametrize("by", ["selectivity", [], ["depth"]])
def test_an_unknown_property_is_refused(by):
    model, x, y = EVERY["mlp"]
    with pytest.raises(ValueError, match="^by: expected some of selectivity, mutual_information, importance, l1_norm"):
        beyond.ranked(model, x, y, x, y, by=by)


# Random directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_projections_run_from_intact_to_all_units_ablated(name):
    model, x, y = EVERY[name]
    ours = beyond.projections(model, x, y, orders=2, steps=4)
    theirs = ablation.cumulative(model, x, y, orders=2, steps=4)
    pd.testing.assert_frame_equal(ours[list(theirs.columns)[:3]], theirs[list(theirs.columns)[:3]])
    ends = ours.fraction_ablated.isin([0, 1])
    np.testing.assert_allclose(ours.loss[ends], theirs.loss[ends], rtol=2e-5, atol=2e-5)


def test_projections_equal_the_plain_way():
    model, x, y = EVERY["mlp"]
    ours = beyond.projections(model, x, y, orders=1, steps=2, seed=5)
    bases = beyond._bases(units.Cut(model, x), (5, 0))
    for basis in bases.values():
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)), atol=1e-5, rtol=0)

    def edit(name, h):
        gone = bases[name][:, : round(len(bases[name]) / 2)] if name in bases else None
        return h if gone is None else h - h @ gone @ gone.T

    loss, accuracy = plain.loss_and_accuracy(plain.logits(model, x, edit), y)
    assert ours.loss[1] == pytest.approx(loss, abs=1e-5)
    assert ours.accuracy[1] == pytest.approx(accuracy, abs=1.5 / len(x))


def test_bases_differ_between_orders_layers_and_seeds():
    model, x, y = EVERY["deep mlp"]
    curves = beyond.projections(model, x, y, orders=2, steps=3)
    pd.testing.assert_frame_equal(curves, beyond.projections(model, x, y, orders=2, steps=3))
    assert not np.allclose(curves.loss[curves.order == 0], curves.loss[curves.order == 1])
    assert not np.allclose(curves.loss, beyond.projections(model, x, y, orders=2, steps=3, seed=1).loss)


@pytest.mark.parametrize(
    ("argument", "options"), [("orders", {"orders": 0}), ("steps", {"steps": 0}), ("seed", {"seed": -1})]
)
def test_bad_numbers_are_named(argument, options):
    model, x, y = EVERY["mlp"]
    with pytest.raises(ValueError, match=f"^{argument}: "):
        beyond.projections(model, x, y, **options)


# Resampled activations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "convnet with batch norm", "residual branch"])
def test_resampled_ablation_equals_the_plain_way(name):
    model, x, y = EVERY[name]
    layers = dict(list(units.Cut(model, x).layers.items())[-2:])
    values = clamp_values(units.Cut(model, x, list(layers)), "resampled", x)
    table = ablation.single_unit(model, x, y, list(layers), "resampled")
    for row in table.iloc[::3].itertuples():

        def edit(layer, h, row=row):
            if layer == row.layer:
                h = h.clone()
                h[:, row.unit] = values[layer][:, row.unit]
            return h

        loss, _ = plain.loss_and_accuracy(plain.logits(model, x, edit), y)
        assert row.loss == pytest.approx(loss, abs=2e-5)
    curves = ablation.cumulative(model, x, y, list(layers), orders=2, steps=3, value="resampled")
    loss, _ = plain.loss_and_accuracy(plain.logits(model, x, lambda layer, h: values.get(layer, h)), y)
    np.testing.assert_allclose(curves.loss[curves.fraction_ablated == 1], loss, atol=2e-5)


def test_resampled_values_are_activations_on_other_images():
    model, x, _ = EVERY["convnet with batch norm"]
    cut = units.Cut(model, x, ["relu9", "relu11"])
    other = networks.images(20, seed=8)[0]
    values = clamp_values(cut, "resampled", x, other)
    for layer, h in plain.activations(model, other, ["relu9", "relu11"]).items():
        assert values[layer].shape == (len(x), *h.shape[1:])
        donors = [[(h[:, k] - value[k]).abs().flatten(1).sum(1).argmin() for k in (0, 1)] for value in values[layer]]
        for image, pair in enumerate(donors):
            for k, donor in enumerate(pair):
                torch.testing.assert_close(values[layer][image, k], h[donor, k], atol=1e-5, rtol=0)
    active = [k for k in range(h.shape[1]) if h[:, k].flatten(1).sum(1).unique().numel() == len(other)][:2]
    draws = [[int((h[:, k] - v[k]).abs().flatten(1).sum(1).argmin()) for v in values["relu11"]] for k in active]
    assert len(draws) == 2 and draws[0] != draws[1]  # each unit has draws of its own


def test_damage_to_classes_asks_for_its_columns():
    with pytest.raises(ValueError, match="^table: expected a DataFrame, got NoneType"):
        beyond.class_damage(None)
    with pytest.raises(ValueError, match="^table: expected a column 'layer', found network"):
        beyond.class_damage(pd.DataFrame({"network": ["a"]}))


def test_folded_is_a_yes_or_no():
    model, x = models.mlp(4, [3], 2), torch.randn(4, 1, 2, 2)
    with pytest.raises(ValueError, match="^folded: expected True or False, got 'no'"):
        beyond.weights(model, x, None, folded="no")
