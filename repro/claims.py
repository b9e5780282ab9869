"""The paper's fifteen claims, each with the rule by which it counts as reproduced.

The rules were fixed before any network was trained. A claim goes from a tidy table (`repro.experiment.measure`)
to effect sizes with 95 % intervals, and from the intervals to a verdict: "reproduced", "partly", "not reproduced".

Intervals are percentile bootstraps in two steps, because orders, repeats and units of one network are not
independent of each other: networks are drawn first (within their arm, where a claim compares arms, so that every
arm keeps its number of networks), then orders, repeats or units within each network that was drawn. Throughout,
entry 0 along the axis of draws is the data as they are, so that an estimate is computed by the very same code as
its interval.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from repro.ablation import auc

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
MEMORIZED = 0.99  # training accuracy below which a network has not fitted its training set (C5b)


# ---------------------------------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Effect:
    """An effect size with its 95 % interval (NaN where none was drawn); unjudged effects stand beside the rule."""

    name: str
    estimate: float
    low: float = np.nan
    high: float = np.nan
    judged: bool = True

    @classmethod
    def of(cls, name, draws, judged=True):
        """From draws whose first entry is the estimate. Draws without a value (constant input) are left out."""
        draws = np.asarray(draws, dtype=float)
        low = high = np.nan
        if np.isfinite(draws[0]) and np.isfinite(draws[1:]).any():
            low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
        return cls(name, float(draws[0]), float(low), float(high), judged)

    def above(self, bound):
        return self.low > bound

    def below(self, bound):
        return self.high < bound

    def inside(self, low, high):
        return self.low > low and self.high < high

    def touches(self, low, high):
        return self.low < high and self.high > low

    def __str__(self):
        numbers = f"{self.estimate:.3g}" + (
            "" if np.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        )
        return f"{self.name} {numbers.replace('-', '−')}"


@dataclass(frozen=True)
class Verdict:
    """What one table says about one claim."""

    claim: str
    subject: str  # the networks and data it is about: "mlp on digits"
    statement: str
    effects: tuple[Effect, ...]
    verdict: str  # "reproduced", "partly" or "not reproduced"
    paper: str  # the paper's number, "" where it gives none
    notes: tuple[str, ...] = ()

    def __str__(self):
        judged = "; ".join(str(effect) for effect in self.effects if effect.judged)
        return f"{self.claim}, {self.subject}: {self.verdict.upper()}. {self.statement}\n  {judged}"

    def _repr_markdown_(self):
        lines = [f"**{self.claim}, {self.subject}: {self.verdict}.** {self.statement}", ""]
        lines += [f"- {effect}" + ("" if effect.judged else " *(not judged)*") for effect in self.effects]
        lines += [f"- paper: {self.paper}"] if self.paper else []
        return "\n".join(lines + [f"- *{note}*" for note in self.notes])

    def to_dict(self):
        """Plain dicts, lists, strings and numbers, ready for JSON (NaN, which JSON lacks, becomes None)."""
        effects = [{k: None if v != v else v for k, v in asdict(effect).items()} for effect in self.effects]
        return asdict(self) | {"effects": effects, "notes": list(self.notes)}


@dataclass(frozen=True)
class Claim:
    statement: str
    panel: str
    paper: str
    columns: tuple[str, ...]  # what its table must have beside `network`
    per_dataset: bool  # the rule is for one data set at a time
    judge: Callable  # (table, bootstrap) -> (effects, verdict, notes)


CLAIMS: dict[str, Claim] = {}


def check(claim_id, table, resamples=2000, seed=0) -> Verdict:
    """Judge one claim by its table.

    Parameters
    ----------
    claim_id : str
        A key of `CLAIMS`.
    table : DataFrame
        One table per claim and data set, as `measure` returns it, merged as the claim's columns demand.
    resamples, seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        For an unknown claim, an empty table, a missing column or a missing arm.
    """
    if claim_id not in CLAIMS:
        raise ValueError(f"claim_id: expected one of {', '.join(CLAIMS)}, got {claim_id!r}")
    claim = CLAIMS[claim_id]
    missing = [column for column in ("network", *claim.columns) if column not in table]
    if missing:
        raise ValueError(f"table: {claim_id} needs the columns {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"table: {claim_id} needs rows, the table is empty")
    subjects = _subjects(table)
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


def scorecard(verdicts: Iterable[Verdict | dict], most=3) -> str:
    """Markdown table of verdicts (or of their `to_dict`), with at most `most` of the judged effects of each."""
    lines = [
        "| claim | statement | about | paper | ours, 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        v = verdict.to_dict() if isinstance(verdict, Verdict) else verdict
        effects = [Effect(**{k: np.nan if x is None else x for k, x in e.items()}) for e in v["effects"]]
        judged = [str(effect) for effect in effects if effect.judged]
        ours = "; ".join(judged[:most]) + (f"; and {len(judged) - most} more" if len(judged) > most else "")
        cells = v["claim"], v["statement"], v["subject"], v["paper"] or "–", ours, f"**{v['verdict']}**"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- statistics


class Bootstrap:
    """Two-step resampling; axis 0 holds the data as they are, then the draws."""

    def __init__(self, resamples, seed):
        self.size = resamples + 1
        self.rng = np.random.default_rng(seed)

    def picks(self, arms):
        """Members drawn with replacement within their arm: positions, (draws, len(arms))."""
        arms = np.asarray(arms)
        picks = np.tile(np.arange(len(arms)), (self.size, 1))
        for arm in pd.unique(arms):
            members = np.flatnonzero(arms == arm)
            picks[1:, members] = self.rng.choice(members, (self.size - 1, len(members)))
        return picks

    def orders(self, values):
        """Means over a network's orders or repeats: (orders, …) -> (draws, …)."""
        values = np.asarray(values, dtype=float)
        return values[self.picks(np.zeros(len(values)))].mean(axis=1)

    def units(self, n, statistic, block=4_000_000):
        """`statistic` of how often each of a network's n units was drawn: counts (b, n) -> (b,), all: (draws,).

        In blocks, since draws × units of a large network do not fit in memory.
        """
        rows = max(1, block // n)
        results = [statistic(np.ones((1, n)))]
        for start in range(1, self.size, rows):
            b = min(rows, self.size - start)
            drawn = self.rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
            results.append(statistic(np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(float)))
        return np.concatenate(results)

    def networks(self, within, arms):
        """Networks drawn within their arms, each with a draw of its own from within: (networks, draws, …).

        Returns the values (draws, networks, …), columns still in the order of `arms`, and the picks.
        """
        within, picks = np.asarray(within), self.picks(arms)
        which = self.rng.integers(1, self.size, picks.shape)
        which[0] = 0
        return within[picks, which], picks


def spearman(x, y, given=None):
    """Spearman's ρ along the last axis, or, with `given`, the partial one: of the residuals of rank regressions.

    NaN for fewer than three values and for constant ones.
    """
    x, y, given = np.broadcast_arrays(x, y, 0.0 if given is None else given)
    if x.shape[-1] < 3:
        return np.full(x.shape[:-1], np.nan)
    x, y, given = (stats.rankdata(values, axis=-1) - (x.shape[-1] + 1) / 2 for values in (x, y, given))
    square = (given**2).sum(-1, keepdims=True)
    # Nothing to hold fixed where `given` is constant; rounding keeps exact fits from leaving rounding errors.
    x, y = (
        (v - given * (v * given).sum(-1, keepdims=True) / np.where(square > 0, square, 1)).round(9)
        for v in (x, y)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)


def counted_spearman(x, y, counts):
    """Spearman's ρ of resamples given as counts: x, y (n,), counts (b, n) -> (b,), without sorting each resample."""

    def ranks(
        values,
    ):  # average ranks: half the units drawn with this very value, and all those with a lower one
        _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
        upto = np.cumsum(counts[:, np.argsort(values, kind="stable")], axis=1)[:, np.cumsum(sizes) - 1]
        return (upto - np.diff(upto, axis=1, prepend=0) / 2)[:, inverse] - n / 2

    n = counts.sum(axis=1, keepdims=True)
    rx, ry = ranks(x), ranks(y)
    xy, xx, yy = (np.einsum("bi,bi,bi->b", counts, a, b) for a, b in ((rx, ry), (rx, rx), (ry, ry)))
    defined = (xx > 0) & (yy > 0) & ((counts > 0).sum(axis=1) >= 3)
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1)), np.nan)


