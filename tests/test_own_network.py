"""A network of one's own: `measure_model`, and `repro measure` from another folder, on torchvision's networks."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import repro
from repro import ablation, analyses, cli, data, selectivity, summary, units
from repro.experiment import measure_model
from tests.networks import Functional, Residual, randomized

ROOT = Path(repro.__file__).parents[1]
CLASSES = ("cats", "dogs", "fish")
NETWORKS = """
from torchvision import models

def resnet():
    return models.resnet18(num_classes=3)

def vgg():
    return models.vgg11(num_classes=3)

def published():
    return models.resnet18()

def headless():
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))

def nothing():
    return "a network"

def images():
    from dataclasses import replace
    from repro import data
    images = data.load("digits")
    return replace(images, name="mine", x_train=images.x_train / 2, x_test=images.x_test / 2)

def mlp():
    from repro import models
    return models.mlp(64, [5], 10)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with nets.py and images/{train,val}/<class>/*.png: four images of 32 × 32 a class and split."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    (folder / "nets.py").write_text(NETWORKS)
    for split in ("train", "val"):
        for channel, name in enumerate(CLASSES):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[..., channel] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / split / name / f"{i}.png")
    return folder


def run(folder, *arguments):
    """`repro measure` as another process whose folder is this one."""
    command = [sys.executable, "-m", "repro.cli", "measure", *arguments]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)


def small(classes=3):
    return randomized(Residual(classes=classes))


# From the shell ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "layers", "units"),
    [("resnet", "layer4.1.relu,layer4.1.relu_1", 1024), ("vgg", "classifier.1,classifier.4", 8192)],
)
def test_measures_torchvision_networks(network, layers, units, folder, tmp_path):
    wanted = ["--analysis", "single-unit,cumulative,noise,selectivity", "--layers", layers, "--images", "6"]
    done = run(folder, f"nets:{network}", "--data", "folder:images", *wanted, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    names = ["single-unit", "cumulative", "noise", "selectivity"]
    assert {f"{name}.{kind}" for name in names for kind in ("parquet", "csv")} <= written
    assert {"summary.png", "summary.md"} <= written
    tables = {name: pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in names}
    assert len(tables["single-unit"]) == len(tables["selectivity"]) == units
    assert tables["single-unit"].layer.unique().tolist() == layers.split(",")
    assert tables["cumulative"].n_ablated.max() == units
    assert tables["cumulative"].order.nunique() == tables["noise"].repeat.nunique() == 10
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / f"{name}.csv"), table, check_exact=False)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert f"{units:,}, 2" in page and "summary.png" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nets:published"], "has 3 classes (cats, dogs, fish), the model 1000 outputs; pass"),
        (["nets:resnet", "--outputs", "0,1"], "--outputs: expected 3 different integers"),
        (["nets:headless"], "found no unit layer"),
        (["nets:resnet", "--layers", "layer9"], "the model has no layer 'layer9'"),
        (["nets:resnet", "--analysis", "curves"], "unknown analysis 'curves'"),
        (["nets:resnet", "--images", "0"], "images: expected"),
        (["nets:nothing"], "gives a str, expected a Module"),
        (["nets:missing"], "'nets:missing' gives no Module"),
        (["nothing:resnet"], "'nothing:resnet' gives no Module"),
        (["nets:resnet", "--data", "nets:nothing"], "--data: 'nets:nothing' gives a str, expected a Dataset"),
        (["nets:resnet", "--data", "images"], "--data: unknown data set 'images'"),
        (["resnet"], "expected MODULE:FUNCTION"),
        (["nets:resnet", "--data", "folder:pictures"], "pictures should hold train as a folder or a zip"),
        (["nets:resnet", "--data", "folder:pictures"], "; nor is there "),
    ],
)
def test_refuses_in_one_line(arguments, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = arguments if "--data" in arguments else [*arguments, "--data", "folder:images"]
    assert cli.main(["measure", *arguments, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_images_may_come_from_a_function(folder, tmp_path, monkeypatch):
    """As when a network was trained on images that were prepared in a way of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["nets:mlp", "--data", "nets:images", "--analysis", "weights,history", "--out", str(tmp_path)]
    assert cli.main(["measure", *arguments]) == 0
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history.dataset.tolist() == ["mine"]
    assert f"| test accuracy | {history.test_accuracy[0]:.1%} |" in (tmp_path / "summary.md").read_text()
    assert cli.main(["measure", *arguments[:4], "weights", *arguments[5:]]) == 0
    assert "|" not in (tmp_path / "summary.md").read_text()  # no table without a row


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["measure", "nets:mlp", "--data", "nets:images", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--analysis", "noise,selectivity"]) == 0
    assert (tmp_path / "summary.png").exists() and (tmp_path / "summaryb.svg").exists()
    assert "of an earlier run" not in capsys.readouterr().out
    assert cli.main([*arguments, "--analysis", "history"]) == 0
    assert [path.name for path in tmp_path.glob("summary*")] == ["summary.md"]
    assert "noise, selectivity: of an earlier run, and not in the summary" in capsys.readouterr().out


def test_tables_that_were_finished_are_there_after_ctrl_c(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    noise = dataclasses.replace(analyses.ANALYSES["noise"], function=functools.wraps(repro.noise.sweep)(interrupted))
    monkeypatch.setitem(analyses.ANALYSES, "noise", noise)
    arguments = ["measure", "nets:mlp", "--data", "nets:images", "--analysis", "cumulative,noise"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 130
    assert "interrupted; tables that were finished are in the folder of --out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["cumulative.csv", "cumulative.parquet"]


def test_labels_are_looked_at_before_anything_is_measured(monkeypatch):
    digits = data.load("digits")
    wrong = dataclasses.replace(digits, y_train=digits.y_train + 1)
    model = repro.models.mlp(64, [6], 10)
    tables = analyses.each_table(model, wrong, ["single_unit", "cumulative"])
    with pytest.raises(ValueError, match=r"^data: expected labels from 0 to 9, got 1 to 10$"):
        next(tables)
    assert len(measure_model(model, wrong, ["single_unit"], images=40)["single_unit"]) == 6  # of test images alone


def test_classes_may_be_a_dict():
    """As torchvision's class_to_idx."""
    mine = dataclasses.replace(data.load("digits"), classes={str(i): i for i in range(10)})
    with pytest.raises(ValueError, match=r"^outputs: digits has 10 classes \(0, 1, 2, 3, 4, …\), the model 12 outputs"):
        measure_model(repro.models.mlp(64, [6], 12), mine, ["history"])


# From Python ------------------------------------------------------------------------------------------------


def test_a_relative_folder_may_lie_here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tables = measure_model(small(), "folder:images", ["history", "cumulative"], images=6)
    assert (tables["history"].dataset == f"folder:{folder.resolve() / 'images'}").all()
    with pytest.raises(ValueError, match=r"^data: .*should hold train.*REPRO_DATA; nor is there .*/imagez$"):
        measure_model(small(), "folder:imagez")


