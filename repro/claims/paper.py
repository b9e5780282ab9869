"""The rules for the paper's fifteen claims, fixed before any network was trained; what changed later says `BEFOREHAND`."""

import numpy as np
import pandas as pd

from repro.ablation import auc
from repro.claims.statistics import mean_over, spearman
from repro.claims.tables import (
    CURVE,
    alive_units,
    areas_of,
    arm_means,
    chance,
    correlations,
    corruption_arms,
    curves_of,
    networks_of,
    one_curve,
    over_units,
    settings_of,
    size_notes,
    spelled,
    with_arms,
)
from repro.claims.verdicts import NOT_REPRODUCED, Effect, claim, grade, two

MEMORIZED = 0.99  # training accuracy: what both arms of C5b must reach, and networks told apart in C3a and C3b
LEARNED = f" of networks of at least {MEMORIZED:.0%} training accuracy"
AREAS = ("AUC", "normalised AUC")  # as it is, which rules are about, and divided by the unablated accuracy


@claim("C1", "1a-c", "corruption", *CURVE, per_dataset=True)
def _c1(table, boot):
    """Networks that memorized corrupted labels rely more on single directions.

    Reproduced: ρ below −0.5, and AUC(0) − AUC(f) above 0 for every fraction f of corrupted labels from 0.2 on.
    Partly: one of the two.
    """
    arms, fractions = corruption_arms(table, least=0.2)
    values = boot.networks(areas_of(table, arms.index, boot), arms)
    rho = Effect.of("ρ(corruption, AUC)", spearman(arms, values))
    mean = arm_means(values, arms)
    falls = [Effect.of(f"AUC(0) − AUC({f:g})", mean[0] - mean[f]) for f in fractions]
    normalised = boot.networks(areas_of(table, arms.index, boot, normalize=True), arms)
    beside = Effect.of("ρ(corruption, normalised AUC)", spearman(arms, normalised), judged=False)
    return [rho, *falls, beside], two(rho.below(-0.5), all(e.above(0) for e in falls)), size_notes(arms)


@claim("C2", "2a-b", "corruption", "repeat", "scale", "accuracy", per_dataset=True)
def _c2(table, boot):
    """Networks that memorized corrupted labels tolerate several times less noise on their units.

    Reproduced: ρ below −0.5, and s(0) / s(f) above 1.5 for every fraction f from 0.4 on, s being the scale of noise at
    which accuracy is half way to chance (one in ten, unless a column `classes` tells). Partly: one of the two.
    """
    arms, fractions = corruption_arms(table, least=0.4)
    log_scales, censored, guess = {network: [] for network in arms.index}, 0, chance(table)
    for (network, _), curve in curves_of(table, "network", "repeat", x="scale"):
        scale, outside = _half_way(*curve, guess)
        log_scales[network].append(np.log(scale))
        censored += outside
    values = boot.networks([boot.orders(v) for v in log_scales.values()], arms)
    rho = Effect.of("ρ(corruption, s)", spearman(arms, values))
    mean = arm_means(values, arms)  # of logarithms: noise lives on a log axis, s(f) is a geometric mean
    ratios = [Effect.of(f"s(0) / s({f:g})", np.exp(mean[0] - mean[f])) for f in fractions]
    notes = [*size_notes(arms, "repeats"), f"half way lies outside the scales in {censored} runs"]
    return [rho, *ratios], two(rho.below(-0.5), all(e.above(1.5) for e in ratios)), notes


@claim("C3a", "3a", "train_accuracy", "test_accuracy", *CURVE)
def _c3a(table, boot):
    """Of networks trained alike, those that generalize best are the most robust to ablation.

    Reproduced: the difference above 0. Partly: its estimate above 0.
    """
    effect = _best_less_worst(table, boot)
    if effect is None:
        raise ValueError("table: C3a needs at least two networks")
    # One that learned little has a small gap, and little to lose.
    learned = _best_less_worst(table[table["train_accuracy"] >= MEMORIZED], boot, LEARNED)
    notes = [
        f"best and worst of {table['network'].nunique()} networks by generalization error; which they are is held fixed"
    ]
    return [effect, *([learned] if learned else [])], grade(effect.above(0), effect.estimate > 0), notes