def _mean(values):
    """Mean over networks (axis 1) that have a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)


def _two(first, second):
    return REPRODUCED if first and second else PARTLY if first or second else NOT_REPRODUCED


def _grade(reproduced, partly):
    return REPRODUCED if reproduced else PARTLY if partly else NOT_REPRODUCED


# ----------------------------------------------------------------------------------------------------- tables


def _subjects(table):
    columns = [column for column in ("model", "dataset") if column in table]
    return [" on ".join(map(str, row)) for row in table[columns].drop_duplicates().itertuples(index=False)]


def _networks(table, *columns):
    """One row a network, in the table's order, of columns that are constant within each."""
    groups = table.groupby("network", sort=False)[list(columns)]
    varying = groups.nunique(dropna=False).gt(1).any()
    if varying.any():
        raise ValueError(f"table: expected one value a network in {', '.join(varying.index[varying])}")
    return groups.first()


def _arms(networks, column, needed):
    """A column that defines arms, refusing a table in which one of the needed arms is missing."""
    values = networks[column]
    absent = [arm for arm in needed if not (values == arm).any()]
    if absent:
        raise ValueError(f"table: no networks with {column} {', '.join(map(str, absent))}")
    return values.to_numpy()


def _corruptions(networks, least):
    arms = networks["corruption"].astype(float).round(6)
    if not (arms == 0).any() or not (arms >= least).any():
        raise ValueError(f"table: needs networks with corruption 0 and with corruption >= {least}")
    return arms.to_numpy(), sorted(f for f in arms.unique() if f >= least)


