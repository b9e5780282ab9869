"""Every public function with bad input of every kind: the right answer, or a ValueError that names the argument.

`make test-faults` tries many more examples of the same.
"""

import inspect
import json
import os
import re
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro import ablation, claims, data, experiment, models, noise, selectivity, training, units
from repro.training import Recipe
from tests import networks, test_claims, test_claims_later

THOROUGH = os.environ.get("REPRO_FAULT_TESTS") == "1"
some = settings(max_examples=200 if THOROUGH else 30)
slow = settings(max_examples=50 if THOROUGH else 10)

# What goes in -------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 3, 2**31, 2**63, -(2**70), 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")]
NUMPY = [
    np.int64(-2),
    np.float32("nan"),
    np.bool_(True),
    np.array(3),
    np.array([1.5, np.nan]),
    np.zeros((2, 0)),
    np.array("a"),
]
TENSORS = [torch.tensor(3), torch.zeros(0), torch.zeros(2, 0), torch.tensor([1 + 2j]), torch.zeros(2, 3, device="meta")]
OTHERS = [
    None,
    True,
    False,
    "",
    "relu1",
    "zero",
    "\0",
    "ü" * 300,
    b"bytes",
    [],
    [[]],
    (),
    {},
    {"relu1": 1},
    {1, 2},
    object,
    len,
]
OTHERS += [
    [None],
    ["relu1", "relu1"],
    [1],
    [["relu1"]],
    [[("relu1", 0.5)]],
    [float("nan")],
    range(3),
    pd.DataFrame({"a": [1]}),
]
ANYTHING = st.sampled_from(NUMBERS + NUMPY + TENSORS + OTHERS) | st.integers() | st.floats() | st.text(max_size=5)

CLASSES = 4  # of which y has three: a class without images
X = networks.images(12, (3, 4, 4))[0]
Y = torch.arange(12) % 3