@claim("C3b", "3b", "train_accuracy", "test_accuracy", *CURVE)
def _c3b(table, boot):
    """Among networks trained alike, AUC is the lower the larger the generalization error.

    Reproduced: ρ of normalised AUC and generalization error below 0. Partly: its estimate below 0.
    """
    networks = networks_of(table, "train_accuracy", "test_accuracy")
    train, test = (np.tile(networks[[c]], boot.size) for c in networks)  # (networks, draws)
    normalised, raw = (areas_of(table, networks.index, boot, normalize) for normalize in (True, False))
    within = np.stack([normalised, raw, train, test], axis=-1)
    normalised, raw, train, test = np.moveaxis(boot.networks(within), -1, 0)
    error = train - test
    rho = Effect.of("ρ(normalised AUC, generalization error)", spearman(normalised, error))
    given = "given training accuracy"
    beside = {
        f"ρ(normalised AUC, generalization error) {given}": spearman(normalised, error, given=train),
        "ρ(raw AUC, generalization error)": spearman(raw, error),
        f"ρ(raw AUC, generalization error) {given}": spearman(raw, error, given=train),
        "ρ(normalised AUC, test error)": spearman(normalised, -test),
    }
    learned = (networks["train_accuracy"] >= MEMORIZED).to_numpy()
    if learned.sum() >= 3:
        _, raw, train, test = np.moveaxis(boot.networks(within[learned]), -1, 0)
        beside[f"ρ(raw AUC, generalization error){LEARNED}"] = spearman(raw, train - test)
    if "lr" in table:
        rates = networks_of(table, "lr")["lr"]
        drawn = boot.networks(within, rates)  # every learning rate keeps its number of networks
        clusters = [drawn[:, rates == lr] for lr, size in rates.value_counts(sort=False).items() if size >= 3]
        inside = [spearman(values[..., 0], values[..., 2] - values[..., 3]) for values in clusters]
        if inside:
            beside["ρ(normalised AUC, generalization error) within learning rates"] = mean_over(
                np.stack(inside, axis=1)
            )
    effects = [rho, *(Effect.of(name, draws, judged=False) for name, draws in beside.items())]
    notes = [
        *size_notes([0] * len(networks)),
        "normalised AUC: divided by the unablated accuracy; we read the rule's AUC so, because panel 3b draws it so; "
        "raw AUC, and training accuracy held fixed, stand beside it",
    ]
    return effects, grade(rho.below(0), rho.estimate < 0), notes


@claim("C4a", "4a", "epoch", "test_loss", *CURVE)
def _c4a(table, boot):
    """AUC begins to fall where training and test loss part ways.

    Reproduced: the fall of AUC below 0, and the two epochs within a factor of 2. Partly: one of the two.
    """
    within = []
    for epochs, area, loss in _snapshots(table, boot):
        if len(epochs) < 2:
            raise ValueError(f"table: C4a needs every network at several epochs, got one at {epochs[0]} alone")
        epochs = np.maximum(epochs, 1)  # epoch 0 has no logarithm
        fall, unbiased = area[..., -1] - area.max(axis=-1), area[..., -1] - area[..., loss.argmin()]
        ratio = np.log2(epochs[area.argmax(axis=-1)] / epochs[loss.argmin()])
        within.append(np.stack([fall, np.where(np.isnan(fall), np.nan, ratio), unbiased], axis=-1))
    values = boot.networks(within).mean(axis=1)  # (draws, kinds of AUC, 3)
    effects = []
    for i, which in enumerate(AREAS):
        names = (
            f"{which}(last) − max {which}",
            f"log2(epoch of highest {which} / epoch of lowest test loss)",
            f"{which}(last) − {which}(epoch of lowest test loss)",
        )
        effects += [Effect.of(name, values[:, i, k], judged=i == 0 and k < 2) for k, name in enumerate(names)]
    fall, ratio, *_ = effects
    notes = [
        *size_notes([0] * len(within)),
        "the fall from a maximum cannot be above 0, for a maximum also picks up noise; that from the lowest test loss can",
    ]
    return effects, two(fall.below(0), ratio.low >= -1 and ratio.high <= 1), notes


