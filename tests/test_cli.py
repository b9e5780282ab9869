"""The command line: what it refuses before a kernel starts, what it says when a notebook fails, and what it writes."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from repro import cli, execution, experiment, keeping, notebooks, store
from repro.claims.verdicts import Verdict
from repro.training import Recipe

SMALL = [  # fig6 on tiny networks: one epoch, a hundred images
    *("-p", "networks", "2"),
    *("-p", "convnet", "{dataset: digits, model: convnet, width: 0.05, n_train: 100, epochs: 1}"),
    *(
        "-p",
        "convnet_plain",
        "{dataset: digits, model: convnet, width: 0.05, n_train: 100, epochs: 1, batch_norm: false}",
    ),
]


@pytest.fixture
def figures(tmp_path, monkeypatch):
    folder = tmp_path / "figures"
    monkeypatch.setenv("REPRO_FIGURES", str(folder))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figures", "fig9"], "unknown notebook 'fig9'"),
        (["figures", "fig1", "--preset", "huge"], "unknown preset 'huge'"),
        (["figures", "fig1", "-p", "colour", "1"], "unknown parameter 'colour'"),
        (["figures", "fig1", "-p", "scales", "[1.0]"], "unknown parameter 'scales'"),  # fig2's, not fig1's
        (["figures", "fig1", "-p", "networks", "many"], "expected int"),
        (["figures", "fig1", "-p", "networks", "true"], "expected int"),
        (["figures", "fig1", "-p", "networks", "0"], "expected int"),
        (["figures", "fig1", "-p", "networks", "-4"], "expected int"),
        (["figures", "fig1", "-p", "corruptions", "0.5"], "expected list"),
        (["figures", "fig1", "-p", "corruptions", "[]"], "not empty"),
        (["figures", "fig1", "-p", "corruptions", "[0.0, .nan]"], "expected a list of values, each float"),
        (["figures", "fig1", "-p", "corruptions", "[half]"], "expected a list of values, each float"),
        (["figures", "fig1", "-p", "mlp", "{dataset: digits, colour: red}"], "'colour'"),
        (["figures", "fig1", "-p", "mlp", "{dataset: digits, width: -3}"], "width: expected"),
        (["figures", "fig1", "-p", "mlp", "{}"], "'dataset'"),
        (["figures", "fig1", "-p", "orders", "[1,"], "no YAML"),
        (["figures", "fig1", "--jobs", "0"], "--jobs"),
        (["figures", "fig1", "--device", "cuda"], "--device: asks for cuda, but torch finds no GPU here"),
        (["report", "--preset", "huge"], "unknown preset 'huge'"),
        (["report", "--preset", "../digits"], "unknown preset"),
        (["report", "--preset", "../presets/digits"], "unknown preset"),
        (["figures", "fig1", "--in-place", "-p", "networks", "2"], "--in-place"),
        (["figures", "fig1", "--in-place", "--preset", "paper"], "--in-place"),
        (["figures", "fig1", "-p", "mlp", "{dataset: digits, seed: 1}", "--dry-run"], "multiple values"),
        (["figures", "fig1", "-p", "mlp", "{dataset: digits, lr: 1.0e+30}", "--fresh", "--dry-run"], "diverged"),
        (["export", "fig1", "--out", __file__], "--out: expected a folder"),
        (["measure", "tests.networks:Residual", "--data", "digits", "--out", __file__], "--out: expected a folder"),
        (
            ["measure", "tests.networks:Residual", "--data", "digits", "--out", "x", "--device", "cuda"],
            "--device: asks",
        ),
        (["report"], "no scorecard"),
        (["figures", "fig1", "-p", "preset", "paper"], "use --preset"),
        (["figures", "fig1", "-p", "corruptions", "[0.0, 2.0]", "--dry-run"], "corruption: expected"),
        (["figures", "fig1", "--preset", "paper", "--dry-run"], "how long they take cannot be told"),
        (["measure", "tests.networks", "--data", "digits", "--out", "x"], "expected MODULE:FUNCTION"),
        (["measure", "tests.networks:fails", "--data", "digits", "--out", "x"], "AttributeError"),
        (["measure", "tests.networks:weightless", "--data", "digits", "--out", "x"], "model: expected weights"),
    ],
)
def test_refuses_in_one_line(arguments, words, figures, monkeypatch, capsys):
    monkeypatch.setattr(execution, "run", lambda *_: pytest.fail("a kernel was started"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_one_process_on_a_gpu_unless_asked(monkeypatch):
    monkeypatch.setattr(cli.joblib, "cpu_count", lambda: 7)  # those that this process may use
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, arguments, expected in [("cpu", [], 7), ("auto", [], 1), ("auto", ["--jobs", "3"], 3)]:
        monkeypatch.setenv("REPRO_DEVICE", device)
        assert cli._processes(cli._parser().parse_args(["figures", *arguments])) == expected
    assert cli._processes(cli._parser().parse_args(["figures", "--scheduler", "tcp://there:1"])) == 7


def test_preset_with_an_unknown_name_or_a_wrong_type_is_refused(tmp_path, monkeypatch):
    shutil.copytree(notebooks.FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    for text, words in [("netwroks: 3\n", "unknown parameter"), ("networks: three\n", "expected int")]:
        (tmp_path / "notebooks" / "presets" / "mine.yaml").write_text(text)
        with pytest.raises(notebooks.Refused, match=words):
            notebooks.chosen(["fig1"], "mine")


def test_notebooks_agree_on_the_networks_they_share():
    """The small preset's networks are the notebooks' own defaults: the same name must mean the same network."""
    seen = {}
    for name in notebooks.NAMES:
        for parameter, value in notebooks.defaults(notebooks.read(name)).items():
            assert seen.setdefault(parameter, value) == value, f"{parameter} of {name}"
    networks = {parameter: value for parameter, value in seen.items() if isinstance(value, dict)}
    known = {"mlp", "mlp_narrow", "convnet", "convnet_plain", "resnet", "sweep", "settings"}
    assert known <= networks.keys()
    for network in networks.values():
        Recipe(**network)


def test_paper_preset_names_every_network():
    """No panel at the paper's scale falls back to a network on digits."""
    parameters = notebooks.chosen(notebooks.NAMES, "paper")
    for name in notebooks.NAMES:
        values = notebooks.defaults(notebooks.read(name)) | parameters[name]
        assert values["compute"] == "nothing"
        for parameter, value in values.items():
            if isinstance(value, dict):
                assert value["dataset"] != "digits", f"{parameter} of {name}"
                Recipe(**value)