def mlp(weight=None, bias=None, widths=(5, 4)):
    """A small MLP whose hidden weights or biases all have one value."""
    model = networks.randomized(models.mlp(48, widths, CLASSES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("head"):
                parameter.fill_(next((v for v in (weight if "weight" in name else bias,) if v is not None), 0.1))
    return model


class Wrong(nn.Module):
    """A model that is no classifier of images."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.linear = answer, nn.Linear(48, CLASSES)

    def forward(self, x):
        return self.answer(torch.relu(self.linear(x.flatten(1))))


def fail(_):
    raise KeyError("its own trouble")


PLAIN = networks.randomized(models.mlp(48, [7, 6], CLASSES))
MODELS = [
    PLAIN,
    networks.randomized(models.mlp(48, [1], CLASSES)),  # one unit
    networks.randomized(models.convnet([2, 3], [1, 2], CLASSES)),
    networks.randomized(models.convnet([2, 3], [1, 2], CLASSES, batch_norm=False)),
    networks.Residual(classes=CLASSES).eval(),
    mlp(weight=0, bias=1.0),  # constant units
    mlp(bias=-1e4),  # dead units
    networks.Residual(classes=CLASSES).double().eval(),
]
ODD = [
    nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)),  # no hidden layer
    models.mlp(7, [3], CLASSES),
    mlp(weight=float("nan")),
    mlp(bias=float("inf")),
    mlp(weight=1e30),
    nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
    nn.Sequential(),
    nn.Sequential(nn.Flatten(), nn.ReLU()),
    Wrong(lambda h: h),
    Wrong(lambda h: h[:, 0]),
    Wrong(lambda h: (h, h)),
    Wrong(lambda h: None),
    Wrong(fail),
    models.mlp(48, [3], 1),
    models.mlp(48, [3], CLASSES).half(),
    models.mlp(48, [3], CLASSES).to("meta"),
]
IMAGES = [
    *(
        X[:1],
        X[:0],
        X[:, :2],
        X[..., :0],
        X.double(),
        X.half(),
        X.long(),
        X > 0,
        X.flatten(1),
        X[0],
        X + 0j,
        X.to_sparse(),
    ),
    *(X * float("nan"), X / 0, X * 1e38, X * 0, -X, X.to("meta"), X.numpy(), X.tolist()),
    torch.where(torch.arange(12).view(-1, 1, 1, 1) == 11, float("nan"), X),  # one bad image, the last
]
LABELS = [
    *(Y[:5], Y[:0], Y[:1], Y - 1, Y + 2, Y * 0, Y * 2**40, -(2**40) * Y, Y.float(), Y.double() / 0, Y + 0j, Y > 0),
    *(
        Y.to(torch.int8),
        Y.to(torch.uint8),
        Y.to(torch.uint64),
        Y[None],
        Y.to("meta"),
        Y.numpy(),
        Y.tolist(),
        Y.to_sparse(),
    ),
]
VALUES = [
    {},
    {"relu1": torch.zeros(7)},
    {"relu1": None, "relu2": torch.zeros(6)},
    {"nope": torch.zeros(3)},
    "Zero",
    "mean ",
    0,
]
VALUES += [{"relu1": torch.full((7,), v), "relu2": torch.zeros(6)} for v in (1e30, float("nan"))]
VALUES += [{"relu1": torch.zeros(7).double() + 1e300, "relu2": torch.zeros(6)}, {"relu1": torch.zeros(7) + 0j}]

GOOD = {
    "model": MODELS,
    "x": [X, X.clone().requires_grad_(), X.to(memory_format=torch.channels_last)],
    "y": [Y, Y.int(), Y.flip(0)],
    "layers": [None],
    "value": ["zero", "mean", "mean_per_position"],
    "x_fit": [None, X[:4]],
    "orders": [1, 2, np.int64(1)],
    "steps": [1, 3, 100],
    "seed": [0, 2**40],
    "scales": [[0.0], [0, 0.5, 2], np.array([1.0]), (1e-30,)],
    "repeats": [1, 2],
}
BAD = {
    "model": ODD,
    "x": IMAGES,
    "x_fit": IMAGES,
    "y": LABELS,
    "value": VALUES,
    "layers": [["relu1"], ["relu2", "relu1"], iter(["relu1"]), ["linear1"], ["head"], "relu1", ["relu1", "nope"]],
    "orders": [
        [[("relu1", 0)]],
        [[("relu1", 0.5)]],
        [[("relu1", "1")]],
        [[("relu1", 99)]],
        [[("relu1", -1)]],
        [[[]]],
        [[]],
    ],
    "scales": [
        [-1.0],
        True,
        [True],
        [float("nan")],
        [1e300],
        [],
        ["a"],
        [[1.0]],
        1e30,
        [1e38],
        torch.ones(2),
        "1",
        {1.0},
    ],
}
LONG = ("orders", "repeats")  # where a huge number is no mistake, only slow


@st.composite
def calls(draw, function, **good):
    """Arguments of `function`: up to two of them wrong, the others as in `good` or GOOD."""
    names = [name for name in inspect.signature(function).parameters if name in GOOD or name in good]
    arguments = {name: draw(st.sampled_from(good.get(name, GOOD.get(name)))) for name in names}
    for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
        bad = ANYTHING.filter(lambda v: not (isinstance(v, int) and v > 100)) if name in LONG else ANYTHING
        arguments[name] = draw(st.sampled_from(BAD[name]) | bad if name in BAD else bad)
    return arguments


def answer(function, **arguments):
    """What `function` returns; None where it refuses with a ValueError that names an argument."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's, where a number is none
            warnings.filterwarnings("ignore", "the model is measured through hooks")
            return function(**arguments)
    except ValueError as error:
        message = str(error)
        assert re.match(rf"({'|'.join(inspect.signature(function).parameters)}): ", message), message
        return None


def sane(table, *columns):
    """A table of losses and accuracies without a NaN; those of `columns` may be negative."""
    assert len(table)
    numbers = table.select_dtypes("number")
    assert np.isfinite(numbers.to_numpy(float)).all()
    assert (numbers.drop(columns=list(columns)) >= 0).all(axis=None)
    assert table["accuracy"].between(0, 1).all()


# Measurements -------------------------------------------------------------------------------------------------


@some
@given(calls(ablation.single_unit))
def test_single_unit(arguments):
    table = answer(ablation.single_unit, **arguments)
    if table is not None:
        sane(table, "delta_loss", "delta_accuracy")
        assert not table.duplicated(["layer", "unit"]).any()


@some
@given(calls(ablation.cumulative))
def test_cumulative(arguments):
    table = answer(ablation.cumulative, **arguments)
    if table is not None:
        sane(table)
        assert (table.groupby("order")["n_ablated"].min() == 0).all() and table["fraction_ablated"].max() <= 1


@some
@given(calls(noise.sweep))
def test_noise(arguments):
    table = answer(noise.sweep, **arguments)
    if table is not None:
        sane(table)


@some
@given(calls(selectivity.table))
def test_selectivity_table(arguments):
    table = answer(selectivity.table, **arguments)
    if table is not None:
        assert (table["selectivity"].isna() == table["dead"]).all()
        assert (table["preferred_class"].eq(-1) == table["dead"]).all()
        assert (
            table["selectivity"].dropna().between(0, 1).all()
            and table["mutual_information"].between(0, np.log2(3)).all()
        )


@some
@given(calls(units.unit_layers))
def test_unit_layers(arguments):
    layers = answer(units.unit_layers, **arguments)
    assert layers is None or all(isinstance(name, str) and n > 0 for name, n in layers)


@pytest.mark.parametrize(
    "function", [ablation.single_unit, ablation.cumulative, noise.sweep, selectivity.table, units.unit_layers]
)
def test_every_odd_model_set_of_images_and_labels(function):
    """The lists above one by one, so that none depends on being drawn."""
    names = inspect.signature(function).parameters
    plain = {"model": PLAIN, "x": X, "y": Y, "scales": [1.0], "value": "mean", "x_fit": X}
    plain = {name: value for name, value in plain.items() if name in names}
    for name in BAD.keys() & names.keys():
        for value in BAD[name] + NUMPY + TENSORS + OTHERS:
            if name == "layers" and hasattr(value, "__next__"):
                value = iter(["relu1"])
            table = answer(function, **plain | {name: value})
            if isinstance(table, pd.DataFrame) and "accuracy" in table:
                sane(table, *table.filter(like="delta_").columns)


# Arrays -------------------------------------------------------------------------------------------------------

shapes = (
    st.tuples(st.integers(0, 6), st.integers(0, 4)) | st.tuples(st.integers(0, 6)) | st.just(()) | st.just((2, 2, 2))
)
kinds = st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?", "c16", "O", "U3"])


@st.composite
def arrays(draw):
    """Arrays of any shape and type, with NaN and infinity in some."""
    shape, kind = draw(shapes), draw(kinds)
    values = st.sampled_from([0.0, 1.0, 2.0, 0.5, 3.0, 1e4]) | st.sampled_from([-1.0, 1e300, np.nan, np.inf])
    found = np.array([draw(values) for _ in range(int(np.prod(shape)))]).reshape(shape)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return found.astype(kind)


@some
@given(arrays() | ANYTHING)
def test_selectivity_index(means):
    index = answer(selectivity.selectivity_index, class_means=means)
    if index is not None:
        means = np.asarray(means, float)
        assert index.shape == means.shape[:1]
        assert (np.isnan(index) == (means == 0).all(1)).all() and ((index >= 0) & (index <= 1))[~np.isnan(index)].all()


@some
@given(arrays() | ANYTHING, arrays() | ANYTHING | st.lists(st.integers(-1, 3), max_size=6), ANYTHING | st.just(10))
def test_mutual_information(activations, y, bins):
    found = answer(selectivity.mutual_information, activations=activations, y=y, bins=bins)
    if found is not None:
        assert found.shape == np.shape(activations)[1:]
        assert ((found >= 0) & (found <= np.log2(len(set(np.asarray(y).tolist()))))).all()


@some
@given(st.one_of(st.sampled_from([Y, *LABELS]), ANYTHING, arrays()), ANYTHING | st.floats(0, 1), ANYTHING | st.just(0))
def test_shuffle_labels(y, fraction, seed):
    shuffled = answer(data.shuffle_labels, y=y, fraction=fraction, seed=seed)
    if shuffled is not None:
        assert shuffled.sort().values.tolist() == torch.as_tensor(y).sort().values.tolist()


CURVES = pd.DataFrame({"order": [0, 0, 1, 1], "fraction_ablated": [0, 1, 0, 1.0], "accuracy": [1, 0.5, 1, 0]})
TABLES = [
    CURVES,
    CURVES[:0],
    CURVES[:1],
    CURVES.drop(columns="order"),
    CURVES.astype(str),
    CURVES * np.nan,
    CURVES * np.inf,
]
TABLES += [CURVES.assign(accuracy=[1, np.nan, 1, 0]), CURVES.assign(accuracy=0), CURVES[["order", "order", "accuracy"]]]


@some
@given(
    st.sampled_from(TABLES) | ANYTHING,
    st.sampled_from(["order", ["order"], ["order", "accuracy"], []]) | ANYTHING,
    st.booleans() | ANYTHING,
)
def test_auc(curves, by, normalize):
    areas = answer(ablation.auc, curves=curves, by=by, normalize=normalize)
    if areas is not None:
        silent = curves.accuracy.eq(0).all() and normalize  # an area relative to nothing
        assert len(areas) and (areas.isna().all() if silent else areas.between(0, 1).all())


# Networks, recipes, data sets ---------------------------------------------------------------------------------

SHAPES = {
    models.mlp: {"inputs": [4], "widths": [[3], (2, 2)], "classes": [2], "dropout": [0.0, 0.5]},
    models.convnet: {
        **{
            "channels": [[2], (2, 3)],
            "strides": [[1], (2, 1)],
            "classes": [2],
            "in_channels": [1],
            "batch_norm": [True],
        }
    },
    models.resnet50: {"classes": [2], "width": [0.02], "in_channels": [1], "small_images": [True, False]},
}
BAD |= {"widths": [[], [0], [-1], [2**50], [1.5], [None], "33"], "channels": [[0], [2**50]], "strides": [[0], [2**40]]}


@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__name__)
def test_networks(function):
    @slow
    @given(calls(function, **SHAPES[function]))
    def check(arguments):
        network = answer(function, **arguments)
        assert network is None or all(parameter.isfinite().all() for parameter in network.parameters())

    check()


FIELDS = [name for name in inspect.signature(Recipe).parameters]


@some
@given(
    st.dictionaries(
        st.sampled_from(FIELDS), ANYTHING | st.sampled_from(["mlp", "convnet", "adam", "linear"]), max_size=3
    )
)
def test_recipes(fields):
    recipe = answer(Recipe, **{"dataset": "digits"} | fields)
    if recipe is not None:
        assert Recipe(**json.loads(recipe.to_json())) == recipe
        assert re.fullmatch("[0-9a-f]{16}", recipe.key) and hash(recipe) == hash(recipe)


@slow
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=1), st.sampled_from([20, 2, 1, 10**6]))
def test_training(fields, n_train):
    """A recipe that is accepted trains to finite weights, or says what kept it from that."""
    fields = {"dataset": "digits", "width": 3, "n_train": n_train, "epochs": 1} | fields
    recipe = answer(Recipe, **fields)
    if recipe is None or recipe.epochs > 3 or recipe.dataset in data.TORCHVISION:
        return
    try:
        network = training.train(recipe)
    except FloatingPointError as error:
        assert "diverged" in str(error)
    except ValueError as error:
        assert re.match(rf"({'|'.join(FIELDS)}|name): ", str(error)), str(error)
    else:
        assert all(parameter.isfinite().all() for parameter in network.parameters())