@claim("C4b", "4b", "epoch", "test_loss", *CURVE, paper="Spearman −0.728 †")
def _c4b(table, boot):
    """Along training, AUC and test loss are negatively related.

    Reproduced: ρ below 0. Partly: its estimate below 0.
    """
    # Test loss falls and rises again: ρ hangs on how many snapshots lie on either side of where it is lowest.
    parts = {"first": slice(1, None), "last": slice(-1)}
    names = [f"ρ({which}, test loss) over snapshots" for which in AREAS]
    names += [f"ρ(AUC, test loss) without the {end} snapshot" for end in parts]
    within = [
        np.column_stack([spearman(area, loss), *(spearman(area[:, 0, part], loss[part]) for part in parts.values())])
        for _, area, loss in _snapshots(table, boot)
    ]
    values = mean_over(boot.networks(within)).T
    rho, *beside = (Effect.of(name, values[i], judged=i == 0) for i, name in enumerate(names))
    return [rho, *beside], grade(rho.below(0), rho.estimate < 0), size_notes([0] * len(within))


@claim(
    *("C4c", "4c", "lr", "batch_size", "train_accuracy", "test_accuracy", *CURVE),
    paper="Spearman 0.914 †; among the best 1 / 5 / 10 of 48 in 13 / 83 / 98 % †; costs 1 ± 1.1 % †",
)
def _c4c(table, boot):
    """Over learning rates and batch sizes, AUC predicts test accuracy well enough to choose by it.

    Reproduced: ρ of AUC and test accuracy above 0.5. Partly: above 0.
    """
    (train, test, area, normalised), notes = settings_of(table, boot)
    rho = Effect.of("ρ(AUC, test accuracy)", spearman(area, test))
    beside = {
        "ρ(normalised AUC, test accuracy)": spearman(normalised, test),
        "ρ(AUC, test accuracy) given training accuracy": spearman(area, test, given=train),
    }
    effects = [rho, *(Effect.of(name, draws, judged=False) for name, draws in beside.items())]
    effects += [Effect(name, value, judged=False) for name, value in selection(area[0], test[0], boot.rng).items()]
    alone = boot.picks([0] * area.shape[1])
    draws = spearman(area[0, alone], test[0, alone])
    effects.insert(1, Effect.of("ρ(AUC, test accuracy), only settings resampled", draws, judged=False))
    notes.append("since Fig. 4c was first measured, networks and orders are resampled, too; before, only settings were")
    return effects, grade(rho.above(0.5), rho.above(0)), notes


@claim("C5a", "5a", "dropout", "corruption", *CURVE)
def _c5a(table, boot):
    """Dropout protects up to its own fraction; past it only networks trained on clean labels stay robust.

    Reproduced: accuracy lost at the dropout fraction below 0.05 in every arm, and clean − corrupted accuracy at
    that fraction + 0.2 above 0. Partly: one of the two.
    """
    table = table[(table["dropout"] > 0) & table["corruption"].isin([0, 1])]
    if table.empty:
        raise ValueError("table: C5a needs networks with dropout above 0 and corruption 0 and 1")
    networks = networks_of(table, "dropout", "corruption")
    rates, arms = sorted(networks["dropout"].unique()), networks.agg(tuple, axis=1)
    absent = [f"dropout {p:g}, corruption {c}" for p in rates for c in (0, 1) if (p, c) not in set(arms)]
    if absent:
        raise ValueError(f"table: C5a needs networks with {'; '.join(absent)}")
    seen = {network: [] for network in arms.index}  # per order: accuracy lost at p, accuracy at p + 0.2
    for (network, _), (x, y) in curves_of(table, "network", "order"):
        p = arms[network][0]
        seen[network].append([y[0] - np.interp(p, x, y), np.interp(p + 0.2, x, y)])
    mean = arm_means(boot.networks([boot.orders(v) for v in seen.values()], arms), arms)
    lost = [Effect.of(f"lost at dropout {p:g}, corruption {c:g}", v[:, 0]) for (p, c), v in mean.items()]
    gaps = [Effect.of(f"clean − corrupted at {p:g} + 0.2", (mean[p, 0] - mean[p, 1])[:, 1]) for p in rates]
    verdict = two(all(e.below(0.05) for e in lost), all(e.above(0) for e in gaps))
    return [*lost, *gaps], verdict, size_notes(arms)