def test_values_may_be_tensors_of_ones_own():
    model, images = repro.models.mlp(64, [6], 10).eval(), data.load("digits")
    value = {"relu1": torch.full((6,), 0.5)}
    table = measure_model(model, "digits", {"single_unit": {"value": value}})["single_unit"]
    truth = ablation.single_unit(model, images.x_test, images.y_test, value=value)
    pd.testing.assert_frame_equal(table[truth.columns], truth)


def test_tables_are_those_of_the_plain_functions(folder):
    name = f"folder:{folder / 'images'}"
    images, model = data.load(name), small()
    tables = measure_model(model, name, {"single_unit": {}, "cumulative": {"orders": 3}, "selectivity": {}})
    truth = {
        "single_unit": ablation.single_unit(model, images.x_test, images.y_test),
        "cumulative": ablation.cumulative(model, images.x_train, images.y_train, orders=3),
        "selectivity": selectivity.table(model, images.x_test, images.y_test),
    }
    assert tables.keys() == truth.keys()
    for analysis, table in tables.items():
        pd.testing.assert_frame_equal(table[truth[analysis].columns], truth[analysis])
        assert (table.network == "Residual").all() and (table.dataset == name).all()
        assert (table.classes == len(CLASSES)).all()


def test_tables_tell_which_images_they_are_of():
    tables = measure_model(repro.models.mlp(64, [6], 10), "digits", ["single_unit", "cumulative", "history"], images=40)
    told = {name: table[f"{name}_on"].unique().tolist() for name, table in tables.items()}
    on = {"single_unit": "test", "cumulative": "training", "history": "training and test"}
    assert told == {name: [f"up to 40 {which} images"] for name, which in on.items()}