def _curves(table, by, x="fraction_ablated"):
    """The table, once it is sure that each `by` holds one curve."""
    if table.duplicated([*by, x]).any():
        raise ValueError(
            f"table: expected one row per {', '.join([*by, x])} (several epochs or values mixed?)"
        )
    if table["accuracy"].isna().any():
        raise ValueError("table: accuracy holds NaN")
    return table


def _auc(table, boot, networks, normalize=False):
    """AUC of every network, orders resampled: (networks, draws)."""
    by = ["network", "order"]
    areas = auc(_curves(table, by), by=by, normalize=normalize).groupby("network")
    return np.stack([boot.orders(areas.get_group(network)) for network in networks.index])


def _counts(arms, what="orders"):
    """Notes on how many networks there were."""
    sizes = pd.Series(arms).value_counts(sort=False)
    each = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    notes = [f"{sizes.sum()} networks" + (f" in {len(sizes)} arms, {each} an arm" if len(sizes) > 1 else "")]
    if sizes.min() == 1:
        notes.append(f"one network an arm: the interval reflects {what} only")
    return notes


def _alive(table, *columns):
    """Units with a value in every column that are not dead, and a note on how many were left out."""
    dead = table[list(columns)].isna().any(axis=1)
    if "dead" in table:
        dead |= table["dead"].astype(bool)
    return table[~dead], [f"dead units, left out: {dead.mean():.1%}"]


# ----------------------------------------------------------------------------------------------------- claims

CURVE = ("order", "fraction_ablated", "accuracy")


def _claim(claim_id, panel, columns, statement, paper="", per_dataset=True):
    def register(judge):
        CLAIMS[claim_id] = Claim(statement, panel, paper, columns, per_dataset, judge)
        return judge

    return register


@_claim(
    "C1",
    "1a-c",
    ("corruption", *CURVE),
    "Networks that memorized corrupted labels rely more on single directions.",
)
def _c1(table, boot):
    networks = _networks(table, "corruption")
    arms, fractions = _corruptions(networks, 0.2)
    area, _ = boot.networks(_auc(table, boot, networks), arms)
    rho = Effect.of("ρ(corruption, AUC)", spearman(arms, area))
    clean = area[:, arms == 0].mean(axis=1)
    falls = [Effect.of(f"AUC(0) − AUC({f:g})", clean - area[:, arms == f].mean(axis=1)) for f in fractions]
    return [rho, *falls], _two(rho.below(-0.5), all(e.above(0) for e in falls)), _counts(arms)


