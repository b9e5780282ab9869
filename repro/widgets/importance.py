"""Importance against interpretability (W2): what could have been, and what is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import traitlets

from repro import experiment
from repro.checks import distinct
from repro.claims.statistics import spearman
from repro.recipe import Recipe
from repro.widgets.diagram import Diagram, module, pack

STEPS = {"positive": 0.85, "negative": -0.85, "none": 0.0}  # supposed relationships, and how strong each is
MEASURED = "measured"


def supposed(selectivity: np.ndarray, importance: np.ndarray, strength: float) -> np.ndarray:
    """The same importances, handed to other units so that they go with selectivity.

    Parameters
    ----------
    selectivity, importance : arrays (units,)
    strength : float
        From −1 to 1; about the rank correlation that comes out.

    Returns
    -------
    array (units,)
        A permutation of `importance`.
    """
    if not -1 <= strength <= 1:
        raise ValueError(f"strength: expected a number from -1 to 1, got {strength}")
    ranks = pd.Series(selectivity).rank().to_numpy()
    trend = (ranks - ranks.mean()) / (ranks.std() or 1)
    chance = np.random.default_rng(0).standard_normal(len(ranks))
    wanted = strength * trend + np.sqrt(1 - strength**2) * chance
    moved = np.empty_like(importance)
    moved[np.argsort(wanted)] = np.sort(importance)
    return moved


class Importance(Diagram):
    """Importance of units against their selectivity: three supposed relationships, then the measured one.

    Parameters
    ----------
    recipes : sequence of Recipe
        Of one architecture; all their units are drawn together, one dot per unit.

    Attributes
    ----------
    step : {"positive", "negative", "none", "measured"}
    table : DataFrame
        The units drawn: network, layer, unit, selectivity and delta_loss. Dead units are left out.
    """

    _esm = module("importance")
    name = "importance"
    choices = ("step",)
    step = traitlets.Enum([*STEPS, MEASURED], default_value="positive").tag(sync=True)

    def __init__(self, recipes: Sequence[Recipe], **options):
        recipes = distinct("recipes", recipes)
        ablated = experiment.measure("single_unit", recipes, split="test")
        selective = experiment.measure("selectivity", recipes, split="test")
        unit = ["network", "layer", "unit"]
        both = ablated.merge(selective[[*unit, "selectivity"]], on=unit, validate="one_to_one")
        self.table = both.dropna(subset=["selectivity"]).reset_index(drop=True)
        x, y = (self.table[name].to_numpy() for name in ("selectivity", "delta_loss"))
        layers = list(self.table["layer"].unique())
        y_of = {step: supposed(x, y, strength) for step, strength in STEPS.items()} | {MEASURED: y}
        content = {
            "selectivity": pack(x),
            "layer": pack(self.table["layer"].map(layers.index), "uint8"),
            "unit": self.table["unit"].tolist(),
            "layers": len(layers),
            "networks": len(set(recipes)),
            "subject": f"{recipes[0].model.upper()} on {recipes[0].dataset}",
            "steps": {step: {"importance": pack(v), **self._correlations(v)} for step, v in y_of.items()},
        }
        super().__init__(data=content, **options)

    def _correlations(self, importance: np.ndarray) -> dict:
        """Spearman's rank correlation over all units, and within each layer."""
        table = self.table.assign(importance=importance)

        def rho(rows):
            found = spearman(rows["selectivity"], rows["importance"])
            return None if np.isnan(found) else float(found)  # JSON has no NaN

        return {"rho": rho(table), "within": [rho(rows) for _, rows in table.groupby("layer", sort=False)]}
