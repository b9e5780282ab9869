"""`measure`: one table from many networks, computing only what the store lacks."""

import contextlib
import dataclasses
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F
from torchvision.models import WeightsEnum

from repro import ablation, checkpoints, claims, data, experiment, noise, plots, selectivity, store, training
from repro.experiment import Missing, measure
from repro.recipe import build, training_set
from repro.training import Recipe, train

RECIPE = Recipe("digits", n_train=200, width=8, epochs=3, corruption=0.5)
RECIPES = [dataclasses.replace(RECIPE, seed=seed) for seed in (0, 1)]
CONVNET = Recipe(
    "digits", "convnet", n_train=64, width=1 / 32, epochs=1, lr=0.01, strides=(1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1)
)
FIELDS = [field.name for field in dataclasses.fields(Recipe)]
COLUMNS = {
    "cumulative": ["order", "n_ablated", "fraction_ablated", "loss", "accuracy"],
    "single_unit": ["layer", "unit", "loss", "accuracy", "delta_loss", "delta_accuracy"],
    "noise": ["repeat", "scale", "loss", "accuracy"],
    "selectivity": ["layer", "unit", "selectivity", "mutual_information", "preferred_class", "dead"],
    "history": ["train_loss", "train_accuracy", "test_loss", "test_accuracy"],
    "weights": ["layer", "unit", "l1_norm"],
    "class_drops": ["layer", "unit", "class", "share", "delta_accuracy"],
    "ranked": ["by", "direction", "order", "n_ablated", "fraction_ablated", "loss", "accuracy"],
    "projections": ["order", "n_ablated", "fraction_ablated", "loss", "accuracy"],
}
OPTIONS = {"cumulative": {"orders": 2, "steps": 3}, "noise": {"scales": [0, 1.0], "repeats": 2}}
OPTIONS |= {"ranked": {"by": ["selectivity"], "steps": 3}, "projections": {"orders": 2, "steps": 3}}
each_analysis = pytest.mark.parametrize("analysis", COLUMNS)


@pytest.fixture
def trained(monkeypatch):
    """Keys of the networks trained in this process so far."""
    keys = []

    class Counted(training.Run):
        def __init__(self, recipe, *arguments):
            keys.append(recipe.key)
            super().__init__(recipe, *arguments)

    monkeypatch.setattr(checkpoints, "Run", Counted)
    return keys


def forbid(monkeypatch, *names):
    """Let functions that `experiment` and `checkpoints` use fail when they are called."""

    def fail(*arguments, **_):
        raise AssertionError(f"called with {arguments}")

    for name in names:
        monkeypatch.setattr(experiment if name == "training_set" else checkpoints, name, fail)


def forbid_data(monkeypatch):
    forbid(monkeypatch, "Run", "build", "training_set")
    monkeypatch.setattr(data, "load", None)


# The table --------------------------------------------------------------------------------------------------


@each_analysis
def test_columns_are_network_recipe_epoch_and_the_analysis_own(analysis):
    table = measure(analysis, RECIPES, **OPTIONS.get(analysis, {}))
    assert list(table.columns) == [
        "network",
        *FIELDS,
        "epoch",
        f"{analysis}_device",
        f"{analysis}_on",
        *COLUMNS[analysis],
    ]
    assert list(table["network"].unique()) == [recipe.key for recipe in RECIPES]
    assert (table["epoch"] == 3).all()
    for recipe in RECIPES:
        rows = table[table["network"] == recipe.key]
        assert (rows["seed"] == recipe.seed).all() and (rows["corruption"] == 0.5).all()
        assert (rows["dataset"] == "digits").all() and rows["strides"].isna().all()