def half_way(scales, accuracy, chance):
    """Noise scale at which accuracy first falls half way to chance, on a log axis; (scale, was it censored).

    `scales` ascend; the first accuracy counts as intact. Where the crossing lies outside of the positive
    scales, the nearest of them is returned and marked as censored.
    """
    half = (accuracy[0] + chance) / 2
    positive = scales > 0
    below = np.flatnonzero((accuracy <= half) & positive)
    if len(below) == 0:
        return scales[-1], True
    i = below[0]
    if i == 0 or scales[i - 1] <= 0:
        return scales[i], True
    share = (accuracy[i - 1] - half) / (accuracy[i - 1] - accuracy[i])
    return scales[i - 1] * (scales[i] / scales[i - 1]) ** share, False


@_claim(
    "C2",
    "2a-b",
    ("corruption", "repeat", "scale", "accuracy"),
    "Networks that memorized corrupted labels tolerate several times less noise on their units.",
)
def _c2(table, boot):
    networks = _networks(table, "corruption")
    arms, fractions = _corruptions(networks, 0.4)
    chance = 1 / table["classes"].iloc[0] if "classes" in table else 0.1
    logs, censored = {network: [] for network in networks.index}, 0
    for (network, _), curve in _curves(table, ["network", "repeat"], "scale").groupby(["network", "repeat"]):
        curve = curve.sort_values("scale")
        s, cut = half_way(curve["scale"].to_numpy(), curve["accuracy"].to_numpy(), chance)
        logs[network].append(np.log(s))
        censored += cut
    log_s, _ = boot.networks([boot.orders(values) for values in logs.values()], arms)
    rho = Effect.of("ρ(corruption, s)", spearman(arms, log_s))
    clean = log_s[:, arms == 0].mean(axis=1)
    # Scales live on a log axis, so an arm's scale is the geometric mean of its networks'.
    ratios = [
        Effect.of(f"s(0) / s({f:g})", np.exp(clean - log_s[:, arms == f].mean(axis=1))) for f in fractions
    ]
    notes = [*_counts(arms, "repeats"), f"runs that cross half way outside the scales tried: {censored}"]
    return [rho, *ratios], _two(rho.below(-0.5), all(e.above(1.5) for e in ratios)), notes


