"""The rules for what later work says, X1 to X5, written when the networks of the paper's figures had been measured."""

from functools import partial

import numpy as np
import pandas as pd

from repro.ablation import auc
from repro.beyond import class_damage
from repro.claims.paper import selection
from repro.claims.statistics import counted_spearman, mean_over, spearman
from repro.claims.tables import (
    CURVE,
    alive_units,
    areas_of,
    arm_means,
    correlations,
    corruption_arms,
    networks_of,
    one_curve,
    one_row,
    over_units,
    settings_of,
    size_notes,
    spelled,
    with_arms,
)
from repro.claims.verdicts import Effect, claim, grade, minus, two

ZHOU = "later work: Zhou, Sun, Bau, Torralba 2018"
AMJAD = "later work: Amjad, Liu, Geiger 2018"
LEAVITT = "later work: Leavitt, Morcos 2021"
RANADIVE = "later work: Ranadive et al. 2023"
CONTROL = "later work: a control"
CASPER = "later work: Casper et al. 2021"

# X1: damage to single classes ----------------------------------------------------------------------------------------


@claim("X1", "x1", "layer", "unit", "class", "share", "delta_accuracy", "selectivity", "preferred_class",
       paper=ZHOU, per_dataset=True)  # fmt: skip
def _x1(table, boot):
    """Selectivity of a unit predicts the damage that its ablation does to single classes.

    Reproduced: within layers, ρ of selectivity with the largest drop of a class and with that of the preferred
    class above 0. Partly: one of the two.
    """
    one_row(table, "network", "layer", "unit", "class")
    alive, dead = alive_units(class_damage(table), "selectivity", "preferred_drop")
    layers = list(alive["layer"].unique())
    drops = {"largest_drop": "largest class drop", "preferred_drop": "drop of the preferred class", "drop": "drop"}
    rhos = {column: correlations(alive, boot, "selectivity", column, layers) for column in drops}
    within = [
        Effect.of(f"ρ(selectivity, {name}) within layers", mean_over(rhos[column][:, 1:]), judged=column != "drop")
        for column, name in drops.items()
    ]
    everywhere = [
        Effect.of(f"ρ(selectivity, {name}) over all units", rhos[column][:, 0], judged=False)
        for column, name in drops.items()
    ]
    sizes = [
        Effect(f"mean {name} of a unit", float(alive[column].mean()), judged=False) for column, name in drops.items()
    ]
    notes = [dead, *size_notes([0] * table["network"].nunique(), "units")]
    return [*within, *everywhere, *sizes], two(within[0].above(0), within[1].above(0)), notes


# X2: within layers, and ablation in order ----------------------------------------------------------------------------


@claim("X2a", "x2", "layer", "unit", "selectivity", "mutual_information", "delta_loss", paper=AMJAD, per_dataset=True)
def _x2a(table, boot):
    """Within a layer, selective and informative units are the more important ones.

    Reproduced: within layers, ρ of selectivity and ρ of mutual information with importance above 0. Partly: one of
    the two.
    """
    alive, dead = alive_units(table, "selectivity", "mutual_information", "delta_loss")
    layers, within, everywhere = list(alive["layer"].unique()), [], []
    for column in ("selectivity", "mutual_information"):
        rhos = correlations(alive, boot, column, "delta_loss", layers)
        within.append(Effect.of(f"ρ({spelled(column)}, importance) within layers", mean_over(rhos[:, 1:])))
        everywhere.append(Effect.of(f"ρ({spelled(column)}, importance) over all units", rhos[:, 0], judged=False))
    notes = [dead, *size_notes([0] * table["network"].nunique(), "units")]
    return [*within, *everywhere], two(*(effect.above(0) for effect in within)), notes


@claim("X2b", "x2", "by", "direction", *CURVE, paper=AMJAD, per_dataset=True)
def _x2b(table, boot):
    """Ablating the selective or informative units of each layer first does more damage than ablating them last.

    Reproduced: for selectivity and for mutual information, AUC with the lowest first − with the highest first above
    0. Partly: one of the two.
    """
    with_arms(table, "direction", "ascending", "descending")
    by = ["network", "by", "direction", "order"]
    areas = auc(one_curve(table, *by), by=by).groupby(by[:3]).mean().unstack("direction")
    effects = []
    for name in ("selectivity", "mutual_information", "importance", "l1_norm"):
        if name in areas.index.get_level_values("by"):
            rows = areas.xs(name, level="by")
            difference = _differing(rows["ascending"] - rows["descending"], boot)
            about = f"AUC, low {spelled(name)} first − high first"
            effects.append(Effect.of(about, difference.mean(axis=1), name in ("selectivity", "mutual_information")))
    judged = [effect for effect in effects if effect.judged]
    if len(judged) < 2:
        raise ValueError("table: X2b needs curves by selectivity and by mutual_information")
    notes = size_notes([0] * table["network"].nunique(), None)
    return effects, two(*(effect.above(0) for effect in judged)), notes