@claim("C5b", "5b", "batch_norm", "train_accuracy", *CURVE)
def _c5b(table, boot):
    """Batch normalization makes networks more robust to ablation.

    Reproduced: the difference above 0, among networks of at least 99 % training accuracy. Partly: its estimate
    above 0.
    """
    networks = with_arms(networks_of(table, "batch_norm", "train_accuracy"), "batch_norm", True, False)
    arms = networks.loc[networks["train_accuracy"] >= MEMORIZED, "batch_norm"].astype(bool)
    notes = [f"left out below {MEMORIZED:.0%} training accuracy: {len(networks) - len(arms)} networks"]
    name = "AUC with − without batch norm"
    if arms.nunique() < 2:
        left = "no network" if arms.empty else f"only networks {'with' if arms.any() else 'without'} batch norm"
        return [Effect(name, np.nan)], NOT_REPRODUCED, [*notes, f"nothing to compare: {left} left"]
    mean = arm_means(boot.networks(areas_of(table, arms.index, boot), arms), arms)
    effect = Effect.of(name, mean[True] - mean[False])
    mean = arm_means(boot.networks(areas_of(table, arms.index, boot, normalize=True), arms), arms)
    beside = Effect.of(f"normalised {name}", mean[True] - mean[False], judged=False)
    return [effect, beside], grade(effect.above(0), effect.estimate > 0), [*notes, *size_notes(arms)]


@claim("C6", "6a-b", "batch_norm", "layer", "unit", "selectivity", "mutual_information")
def _c6(table, boot):
    """Batch normalization lowers class selectivity and raises mutual information.

    Reproduced: the difference of median selectivity below 0, and that of mean mutual information above 0. Partly:
    one of the two.
    """
    arms = with_arms(networks_of(table, "batch_norm"), "batch_norm", True, False)["batch_norm"]
    pooled, notes = {}, size_notes(arms, "units")
    for on, word in ((True, "with"), (False, "without")):
        alive, dead = alive_units(table[table["batch_norm"] == on], "selectivity", "mutual_information")
        pooled[on] = _pooled(alive, boot, len(arms) - 2, "selectivity", "mutual_information")
        notes.append(f"{word} batch norm, {dead}")
    difference = pooled[True] - pooled[False]
    selectivity = Effect.of("median selectivity with − without batch norm", difference[:, 0])
    information = Effect.of("mean mutual information with − without batch norm, bits", difference[:, 1])
    return [selectivity, information], two(selectivity.below(0), information.above(0)), notes


@claim(
    *("C7", "7a-e", "layer", "unit", "selectivity", "delta_loss"),
    paper="Spearman 0.095 † (MNIST), −0.428 † (CIFAR-10), none (ImageNet)",
    per_dataset=True,
)
def _c7(table, boot):
    """Class selectivity of a unit is a poor predictor of its importance.

    Reproduced: ρ with importance between −0.5 and 0.5, over all units and within each layer. Partly: every interval
    reaches into that range.
    """
    effects, verdict, notes = _poor_predictor(table, boot, "selectivity")
    if table["layer"].nunique() >= 3:  # "early layers matter more than late ones", which no rule is about
        alive, _ = alive_units(table, "selectivity", "delta_loss")
        rho = _along_depth(alive, boot, table["layer"].unique(), "delta_loss")
        # Without an interval: units drawn anew blur the means of small layers, and ρ falls.
        effects.append(Effect("ρ(depth, mean importance)", float(rho[0]), judged=False))
    return effects, verdict, notes


@claim("CA1", "A1", "value", *CURVE)
def _ca1(table, boot):
    """Ablating to zero is less damaging than ablating to the mean.

    Reproduced: the difference above 0. Partly: its estimate above 0.
    """
    by = ["network", "value", "order"]
    areas = _areas(one_curve(with_arms(table, "value", "zero", "mean"), *by), by).unstack("value")
    difference = areas.xs("zero", axis=1, level="value") - areas.xs("mean", axis=1, level="value")
    difference = difference.dropna(subset="AUC")  # of the same order in the same network
    if difference.empty:
        raise ValueError("table: CA1 needs networks with both values, zero and mean, of the same orders")
    within = [boot.orders(orders) for _, orders in difference.groupby("network", sort=False)]
    values = boot.networks(within).mean(axis=1)
    effect, beside = (
        Effect.of(f"{which} to zero − {which} to the mean", values[:, i], judged=i == 0)
        for i, which in enumerate(AREAS)
    )
    return [effect, beside], grade(effect.above(0), effect.estimate > 0), size_notes([0] * len(within))


@claim("CA2", "A2a-b", "layer", "unit", "selectivity", per_dataset=True)
def _ca2(table, boot):
    """Class selectivity rises with depth.

    Reproduced: ρ of depth and a layer's mean selectivity above 0.5. Partly: above 0.
    """
    alive, dead = alive_units(table, "selectivity")
    layers = table["layer"].unique()  # in forward order
    effect = Effect.of("ρ(depth, mean selectivity)", _along_depth(alive, boot, layers, "selectivity"))
    notes = [f"{len(layers)} layers", dead, *size_notes([0] * table["network"].nunique(), "units")]
    return [effect], grade(effect.above(0.5), effect.above(0)), notes


