"""Memorizing against generalizing: the same fraction of units deleted in two networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import traitlets

from repro import ablation, data, experiment, units
from repro.evaluation import evaluating
from repro.models import ABLATED_LAYERS
from repro.recipe import Recipe, check_recipes, training_set
from repro.widgets.diagram import Diagram, check_grey, module, pack

ORDERS = 10  # as in Fig. 1, which draws the same curves
SHOWN = 6  # training images of each class


class Memorization(Diagram):
    """Two networks side by side, and one slider that deletes the same fraction of units in both.

    Parameters
    ----------
    true, shuffled : Recipe
        Of networks trained on true and on shuffled labels, of the same shape and on the same images.

    Attributes
    ----------
    position : int
        Which point of the curves is shown, from 0 (intact).
    order : int
        Which random order of deletion is shown.
    curves : dict of str to DataFrame
        The cumulative ablation curves of "true" and "shuffled", on training images.

    Raises
    ------
    ValueError
        The recipes differ in their data set or in their layers, or images have colours; `position` or `order` are not there.
    """

    _esm = module("memorization")
    name = "memorization"
    choices = ("position", "order")
    position = traitlets.Int(0).tag(sync=True)
    order = traitlets.Int(0).tag(sync=True)

    def __init__(self, true: Recipe, shuffled: Recipe, **options):
        check_recipes("true", [true])
        check_recipes("shuffled", [shuffled])
        for field in ("dataset", "n_train", "model", "width", "strides"):
            if getattr(true, field) != getattr(shuffled, field):
                raise ValueError(f"shuffled: expected the {field} of the other network, {getattr(true, field)!r}")
        x, y = training_set(true)
        check_grey(x, "true")
        recipes = {"true": true, "shuffled": shuffled}
        layers = ABLATED_LAYERS[true.model]
        self.curves = {
            name: experiment.measure("cumulative", [recipe], layers=layers, orders=ORDERS)
            for name, recipe in recipes.items()
        }
        rng = np.random.default_rng(0)
        labels, counts = y.unique(return_counts=True)
        few = min(SHOWN, int(counts.min()))
        classes = [rng.permutation(np.flatnonzero(y == label))[:few] for label in labels]
        shown = np.stack(classes, axis=1).ravel()  # row by row, one image of each class
        points = self.curves["true"].query("order == 0")
        content = {
            "fraction": points["fraction_ablated"].tolist(),
            "deleted": points["n_ablated"].tolist(),
            "orders": ORDERS,
            "images": pack(x[shown]),
            "shape": list(x.shape[2:]),
            "classes": list(data.load(true.dataset).classes),
            "networks": {name: self._network(recipe, name, shown, layers) for name, recipe in recipes.items()},
        }
        super().__init__(data=content, **options)

    def _network(self, recipe: Recipe, name: str, shown: np.ndarray, layers) -> dict:
        x, y = training_set(recipe)
        accuracy = self.curves[name].pivot(index="order", columns="n_ablated", values="accuracy")
        return {
            "accuracy": pack(accuracy),
            "mean": accuracy.mean().tolist(),
            "sd": accuracy.std().tolist(),
            "labels": pack(y[shown], "uint8"),
            "answers": pack(answers(experiment.network(recipe), x[shown], list(accuracy), layers), "uint8"),
        }

    @traitlets.validate("position", "order")
    def _check(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        most = {"position": len(self.data["fraction"]), "order": self.data["orders"]}[name] - 1
        if not 0 <= value <= most:
            raise ValueError(f"{name}: expected 0 to {most}, got {value}")
        return value


def answers(
    model: torch.nn.Module,
    x: torch.Tensor,
    counts: Sequence[int],
    layers: Sequence[str] | None = None,
    orders: int = ORDERS,
) -> np.ndarray:
    """The class a network says for each image along the random orders that `repro.ablation.cumulative` takes.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (N, ...)
    counts : sequence of int
        Numbers of ablated units.
    layers : sequence of str, optional
    orders : int

    Returns
    -------
    array (orders, counts, N) of int
    """
    cut = units.Cut(model, x, layers)
    said = []
    with evaluating(model):
        for sequence in ablation.sequences(cut.units, orders, seed=0):
            for n in counts:
                kept = {name: torch.ones(size) for name, size in cut.layers.items()}
                for name, unit in sequence[:n]:
                    kept[name][unit] = 0
                logits = cut.run(x, lambda name, h, k=kept: h * k[name].reshape((1, -1) + (1,) * (h.ndim - 2)))
                said.append(logits.argmax(1).numpy())
    return np.array(said).reshape(orders, len(counts), len(x))
