"""Every rule of `repro.claims` on made-up tables where it must say yes, partly or no; what it refuses."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repro import claims
from repro.claims import CLAIMS, Bootstrap, Effect, Verdict, check, counted_spearman, scorecard, spearman
from repro.claims.tables import settings_of

YES, PARTLY, NO = "reproduced", "partly", "not reproduced"
FRACTIONS = np.linspace(0, 1, 21)
CORRUPTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


# ------------------------------------------------------------------------------------------- made-up tables


def curves(rows, orders=3, jitter=0.01, steep=10, seed=0):
    """One network a row: accuracy falls around `knee`, jittered by order; the rest are columns."""
    rng, tables = np.random.default_rng(seed), []
    for i, row in enumerate(rows):
        row = {"network": f"n{i}", "model": "mlp", "dataset": "digits"} | row
        knee = row.pop("knee")
        for order in range(orders):
            at = knee + jitter * rng.normal()
            accuracy = 0.1 + 0.9 / (1 + np.exp(steep * (FRACTIONS - at)))
            columns = {"order": order, "fraction_ablated": FRACTIONS, "accuracy": accuracy}
            tables.append(pd.DataFrame(columns | row))
    return pd.concat(tables, ignore_index=True)


def noise(rows, repeats=3, spread=0.05, scales=None, seed=0):
    """One network a row: accuracy is half way to chance at the noise scale `s`."""
    rng, tables = np.random.default_rng(seed), []
    scales = np.r_[0, np.logspace(-1.5, 1, 16)] if scales is None else scales
    for i, row in enumerate(rows):
        row = {"network": f"n{i}", "model": "mlp", "dataset": "digits"} | row
        s = row.pop("s")
        for repeat in range(repeats):
            accuracy = 0.1 + 0.9 / (1 + (scales / (s * np.exp(spread * rng.normal()))) ** 2)
            tables.append(pd.DataFrame({"repeat": repeat, "scale": scales, "accuracy": accuracy} | row))
    return pd.concat(tables, ignore_index=True)


def units(rows, n=300, layers=2, seed=0):
    """One network a row, n units per layer, whose columns `draw(rng, layer, n)` makes; the rest are columns."""
    rng, tables = np.random.default_rng(seed), []
    for i, row in enumerate(rows):
        constants = {k: v for k, v in row.items() if k != "draw"}
        for layer in range(layers):
            names = {"network": f"n{i}", "model": "mlp", "dataset": "digits", "layer": f"layer{layer}"}
            tables.append(pd.DataFrame({"unit": np.arange(n)} | row["draw"](rng, layer, n) | names | constants))
    return pd.concat(tables, ignore_index=True)


def corrupted(make, of, networks=4):
    return make([{"corruption": f, **of(f)} for f in CORRUPTIONS for _ in range(networks)])


def c1(knee):
    return corrupted(curves, lambda f: {"knee": knee(f)})


def c2(s):
    return corrupted(noise, lambda f: {"s": s(f)})


def trained(knees, test_accuracy, **columns):
    """Networks of clean labels: a knee and a test accuracy each."""
    rows = [{"knee": k, "test_accuracy": a, "train_accuracy": 1.0} for k, a in zip(knees, test_accuracy, strict=True)]
    return curves([row | {name: v[i] for name, v in columns.items()} for i, row in enumerate(rows)])


def c3(agreement, n=20, seed=3):
    """Knees that agree with test accuracy to this degree."""
    rng = np.random.default_rng(seed)
    test = np.linspace(0.5, 0.9, n)
    knees = agreement * (test - 0.7) + (1 - abs(agreement)) * 0.4 * (rng.permutation(n) / n - 0.5) + 0.5
    return knees, test


def c4c(agreement, n=40):
    knees, test = c3(agreement, n)
    return trained(knees, test, lr=10.0 ** -(np.arange(n) % 5), batch_size=2 ** (np.arange(n) // 5))


EPOCHS = np.array([0, 1, 2, 4, 8, 16, 32])


def snapshots(knees, losses):
    """Networks along training: knees and test losses (networks, epochs)."""
    return curves(
        [
            {"network": f"n{i}", "epoch": epoch, "knee": knee, "test_loss": loss}
            for i, pair in enumerate(zip(knees, losses, strict=True))
            for epoch, knee, loss in zip(EPOCHS, *pair, strict=True)
        ],
        jitter=0.002,
    )


def c4a(auc_peak, loss_bottom, networks=4):
    knee = 0.6 - 0.05 * abs(np.arange(len(EPOCHS)) - list(EPOCHS).index(auc_peak))
    loss = 1 + abs(np.arange(len(EPOCHS)) - list(EPOCHS).index(loss_bottom))
    return snapshots([knee] * networks, [loss] * networks)


def c4b(signs):
    up = np.arange(len(EPOCHS))
    return snapshots([0.4 + 0.04 * up] * len(signs), [sign * up for sign in signs])


def c5a(clean, corrupted, steep):
    return curves(
        [
            {"dropout": p, "corruption": c, "knee": (corrupted if c else clean) + p}
            for p in (0.1, 0.2, 0.3)
            for c in (0.0, 1.0)
            for _ in range(4)
        ],
        steep=steep,
    )


def c5b(with_norm, without, train_accuracy=(1.0, 1.0)):
    arms = ((True, with_norm, train_accuracy[0]), (False, without, train_accuracy[1]))
    return curves([{"batch_norm": b, "knee": k, "train_accuracy": t} for b, knees, t in arms for k in knees])


def c6(selectivity, information):
    """Shifts that batch norm brings."""

    def arm(batch_norm):
        def draw(rng, layer, n):
            s, i = 0.1 * rng.normal(size=(2, n))
            return {
                "selectivity": 0.5 + batch_norm * selectivity + s,
                "mutual_information": 1 + batch_norm * information + i,
            }

        return {"batch_norm": batch_norm, "draw": draw}

    return units([arm(b) for b in (True, False) for _ in range(4)])


def related(x, y, rho, **columns):
    """A network whose unit columns x and y correlate by rho in every layer."""

    def draw(rng, layer, n):
        a, b = rng.normal(size=(2, n))
        return {x: a, y: rho * a + np.sqrt(1 - rho**2) * b}

    return {"draw": draw, **columns}


def ca1(gaps):
    return curves(
        [
            {"network": f"n{i}", "value": value, "knee": 0.5 + gap * (value == "zero")}
            for i, gap in enumerate(gaps)
            for value in ("zero", "mean")
        ]
    )


def ca2(means):
    def draw(rng, layer, n):
        return {"selectivity": means[layer] + 0.01 * rng.normal(size=n)}

    return units([{"draw": draw}] * 4, layers=len(means))


def ca3(convnet, resnet50):
    rhos = {"convnet": convnet, "resnet50": resnet50}
    return units([related("selectivity", "l1_norm", r, model=m) for m, r in rhos.items() for _ in range(3)])


CASES = [
    ("C1", YES, c1(lambda f: 0.8 - 0.5 * f)),
    ("C1", PARTLY, c1(lambda f: 0.8 - 0.5 * max(f, 0.2))),  # falls in all, but not between 0 and 0.2
    ("C1", NO, c1(lambda f: 0.5)),
    ("C1", NO, c1(lambda f: 0.3 + 0.5 * f)),
    ("C2", YES, c2(lambda f: 2 * 2 ** (-3 * f))),
    ("C2", PARTLY, c2(lambda f: 2 - 0.5 * f)),  # ordered, yet the ratio stays below 1.5
    ("C2", YES, c2(lambda f: 2 / (1 + 0.4 * (f > 0) + 0.5 * f))),  # 1.6 at 0.4
    ("C2", PARTLY, c2(lambda f: 2 / (1 + 0.2 * (f > 0) + 0.5 * f))),  # 1.4
    ("C2", NO, c2(lambda f: 1)),
    ("C3a", YES, trained(*c3(1))),
    ("C3a", PARTLY, trained([0.9, 0.3, 0.6, 0.3, 0.6, 0.3, 0.8, 0.5, 0.4, 0.4], np.linspace(0.9, 0.5, 10))),
    ("C3a", NO, trained(*c3(-1))),
    ("C3b", YES, trained(*c3(1))),
    ("C3b", PARTLY, trained(*c3(0.25))),
    ("C3b", NO, trained(*c3(-1))),
    ("C4a", YES, c4a(auc_peak=8, loss_bottom=8)),
    ("C4a", YES, c4a(auc_peak=16, loss_bottom=8)),  # twice as late, which just passes
    ("C4a", PARTLY, c4a(auc_peak=16, loss_bottom=4)),  # falls, at the wrong time
    ("C4a", PARTLY, c4a(auc_peak=16, loss_bottom=2)),
    ("C4a", PARTLY, c4a(auc_peak=32, loss_bottom=32)),  # at the right time, but does not fall
    ("C4a", NO, c4a(auc_peak=32, loss_bottom=1)),
    ("C4b", YES, c4b([-1, -1, -1, -1])),
    ("C4b", PARTLY, c4b([-1, -1, -1, 1])),
    ("C4b", NO, c4b([1, 1, 1, 1])),
    ("C4c", YES, c4c(1)),
    ("C4c", PARTLY, c4c(0.4)),
    ("C4c", NO, c4c(0)),
    ("C4c", NO, c4c(0.25)),  # the estimate is above 0, its interval is not
    ("C4c", NO, c4c(-1)),
    ("C5a", YES, c5a(0.5, 0.2, steep=60)),
    ("C5a", PARTLY, c5a(0.2, 0.05, steep=60)),  # the corrupted fall too early
    ("C5a", PARTLY, c5a(0.3, 0.3, steep=60)),  # both fall, and at the same place
    ("C5a", NO, c5a(0.0, 0.3, steep=60)),
    ("C5b", YES, c5b([0.6, 0.6, 0.6, 0.6], [0.4, 0.4, 0.4, 0.4])),
    ("C5b", PARTLY, c5b([0.7, 0.4, 0.7, 0.4], [0.4, 0.6, 0.5, 0.6])),
    ("C5b", NO, c5b([0.4, 0.4, 0.4, 0.4], [0.6, 0.6, 0.6, 0.6])),
    ("C6", YES, c6(-0.1, 0.2)),
    ("C6", PARTLY, c6(-0.1, -0.2)),
    ("C6", PARTLY, c6(0.1, 0.2)),
    ("C6", NO, c6(0.1, -0.2)),
    ("C7", YES, units([related("selectivity", "delta_loss", 0.1)] * 4)),
    ("C7", PARTLY, units([related("selectivity", "delta_loss", -0.52)] * 4, n=60)),
    ("C7", NO, units([related("selectivity", "delta_loss", 0.9)] * 4)),
    ("CA1", YES, ca1([0.1, 0.1, 0.1, 0.1])),
    ("CA1", PARTLY, ca1([0.3, -0.1, -0.1, 0.1])),
    ("CA1", NO, ca1([-0.1, -0.1, -0.1, -0.1])),
    ("CA2", YES, ca2([0.2, 0.3, 0.4, 0.5, 0.6])),
    ("CA2", PARTLY, ca2([0.4, 0.3, 0.2, 0.5, 0.6, 0.1, 0.7, 0.5])),
    ("CA2", NO, ca2([0.6, 0.5, 0.4, 0.3, 0.2])),
    ("CA3", YES, ca3(-0.5, 0.0)),
    ("CA3", PARTLY, ca3(0.8, 0.0)),
    ("CA3", PARTLY, ca3(-0.5, -0.8)),
    ("CA3", NO, ca3(0.8, 0.8)),
    ("CA4", YES, units([related("mutual_information", "delta_loss", -0.1)] * 4)),
    ("CA4", PARTLY, units([related("mutual_information", "delta_loss", 0.52)] * 4, n=60)),
    ("CA4", NO, units([related("mutual_information", "delta_loss", -0.9)] * 4)),
]
TABLES = {claim: table for claim, verdict, table in CASES if verdict == YES}


# ---------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(("claim", "verdict", "table"), CASES, ids=[f"{c} {v}" for c, v, _ in CASES])
def test_rule(claim, verdict, table):
    result = check(claim, table)
    assert result.verdict == verdict, str(result)
    assert all(effect.low <= effect.high for effect in result.effects if not np.isnan(effect.low))


def test_all_fifteen_claims_are_there():
    paper = [claim for claim in CLAIMS if not claim.startswith("X")]
    assert " ".join(paper) == "C1 C2 C3a C3b C4a C4b C4c C5a C5b C6 C7 CA1 CA2 CA3 CA4"
    assert all(
        claim.statement.endswith(".") and claim.panel and "\n" not in claim.statement for claim in CLAIMS.values()
    )
    assert {c for c, _, _ in CASES} == set(TABLES) == set(paper)


def test_estimates_are_those_of_the_data():
    table = TABLES["C1"]
    area = table.groupby(["corruption", "network", "order"]).apply(
        lambda c: np.trapezoid(c["accuracy"], c["fraction_ablated"]), include_groups=False
    )
    area = area.groupby(["corruption", "network"]).mean().reset_index(name="auc")
    effects = {e.name: e.estimate for e in check("C1", table).effects}
    assert effects["ρ(corruption, AUC)"] == pytest.approx(stats.spearmanr(area["corruption"], area["auc"])[0])
    mean = area.groupby("corruption")["auc"].mean()
    assert effects["AUC(0) − AUC(0.4)"] == pytest.approx(mean[0.0] - mean[0.4])


def test_best_and_worst_five_go_by_generalization_error():
    # The accuracy on the test set misleads here: the networks that do worst on it generalize best.
    train, apart = np.r_[np.full(6, 0.5), np.full(6, 1.0)], 0.001 * np.arange(12)
    test = np.r_[np.full(6, 0.5), np.full(6, 0.8)] - apart
    table = curves(
        [{"knee": 0.7 - 0.3 * (i > 5), "train_accuracy": train[i], "test_accuracy": test[i]} for i in range(12)]
    )
    assert check("C3a", table).verdict == YES
    assert "best 5" in check("C3a", table).effects[0].name
    six = table[table["network"].isin(["n0", "n1", "n2", "n6", "n7", "n8"])]
    assert "best 3" in check("C3a", six).effects[0].name


def test_normalised_auc_and_training_accuracy_stand_beside_the_raw_one():
    """A network that trains worse has a lower raw AUC; the controls see through it (X5)."""
    rng = np.random.default_rng(0)
    train = rng.uniform(0.6, 1, 30)
    table = trained(np.full(30, 0.6), train - rng.uniform(0, 0.02, 30))
    table["train_accuracy"] = np.repeat(train, len(table) // 30)
    table["accuracy"] *= table["train_accuracy"]
    table["lr"] = np.repeat(np.arange(30) % 6, len(table) // 30)
    table["batch_size"] = np.repeat(np.arange(30) // 6, len(table) // 30)
    effects = {e.name: e for e in check("C4c", table).effects}
    assert effects["ρ(AUC, test accuracy)"].low > 0.5
    assert abs(effects["ρ(normalised AUC, test accuracy)"].estimate) < 0.5
    assert abs(effects["ρ(AUC, test accuracy) given training accuracy"].estimate) < 0.5
    assert not effects["ρ(normalised AUC, test accuracy)"].judged


def test_selection_from_random_halves():
    rng = np.random.default_rng(0)
    accuracy = np.linspace(0.1, 0.9, 96)
    perfect = claims.paper.selection(accuracy, accuracy, rng)
    assert perfect["highest AUC among the best 1 of 48"] == 1
    assert perfect["chance among the best 10 of 48"] == pytest.approx(10 / 48)
    assert perfect["test accuracy lost by choosing so, mean"] == 0
    blind = claims.paper.selection(rng.permutation(accuracy), accuracy, rng)
    assert blind["highest AUC among the best 10 of 48"] < 0.6
    assert blind["test accuracy lost by choosing so, SD"] > 0.01
    ties = claims.paper.selection(accuracy, np.ones(96), rng)
    assert ties["highest AUC among the best 1 of 48"] == ties["chance among the best 1 of 48"] == 1
    names = [effect.name for effect in check("C4c", TABLES["C4c"]).effects]
    assert [f"highest AUC among the best {k} of 20" in names for k in (1, 2, 4, 5)] == [
        True,
        True,
        True,
        False,
    ]


def test_half_way_interpolates_on_a_log_axis_and_censors():
    scales, accuracy = np.array([0, 0.1, 1, 10.0]), np.array([1, 0.8, 0.3, 0.1])
    scale, censored = claims.paper._half_way(scales, accuracy, chance=0.1)  # half way is 0.55, midway from 0.8 to 0.3
    assert scale == pytest.approx(10**-0.5) and not censored
    assert claims.paper._half_way(scales, np.ones(4), 0.1) == (10.0, True)
    assert claims.paper._half_way(scales, np.array([1, 0.2, 0.1, 0.1]), 0.1) == (0.1, True)


def test_censored_noise_runs_are_counted_and_classes_set_chance():
    table = c2(lambda f: 1e3)
    assert "half way lies outside the scales in 72 runs" in check("C2", table).notes
    tight = {e.name: e.estimate for e in check("C2", TABLES["C2"]).effects}
    loose = {e.name: e.estimate for e in check("C2", TABLES["C2"].assign(classes=2)).effects}
    assert tight != loose


def test_batch_norm_compares_only_networks_that_memorized():
    knees = [0.6] * 4
    empty = check("C5b", c5b(knees, knees, train_accuracy=(1, 0.9)))
    assert empty.verdict == NO and np.isnan(empty.effects[0].estimate)
    assert "nothing to compare: only networks with batch norm left" in empty.notes
    table = TABLES["C5b"].copy()
    table.loc[table["network"] == "n0", "train_accuracy"] = 0.98
    assert "left out below 99% training accuracy: 1 networks" in check("C5b", table).notes


def test_dead_units_are_left_out():
    table = TABLES["C7"].assign(dead=False)
    dead = table["unit"] < 60
    table.loc[dead, ["selectivity", "delta_loss", "dead"]] = [np.nan, 0.0, True]
    kept = check("C7", table[~dead])
    assert check("C7", table).effects == kept.effects
    assert "dead units, left out: 20.0%" in check("C7", table).notes
    table.loc[table["layer"] == "layer1", "dead"] = True
    result = check("C7", table)
    assert [effect.name.split(") ")[1] for effect in result.effects] == ["over all units", "within layer0"]
    assert any("fewer than three living units: 1" in note for note in result.notes)


def test_one_layer_that_predicts_breaks_the_rule():
    strong = units([related("selectivity", "delta_loss", 0.95)] * 4, layers=1)
    weak = units([related("selectivity", "delta_loss", 0.0)] * 4, layers=3)
    weak["layer"] += "b"
    assert check("C7", pd.concat([strong, weak])).verdict == NO
    assert check("C7", weak).verdict == YES
    middling = units([related("selectivity", "delta_loss", 0.52)] * 4, n=60, layers=1)
    assert check("C7", pd.concat([middling, weak])).verdict == PARTLY


def test_dropout_is_judged_at_its_fraction_and_beyond():
    table = c5a(0.4, 0.1, steep=10)
    mean = table.groupby(["dropout", "corruption", "fraction_ablated"])["accuracy"].mean()
    clean, corrupted = (mean[0.1, c].to_numpy() for c in (0.0, 1.0))
    effects = {e.name: e.estimate for e in check("C5a", table).effects}
    assert effects["lost at dropout 0.1, corruption 0"] == pytest.approx(clean[0] - clean[2])
    assert effects["lost at dropout 0.1, corruption 1"] == pytest.approx(corrupted[0] - corrupted[2])
    assert effects["clean − corrupted at 0.1 + 0.2"] == pytest.approx(clean[6] - corrupted[6])


# ------------------------------------------------------------------------------------------- nothing to say


@pytest.mark.parametrize(
    ("claim", "constant"),
    [
        ("C1", "accuracy"),
        ("C3b", "accuracy"),
        ("C4b", "test_loss"),
        ("C4c", "test_accuracy"),
        ("C7", "delta_loss"),
        ("CA2", "selectivity"),
        ("CA3", "l1_norm"),
        ("CA4", "mutual_information"),
    ],
)
def test_constant_input_is_not_reproduced(claim, constant):
    result = check(claim, TABLES[claim].assign(**{constant: 0.5}))
    assert result.verdict == NO
    assert any("undefined" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)
    assert str(result) and scorecard([result])


@pytest.mark.parametrize("claim", ["C6", "C7", "CA2", "CA3", "CA4"])
def test_all_units_dead_is_not_reproduced(claim):
    result = check(claim, TABLES[claim].assign(dead=True))
    assert result.verdict == NO and any("undefined" in note for note in result.notes)


def test_two_layers_make_no_correlation():
    assert check("CA2", ca2([0.2, 0.6])).verdict == NO


# --------------------------------------------------------------------------------------------------- refused


def test_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="C3a, C3b"):
        check("C3", TABLES["C3a"])


@pytest.mark.parametrize("claim", TABLES)
def test_empty_tables_and_missing_columns_are_refused(claim):
    with pytest.raises(ValueError, match="empty"):
        check(claim, TABLES[claim].iloc[:0])
    for column in ("network", *CLAIMS[claim].columns):
        with pytest.raises(ValueError, match=column):
            check(claim, TABLES[claim].drop(columns=column))


@pytest.mark.parametrize(
    ("claim", "keep", "named"),
    [
        ("C1", "corruption > 0", "corruption 0"),
        ("C1", "corruption == 0", "0.2 or more"),
        ("C2", "corruption < 0.3", "0.4 or more"),
        ("C3a", "network == 'n0'", "two networks"),
        ("C4c", "lr == 1 and batch_size < 8", "four settings"),
        ("C5a", "dropout > 0.1 or corruption == 0", "dropout 0.1, corruption 1"),
        ("C5b", "batch_norm", "batch_norm False"),
        ("C6", "not batch_norm", "batch_norm True"),
        ("CA1", "value == 'zero'", "value mean"),
        ("CA1", "(network == 'n0') == (value == 'zero')", "both values"),
        ("CA3", "model == 'convnet'", "model resnet50"),
    ],
)
def test_a_missing_arm_is_refused_by_name(claim, keep, named):
    with pytest.raises(ValueError, match=named):
        check(claim, TABLES[claim].query(keep))


def test_networks_without_dropout_do_not_count():
    with pytest.raises(ValueError, match="dropout above 0"):
        check("C5a", TABLES["C5a"].assign(dropout=0.0))


def test_mixed_up_tables_are_refused():
    table = TABLES["C1"]
    with pytest.raises(ValueError, match="one row per network, order, fraction_ablated"):
        check("C1", pd.concat([table.assign(epoch=1), table.assign(epoch=2)]))
    with pytest.raises(ValueError, match="one value per network in train_accuracy"):
        check("C3b", TABLES["C3b"].assign(train_accuracy=np.linspace(0, 1, len(TABLES["C3b"]))))
    with pytest.raises(ValueError, match="NaN"):
        check("C1", table.assign(accuracy=np.nan))
    with pytest.raises(ValueError, match="per data set"):
        check("C1", pd.concat([table, table.assign(dataset="mnist", network=table["network"] + "b")]))


# ------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("claim", ["C1", "C4c", "C6", "C7"])
def test_same_table_same_verdict(claim):
    table = TABLES[claim].copy()
    before = table.copy()
    assert check(claim, table) == check(claim, table)
    pd.testing.assert_frame_equal(table, before)
    assert check(claim, table, seed=1).effects[0].low != check(claim, table).effects[0].low


def test_networks_are_resampled_first():
    """Many orders of a few networks that disagree must not make a narrow interval."""
    rows = [{"batch_norm": b, "train_accuracy": 1.0, "knee": k} for b in (True, False) for k in (0.3, 0.5, 0.7)]
    table = curves(rows, orders=60, jitter=0.001)
    effect = check("C5b", table).effects[0]
    assert effect.high - effect.low > 0.3


def test_orders_are_resampled_within_a_network():
    rows = [{"batch_norm": b, "train_accuracy": 1.0, "knee": 0.5} for b in (True, False)]
    result = check("C5b", curves(rows, orders=10, jitter=0.1))
    assert result.effects[0].high - result.effects[0].low > 0.05
    assert "one network per arm: the interval reflects orders only" in result.notes


def test_arms_keep_their_number_of_networks():
    """With networks alike within each arm, resampling within arms leaves nothing to vary."""
    rows = [{"corruption": f, "knee": 0.8 - 0.5 * f} for f in CORRUPTIONS for _ in range(4)]
    for effect in check("C1", curves(rows, orders=2, jitter=0)).effects:
        assert effect.low == pytest.approx(effect.estimate) == effect.high


def test_interval_agrees_with_scipy_where_orders_are_single():
    rng = np.random.default_rng(0)
    knees = rng.uniform(0.3, 0.7, (2, 12))
    table = curves([{"value": "zero", "knee": k} for k in knees[0]], orders=1, jitter=0)
    table = pd.concat([table, curves([{"value": "mean", "knee": k} for k in knees[1]], orders=1, jitter=0)])
    effect = check("CA1", table, resamples=9999).effects[0]
    area = table.groupby(["value", "network"], sort=False)["accuracy"].apply(np.trapezoid, x=FRACTIONS)
    gap = (area["zero"] - area["mean"].loc[area["zero"].index]).to_numpy()
    expected = stats.bootstrap((gap,), np.mean, method="percentile", rng=rng).confidence_interval
    assert (effect.low, effect.high) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("arms", [[0] * 3, [0] * 4 + [1] * 4, np.repeat(np.arange(6), 4)])
def test_intervals_of_a_few_networks_hold_the_truth_as_often_as_they_say_with_student_alone(arms):
    rng, arms = np.random.default_rng(0), np.array(arms)
    held = {False: 0, True: 0}
    for seed in range(400):
        values = rng.normal(size=len(arms))  # networks of one kind: means and their differences are 0
        for student in held:
            draws = Bootstrap(400, seed, student).networks(np.tile(values[:, None], 401), arms)
            mean = draws[:, arms == 0].mean(axis=1) - (draws[:, arms == 1].mean(axis=1) if arms.any() else 0)
            effect = claims.Effect.of("mean", mean)
            held[student] += effect.low <= 0 <= effect.high
    assert held[False] < 0.88 * 400 < 0.92 * 400 < held[True] < 0.98 * 400


def test_a_note_says_where_student_comes_to_another_verdict():
    result = check("CA1", ca1([0.03, 0.06, 0.12]))
    assert result.verdict == YES
    assert "with Student's t intervals: partly" in result.notes
    assert not any("Student" in note for note in check("C1", TABLES["C1"]).notes)


@pytest.mark.parametrize("claim", ["C6", "C5b"])
def test_student_widens_intervals_and_leaves_estimates(claim):
    table = TABLES[claim]
    size = table.groupby("batch_norm")["network"].nunique()[True]
    plain, wide = (CLAIMS[claim].judge(table, Bootstrap(1000, 0, student))[0] for student in (False, True))
    stretch = Bootstrap(1, 0, student=True).stretch(size, 2 * size - 2)
    for one, other in zip(plain, wide, strict=True):
        assert one.estimate == other.estimate
        assert 1.1 < (other.high - other.low) / (one.high - one.low) < 1.01 * stretch


@pytest.mark.parametrize("claim", TABLES)
def test_what_is_drawn_once_is_what_would_be_drawn_again(claim):
    assert_drawn_once(claim, TABLES[claim])


def assert_drawn_once(claim, table):
    boot = Bootstrap(200, 0)
    CLAIMS[claim].judge(table, boot)
    again, anew = (CLAIMS[claim].judge(table, draws) for draws in (boot.widened(), Bootstrap(200, 0, student=True)))
    assert repr(again) == repr(anew)


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(0, 6, (3, 5, 40)).astype(float)
    y = y + x
    assert spearman(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    partial = []
    for a, b, c in zip(*(stats.rankdata(v, axis=1) for v in (x, y, z)), strict=True):
        a, b = (v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b))
        partial.append(np.corrcoef(a, b)[0, 1])
    assert spearman(x, y, given=z) == pytest.approx(partial)
    assert spearman(x, y, given=np.ones(40)) == pytest.approx(spearman(x, y))
    assert np.isnan(spearman(x, y, given=x)).all()  # nothing left of x
    assert np.isnan(spearman(x, np.ones(40))).all() and np.isnan(spearman([1.0, 2], [1.0, 2]))


def test_counted_spearman_is_spearman_of_the_values_repeated():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 10, 30).astype(float), rng.normal(size=30)
    counts = rng.multinomial(30, np.full(30, 1 / 30), size=20).astype(float)
    repeated = [float(spearman(np.repeat(x, c), np.repeat(y, c))) for c in counts.astype(int)]
    assert counted_spearman(x, y, counts) == pytest.approx(repeated)
    assert np.isnan(counted_spearman(np.ones(30), y, counts)).all()
    few = np.zeros((2, 30))
    few[0, :3] = few[1, :2] = 1  # three values do for a ρ, two do not
    assert counted_spearman(x, y, few) == pytest.approx([float(spearman(x[:3], y[:3])), np.nan], nan_ok=True)


def test_units_are_drawn_alike_in_blocks():
    boot = claims.Bootstrap(500, seed=0)
    x = np.random.default_rng(1).normal(size=50)
    means = boot.units(50, lambda counts: counts @ x / counts.sum(axis=1), block=1000)
    assert len(means) == 501 and means[0] == pytest.approx(x.mean())
    assert means[1:].std() == pytest.approx(x.std() / np.sqrt(50), rel=0.15)


@pytest.mark.parametrize(("claim", "n"), [("C1", 0), ("C7", 500)])
def test_typical_tables_take_about_a_second(claim, n):
    rows = [{"corruption": f, "knee": 0.8 - 0.5 * f} for f in CORRUPTIONS for _ in range(7)]
    table = units([related("selectivity", "delta_loss", 0.1)] * 4, n=n) if n else curves(rows, orders=10)
    start = time.process_time()
    check(claim, table)
    assert time.process_time() - start < 3  # about 0.5 on an idle machine


# --------------------------------------------------------------------------------------------------- display


def test_a_verdict_shows_itself():
    verdict = check("C7", TABLES["C7"])
    assert verdict.subject == "mlp on digits"
    assert "REPRODUCED" in str(verdict) and len(str(verdict).splitlines()) == 2
    assert "within layer1" in verdict._repr_markdown_()
    assert check("CA3", TABLES["CA3"]).subject == "convnet on digits, resnet50 on digits"
    assert check("C7", TABLES["C7"].drop(columns=["model", "dataset"])).subject == ""
    assert repr(check("C7", TABLES["C7"].assign(dataset="folder:a/b"))).startswith("<C7, mlp on b: ")


def test_a_long_verdict_is_folded():
    text = check("C7", units([related("selectivity", "delta_loss", 0.1)], n=30, layers=8))._repr_markdown_()
    shown, folded = re.split(r"<details><summary>6 more, \S+ to \S+</summary>\n\n", text)
    assert shown.count("\n- ρ") == 3 and folded.split("\n\n</details>")[0].count("- ρ") == 6
    assert "ρ(depth, mean importance)" in folded.split("</details>")[1]


def test_what_stands_beside_the_rules():
    """AUC divided by intact accuracy, and the parts of claims that no rule is about."""

    def beside(claim, table):
        return {effect.name: effect for effect in check(claim, table, resamples=100).effects if not effect.judged}

    # Networks whose accuracy is cut alike everywhere have a lower AUC and the same normalised one.
    cut = corrupted(curves, lambda f: {"knee": 0.5, "share": 1 - f / 2}).eval("accuracy = accuracy * share")
    rhos = {effect.name: effect.estimate for effect in check("C1", cut, resamples=100).effects}
    assert rhos["ρ(corruption, AUC)"] < -0.9 and abs(rhos["ρ(corruption, normalised AUC)"]) < 0.5

    # Within each learning rate AUC rises with the gap, between them it falls.
    rows = [
        {
            "lr": 10.0**-i,
            "knee": 0.8 - 0.2 * i + 0.03 * k,
            "train_accuracy": 1.0,
            "test_accuracy": 0.9 - 0.2 * i - 0.01 * k,
        }
        for i in range(3)
        for k in range(4)
    ]
    table = curves(rows, jitter=0.001)
    assert check("C3b", table, resamples=100).verdict == YES
    within = beside("C3b", table)["ρ(normalised AUC, generalization error) within learning rates"]
    assert within.estimate == pytest.approx(1)

    # Means of layers fall exactly with depth.
    table = units([related("selectivity", "noise", 0.0)] * 2, n=20, layers=5)
    table["delta_loss"] = 0.01 * table["noise"] - table["layer"].str[-1].astype(int)
    depth = beside("C7", table)["ρ(depth, mean importance)"]
    assert depth.estimate == pytest.approx(-1) and np.isnan(depth.low)

    # After the lowest test loss AUC rises and falls again, to where it was.
    table = c4a(auc_peak=8, loss_bottom=2)
    assert beside("C4a", table)["AUC(last) − AUC(epoch of lowest test loss)"].estimate == pytest.approx(0, abs=0.005)
    assert check("C4a", table).effects[0].estimate < -0.05
    assert "ρ(depth, mean importance)" not in beside("C7", TABLES["C7"])  # two layers

    for claim in ("C4a", "C4b", "C5b", "CA1"):
        assert any("normalised AUC" in name for name in beside(claim, TABLES[claim]))
    alone = beside("C4c", TABLES["C4c"])["ρ(AUC, test accuracy), only settings resampled"]
    judged = check("C4c", TABLES["C4c"], resamples=100).effects[0]
    assert alone.estimate == judged.estimate and alone.low < alone.high


@pytest.mark.parametrize("claim", ["C1", "C4a", "C4b", "C5b", "CA1"])
def test_a_network_that_is_right_about_nothing_leaves_the_verdict_as_it_is(claim):
    """Its normalised AUC is undefined, which concerns no rule."""
    table = TABLES[claim].copy()
    table.loc[table["network"] == table["network"].iloc[0], "accuracy"] = 0.0
    effects = check(claim, table, resamples=50).effects
    assert all(np.isfinite(effect.estimate) for effect in effects if effect.judged)
    assert any(np.isnan(effect.estimate) for effect in effects if "normalised" in effect.name) or claim == "C4b"


def test_a_verdict_is_frozen():
    with pytest.raises(AttributeError):
        check("C1", TABLES["C1"]).verdict = NO


def test_settings_are_drawn_then_networks_then_orders():
    settings = [(0.1, 32, k) for k in (0.3, 0.5)] + [(0.2, 32, k) for k in (0.7, 0.9)]
    table = curves(
        [{"lr": lr, "batch_size": b, "knee": k, "train_accuracy": 1.0, "test_accuracy": k} for lr, b, k in settings]
    )
    boot = Bootstrap(3000, 0)
    (train, test, area, normalised), _ = settings_of(table, boot)
    np.testing.assert_allclose(test[0], [0.4, 0.8])  # the first draw is the data
    np.testing.assert_allclose(train, 1)
    assert np.abs(normalised - area).max() < 0.05 and np.abs(area - test).max() < 0.1
    # A setting has networks of 0.3 and 0.5 (or 0.7 and 0.9): the mean of two drawn ones is one of three values, 1 : 2 : 1.
    values, counts = np.unique(test[1:, 0].round(6), return_counts=True)
    np.testing.assert_allclose(values, [0.3, 0.4, 0.5, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(counts / 3000, [0.125, 0.25, 0.125] * 2, atol=0.03)
    # One that is drawn twice has a draw of its own each time: equal with probability 1/16 + 1/4 + 1/16.
    twice = test[1:][(test[1:] < 0.6).all(axis=1)]
    assert np.isclose(*twice.T).mean() == pytest.approx(3 / 8, abs=0.06)


def test_rank_correlation_of_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="x, y: expected finite numbers"):
        counted_spearman(np.array([1, np.nan, 2]), np.arange(3), np.ones((1, 3)))


def test_different_lengths_of_training_are_noted():
    table = TABLES["C1"]
    table = table.assign(epochs=np.where(table["network"] == "n0", 10, 20))
    assert "the networks did not train equally long" in check("C1", table).notes


def test_every_claim_says_its_rule_beside_its_verdict():
    assert all(re.fullmatch(r"Reproduced: .+\. Partly: .+\.", claim.rule) for claim in CLAIMS.values())
    assert f"- rule: {CLAIMS['C1'].rule}" in check("C1", TABLES["C1"], resamples=50)._repr_markdown_()


@pytest.mark.parametrize("claim", ["C6", "C7", "CA2", "CA3", "CA4"])
def test_units_that_stand_there_twice_are_refused(claim):
    with pytest.raises(ValueError, match="table: expected one row per network, layer, unit"):
        check(claim, pd.concat([TABLES[claim], TABLES[claim].assign(epoch=3)]))


@pytest.mark.parametrize(("claim", "x"), [("C1", "fraction_ablated"), ("C3b", "fraction_ablated"), ("C2", "scale")])
def test_curves_that_do_not_begin_intact_are_refused(claim, x):
    table = TABLES[claim]
    with pytest.raises(ValueError, match=f"table: expected every curve to begin with the intact network, at {x} 0"):
        check(claim, table[(table[x] > 0) | (table["network"] != "n1")])


@pytest.mark.parametrize(
    ("argument", "wrong"), [("resamples", 0), ("resamples", 2.5), ("resamples", "a"), ("seed", -1), ("seed", None)]
)
def test_bad_resamples_and_seeds_are_refused_by_name(argument, wrong):
    with pytest.raises(ValueError, match=f"{argument}: expected an integer"):
        check("C1", TABLES["C1"], **{argument: wrong})


@pytest.mark.parametrize(("claim", "column"), [("C1", "accuracy"), ("C1", "corruption"), ("C3b", "test_accuracy")])
def test_per_cent_are_refused(claim, column):
    with pytest.raises(ValueError, match=f"table: expected {column} from 0 to 1, found"):
        check(claim, TABLES[claim].assign(**{column: 100 * TABLES[claim][column]}))


def test_curves_that_end_earlier_than_others_are_refused():
    """Their areas would be those of another range."""
    table = TABLES["C1"]
    short = table[(table["corruption"] == 0) | (table["fraction_ablated"] <= 0.5)]
    with pytest.raises(
        ValueError, match="table: expected curves to one end, got some to fraction_ablated 0.5, some to 1"
    ):
        check("C1", short)


def test_networks_tied_with_the_fifth_count_too():
    """So that the order of rows decides nothing."""
    knees = np.linspace(0.3, 0.8, 12)
    table = trained(knees, [0.9] * 4 + [0.8] * 4 + [0.5] * 4)
    effects = [check("C3a", rows, resamples=20).effects[0] for rows in (table, table.iloc[::-1])]
    assert "best 8" in effects[0].name and "worst 8" in effects[0].name
    assert effects[0].estimate == pytest.approx(effects[1].estimate)
    equal = check("C3a", trained(knees, [0.5] * 12), resamples=20)
    assert equal.effects[0].estimate == pytest.approx(0, abs=1e-9) and equal.verdict == NO


def test_a_snapshot_has_one_test_loss():
    table = TABLES["C4b"]
    with pytest.raises(ValueError, match="table: expected one test_loss per network and epoch"):
        check("C4b", table.assign(test_loss=table["test_loss"] + 10 * table["order"]))


def test_c4a_needs_the_same_orders_at_every_epoch():
    table = TABLES["C4a"]
    with pytest.raises(ValueError, match="table: expected the same orders at every epoch"):
        check("C4a", table.assign(order=table["order"] + 10 * table["epoch"]))


def test_c4a_needs_several_epochs():
    table = TABLES["C4a"]
    with pytest.raises(ValueError, match="table: C4a needs every network at several epochs, got one at 8 alone"):
        check("C4a", table[table["epoch"] == 8])


def test_c3b_is_about_normalised_auc_and_the_gap_of_training_and_test_accuracy():
    """Networks that learned more fall earlier from higher up: raw AUC, and test error, go the other way."""
    train = np.linspace(0.3, 1, 20)
    table = trained(0.7 - 0.2 * train, 0.2 + 0.3 * train).assign(
        train_accuracy=lambda t: train[t["network"].str[1:].astype(int)],
        accuracy=lambda t: t["accuracy"] * t["train_accuracy"],
    )
    verdict = check("C3b", table, resamples=200)
    effects = {effect.name: effect.estimate for effect in verdict.effects}
    assert verdict.verdict == YES and effects["ρ(normalised AUC, generalization error)"] < -0.8
    assert effects["ρ(raw AUC, generalization error)"] > 0.8 and effects["ρ(normalised AUC, test error)"] > 0.8


def test_networks_that_learned_little_are_told_apart():
    """Eight of twenty networks learned half: they have the smallest gaps and the lowest AUC; of the others the paper's holds."""
    train = np.repeat([0.5, 1.0], [8, 12])
    test = train - np.r_[np.linspace(0.05, 0.1, 8), np.linspace(0.2, 0.5, 12)]
    table = trained(0.7 - (train - test), test).assign(
        train_accuracy=lambda t: train[t["network"].str[1:].astype(int)],
        accuracy=lambda t: t["accuracy"] * t["train_accuracy"],
    )
    best, learned = check("C3a", table, resamples=50).effects
    assert best.judged and best.estimate < 0 and not learned.judged and learned.estimate > 0.1
    assert learned.name == "AUC(best 5) − AUC(worst 5) of networks of at least 99% training accuracy"
    rhos = {effect.name: effect for effect in check("C3b", table, resamples=50).effects}
    assert rhos["ρ(raw AUC, generalization error)"].estimate > 0
    rho = rhos["ρ(raw AUC, generalization error) of networks of at least 99% training accuracy"]
    assert rho.estimate < -0.9 and not rho.judged


