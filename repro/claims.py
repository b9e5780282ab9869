"""The paper's fifteen claims, each with the rule by which it counts as reproduced.

The rules were fixed before any network was trained. A claim leads from a tidy table (`experiment.measure`) to
effect sizes with 95 % intervals, and from those to a verdict: "reproduced", "partly" or "not reproduced".

Intervals are percentile bootstraps in two steps, because the orders, repeats and units of one network are not
independent: networks are drawn first (within their arm where a claim compares arms, so that every arm keeps
its number of networks), then orders, repeats or units within each network drawn. Along an axis of draws the
first is the data as they are: an estimate comes from the very code its interval comes from. Drawing orders on
top of networks adds noise, so a ρ close to ±1 may lie just outside its interval, on the cautious side.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from repro.ablation import auc

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
CURVE = ("order", "fraction_ablated", "accuracy")  # columns of a cumulative ablation curve
MEMORIZED = 0.99  # training accuracy that both arms of C5b must reach


# -------------------------------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Effect:
    """An effect size and its 95 % interval, NaN where there is none. Unjudged ones stand beside the rule."""

    name: str
    estimate: float
    low: float = np.nan
    high: float = np.nan
    judged: bool = True

    @classmethod
    def of(cls, name, draws, judged=True):
        """From draws (draws,), the estimate first. Draws without a value (constant input) are left out."""
        low = high = np.nan
        if np.isfinite(draws[0]) and np.isfinite(draws[1:]).any():
            low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
        return cls(name, float(draws[0]), float(low), float(high), judged)

    def above(self, bound):
        return self.low > bound

    def below(self, bound):
        return self.high < bound

    def __str__(self):
        interval = "" if np.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        numbers = f"{self.estimate:.3g}{interval}"
        return f"{self.name} {numbers.replace('-', '−')}"


@dataclass(frozen=True)
class Verdict:
    """What one table says about one claim."""

    claim: str
    subject: str  # which networks on which data: "mlp on digits"
    statement: str
    effects: tuple[Effect, ...]
    verdict: str  # "reproduced", "partly" or "not reproduced"
    paper: str  # the paper's number, "" where it gives none
    notes: tuple[str, ...] = ()

    def __str__(self):
        head = f"{self.claim}, {self.subject}: {self.verdict.upper()}."
        return f"{head} {self.statement}\n  {_brief(self.effects)}"

    def _repr_markdown_(self):
        lines = [f"**{self.claim}, {self.subject}: {self.verdict}.** {self.statement}", ""]
        lines += [f"- {effect}" + ("" if effect.judged else " *(not judged)*") for effect in self.effects]
        lines += [f"- paper: {self.paper}"] if self.paper else []
        return "\n".join(lines + [f"- *{note}*" for note in self.notes])

    def to_dict(self):
        """Plain dicts, lists, strings and numbers, ready for JSON; NaN, which JSON lacks, becomes None."""
        effects = [{k: None if v != v else v for k, v in asdict(effect).items()} for effect in self.effects]
        return asdict(self) | {"effects": effects, "notes": list(self.notes)}


def _brief(effects, most=3):
    judged = [str(effect) for effect in effects if effect.judged]
    return "; ".join(judged[:most]) + (f"; and {len(judged) - most} more" if len(judged) > most else "")


def scorecard(verdicts: Iterable[Verdict | dict]) -> str:
    """Markdown table, one row a verdict (or its `to_dict`), with the first three judged effects of each."""
    head = ("claim", "statement", "about", "paper", "ours, 95 % interval", "verdict")
    rows = [head, ("---",) * len(head)]
    for verdict in verdicts:
        v = verdict.to_dict() if isinstance(verdict, Verdict) else verdict
        ours = _brief(Effect(**{k: np.nan if x is None else x for k, x in e.items()}) for e in v["effects"])
        cells = [v["claim"], v["statement"], v["subject"], v["paper"] or "–", ours, f"**{v['verdict']}**"]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return table + ("\n\n† quoted from memory, not read again in the paper" if "†" in table else "")


# ------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Claim:
    """A claim's statement, the panel that shows it, the paper's number, and what judges it."""

    statement: str
    panel: str
    paper: str
    columns: tuple[str, ...]  # what its table needs beside `network`
    per_dataset: bool  # the rule is for one data set at a time
    judge: Callable  # (table, bootstrap) -> (effects, verdict, notes)


CLAIMS: dict[str, Claim] = {}


def _claim(claim_id, panel, *columns, paper="", per_dataset=False):
    """Register a judge, whose docstring is the claim's statement."""

    def register(judge):
        CLAIMS[claim_id] = Claim(judge.__doc__, panel, paper, columns, per_dataset, judge)
        return judge

    return register