# X3: a penalty on selectivity ----------------------------------------------------------------------------------------


@claim("X3", "x3", "alpha", "layer", "unit", "selectivity", "test_accuracy", paper=LEAVITT, per_dataset=True)
def _x3(table, boot):
    """Training against selectivity lowers it at almost no cost; training for selectivity hurts.

    Reproduced: α = −1 lowers mean selectivity and costs less than 1 % point of test accuracy, and α = 1 lowers test
    accuracy. Partly: one of the two.
    """
    one_row(table, "network", "layer", "unit")
    networks = with_arms(networks_of(table, "alpha", "test_accuracy"), "alpha", -1, 0, 1)
    arms = networks["alpha"]
    accuracy = arm_means(_differing(networks["test_accuracy"], boot, arms), arms)
    mean = table.groupby("network", sort=False)["selectivity"].mean()[networks.index]  # without dead units
    selectivity = arm_means(_differing(mean, boot, arms), arms)
    effects = {}
    for alpha in sorted(set(arms) - {0}):
        for name, values in (("mean selectivity", selectivity), ("test accuracy", accuracy)):
            judged = (alpha, name) in ((-1, "mean selectivity"), (-1, "test accuracy"), (1, "test accuracy"))
            what = minus(f"{name}, α = {alpha:g} less α = 0")
            effects[alpha, name] = Effect.of(what, values[alpha] - values[0], judged)
    lowered = effects[-1, "mean selectivity"].below(0) and effects[-1, "test accuracy"].above(-0.01)
    verdict = two(lowered, effects[1, "test accuracy"].below(0))
    return list(effects.values()), verdict, [*_dead_notes(table, "alpha", "α = {:g}"), *size_notes(arms, None)]


# X4: along training --------------------------------------------------------------------------------------------------


@claim("X4", "x4", "epoch", "layer", "unit", "selectivity", "delta_loss", paper=RANADIVE, per_dataset=True)
def _x4(table, boot):
    """Selective units appear early in training, and matter more then than at its end.

    Reproduced: more than half of the rise of mean selectivity in the first tenth of training, and ρ with importance
    higher then than at the end. Partly: one of the two.
    """
    epochs = np.sort(table["epoch"].unique())
    early = epochs[(epochs > 0) & (epochs <= epochs[-1] / 10)]
    if epochs[0] != 0 or len(early) == 0:
        raise ValueError("table: X4 needs epoch 0 and one in the first tenth of training")
    one_row(table, "network", "epoch", "layer", "unit")
    within = []
    for network, units in table.groupby("network", sort=False):
        if absent := sorted(set(epochs) - set(units["epoch"])):
            raise ValueError(f"table: X4 needs all networks at the same epochs, {network} lacks {absent[0]}")
        wide = units.pivot(index=["layer", "unit"], columns="epoch", values=["selectivity", "delta_loss"])
        statistic = _along_training(wide["selectivity"], wide["delta_loss"], early[-1], epochs[-1])
        within.append(boot.once(partial(boot.units, len(wide), statistic)))
    values = mean_over(boot.networks(within))
    share = Effect.of(f"share of the rise in mean selectivity made by epoch {early[-1]} of {epochs[-1]}", values[:, 0])
    change = Effect.of("ρ(selectivity, importance) within layers, early − at the end", values[:, 1])
    beside = [
        Effect.of(f"ρ(selectivity, importance) within layers, {when}", values[:, i], judged=False)
        for i, when in ((2, f"epoch {early[-1]}"), (3, f"epoch {epochs[-1]}"))
    ]
    judged = table[table["epoch"].isin([epochs[0], early[-1], epochs[-1]])]
    notes = [*_dead_notes(judged, "epoch", "epoch {:g}"), *size_notes([0] * len(within), "units")]
    return [share, change, *beside], two(share.above(0.5), change.above(0)), notes