names = (
    st.sampled_from(["digits", "folder:", "folder:x", "folder:\0", "folder:" + "x" * 5000, "folder:/", "Digits"])
    | ANYTHING
)


@some
@given(names, ANYTHING | st.just(None))
def test_load(name, root):
    if isinstance(name, str) and name in data.TORCHVISION:
        return
    dataset = answer(data.load, name=name, root=root)
    assert dataset is None or dataset.name == "digits"


# From recipes to verdicts -------------------------------------------------------------------------------------

RECIPES = [Recipe("digits", n_train=30, width=3, epochs=1)]
MEASURE = {
    "analysis": [*experiment.ANALYSES, "curves"],
    "recipes": [RECIPES, tuple(RECIPES), []],
    "split": ["train", "test"],
    "epochs": [None, [0], [1, 0]],
    "images": [None, 20],
    "compute": ["missing"],
    "jobs": [None],
}
BAD |= {
    "epochs": [[-1], [2], ["a"], [None], [[1]], 1, "1"],
    "recipes": [["digits"], [None], RECIPES[0], [RECIPES]],
    "images": [1],
}
LONG += ("jobs",)


@settings(slow, max_examples=3 * slow.max_examples)
@given(
    calls(experiment.measure, **MEASURE),
    st.dictionaries(st.sampled_from(["layers", "orders", "steps", "value", "scales"]), ANYTHING, max_size=1),
)
def test_measure(arguments, options):
    """The option that is wrong may be one of the analysis's own."""
    options = {"scales": [0.5], "repeats": 1} | options if arguments["analysis"] == "noise" else options
    options = {name: v for name, v in options.items() if not (name == "orders" and isinstance(v, int) and v > 100)}
    functions = [experiment.measure, *(analysis.function for analysis in experiment.ANALYSES.values())]
    own = {name for function in functions for name in inspect.signature(function).parameters}
    try:
        table = experiment.measure(**arguments, **options)
    except ValueError as error:
        assert re.match(rf"({'|'.join(own)}): ", str(error)), str(error)
    else:
        assert len(table) and set(table["network"]) == {RECIPES[0].key}


