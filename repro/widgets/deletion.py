"""Neuron deletion (W1): a real small network, drawn unit by unit."""

from __future__ import annotations

import operator

import traitlets

from repro import data, experiment, units
from repro.recipe import Recipe, check_recipes
from repro.widgets.diagram import Diagram, check_grey, linear_layers, module, pack, unpack

MOST_UNITS = 24  # a layer; more cannot be touched one by one on a telephone


class Deletion(Diagram):
    """A network whose hidden units can be deleted and restored one by one.

    Outputs, prediction and the accuracy on all test images follow at once.

    Parameters
    ----------
    recipe : Recipe
        Of an MLP with at most 24 units a layer; the network is trained if the store lacks it.

    Attributes
    ----------
    deleted : list of [layer, unit]
        In the order of their deletion, as `repro.ablation.cumulative` takes an order.
    image : int
        Which test image is shown.

    Raises
    ------
    ValueError
        The network is no MLP or too wide, or images have colours; `deleted` or `image` name something that is not there.
    """

    _esm = module("deletion")
    name = "deletion"
    choices = ("deleted", "image")
    deleted = traitlets.List().tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)

    def __init__(self, recipe: Recipe, **options):
        check_recipes("recipe", [recipe])
        if recipe.model != "mlp":
            raise ValueError(f"recipe: expected an MLP, got model={recipe.model!r}")
        dataset = data.load(recipe.dataset)
        x, y = dataset.x_test, dataset.y_test
        check_grey(x, "recipe")
        self.network = experiment.network(recipe)
        layers = units.unit_layers(self.network, x[:2])
        if max(n for _, n in layers) > MOST_UNITS:
            raise ValueError(f"recipe: expected at most {MOST_UNITS} units a layer, got width={recipe.width}")
        # The reader's own deletions are drawn over what random deletions do: every number of units is a point.
        steps = sum(n for _, n in layers)
        curves = experiment.measure("cumulative", [recipe], split="test", orders=20, steps=steps)
        accuracy = curves.groupby("n_ablated").accuracy
        content = {
            "layers": linear_layers(self.network),
            "units": [list(layer) for layer in layers],
            "images": pack(x),
            "shape": list(x.shape[2:]),
            "labels": pack(y, "uint8"),
            "classes": list(dataset.classes),
            "random": {"mean": accuracy.mean().tolist(), "sd": accuracy.std().tolist()},
        }
        super().__init__(data=content, **options)

    @traitlets.validate("deleted")
    def _check_deleted(self, proposal):
        sizes = dict(self.data["units"])
        try:
            found = [(str(layer), operator.index(unit)) for layer, unit in proposal["value"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"deleted: expected pairs [layer, unit], got {proposal['value']!r}") from error
        for layer, unit in found:
            if not 0 <= unit < sizes.get(layer, 0):
                known = ", ".join(f"{name} 0 to {n - 1}" for name, n in sizes.items())
                raise ValueError(f"deleted: expected units {known}, got {layer} {unit}")
        if len(set(found)) < len(found):
            raise ValueError("deleted: expected every unit once")
        return [list(unit) for unit in found]

    @traitlets.validate("image")
    def _check_image(self, proposal):
        images = len(unpack(self.data["labels"]))
        if not 0 <= proposal["value"] < images:
            raise ValueError(f"image: expected 0 to {images - 1}, got {proposal['value']}")
        return proposal["value"]
