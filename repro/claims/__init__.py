"""The paper's fifteen claims and what later work says, each with the rule by which it counts as reproduced.

A claim leads from a tidy table (`experiment.measure`) to effect sizes with 95 % intervals, and from those to a verdict:
"reproduced", "partly" or "not reproduced". Which rules are older than the networks they judge is told by
`verdicts.BEFOREHAND` and `verdicts.HINDSIGHT`.

Intervals are percentile bootstraps in two steps, because the orders, repeats and units of one network are not
independent: networks are drawn first (within their arm where a claim compares arms, so that every arm keeps
its number of networks; of settings, the settings as well), then orders, repeats or units within each network
drawn. Along an axis of draws the first is the data as they are: an estimate comes from the very code its interval
comes from. Drawing orders on top of networks adds noise, so a ρ close to ±1 may lie just outside its interval, on
the cautious side. Of three or four networks such intervals are too short: every claim is judged a second time by the
wider ones of Student's t, and a note says where that leads to another verdict.
"""

from repro.claims import later, paper
from repro.claims.statistics import Bootstrap, counted_spearman, spearman
from repro.claims.verdicts import CLAIMS, NOT_REPRODUCED, PARTLY, REPRODUCED, Claim, Effect, Verdict, check, scorecard

__all__ = [
    "CLAIMS",
    "NOT_REPRODUCED",
    "PARTLY",
    "REPRODUCED",
    "Bootstrap",
    "Claim",
    "Effect",
    "Verdict",
    "check",
    "counted_spearman",
    "later",
    "paper",
    "scorecard",
    "spearman",
]