def test_orders_may_be_sequences_of_different_lengths():
    orders = [[("relu1", 0)], [("relu1", 1), ("relu1", 2)]]
    options = {"cumulative": {"orders": orders}, "noise": {"scales": 0.5}}
    tables = measure_model(repro.models.mlp(64, [6], 10), "digits", options, images=40)
    assert tables["cumulative"].groupby("order").n_ablated.max().tolist() == [1, 2]
    assert tables["noise"].scale.unique().tolist() == [0.5]


def test_every_analysis_by_default_and_each_by_name():
    images = data.load("digits")
    images = data.Dataset("some", images.x_train, images.y_train, images.x_test, images.y_test, images.classes)
    model = repro.models.mlp(64, [6, 5], 10)
    assert list(measure_model(model, images, images=40)) == ["single_unit", "cumulative", "noise", "selectivity"]
    tables = measure_model(model, images, ["history", "weights"], images=40)
    assert len(tables["history"]) == 1 and len(tables["weights"]) == 11
    assert measure_model(model, images, "selectivity", layers=["relu2"])["selectivity"].layer.unique() == ["relu2"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": None}, "the names of its classes"),
        ({"x_test": None}, "a floating-point tensor"),
        ({"x_train": [[0.5]]}, "a floating-point tensor"),
        ({"x_test": torch.empty(0, 1, 8, 8), "y_test": torch.empty(0)}, "at least one image"),
        ({"y_test": [0] * 360}, r"a tensor of integer labels \(N,\), got list"),
        ({"y_train": torch.tensor(0)}, r"a tensor of integer labels \(N,\), got torch.int64 \(\)"),
        ({"y_test": torch.zeros(360)}, r"a tensor of integer labels \(N,\), got torch.float32 \(360,\)"),
        (
            {"x_test": torch.zeros(360, 1, 9, 8)},
            r"test images like the training images, .*\(1, 8, 8\), got .*\(1, 9, 8\)",
        ),
        ({"x_test": torch.zeros(360, 1, 8, 8).double()}, "test images like the training images, .*32 .*, got .*64"),
        ({"name": Path("here")}, "its name as text"),
    ],
)
def test_a_data_set_of_the_wrong_content_is_refused(change, fault):
    wrong = dataclasses.replace(data.load("digits"), **change)
    with pytest.raises(ValueError, match=f"^data: expected {fault}"):
        measure_model(repro.models.mlp(64, [6, 5], 10), wrong)


def test_fewer_images_are_some_of_them():
    model = repro.models.mlp(64, [6, 5], 10)
    whole, some = (measure_model(model, "digits", "cumulative", images=n)["cumulative"] for n in (None, 50))
    assert set((some.accuracy * 50).round(6) % 1) == {0.0}
    assert whole.n_ablated.equals(some.n_ablated)
    with pytest.raises(ValueError, match="images: expected enough for two classes, got 1, all of one class"):
        measure_model(repro.models.mlp(64, [6, 5], 10), "digits", "cumulative", images=1)


def test_outputs_name_the_models_own_classes(folder):
    """A model with more outputs measures as the one whose head is made of those outputs alone, but for the others."""
    name, wide, narrow = f"folder:{folder / 'images'}", small(8), small(3)
    outputs = [6, 0, 3]
    narrow.load_state_dict({k: v[outputs] if k.startswith("head") else v for k, v in wide.state_dict().items()})
    with torch.no_grad():
        wide.head.bias[[1, 2, 4, 5, 7]] = -1e4  # never chosen
    found, truth = (
        measure_model(model, name, ["single_unit", "selectivity"], outputs=chosen)
        for model, chosen in ((wide, outputs), (narrow, None))
    )
    np.testing.assert_allclose(found["single_unit"].delta_loss, truth["single_unit"].delta_loss, atol=1e-5)
    classes = np.array([*outputs, -1])
    assert (found["selectivity"].preferred_class == classes[truth["selectivity"].preferred_class]).all()


