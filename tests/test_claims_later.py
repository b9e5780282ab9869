"""The rules for later work, X1 to X5, on made-up tables where they must say yes, partly or no."""

import numpy as np
import pandas as pd
import pytest

from repro.beyond import class_damage
from repro.claims import CLAIMS, check, scorecard
from tests.test_claims import CORRUPTIONS, NO, PARTLY, YES, assert_drawn_once, c3, curves, related, trained, units

NETWORKS = 4


def normal(rng, n, like, rho):
    return rho * like + np.sqrt(1 - rho**2) * rng.normal(size=n)


def x1(largest, preferred, n=60):
    """Units whose largest class drop, and that of their preferred class, correlate with selectivity to this degree."""
    rng, tables = np.random.default_rng(0), []
    for network in range(NETWORKS):
        for layer in ("relu1", "relu2"):
            selectivity = rng.normal(size=n)
            worst = 10 + normal(rng, n, selectivity, largest)  # of class 0
            own = normal(rng, n, selectivity, preferred)  # of class 1, which all units prefer
            for c, drop in enumerate((worst, own, np.full(n, -9.0))):
                columns = {"unit": np.arange(n), "selectivity": selectivity, "delta_accuracy": -drop, "class": c}
                names = {"network": f"n{network}", "model": "mlp", "dataset": "digits", "layer": layer}
                tables.append(pd.DataFrame(columns | names | {"share": 1 / 3, "preferred_class": 1}))
    return pd.concat(tables, ignore_index=True)


def x2a(selectivity, information):
    def draw(rng, layer, n):
        importance = rng.normal(size=n)
        pair = normal(rng, n, importance, selectivity), normal(rng, n, importance, information)
        return {"delta_loss": importance, "selectivity": pair[0], "mutual_information": pair[1]}

    return units([{"draw": draw}] * NETWORKS)


def x2b(**gaps):
    """By how much the curve lies higher where low values go first."""
    return curves(
        [
            {"network": f"n{i}", "by": by, "direction": direction, "knee": 0.5 + gap * (direction == "ascending")}
            for i in range(NETWORKS)
            for by, gap in gaps.items()
            for direction in ("ascending", "descending")
        ],
        orders=1,
    )


def x3(selectivity, accuracy):
    """Mean selectivity and test accuracy at each α of −1, 0 and 1."""
    rows = []
    for alpha, s, a in zip((-1, 0, 1), selectivity, accuracy, strict=True):
        for i in range(NETWORKS):

            def draw(rng, layer, n, s=s):
                return {"selectivity": s + 0.05 * rng.normal(size=n)}

            rows.append({"draw": draw, "alpha": float(alpha), "test_accuracy": a + 0.001 * i})
    return units(rows, n=50)


def x4(means, rhos):
    """Mean selectivity, and its correlation with importance, at each epoch of 0, 1, 4, 10 and 40."""
    tables = []
    for epoch, mean, rho in zip((0, 1, 4, 10, 40), means, rhos, strict=True):

        def draw(rng, layer, n, mean=mean, rho=rho):
            selectivity = rng.normal(size=n)
            return {"selectivity": mean + 0.05 * selectivity, "delta_loss": normal(rng, n, selectivity, rho)}

        tables.append(units([{"draw": draw}] * NETWORKS, n=80, seed=epoch).assign(epoch=epoch))
    return pd.concat(tables, ignore_index=True)