@claim("CA3", "A3a-b", "model", "layer", "unit", "selectivity", "l1_norm", same_epochs=False)
def _ca3(table, boot):
    """Selectivity has no relation to a filter's L1 norm on ImageNet and a negative one on CIFAR-10.

    Reproduced: ρ over the units of the ConvNets below 0.3, and over those of the ResNets between −0.5 and 0.5.
    Partly: one of the two.
    """
    networks = with_arms(networks_of(table, "model"), "model", "convnet", "resnet50")
    alive, dead = alive_units(table, "selectivity", "l1_norm")
    rhos, beside = [], []
    for model, name in (("convnet", "ConvNet"), ("resnet50", "ResNet-50")):
        units = alive[alive["model"] == model]
        every = correlations(units, boot, "selectivity", "l1_norm", list(units["layer"].unique()))
        rhos.append(Effect.of(f"ρ, {name}", every[:, 0]))
        # Norms grow with the number of weights of a unit: over all units ρ is also that of depth.
        beside.append(Effect.of(f"ρ within layers, {name}", mean_over(every[:, 1:]), judged=False))
    convnet, resnet = rhos
    none = resnet.above(-0.5) and resnet.below(0.5)
    notes = [dead, *size_notes(networks["model"], "units")]
    return [*rhos, *beside], two(convnet.below(0.3), none), notes


@claim("CA4", "A4a-e", "layer", "unit", "mutual_information", "delta_loss", per_dataset=True)
def _ca4(table, boot):
    """Mutual information of a unit with the class is a poor predictor of its importance.

    Reproduced: ρ with importance between −0.5 and 0.5, over all units and within each layer. Partly: every interval
    reaches into that range.
    """
    return _poor_predictor(table, boot, "mutual_information")


# Parts of some claims -----------------------------------------------------------------------------------------------


def _half_way(scales, accuracy, chance):
    """Noise scale at which accuracy first is half way from intact (the first) to chance, on a log axis.

    Where that lies outside the positive scales the nearest of them is given, and marked as censored.
    """
    half = (accuracy[0] + chance) / 2
    below = np.flatnonzero((accuracy <= half) & (scales > 0))
    if len(below) == 0:
        return scales[-1], True
    i = below[0]
    if i == 0 or scales[i - 1] <= 0:
        return scales[i], True
    share = (accuracy[i - 1] - half) / (accuracy[i - 1] - accuracy[i])
    return scales[i - 1] * (scales[i] / scales[i - 1]) ** share, False


def _along_depth(alive, boot, layers, column):
    """ρ of a layer's place among `layers` and the mean of a property over its units, mean over networks: (draws,)."""

    def statistic(units):
        values = units[column].to_numpy()
        depth, member = np.unique(pd.Index(layers).get_indexer(units["layer"]), return_inverse=True)
        member = np.eye(len(depth))[member]  # (units, layers)

        def rho(counts):
            with np.errstate(invalid="ignore"):  # a layer none of whose units was drawn: this draw has no ρ
                return spearman(depth, (counts * values) @ member / (counts @ member))

        return rho

    return over_units(alive, boot, statistic)[:, 0]


def _areas(table, by):
    """A column for each of `AREAS`; a normalised one is NaN where the intact network is right about nothing."""
    return pd.DataFrame({which: auc(table, by=by, normalize=i == 1) for i, which in enumerate(AREAS)})


def _snapshots(table, boot):
    """Of every network: epochs (E,), both `AREAS` with orders resampled (draws, 2, E), test loss (E,)."""
    by = ["network", "epoch", "order"]
    if table.groupby(by[:2])["test_loss"].nunique().gt(1).any():
        raise ValueError("table: expected one test_loss per network and epoch")
    areas = _areas(one_curve(table, *by), by).unstack("epoch")
    for network in table["network"].unique():
        loss = table[table["network"] == network].groupby("epoch")["test_loss"].first()
        # An order ablates the same units at every epoch, so a network's epochs share each draw of orders.
        orders = areas.loc[network]
        orders = orders[orders["AUC"][loss.index].notna().all(axis=1)]
        if orders.empty:
            raise ValueError("table: expected the same orders at every epoch of a network")
        kinds = np.stack([orders[which][loss.index] for which in AREAS], axis=1)
        yield loss.index.to_numpy(), boot.orders(kinds), loss.to_numpy()