def test_draws_a_figure_and_then_redraws_it_from_the_store(figures, capsys):
    assert cli.main(["figures", "fig6", "--jobs", "1", *SMALL]) == 0
    written = {path.name for path in (figures / "digits").iterdir()}
    assert {"fig6.png", "fig6.svg", "fig6a.svg", "fig6b.svg", "fig6.json", "scorecard.md", "scorecard.json"} <= written
    assert "C6" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in store.paths()}
    assert len(before) == 4 + 4  # networks and tables
    assert cli.main(["figures", "fig6", "--jobs", "1", *SMALL]) == 0
    assert {path: path.stat().st_mtime_ns for path in store.paths()} == before


def test_tables_can_be_made_without_jupyter_and_drawn_later(figures, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        for name in ("nbformat", "papermill", "IPython"):
            patch.setitem(sys.modules, name, None)
        assert cli.main(["figures", "fig6", "--tables-only", "--jobs", "1", *SMALL]) == 0
    assert "fig6: 8 files" in capsys.readouterr().out  # networks and tables
    assert not figures.exists()
    before = {path: path.stat().st_mtime_ns for path in store.paths()}
    assert cli.main(["figures", "fig6", "--jobs", "1", *SMALL]) == 0
    assert (figures / "digits" / "fig6.png").exists()
    assert {path: path.stat().st_mtime_ns for path in store.paths()} == before


def test_a_failing_notebook_is_named_and_the_others_still_run(figures, tmp_path, monkeypatch, capsys):
    shutil.copytree(notebooks.FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    path = tmp_path / "notebooks" / "fig5.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = 'raise RuntimeError("no such luck")'
    nbformat.write(notebook, path)
    assert cli.main(["figures", "fig5", "fig6", "--jobs", "1", *SMALL]) == 1
    told = capsys.readouterr()
    assert "begins 'raise RuntimeError(\"no such luck\")': RuntimeError: no such luck" in told.err
    assert (store.root() / "work" / "notebooks" / "digits" / "fig5.ipynb").exists()
    assert (figures / "digits" / "fig6.png").exists()


def test_dry_run_and_export_compute_nothing(figures, tmp_path, capsys):
    assert cli.main(["figures", "fig6", "--dry-run", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "4 networks to train" in told
    assert "core-minutes" in told
    assert cli.main(["export", "fig6", "--out", str(tmp_path / "csv")]) == 1
    assert "are not in the store" in capsys.readouterr().err
    assert not list(store.paths())
    assert not figures.exists()


def test_export_writes_what_the_panels_show(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "chosen", lambda names, *_: {name: _parameters() for name in names})
    assert cli.main(["figures", "fig6", "--jobs", "1"]) == 0
    assert cli.main(["export", "fig6", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "fig6a-selectivity.csv")
    assert table.network.nunique() == 4
    assert table.selectivity.dropna().between(0, 1).all()


def test_export_tells_the_arms_of_a_panel_apart(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame({"accuracy": [0.5]})
    options = [{"split": "train"}, {"value": "zero"}, {"value": "mean"}, {"layers": ["relu1"], "folded": True}]
    calls = [notebooks.Call("a", "cumulative", table, [], chosen) for chosen in options]
    monkeypatch.setattr(cli, "replay", lambda *_: calls)
    assert cli.main(["export", "figA1", "--out", str(tmp_path)]) == 0
    names = ["", "-value-zero", "-value-mean", "-folded-True"]
    assert {path.name for path in tmp_path.glob("*.csv")} == {f"figA1a-cumulative{name}.csv" for name in names}


def test_export_puts_all_of_a_panel_in_its_file(tmp_path, monkeypatch):
    tables = {path: pd.DataFrame({"model": [path], "accuracy": [0.5]}) for path in ("mlp", "convnet")}
    calls = [notebooks.Call("b", "history", tables[path], [path], {}) for path in ("mlp", "convnet", "mlp")]
    monkeypatch.setattr(cli, "replay", lambda *_: calls)
    assert cli.main(["export", "figA3", "--out", str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "figA3b-history.csv").model.tolist() == ["mlp", "convnet"]


def test_folders_are_the_same_wherever_a_kernel_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("REPRO_STORE", "REPRO_FIGURES", "REPRO_DATA")
    for name in names:
        monkeypatch.setenv(name, name.lower())
    monkeypatch.setattr(execution, "run", lambda *_: seen.update({name: os.environ[name] for name in names}) or {})
    seen = {}
    assert cli.main(["figures", "fig1"]) == 0
    assert seen == {name: str(tmp_path / name.lower()) for name in names}


def test_kernels_learn_of_the_device_and_the_cluster_that_are_asked_for(figures, monkeypatch):
    names = ("REPRO_DEVICE", "REPRO_SCHEDULER")
    monkeypatch.setattr(execution, "run", lambda *_: seen.append([os.environ.get(name) for name in names]) or {})
    monkeypatch.setenv("REPRO_DEVICE", "auto")
    seen = []
    assert cli.main(["figures", "fig1", "--device", "cpu", "--scheduler", "tcp://there:1"]) == 0
    assert cli.main(["figures", "fig1"]) == 0
    assert seen == [["cpu", "tcp://there:1"], ["auto", None]]


def test_in_place_keeps_the_outputs_of_what_ran_through(tmp_path, figures, monkeypatch):
    results = {name: {"error": "", "seconds": 0, "output": tmp_path / name} for name in ("fig1", "fig2")}
    monkeypatch.setattr(execution, "run", lambda *_: results)
    monkeypatch.setattr(execution, "keep_outputs", lambda executed: kept.append(executed))
    kept = []
    assert cli.main(["figures", "fig1", "fig2", "--in-place"]) == 0
    results["fig2"]["error"] = "no such luck"
    assert cli.main(["figures", "fig1", "fig2", "--in-place"]) == 1
    assert kept == [[tmp_path / "fig1", tmp_path / "fig2"]]


def test_the_report_is_the_scorecard_of_the_figures(figures, capsys):
    verdict = {"panel": "a", **Verdict("C1", "mlp on digits", "It falls.", (), "partly", "").to_dict()}
    record = {"panels": {}, "missing": {}, "verdicts": [verdict]}
    store.write_whole(store.figures("digits") / "fig1.json", json.dumps(record).encode())
    cli.write_scorecard("digits")
    assert cli.main(["report"]) == 0
    assert "It falls." in capsys.readouterr().out


def test_a_preset_draws_into_its_own_folder(tmp_path, monkeypatch):
    shutil.copytree(notebooks.FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    (tmp_path / "notebooks" / "presets" / "mine.yaml").write_text("networks: 2\n")
    assert notebooks.chosen(["fig1"], "mine")["fig1"] == {"networks": 2, "preset": "mine"}


def test_a_preset_whose_name_begins_with_anothers_changes_that_one(tmp_path, monkeypatch):
    shutil.copytree(notebooks.FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    texts = {"mine": "networks: 2\norders: 3\n", "mine-too": "networks: 1\n", "lone-too": "networks: 1\n"}
    for name, text in texts.items():
        (tmp_path / "notebooks" / "presets" / f"{name}.yaml").write_text(text)
    assert notebooks.chosen(["fig1"], "mine-too")["fig1"] == {"networks": 1, "orders": 3, "preset": "mine-too"}
    assert notebooks.chosen(["fig1"], "lone-too")["fig1"] == {"networks": 1, "preset": "lone-too"}
    (tmp_path / "notebooks" / "presets" / "mine.yaml").write_text("orders: few\n")
    with pytest.raises(notebooks.Refused, match=r"in mine\.yaml: expected int"):
        notebooks.chosen(["fig1"], "mine-too")


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_another_first_seed_means_other_networks(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "data"))
    monkeypatch.setenv("REPRO_FIGURES", str(tmp_path / "figures"))
    lacking = [call.table for call in notebooks.replay(name, {"first_seed": 1000, "compute": "nothing"})]
    seeds = {recipe.seed for missing in lacking for recipe in missing.networks}
    assert min(seeds) == 1000 * (24 if name == "fig3" else 1)  # a sweep of 24 has a seed per network
    assert not (tmp_path / "figures").exists()  # a replay writes no figure


@pytest.mark.parametrize("kind", [AssertionError, ValueError])
def test_tables_only_goes_on_after_a_notebook_that_fails(kind, monkeypatch, capsys):
    def replayed(name, *_):
        if name == "fig1":
            raise kind("no such luck")
        return []

    monkeypatch.setattr(cli, "replay", replayed)
    assert cli.main(["figures", "fig1", "fig2", "--tables-only"]) == 1
    told = capsys.readouterr()
    assert "fig2: 0 files" in told.out and "fig1 failed: " in told.err and ": no such luck" in told.err


def test_a_notebook_may_pass_recipes_from_a_generator(figures, monkeypatch):
    source = """
from repro import experiment
from repro.training import Recipe
recipes = (Recipe("digits", width=4, n_train=64, epochs=1, seed=seed) for seed in range(2))
assert experiment.measure("history", recipes).network.nunique() == 2
"""
    monkeypatch.setattr(notebooks, "read", lambda _: [notebooks.Cell("code", source, False)])
    (call,) = notebooks.replay("fig1", {}, compute="missing")
    assert len(call.files) == 4 and len(call.table) == 2


def _parameters():
    import yaml

    return {name: yaml.safe_load(value) for name, value in zip(SMALL[1::3], SMALL[2::3], strict=True)}


def test_store_ls_and_verify(capsys):
    from repro.experiment import network

    network(Recipe("digits", width=4, n_train=50, epochs=1))
    assert cli.main(["store", "ls"]) == 0
    assert "dataset=digits" in capsys.readouterr().out
    assert cli.main(["store", "verify"]) == 0
    path = next(iter(store.paths()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["store", "verify"]) == 1
    assert "checksum" in capsys.readouterr().err


def test_verify_names_a_renamed_file_and_a_damaged_state(capsys):
    from repro.experiment import network

    network(Recipe("digits", width=4, n_train=50, epochs=1))
    (path,) = store.paths()
    path.rename(path.with_stem("0123456789abcdef"))
    state = store.state_path("k")
    state.write_bytes(b"")
    assert cli.main(["store", "verify"]) == 1
    told = capsys.readouterr()
    assert f"written as {path.name}" in told.err and f"{state}: not used" in told.err
    assert "0 files whole, 2 damaged" in told.out


# repro store gc -----------------------------------------------------------------------------------------------

PANELS = """
from repro import experiment, plots
from repro.training import Recipe
figure = plots.Figure("fig1", preset, panels="ab")
with figure.panel("a") as ax:
    first = experiment.measure("history", [Recipe(**net)], compute=compute)
    plots.scatter(ax, first, "train_loss", "test_loss")
    first.merge(experiment.measure("weights", [Recipe(**net, seed=1)], compute=compute))
"""
NET = {"dataset": "digits", "width": 4, "n_train": 50, "epochs": 1}
OTHER = NET | {"width": 5}  # of the preset "other"


@pytest.fixture
def one_notebook(tmp_path, monkeypatch):
    """One small notebook with two presets, in place of the real ones."""
    folder = tmp_path / "notebooks"
    (folder / "presets").mkdir(parents=True)
    cells = [f'preset: str = "digits"\ncompute: str = "missing"\nnet: dict = {NET}', PANELS]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / "fig1.ipynb")
    (folder / "presets" / "digits.yaml").write_text("compute: missing\n")
    (folder / "presets" / "other.yaml").write_text(f"net: {json.dumps(OTHER)}\n")
    monkeypatch.setattr(notebooks, "FOLDER", folder)
    monkeypatch.setattr(notebooks, "NAMES", ["fig1"])


def stored():
    return {path.name for path in store.paths()}


def test_gc_removes_only_what_no_preset_refers_to_and_shows_it_first(one_notebook, figures, capsys):
    from repro.experiment import files, measure

    for net in (NET, OTHER):
        measure("history", [Recipe(**net)])
        measure("weights", [Recipe(**net, seed=1)])
    referred = stored()
    assert cli.main(["store", "gc", "--yes"]) == 0
    assert stored() == referred and len(referred) == 8 and not figures.exists()
    # Another network, another table of a network that counts, and what a killed process left.
    measure("history", [Recipe(**NET, seed=2)])
    measure("weights", [Recipe(**NET)])
    left = store.table_path("k").with_name(".k.parquet.123")
    left.write_bytes(b"half")
    doomed = stored() - referred
    assert len(doomed) == 3 and doomed <= {path.name for path in files("weights", [Recipe(**NET)])} | {
        path.name for path in files("history", [Recipe(**NET, seed=2)])
    }
    capsys.readouterr()
    assert cli.main(["store", "gc"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in {*doomed, left.name}) and not any(name in told for name in referred)
    assert "4 files" in told and "nothing is removed without --yes" in told
    assert stored() == referred | doomed and left.exists()
    assert cli.main(["store", "gc", "--yes"]) == 0
    assert stored() == referred and not left.exists()


def test_gc_keeps_what_a_panel_may_still_ask_for(one_notebook, capsys):
    from repro.experiment import measure

    measure("weights", [Recipe(**NET, seed=1)])  # asked for after the history, which is missing
    measure("weights", [Recipe(**NET | {"width": 6})])  # by nobody
    assert cli.main(["store", "gc", "--yes"]) == 0
    assert {store.read_entry(path).origin["recipe"]["width"] for path in store.paths()} == {4}


def test_gc_passes_over_notebooks_of_the_users_own(one_notebook, capsys):
    nbformat.write(nbformat.v4.new_notebook(), notebooks.FOLDER / "Untitled.ipynb")
    store.root().mkdir(parents=True)
    assert cli.main(["store", "gc"]) == 0


def test_gc_leaves_what_is_damaged_or_being_worked_on(one_notebook, capsys):
    from repro.experiment import measure

    recipe = Recipe(**NET | {"width": 6})
    measure("history", [recipe])
    before = stored()
    damaged = store.table_path("damaged")
    damaged.write_bytes(b"?")
    with store.lock(recipe.key):
        assert cli.main(["store", "gc", "--yes"]) == 1
    assert stored() == before | {damaged.name}
    assert "is being trained or measured" in capsys.readouterr().out


def test_gc_refuses_where_a_notebook_cannot_be_read_to_its_end(one_notebook, capsys):
    book = nbformat.read(notebooks.FOLDER / "fig1.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("assert 1 == 2"))
    nbformat.write(book, notebooks.FOLDER / "fig1.ipynb")
    store.root().mkdir(parents=True)
    assert cli.main(["store", "gc", "--yes"]) == 2
    assert "cannot tell what fig1 with preset digits refers to" in capsys.readouterr().err


def test_what_a_notebook_describes_covers_what_it_asks_for():
    """So that gc is safe where tables are missing: it then goes by the networks in the parameters."""
    for name in notebooks.NAMES:
        parameters = notebooks.defaults(notebooks.read(name))
        described = notebooks.Referred(networks=notebooks._networks(parameters))
        made = []
        init = Recipe.__post_init__

        def remember(recipe, init=init, made=made):
            init(recipe)
            made.append(recipe)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recipe, "__post_init__", remember)
            calls = notebooks.replay(name, {})
        assert calls and made
        for recipe in made:
            entry = store.Entry(store.network_path("k"), {"recipe": json.loads(recipe.to_json())}, {}, 0)
            assert entry in described, f"{name}: {recipe}"


def test_fresh_ignores_the_store_and_replaces_it_when_done(figures):
    assert cli.main(["figures", "fig6", "--jobs", "1", *SMALL]) == 0
    root = store.root()
    before = {path.name: json.loads(json.dumps(store.read_entry(path).origin)) for path in store.paths()}
    times = {path.name: path.stat().st_mtime_ns for path in store.paths()}
    assert cli.main(["figures", "fig6", "--jobs", "1", "--fresh", *SMALL]) == 0
    assert store.root() == root
    assert {path.name: store.read_entry(path).origin for path in store.paths()} == before
    assert all(path.stat().st_mtime_ns > times[path.name] for path in store.paths())
    assert not (root / "fresh").exists()


def test_a_notebook_asked_for_twice_runs_once(figures, monkeypatch):
    monkeypatch.setattr(execution, "run", lambda names, *_: {name: {"error": "", "seconds": 0} for name in names})
    monkeypatch.setattr(cli, "_print_results", lambda results, preset: results_of.append(list(results)))
    results_of = []
    assert cli.main(["figures", "fig1", "fig2", "fig1"]) == 0
    assert results_of == [["fig1", "fig2"]]


@pytest.mark.parametrize("left", ["", '{"cells": [{"cell_type"'])
def test_a_notebook_that_is_killed_has_failed(left, figures, monkeypatch, capsys):
    monkeypatch.setattr(execution, "_start", lambda name, output, *_: _killed(output, left))
    earlier = {"panels": {"a": {}}, "missing": {"b": {}}, "verdicts": []}
    store.write_whole(store.figures("digits") / "fig1.json", json.dumps(earlier).encode())
    assert cli.main(["figures", "fig1", "--fresh"]) == 1
    told = capsys.readouterr()
    assert re.search(r"fig1 +– +\d\.\d  failed\n", told.out), "it shows what an earlier run drew"
    assert "its process ended with -9; was it killed" in told.err
    assert ("what it had drawn" in told.err) == bool(left)


def _killed(output, left):
    """A process that was killed before it wrote the executed notebook, or in the middle of it."""
    output.with_suffix(".log").write_text("")
    if left:
        output.write_text(left)
    return _process(signal.raise_signal, signal.SIGKILL)


def _process(target, argument):
    process = multiprocessing.get_context("spawn").Process(target=target, args=(argument,))
    process.start()
    return process


def test_executed_notebooks_are_kept_without_what_changes_from_run_to_run(one_notebook, tmp_path):
    source = notebooks.FOLDER / "fig1.ipynb"
    executed = nbformat.read(source, as_version=4)
    executed.cells[1].outputs = [nbformat.v4.new_output("stream", text="drawn")]
    expected = nbformat.writes(executed)
    executed.metadata["papermill"] = executed.cells[1].metadata["papermill"] = {"duration": 1.5}
    executed.metadata["widgets"] = executed.cells[0].metadata["execution"] = {"iopub.execute_input": "today"}
    nbformat.write(executed, tmp_path / "fig1.ipynb")
    execution.keep_outputs([tmp_path / "fig1.ipynb"])
    assert source.read_text() == expected + "\n"


def test_one_fresh_run_at_a_time(figures, monkeypatch, capsys):
    monkeypatch.setattr(execution, "run", lambda *_: pytest.fail("a kernel was started"))
    with store.lock("fresh"):
        assert cli.main(["figures", "fig1", "--fresh"]) == 2
    assert "another --fresh is at work" in capsys.readouterr().err


def tables_in(root):
    """Analysis and seed of every table of a store."""
    origins = [store.read_entry(path).origin for path in root.glob("results/*.parquet")]
    return sorted((origin["analysis"], origin["recipe"]["seed"]) for origin in origins)


def test_tables_of_another_network_do_not_stay_beside_a_fresh_one(tmp_path, monkeypatch):
    """On another machine training rounds otherwise: then tables that were not made anew go."""
    same, other = (Recipe("digits", width=4, n_train=50, epochs=0, seed=seed) for seed in (0, 1))
    fresh = tmp_path / "fresh"
    for root in (store.root(), fresh):
        monkeypatch.setenv("REPRO_STORE", str(root))
        for analysis in ("selectivity", "history") if root != fresh else ("history",):
            experiment.measure(analysis, [same, other])
        if root != fresh:
            path = store.network_path(other.key)
            origin = store.read_entry(path).origin
            tensors = store.read_tensors(path, origin)
            store.write_tensors(path, {name: value + 0.01 for name, value in tensors.items()}, origin)
    monkeypatch.undo()
    root = tmp_path / "store"
    keeping.merge(set(fresh.glob("results/*")) | set(fresh.glob("checkpoints/*")), fresh, root)
    assert tables_in(root) == [("history", 0), ("history", 1), ("selectivity", 0)]


def test_without_the_old_network_its_tables_tell_whether_it_is_another(tmp_path, monkeypatch):
    """As in a clone, which has tables and few networks."""
    same, other = (Recipe("digits", width=4, n_train=50, epochs=0, seed=seed) for seed in (0, 1))
    fresh, root = store.root() / "fresh", store.root()
    for analysis in ("selectivity", "history"):
        experiment.measure(analysis, [same, other])
    for network in root.glob("checkpoints/*"):
        network.unlink()
    old = store.read_entry(experiment._list("history", [other])[0].path)
    store.write_table(old.path, store.read_table(old.path, old.origin) * 0.5, old.origin)
    monkeypatch.setenv("REPRO_STORE", str(fresh))
    experiment.measure("history", [same, other])
    experiment.measure("weights", [same])  # of another run, which is not done yet
    keeping.merge({file for file in experiment.files("history", [same, other]) if file.exists()}, fresh, root)
    assert tables_in(root) == [("history", 0), ("history", 1), ("selectivity", 0)]
    assert tables_in(fresh) == [("weights", 0)]


def test_a_fresh_store_replaces_damaged_files_and_reaches_another_disk(tmp_path, monkeypatch):
    recipe = Recipe("digits", width=4, n_train=50, epochs=0)
    fresh, root = tmp_path / "fresh", store.root()
    for folder in (root, fresh):
        monkeypatch.setenv("REPRO_STORE", str(folder))
        experiment.measure("history", [recipe])
    expected = {path.name: path.read_bytes() for path in fresh.glob("*/*.*") if path.parent.name != "work"}
    network = root / "checkpoints" / f"{recipe.key}.safetensors"
    network.write_bytes(network.read_bytes()[:-4] + b"gone")

    def replace(source, target, replace=os.replace):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    keeping.merge(set(fresh.glob("results/*")) | set(fresh.glob("checkpoints/*")), fresh, root)
    found = {path.name: path.read_bytes() for path in root.glob("*/*.*") if path.parent.name != "work"}
    assert found == expected and len(found) == 2
    assert not fresh.exists()


def test_nothing_is_collected_where_there_are_no_notebooks(tmp_path, monkeypatch, capsys):
    """As in an installation of the library alone: no notebook refers to anything."""
    experiment.measure("history", [Recipe("digits", width=4, n_train=50, epochs=0)])
    before = list(store.paths())
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "nowhere")
    for command in (["store", "gc", "--yes"], ["figures"], ["list"], ["report"]):
        assert cli.main(command) == 2
        assert capsys.readouterr().err.startswith(f"repro: there are no notebooks in {tmp_path}/nowhere; install")
    assert before and list(store.paths()) == before


def test_an_assertion_of_a_notebook_is_named_by_its_cell(figures, monkeypatch, capsys):
    cell = notebooks.Cell("code", "x = 1\nassert x == 2", False)
    monkeypatch.setattr(notebooks, "read", lambda name: [cell])
    monkeypatch.setattr(cli, "chosen", lambda names, *_: {name: {} for name in names})
    assert cli.main(["figures", "fig6", "--dry-run"]) == 2
    assert "fig6 cannot be run with these parameters: an assertion in the cell that begins 'x = 1' fails" in (
        capsys.readouterr().err
    )


def test_a_record_that_is_no_json_is_named(figures, monkeypatch, capsys):
    path = store.figures("digits") / "fig2.json"
    store.write_whole(path, b"<<<<<<< HEAD")
    with pytest.raises(notebooks.Refused, match=f"^{path} is no JSON any more .*; delete it and draw its figure again"):
        notebooks.record("fig2", "digits")
    monkeypatch.setattr(execution, "run", lambda names, *_: {name: {"error": "", "seconds": 0} for name in names})
    assert cli.main(["figures", "fig1"]) == 2
    assert f"repro: {path} is no JSON any more" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["my store", "/my store"])
def test_make_lets_a_relative_folder_mean_the_same_everywhere(folder):
    make = ["make", "--silent", "--eval", 'shown:; @echo "$$REPRO_STORE"', "shown"]
    here = Path(__file__).parents[1]
    told = subprocess.run(make, cwd=here, env=os.environ | {"REPRO_STORE": folder}, capture_output=True, text=True)
    assert told.stdout.strip() == (folder if folder.startswith("/") else f"{here}/{folder}")


def test_verify_passes_over_what_goes_while_it_looks(monkeypatch, capsys):
    store.root().mkdir(parents=True)
    monkeypatch.setattr(store, "paths", lambda: [store.state_path("gone")])
    assert cli.main(["store", "verify"]) == 0
    assert f"0 files whole, 0 damaged in {store.root()}" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_not_called_whole(action, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_STORE", "/nowhere")
    assert cli.main(["store", action]) == 2
    assert "REPRO_STORE: there is no folder /nowhere" in capsys.readouterr().err


def test_a_table_is_no_orphan_for_a_field_that_came_later(capsys):
    recipe = Recipe("digits", width=4, n_train=50, epochs=0)
    experiment.measure("history", [recipe])
    path = experiment._list("history", [recipe])[0].path
    origin = store.read_entry(path).origin
    older = origin | {"recipe": {name: value for name, value in origin["recipe"].items() if name != "alpha"}}
    store.write_table(path, store.read_table(path, origin), older)
    assert cli.main(["store", "verify"]) == 0
    assert "not kept here" not in capsys.readouterr().out


def test_lists_notebooks(capsys):
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: Figure" in told for name in notebooks.NAMES)


@pytest.mark.parametrize(
    ("deaths", "starts", "error"), [(1, 2, ""), (9, 2, "RuntimeError: Kernel died before replying")]
)
def test_a_kernel_that_dies_at_its_start_gets_a_second_one(deaths, starts, error, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_STORE", str(tmp_path))
    started = []

    def start(name, output, parameters, environment):
        started.append(name)
        dies = len(started) <= deaths
        output.with_suffix(".log").write_text(
            "RuntimeError: Kernel died before replying to kernel_info" if dies else ""
        )
        return _process(sys.exit, int(dies))

    monkeypatch.setattr(execution, "_start", start)
    results = execution.run(["fig1"], {"fig1": {}}, "digits", 1)
    assert started == ["fig1"] * starts and results["fig1"]["error"].startswith(error)
    assert bool(results["fig1"]["error"]) == bool(error)