def test_values_are_those_of_the_plain_functions():
    network, (x, y) = train(RECIPE), training_set(RECIPE)
    digits = data.load("digits")
    test = digits.x_test, digits.y_test
    plain = {
        "cumulative": ablation.cumulative(network, x, y, **OPTIONS["cumulative"]),
        "noise": noise.sweep(network, x, y, **OPTIONS["noise"]),
        "single_unit": ablation.single_unit(network, x, y),
        "selectivity": selectivity.table(network, x, y),
    }
    for analysis, expected in plain.items():
        found = measure(analysis, [RECIPE], **OPTIONS.get(analysis, {}))[COLUMNS[analysis]]
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    pd.testing.assert_frame_equal(
        measure("single_unit", [RECIPE], split="test")[COLUMNS["single_unit"]],
        ablation.single_unit(network, *test),
        check_dtype=False,
    )


def test_history_is_loss_and_accuracy_on_the_labels_trained_on_and_on_test_images():
    recipe = dataclasses.replace(RECIPE, width=64, epochs=100, corruption=1.0)
    network, digits = train(recipe), data.load("digits")
    row = measure("history", [recipe]).iloc[0]
    sets = {"train": training_set(recipe), "test": (digits.x_test, digits.y_test)}
    for split, (x, y) in sets.items():
        logits = network(x)
        assert row[f"{split}_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
        assert row[f"{split}_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert row["train_accuracy"] > 0.9  # on the true labels of the same images: about 0.1


def test_the_training_split_comes_with_the_labels_trained_on():
    recipe = dataclasses.replace(RECIPE, width=64, epochs=100, corruption=1.0)
    for analysis, intact in (("cumulative", "n_ablated == 0"), ("noise", "scale == 0")):
        options = OPTIONS[analysis]
        assert (measure(analysis, [recipe], split="train", **options).query(intact)["accuracy"] > 0.9).all()
        assert (measure(analysis, [recipe], split="test", **options).query(intact)["accuracy"] < 0.3).all()


@pytest.mark.parametrize("recipe", [RECIPE, CONVNET], ids=["mlp", "convnet"])
def test_weights_are_the_l1_norms_of_incoming_weights(recipe):
    table, network = measure("weights", [recipe]), train(recipe)
    source = "linear" if recipe.model == "mlp" else "conv"
    layers = list(table["layer"].unique())
    assert layers == [f"relu{i + 1}" for i in range(len(layers))] and len(layers) in (2, 11)
    for i, layer in enumerate(layers, start=1):
        norms = network.get_submodule(f"{source}{i}").weight.abs().flatten(1).sum(1)
        found = table.loc[table["layer"] == layer, "l1_norm"].to_numpy()
        assert found == pytest.approx(norms.numpy(), rel=1e-5)


def test_curves_and_history_merge_into_the_table_of_a_claim():
    curves = measure("cumulative", RECIPES, orders=2, steps=3)
    history = measure("history", RECIPES)
    merged = curves.merge(history)  # on the network and all that describes it
    assert len(merged) == len(curves) and not merged.columns.duplicated().any()
    assert set(merged.columns) == set(curves.columns) | set(history.columns)
    by_key = curves.merge(history[["network", "train_accuracy", "test_accuracy"]], on="network")
    assert merged["test_accuracy"].tolist() == by_key["test_accuracy"].tolist()
    assert len(ablation.auc(merged, by=["network", "order"])) == 4
    assert claims.check("C3b", merged) is not None


def test_a_table_tells_the_device_that_measured_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # REPRO_DEVICE is cpu: it is not used
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    table = measure("history", [RECIPE])
    assert table["history_device"].tolist() == [platform.machine()]
    assert all(store.read_entry(path).made["device"] == platform.machine() for path in store.paths())
    for module in (checkpoints, experiment):
        monkeypatch.setattr(module, "device", lambda: torch.device("cuda"))
    assert measure("history", [RECIPE])["history_device"].tolist() == [platform.machine()]  # where it was measured
    assert checkpoints.made(time.monotonic())["device"] == "NVIDIA H100"


def rewrite(wanted, made):
    """Store a table that is there once more, made otherwise."""
    store.write_table(wanted.path, store.read_table(wanted.path, wanted.origin), wanted.origin, made)


def test_tables_of_different_devices_merge():
    curves = measure("cumulative", RECIPES, orders=2, steps=3)
    measure("history", RECIPES)
    rewrite(experiment._list("history", RECIPES[:1])[0], {"device": "NVIDIA H100"})
    merged = curves.merge(measure("history", RECIPES))
    assert len(merged) == len(curves)
    cpu = platform.machine()
    assert (merged["cumulative_device"] == cpu).all()
    assert merged.drop_duplicates("network")["history_device"].tolist() == ["NVIDIA H100", cpu]
    assert plots.note(curves).endswith("2 networks × 2 orders · CPU")
    assert plots.note(merged).endswith("2 networks × 2 orders · CPU + NVIDIA H100")


def test_units_of_several_analyses_merge():
    selective = measure("selectivity", [CONVNET], split="test")
    assert len(selective.merge(measure("single_unit", [CONVNET], split="test"))) == len(selective)
    assert len(selective.merge(measure("weights", [CONVNET]))) == len(selective)
    some = measure("single_unit", [CONVNET], split="test", images=20)
    drops = measure("class_drops", [CONVNET], split="test", images=30)
    assert len(drops.merge(some.drop(columns="delta_accuracy"))) == len(drops)


def test_different_recipes_fill_one_table():
    table = measure("history", [RECIPE, CONVNET, RECIPE])  # twice the same is once
    assert table["network"].tolist() == [RECIPE.key, CONVNET.key]
    assert table["strides"].tolist()[1] == CONVNET.strides
    assert len(measure("history", (recipe for recipe in RECIPES))) == 2


# Images, splits, epochs -------------------------------------------------------------------------------------


def test_fewer_images_are_a_fixed_choice_among_them():
    whole = measure("single_unit", [RECIPE])
    some = measure("single_unit", [RECIPE], images=50)
    assert not np.allclose(whole["accuracy"], some["accuracy"])
    assert np.allclose(some["accuracy"] * 50, (some["accuracy"] * 50).round())
    told = {"single_unit_on": "up to 10,000 training images"}
    pd.testing.assert_frame_equal(measure("single_unit", [RECIPE], images=10_000), whole.assign(**told))
    row = measure("history", [RECIPE], images=50).iloc[0]
    assert row["train_accuracy"] * 50 == pytest.approx(round(row["train_accuracy"] * 50))
    assert row["test_accuracy"] * 50 == pytest.approx(round(row["test_accuracy"] * 50))


def test_a_column_tells_which_images_were_measured():
    assert (measure("selectivity", [RECIPE])["selectivity_on"] == "training images").all()
    assert (measure("selectivity", [RECIPE], split="test", images=50)["selectivity_on"] == "up to 50 test images").all()
    assert (measure("history", [RECIPE])["history_on"] == "training and test images").all()


def test_snapshots_show_the_network_as_it_was():
    table = measure("history", RECIPES, epochs=[0, 1, 3])
    assert table["epoch"].tolist() == [0, 1, 3] * 2
    assert not table.duplicated(["train_loss"]).any()
    after_one = measure("history", [dataclasses.replace(RECIPE, epochs=1)]).iloc[0]
    assert table["train_loss"][1] == after_one["train_loss"]
    at_the_end = measure("history", RECIPES)
    assert table.loc[table["epoch"] == 3, "train_loss"].tolist() == at_the_end["train_loss"].tolist()
    untrained = build(RECIPE).half().float()
    x, y = training_set(RECIPE)
    assert table["train_loss"][0] == pytest.approx(F.cross_entropy(untrained(x), y).item(), rel=1e-5)


def test_the_last_snapshot_is_the_network_itself(trained):
    """It is trained, stored and measured once, whether it is asked for by its epoch or not."""
    last = measure("history", RECIPES, epochs=[3])
    pd.testing.assert_frame_equal(measure("history", RECIPES, compute="nothing"), last)
    measure("weights", RECIPES)
    experiment.network(RECIPE, 3)
    assert trained == [recipe.key for recipe in RECIPES]
    assert len(store.paths()) == 3 * len(RECIPES)  # a network and two tables each


def test_a_network_stays_as_it_is_when_only_snapshots_are_asked_for():
    """On another machine training rounds otherwise, and the tables at hand are of this one."""
    measure("history", [RECIPE])
    path = store.network_path(RECIPE.key)
    origin = store.read_entry(path).origin
    tensors = {name: value + 0.01 for name, value in store.read_tensors(path, origin).items()}
    store.write_tensors(path, tensors, origin)
    before = path.read_bytes()
    measure("history", [RECIPE], epochs=[1])
    assert path.read_bytes() == before


def test_snapshots_of_a_trained_network_take_no_more_training_than_the_last_of_them(monkeypatch):
    measure("history", [RECIPE])
    advanced = []
    advance = training.Run.advance
    monkeypatch.setattr(training.Run, "advance", lambda run: (advanced.append(run.epoch), advance(run)))
    measure("history", [RECIPE], epochs=[0, 2, 3])
    assert advanced == [0, 1]


def test_snapshots_that_are_there_are_not_trained_for_again(monkeypatch):
    measure("history", [RECIPE], epochs=[2])
    advanced = []
    advance = training.Run.advance
    monkeypatch.setattr(training.Run, "advance", lambda run: (advanced.append(run.epoch), advance(run)))
    measure("weights", [RECIPE], epochs=[0, 2])
    assert advanced == []


def test_tables_of_a_network_that_is_gone_are_warned_of_when_it_is_trained_again(recwarn):
    measure("history", RECIPES)
    measure("history", [CONVNET])
    measure("weights", RECIPES)
    assert not recwarn.list
    for recipe in RECIPES:
        store.network_path(recipe.key).unlink()
    damaged = store.table_path("damaged")
    damaged.write_bytes(b"?")
    with pytest.warns(UserWarning, match="the store has 4 tables, but not the weights") as warned:
        measure("weights", RECIPES, epochs=[0])
    assert warned[0].filename == __file__
    damaged.unlink()


def test_the_number_of_processes_is_checked(monkeypatch):
    monkeypatch.setenv("REPRO_JOBS", "all")
    with pytest.raises(ValueError, match="REPRO_JOBS: expected a number from 1, got 'all'"):
        measure("history", [RECIPE])


def test_snapshots_may_be_given_as_an_array(trained):
    table = measure("history", [RECIPE], epochs=np.array([1, 2, 2]))
    assert table["epoch"].tolist() == [1, 2]
    assert measure("history", [RECIPE], epochs=[1, 2])["train_loss"].tolist() == table["train_loss"].tolist()
    assert trained == [RECIPE.key]


def test_a_network_that_ended_early_stays_as_it_was():
    recipe = Recipe("digits", n_train=20, width=64, epochs=100, stop_when_memorized=True)
    table = measure("history", [recipe], epochs=[1, 99, 100])
    assert table["train_loss"][1] == table["train_loss"][2] < table["train_loss"][0]


# What is there is not computed again ------------------------------------------------------------------------


@each_analysis
def test_a_stored_table_needs_no_data_and_no_network(analysis, monkeypatch, trained):
    options = OPTIONS.get(analysis, {})
    first = measure(analysis, RECIPES, epochs=[1, 3], **options)
    assert trained == [recipe.key for recipe in RECIPES]
    forbid_data(monkeypatch)
    for path in (store.root() / "checkpoints").iterdir():
        path.unlink()
    pd.testing.assert_frame_equal(measure(analysis, RECIPES, epochs=[1, 3], compute="nothing", **options), first)


def test_a_stored_network_is_not_trained_again(trained, monkeypatch):
    measure("history", RECIPES)
    assert trained == [recipe.key for recipe in RECIPES]
    forbid(monkeypatch, "Run")
    measure("weights", RECIPES)
    measure("single_unit", RECIPES, split="test")


def test_only_what_is_missing_is_trained(trained):
    measure("history", RECIPES[1:])
    measure("history", RECIPES)
    assert trained == [RECIPES[1].key, RECIPES[0].key]


def test_a_stored_network_measures_as_the_trained_one():
    fresh = train(CONVNET)
    measure("history", [CONVNET])
    stored = experiment.network(CONVNET)
    assert all(torch.equal(t, stored.state_dict()[name]) for name, t in fresh.state_dict().items())
    assert not stored.training


def test_options_are_part_of_a_tables_name(monkeypatch):
    measure("cumulative", [RECIPE], orders=2, steps=3)
    forbid_data(monkeypatch)
    same = dict(layers=None, orders=2, steps=3, value="zero", seed=0)  # defaults may be spelled out
    measure("cumulative", [RECIPE], compute="nothing", **same)
    for change in ({"orders": 3}, {"steps": 4}, {"value": "mean"}, {"seed": 1}, {"layers": ["relu1"]}):
        with pytest.raises(Missing):
            measure("cumulative", [RECIPE], compute="nothing", **same | change)
    with pytest.raises(Missing):
        measure("cumulative", [RECIPE], split="test", compute="nothing", **same)
    with pytest.raises(Missing):
        measure("cumulative", [RECIPE], images=50, compute="nothing", **same)


def test_a_sequence_is_the_same_option_however_it_is_written(monkeypatch):
    measure("noise", [RECIPE], scales=[0.5, 1.0], repeats=1, layers=["relu1"])
    forbid_data(monkeypatch)
    measure("noise", [RECIPE], scales=np.array([0.5, 1.0]), repeats=np.int64(1), layers=("relu1",), compute="nothing")


def test_a_new_version_of_an_analysis_is_measured_anew(monkeypatch):
    measure("history", [RECIPE])
    analysis = dataclasses.replace(experiment.ANALYSES["history"], version=2)
    monkeypatch.setitem(experiment.ANALYSES, "history", analysis)
    with pytest.raises(Missing) as error:
        measure("history", [RECIPE], compute="nothing")
    assert error.value.networks == []


def test_what_is_missing_is_listed_when_nothing_may_be_computed(monkeypatch):
    measure("history", RECIPES[:1])
    forbid_data(monkeypatch)
    with pytest.raises(Missing) as error:
        measure("single_unit", RECIPES, compute="nothing")
    assert error.value.networks == RECIPES[1:]
    assert len(error.value.tables) == 2 and RECIPES[1].key in error.value.tables[1]
    assert str(error.value).startswith("2 tables and 1 networks")


def test_a_damaged_table_is_an_error_and_not_replaced():
    measure("history", [RECIPE])
    (path,) = (store.root() / "results").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(store.Damaged, match=str(path)):
        measure("history", [RECIPE])


def test_another_store_knows_nothing(tmp_path, monkeypatch, trained):
    measure("history", [RECIPE])
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "fresh"))
    measure("history", [RECIPE])
    assert trained == [RECIPE.key] * 2


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("analysis", dict(analysis="curves")),
        ("recipes", dict(recipes=[])),
        ("recipes", dict(recipes=["digits"])),
        ("split", dict(split="validation")),
        ("compute", dict(compute="everything")),
        ("images", dict(images=0)),
        ("images", dict(images=1.5)),
        ("jobs", dict(jobs=0)),
        ("jobs", dict(jobs=True)),
        ("epochs", dict(epochs=[])),
        ("epochs", dict(epochs=[-1])),
        ("epochs", dict(epochs=[4])),
        ("epochs", dict(epochs=[1.0])),
        ("bins", dict(bins=3)),
        ("order", dict(order=3)),
        ("x_fit", dict(x_fit=torch.zeros(3))),
        ("value", dict(value={"relu1": torch.zeros(8)})),
        ("scales", dict(analysis="noise")),
        ("steps", dict(analysis="noise", scales=[1.0], steps=3)),
        ("layers", dict(analysis="history", layers=["relu1"])),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(argument, arguments, trained):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        measure(**dict(analysis="cumulative", recipes=[RECIPE]) | arguments)
    assert trained == []


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("layers", {"layers": ["relu9"]}),
        ("orders", {"orders": 0}),
        ("steps", {"steps": 0}),
        ("value", {"value": "one"}),
    ],
)
def test_bad_values_are_named(argument, options):
    with pytest.raises(ValueError, match=argument):
        measure("cumulative", [RECIPE], **options)