def check(claim_id: str, table: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> Verdict:
    """Judge one claim by its table.

    Parameters
    ----------
    claim_id : str
        A key of `CLAIMS`, such as "C3b".
    table : DataFrame
        One table per claim and data set, from `experiment.measure`, merged so that it has the columns
        `network` and `CLAIMS[claim_id].columns`; `model` and `dataset` tell what the verdict is about.
    resamples, seed : int
        Number of bootstrap resamples and the seed that makes them the same in every run.

    Raises
    ------
    ValueError
        For an unknown claim, an empty table, a missing column or arm, several data sets where the claim is
        judged per data set, or several curves where one was expected.
    """
    if claim_id not in CLAIMS:
        raise ValueError(f"claim_id: expected one of {', '.join(CLAIMS)}, got {claim_id!r}")
    claim = CLAIMS[claim_id]
    missing = [column for column in ("network", *claim.columns) if column not in table]
    if missing:
        raise ValueError(f"table: {claim_id} needs the missing columns {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"table: {claim_id} needs rows, but the table is empty")
    about = [column for column in ("model", "dataset") if column in table]
    subjects = table[about].drop_duplicates().astype(str).agg(" on ".join, axis=1).tolist() if about else []
    if claim.per_dataset and len(subjects) > 1:
        raise ValueError(f"table: {claim_id} is judged per data set, got {', '.join(subjects)} in one table")

    effects, verdict, notes = claim.judge(table, Bootstrap(resamples, seed))
    undefined = [effect.name for effect in effects if effect.judged and np.isnan(effect.estimate)]
    if undefined:
        verdict = NOT_REPRODUCED
        notes = [*notes, f"undefined, from constant or too few values: {', '.join(undefined)}"]
    if claim_id != "CA3" and "epochs" in table and table["epochs"].nunique() > 1:
        notes = [*notes, "the networks did not train equally long"]
    subject = ", ".join(subjects)
    return Verdict(claim_id, subject, claim.statement, tuple(effects), verdict, claim.paper, tuple(notes))


def _grade(reproduced, partly):
    return REPRODUCED if reproduced else PARTLY if partly else NOT_REPRODUCED


def _two(first, second):
    """The rule of two conditions: both, or one of the two."""
    return _grade(first and second, first or second)


@_claim("C1", "1a-c", "corruption", *CURVE, per_dataset=True)
def _c1(table, boot):
    """Networks that memorized corrupted labels rely more on single directions."""
    arms, fractions = _corruption(table, least=0.2)
    values = boot.networks(_auc(table, arms.index, boot), arms)
    rho = Effect.of("ρ(corruption, AUC)", spearman(arms, values))
    mean = _arm_means(values, arms)
    falls = [Effect.of(f"AUC(0) − AUC({f:g})", mean[0] - mean[f]) for f in fractions]
    return [rho, *falls], _two(rho.below(-0.5), all(e.above(0) for e in falls)), _sizes(arms)


@_claim("C2", "2a-b", "corruption", "repeat", "scale", "accuracy", per_dataset=True)
def _c2(table, boot):
    """Networks that memorized corrupted labels tolerate several times less noise on their units."""
    arms, fractions = _corruption(table, least=0.4)
    chance = 1 / table["classes"].iloc[0] if "classes" in table else 0.1
    log_scales, censored = {network: [] for network in arms.index}, 0
    for (network, _), curve in _curves(table, "network", "repeat", x="scale"):
        scale, outside = _half_way(*curve, chance)
        log_scales[network].append(np.log(scale))
        censored += outside
    values = boot.networks([boot.orders(v) for v in log_scales.values()], arms)
    rho = Effect.of("ρ(corruption, s)", spearman(arms, values))
    mean = _arm_means(values, arms)  # of logarithms: noise lives on a log axis, s(f) is a geometric mean
    ratios = [Effect.of(f"s(0) / s({f:g})", np.exp(mean[0] - mean[f])) for f in fractions]
    notes = [*_sizes(arms, "repeats"), f"half way lies outside the scales in {censored} runs"]
    return [rho, *ratios], _two(rho.below(-0.5), all(e.above(1.5) for e in ratios)), notes


@_claim("C3a", "3a", "train_accuracy", "test_accuracy", *CURVE)
def _c3a(table, boot):
    """Of networks trained alike, those that generalize best are the most robust to ablation."""
    networks = _networks(table, "train_accuracy", "test_accuracy")
    error = networks["train_accuracy"] - networks["test_accuracy"]
    k = min(5, len(error) // 2)
    if k == 0:
        raise ValueError("table: C3a needs at least two networks")
    ascending = error.sort_values(kind="stable").index  # ties keep the table's order
    chosen = [*ascending[:k], *ascending[-k:]]
    arms = np.repeat(["best", "worst"], k)
    mean = _arm_means(boot.networks(_auc(table, chosen, boot), arms), arms)
    effect = Effect.of(f"AUC(best {k}) − AUC(worst {k})", mean["best"] - mean["worst"])
    notes = [f"best and worst {k} of {len(error)} networks by generalization error"]
    return [effect], _grade(effect.above(0), effect.estimate > 0), notes


@_claim("C3b", "3b", "train_accuracy", "test_accuracy", *CURVE)
def _c3b(table, boot):
    """Networks trained alike have the lower an AUC the larger their generalization error."""
    networks = _networks(table, "train_accuracy", "test_accuracy")
    train, test = (np.tile(networks[[c]], boot.size) for c in networks)  # (networks, draws)
    normalised, raw = (_auc(table, networks.index, boot, normalize) for normalize in (True, False))
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
    effects = [rho, *(Effect.of(name, draws, judged=False) for name, draws in beside.items())]
    notes = [
        *_sizes([0] * len(networks)),
        "normalised AUC: divided by the unablated accuracy, as in panel 3b",
    ]
    return effects, _grade(rho.below(0), rho.estimate < 0), notes


@_claim("C4a", "4a", "epoch", "test_loss", *CURVE)
def _c4a(table, boot):
    """AUC begins to fall where training and test loss part ways."""
    within = []
    for epochs, area, loss in _snapshots(table, boot):
        epochs = np.maximum(epochs, 1)  # epoch 0 has no logarithm
        ratio = np.log2(epochs[area.argmax(axis=1)] / epochs[loss.argmin()])
        within.append(np.stack([area[:, -1] - area.max(axis=1), ratio], axis=-1))
    values = boot.networks(within).mean(axis=1)
    fall = Effect.of("AUC(last) − max AUC", values[:, 0])
    ratio = Effect.of("log2(epoch of highest AUC / epoch of lowest test loss)", values[:, 1])
    notes = [*_sizes([0] * len(within)), "the fall is biased below 0: a maximum also picks up noise"]
    return [fall, ratio], _two(fall.below(0), ratio.low >= -1 and ratio.high <= 1), notes


@_claim("C4b", "4b", "epoch", "test_loss", *CURVE, paper="Spearman −0.728 †")
def _c4b(table, boot):
    """Along training, AUC and test loss are negatively related."""
    within = [spearman(area, loss) for _, area, loss in _snapshots(table, boot)]
    rho = Effect.of("ρ(AUC, test loss) over snapshots", _mean(boot.networks(within)))
    return [rho], _grade(rho.below(0), rho.estimate < 0), _sizes([0] * len(within))


@_claim(
    *("C4c", "4c", "lr", "batch_size", "train_accuracy", "test_accuracy", *CURVE),
    paper="Spearman 0.914 †; among the best 1 / 5 / 10 of 48 in 13 / 83 / 98 % †; costs 1 ± 1.1 % †",
)
def _c4c(table, boot):
    """Over learning rates and batch sizes, AUC tells test accuracy well enough to choose by it."""
    networks = _networks(table, "lr", "batch_size", "train_accuracy", "test_accuracy")
    by = ["network", "order"]
    for column, normalize in (("auc", False), ("normalised", True)):
        networks[column] = auc(_one_curve(table, *by), by=by, normalize=normalize).groupby("network").mean()
    settings = networks.groupby(["lr", "batch_size"], sort=False).mean()
    if len(settings) < 4:
        raise ValueError(f"table: C4c needs at least four settings of lr and batch_size, got {len(settings)}")
    picks = boot.picks([0] * len(settings))
    train, test, area, normalised = settings.to_numpy().T
    rho = Effect.of("ρ(AUC, test accuracy)", spearman(area[picks], test[picks]))
    partial = spearman(area[picks], test[picks], given=train[picks])
    beside = {
        "ρ(normalised AUC, test accuracy)": spearman(normalised[picks], test[picks]),
        "ρ(AUC, test accuracy) given training accuracy": partial,
    }
    effects = [rho, *(Effect.of(name, draws, judged=False) for name, draws in beside.items())]
    effects += [Effect(name, value, judged=False) for name, value in _selection(area, test, boot.rng).items()]
    notes = [f"{len(networks)} networks in {len(settings)} settings; the interval resamples settings"]
    return effects, _grade(rho.above(0.5), rho.above(0)), notes


@_claim("C5a", "5a", "dropout", "corruption", *CURVE)
def _c5a(table, boot):
    """Dropout protects up to its own fraction; past it only networks trained on clean labels stay robust."""
    table = table[(table["dropout"] > 0) & table["corruption"].isin([0, 1])]
    if table.empty:
        raise ValueError("table: C5a needs networks with dropout above 0 and corruption 0 and 1")
    networks = _networks(table, "dropout", "corruption")
    rates, arms = sorted(networks["dropout"].unique()), networks.agg(tuple, axis=1)
    absent = [f"dropout {p:g}, corruption {c}" for p in rates for c in (0, 1) if (p, c) not in set(arms)]
    if absent:
        raise ValueError(f"table: C5a needs networks with {'; '.join(absent)}")
    seen = {network: [] for network in arms.index}  # per order: accuracy lost at p, accuracy at p + 0.2
    for (network, _), (x, y) in _curves(table, "network", "order"):
        p = arms[network][0]
        seen[network].append([y[0] - np.interp(p, x, y), np.interp(p + 0.2, x, y)])
    mean = _arm_means(boot.networks([boot.orders(v) for v in seen.values()], arms), arms)
    lost = [Effect.of(f"lost at dropout {p:g}, corruption {c:g}", v[:, 0]) for (p, c), v in mean.items()]
    gaps = [Effect.of(f"clean − corrupted at {p:g} + 0.2", (mean[p, 0] - mean[p, 1])[:, 1]) for p in rates]
    verdict = _two(all(e.below(0.05) for e in lost), all(e.above(0) for e in gaps))
    return [*lost, *gaps], verdict, _sizes(arms)


@_claim("C5b", "5b", "batch_norm", "train_accuracy", *CURVE)
def _c5b(table, boot):
    """Batch normalization makes networks more robust to ablation."""
    networks = _with_arms(_networks(table, "batch_norm", "train_accuracy"), "batch_norm", True, False)
    arms = networks.loc[networks["train_accuracy"] >= MEMORIZED, "batch_norm"].astype(bool)
    notes = [f"left out below {MEMORIZED:.0%} training accuracy: {len(networks) - len(arms)} networks"]
    name = "AUC with − without batch norm"
    if arms.nunique() < 2:
        left = "no network" if arms.empty else f"only networks {'with' if arms.any() else 'without'} batch norm"
        return [Effect(name, np.nan)], NOT_REPRODUCED, [*notes, f"nothing to compare: {left} left"]
    mean = _arm_means(boot.networks(_auc(table, arms.index, boot), arms), arms)
    effect = Effect.of(name, mean[True] - mean[False])
    return [effect], _grade(effect.above(0), effect.estimate > 0), [*notes, *_sizes(arms)]


@_claim("C6", "6a-b", "batch_norm", "layer", "unit", "selectivity", "mutual_information")
def _c6(table, boot):
    """Batch normalization lowers class selectivity and raises mutual information."""
    arms = _with_arms(_networks(table, "batch_norm"), "batch_norm", True, False)["batch_norm"]
    pooled, notes = {}, _sizes(arms, "units")
    for on, word in ((True, "with"), (False, "without")):
        alive, dead = _alive(table[table["batch_norm"] == on], "selectivity", "mutual_information")
        pooled[on] = _pooled(alive, boot, "selectivity", "mutual_information")
        notes.append(f"{word} batch norm, {dead}")
    difference = pooled[True] - pooled[False]
    selectivity = Effect.of("median selectivity with − without batch norm", difference[:, 0])
    information = Effect.of("mean mutual information with − without batch norm, bits", difference[:, 1])
    return [selectivity, information], _two(selectivity.below(0), information.above(0)), notes


@_claim(
    *("C7", "7a-e", "layer", "unit", "selectivity", "delta_loss"),
    paper="Spearman 0.095 † (MNIST), −0.428 † (CIFAR-10), none (ImageNet)",
    per_dataset=True,
)
def _c7(table, boot):
    """Class selectivity of a unit is a poor predictor of its importance."""
    return _poor_predictor(table, boot, "selectivity")


@_claim("CA1", "A1", "value", *CURVE)
def _ca1(table, boot):
    """Ablating to zero is less damaging than ablating to the mean."""
    by = ["network", "value", "order"]
    areas = auc(_one_curve(_with_arms(table, "value", "zero", "mean"), *by), by=by).unstack("value")
    difference = (areas["zero"] - areas["mean"]).dropna()  # of the same order in the same network
    if difference.empty:
        raise ValueError("table: CA1 needs networks with both values, zero and mean, of the same orders")
    within = [boot.orders(orders) for _, orders in difference.groupby("network", sort=False)]
    effect = Effect.of("AUC to zero − AUC to the mean", boot.networks(within).mean(axis=1))
    return [effect], _grade(effect.above(0), effect.estimate > 0), _sizes([0] * len(within))


@_claim("CA2", "A2a-b", "layer", "unit", "selectivity", per_dataset=True)
def _ca2(table, boot):
    """Class selectivity rises with depth."""
    alive, dead = _alive(table, "selectivity")
    layers = table["layer"].unique()  # in forward order

    def statistic(units):
        selectivity = units["selectivity"].to_numpy()
        depth, member = np.unique(pd.Index(layers).get_indexer(units["layer"]), return_inverse=True)
        member = np.eye(len(depth))[member]  # (units, layers)

        def rho(counts):
            with np.errstate(invalid="ignore"):  # a layer none of whose units was drawn: this draw has no ρ
                return spearman(depth, (counts * selectivity) @ member / (counts @ member))

        return rho

    effect = Effect.of("ρ(depth, mean selectivity)", _over_units(alive, boot, statistic)[:, 0])
    notes = [f"{len(layers)} layers", dead, *_sizes([0] * table["network"].nunique(), "units")]
    return [effect], _grade(effect.above(0.5), effect.above(0)), notes


@_claim("CA3", "A3a-b", "model", "layer", "unit", "selectivity", "l1_norm")
def _ca3(table, boot):
    """Selectivity has no relation to a filter's L1 norm on ImageNet and a negative one on CIFAR-10."""
    networks = _with_arms(_networks(table, "model"), "model", "convnet", "resnet50")
    alive, dead = _alive(table, "selectivity", "l1_norm")
    rhos = [
        _correlations(alive[alive["model"] == model], boot, "selectivity", "l1_norm")[:, 0]
        for model in ("convnet", "resnet50")
    ]
    cifar = Effect.of("ρ on CIFAR-10 (convnet)", rhos[0])
    imagenet = Effect.of("ρ on ImageNet (resnet50)", rhos[1])
    none = imagenet.above(-0.5) and imagenet.below(0.5)
    return [cifar, imagenet], _two(cifar.below(0.3), none), [dead, *_sizes(networks["model"], "units")]


@_claim("CA4", "A4a-e", "layer", "unit", "mutual_information", "delta_loss", per_dataset=True)
def _ca4(table, boot):
    """Mutual information of a unit with the class is a poor predictor of its importance."""
    return _poor_predictor(table, boot, "mutual_information")


# --------------------------------------------------------------------------------------- parts of some claims


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


def _snapshots(table, boot):
    """Of every network: epochs (E,), AUC with orders resampled (draws, E), test loss (E,)."""
    by = ["network", "epoch", "order"]
    areas = auc(_one_curve(table, *by), by=by).unstack("order")
    for network in table["network"].unique():
        loss = table[table["network"] == network].groupby("epoch")["test_loss"].first().fillna(np.inf)
        # An order ablates the same units at every epoch, so a network's epochs share each draw of orders.
        orders = areas.loc[network].loc[loss.index].dropna(axis=1).T
        yield loss.index.to_numpy(), boot.orders(orders), loss.to_numpy()


def _selection(area, accuracy, rng, draws=1000):
    """In random halves of the settings: is the one of highest AUC among the best, and what does it cost?"""
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


def _pooled(alive, boot, x, y):
    """Median of x and mean of y over the units of all networks: (draws, 2), NaN if no unit is alive."""
    units = [units[[x, y]].to_numpy(dtype=float) for _, units in alive.groupby("network", sort=False)]
    results = np.full((boot.size, 2), np.nan)
    for draw, picks in enumerate(boot.picks([0] * len(units)) if units else ()):
        drawn = [units[k] if draw == 0 else boot.rng.choice(units[k], len(units[k])) for k in picks]
        pool = np.concatenate(drawn)
        results[draw] = np.median(pool[:, 0]), pool[:, 1].mean()
    return results


def _over_units(alive, boot, statistic):
    """Mean over networks of what `statistic(units)`, a function of counts, gives: (draws, k)."""
    within = [boot.units(len(units), statistic(units)) for _, units in alive.groupby("network", sort=False)]
    values = _mean(boot.networks(within)) if within else np.full(boot.size, np.nan)
    return values.reshape(boot.size, -1)


def _correlations(alive, boot, x, y, layers=()):
    """ρ of x and y over a network's units and within each layer, mean over networks: (draws, 1 + layers)."""

    def statistic(units):
        a, b = units[x].to_numpy(dtype=float), units[y].to_numpy(dtype=float)
        parts = [slice(None), *((units["layer"] == layer).to_numpy() for layer in layers)]
        return lambda counts: np.stack([counted_spearman(a[p], b[p], counts[:, p]) for p in parts], axis=-1)

    return _over_units(alive, boot, statistic)


def _poor_predictor(table, boot, x):
    """The rule of C7 and CA4: ρ with importance is weak over all units and within each layer."""
    alive, dead = _alive(table, x, "delta_loss")
    sizes = alive.groupby(["layer", "network"]).size().groupby("layer").max()
    layers = [layer for layer in table["layer"].unique() if sizes.get(layer, 0) >= 3]
    rhos = _correlations(alive, boot, x, "delta_loss", layers)
    names = ["all units", *(f"layer {layer}" for layer in layers)][: rhos.shape[1]]
    effects = [Effect.of(f"ρ({x}, importance) {name}", rhos[:, i]) for i, name in enumerate(names)]
    inside = all(e.above(-0.5) and e.below(0.5) for e in effects)
    touches = all(e.low < 0.5 and e.high > -0.5 for e in effects)
    notes = [dead, *_sizes([0] * table["network"].nunique(), "units")]
    if few := table["layer"].nunique() - len(layers):
        notes.append(f"layers left out, with fewer than three living units: {few}")
    return effects, _grade(inside, touches), notes


# ----------------------------------------------------------------------------------------------------- tables


def _networks(table, *columns):
    """One row a network, in the table's order, of columns that must be constant within each."""
    groups = table.groupby("network", sort=False)[list(columns)]
    varying = groups.nunique(dropna=False).gt(1).any()
    if varying.any():
        raise ValueError(f"table: expected one value a network in {', '.join(varying.index[varying])}")
    return groups.first()


def _with_arms(table, column, *arms):
    absent = [f"{column} {arm}" for arm in arms if not (table[column] == arm).any()]
    if absent:
        raise ValueError(f"table: needs networks with {' and '.join(absent)}")
    return table


def _corruption(table, least):
    """The networks' corruption, and the fractions from `least` on that are compared with 0."""
    arms = _with_arms(_networks(table, "corruption").astype(float).round(6), "corruption", 0)["corruption"]
    fractions = sorted(f for f in arms.unique() if f >= least)
    if not fractions:
        raise ValueError(f"table: needs networks with corruption {least} or more")
    return arms, fractions


def _one_curve(table, *by, x="fraction_ablated"):
    """The table, once it is sure that it holds one curve per `by`."""
    if table.duplicated([*by, x]).any():
        raise ValueError(f"table: expected one row per {', '.join([*by, x])}; are epochs or values mixed?")
    if table["accuracy"].isna().any():
        raise ValueError("table: expected an accuracy in every row, got NaN")
    return table


def _curves(table, *by, x="fraction_ablated"):
    for key, curve in _one_curve(table, *by, x=x).sort_values(x).groupby(list(by)):
        yield key, (curve[x].to_numpy(dtype=float), curve["accuracy"].to_numpy(dtype=float))


def _auc(table, networks, boot, normalize=False):
    """AUC of each of these networks, orders resampled: (networks, draws)."""
    by = ["network", "order"]
    areas = auc(_one_curve(table, *by), by=by, normalize=normalize).groupby("network")
    return np.stack([boot.orders(areas.get_group(network)) for network in networks])


def _alive(table, *columns):
    """Units that are not dead and have a value in every column, and a note on the others."""
    dead = table[list(columns)].isna().any(axis=1)
    if "dead" in table:
        dead |= table["dead"].astype(bool)
    return table[~dead], f"dead units, left out: {dead.mean():.1%}"


def _sizes(arms, within="orders"):
    """Notes on the number of networks; `arms` has one entry a network."""
    sizes = pd.Series(arms).value_counts()
    each = f" in {len(sizes)} arms of at least {sizes.min()}" if len(sizes) > 1 else ""
    few = {1: f"one network an arm: the interval reflects {within} only", 2: "two networks an arm: rough"}
    return [f"networks: {sizes.sum()}{each}", *([few[sizes.min()]] if sizes.min() in few else [])]


def _arm_means(values, arms):
    """Mean over the networks of each arm: (draws, networks, …) -> {arm: (draws, …)}."""
    codes, names = pd.factorize(pd.Series(arms))
    return {name: values[:, codes == code].mean(axis=1) for code, name in enumerate(names)}


# ------------------------------------------------------------------------------------------------- statistics


class Bootstrap:
    """Two-step resampling; along the axis of draws the data come first, as they are."""

    def __init__(self, resamples, seed):
        self.size = resamples + 1
        self.rng = np.random.default_rng(seed)

    def picks(self, arms):
        """Positions drawn with replacement, each from its own arm: (draws, len(arms))."""
        codes, _ = pd.factorize(pd.Series(arms))
        picks = np.tile(np.arange(len(codes)), (self.size, 1))
        for code in range(codes.max() + 1):
            members = np.flatnonzero(codes == code)
            picks[1:, members] = self.rng.choice(members, (self.size - 1, len(members)))
        return picks

    def networks(self, within, arms=None):
        """Draw networks from their arms, each with its own draw from within it.

        within (networks, draws, …) -> (draws, networks, …), where column i holds networks of arms[i].
        """
        within = np.asarray(within)
        picks = self.picks([0] * len(within) if arms is None else arms)
        draws = self.rng.integers(1, self.size, picks.shape)
        draws[0] = 0
        return within[picks, draws]

    def orders(self, values):
        """Mean over a network's orders or repeats: (orders, …) -> (draws, …)."""
        values = np.asarray(values, dtype=float)
        return values[self.picks([0] * len(values))].mean(axis=1)

    def units(self, n, statistic, block=4_000_000):
        """A statistic of how often each of n units was drawn: of counts (b, n) -> (b, …), for all (draws, …).

        In blocks of draws, for draws × units of a large network would not fit in memory.
        """
        results, rows = [statistic(np.ones((1, n)))], max(1, block // n)
        for start in range(1, self.size, rows):
            b = min(rows, self.size - start)
            drawn = self.rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
            results.append(statistic(np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(float)))
        return np.concatenate(results)


def spearman(x, y, given=None):
    """Spearman's ρ along the last axis; with `given` the partial one, of residuals of rank regressions on it.

    NaN for fewer than three values and for constant ones. A constant `given` leaves nothing to hold fixed.
    """
    x, y, given = np.broadcast_arrays(x, y, 0.0 if given is None else given)
    if x.shape[-1] < 3:
        return np.full(x.shape[:-1], np.nan)
    x, y, given = (stats.rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y, given))
    square = (given**2).sum(axis=-1, keepdims=True)
    slopes = ((v * given).sum(axis=-1, keepdims=True) / np.where(square > 0, square, 1) for v in (x, y))
    # Rounded, so that an exact fit leaves zeros to be called constant, and not rounding errors.
    x, y = ((v - slope * given).round(9) for v, slope in zip((x, y), slopes, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)


def counted_spearman(x, y, counts):
    """Spearman's ρ of resamples given as counts (b, n) of the values x, y (n,): (b,).

    What `spearman` gives on the values repeated that often, but sorting them once and not once a resample.
    """
    n = counts.sum(axis=1, keepdims=True)

    def ranks(values):  # all drawn with a lower value and half of those with the same, less the mean rank
        _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
        upto = np.cumsum(counts[:, np.argsort(values, kind="stable")], axis=1)[:, np.cumsum(sizes) - 1]
        return (upto - np.diff(upto, axis=1, prepend=0) / 2)[:, inverse] - n / 2

    rx, ry = ranks(x), ranks(y)
    xy, xx, yy = (np.einsum("bi,bi,bi->b", counts, a, b) for a, b in ((rx, ry), (rx, rx), (ry, ry)))
    defined = (xx > 0) & (yy > 0) & (n[:, 0] >= 3)
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1)), np.nan)


def _mean(values):
    """Mean over the networks (axis 1) that have a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, as it should be
        return np.nanmean(values, axis=1)
