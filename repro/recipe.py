"""Recipes: everything that determines a network, and what it begins with.

A `Recipe` is a value: two equal recipes are the same network, bit for bit on one CPU, because initialization, data
order, label shuffle and dropout each draw from a stream of their own derived from the recipe's seed. The paper does not
state optimizer, learning rate or batch size; they are fields like the others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import nn

from repro import data, models
from repro.checks import is_integer, is_number

FORMAT = 1  # raise when the same recipe begins to mean another network
STREAMS = ("init", "order", "labels", "dropout")
SCHEDULES = {  # factor on the learning rate after a share p of all steps
    "constant": lambda p: 1.0,
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "onecycle": lambda p: min(p / 0.2, (1 - p) / 0.8),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a trained network.

    Parameters
    ----------
    dataset : str
        As `repro.data.load` takes it.
    model : {"mlp", "convnet", "resnet50"}
    n_train : int, optional
        Train on the first `n_train` images of a fixed shuffle; None: on all.
    width : number or tuple of int, optional
        mlp: units of each of two hidden layers, or one number per layer; else the factor on the channel counts.
    strides : tuple of int, optional
        convnet; the paper's by default.
    batch_norm : bool
        convnet.
    dropout : float
        mlp; probability of dropping a hidden unit.
    init : {"he", "torch", "pretrained"}
        pretrained: torchvision's published weights, of a resnet50 on "imagenet"; with epochs=0 as they are.
    corruption : float
        Fraction of the training labels that are permuted, in [0, 1].
    optimizer : {"sgd", "adam"}
    lr, momentum, weight_decay : float
        momentum is Adam's first decay rate.
    schedule : {"constant", "linear", "cosine", "onecycle"}
        onecycle rises for a fifth of the steps and falls to zero, both linearly.
    batch_size, epochs : int
        A last incomplete batch is left out.
    precision : {"float32", "bfloat16"}
        Of the matrix products in training; measurements are float32.
    stop_when_memorized : bool
        End after the first epoch whose running accuracy, over its complete batches and while the weights change, is 1
        (for exploration only).
    seed : int
        Of initialization, data order, label shuffle and dropout.
    alpha : float
        The loss is cross-entropy − alpha · mean class selectivity of the hidden units (Leavitt & Morcos 2021).

    Raises
    ------
    ValueError
        Names the field and what was expected.
    """

    dataset: str
    model: str = "mlp"
    n_train: int | None = None
    width: float | tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    batch_norm: bool = True
    dropout: float = 0.0
    init: str = "he"
    corruption: float = 0.0
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 128
    epochs: int = 60
    precision: str = "float32"
    stop_when_memorized: bool = False
    seed: int = 0
    alpha: float = 0.0

    def __post_init__(self):
        self._expect("dataset", isinstance(self.dataset, str) and self.dataset, "the name of a data set")
        self._expect_one("model", tuple(models.ABLATED_LAYERS))
        self._expect_one("init", models.INITS)
        self._expect_one("optimizer", ("sgd", "adam"))
        self._expect_one("schedule", tuple(SCHEDULES))
        self._expect_one("precision", ("float32", "bfloat16"))
        self._expect_number("corruption", 0, 1)
        for field in ("dropout", "momentum"):
            self._expect_number(field, 0, 1)
            self._expect(field, getattr(self, field) < 1, "a number below 1")
        for field in ("lr", "weight_decay"):
            self._expect_number(field, 0)
        self._expect_number("batch_size", 1, integer=True)
        for field in ("epochs", "seed"):
            self._expect_number(field, 0, integer=True)
        self._expect_number("alpha")
        if self.n_train is not None:
            self._expect_number("n_train", 1, integer=True)
        for field in ("batch_norm", "stop_when_memorized"):
            self._expect(field, isinstance(getattr(self, field), bool), "True or False")
        self._check_architecture()

    def _check_architecture(self):
        """Check strides, width, init and dropout against what the model has."""
        if isinstance(self.strides, list | tuple):
            whole = all(is_integer(n) and 0 < n <= models.MOST for n in self.strides)
            self._expect("strides", whole and self.strides, "positive integers")
            object.__setattr__(self, "strides", tuple(map(int, self.strides)))
        else:
            self._expect("strides", self.strides is None, "a sequence of integers or None")
        object.__setattr__(self, "width", models.check_width(self.model, self.width))
        published = self.model == "resnet50" and self.width in (None, 1)
        weights = "he or torch, as published weights are a full resnet50's"
        self._expect("init", published or self.init != "pretrained", weights)
        models.check_options(self.model, self.strides, self.batch_norm, self.dropout)

    def _expect(self, field, holds, what):
        if not holds:
            raise ValueError(f"{field}: expected {what}, got {getattr(self, field)!r}")

    def _expect_one(self, field, options):
        value = getattr(self, field)
        self._expect(field, isinstance(value, str) and value in options, "one of " + ", ".join(options))

    def _expect_number(self, field, low=None, high=None, integer=False):
        value = getattr(self, field)
        largest = 2**63 - 1 if integer else sys.float_info.max
        low, high = (-largest if low is None else low), (largest if high is None else high)
        fits, what = (is_integer, "an integer") if integer else (is_number, "a number")
        what += f" from {low}" * (low > -largest) + f" to {high}" * (high < largest)
        self._expect(field, fits(value) and low <= value <= high, what)
        object.__setattr__(self, field, int(value) if integer else float(value))  # so that 0 and 0.0 are one recipe

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits made of the fields that differ from their defaults, and of the format."""
        return key(vars(self))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def stream(self, name: str) -> int:
        """Seed of one of the recipe's random streams: "init", "order", "labels" or "dropout"."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(STREAMS.index(name),))
        return int(sequence.generate_state(1)[0])