def test_c6_compares_the_median_of_selectivity_and_the_mean_of_information():
    """Skewed, so that mean and median move in opposite directions."""

    def arm(batch_norm):
        def draw(rng, layer, n):
            up, down = np.where(np.arange(n) < 0.2 * n, 5.0, -0.2), np.where(np.arange(n) < 0.2 * n, -5.0, 0.2)
            s, i = 0.02 * rng.normal(size=(2, n))
            return {"selectivity": 5 + batch_norm * up + s, "mutual_information": 6 - batch_norm * down + i}

        return {"batch_norm": batch_norm, "draw": draw}

    assert check("C6", units([arm(b) for b in (True, False) for _ in range(4)]), resamples=200).verdict == YES


def test_ca3_tells_the_correlation_within_layers_beside_that_of_all_units():
    """Norms that grow with depth as selectivity does, and fall with it inside every layer."""
    table, falling = TABLES["CA3"].copy(), TABLES["CA3"]["selectivity"].to_numpy()
    depth = pd.factorize(table["layer"])[0]
    table["selectivity"] = 0.1 * depth + 0.01 * falling
    table["l1_norm"] = 10.0 * depth - falling
    effects = {effect.name: effect.estimate for effect in check("CA3", table, resamples=20).effects}
    for model in ("ConvNet", "ResNet-50"):
        assert effects[f"ρ, {model}"] > 0.3 and effects[f"ρ within layers, {model}"] == pytest.approx(-1)


