"""Beyond loss and random orders: norms of weights (Fig. A3), and what later work asks of single directions.

Damage to single classes (Zhou et al. 2018), ablation in order of a unit's properties (Amjad et al. 2018), and directions that
are no units: random ones, projected out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from repro import ablation, selectivity
from repro.ablation import points
from repro.checks import check_integer, check_table, renamed
from repro.evaluation import check_scores, evaluating, score_columns, scores
from repro.graph import already_warned
from repro.units import Cut, prepare
from repro.values import clamp_values
from repro.work import progress

PROPERTIES = ("selectivity", "mutual_information", "importance", "l1_norm")


def weights(model: nn.Module, x, y, layers: Sequence[str] | None = None, folded: bool = False) -> pd.DataFrame:
    """L1 norm of the incoming weights of every unit (Fig. A3).

    The weights of a unit layer are those of the last convolution or linear layer on the way to it; where a shortcut is
    added, of the branch, not of the shortcut.

    Parameters
    ----------
    model, x, layers
        As in `ablation.single_unit`; the images tell shapes alone.
    y
        Not looked at: every analysis takes labels.
    folded : bool
        Multiply the weights by what the batch norm that follows them makes of them, γ / √(variance + ε).

    Returns
    -------
    DataFrame
        A row per unit: layer, unit, l1_norm.

    Raises
    ------
    ValueError
        As `ablation.single_unit` for model, x and layers; a layer whose units no convolution or linear layer makes.
    """
    if not isinstance(folded, bool | np.bool_):
        raise ValueError(f"folded: expected True or False, got {folded!r}")
    cut = Cut(model, x, layers)
    sources = {layer: cut.program.source(layer) for layer in cut.layers}
    factors = _batch_norm_factors(model, x[:2].to(cut.device), sources) if folded else {}
    tables = []
    for layer, n in cut.layers.items():
        weight = sources[layer].weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # half precision is for networks
        norm = weight.abs().flatten(1).sum(1) * factors.get(layer, 1)
        check_scores(norm, "model")
        tables.append(pd.DataFrame({"layer": layer, "unit": np.arange(n), "l1_norm": norm.cpu().numpy()}))
    return pd.concat(tables, ignore_index=True)


def _batch_norm_factors(model: nn.Module, x: torch.Tensor, sources: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """|γ| / √(variance + ε) of the batch norm that takes the output of each of some modules; none where there is none."""
    from torchvision.ops import FrozenBatchNorm2d  # a second to import

    made: dict[nn.Module, torch.Tensor] = {}
    norms: dict[nn.Module, nn.Module] = {}

    def keep(module, _, output):
        made[module] = output

    def find(norm, inputs):
        norms.update({source: norm for source, output in made.items() if inputs[0] is output})

    handles = [source.register_forward_hook(keep) for source in set(sources.values())]
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | FrozenBatchNorm2d
    handles += [module.register_forward_pre_hook(find) for module in model.modules() if isinstance(module, kinds)]
    try:
        with evaluating(model):
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    factors = {
        source: (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach().abs())
        for source, norm in norms.items()
    }
    return {layer: factors[source] for layer, source in sources.items() if source in factors}


def class_drops(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, layers: Sequence[str] | None = None
) -> pd.DataFrame:
    """How the accuracy on each class changes when each unit is ablated alone, to zero.

    Parameters
    ----------
    model, x, y, layers
        As in `ablation.single_unit`.

    Returns
    -------
    DataFrame
        A row per unit and class: layer, unit, class, share (of the images), delta_accuracy (ablated − intact).

    Raises
    ------
    ValueError
        As `ablation.single_unit`.
    """
    cut, x, y = prepare(model, x, y, layers)
    present, shares = np.unique(y.cpu().numpy(), return_counts=True)
    total = sum(cut.layers.values())
    with evaluating(model), progress(total=total * len(x), desc="classes") as bar:
        clamp = clamp_values(cut, "zero", x)
        members = [y == label for label in torch.as_tensor(present, device=y.device)]
        sums = [ablation.each_unit(cut, clamp, bar, x[mine], y[mine]) for mine in members]
    change = torch.stack([each[1:, 1] for each in sums], dim=1).numpy() / shares  # (units, classes)
    units = pd.DataFrame(cut.units, columns=["layer", "unit"])
    table = units.loc[units.index.repeat(len(present))].reset_index(drop=True)
    columns = {
        "class": np.tile(present, total),
        "share": np.tile(shares / len(x), total),
        "delta_accuracy": change.ravel(),
    }
    return table.assign(**columns)


def class_damage(table: pd.DataFrame) -> pd.DataFrame:
    """One row per unit from one row per unit and class, of many networks.

    Parameters
    ----------
    table : DataFrame
        Of `class_drops` merged with `selectivity.table`: network, layer, unit, class, share, delta_accuracy, preferred_class.

    Returns
    -------
    DataFrame
        With largest_drop, that of a class's accuracy, preferred_drop, that of the unit's preferred class (NaN for dead
        units), and drop, of all images' accuracy; drops are positive. Other columns stay.

    Raises
    ------
    ValueError
        If a column is missing.
    """
    keys = ["network", "layer", "unit"]
    check_table(table, *keys, "class", "share", "delta_accuracy", "preferred_class")
    table = table.assign(largest_drop=-table["delta_accuracy"], drop=-table["delta_accuracy"] * table["share"])
    table["preferred_drop"] = table["largest_drop"].where(table["class"] == table["preferred_class"])
    how = {"largest_drop": "max", "preferred_drop": "max", "drop": "sum"}
    rest = {column: "first" for column in table if column not in {*keys, *how, "class", "share", "delta_accuracy"}}
    # A drop of all images is a whole number of them: rounding errors of the sum would break ties.
    return table.groupby(keys, sort=False).agg(how | rest).reset_index().round({"drop": 9})


def ranked(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    x_test: torch.Tensor,
    y_test: torch.Tensor,
    layers: Sequence[str] | None = None,
    by: Sequence[str] = PROPERTIES,
    steps: int = 20,
) -> pd.DataFrame:
    """Cumulative ablation to zero in ascending and in descending order of what units are like.

    Units are ranked within their layer, so that at every point each layer has lost the same share of its units: curves show
    the order of units, not that of layers. Dead units count as the least selective.

    Parameters
    ----------
    model, layers, steps
        As in `ablation.cumulative`.
    x, y, x_test, y_test : Tensors
        Curves are measured on the first images, properties on the second.
    by : sequence of str
        Some of "selectivity", "mutual_information", "importance" (change in loss) and "l1_norm".

    Returns
    -------
    DataFrame
        As `ablation.cumulative` returns it, with the columns by and direction ("ascending" or "descending") before.

    Raises
    ------
    ValueError
        As `ablation.cumulative`; for an unknown name in `by`.
    """
    if not isinstance(by, list | tuple) or not by or any(name not in PROPERTIES for name in by):
        raise ValueError(f"by: expected some of {', '.join(PROPERTIES)}, got {by!r}")
    with renamed({"x": "x_test", "y": "y_test"}):
        units = selectivity.table(model, x_test, y_test, layers)
    with already_warned():
        if "importance" in by:
            units = units.merge(ablation.single_unit(model, x_test, y_test, layers))
        if "l1_norm" in by:
            units = units.merge(weights(model, x_test, y_test, layers))
    units = units.rename(columns={"delta_loss": "importance"})
    orders, names = [], []
    for name in by:
        ranks = units[name].fillna(-np.inf).groupby(units["layer"]).rank(method="first", pct=True)
        in_order = units.loc[ranks.sort_values(kind="stable").index]
        ascending = list(zip(in_order["layer"], in_order["unit"], strict=True))
        orders += [ascending, ascending[::-1]]
        names += [(name, "ascending"), (name, "descending")]
    with already_warned():
        curves = ablation.cumulative(model, x, y, layers, orders=orders, steps=steps)
    which = pd.DataFrame([names[order] for order in curves["order"]], columns=["by", "direction"])
    return pd.concat([which, curves.assign(order=0)], axis=1)


def projections(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    layers: Sequence[str] | None = None,
    orders: int = 10,
    steps: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Loss and accuracy while more and more random directions are projected out of every layer.

    What `ablation.cumulative` does along the axes of a layer's space, along the axes of that space turned at random; every
    layer loses the same share of its directions, and in the end all of them. A direction of feature maps is the same at
    every position.

    Parameters
    ----------
    model, x, y, layers, orders, steps, seed
        As in `ablation.cumulative`; `orders` is a number of random bases.

    Returns
    -------
    DataFrame
        As `ablation.cumulative` returns it; n_ablated counts directions.

    Raises
    ------
    ValueError
        As `ablation.cumulative`.
    """
    cut, x, y = prepare(model, x, y, layers)
    total = sum(cut.layers.values())
    at = points(total, steps)
    check_integer("orders", orders, 1)
    bases = [_bases(cut, (check_integer("seed", seed, 0), order)) for order in range(orders)]
    with evaluating(model), progress(total=orders * len(at) * len(x), desc="random directions") as bar:

        def work(block: slice) -> torch.Tensor:
            """Scores of a block of images at all points of all curves: (points, S)."""
            tail, found = cut.start(x[block]), []
            for turned in bases:
                for n in at:
                    kept = {name: basis[:, round(len(basis) * n / total) :] for name, basis in turned.items()}
                    found.append(scores(tail(lambda name, h, kept=kept: _within(h, kept[name])), y[block]))
                    bar.update(block.stop - block.start)
            return torch.stack(found).cpu()

        sums = cut.total(work, len(x))
    where = {"order": np.repeat(np.arange(orders), len(at)), "n_ablated": np.tile(at, orders)}
    where["fraction_ablated"] = where["n_ablated"] / total
    return pd.DataFrame(where | score_columns(sums, len(x)))


def _bases(cut: Cut, stream: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A random orthonormal basis of every layer's space, a column per direction: {layer: (C, C)}."""
    rng = np.random.default_rng(stream)
    bases = {name: np.linalg.qr(rng.standard_normal((units, units)))[0] for name, units in cut.layers.items()}
    return {name: torch.from_numpy(basis).to(cut.device, cut.dtype) for name, basis in bases.items()}


def _within(h: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The part of activations (n, C, ...) that lies within the space of some orthonormal directions (C, k)."""
    h, directions = h.movedim(1, -1), directions.to(h.dtype)
    return (h @ directions @ directions.T).movedim(-1, 1)
