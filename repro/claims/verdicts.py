"""What the test of a claim comes to: effects with intervals, a verdict, a scorecard; and which claims there are."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from repro.checks import check_integer, check_table
from repro.claims.statistics import Bootstrap
from repro.data import short_name

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
HOW = (
    "A bound is kept if the whole 95 % interval keeps it. Intervals are percentiles of a bootstrap over networks and, within "
    "them, over orders, repeats or units; with three or four networks per arm they are too short, as such intervals are: read "
    "them as 75 to 80 %. Where the wider intervals of Student's t lead to another verdict, a note says to which."
)
BEFOREHAND = (
    "The rules of the paper's claims, C1 to CA4, were written down before any network was trained. When networks had been "
    "measured, the interval of C4c was widened, and C3a came to count networks tied with the fifth; those of the preset "
    "paper-again were trained after that."
)
HINDSIGHT = (
    "These rules were written when the networks of the paper's figures had been measured, except those of the preset "
    "paper-again. On the other presets, the tables that X2a, X5a and X5b judge existed before their rules did, and what X2a and "
    "X5a come to on digits could be inferred from the verdicts of C7 and C4c."
)
FEW = 3  # effects that are shown at once


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
        return f"{self.name} {minus(f'{self.estimate:.3g}{interval}')}"


@dataclass(frozen=True, repr=False)
class Verdict:
    """What one table says about one claim."""

    claim: str
    subject: str  # which networks on which data: "mlp on digits"
    statement: str
    effects: tuple[Effect, ...]
    verdict: str  # "reproduced", "partly" or "not reproduced"
    paper: str  # the paper's number, "" where it gives none
    notes: tuple[str, ...] = ()
    rule: str = ""

    def __repr__(self):  # what a notebook keeps beside the markdown
        return f"<{self.claim}, {self.subject}: {self.verdict}>"

    def __str__(self):
        head = f"{self.claim}, {self.subject}: {self.verdict.upper()}."
        return f"{head} {self.statement}\n  {_brief(self.effects)}"

    def _repr_markdown_(self):
        lines = [f"**{self.claim}, {self.subject}: {self.verdict}.** {self.statement}", ""]
        judged = [effect for effect in self.effects if effect.judged]
        lines += [f"- {effect}" for effect in judged[:FEW]]
        if rest := judged[FEW:]:
            folded = [f"- {effect}" for effect in rest]
            lines += [f"\n<details><summary>{_more(rest)}</summary>\n", *folded, "\n</details>\n"]
        lines += [f"- {effect} *(not judged)*" for effect in self.effects if not effect.judged]
        lines += [f"- {'' if self.claim.startswith('X') else 'paper: '}{self.paper}"] if self.paper else []
        lines += [f"- rule: {self.rule}"] if self.rule else []
        return "\n".join(lines + [f"- *{note}*" for note in self.notes])

    def to_dict(self):
        """Plain dicts, lists, strings and numbers, ready for JSON; NaN, which JSON lacks, becomes None."""
        effects = [{k: None if v != v else v for k, v in asdict(effect).items()} for effect in self.effects]
        return asdict(self) | {"effects": effects, "notes": list(self.notes)}


def _brief(effects):
    """The first few judged effects, and how far the others reach."""
    judged = [effect for effect in effects if effect.judged]
    parts, rest = list(map(str, judged[:FEW])), judged[FEW:]
    return "; ".join([*parts, f"and {_more(rest)}"] if rest else parts)


def _more(effects):
    """How many effects are left, and how far their estimates reach."""
    low, high = (pick(effect.estimate for effect in effects) for pick in (min, max))
    return minus(f"{len(effects)} more, {low:.3g} to {high:.3g}")


def scorecard(verdicts: Iterable[Verdict | dict]) -> str:
    """Markdown, one row per verdict (or its `to_dict`) with its first three judged effects; later work by itself; then the
    rules, and what no rule looks at."""
    rows: dict[bool, list] = {False: [], True: []}
    beside, rules = [], {}
    for verdict in verdicts:
        v = verdict.to_dict() if isinstance(verdict, Verdict) else verdict
        effects = [Effect(**{k: np.nan if x is None else x for k, x in e.items()}) for e in v["effects"]]
        cells = [v["claim"], v["statement"], v["subject"], v["paper"] or "–", _brief(effects), f"**{v['verdict']}**"]
        rows[v["claim"].startswith("X")].append([cell.replace("|", "\\|") for cell in cells])
        rules[v["claim"]] = v.get("rule", "")  # records of earlier versions have none
        more = [str(effect) for effect in effects if not effect.judged] + [f"*{note}*" for note in v["notes"]]
        beside += [f"- {v['claim']}, {v['subject']}: {'; '.join(more)}"] if more else []
    parts = [_markdown("paper", rows[False])]
    if "†" in parts[0]:
        parts.append("† quoted from memory, not read again in the paper")
    if rows[True]:
        parts += ["## Later work", HINDSIGHT, _markdown("source", rows[True])]
    if judged := [f"- {claim}. {rule}" for claim, rule in rules.items() if rule]:
        parts += ["## Rules", HOW, "\n".join(judged)]
    if beside:
        parts += ["## Beside the rules", "\n".join(beside)]
    return "\n\n".join(parts)


def _markdown(source, rows):
    head = ("claim", "statement", "about", source, "ours, 95 % interval", "verdict")
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


# ------------------------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Claim:
    """A claim's statement and its rule, the panel that shows it, the paper's number, and what judges it."""

    statement: str
    rule: str
    panel: str
    paper: str
    columns: tuple[str, ...]  # what its table needs beside `network`
    per_dataset: bool  # the rule is for one data set at a time
    same_epochs: bool  # networks that did not train equally long deserve a note
    judge: Callable  # (table, bootstrap) -> (effects, verdict, notes)


CLAIMS: dict[str, Claim] = {}
# Columns that need not be numbers.
LABELS = {"layer", "unit", "class", "order", "repeat", "value", "model", "dataset", "by", "direction", "directions"}
SHARES = {"accuracy", "train_accuracy", "test_accuracy", "fraction_ablated", "corruption", "dropout"}  # from 0 to 1


def claim(claim_id, panel, *columns, paper="", per_dataset=False, same_epochs=True):
    """Register a judge, whose docstring is the claim's statement and, in a second paragraph, its rule."""

    def register(judge):
        statement, _, rule = inspect.getdoc(judge).partition("\n\n")
        rule = " ".join(rule.split())
        CLAIMS[claim_id] = Claim(statement, rule, panel, paper, columns, per_dataset, same_epochs, judge)
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

    Returns
    -------
    Verdict
        Effects with 95 % intervals, and "reproduced", "partly" or "not reproduced"; a notebook shows it as text.

    Raises
    ------
    ValueError
        For an unknown claim, resamples below 1, a negative seed, an empty table, a missing column or arm, several data
        sets where the claim is judged per data set, or several curves or rows per unit where one was expected.
    """
    if not isinstance(claim_id, str) or claim_id not in CLAIMS:
        raise ValueError(f"claim_id: expected one of {', '.join(CLAIMS)}, got {claim_id!r}")
    entry = CLAIMS[claim_id]
    check_integer("resamples", resamples, 1)
    check_integer("seed", seed, 0)
    check_table(table)
    missing = [column for column in ("network", *entry.columns) if column not in table]
    if missing:
        raise ValueError(f"table: {claim_id} needs the missing columns {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"table: {claim_id} needs rows, but the table is empty")
    _check_numbers(entry, table)
    about = [column for column in ("model", "dataset") if column in table]
    named = table[about].drop_duplicates().astype(str)
    if "dataset" in named:
        named["dataset"] = named["dataset"].map(short_name)
    subjects = named.agg(" on ".join, axis=1).tolist() if about else []
    if entry.per_dataset and len(subjects) > 1:
        raise ValueError(f"table: {claim_id} is judged per data set, got {', '.join(subjects)} in one table")

    boot = Bootstrap(resamples, seed)
    effects, verdict, notes = entry.judge(table, boot)
    _, widened, _ = entry.judge(table, boot.widened())
    undefined = [effect.name for effect in effects if effect.judged and np.isnan(effect.estimate)]
    if undefined:
        verdict = NOT_REPRODUCED
        notes = [*notes, f"undefined, from constant or too few values: {', '.join(undefined)}"]
    elif widened != verdict:
        notes = [*notes, f"with Student's t intervals: {widened}"]
    if entry.same_epochs and "epochs" in table and table["epochs"].nunique() > 1:
        notes = [*notes, "the networks did not train equally long"]
    subject = ", ".join(subjects)
    return Verdict(claim_id, subject, entry.statement, tuple(effects), verdict, entry.paper, tuple(notes), entry.rule)


def minus(text):
    """The text with true minus signs in place of hyphens."""
    return text.replace("-", "−")


def grade(reproduced, partly):
    return REPRODUCED if reproduced else PARTLY if partly else NOT_REPRODUCED


def two(first, second):
    """The rule of two conditions: both, or one of the two."""
    return grade(first and second, first or second)


def _check_numbers(entry, table):
    """Refuse what no measurement gives: other columns than numbers, NaN (but for the index of dead units), infinity, per cent."""
    if not table.columns.is_unique or table["network"].isna().any():
        raise ValueError("table: expected every column once, and the name of a network in every row")
    for column in entry.columns:
        if column in LABELS:
            continue
        if not is_numeric_dtype(table[column]):
            raise ValueError(f"table: expected numbers as {column}, got {table[column].dtype}")
        numbers = table[column].to_numpy(float)
        if np.isinf(numbers).any() or (column != "selectivity" and np.isnan(numbers).any()):
            raise ValueError(f"table: expected finite numbers as {column}, found NaN or infinity")
        if column in SHARES and (wrong := numbers[(numbers < 0) | (numbers > 1)]).size:
            raise ValueError(f"table: expected {column} from 0 to 1, found {wrong[0]:g}")