def _best_less_worst(table, boot, which=""):
    """By how much the AUC of the networks that generalize best exceeds that of the others; None where there are none."""
    if table["network"].nunique() < 2:
        return None
    best, worst = best_and_worst(table)
    arms = np.repeat(["best", "worst"], [len(best), len(worst)])
    mean = arm_means(boot.networks(areas_of(table, [*best, *worst], boot), arms), arms)
    name = f"AUC(best {len(best)}) − AUC(worst {len(worst)}){which}"
    return Effect.of(name, mean["best"] - mean["worst"], judged=not which)


def best_and_worst(table):
    """The five networks of smallest and the five of largest generalization error, and those that are tied with the fifth; of
    less than ten, half each."""
    networks = networks_of(table, "train_accuracy", "test_accuracy")
    error = (networks["train_accuracy"] - networks["test_accuracy"]).round(9).sort_values(kind="stable")
    k = min(5, len(error) // 2)
    if not k:
        raise ValueError(f"table: needs at least two networks, the best and the worst, got {len(error)}")
    return error.index[error <= error.iloc[k - 1]], error.index[error >= error.iloc[len(error) - k]]


def selection(area, accuracy, rng, draws=20_000):
    """In random halves of the settings: is the one of highest AUC among the best, and what does it cost?"""
    if len(area) < 4:
        raise ValueError(f"table: needs at least four settings of lr and batch_size, got {len(area)}")
    half = len(area) // 2
    best = (1, 5, 10) if half >= 48 else sorted({1, int(np.ceil(half / 10)), int(np.ceil(half / 5))})
    halves = rng.permuted(np.tile(np.arange(len(area)), (draws, 1)), axis=1)[:, :half]
    true = accuracy[halves]
    chosen = np.take_along_axis(true, area[halves].argmax(axis=1, keepdims=True), axis=1)
    ranked = -np.sort(-true, axis=1)
    results = {}
    for k in best:  # a setting as good as the k-th best is among them, for the choice and for chance alike
        results[f"highest AUC among the best {k} of {half}"] = float((chosen >= ranked[:, [k - 1]]).mean())
        results[f"chance among the best {k} of {half}"] = float((true >= ranked[:, [k - 1]]).mean())
    lost = ranked[:, 0] - chosen[:, 0]
    for name, value in (("mean", lost.mean()), ("SD", lost.std())):
        results[f"test accuracy lost by choosing so, {name}"] = float(value)
    return results


def _pooled(alive, boot, freedom, x, y):
    """Median of x and mean of y over the units of all networks: (draws, 2), NaN if no unit is alive."""
    units = [units[[x, y]].to_numpy(dtype=float) for _, units in alive.groupby("network", sort=False)]

    def draw():
        results = np.full((boot.size, 2), np.nan)
        for i, picks in enumerate(boot.picks([0] * len(units)) if units else ()):
            pool = np.concatenate([units[k] if i == 0 else boot.rng.choice(units[k], len(units[k])) for k in picks])
            results[i] = np.median(pool[:, 0]), pool[:, 1].mean()
        return results

    results = boot.once(draw)
    return results[0] + boot.stretch(max(len(units), 1), freedom) * (results - results[0])


def _poor_predictor(table, boot, x):
    """The rule of C7 and CA4: ρ with importance is weak over all units and within each layer."""
    alive, dead = alive_units(table, x, "delta_loss")
    sizes = alive.groupby(["layer", "network"]).size().groupby("layer").max()
    layers = [layer for layer in table["layer"].unique() if sizes.get(layer, 0) >= 3]
    rhos = correlations(alive, boot, x, "delta_loss", layers)
    names = ["over all units", *(f"within {layer}" for layer in layers)][: rhos.shape[1]]
    effects = [Effect.of(f"ρ({spelled(x)}, importance) {name}", rhos[:, i]) for i, name in enumerate(names)]
    inside = all(e.above(-0.5) and e.below(0.5) for e in effects)
    touches = all(e.low < 0.5 and e.high > -0.5 for e in effects)
    notes = [dead, *size_notes([0] * table["network"].nunique(), "units")]
    if few := table["layer"].nunique() - len(layers):
        notes.append(f"layers left out, with fewer than three living units: {few}")
    return effects, grade(inside, touches), notes