def _along_training(selectivity, importance, early, last):
    """A function of counts of units (b, n): share of the rise, change of ρ, ρ early and ρ at the end, (b, 4)."""
    alive = selectivity.notna().to_numpy(dtype=float)
    values = selectivity.fillna(0).to_numpy()
    epochs = list(selectivity.columns)
    layers = selectivity.index.get_level_values("layer")

    def rho(counts, epoch):
        x, y = selectivity[epoch].to_numpy(), importance[epoch].to_numpy()
        parts = [(layers == layer) & np.isfinite(x) for layer in layers.unique()]
        return mean_over(np.stack([counted_spearman(x[p], y[p], counts[:, p]) for p in parts], axis=-1))

    def statistic(counts):
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (counts @ values) / (counts @ alive)  # (b, epochs)
            rise = np.fmax.reduce(means, axis=1) - means[:, 0]
            # A network whose selectivity never rises made no rise early; one that is dead at first has none.
            share = np.where(rise > 0, (means[:, epochs.index(early)] - means[:, 0]) / rise, 0 * rise)
        first, end = rho(counts, early), rho(counts, last)
        return np.stack([share, first - end, first, end], axis=-1)

    return statistic


# X5: controls --------------------------------------------------------------------------------------------------------


@claim("X5a", "x5", "lr", "batch_size", "train_accuracy", "test_accuracy", *CURVE, paper=CONTROL)
def _x5a(table, boot):
    """AUC predicts test accuracy even when divided by unablated accuracy, and given training accuracy.

    Reproduced: both ρ above 0. Partly: one of the two.
    """
    (train, test, area, normalised), notes = settings_of(table, boot)
    effects = [
        Effect.of("ρ(normalised AUC, test accuracy)", spearman(normalised, test)),
        Effect.of("ρ(AUC, test accuracy) given training accuracy", spearman(area, test, train)),
    ]
    chosen = selection(normalised[0], test[0], boot.rng)
    beside = [Effect(f"{name} (normalised)", v, judged=False) for name, v in chosen.items()]
    return [*effects, *beside], two(*(effect.above(0) for effect in effects)), notes


@claim("X5b", "x5", "corruption", *CURVE, paper=CONTROL, per_dataset=True)
def _x5b(table, boot):
    """AUC differs more between corruption fractions than between networks of one fraction or orders of one network.

    Reproduced: more than half of AUC's variance is between fractions. Partly: the estimate is more than half.
    """
    arms, _ = corruption_arms(table, least=0.2)
    by = ["network", "order"]
    areas = auc(one_curve(table, *by), by=by).groupby("network")
    within = []  # of every network: mean and variance over its orders
    for network in arms.index:
        orders = areas.get_group(network).to_numpy()
        drawn = orders[boot.picks([0] * len(orders))]
        within.append(
            np.stack([drawn.mean(axis=1), drawn.var(axis=1, ddof=1) if len(orders) > 1 else 0 * drawn[:, 0]], axis=-1)
        )
    components = _variances(boot.networks(within, arms), arms, areas.size().min())
    share = Effect.of("share of AUC's variance between fractions", components["fractions"] / sum(components.values()))
    beside = [
        Effect.of(f"SD of AUC between {what}", np.sqrt(variance), judged=False) for what, variance in components.items()
    ]
    notes = [*size_notes(arms), "the share is biased upwards: fractions differ by their few networks, too"]
    return [share, *beside], grade(share.above(0.5), share.estimate > 0.5), notes


def _variances(values, arms, n_orders):
    """Components of a nested analysis of variance, {what: (draws,)}, of (draws, networks, 2): each network's mean and variance
    over its orders. The variance of networks' means contains that of orders, divided by their number."""
    codes, _ = pd.factorize(arms)
    means = [values[:, codes == code, 0] for code in range(codes.max() + 1)]  # (draws, networks) of every fraction
    within = np.mean([group.var(axis=1, ddof=1) if group.shape[1] > 1 else 0 * group[:, 0] for group in means], axis=0)
    orders = values[..., 1].mean(axis=1)
    return {
        "fractions": np.var([group.mean(axis=1) for group in means], axis=0, ddof=1),
        "networks": np.clip(within - orders / n_orders, 0, None),
        "orders": orders,
    }


@claim("X5c", "x5", "corruption", "value", *CURVE, paper=CONTROL, per_dataset=True)
def _x5c(table, boot):
    """Networks that memorized fall faster whatever their units are ablated to.

    Reproduced: AUC(0) − AUC(1) above 0 for zero, mean and resampled values. Partly: for one of them.
    """
    with_arms(table, "value", "zero", "mean", "resampled")
    effects = [_fall(table[table["value"] == v], boot, f", to {v}") for v in ("zero", "mean", "resampled")]
    above = [effect.above(0) for effect in effects]
    return effects, grade(all(above), any(above)), size_notes(networks_of(table, "corruption")["corruption"])