def wrongly_labelled():
    digits = data.load("digits")
    return dataclasses.replace(digits, y_train=digits.y_train + 1)


def test_options_may_be_single_numbers():
    options = {"noise": {"scales": 0.5, "repeats": np.int64(2)}}
    assert len(measure_model(repro.models.mlp(64, [5], 10), "digits", options)["noise"]) == 2


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("^data: expected a repro.data.Dataset", {"data": 3}),
        ("^analyses: expected some of", {"analyses": []}),
        ("^analyses: unknown analysis 'curves'", {"analyses": ["curves"]}),
        ("^stops: cumulative has no such option", {"analyses": {"cumulative": {"stops": 3}}}),
        ("^outputs: digits has 10 classes (0, 1, 2, 3, 4, …), the model 4", {"model": repro.models.mlp(64, [5], 4)}),
        ("^x: the model cannot run images", {"model": repro.models.mlp(32, [5], 10)}),
        ("^model: expected an nn.Module", {"model": "resnet18"}),
        ("^model: found no unit layer", {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}),
        ("^layers: the model has no layer 'relu7'", {"layers": ["relu7"]}),
        ("^images: ", {"images": 0}),
        ("^outputs: expected 10 different", {"outputs": [0] * 10}),
        ("^outputs: expected 10 different", {"model": repro.models.mlp(64, [5], 12), "outputs": 5}),
        ("^outputs: expected 10 different", {"outputs": {i: 9 - i for i in range(10)}}),  # which way round?
        ("^outputs: expected 10 different", {"outputs": set(range(10))}),
        ("^analyses: expected names", {"analyses": None}),
        ("^analyses: expected names", {"analyses": [["noise"]]}),
        ("^analyses: expected names", {"analyses": {"noise": None}}),
        ("^steps: expected an integer", {"analyses": {"cumulative": {"steps": 2.5}}}),
        ("^data: expected labels from 0 to 9", {"data": wrongly_labelled(), "outputs": list(range(10))}),
    ],
)
def test_bad_input_is_named(words, arguments):
    with pytest.raises(ValueError, match=words.replace("(0", r"\(0").replace("…)", r"…\)")):
        measure_model(**{"model": repro.models.mlp(64, [5], 10), "data": "digits"} | arguments)


def test_a_long_measurement_is_announced(monkeypatch, capsys):
    model = repro.models.mlp(64, [5], 10)
    measure_model(model, "digits", "selectivity")
    assert "at most" not in capsys.readouterr().err
    monkeypatch.setattr(analyses, "LONG", 0)
    measure_model(model, "digits", ["selectivity", "single_unit"])
    told = capsys.readouterr().err
    assert "this takes at most" in told and "single_unit" in told


def test_a_measurement_of_every_unit_takes_as_often_as_long(monkeypatch):
    x = data.load("digits").x_test
    cut = units.Cut(repro.models.mlp(64, [5], 10), x)
    monkeypatch.setattr(analyses.time, "perf_counter", itertools.count().__next__)  # a second each time
    names = ("history", "single_unit", "class_drops", "ranked")
    seconds = {name: analyses._most_seconds(cut, name, x, {}) for name in names}
    assert seconds["class_drops"] == seconds["single_unit"] == 5 * seconds["history"]
    assert seconds["ranked"] == (2 * 4 * 20 + 5) * seconds["history"]  # up and down, by four properties


def test_what_is_refused_is_refused_before_the_rest_is_measured(monkeypatch):
    @functools.wraps(ablation.single_unit)
    def never(*_, **__):
        raise AssertionError("measured in vain")

    slow = dataclasses.replace(analyses.ANALYSES["single_unit"], function=never)
    monkeypatch.setitem(analyses.ANALYSES, "single_unit", slow)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.LeakyReLU(), nn.Linear(9, 10))
    with pytest.raises(ValueError, match="layers: the index needs mean activations >= 0"):
        measure_model(model, "digits", ["single_unit", "selectivity"])