# Several processes ------------------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys, time
    from repro import checkpoints, experiment
    from repro.training import Recipe, Run

    def say(word):
        with open("log", "a") as file:
            file.write(word + "\\n")

    def said(word):
        return open("log").read().split().count(word)

    class Counted(Run):
        def __init__(self, recipe, *arguments):
            say(recipe.key)
            super().__init__(recipe, *arguments)
    checkpoints.Run = Counted
"""


def start(folder, body):
    """A Python process in `folder` that runs `body` with what SCRIPT defines."""
    (folder / "log").touch()
    script = textwrap.dedent(SCRIPT) + textwrap.dedent(body)
    environment = os.environ | {"PYTHONPATH": str(Path(experiment.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", script], cwd=folder, env=environment)


def until_said(folder, process, word):
    """Wait until a process of `start` has said `word`."""
    while word not in (folder / "log").read_text().split():
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)


def test_two_processes_train_each_network_once(tmp_path, trained):
    body = """
        class Slow(Counted):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                time.sleep(0.5)
        checkpoints.Run = Slow
        recipes = [Recipe("digits", width=16, epochs=20, seed=seed) for seed in range(6)]
        experiment.measure("history", recipes).to_parquet("theirs.parquet")
    """
    recipes = [Recipe("digits", width=16, epochs=20, seed=seed) for seed in range(6)]
    process = start(tmp_path, body)
    until_said(tmp_path, process, recipes[0].key)  # it is training the first one
    ours = measure("history", recipes)
    assert process.wait(300) == 0
    pd.testing.assert_frame_equal(ours, pd.read_parquet(tmp_path / "theirs.parquet"), check_dtype=False)
    theirs = (tmp_path / "log").read_text().split()
    assert sorted(trained + theirs) == sorted(recipe.key for recipe in recipes)
    assert trained and theirs  # they shared the work


def test_a_network_killed_in_training_resumes_to_the_same_bits(tmp_path, monkeypatch, trained):
    # States are stored after every epoch; while that of epoch 5 is being written, the process is killed.
    body = """
        checkpoints.SAVE_EVERY = -1
        fsync = os.fsync
        def stuck(file):
            fsync(file)
            say("written")
            if said("written") == 7:  # two snapshots, states 1 to 5
                say("stuck")
                signal.pause()
        os.fsync = stuck
        recipe = Recipe("digits", "convnet", n_train=64, width=1 / 32, epochs=8, lr=0.01, batch_size=32)
        experiment.measure("history", [recipe], epochs=[0, 2, 6])
    """
    process = start(tmp_path, body)
    try:
        until_said(tmp_path, process, "stuck")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    recipe = Recipe("digits", "convnet", n_train=64, width=1 / 32, epochs=8, lr=0.01, batch_size=32)
    advanced = []
    advance = training.Run.advance
    monkeypatch.setattr(training.Run, "advance", lambda run: (advanced.append(run.epoch), advance(run)))
    resumed = measure("history", [recipe], epochs=[0, 2, 6])
    assert advanced == [4, 5, 6, 7]  # from the last complete state on
    through = train(recipe)
    assert all(
        torch.equal(t, experiment.network(recipe).state_dict()[name]) for name, t in through.state_dict().items()
    )
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "other"))
    pd.testing.assert_frame_equal(resumed, measure("history", [recipe], epochs=[0, 2, 6]))
    assert not list((tmp_path / "store" / "work").glob("*.safetensors"))


def test_a_missing_snapshot_is_not_skipped_by_resuming():
    # A state from beyond the snapshot is of no use for it: training begins again.
    measure("history", [RECIPE], epochs=[0])
    run = training.Run(RECIPE)
    run.advance()
    run.advance()
    store.write_tensors(store.state_path(RECIPE.key), run.state(), checkpoints._origin(RECIPE, None))
    table = measure("weights", [RECIPE], epochs=[0, 1])
    shorter = measure("weights", [dataclasses.replace(RECIPE, epochs=1)])
    assert table.loc[table["epoch"] == 1, "l1_norm"].tolist() == shorter["l1_norm"].tolist()


def test_the_last_state_of_a_process_that_was_killed_when_it_had_trained_goes():
    experiment.network(RECIPE)
    run = training.Run(RECIPE)
    run.advance()
    store.write_tensors(store.state_path(RECIPE.key), run.state(), checkpoints._origin(RECIPE, None))
    experiment.network(RECIPE)
    assert not store.state_path(RECIPE.key).exists() and store.network_path(RECIPE.key).exists()


def test_the_state_of_a_training_that_is_to_go_on_stays_when_a_snapshot_is_asked_for():
    measure("history", [RECIPE], epochs=[0])
    store.network_path(RECIPE.key).unlink(missing_ok=True)
    run = training.Run(RECIPE)
    run.advance()
    store.write_tensors(store.state_path(RECIPE.key), run.state(), checkpoints._origin(RECIPE, None))
    measure("weights", [RECIPE], epochs=[0])
    assert store.state_path(RECIPE.key).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("digits",), "^recipe: "), ((RECIPE, RECIPE.epochs + 1), "^epoch: "), ((RECIPE, -1), "^epoch: ")],
)
def test_a_network_that_there_is_not_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.network(*arguments)


def test_a_table_that_workers_put_elsewhere_is_missed(monkeypatch):
    monkeypatch.setattr(experiment, "_compute", lambda *_: None)
    with pytest.raises(OSError, match="was made, but is not there"):
        measure("history", [RECIPE])


def test_networks_that_do_not_fit_together_train_alone(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    recipes = [dataclasses.replace(RECIPE, seed=seed) for seed in range(2)]
    monkeypatch.setattr(checkpoints, "Group", full)
    checkpoints.train_together({recipe: {None} for recipe in recipes})
    assert not list(store.paths())
    assert len(measure("history", recipes)) == 2


def test_one_that_diverges_does_not_cost_its_group_their_training():
    diverges = dataclasses.replace(RECIPE, lr=1e30)
    sound = [dataclasses.replace(RECIPE, seed=seed) for seed in range(2)]
    wanted = {recipe: {None} for recipe in [*sound, diverges]}
    checkpoints.train_together(wanted)
    assert not store.paths()
    with pytest.raises(FloatingPointError, match="diverged"):
        measure("history", [diverges])
    assert len(measure("history", sound)) == 2


def test_a_group_leaves_out_what_another_process_has_made():
    recipes = [dataclasses.replace(RECIPE, seed=seed) for seed in range(3)]
    wanted = {recipe: {None} for recipe in recipes}
    experiment.network(recipes[0])
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "missing", _once_blind(checkpoints.missing))
        patch.setattr(checkpoints, "_train_group", lambda group, _: trained.append(group))
        checkpoints.train_together(wanted)
    assert trained == [recipes[1:]]


def test_a_group_locks_no_more_networks_than_it_trains(monkeypatch):
    """The operating system allows a process so many open files."""
    recipes = [dataclasses.replace(RECIPE, seed=seed) for seed in range(5)]
    held, groups, lock = [], [], store.lock

    @contextlib.contextmanager
    def counted(key, wait):
        with lock(key, wait) as mine:
            held.append(key)
            yield mine
            held.remove(key)

    monkeypatch.setattr(checkpoints, "AT_ONCE", 2)
    monkeypatch.setattr(store, "lock", counted)
    monkeypatch.setattr(checkpoints, "_train_group", lambda group, _: groups.append((group, len(held))))
    checkpoints.train_together({recipe: {None} for recipe in recipes})
    assert groups == [(recipes[:2], 2), (recipes[2:4], 2)]  # the last one trains alone


def test_workers_forget_what_an_earlier_call_told_them(monkeypatch):
    monkeypatch.setenv("REPRO_DEVICE", "cuda")
    monkeypatch.delenv("REPRO_DATA", raising=False)
    with experiment._workers(2) as surroundings:
        assert surroundings["REPRO_DATA"] is None and surroundings["REPRO_DEVICE"] == "cuda"
    monkeypatch.setenv("REPRO_DATA", "of an earlier call")
    seen = []
    monkeypatch.setattr(experiment, "_compute_group", lambda *_, **__: seen.append(os.environ.get("REPRO_DATA")))
    wanted = experiment._list("history", [RECIPE])
    for parent in (None, os.getpid()):  # no process, or this one itself: it shall not end
        experiment._compute_network(wanted, surroundings, parent)
    time.sleep(1.5)
    assert seen == [None, None]


def _once_blind(function):
    """As if what was looked for was not there yet when it was looked for first."""
    calls = []

    def seen(wanted):
        calls.append(1)
        return list(wanted) if len(calls) == 1 else function(wanted)

    return seen


def test_several_processes_make_the_same_table(tmp_path, monkeypatch):
    from joblib.externals.loky import get_reusable_executor

    recipes = [dataclasses.replace(RECIPE, seed=seed) for seed in range(3)]
    alone = measure("cumulative", recipes, epochs=[1, 3], orders=2, steps=3)
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "together"))
    try:
        together = measure("cumulative", recipes, epochs=[1, 3], orders=2, steps=3, jobs=2)
    finally:
        get_reusable_executor().shutdown(wait=True)  # its processes would keep this test's store
    pd.testing.assert_frame_equal(together, alone)


def test_processes_share_the_cores(monkeypatch):
    """Each measures on its part of them, whatever the environment says of the process that started them."""
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    try:
        with experiment._workers(2):
            threads = joblib.Parallel()(joblib.delayed(torch.get_num_threads)() for _ in range(2))
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert threads == [max(1, torch.get_num_threads() // 2)] * 2


# ImageNet and a published network ---------------------------------------------------------------------------


@pytest.fixture
def little_imagenet(tmp_path, monkeypatch):
    """A thousand folders of one image each, of which forty are read; random weights in the place of the published."""
    rng = np.random.default_rng(0)
    for i in range(1000):
        folder = tmp_path / "raw" / "imagenet" / "val" / f"n{i:08}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(folder / "a.JPEG")
    monkeypatch.setattr(data, "IMAGENET_IMAGES", 40)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = torchvision.models.resnet50().state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: weights)
    return weights


def test_a_published_network_is_measured_on_imagenet(little_imagenet):
    recipe = Recipe("imagenet", model="resnet50", init="pretrained", epochs=0)
    layer = "layer4.2.relu_2"
    table = measure("cumulative", [recipe], split="test", images=6, layers=[layer], orders=1, steps=1)
    assert {"accuracy", "accuracy_top5"} <= set(table) and table.n_ablated.tolist() == [0, 2048]
    model = torchvision.models.resnet50()
    model.load_state_dict(little_imagenet)
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    images = data.load("imagenet")
    assert len(images.x_train) == len(images.x_test) == 20 and len(images.classes) == 1000
    assert images.x_test.shape[1:] == (3, 224, 224)
    with torch.no_grad():
        chosen = np.sort(np.random.default_rng(0).permutation(20)[:6])
        logits = model.eval()(images.x_test[chosen])
    loss = F.cross_entropy(logits, images.y_test[chosen]).item()
    assert table.loss[0] == pytest.approx(loss, rel=1e-3)


def test_an_incomplete_imagenet_says_what_is_missing(tmp_path):
    (tmp_path / "raw" / "imagenet" / "val" / "n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match="name: 'imagenet' needs 1,000 folders .* found 1"):
        data.load("imagenet")


def test_an_empty_folder_of_imagenet_is_refused_not_missed(little_imagenet, tmp_path):
    (tmp_path / "raw" / "imagenet" / "val" / "n00000007" / "a.JPEG").unlink()
    with pytest.raises(ValueError, match="name: no images in .*n00000007, a class like those beside it"):
        data.load("imagenet")


def test_published_weights_fit_one_network_only():
    with pytest.raises(ValueError, match="init: published weights"):
        train(Recipe("digits", model="resnet50", init="pretrained", epochs=0))
