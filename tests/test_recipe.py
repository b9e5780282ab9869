"""A recipe: its fields, and its key."""

import dataclasses
import json

import numpy as np
import pytest

from repro.recipe import Recipe, digest
from repro.training import train

BAD = {
    "dataset": ["", None, 3],
    "model": ["vgg", None, ["mlp"]],
    "n_train": [0, -1, 1.5, True, "100"],
    "width": [0, -1, 1.5, True, "64", (), (8, 0), (8, 2.5), float("nan")],
    "strides": [(), (1, 0), (1, 1.5), 2, "ab"],
    "batch_norm": [None, 1, "yes"],
    "dropout": [-0.1, 1, 1.1, float("nan"), None, True],
    "init": ["xavier", None, "pretrained"],
    "corruption": [-0.1, 1.1, float("nan"), "0.5", None, True],
    "optimizer": ["rmsprop", None],
    "lr": [-0.1, float("inf"), float("nan"), "0.1", None],
    "momentum": [-0.1, 1, float("nan"), None],
    "weight_decay": [-1, float("inf"), None],
    "schedule": ["step", None],
    "batch_size": [0, -1, 12.5, True, None],
    "epochs": [-1, 12.5, True, None],
    "precision": ["float16", None],
    "stop_when_memorized": [None, 0, 1],
    "seed": [-1, 0.5, True, None],
    "alpha": [float("nan"), float("inf"), float("-inf"), "1", None, True],
}


def test_every_field_is_validated():
    assert set(BAD) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got "):
        Recipe(**{"dataset": "digits", field: value})


@pytest.mark.parametrize("width", [(8, 8), 0, -0.5, True, "half"])
def test_the_width_of_a_convnet_is_a_factor(width):
    with pytest.raises(ValueError, match="^width: expected"):
        Recipe("digits", "convnet", width=width)


def test_published_weights_and_widths_of_a_resnet_are_known_to_its_recipe():
    assert Recipe("imagenet", "resnet50", init="pretrained", epochs=0).width is None
    with pytest.raises(ValueError, match="^init: expected"):
        Recipe("imagenet", "resnet50", init="pretrained", width=0.5)
    with pytest.raises(ValueError, match="^width: expected a factor .* to 1, got 2.0"):
        Recipe("imagenet", "resnet50", width=2.0)
    with pytest.raises(ValueError, match="^recipe: expected a Recipe, got 'digits'"):
        train("digits")


# One other value of every field.
OTHERS = dict(
    dataset="mnist",
    model="convnet",
    n_train=100,
    width=64,
    strides=(1, 2),
    batch_norm=False,
    dropout=0.1,
    init="torch",
    corruption=0.5,
    optimizer="adam",
    lr=0.2,
    momentum=0.5,
    weight_decay=0.1,
    schedule="linear",
    batch_size=64,
    epochs=61,
    precision="bfloat16",
    stop_when_memorized=True,
    seed=1,
    alpha=0.5,
)


def test_a_key_stays_what_it_is():
    # Stored networks are found by these names: if they change, all are lost. A new field needs a default with
    # which old recipes mean what they meant; failing that, raise recipe.FORMAT and train everything again.
    assert Recipe("digits").key == "62654f77179ff732"
    convnet = OTHERS | {"dropout": 0}  # which only an MLP has
    assert Recipe(**convnet | {"alpha": 0}).key == "c95fae910e7496d2"  # as it was before there was alpha
    assert Recipe(**convnet).key == "754a03bf8fcabcb7"
    assert Recipe("digits", width=64, dropout=0.1).key == "f2964a9bd86b670a"


def test_every_field_counts_in_the_key():
    recipes = [Recipe("digits")]
    for name, value in OTHERS.items():
        needs = {"model": "convnet"} if name in ("strides", "batch_norm") else {}
        recipes.append(Recipe(**{"dataset": "digits"} | needs | {name: value}))
    assert len({recipe.key for recipe in recipes}) == len(OTHERS) + 1


@pytest.mark.parametrize(
    ("field", "recipe"),
    [
        ("dropout", dict(model="convnet", dropout=0.5)),
        ("dropout", dict(model="resnet50", dropout=0.5)),
        ("batch_norm", dict(model="resnet50", batch_norm=False)),
        ("batch_norm", dict(model="mlp", batch_norm=False)),
        ("strides", dict(model="mlp", strides=(1, 2))),
        ("strides", dict(model="resnet50", strides=(1, 2))),
    ],
)
def test_what_a_model_does_not_have_is_refused(field, recipe):
    with pytest.raises(ValueError, match=f"^{field}: expected "):
        Recipe("digits", **recipe)


def test_the_same_recipe_in_other_words_has_the_same_key():
    recipe = Recipe("digits", "convnet", lr=0.1, strides=(1, 2), width=1.0, corruption=0.0)
    other = Recipe(
        corruption=0,
        width=1,
        strides=list(np.array([1, 2])),
        lr=np.float64(0.1),
        model="convnet",
        dataset="digits",
        seed=0,
    )
    assert all(type(stride) is int for stride in other.strides)
    assert recipe == other and hash(recipe) == hash(other) and recipe.key == other.key
    mlp = Recipe("digits", width=64, epochs=np.int64(5))
    assert mlp == Recipe("digits", width=np.int64(64), epochs=5) and type(mlp.epochs) is int
    assert Recipe("digits", momentum=0, dropout=0).key == Recipe("digits", momentum=0.0).key


def test_a_key_names_a_file():
    key = Recipe("digits", width=8).key
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")


def test_a_recipe_survives_json():
    recipe = Recipe("digits", "convnet", strides=(1, 2), lr=1 / 3)
    assert Recipe(**json.loads(recipe.to_json())) == recipe


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe("digits").lr = 1.0


def test_a_digest_does_not_depend_on_the_order_of_fields():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