def test_scorecard_of_verdicts_and_of_their_json():
    verdicts = [check(claim, TABLES[claim], resamples=50) for claim in ("C1", "C4b", "CA2")]
    card = scorecard(verdicts)
    assert card == scorecard(json.loads(json.dumps([v.to_dict() for v in verdicts], allow_nan=False)))
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and all(row.count("|") == 7 for row in rows)
    rest = [effect.estimate for effect in verdicts[0].effects[3:] if effect.judged]
    assert f"and 3 more, {min(rest):.3g} to {max(rest):.3g} |" in rows[2].replace("−", "-") and "−0.728" in rows[3]
    assert card.split("\n\n## Rules")[0].endswith("in the paper")
    assert f"- C4b. {CLAIMS['C4b'].rule}" in card.splitlines()


def test_the_scorecard_ends_with_what_no_rule_looks_at():
    unjudged = Effect("b", 2.0, judged=False)
    verdict = Verdict("C1", "mlp on digits", "S.", (Effect("a", 1.0), unjudged), NO, "", ("three networks",))
    table, beside = scorecard([verdict]).split("## Beside the rules")
    assert "| a 1 |" in table and "b 2" not in table
    assert beside.strip() == "- C1, mlp on digits: b 2; *three networks*"
    assert "Beside" not in scorecard([replace(verdict, effects=(Effect("a", 1.0),), notes=())])


def test_scorecard_escapes_bars_and_prints_missing_numbers():
    effect = Effect("a | b", float("nan"))
    card = scorecard([Verdict("C1", "mlp on digits", "S.", (effect,), NO, "", ())])
    assert "a \\| b nan" in card


def test_one_network_is_neither_the_best_nor_the_worst():
    table = pd.DataFrame({"network": ["a"], "train_accuracy": [1.0], "test_accuracy": [0.5]})
    with pytest.raises(ValueError, match="^table: needs at least two networks"):
        claims.paper.best_and_worst(table)