@_claim(
    "C3a",
    "3a",
    ("train_accuracy", "test_accuracy", *CURVE),
    "Of networks trained alike, those that generalize best are the most robust to ablation.",
    per_dataset=False,
)
def _c3a(table, boot):
    networks = _networks(table, "train_accuracy", "test_accuracy")
    error = (networks["train_accuracy"] - networks["test_accuracy"]).to_numpy()
    k = min(5, len(error) // 2)
    if k == 0:
        raise ValueError("table: C3a needs at least two networks")
    ascending = np.argsort(error, kind="stable")
    chosen = networks.iloc[np.r_[ascending[:k], ascending[-k:]]]
    arms = np.repeat(["best", "worst"], k)
    area, _ = boot.networks(_auc(table[table["network"].isin(chosen.index)], boot, chosen), arms)
    effect = Effect.of(f"AUC(best {k}) − AUC(worst {k})", area[:, :k].mean(axis=1) - area[:, k:].mean(axis=1))
    notes = [f"best and worst {k} of {len(error)} networks by generalization error"]
    return [effect], _grade(effect.above(0), effect.estimate > 0), notes


@_claim(
    "C3b",
    "3b",
    ("train_accuracy", "test_accuracy", *CURVE),
    "Networks trained alike have the lower AUC the larger their generalization error.",
    per_dataset=False,
)
def _c3b(table, boot):
    networks = _networks(table, "train_accuracy", "test_accuracy")
    train, test = networks["train_accuracy"].to_numpy(), networks["test_accuracy"].to_numpy()
    within = np.stack([_auc(table, boot, networks, normalize) for normalize in (True, False)], axis=-1)
    area, picks = boot.networks(within, np.zeros(len(networks)))
    train, error = train[picks], (train - test)[picks]
    effects = []
    for i, name in enumerate(["normalised AUC", "raw AUC"]):
        rho, partial = spearman(area[..., i], error), spearman(area[..., i], error, given=train)
        effects.append(Effect.of(f"ρ({name}, generalization error)", rho, judged=i == 0))
        effects.append(
            Effect.of(f"ρ({name}, generalization error | training accuracy)", partial, judged=False)
        )
    test_error = spearman(area[..., 0], error - train)
    effects.append(Effect.of("ρ(normalised AUC, test error)", test_error, judged=False))
    notes = [
        *_counts(np.zeros(len(networks))),
        "judged by AUC divided by the unablated accuracy, as in the panel",
    ]
    return effects, _grade(effects[0].below(0), effects[0].estimate < 0), notes


def _snapshots(table, boot):
    """Of every network: epochs (E,), AUC at each with orders resampled (draws, E), test loss (E,)."""
    by = ["network", "epoch", "order"]
    areas = auc(_curves(table, by), by=by).unstack("order")
    for network in table["network"].unique():
        history = table[table["network"] == network].groupby("epoch")["test_loss"].first()
        # An order has the same units at every epoch, so the epochs share a draw of orders.
        yield history.index.to_numpy(), boot.orders(areas.loc[network].dropna(axis=1).T), history.to_numpy()


@_claim(
    "C4a",
    "4a",
    ("epoch", "test_loss", *CURVE),
    "AUC begins to fall where training and test loss part ways.",
    per_dataset=False,
)
def _c4a(table, boot):
    within = []
    for epochs, area, loss in _snapshots(table, boot):
        epochs = np.maximum(epochs, 1)
        ratio = np.log2(epochs[area.argmax(axis=1)] / epochs[loss.argmin()])
        within.append(np.stack([area[:, -1] - area.max(axis=1), ratio], axis=-1))
    values, _ = boot.networks(within, arms := np.zeros(len(within)))
    fall = Effect.of("AUC(last) − max AUC", values[..., 0].mean(axis=1))
    ratio = Effect.of("log2(epoch of max AUC / epoch of min test loss)", values[..., 1].mean(axis=1))
    notes = [*_counts(arms), "the fall is biased below 0: the maximum over epochs also picks up noise"]
    return [fall, ratio], _two(fall.below(0), ratio.low >= -1 and ratio.high <= 1), notes


@_claim(
    "C4b",
    "4b",
    ("epoch", "test_loss", *CURVE),
    "Along training, AUC and test loss are negatively related.",
    paper="Spearman −0.728 †",
    per_dataset=False,
)
def _c4b(table, boot):
    within = [spearman(area, loss) for _, area, loss in _snapshots(table, boot)]
    values, _ = boot.networks(within, arms := np.zeros(len(within)))
    rho = Effect.of("ρ(AUC, test loss), mean over networks", _mean(values))
    return [rho], _grade(rho.below(0), rho.estimate < 0), _counts(arms)


def select_by_auc(area, accuracy, rng, draws=1000):
    """How well AUC picks a setting: in random halves of the settings, is the one of the best AUC among the truly best?

    Returns k -> (how often among the best k, how often a setting picked blindly is) and the accuracy lost (draws,).
    """
    half = len(area) // 2
    ks = (1, 5, 10) if half >= 48 else (1, int(np.ceil(half / 10)), int(np.ceil(half / 5)))
    halves = rng.permuted(np.tile(np.arange(len(area)), (draws, 1)), axis=1)[:, :half]
    true = accuracy[halves]
    picked = np.take_along_axis(true, area[halves].argmax(axis=1, keepdims=True), axis=1)
    ranked = np.sort(true, axis=1)[:, ::-1]
    # Settings as good as the k-th best are among the best k, for the pick and for chance alike.
    rates = {k: ((picked >= ranked[:, [k - 1]]).mean(), (true >= ranked[:, [k - 1]]).mean()) for k in ks}
    return half, rates, ranked[:, 0] - picked[:, 0]


@_claim(
    "C4c",
    "4c",
    ("lr", "batch_size", "train_accuracy", "test_accuracy", *CURVE),
    "Over learning rates and batch sizes, AUC predicts test accuracy well enough to choose by.",
    paper="Spearman 0.914 †; among the best 1 / 5 / 10 of 48 in 13 / 83 / 98 % †; loses 1 ± 1.1 % †",
    per_dataset=False,
)
def _c4c(table, boot):
    networks = _networks(table, "lr", "batch_size", "train_accuracy", "test_accuracy")
    for column, normalize in (("auc", False), ("normalised", True)):
        networks[column] = _auc(table, boot, networks, normalize)[:, 0]
    settings = networks.groupby(["lr", "batch_size"], sort=False).mean()
    if len(settings) < 4:
        raise ValueError(f"table: C4c needs at least four settings of lr and batch_size, got {len(settings)}")
    area, normalised, train, test = (
        settings[["auc", "normalised", "train_accuracy", "test_accuracy"]].to_numpy().T
    )
    p = boot.picks(np.zeros(len(settings)))
    rho = Effect.of("ρ(AUC, test accuracy)", spearman(area[p], test[p]))
    controls = [
        Effect.of("ρ(normalised AUC, test accuracy)", spearman(normalised[p], test[p]), judged=False),
        Effect.of(
            "ρ(AUC, test accuracy | training accuracy)", spearman(area[p], test[p], train[p]), judged=False
        ),
    ]
    half, rates, lost = select_by_auc(area, test, boot.rng)
    selection = [
        Effect(f"{name} among the best {k} of {half}", float(rate), judged=False)
        for k, pair in rates.items()
        for name, rate in zip(("best AUC", "by chance"), pair, strict=True)
    ]
    selection += [
        Effect("test accuracy lost by choosing by AUC, mean", float(lost.mean()), judged=False),
        Effect("test accuracy lost by choosing by AUC, SD", float(lost.std()), judged=False),
    ]
    notes = [f"{len(networks)} networks in {len(settings)} settings; the interval resamples settings"]
    return [rho, *controls, *selection], _grade(rho.above(0.5), rho.above(0)), notes


@_claim(
    "C5a",
    "5a",
    ("dropout", "corruption", *CURVE),
    "Dropout protects up to its own fraction; past it only networks trained on clean labels stay robust.",
    per_dataset=False,
)
def _c5a(table, boot):
    table = table[(table["dropout"] > 0) & table["corruption"].isin([0, 1])]
    rates = sorted(table["dropout"].unique())
    if not rates:
        raise ValueError("table: no networks with dropout > 0 and corruption 0 or 1")
    networks = _networks(table, "dropout", "corruption")
    arms = pd.Index(networks[["dropout", "corruption"]].itertuples(index=False, name=None))
    absent = [f"dropout {p:g} and corruption {c}" for p in rates for c in (0, 1) if (p, c) not in arms]
    if absent:
        raise ValueError(f"table: no networks with {'; '.join(absent)}")
    at = {network: [] for network in networks.index}  # per order: accuracy lost at p, accuracy at p + 0.2
    for (network, _), curve in _curves(table, ["network", "order"]).groupby(["network", "order"]):
        p = networks.loc[network, "dropout"]
        x, y = curve.sort_values("fraction_ablated")[["fraction_ablated", "accuracy"]].to_numpy().T
        at[network].append([y[0] - np.interp(p, x, y), np.interp(p + 0.2, x, y)])
    codes, levels = pd.factorize(arms)
    values, _ = boot.networks([boot.orders(values) for values in at.values()], codes)
    mean = {arm: values[:, codes == i].mean(axis=1) for i, arm in enumerate(levels)}
    lost = [
        Effect.of(f"lost at dropout {p:g}, {name}", mean[p, c][:, 0])
        for p in rates
        for c, name in ((0, "clean"), (1, "corrupted"))
    ]
    gaps = [
        Effect.of(f"clean − corrupted at {p + 0.2:.2g}, dropout {p:g}", (mean[p, 0] - mean[p, 1])[:, 1])
        for p in rates
    ]
    verdict = _two(all(e.below(0.05) for e in lost), all(e.above(0) for e in gaps))
    return [*lost, *gaps], verdict, _counts(codes)


@_claim(
    "C5b",
    "5b",
    ("batch_norm", "train_accuracy", *CURVE),
    "Batch normalization makes networks more robust to ablation.",
    per_dataset=False,
)
def _c5b(table, boot):
    networks = _networks(table, "batch_norm", "train_accuracy")
    _arms(networks, "batch_norm", (True, False))
    kept = networks[networks["train_accuracy"] >= MEMORIZED]
    notes = [
        f"left out below {MEMORIZED:.0%} training accuracy: {len(networks) - len(kept)} of {len(networks)} networks"
    ]
    name = "AUC with − without batch norm"
    if kept["batch_norm"].nunique() < 2:
        arm = "without" if kept["batch_norm"].any() else "with" if len(kept) else "with or without"
        notes.append(f"no network {arm} batch norm reached {MEMORIZED:.0%}: nothing to compare")
        return [Effect(name, np.nan)], NOT_REPRODUCED, notes
    arms = kept["batch_norm"].to_numpy(dtype=bool)
    area, _ = boot.networks(_auc(table[table["network"].isin(kept.index)], boot, kept), arms)
    effect = Effect.of(name, area[:, arms].mean(axis=1) - area[:, ~arms].mean(axis=1))
    return [effect], _grade(effect.above(0), effect.estimate > 0), [*notes, *_counts(arms)]


@_claim(
    "C6",
    "6a-b",
    ("batch_norm", "layer", "unit", "selectivity", "mutual_information"),
    "Batch normalization lowers class selectivity and raises mutual information.",
    per_dataset=False,
)
def _c6(table, boot):
    alive, notes = _alive(table, "selectivity", "mutual_information")
    arms = _arms(_networks(alive, "batch_norm"), "batch_norm", (True, False)).astype(bool)
    units = [
        u[["selectivity", "mutual_information"]].to_numpy().T for _, u in alive.groupby("network", sort=False)
    ]
    differences = np.empty((boot.size, 2))
    for draw, picks in enumerate(boot.picks(arms)):
        drawn = [units[k] if draw == 0 else _redraw(units[k], boot.rng) for k in picks]
        with_norm, without = (
            np.concatenate([u for u, arm in zip(drawn, arms, strict=True) if arm == on], axis=1)
            for on in (True, False)
        )
        differences[draw] = (
            np.median(with_norm[0]) - np.median(without[0]),
            with_norm[1].mean() - without[1].mean(),
        )
    selectivity = Effect.of("median selectivity with − without", differences[:, 0])
    information = Effect.of("mean mutual information with − without, bits", differences[:, 1])
    for on, word in ((True, "with"), (False, "without")):
        arm = table["batch_norm"] == on
        notes.append(f"dead {word} batch norm: {1 - (alive['batch_norm'] == on).sum() / arm.sum():.1%}")
    verdict = _two(selectivity.below(0), information.above(0))
    return [selectivity, information], verdict, [*notes, *_counts(arms, "units")]


def _redraw(units, rng):
    return units[:, rng.integers(units.shape[1], size=units.shape[1])]


def _unit_correlations(alive, boot, x, y, layers=()):
    """ρ of two columns over a network's units, then within each layer: (draws, 1 + layers), mean over networks."""
    within = []
    for _, units in alive.groupby("network", sort=False):
        a, b = units[x].to_numpy(dtype=float), units[y].to_numpy(dtype=float)
        parts = [np.ones(len(units), dtype=bool)] + [(units["layer"] == layer).to_numpy() for layer in layers]

        def rhos(counts, a=a, b=b, parts=parts):
            return np.stack([counted_spearman(a[p], b[p], counts[:, p]) for p in parts], axis=-1)

        within.append(boot.units(len(units), rhos))
    values, _ = boot.networks(within, np.zeros(len(within)))
    return _mean(values)


def _poor_predictor(table, boot, x):
    alive, notes = _alive(table, x, "delta_loss")
    sizes = alive.groupby(["layer", "network"], sort=False).size().groupby("layer", sort=False).max()
    layers = [layer for layer in table["layer"].unique() if sizes.get(layer, 0) >= 3]
    if len(layers) < table["layer"].nunique():
        notes.append(
            f"layers with fewer than three living units, left out: {table['layer'].nunique() - len(layers)}"
        )
    rhos = (
        _unit_correlations(alive, boot, x, "delta_loss", layers)
        if len(alive)
        else np.full((boot.size, 1), np.nan)
    )
    names = ["all units", *(f"layer {layer}" for layer in layers)]
    effects = [Effect.of(f"ρ, {name}", rhos[:, i]) for i, name in enumerate(names)]
    verdict = _grade(all(e.inside(-0.5, 0.5) for e in effects), all(e.touches(-0.5, 0.5) for e in effects))
    return effects, verdict, [*notes, *_counts(np.zeros(table["network"].nunique()), "units")]


@_claim(
    "C7",
    "7a-e",
    ("layer", "unit", "selectivity", "delta_loss"),
    "Class selectivity of a unit is a poor predictor of its importance.",
    paper="Spearman 0.095 † (MNIST), −0.428 † (CIFAR-10), none (ImageNet)",
)
def _c7(table, boot):
    return _poor_predictor(table, boot, "selectivity")


@_claim(
    "CA1", "A1", ("value", *CURVE), "Ablating to zero is less damaging than to the mean.", per_dataset=False
)
def _ca1(table, boot):
    by = ["network", "value", "order"]
    areas = auc(_curves(table, by), by=by).unstack("value")
    absent = [value for value in ("zero", "mean") if value not in areas]
    if absent:
        raise ValueError(f"table: no curves with value {', '.join(absent)}")
    difference = (areas["zero"] - areas["mean"]).dropna()  # the same orders in the same network
    if difference.empty:
        raise ValueError("table: expected networks and orders measured with both values, zero and mean")
    within = [boot.orders(orders) for _, orders in difference.groupby("network", sort=False)]
    values, _ = boot.networks(within, arms := np.zeros(len(within)))
    effect = Effect.of("AUC to zero − AUC to the mean", values.mean(axis=1))
    return [effect], _grade(effect.above(0), effect.estimate > 0), _counts(arms)


@_claim("CA2", "A2a-b", ("layer", "unit", "selectivity"), "Class selectivity rises with depth.")
def _ca2(table, boot):
    alive, notes = _alive(table, "selectivity")
    layers = alive["layer"].unique()
    within = []
    for _, units in alive.groupby("network", sort=False):
        selectivity = units["selectivity"].to_numpy()
        depth = pd.Categorical(units["layer"], categories=pd.unique(table["layer"])).codes
        levels = np.unique(depth)
        member = (depth[:, None] == levels).astype(float)  # (units, layers)

        def rho(counts, s=selectivity, member=member, levels=levels):
            # A layer of which no unit was drawn has no mean: NaN, and that draw has no ρ.
            with np.errstate(invalid="ignore"):
                return spearman(levels, (counts * s) @ member / (counts @ member))

        within.append(boot.units(len(units), rho))
    values, _ = boot.networks(
        within or np.full((1, boot.size), np.nan), arms := np.zeros(max(1, len(within)))
    )
    effect = Effect.of("ρ(depth, mean selectivity)", _mean(values))
    return (
        [effect],
        _grade(effect.above(0.5), effect.above(0)),
        [*notes, f"{len(layers)} layers", *_counts(arms, "units")],
    )


@_claim(
    "CA3",
    "A3a-b",
    ("model", "layer", "unit", "selectivity", "l1_norm"),
    "Selectivity has no relation to a filter's L1 norm on ImageNet and a negative one on CIFAR-10.",
    per_dataset=False,
)
def _ca3(table, boot):
    _arms(_networks(table, "model"), "model", ("convnet", "resnet50"))
    alive, notes = _alive(table, "selectivity", "l1_norm")
    effects = []
    for model, name in (("convnet", "ConvNet (CIFAR-10)"), ("resnet50", "ResNet-50 (ImageNet)")):
        units = alive[alive["model"] == model]
        rho = (
            _unit_correlations(units, boot, "selectivity", "l1_norm")
            if len(units)
            else np.full((boot.size, 1), np.nan)
        )
        effects.append(Effect.of(f"ρ(selectivity, L1 norm), {name}", rho[:, 0]))
        notes += [f"{name}: {note}" for note in _counts(np.zeros(units["network"].nunique()), "units")]
    verdict = _two(effects[0].below(0.3), effects[1].inside(-0.5, 0.5))
    return effects, verdict, notes


@_claim(
    "CA4",
    "A4a-e",
    ("layer", "unit", "mutual_information", "delta_loss"),
    "Mutual information of a unit with the class is a poor predictor of its importance.",
)
def _ca4(table, boot):
    return _poor_predictor(table, boot, "mutual_information")
