"""Pictures of the paper's panels, drawn from tidy tables in one house style.

    figure = Figure("fig1", preset="digits", panels="ab")
    with figure.panel("a", "MLP on MNIST") as ax:
        curves(ax, table, hue="corruption")
        figure.check("C1", table)
    figure.save()

Every drawing function takes axes and a table, and writes under the axes what the table was made from.
"""

from repro.plots.dots import auc_against, importance, per_network, rank_correlations, scatter
from repro.plots.figure import Figure
from repro.plots.lines import curves, noise, spread, training
from repro.plots.means import means
from repro.plots.shapes import by_depth, distributions
from repro.plots.words import depth, note

__all__ = [
    "Figure",
    "auc_against",
    "by_depth",
    "curves",
    "depth",
    "distributions",
    "importance",
    "means",
    "noise",
    "note",
    "per_network",
    "rank_correlations",
    "scatter",
    "spread",
    "training",
]