def test_the_model_is_handed_back_as_it_came(folder):
    model = Functional(classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_model(model, f"folder:{folder / 'images'}", "selectivity")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kept", [["cumulative"], ["single_unit"], ["noise", "selectivity"]])
def test_the_page_shows_what_was_measured(kept, tmp_path):
    tables = measure_model(repro.models.mlp(64, [6, 5], 10), "digits", kept, images=50)
    page = summary.write(tables, tmp_path).read_text()
    assert ("AUC" in page) == ("cumulative" in kept)
    assert ("raises the loss most" in page) == ("single_unit" in kept)
    assert ("dead units" in page) == ("selectivity" in kept)
    if "single_unit" in kept:
        raising = min(int((tables["single_unit"].delta_loss > 0).sum()), 10)
        assert f"The {raising} units" in page and page.count("| relu") == raising
    assert (tmp_path / "summary.png").exists() == (kept != ["single_unit"])


def measured(orders=3, dead=(), apart=False):
    """Tables as measured of one layer, small enough to tell their numbers by hand."""
    about = {"network": "own", "model": "Own", "dataset": "some"}
    curves = [
        {"order": order, "n_ablated": n, "fraction_ablated": n / 2, "accuracy": accuracy}
        for order in range(orders)
        for n, accuracy in enumerate([0.8, 0.1 * 2**order, 0.2])
    ]
    units = pd.DataFrame({"layer": "relu1", "unit": range(5)})
    gone = units.unit.isin(dead)
    selectivity = {
        "selectivity": pd.Series([0.1, 0.2, 0.3, 0.5, 0.9]).mask(gone),
        "mutual_information": pd.Series([1.0, 2.0, 2.5, 0.5, 3.0]).mask(gone, 0),
        "preferred_class": 0,
        "dead": gone,
    }
    loss = {"delta_loss": [0.5, 0.4, 0.1, 0.2, 0.3], "delta_accuracy": -0.1}
    return {
        "cumulative": pd.DataFrame(curves).assign(**about),
        "single_unit": units.assign(**loss, **about, layer="relu2" if apart else "relu1"),
        "selectivity": units.assign(**selectivity, **about),
    }


def test_the_page_tells_the_numbers_of_the_tables():
    found = summary.numbers(measured())
    areas = np.array([0.3, 0.35, 0.45])  # half of 0.8 / 2 + accuracy after one of two + 0.2 / 2
    mean, spread = areas.mean(), areas.std(ddof=1)
    assert found["AUC, mean ± SD over orders"] == f"{mean:.3f} ± {spread:.3f}"
    assert found["AUC ÷ unablated accuracy"] == f"{mean / 0.8:.3f} ± {spread / 0.8:.3f}"
    assert found["training accuracy"] == "80.0%"
    assert found["class selectivity, median"] == "0.300"
    assert found["mutual information, median"] == "2.000 bits"
    assert found["Spearman ρ of selectivity and importance"] == "−0.60"  # of ranks 1 2 3 4 5 and 5 4 1 2 3
    assert found["the same within a layer, mean over layers"] == "−0.60"


def test_one_order_has_no_spread():
    found = summary.numbers(measured(orders=1))
    assert found["AUC"] == "0.300" and found["AUC ÷ unablated accuracy"] == "0.375"


@pytest.mark.parametrize("why", [{"dead": range(5)}, {"apart": True}])
def test_the_page_does_without_the_units_that_are_not_there(why, tmp_path):
    """All are dead, or importance and selectivity are those of different layers."""
    tables = measured(**why)
    page = summary.write(tables, tmp_path).read_text()
    assert "Spearman" not in page and "dead units" in page
    assert "| relu2 | 0 | 0.5 |" in page if "apart" in why else "| relu1 | 0 | 0.5 |" in page
    assert ("selectivity, median" in page) == ("apart" in why)
    letters = {path.stem.removeprefix("summary") for path in tmp_path.glob("summary?.svg")}
    assert letters == ({"a", "b"} if "apart" in why else {"a"})  # no importance; selectivity by depth of living units


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^tables: expected at least one"):
        summary.write({}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