def x5a(agreement, train_accuracy=lambda test: test * 0 + 1):
    n = 40
    knees, test = c3(agreement, n)
    table = trained(knees, test, lr=10.0 ** -(np.arange(n) % 5), batch_size=2 ** (np.arange(n) // 5))
    return table.assign(train_accuracy=train_accuracy(table.test_accuracy))


def x5b(knee, between=0.01, jitter=0.01):
    rng = np.random.default_rng(1)
    rows = [{"corruption": f, "knee": knee(f) + between * rng.normal()} for f in CORRUPTIONS for _ in range(NETWORKS)]
    return curves(rows, jitter=jitter)


def x5c(falls, name="value"):
    """By how much networks of corruption 1 fall earlier, for each level of a column."""
    return curves(
        [
            {"network": f"n{f}-{i}", "corruption": f, name: level, "knee": 0.6 - fall * f + 0.05 * (i - 1.5) * (f == 0)}
            for f in (0.0, 1.0)
            for i in range(NETWORKS)
            for level, fall in falls.items()
        ]
    )


def x5d(units, random):
    return x5c({"units": units, "random": random}, "directions")


def x5e(plain, folded):
    def draw(rng, layer, n):
        x = rng.normal(size=n)
        return {"selectivity": x, "l1_norm": normal(rng, n, x, plain), "folded_l1_norm": normal(rng, n, x, folded)}

    return units([{"draw": draw}] * NETWORKS)


def x5f(knees):
    widths = (32, 64, 128, 256)
    return curves([{"width": w, "knee": k} for w, k in zip(widths, knees, strict=True) for _ in range(NETWORKS)])


CASES = [
    ("X1", YES, x1(0.6, 0.6)),
    ("X1", PARTLY, x1(0.6, -0.6)),
    ("X1", PARTLY, x1(-0.6, 0.6)),
    ("X1", NO, x1(0.0, -0.6)),
    ("X2a", YES, x2a(0.4, 0.4)),
    ("X2a", PARTLY, x2a(0.4, -0.4)),
    ("X2a", NO, x2a(-0.4, -0.4)),
    ("X2b", YES, x2b(selectivity=0.2, mutual_information=0.2, importance=0.3, l1_norm=-0.1)),
    ("X2b", PARTLY, x2b(selectivity=-0.2, mutual_information=0.2)),
    ("X2b", NO, x2b(selectivity=-0.2, mutual_information=-0.2, importance=0.3)),
    ("X3", YES, x3((0.2, 0.4, 0.7), (0.898, 0.9, 0.8))),
    ("X3", PARTLY, x3((0.2, 0.4, 0.7), (0.9, 0.9, 0.95))),  # free, but more selectivity does not hurt
    ("X3", PARTLY, x3((0.2, 0.4, 0.7), (0.8, 0.9, 0.8))),  # hurts either way
    ("X3", NO, x3((0.5, 0.4, 0.7), (0.9, 0.9, 0.95))),
    ("X4", YES, x4((0.1, 0.3, 0.5, 0.5, 0.4), (0, 0.5, 0.5, 0.2, 0))),
    ("X4", PARTLY, x4((0.1, 0.3, 0.5, 0.5, 0.4), (0, 0, 0, 0, 0.5))),
    ("X4", PARTLY, x4((0.1, 0.1, 0.15, 0.3, 0.5), (0, 0.5, 0.5, 0, 0))),  # appear late
    ("X4", NO, x4((0.1, 0.1, 0.15, 0.3, 0.5), (0, 0, 0, 0, 0.5))),
    ("X5a", YES, x5a(1)),
    ("X5a", PARTLY, x5a(0.6, lambda test: test + 0.03 * np.sin(1e4 * test))),  # given training accuracy, little is left
    ("X5a", NO, x5a(-1)),
    ("X5b", YES, x5b(lambda f: 0.8 - 0.5 * f)),
    ("X5b", PARTLY, x5b(lambda f: 0.6 - 0.2 * f, between=0.1)),
    ("X5b", NO, x5b(lambda f: 0.5, between=0.1)),
    ("X5b", NO, x5b(lambda f: 0.5 - 0.02 * f, jitter=0.1)),
    ("X5c", YES, x5c({"zero": 0.2, "mean": 0.2, "resampled": 0.2})),
    ("X5c", PARTLY, x5c({"zero": 0.2, "mean": -0.2, "resampled": 0.2})),
    ("X5c", NO, x5c({"zero": -0.2, "mean": -0.2, "resampled": -0.2})),
    ("X5d", YES, x5d(0.2, 0.2)),
    ("X5d", PARTLY, x5d(0.2, 0.01)),
    ("X5d", NO, x5d(0.2, -0.2)),
    ("X5e", YES, x5e(0.5, 0.5)),
    ("X5e", PARTLY, x5e(0.5, 0.7)),
    ("X5e", NO, x5e(0.5, -0.5)),
    ("X5f", YES, x5f((0.3, 0.4, 0.5, 0.6))),
    ("X5f", PARTLY, x5f((0.4, 0.5, 0.45, 0.48))),
    ("X5f", NO, x5f((0.6, 0.5, 0.4, 0.3))),
]
TABLES = {claim: table for claim, verdict, table in CASES if verdict == YES}


@pytest.mark.parametrize(("claim", "verdict", "table"), CASES, ids=[f"{c} {v}" for c, v, _ in CASES])
def test_rule(claim, verdict, table):
    result = check(claim, table)
    assert result.verdict == verdict, result._repr_markdown_()
    judged = [effect for effect in result.effects if effect.judged]
    assert judged and all(effect.low <= effect.high for effect in judged)


def test_every_claim_has_a_table_of_each_kind():
    later = [claim for claim in CLAIMS if claim.startswith("X")]
    assert {(claim, verdict) for claim, verdict, _ in CASES} == {(c, v) for c in later for v in (YES, PARTLY, NO)}


@pytest.mark.parametrize("claim", TABLES)
def test_what_is_drawn_once_is_what_would_be_drawn_again(claim):
    assert_drawn_once(claim, TABLES[claim])


@pytest.mark.parametrize("claim", TABLES)
def test_missing_columns_are_refused(claim):
    for column in CLAIMS[claim].columns:
        with pytest.raises(ValueError, match=f"table: {claim} needs the missing columns {column}"):
            check(claim, TABLES[claim].drop(columns=column))


@pytest.mark.parametrize(
    ("claim", "keep", "named"),
    [
        ("X2b", lambda t: t[t.by != "mutual_information"], "by mutual_information"),
        ("X3", lambda t: t[t.alpha != -1], "alpha -1"),
        ("X4", lambda t: t[t.epoch > 0], "epoch 0"),
        ("X4", lambda t: t[~t.epoch.isin([1, 4])], "first tenth"),
        ("X2b", lambda t: t[t.direction != "descending"], "direction descending"),
        ("X4", lambda t: t[(t.epoch != 10) | (t.network != "n1")], "n1 lacks 10"),
        ("X5a", lambda t: t[(t.lr == 1) & (t.batch_size < 8)], "four settings"),
        ("X5b", lambda t: t[t.corruption > 0], "corruption 0"),
        ("X5c", lambda t: t[t.value != "resampled"], "value resampled"),
        ("X5d", lambda t: t[t.directions != "random"], "directions random"),
        ("X5f", lambda t: t[t.width > 64], "three widths"),
    ],
)
def test_a_missing_arm_is_refused_by_name(claim, keep, named):
    with pytest.raises(ValueError, match=named):
        check(claim, keep(TABLES[claim]))


@pytest.mark.parametrize("claim", ["X1", "X2a", "X3", "X4", "X5e"])
def test_units_that_stand_there_twice_are_refused(claim):
    with pytest.raises(ValueError, match="table: expected one row per network, (epoch, )?layer, unit"):
        check(claim, pd.concat([TABLES[claim], TABLES[claim]]))


def shifted(table, x, *ys):
    """The same units with layers moved apart: over all of them x and y go in opposite directions."""
    depth = pd.factorize(table["layer"])[0]
    return table.assign(**{x: table[x] + 100 * depth}, **{y: table[y] - 100 * depth for y in ys})


@pytest.mark.parametrize(
    ("claim", "table"),
    [
        ("X1", TABLES["X1"].assign(selectivity=lambda t: t["selectivity"] + 100 * pd.factorize(t["layer"])[0],
                                   delta_accuracy=lambda t: t["delta_accuracy"] + 100 * pd.factorize(t["layer"])[0])),
        ("X2a", shifted(TABLES["X2a"], "delta_loss", "selectivity", "mutual_information")),
        ("X4", shifted(TABLES["X4"], "selectivity", "delta_loss")),
    ],
)  # fmt: skip
def test_correlations_are_those_within_layers(claim, table):
    effects = {e.name: e.estimate for e in check(claim, TABLES[claim], resamples=20).effects if "ρ" in e.name}
    found = {e.name: e.estimate for e in check(claim, table, resamples=20).effects if "ρ" in e.name}
    within = [name for name in effects if "within layers" in name]
    assert within and [found[name] for name in within] == pytest.approx([effects[name] for name in within])
    assert all(found[name] < 0 < effects[name] for name in found if "over all units" in name and "ce, drop" not in name)


def test_a_network_whose_selectivity_never_rises_made_no_rise_early():
    rising, falling = x4((0.1, 0.3, 0.5, 0.5, 0.4), [0] * 5), x4((0.5, 0.4, 0.3, 0.2, 0.1), [0] * 5)
    table = pd.concat([rising[rising.network == "n0"], falling[falling.network != "n0"]])
    share, *_ = check("X4", table, resamples=20).effects
    assert share.estimate == pytest.approx(0.25, abs=0.01)


def test_a_network_that_is_dead_at_first_has_no_share_of_a_rise():
    table = TABLES["X4"].copy()
    table.loc[table["epoch"] == table["epoch"].min(), "selectivity"] = np.nan
    verdict = check("X4", table, resamples=20)
    assert np.isnan(verdict.effects[0].estimate) and verdict.verdict == NO


def test_without_a_living_unit_a_relation_is_undefined():
    verdict = check("X5e", TABLES["X5e"].assign(selectivity=np.nan), resamples=20)
    assert np.isnan(verdict.effects[0].estimate) and verdict.verdict == NO


def test_one_network_an_arm_has_no_interval_where_nothing_varies_within_it():
    first = TABLES["X3"].groupby("alpha").network.first()
    for claim, table in (
        ("X3", TABLES["X3"][lambda t: t.network.isin(first)]),
        ("X2b", TABLES["X2b"][lambda t: t.network == "n0"]),
    ):
        result = check(claim, table)
        assert all(np.isnan(effect.low) for effect in result.effects) and result.verdict == NO
        assert "one network per arm: no interval" in result.notes


def test_units_without_an_image_of_their_preferred_class_are_left_out():
    table = TABLES["X1"]
    lost = (table.network == "n0") & (table.unit < 30)  # of these units, the rows of class 1, which they prefer
    result = check("X1", table[~(lost & (table["class"] == 1))])
    assert result.effects == check("X1", table[~lost]).effects
    assert "dead units, left out: 12.5%" in result.notes


def test_dead_units_are_counted_for_each_network_and_snapshot_that_is_judged():
    x3, x4 = TABLES["X3"], TABLES["X4"]
    x3 = x3.assign(selectivity=x3.selectivity.mask((x3.alpha == -1) & (x3.unit < 5)))
    assert "dead units, left out: 10.0% at α = −1, 0.0% at α = 0, 0.0% at α = 1" in check("X3", x3).notes
    x4 = x4.assign(selectivity=x4.selectivity.mask((x4.epoch == 4) & (x4.unit < 8)))
    assert "dead units, left out: 0.0% at epoch 0, 10.0% at epoch 4, 0.0% at epoch 40" in check("X4", x4).notes


def test_class_damage_is_the_largest_drop_the_preferred_ones_and_the_whole():
    rows = {
        "network": "n",
        "layer": "relu1",
        "unit": [0, 0, 1, 1, 2, 2],
        "class": [0, 1] * 3,
        "share": [0.25, 0.75] * 3,
    }
    drops = [-0.4, 0.0, 0.2, -0.1, 0.0, 0.0]
    table = pd.DataFrame(rows | {"delta_accuracy": drops, "preferred_class": [0, 0, 0, 0, -1, -1], "selectivity": 0.5})
    found = class_damage(table)
    assert len(found) == 3 and "class" not in found
    assert found.largest_drop.tolist() == [0.4, 0.1, 0.0]
    np.testing.assert_allclose(found["drop"], [0.1, 0.025, 0.0])
    np.testing.assert_allclose(found.preferred_drop, [0.4, -0.2, np.nan])
    tied = table.assign(share=0.1, delta_accuracy=[-0.1, -0.2, -0.3, 0.0, 0.0, -0.3])
    assert class_damage(tied)["drop"].nunique() == 1  # 0.01 + 0.02 is not 0.03 to a computer


@pytest.mark.parametrize(("orders", "noise"), [(30, 0.02), (3, 0.1)])
def test_shares_of_variance_are_those_put_in(orders, noise):
    """Fractions, networks and orders of known spread; few orders of much noise do not count as networks that differ."""
    rng, rows = np.random.default_rng(0), []
    for f in np.linspace(0, 1, 6):
        for i in range(30):
            at = 0.5 + 0.1 * (f - 0.5) / np.std(np.linspace(0, 1, 6), ddof=1) + 0.05 * rng.normal()
            for order in range(orders):
                area = at + noise * rng.normal()  # of a straight line at this height
                rows += [(f"n{f}-{i}", f, order, x, area) for x in (0.0, 1.0)]
    table = pd.DataFrame(rows, columns=["network", "corruption", "order", "fraction_ablated", "accuracy"])
    effects = {effect.name: effect.estimate for effect in check("X5b", table, resamples=20).effects}
    assert effects["SD of AUC between fractions"] == pytest.approx(0.1, rel=0.1)
    assert effects["SD of AUC between networks"] == pytest.approx(0.05, rel=0.2)
    assert effects["SD of AUC between orders"] == pytest.approx(noise, rel=0.05)


def test_the_same_numbers_give_the_same_verdict():
    assert check("X1", TABLES["X1"]).to_dict() == check("X1", TABLES["X1"]).to_dict()


def test_the_scorecard_keeps_later_work_by_itself():
    paper = check("C7", units([related("selectivity", "delta_loss", 0.1)] * 4))
    text = scorecard([paper, check("X2a", TABLES["X2a"])])
    first, second = text.split("## Later work")
    assert "| C7 |" in first and "| X2a |" not in first
    assert "| X2a |" in second and "later work: Amjad" in second and "| source |" in second
    assert "were written when the networks of the paper's figures had been measured" in second
    assert "Later work" not in scorecard([paper])
