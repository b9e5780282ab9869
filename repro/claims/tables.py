"""From a tidy table to what the rules compare: networks and their arms, curves and areas, living units."""

import numpy as np
import pandas as pd

from repro.ablation import auc
from repro.checks import check_table
from repro.claims.statistics import counted_spearman, mean_over

CURVE = ("order", "fraction_ablated", "accuracy")  # columns of a cumulative ablation curve


def networks_of(table, *columns):
    """One row per network, in the table's order, of columns that must be constant within each."""
    groups = check_table(table, "network", *columns).groupby("network", sort=False)[list(columns)]
    varying = groups.nunique(dropna=False).gt(1).any()
    if varying.any():
        raise ValueError(f"table: expected one value per network in {', '.join(varying.index[varying])}")
    return groups.first()


def spelled(column):
    """A property of units in words: "mutual_information" is "mutual information", "l1_norm" is "L1 norm"."""
    return column.replace("_", " ").replace("l1", "L1")


def with_arms(table, column, *arms):
    """The table, once it is sure that the column has all these values."""
    absent = [f"{column} {arm}" for arm in arms if not (table[column] == arm).any()]
    if absent:
        raise ValueError(f"table: needs networks with {' and '.join(absent)}")
    return table


def corruption_arms(table, least):
    """The networks' corruption, and the fractions from `least` on that are compared with 0."""
    arms = with_arms(networks_of(table, "corruption").astype(float).round(6), "corruption", 0)["corruption"]
    fractions = sorted(f for f in arms.unique() if f >= least)
    if not fractions:
        raise ValueError(f"table: needs networks with corruption {least} or more")
    return arms, fractions


def one_row(table, *by):
    """The table, once it is sure that it holds one row per `by`."""
    if table.duplicated(list(by)).any():
        raise ValueError(f"table: expected one row per {', '.join(by)}; are epochs or values mixed?")
    return table


def one_curve(table, *by, x="fraction_ablated"):
    """The table, once it is sure that it holds one curve per `by`, all of them from the intact network to one end."""
    if table["accuracy"].isna().any():
        raise ValueError("table: expected an accuracy in every row, got NaN")
    ends = table.groupby(list(by))[x].agg(["min", "max"])
    if (ends["min"] != 0).any():
        raise ValueError(f"table: expected every curve to begin with the intact network, at {x} 0")
    if not np.allclose(ends["max"], ends["max"].iloc[0]):
        raise ValueError(
            f"table: expected curves to one end, got some to {x} {ends['max'].min():g}, some to {ends['max'].max():g}"
        )
    return one_row(table, *by, x)


def curves_of(table, *by, x="fraction_ablated"):
    """Every curve, sorted by x: (key, (x, accuracy))."""
    for key, curve in one_curve(table, *by, x=x).sort_values(x).groupby(list(by)):
        yield key, (curve[x].to_numpy(dtype=float), curve["accuracy"].to_numpy(dtype=float))


def areas_of(table, networks, boot, normalize=False):
    """AUC of each of these networks, orders resampled: (networks, draws)."""
    by = ["network", "order"]

    def draw():
        areas = auc(one_curve(table, *by), by=by, normalize=normalize).groupby("network")
        return np.stack([boot.orders(areas.get_group(network)) for network in networks])

    return boot.once(draw)


def settings_of(table, boot):
    """Training accuracy, test accuracy, AUC as it is and divided by unablated accuracy of every pair of learning rate and
    batch size, means over its networks, (4, draws, settings), and a note. Settings are drawn, for each its networks, and for
    each of those its orders."""
    networks = networks_of(table, "lr", "batch_size", "train_accuracy", "test_accuracy")
    accuracies = [np.tile(networks[[column]], boot.size) for column in ("train_accuracy", "test_accuracy")]
    areas = [areas_of(table, networks.index, boot, normalize) for normalize in (False, True)]
    arms = networks.groupby(["lr", "batch_size"], sort=False).ngroup()
    means = arm_means(boot.networks(np.stack([*accuracies, *areas], axis=-1), arms), arms)
    values = boot.networks(list(means.values()))  # for one more step of drawing
    return np.moveaxis(values, -1, 0), [f"{len(networks)} networks in {len(means)} settings, which are drawn too"]


def chance(table):
    """Accuracy of guessing: a tenth, unless a column `classes` tells their number (the data sets of the figures have ten)."""
    return 1 / table["classes"].iloc[0] if "classes" in table else 0.1


def alive_units(table, *columns):
    """Units that are not dead and have a value in every column, and a note on the others."""
    one_row(table, "network", "layer", "unit")
    dead = table[list(columns)].isna().any(axis=1)
    if "dead" in table:
        dead |= table["dead"].astype(bool)
    return table[~dead], f"dead units, left out: {dead.mean():.1%}"


def size_notes(arms, within="orders"):
    """Notes on the number of networks; `arms` has one entry per network, `within` is what is drawn within one, if anything."""
    sizes = pd.Series(arms).value_counts()
    each = f" in {len(sizes)} arms of at least {sizes.min()}" if len(sizes) > 1 else ""
    alone = f"the interval reflects {within} only" if within else "no interval"
    few = {1: f"one network per arm: {alone}", 2: "two networks per arm: rough"}
    few |= dict.fromkeys((3, 4), "few networks per arm: in effect a 75 to 80 % interval")
    return [f"networks: {sizes.sum()}{each}", *([few[sizes.min()]] if sizes.min() in few else [])]


def arm_means(values, arms):
    """Mean over the networks of each arm: (draws, networks, …) -> {arm: (draws, …)}."""
    codes, names = pd.factorize(pd.Series(arms))
    return {name: values[:, codes == code].mean(axis=1) for code, name in enumerate(names)}


def over_units(alive, boot, statistic):
    """Mean over networks of what `statistic(units)`, a function of counts, gives: (draws, k)."""
    each = [units for _, units in alive.groupby("network", sort=False)]
    within = boot.once(lambda: [boot.units(len(units), statistic(units)) for units in each])
    values = mean_over(boot.networks(within)) if within else np.full(boot.size, np.nan)
    return values.reshape(boot.size, -1)


def correlations(alive, boot, x, y, layers=()):
    """ρ of x and y over a network's units and within each layer, mean over networks: (draws, 1 + layers)."""

    def statistic(units):
        a, b = units[x].to_numpy(dtype=float), units[y].to_numpy(dtype=float)
        parts = [slice(None), *((units["layer"] == layer).to_numpy() for layer in layers)]
        return lambda counts: np.stack([counted_spearman(a[p], b[p], counts[:, p]) for p in parts], axis=-1)

    return over_units(alive, boot, statistic)