DEFAULTS = {field.name: field.default for field in fields(Recipe)}


def key(recipe: Mapping) -> str:
    """`Recipe.key` of fields that were checked before, such as those in the files of a store; four times as fast."""
    return digest({"format": FORMAT} | {name: v for name, v in recipe.items() if v != DEFAULTS.get(name, ...)})


def digest(content: Mapping) -> str:
    """A short name for a JSON-able mapping, the same for the same content in any order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def training_set(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (N, C, H, W) and the labels (N,), shuffled as the recipe says, that its network is trained on."""
    dataset = data.load(recipe.dataset).subset(recipe.n_train)
    return dataset.x_train, data.shuffle_labels(dataset.y_train, recipe.corruption, recipe.stream("labels"))


def build(recipe: Recipe) -> nn.Module:
    """The untrained network of a recipe."""
    if torch.get_default_dtype() != torch.float32:  # recipes say nothing of it
        raise ValueError(
            f"torch.set_default_dtype: expected torch.float32 for training, got {torch.get_default_dtype()}"
        )
    dataset = data.load(recipe.dataset)
    return models.build(
        recipe.model,
        dataset.x_train.shape[1:],
        len(dataset.classes),
        recipe.width,
        recipe.strides,
        recipe.batch_norm,
        recipe.dropout,
        recipe.init,
        recipe.stream("init"),
    )


def check_recipes(argument: str, recipes: Sequence, epochs: Sequence = (), named: str = "epochs") -> None:
    """Recipes, at least one, and epochs that all of them have."""
    wrong = [recipe for recipe in recipes if not isinstance(recipe, Recipe)]
    if wrong:
        raise ValueError(
            f"{argument}: expected {'Recipes' if argument == 'recipes' else 'a Recipe'}, got {wrong[0]!r:.100}"
        )
    if not recipes:
        raise ValueError(f"{argument}: expected at least one Recipe, got none")
    for recipe, epoch in itertools.product(recipes, epochs):
        if not is_integer(epoch) or not 0 <= epoch <= recipe.epochs:
            raise ValueError(f"{named}: expected integers from 0 to {recipe.epochs}, got {epoch!r}")
