"""What other programs rely on: names, arguments with their defaults, columns in their order, the least that counts may be."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from repro import ablation, beyond, claims, data, experiment, models, noise, selectivity, training, units
from repro.recipe import STREAMS, Recipe

CHANNELS, STRIDES = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512), (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)
NEEDED = inspect.Parameter.empty
OF_MODEL = {"model": NEEDED, "x": NEEDED, "y": NEEDED}
SIGNATURES = {
    data.load: {"name": NEEDED, "root": None},
    data.shuffle_labels: {"y": NEEDED, "fraction": NEEDED, "seed": NEEDED},
    models.mlp: {"inputs": NEEDED, "widths": NEEDED, "classes": NEEDED, "dropout": 0.0},
    models.convnet: {"channels": CHANNELS, "strides": STRIDES, "classes": 10, "in_channels": 3, "batch_norm": True},
    models.resnet50: {"classes": 1000, "width": 1.0, "in_channels": 3, "small_images": False},
    units.unit_layers: {"model": NEEDED, "x": NEEDED},
    ablation.single_unit: OF_MODEL | {"layers": None, "value": "zero", "x_fit": None},
    ablation.cumulative: OF_MODEL
    | {"layers": None, "orders": 10, "steps": 20, "value": "zero", "seed": 0, "x_fit": None},
    ablation.auc: {"curves": NEEDED, "by": "order", "normalize": False},
    noise.sweep: OF_MODEL | {"scales": NEEDED, "repeats": 10, "layers": None, "seed": 0, "x_fit": None},
    selectivity.selectivity_index: {"class_means": NEEDED},
    selectivity.mutual_information: {"activations": NEEDED, "y": NEEDED, "bins": 10},
    selectivity.table: OF_MODEL | {"layers": None},
    training.train: {"recipe": NEEDED},
    # A default is not written into a table's origin: with another one, tables of the old one would be taken for its.
    beyond.class_drops: OF_MODEL | {"layers": None},
    beyond.ranked: OF_MODEL
    | {"x_test": NEEDED, "y_test": NEEDED, "layers": None}
    | {"by": ("selectivity", "mutual_information", "importance", "l1_norm"), "steps": 20},
    beyond.projections: OF_MODEL | {"layers": None, "orders": 10, "steps": 20, "seed": 0},
}
OPEN = {  # which may take more than these
    training.Recipe: "dataset n_train model width strides batch_norm dropout init corruption optimizer lr momentum "
    "weight_decay schedule batch_size epochs precision seed",
    experiment.measure: "analysis recipes split options",
    claims.check: "claim_id table",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_arguments_and_defaults_are_the_promised_ones(function):
    parameters = inspect.signature(function).parameters.values()
    assert [(p.name, p.default) for p in parameters] == list(SIGNATURES[function].items())


@pytest.mark.parametrize("function", OPEN, ids=lambda f: f.__name__)
def test_arguments_are_among_the_promised_ones(function):
    assert set(OPEN[function].split()) <= set(inspect.signature(function).parameters)


def test_a_data_set_has_these_fields_and_no_other():
    names = [field.name for field in dataclasses.fields(data.Dataset)]
    assert names == ["name", "x_train", "y_train", "x_test", "y_test", "classes"]


@pytest.fixture(scope="module")
def given():
    """A network on handwritten digits; images, labels."""
    digits = data.load("digits")
    return models.mlp(64, [6, 5], 10).eval(), digits.x_test[:60], digits.y_test[:60]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (lambda *given: ablation.single_unit(*given), "layer unit loss accuracy delta_loss delta_accuracy"),
        (
            lambda *given: ablation.cumulative(*given, orders=1, steps=1),
            "order n_ablated fraction_ablated loss accuracy",
        ),
        (lambda *given: noise.sweep(*given, scales=[0.5], repeats=1), "repeat scale loss accuracy"),
        (lambda *given: selectivity.table(*given), "layer unit selectivity mutual_information preferred_class dead"),
    ],
    ids=["single_unit", "cumulative", "noise", "selectivity"],
)
def test_tables_have_these_columns_in_this_order(given, table, columns):
    assert list(table(*given).columns) == columns.split()


def test_counts_may_be_as_small_as_one(given):
    curve = ablation.cumulative(*given, orders=1, steps=1)
    assert curve.n_ablated.tolist() == [0, 11] and curve.order.tolist() == [0, 0]
    assert len(noise.sweep(*given, scales=[0.5], repeats=1)) == 1
    halves = np.array([1.0] * 50 + [2.0] * 50)[:, None]  # two bins tell two classes apart
    assert selectivity.mutual_information(halves, (halves[:, 0] > 1).astype(int), bins=2) == pytest.approx(1)


def test_unit_layers_come_from_below_by_the_names_of_their_nodes(given):
    assert units.unit_layers(given[0], given[1]) == [("relu1", 6), ("relu2", 5)]


def test_what_a_seed_stands_for_stays_what_it_is():
    """Stored networks and tables are found by their recipes: with other draws the same recipe would mean another network.
    Failing that, raise recipe.FORMAT and train everything again."""
    recipe = Recipe("digits", seed=1)
    assert [recipe.stream(name) for name in STREAMS] == [1641411168, 1454127163, 2749604155, 3056722145]
    assert STREAMS == ("init", "order", "labels", "dropout")
    assert training._order(Recipe("digits"), 1, 8).tolist() == [0, 1, 3, 4, 7, 2, 5, 6]
    assert data.load("digits").subset(12).y_train.tolist() == [3, 8, 6, 5, 7, 6, 1, 6, 6, 9, 8, 4]
    assert data.shuffle_labels(torch.arange(12), 0.5, 3).tolist() == [2, 7, 11, 3, 4, 5, 6, 10, 8, 9, 1, 0]
    orders = ablation.sequences([("a", unit) for unit in range(8)], 2, seed=5)
    assert [[unit for _, unit in order] for order in orders] == [[1, 4, 2, 3, 7, 5, 6, 0], [4, 2, 5, 0, 7, 6, 3, 1]]


@pytest.mark.parametrize(
    ("analysis", "options", "names"),
    [
        ("history", {}, ["29f7a0cf5c87cd5a", "e244174b1dfae4ac"]),
        ("single_unit", {}, ["fbe5b7898f8b7fef", "4bc2e7f5b80d98f7"]),
        ("cumulative", {"orders": 3}, ["c07f4650e542a913", "5b755d898d68b2be"]),
    ],
)
def test_names_of_tables_stay_what_they_are(analysis, options, names):
    """Or none of those in data/ would be found; raise an analysis's version where it gives other numbers."""
    plain, other = ({}, {"images": 100, "split": "test", "epochs": [1]})
    found = [experiment.files(analysis, [Recipe("digits")], **options, **how)[0].stem for how in (plain, other)]
    assert found == names