@claim("X5d", "x5", "corruption", "directions", *CURVE, paper=CONTROL, per_dataset=True)
def _x5d(table, boot):
    """Networks that memorized fall faster also when random directions, not units, are removed from their layers.

    Reproduced: AUC(0) − AUC(1) with random directions above 0. Partly: its estimate above 0.
    """
    with_arms(table, "directions", "units", "random")
    random, single = (
        _fall(table[table["directions"] == d], boot, f", {d}", d == "random") for d in ("random", "units")
    )
    by = ["network", "directions", "order"]
    areas = auc(one_curve(table, *by), by=by).groupby(by[:2]).mean().unstack("directions")
    networks = networks_of(table, "corruption")["corruption"]
    beside = []
    for fraction in sorted(networks.unique()):
        rows = areas.loc[networks.index[networks == fraction]]
        difference = _differing(rows["random"] - rows["units"], boot)
        beside.append(Effect.of(f"AUC, random − units, corruption {fraction:g}", difference.mean(axis=1), judged=False))
    return [random, single, *beside], grade(random.above(0), random.estimate > 0), size_notes(networks)


@claim("X5e", "x5", "layer", "unit", "selectivity", "l1_norm", "folded_l1_norm", paper=CONTROL, per_dataset=True)
def _x5e(table, boot):
    """Folding batch norm into the weights leaves the relation of selectivity and L1 norm as it was.

    Reproduced: ρ changes by less than 0.2. Partly: the interval of the change reaches into ±0.2.
    """
    alive, dead = alive_units(table, "selectivity", "l1_norm", "folded_l1_norm")

    def statistic(units):
        x, raw, folded = (units[c].to_numpy(dtype=float) for c in ("selectivity", "l1_norm", "folded_l1_norm"))
        return lambda counts: np.stack([counted_spearman(x, y, counts) for y in (raw, folded)], axis=-1)

    raw, folded = np.broadcast_to(over_units(alive, boot, statistic), (boot.size, 2)).T  # one NaN if no unit is alive
    layers = list(alive["layer"].unique())
    within = {
        name: mean_over(correlations(alive, boot, "selectivity", column, layers)[:, 1:])
        for name, column in (("plain", "l1_norm"), ("folded", "folded_l1_norm"))
    }
    change = Effect.of("ρ(selectivity, L1 norm), folded − plain", folded - raw)
    beside = [
        Effect.of(f"ρ(selectivity, L1 norm), {name}", v, judged=False)
        for name, v in (("plain", raw), ("folded", folded))
    ]
    beside += [
        Effect.of(f"ρ(selectivity, L1 norm) within layers, {name}", v, judged=False) for name, v in within.items()
    ]
    verdict = grade(change.above(-0.2) and change.below(0.2), change.low < 0.2 and change.high > -0.2)
    return [change, *beside], verdict, [dead, *size_notes([0] * table["network"].nunique(), "units")]


@claim("X5f", "x5", "width", *CURVE, paper=CASPER, per_dataset=True)
def _x5f(table, boot):
    """Wider networks lose less by the same fraction: their units are redundant, and only equal widths compare.

    Reproduced: ρ of width and AUC above 0.5. Partly: above 0.
    """
    arms = networks_of(table, "width")["width"].astype(float)
    if arms.nunique() < 3:
        raise ValueError(f"table: X5f needs networks of at least three widths, got {arms.nunique()}")
    values = boot.networks(areas_of(table, arms.index, boot), arms)
    rho = Effect.of("ρ(width, AUC)", spearman(arms, values))
    means = arm_means(values, arms)
    beside = [Effect.of(f"AUC at width {width:g}", draws, judged=False) for width, draws in sorted(means.items())]
    return [rho, *beside], grade(rho.above(0.5), rho.above(0)), size_notes(arms)


# Parts of some claims ------------------------------------------------------------------------------------------------


def _differing(values, boot, arms=None):
    """Draws of networks that have one value each, (draws, networks); NaN for a network that is alone in its arm, as it
    says nothing about how much networks differ."""
    arms = pd.Series(0, index=range(len(values))) if arms is None else arms
    draws = boot.networks(np.tile(np.asarray(values, dtype=float)[:, None], boot.size), arms)
    draws[1:, arms.groupby(arms).transform("size") == 1] = np.nan
    return draws


def _dead_notes(table, column, form):
    """The share of dead units, which are left out, at every level of a column."""
    dead = table["selectivity"].isna().groupby(table[column]).mean()
    shares = ", ".join(minus(f"{share:.1%} at {form.format(level)}") for level, share in dead.items())
    return [f"dead units, left out: {shares}"]


def _fall(table, boot, what, judged=True):
    """By how much the AUC of the clean networks exceeds that of the most corrupted ones."""
    arms, fractions = corruption_arms(table, least=0.2)
    mean = arm_means(boot.networks(areas_of(table, arms.index, boot), arms), arms)
    return Effect.of(f"AUC(0) − AUC({fractions[-1]:g}){what}", mean[0] - mean[fractions[-1]], judged=judged)