CLAIM_TABLES = test_claims.TABLES | test_claims_later.TABLES


@st.composite
def spoiled(draw):
    """(a claim, its table with something wrong)."""
    claim = draw(st.sampled_from(list(CLAIM_TABLES)))
    table = CLAIM_TABLES[claim].copy()
    columns = [c for c in table if c in ("network", *claims.CLAIMS[claim].columns)]
    for _ in range(draw(st.integers(0, 2))):
        column, what = (
            draw(st.sampled_from(columns)),
            draw(st.sampled_from(["drop", "cell", "all", "one", "few", "twice"])),
        )
        if what == "drop":
            table = table.drop(columns=column, errors="ignore")
        elif column in table and len(table):
            value = draw(st.sampled_from([0, 1, -1, 1e300, np.nan, np.inf, None, "a", 2**70]))
            if what == "cell":
                table[column] = table[column].astype(object)
                table.iloc[draw(st.integers(0, len(table) - 1)), table.columns.get_loc(column)] = value
            elif what == "all":
                table[column] = value
            elif what == "one" and "network" in table:
                table = table[table["network"] == table["network"].iloc[0]]
            elif what == "few":
                table = table[: draw(st.integers(0, 30))]
            elif what == "twice":
                table = pd.concat([table, table])
    return claim, table


@settings(slow, max_examples=3 * slow.max_examples)
@given(spoiled() | st.tuples(ANYTHING, ANYTHING) | st.tuples(st.just("C1"), ANYTHING))
def test_verdicts(pair):
    claim, table = pair
    verdict = answer(partial(claims.check, resamples=50), claim_id=claim, table=table)
    if verdict is not None:
        assert verdict.verdict in (claims.REPRODUCED, claims.PARTLY, claims.NOT_REPRODUCED)
        if verdict.verdict != claims.NOT_REPRODUCED:  # never on a number that is none
            assert any(np.isfinite(effect.estimate) for effect in verdict.effects if effect.judged)
        verdict.to_dict(), str(verdict), verdict._repr_markdown_()
