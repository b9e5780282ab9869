"""The command line: what it refuses before a kernel starts, what it says when a notebook fails, and what it writes."""

import json
import shutil

import nbformat
import pandas as pd
import pytest

from repro import cli, notebooks, store
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
        (["figures", "fig1", "-p", "corruptions", "0.5"], "expected list"),
        (["figures", "fig1", "--jobs", "0"], "--jobs"),
        (["report", "--preset", "huge"], "no scorecard"),
    ],
)
def test_refuses_in_one_line(arguments, words, figures, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_all", lambda *_: pytest.fail("a kernel was started"))
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


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
    for parameter in ("mlp", "mlp_narrow", "convnet", "convnet_plain", "resnet", "sweep"):
        Recipe(**seen[parameter])


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
    assert cli.main(["export", "fig6", "--out", str(tmp_path / "csv")]) == 0
    assert "are not in the store" in capsys.readouterr().out
    assert not list(store.paths())
    assert not figures.exists()


def test_export_writes_what_the_panels_show(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "chosen", lambda names, *_: {name: _parameters() for name in names})
    assert cli.main(["figures", "fig6", "--jobs", "1"]) == 0
    assert cli.main(["export", "fig6", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "fig6a-selectivity.csv")
    assert table.network.nunique() == 4
    assert table.selectivity.dropna().between(0, 1).all()


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


def test_lists_notebooks(capsys):
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    assert all(f"{name}: Figure" in told for name in notebooks.NAMES)
