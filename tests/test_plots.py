"""Pictures from synthetic tables: files, sizes, bands, notes; no text is cut off or covers another."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from repro import plots
from repro.experiment import Missing
from repro.training import Recipe

# ------------------------------------------------------------------------------------------- synthetic tables


def recipe(network, **fields):
    """The columns that a measured table has for every network."""
    given = {
        "dataset": "digits", "n_train": None, "model": "mlp", "width": 128, "strides": None,
        "batch_norm": True, "dropout": 0.0, "init": "he", "corruption": 0.0, "optimizer": "sgd", "lr": 0.1,
        "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "batch_size": 128, "epochs": 90,
        "precision": "float32", "seed": 0,
    }  # fmt: skip
    given |= {"epoch": fields.get("epochs", 90)} | fields
    return {"network": network} | given


def cumulative(settings, networks=4, orders=10, steps=20, units=256, robust=lambda fields: 0.75, seed=0, **fields):
    """Curves that fall from 1 to chance about the fraction `robust` gives, give or take."""
    random, rows = np.random.default_rng(seed), []
    for setting in settings:
        for s in range(networks):
            given = recipe(f"{setting}{s}", seed=s, **(fields | setting))
            middle = robust(given) + random.normal(0, 0.02)
            for order in range(orders):
                own = middle + random.normal(0, 0.025)
                for n in np.unique(np.round(np.linspace(0, units, steps + 1)).astype(int)):
                    x = n / units
                    accuracy = 0.1 + 0.9 / (1 + np.exp((x - own) / (0.035 + 0.12 * middle)))
                    point = {"order": order, "n_ablated": n, "fraction_ablated": x, "accuracy": accuracy}
                    rows.append(given | point | {"loss": -np.log(accuracy)})
    return pd.DataFrame(rows)


CORRUPTIONS = [{"corruption": c} for c in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]


def corrupted(**fields):
    return cumulative(CORRUPTIONS, robust=lambda f: 0.72 - 0.55 * f["corruption"] ** 0.7, **fields)


def noisy(networks=4, repeats=10, seed=0):
    random, rows = np.random.default_rng(seed), []
    for setting in CORRUPTIONS:
        for s in range(networks):
            given = recipe(f"{setting}{s}", seed=s, **setting)
            for repeat in range(repeats):
                half = 1.6 * np.exp(-1.8 * setting["corruption"] + random.normal(0, 0.06))
                for scale in [0.0, *np.geomspace(10**-1.5, 10, 16)]:
                    accuracy = 0.1 + 0.9 / (1 + (scale / half) ** 2.6)
                    rows.append(given | {"repeat": repeat, "scale": scale, "accuracy": accuracy, "loss": 1 - accuracy})
    return pd.DataFrame(rows)


def sweep(networks=96, seed=0):
    """One row per network: AUC, accuracies, losses, over learning rates and batch sizes."""
    random, rows = np.random.default_rng(seed), []
    for i in range(networks):
        lr, better = 10 ** random.uniform(-3, -0.5), random.random()
        given = recipe(
            f"n{i}", lr=lr, seed=i % 2, model="convnet", width=0.25, dataset="folder:cifar10-jpeg", epochs=100
        )
        auc = 0.35 + 0.35 * better + random.normal(0, 0.03)
        measured = {
            "train_accuracy": 1.0,
            "test_accuracy": 0.62 + 0.22 * better,
            "test_loss": 2 - 1.1 * better,
        }
        rows.append(given | measured | {"auc": auc})
    return pd.DataFrame(rows)


def swept(networks=48):
    """Cumulative curves, from less than 100 %, of networks with many learning rates."""
    random = np.random.default_rng(0)
    settings = [
        {"lr": 10 ** random.uniform(-3, -0.5), "train_accuracy": 0.9, "test_accuracy": random.uniform(0.6, 0.85)}
        for _ in range(networks)
    ]
    curves = cumulative(settings, 1, orders=3, steps=8, robust=lambda f: f["test_accuracy"] - 0.2, **CONVNET)
    return curves.assign(accuracy=0.9 * curves["accuracy"])


def run(networks=4, seed=0):
    """Losses and AUC over the epochs of a few networks."""
    random, rows = np.random.default_rng(seed), []
    for s in range(networks):
        shift = random.normal(0, 0.05)
        for epoch in (1, 2, 3, 5, 8, 13, 21, 34, 55, 90):
            train = 2.2 * epoch ** (-0.95 + shift)
            test = 1.9 * epoch**-0.75 + 0.004 * epoch + 0.1 + shift / 10
            auc = 0.3 + 0.32 * (1 - np.exp(-epoch / 6)) - 0.0014 * epoch + shift / 3
            rows.append(
                recipe(f"n{s}", seed=s, width=2048, epoch=epoch) | {"train_loss": train, "test_loss": test, "auc": auc}
            )
    return pd.DataFrame(rows)


def units(layers, per_layer=64, networks=1, seed=0, **fields):
    """Selectivity, mutual information, importance and L1 norm of units, some of them dead."""
    random, tables = np.random.default_rng(seed), []
    for s in range(networks):
        for i, layer in enumerate(layers):
            deep = i / max(len(layers) - 1, 1)
            selectivity = random.beta(1.5 + 3 * deep, 5 - 3.2 * deep, per_layer)
            selectivity[random.random(per_layer) < 0.03] = np.nan
            information = np.clip(0.3 + 1.2 * selectivity + random.normal(0, 0.25, per_layer), 0, np.log2(10))
            delta = random.lognormal(-7 - 3 * deep, 1.6, per_layer) * random.choice([1, 1, 1, -0.4], per_layer)
            table = pd.DataFrame(
                {
                    "layer": layer,
                    "unit": range(per_layer),
                    "selectivity": selectivity,
                    "mutual_information": information,
                    "dead": np.isnan(selectivity),
                    "delta_loss": delta,
                    "l1_norm": random.gamma(9, 2, per_layer),
                }
            )
            name = f"n{s}{sorted(fields.items())}"
            tables.append(table.assign(**{k: [v] * per_layer for k, v in recipe(name, seed=s, **fields).items()}))
    return pd.concat(tables, ignore_index=True)


MLP = ["1", "3"]
CONV = [f"relu{i}" for i in range(1, 12)]
RESNET = ["relu"] + [
    f"layer{stage}.{block}.relu" + suffix
    for stage, blocks in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
    for block in range(blocks)
    for suffix in ("", "_1", "_2")
]  # 49 names
CONVNET = {"model": "convnet", "width": 0.125, "dataset": "folder:cifar10-jpeg", "epochs": 100}
RESNET50 = {"model": "resnet50", "width": 1.0, "dataset": "folder:imagenette96", "epochs": 40}


def best_and_worst():
    arms = [{"arm": "best 5"}, {"arm": "worst 5"}]
    return cumulative(
        arms,
        networks=5,
        orders=4,
        units=1536,
        robust=lambda f: 0.7 if f["arm"] == "best 5" else 0.52,
        **CONVNET,
    )


def dropped():
    settings = [{"dropout": d, "corruption": c} for d in (0.1, 0.2, 0.3) for c in (0.0, 1.0)]
    return cumulative(settings, robust=lambda f: 0.78 + 0.2 * f["dropout"] - f["corruption"] * (0.5 - f["dropout"]))


def normalised(arms=(True, False)):
    return cumulative([{"batch_norm": b} for b in arms], robust=lambda f: 0.7 if f["batch_norm"] else 0.45, **CONVNET)


def both_arms(networks=4):
    without = units(CONV[-3:], 100, networks, seed=1, batch_norm=False, **CONVNET)
    without["selectivity"] = 1 - 0.6 * (1 - without["selectivity"])
    without["mutual_information"] *= 0.7
    return pd.concat([units(CONV[-3:], 100, networks, **CONVNET), without], ignore_index=True)


# What each figure of the paper draws, panel by panel.
FIGURES = {
    "fig1": {
        "a": (
            "MLP on MNIST",
            lambda ax: plots.curves(ax, corrupted(dataset="mnist", width=512), hue="corruption"),
        ),
        "b": (
            "ConvNet on CIFAR-10",
            lambda ax: plots.curves(ax, corrupted(units=1536, **CONVNET), hue="corruption"),
        ),
        "c": (
            "ResNet-50 on ImageNet",
            lambda ax: plots.curves(ax, corrupted(units=6144, **RESNET50), hue="corruption"),
        ),
    },
    "fig2": {
        "a": ("MLP", lambda ax: plots.noise(ax, noisy(), hue="corruption")),
        "b": ("ConvNet", lambda ax: plots.noise(ax, noisy(2, 3, seed=1), hue="corruption")),
    },
    "fig3": {
        "a": ("Best and worst", lambda ax: plots.curves(ax, best_and_worst(), hue="arm", each=True)),
        "b": (
            "AUC and generalization",
            lambda ax: plots.auc_against(ax, swept(), hue="lr", normalize=True),
        ),
    },
    "fig4": {
        "a": ("MLP over training", lambda ax: plots.training(ax, run())),
        "b": ("ConvNet over training", lambda ax: plots.auc_against(ax, run(), "test_loss", hue="epoch")),
        "c": ("Sweep", lambda ax: plots.auc_against(ax, sweep(), "test_accuracy")),
    },
    "fig5": {
        "a": (
            "Dropout",
            lambda ax: plots.curves(ax, dropped(), hue="dropout", style="corruption", vlines=(0.1, 0.2, 0.3)),
        ),
        "b": ("Batch norm", lambda ax: plots.curves(ax, normalised(), hue="batch_norm")),
    },
    "fig6": {
        "a": ("Selectivity", lambda ax: plots.distributions(ax, both_arms())),
        "b": ("Mutual information", lambda ax: plots.distributions(ax, both_arms(), "mutual_information")),
    },
    "fig7": {
        "a": ("MLP", lambda ax: plots.importance(ax, units(MLP, 128, 4))),
        "b": ("ConvNet", lambda ax: plots.importance(ax, units(CONV, 128, 3, **CONVNET))),
        "c": ("per layer", lambda ax: plots.importance(ax, units(CONV, 128, 3, **CONVNET), lines=True)),
        "d": ("ResNet-50", lambda ax: plots.importance(ax, units(RESNET, 256, **RESNET50))),
        "e": ("per layer", lambda ax: plots.importance(ax, units(RESNET, 256, **RESNET50), lines=True)),
    },
    "figA2": {
        "a": ("MLP", lambda ax: plots.by_depth(ax, units(MLP, 128, 4))),
        "b": ("ConvNet", lambda ax: plots.by_depth(ax, units(CONV, 128, 3, **CONVNET))),
        "c": ("ResNet-50", lambda ax: plots.by_depth(ax, units(RESNET, 256, **RESNET50))),
    },
    "figA3": {
        "a": (
            "ConvNet",
            lambda ax: plots.scatter(ax, units(CONV, 64, **CONVNET), "l1_norm", "selectivity", hue="layer"),
        ),
        "b": (
            "ResNet-50",
            lambda ax: plots.scatter(ax, units(RESNET, 64), "l1_norm", "selectivity", hue="layer"),
        ),
    },
    "figA4": {
        "a": ("MLP", lambda ax: plots.importance(ax, units(MLP, 128, 4), "mutual_information")),
    },
}
LAYOUTS = {"fig7": "abc;de."}


def draw(name, preset="digits"):
    figure = plots.Figure(name, preset=preset, panels=LAYOUTS.get(name, "".join(FIGURES[name])))
    for letter, (title, body) in FIGURES[name].items():
        with figure.panel(letter, title) as ax:
            body(ax)
    return figure


# ---------------------------------------------------------------------------------------------------- figures


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_FIGURES", str(tmp_path))
    return tmp_path


def texts(figure):
    """Every text that is drawn in a figure, with its box in pixels."""
    renderer, stale = figure.canvas.get_renderer(), set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):  # an axis keeps ticks that it no longer needs, or beyond its limits
            low, high = sorted(axis.get_view_interval())
            needed = axis.get_ticklabels() + axis.get_ticklabels(minor=True)
            for tick in axis.majorTicks + axis.minorTicks:
                within = low - 1e-9 <= tick.get_loc() <= high + 1e-9 and axis.get_visible()
                stale |= {label for label in (tick.label1, tick.label2) if not within or label not in needed}
        if not ax.get_visible():  # a panel that no notebook has come to yet
            stale |= set(ax.findobj(Text))
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and text not in stale:
            yield text, text.get_window_extent(renderer)


def overlap(a, b):
    """Depth in pixels to which two boxes overlap."""
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


def assert_legible(figure):
    """No text is cut off by the edge of the figure, or covers another."""
    figure.draw_without_rendering()
    found = list(texts(figure))
    assert found
    for text, box in found:
        whole = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert whole, f"cut off: {text.get_text()!r}"
    for i, (text, box) in enumerate(found):
        for other, other_box in found[:i]:
            assert overlap(box, other_box) < 1, f"{text.get_text()!r} covers {other.get_text()!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_of_the_paper_is_drawn_and_written(name, folder):
    figure = draw(name)
    path = figure.save()
    assert path == folder / "digits" / f"{name}.png" and path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 400_000
    for stem in [name, *(name + letter for letter in FIGURES[name])]:
        file = path.with_name(f"{stem}.svg")
        assert file.stat().st_size < 1_000_000
        assert ET.parse(file).getroot().tag.endswith("svg")
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(record["panels"]) == list(FIGURES[name]) and not record["missing"]
    for panel in record["panels"].values():
        assert panel["note"].startswith(("digits · MLP", "mnist · MLP", "cifar10-jpeg · Conv", "imagenette96 · Res"))
    assert_legible(figure.figure)


def test_a_panel_by_itself_shows_no_other(folder):
    figure = plots.Figure("fig", panels="ab")
    for letter in "ab":
        with figure.panel(letter, "panel") as ax:
            plots.curves(ax, corrupted(networks=1, orders=2), hue="corruption")
    path = figure.save()
    sizes = {}
    for stem in ("fig", "figa", "figb"):
        root = ET.parse(path.with_name(f"{stem}.svg")).getroot()
        axes = [g.get("id") for g in root.iter("{http://www.w3.org/2000/svg}g") if "axes" in g.get("id", "")]
        sizes[stem] = float(root.get("width").removesuffix("pt")), len(axes)
    assert sizes["fig"][1] == 2 and sizes["figa"][1] == sizes["figb"][1] == 1
    assert sizes["figa"][0] + sizes["figb"][0] <= sizes["fig"][0] * 1.02


def test_the_same_tables_give_the_same_files(folder):
    first = {file.name: file.read_bytes() for file in draw("fig4").save().parent.iterdir()}
    second = {file.name: file.read_bytes() for file in draw("fig4").save().parent.iterdir()}
    assert first == second


def test_drawing_leaves_the_users_settings_and_pyplot_alone():
    before = dict(mpl.rcParams)
    draw("fig5").save()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_missing_results_leave_a_note_and_are_remembered(folder):
    figure = plots.Figure("fig1", preset="paper", panels="abc")
    with figure.panel("a", "measured") as ax:
        plots.curves(ax, corrupted(networks=1, orders=2), hue="corruption")
    with figure.panel("b", "half way") as ax:
        plots.training(ax, run())
        raise Missing([Recipe("mnist", width=512)], ["cumulative of 0123"])
    with figure.panel("c", "nothing") as ax:
        raise Missing([], ["cumulative of 4567"])
    path = figure.save()
    assert set(figure.missing) == {"b", "c"} and figure.missing["b"].tables == ["cumulative of 0123"]
    for letter in "bc":
        ax = figure.axes[letter]
        words = words_in(ax)
        assert "results not in data/ yet — repro figures fig1 --preset paper -p compute missing" in words
        assert not ax.lines and not ax.collections
    assert len(figure.figure.axes) == 3  # the right axis of the half-drawn panel is gone
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    key = Recipe("mnist", width=512).key
    assert record["missing"]["b"] == {"networks": [key], "tables": ["cumulative of 0123"]}
    assert path.with_name("fig1c.svg").exists()
    assert_legible(figure.figure)


@pytest.mark.parametrize("panels", ["a", "abc"])
def test_a_figure_of_which_nothing_is_there_is_legible(panels):
    figure = plots.Figure("figA4", preset="paper", panels=panels)
    for letter in panels:
        with figure.panel(letter, "nothing"):
            raise Missing([], [])
    figure.save()
    for letter in panels:  # wrapped to the axes, not to what a long line has left of them
        (note,) = [text for text in figure.axes[letter].texts if text.get_gid() == "missing"]
        assert len(note.get_text().splitlines()) <= 4
    assert_legible(figure.figure)


def test_other_errors_are_not_hidden():
    figure = plots.Figure("fig1", panels="ab")
    with pytest.raises(ZeroDivisionError), figure.panel("a"):
        _ = 1 / 0
    with pytest.raises(ValueError, match="letter: expected one of a, b"), figure.panel("c"):
        pass


def test_a_panel_can_be_drawn_again(folder):
    """As when a cell of a notebook is run a second time."""
    figure = plots.Figure("fig4", panels="ab")
    with figure.panel("a", "first"):
        raise Missing([], [])
    for title in ("second", "third"):
        with figure.panel("a", title) as ax:
            plots.training(ax, run())
        figure.save()
    assert figure.missing == {} and len(figure.figure.axes) == 3
    assert ax.get_title(loc="left") == "third"
    assert len(ax.lines) == 2 * (4 + 1) + 1  # two losses of four networks, their means, dots at the lowest
    assert_legible(figure.figure)


def test_verdicts_are_shown_and_remembered(folder, capsys):
    table = corrupted(networks=4, orders=3)
    figure = plots.Figure("fig1", panels="a")
    with figure.panel("a", "MLP") as ax:
        plots.curves(ax, table, hue="corruption")
        verdict = figure.check("C1", table)
    assert str(verdict) in capsys.readouterr().out
    record = json.loads(figure.save().with_suffix(".json").read_text(encoding="utf-8"))
    assert record["verdicts"] == [{"panel": "a"} | json.loads(json.dumps(verdict.to_dict()))]
    assert record["verdicts"][0]["verdict"] == "reproduced"


def test_a_note_can_be_replaced(folder):
    figure = plots.Figure("fig3", panels="a")
    with figure.panel("a") as ax:
        plots.curves(ax, cumulative([{}], networks=2))
        figure.note("a", "two tables · " * 12 + "one panel")
    record = json.loads(figure.save().with_suffix(".json").read_text(encoding="utf-8"))
    assert record["panels"]["a"]["note"] == "two tables · " * 12 + "one panel"
    assert_legible(figure.figure)


# ---------------------------------------------------------------------------------------------- what is drawn


def axes():
    return plt.Figure(layout="constrained").add_subplot()


def test_the_line_is_the_mean_and_the_band_the_standard_deviation_over_orders():
    table = corrupted(networks=3, orders=5, steps=7)
    table = table.sample(frac=1, random_state=0)  # the order of rows is of no matter
    ax = axes()
    plots.curves(ax, table, hue="corruption")
    corruptions = sorted(table["corruption"].unique().tolist())
    assert len(ax.lines) == len(ax.collections) == len(corruptions)
    for line, band, corruption in zip(ax.lines, ax.collections, corruptions, strict=True):
        for x, y in zip(*line.get_data(), strict=True):
            means, spreads = [], []
            for s in range(3):  # the plainest way: network by network
                here = (table["network"] == str({"corruption": corruption}) + str(s)) & np.isclose(
                    table["fraction_ablated"], x, atol=1e-8
                )
                values = table.loc[here, "accuracy"].to_numpy()
                assert len(values) == 5
                means.append(values.mean())
                spreads.append(np.sqrt(((values - values.mean()) ** 2).sum() / 4))
            assert y == pytest.approx(100 * np.mean(means))
            edges = band.get_paths()[0].vertices
            edges = edges[np.isclose(edges[:, 0], x, atol=1e-8), 1]
            assert edges.max() == pytest.approx(100 * (np.mean(means) + np.mean(spreads)))
            assert edges.min() == pytest.approx(100 * (np.mean(means) - np.mean(spreads)))


def test_rows_that_differ_in_something_unnamed_are_refused():
    table = pd.concat([cumulative([{}]).assign(value=value) for value in ("zero", "mean")])
    with pytest.raises(ValueError, match="expected one row for each network, order, fraction_ablated"):
        plots.curves(axes(), table)
    plots.curves(axes(), table, hue="value")


def test_networks_measured_at_different_points_are_refused():
    table = pd.concat([cumulative([{"lr": 1.0}], steps=4), cumulative([{"lr": 2.0}], steps=5)])
    with pytest.raises(ValueError, match="fraction_ablated: expected the same values for all networks"):
        plots.curves(axes(), table)
    # As many networks at every point are not yet the same networks.
    points = [("a", 0.1), ("a", 1.0), ("b", 0.2), ("b", 2.0)]
    table = pd.DataFrame(points, columns=["network", "scale"]).assign(repeat=0, accuracy=0.5, corruption=0.0)
    for hue in (None, "corruption"):
        with pytest.raises(ValueError, match="scale: expected the same values for all networks"):
            plots.noise(axes(), table, hue)
    plots.noise(axes(), table.assign(lr=[1.0, 1.0, 2.0, 2.0]), "lr")  # each network at points of its own


@pytest.mark.parametrize(
    ("function", "column"),
    [
        (plots.curves, "fraction_ablated"),
        (plots.noise, "scale"),
        (plots.distributions, "selectivity"),
        (plots.by_depth, "layer"),
        (plots.importance, "delta_loss"),
        (plots.auc_against, "order"),
        (plots.training, "order"),
    ],
)
def test_an_error_names_the_column_that_is_not_there(function, column):
    with pytest.raises(ValueError, match=f"expected a column '{column}', found network, seed"):
        function(axes(), pd.DataFrame({"network": ["a"], "seed": [0]}))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("table: expected a DataFrame, got list", lambda table: plots.curves(axes(), [table])),
        ("table: expected rows, found none", lambda table: plots.curves(axes(), table[:0])),
        (r"table: expected the names of its columns, got \['lr'\]", lambda table: plots.curves(axes(), table, ["lr"])),
        ("table: expected numbers as accuracy", lambda table: plots.curves(axes(), table.assign(accuracy="high"))),
        ("table: expected numbers as model", lambda table: plots.means(axes(), table, "model", "accuracy")),
        ("scale: expected linear, log or epochs", lambda table: plots.means(axes(), table, "lr", "accuracy", scale="")),
        ("panels: expected letters, rows of them apart by ';'", lambda _: plots.Figure("fig1", panels=["a", "b"])),
        ("panels: expected rows of one length", lambda _: plots.Figure("fig1", panels="ab;c")),
        ("panels: expected one rectangle of each letter, got 'aba'", lambda _: plots.Figure("fig1", panels="aba")),
        ("table: expected a DataFrame, got NoneType", lambda _: plots.means(axes(), None, "lr", "accuracy")),
        ("table: expected a DataFrame, got NoneType", lambda _: plots.by_depth(axes(), None)),
        ("table: expected a DataFrame, got NoneType", lambda _: plots.distributions(axes(), None)),
        ("table: expected a DataFrame, got NoneType", lambda _: plots.note(None)),
        ("table: expected numbers as auc", lambda _: plots.per_network(pd.DataFrame({"network": ["a"], "auc": ["b"]}))),
        ("by: expected the names of one or several", lambda table: plots.spread(table, "lr", "accuracy", "seed", None)),
        (r"by: .* got \[\]", lambda table: plots.rank_correlations(table, "lr", "accuracy", by=[])),
        ("name: expected a name of letters and digits", lambda _: plots.Figure("../fig1")),
        ("width: expected inches", lambda _: plots.Figure("fig1", width=-1)),
        ("height: expected inches", lambda _: plots.Figure("fig1", height=float("nan"))),
    ],
)
def test_bad_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call(corrupted(networks=1, orders=1).assign(model="mlp", lr=0.1))


def test_one_vertical_line_needs_no_list():
    ax = axes()
    plots.curves(ax, corrupted(networks=1, orders=1), hue="corruption", vlines=0.2)
    assert list(ax.lines[-1].get_xdata()) == [0.2, 0.2]


def test_intact_accuracy_stands_left_of_the_noise():
    ax = axes()
    plots.noise(ax, noisy(networks=1, repeats=2), hue="corruption")
    ax.figure.draw_without_rendering()
    labels = {label.get_text(): label.get_position()[0] for label in ax.get_xticklabels()}
    assert ax.get_xscale() == "log" and set(labels) == {"0", "0.1", "1", "10"}
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 6
    for dot in dots:
        assert dot.get_xdata()[0] < 10**-1.5 and dot.get_ydata()[0] == pytest.approx(100)
    assert labels["0"] == pytest.approx(np.sqrt(dots[0].get_xdata()[0] * dots[-1].get_xdata()[0]))


def test_a_line_half_way_to_chance_shows_where_networks_are_compared():
    ax, table = axes(), noisy(networks=1, repeats=2)
    plots.noise(ax, table, hue="corruption")
    (level,) = {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    assert level == pytest.approx((100 + 10) / 2)
    ax = axes()
    plots.noise(ax, table.assign(classes=2), hue="corruption")
    assert (100 + 50) / 2 in {line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    ax = axes()
    plots.noise(ax, table[table["scale"] > 0], hue="corruption")  # intact accuracy is not known
    assert not any(list(line.get_xdata()) == [0, 1] for line in ax.lines)


def test_the_auc_of_a_network_is_the_mean_over_its_orders():
    table = corrupted(networks=2, orders=3).assign(train_accuracy=0.9, test_accuracy=0.7)
    rows = plots.per_network(table).set_index("network")
    for network, curves in table.groupby("network"):
        areas = [np.trapezoid(c["accuracy"], c["fraction_ablated"]) for _, c in curves.groupby("order")]
        assert rows.loc[network, "auc"] == pytest.approx(np.mean(areas))
        assert rows.loc[network, "generalization_error"] == pytest.approx(0.2)
    assert len(rows) == 12


def test_an_auc_is_divided_by_the_intact_accuracy_of_its_curve():
    table = corrupted(networks=2, orders=3)
    table["accuracy"] *= 0.8
    rows = plots.per_network(table, normalize=True).set_index("network")
    for network, curves in table.groupby("network"):
        areas = [
            np.trapezoid(c["accuracy"], c["fraction_ablated"]) / c["accuracy"].max() for _, c in curves.groupby("order")
        ]
        assert rows.loc[network, "auc"] == pytest.approx(np.mean(areas))
    for draw in (plots.auc_against, plots.training):  # areas alone cannot be divided
        with pytest.raises(ValueError, match="normalize: expected curves"):
            draw(axes(), run(), normalize=True)


def test_a_training_run_shows_networks_their_means_and_the_best_epochs_of_each():
    table, ax = run(), axes()
    right = plots.training(ax, table)
    networks = table["network"].unique()
    n = len(networks)
    drawn = {"train_loss": ax.lines[: n + 1], "test_loss": ax.lines[n + 1 : 2 * n + 2], "auc": right.lines[: n + 1]}
    for column, lines in drawn.items():
        for network, line in zip(networks, lines, strict=False):
            rows = table[table["network"] == network]
            assert np.allclose(line.get_xydata(), rows[["epoch", column]])
        mean = table.groupby("epoch")[column].mean()
        assert np.allclose(lines[-1].get_xydata(), np.column_stack([mean.index, mean]))
    for column, dots, which in (("test_loss", ax.lines[-1], "idxmin"), ("auc", right.lines[-1], "idxmax")):
        best = table.loc[getattr(table.groupby("network")[column], which)()]
        assert np.allclose(dots.get_xydata(), best[["epoch", column]])
    assert (
        ax.get_zorder() > right.get_zorder()
    )  # so that nothing of the left axis may lie on the AUC, but lines of the loss
    assert not any(line.get_visible() for axis in (ax.xaxis, ax.yaxis) for line in axis.get_gridlines())


def test_the_last_epoch_has_a_tick_where_there_is_room():
    from repro.plots.lines import log_epochs

    for last, expected in (
        (30, [0, 1, 2, 5, 10, 20, 30]),
        (60, [0, 1, 2, 5, 10, 20, 50]),
        (100, [0, 1, 3, 10, 30, 100]),
    ):
        ax = axes()
        log_epochs(ax, pd.Series([0, 1, last]))
        assert list(ax.get_xticks()) == expected


def test_the_untrained_network_alone_is_no_training_run():
    with pytest.raises(ValueError, match="epoch: expected epochs > 0"):
        plots.training(axes(), run().query("epoch == 1").assign(epoch=0))


def test_the_corner_tells_the_rank_correlation():
    ax = axes()
    table = sweep(50)
    plots.auc_against(ax, table, "test_loss")
    order = np.argsort(np.argsort(table[["auc", "test_loss"]].to_numpy(), axis=0), axis=0)
    rho = np.corrcoef(order.T)[0, 1]
    assert f"Spearman ρ = {rho:.2f} (all dots)".replace("-", "−") in [text.get_text() for text in ax.texts]
    assert ax.collections[0].get_offsets().shape == (50, 2)


def test_rows_without_a_level_are_refused_and_not_left_out():
    table = pd.concat(
        [corrupted(networks=1, orders=2).assign(width=width, network=f"n{width}") for width in (None, 16.0)]
    ).query("corruption == 0")
    with pytest.raises(ValueError, match="table: expected a value of width in every row"):
        plots.curves(axes(), table, hue="width")


def test_two_living_units_have_no_rank_correlation():
    table = pd.DataFrame({"selectivity": [0.1, 0.2], "delta_loss": [1.0, 2.0], "network": "n", "layer": "relu1"})
    assert plots.rank_correlations(table, "selectivity").rho.isna().all()


def test_the_corner_tells_the_rank_correlation_within_layers_too():
    ax, table = axes(), units(CONV, 30, networks=2)
    plots.importance(ax, table)
    within = plots.rank_correlations(table, "selectivity").rho.mean()
    each = [units[["selectivity", "delta_loss"]].corr("spearman").iloc[0, 1] for _, units in table.groupby("network")]
    expected = f"Spearman ρ = {np.mean(each):.2f} (networks)\nρ = {within:.2f} (layers)".replace("-", "−")
    assert expected in [text.get_text() for text in ax.texts]
    ax = axes()
    plots.scatter(ax, table, "selectivity", "delta_loss", hue="network")
    assert "(networks)" in words_in(ax) and "(layers)" not in words_in(ax)


def test_snapshots_of_a_network_are_joined_in_the_order_of_epochs():
    ax, table = axes(), run(networks=2)
    plots.auc_against(ax, table.sample(frac=1, random_state=0), x="test_loss", hue="epoch")
    for line, (_, rows) in zip(ax.lines, table.groupby("network"), strict=True):
        assert np.allclose(line.get_xydata(), rows.sort_values("epoch")[["test_loss", "auc"]])
    ax = axes()
    plots.auc_against(ax, sweep(9), x="test_loss")
    assert not ax.lines


def test_an_axis_that_is_logarithmic_in_part_has_ticks_to_read_it_by():
    ax, table = axes(), units(CONV, 64)
    table.loc[0, "delta_loss"] = 5 * table["delta_loss"].abs().max()
    plots.importance(ax, table)
    assert ax.get_yscale() == "symlog"
    bend = ax.yaxis.get_transform().linthresh
    large, small = (ax.yaxis.get_ticklocs(minor=minor) for minor in (False, True))
    assert 0 in large and sum(large >= bend * 0.99) >= 2 and len(small) > len(large)
    assert all(abs(tick) >= bend for tick in small) and f"y: log scale beyond ±{bend:g}" in words_in(ax)


def test_the_rank_correlation_covers_no_dot():
    corners = pd.DataFrame({"x": [0, 0, 1, 1, 0.5] * 4, "y": [0, 1, 0, 1, 0.5] * 4, "network": "n"})
    ax = axes()
    plots.scatter(ax, corners, "x", "y")
    ax.figure.draw_without_rendering()
    (text,) = (text for text in ax.texts if "Spearman" in text.get_text())
    places = ax.transData.transform(corners[["x", "y"]].to_numpy())
    assert not any(text.get_window_extent().contains(*place) for place in places)


def test_accuracy_is_named_by_the_images_it_was_measured_on():
    table = corrupted(networks=1, orders=2)
    for on, expected in (
        ({}, "accuracy (%)"),
        ({"cumulative_on": "training images"}, "training accuracy (%)"),
        ({"cumulative_on": "up to 200 test images"}, "test accuracy (%)"),
        ({"cumulative_on": "training images", "history_on": "training and test images"}, "training accuracy (%)"),
        ({"ranked_on": "training and test images"}, "accuracy (%)"),
    ):
        ax = axes()
        plots.curves(ax, table.assign(**on), hue="corruption")
        assert ax.get_ylabel() == expected
        assert ("ablation on up to 200 test images" in plots.note(table.assign(**on))) == ("up to" in str(on))


def test_importance_is_named_by_the_images_it_was_measured_on():
    table = units(MLP)
    for told, name in ((None, "loss"), ("training images", "training loss"), ("up to 50 test images", "test loss")):
        ax = axes()
        plots.importance(ax, table if told is None else table.assign(single_unit_on=told))
        assert ax.get_ylabel() == f"change in {name} (nats)"


def test_a_key_names_units_only_where_levels_are_numbers():
    ax = axes()
    table = cumulative([{"generalization_error": name} for name in ("five smallest", "five largest")])
    plots.curves(ax, table, hue="generalization_error")
    (key,) = ax.findobj(Legend)
    assert key.get_title().get_text() == "generalization error"
    assert [text.get_text() for text in key.get_texts()] == ["five smallest", "five largest"]
    ax = axes()
    plots.curves(ax, corrupted(networks=1, orders=2), hue="corruption")
    (key,) = ax.findobj(Legend)
    assert key.get_title().get_text() == "corrupted labels (%)"
    assert [text.get_text() for text in key.get_texts()] == ["0", "20", "40", "60", "80", "100"]


def test_a_name_in_both_columns_is_one_curve_and_told_once():
    table = cumulative([{"by": "selectivity"}, {"by": "random"}], networks=1, orders=2)
    kinds = [table.assign(direction=way) for way in ("ascending", "descending")]
    table = pd.concat([*(kind[kind.by == "selectivity"] for kind in kinds), table[table.by == "random"]])
    ax = axes()
    plots.curves(ax, table.fillna({"direction": "random"}), hue="by", style="direction")
    colours, dashes = ax.findobj(Legend)
    assert [text.get_text() for text in colours.get_texts()] == ["selectivity"]
    assert [text.get_text() for text in dashes.get_texts()] == ["ascending", "descending", "random"]
    *grey, own = (line.get_color() for line in dashes.get_lines())
    assert set(grey) == {plots.style.GREY} and own == ax.lines[-1].get_color()


def test_lines_go_through_the_means_of_networks():
    ax = axes()
    table = pd.DataFrame(
        {"network": list("abcd"), "alpha": [0.0, 0.0, 1.0, 1.0], "test_accuracy": [0.9, 0.8, 0.6, 0.4]}
    )
    plots.means(ax, table, "alpha", "test_accuracy")
    dots, line = ax.lines
    assert line.get_xydata().tolist() == [[0.0, pytest.approx(85)], [1.0, pytest.approx(50)]]
    assert len(dots.get_xydata()) == 4

    layers = ["relu1"] * 2 + ["relu2"] * 2
    table = pd.DataFrame({"network": "n", "epoch": [0, 1, 0, 1], "layer": layers, "rho": [0.1, None, 0.3, 0.4]})
    ax = axes()
    table = pd.DataFrame(
        {"network": "n", "epoch": [0, 1, 0, 1], "layer": ["relu1"] * 2 + ["relu2"] * 2, "rho": [0.1, None, 0.3, 0.4]}
    )
    plots.means(ax, table, "epoch", "rho", hue="layer", scale="epochs")
    assert [len(line.get_xydata()) for line in ax.lines] == [1, 1, 2, 2]


def test_networks_with_several_rows_stand_side_by_side_with_a_dash_at_each_mean():
    rows = [("a", 0, 1), ("a", 0, 3), ("b", 0, 5), ("b", 0, 9), ("a", 1, 2), ("a", 1, 4), ("b", 1, 6), ("b", 1, 6)]
    table, ax = pd.DataFrame(rows, columns=["network", "depth", "rho"]), axes()
    plots.means(ax, table, "depth", "rho")
    ax.figure.draw_without_rendering()
    dots, dashes = ([line for line in ax.lines if line.get_marker() == kind] for kind in ("o", "_"))
    assert [line.get_ydata().tolist() for line in dashes] == [[2, 3], [7, 6]]
    left, right = (line.get_transform().transform((0, 2))[0] for line in dots)
    assert left < ax.transData.transform((0, 2))[0] < right
    for line in dots:  # no dot lies outside the axes
        assert all(ax.bbox.contains(*place) for place in line.get_transform().transform(line.get_xydata()))
    assert "dash: mean of a network" in words_in(ax)


def test_many_levels_have_no_dots_but_a_bold_mean():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"layer": np.tile([f"relu{i}" for i in range(9)], 4), "epoch": np.repeat([0, 1, 2, 3], 9)})
    table, ax = table.assign(network="n", rho=rng.normal(size=36)), axes()
    plots.means(ax, table, "epoch", "rho", hue="layer", scale="epochs")
    assert len(ax.lines) == 9 + 1
    assert np.allclose(ax.lines[-1].get_xydata(), table.groupby("epoch").rho.mean().reset_index())


def test_rank_correlations_are_those_of_each_network_and_layer():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"network": np.repeat(["a", "b"], 40), "layer": np.tile(np.repeat(["one", "two"], 20), 2)})
    table = table.assign(selectivity=rng.normal(size=80), delta_loss=rng.normal(size=80), epochs=3)
    table.loc[3, "selectivity"] = np.nan  # dead
    found = plots.rank_correlations(table, "selectivity").set_index(["network", "layer"])
    assert len(found) == 4 and (found.epochs == 3).all()
    for key, units in table.dropna().groupby(["network", "layer"]):
        assert found.rho[key] == pytest.approx(stats.spearmanr(units.selectivity, units.delta_loss).statistic)
    dead = plots.rank_correlations(table.assign(selectivity=np.nan), "selectivity")
    assert len(dead) == 4 and dead.rho.isna().all()
    with pytest.raises(ValueError, match="table: expected rows with finite epochs and rho, found none"):
        plots.means(axes(), dead, "epochs", "rho", hue="layer")


def words_in(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def test_dead_units_have_no_mutual_information():
    table = units(MLP, 200)
    table["mutual_information"] = table["mutual_information"].mask(table["dead"], 0)  # as it is measured
    alive = table[~table["dead"]]
    share = f"without dead units ({1 - len(alive) / len(table):.1%})"
    ax = axes()
    plots.importance(ax, table, "mutual_information")
    assert len(ax.collections[0].get_offsets()) == len(alive) and share in words_in(ax)
    ax = axes()
    plots.distributions(ax, table, "mutual_information")
    assert share in words_in(ax)
    found = plots.rank_correlations(table, "mutual_information")
    pd.testing.assert_frame_equal(
        found[["layer", "rho"]], plots.rank_correlations(alive, "mutual_information")[["layer", "rho"]]
    )


def test_the_dashed_lines_stand_at_the_medians():
    table, ax = both_arms(), axes()
    table["selectivity"] **= 3  # the medians are then far from the means
    plots.distributions(ax, table)
    medians = table.groupby("batch_norm")["selectivity"].median()
    dashed = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert sorted(dashed) == pytest.approx(sorted(medians))
    (key,) = ax.findobj(Legend)
    names = {text.get_text() for text in key.get_texts()}
    assert names == {f"with (median {medians[True]:.2f})", f"without (median {medians[False]:.2f})"}
    ax = axes()
    plots.distributions(ax, table, "mutual_information")  # C6 is about means of this
    alive = table[~table["dead"]]
    means = alive.groupby("batch_norm")["mutual_information"].mean()
    dashed = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert sorted(dashed) == pytest.approx(sorted(means)) and "dashed: mean" in words_in(ax)


def test_density_integrates_to_one_and_keeps_within_its_bounds():
    from repro.plots.shapes import density

    sample = np.random.default_rng(0).beta(0.7, 0.7, 3000)  # piled up at both ends
    grid = np.linspace(0, 1, 400)
    height = density(sample, grid, 0, 1)
    assert np.trapezoid(height, grid) == pytest.approx(1, abs=0.01)
    assert height[0] > 1 and height[-1] > 1  # not half of it lost at the edge


def test_all_networks_together_are_the_mean_of_each():
    """As they all have the same bandwidth."""
    ax, table = axes(), both_arms(networks=3)
    plots.distributions(ax, table, "mutual_information", hue="batch_norm")
    curves = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) > 2]
    alive = table[table["batch_norm"] & ~table["dead"]].groupby("network", sort=False).size()
    assert np.allclose(curves[3], np.average(curves[:3], axis=0, weights=alive)) and len(curves) == 8


@pytest.mark.parametrize("layers", [MLP, CONV, RESNET])
def test_every_layer_has_a_ridge_and_few_labels(layers):
    ax = axes()
    table = units(layers, 40)
    plots.by_depth(ax, table)
    means = table.groupby("layer", sort=False)["selectivity"].mean()
    assert len(ax.collections) == len(layers)
    assert np.allclose(ax.lines[-1].get_xdata(), means) and list(ax.lines[-1].get_ydata()) == list(
        range(1, len(layers) + 1)
    )
    assert len(ax.get_yticks()) <= 12 and ax.get_yticks()[-1] == len(layers)


def test_ridges_have_equal_areas():
    """Also that of a layer whose units are all alike, which is tall."""
    ax, rng = axes(), np.random.default_rng(0)
    samples = {layer: rng.normal(0.5, 0.02 if layer == "relu3" else 0.1, 500) for layer in CONV}
    table = pd.DataFrame([{"layer": layer, "selectivity": x} for layer, xs in samples.items() for x in xs])
    plots.by_depth(ax, table)
    ridges = [ridge.get_paths()[0].vertices for ridge in ax.collections]
    areas = [abs(np.trapezoid(x_y[:, 1], x_y[:, 0])) for x_y in ridges]
    assert areas == pytest.approx(areas[:1] * len(CONV), rel=0.02)


@pytest.mark.parametrize("layers", [MLP, CONV, RESNET])
def test_every_layer_has_a_regression_line(layers):
    ax = axes()
    table = units(layers, 40)
    plots.importance(ax, table, lines=True)
    assert len(ax.lines) == len(layers)
    alive = table[(table["layer"] == layers[0])].dropna(subset=["selectivity"])
    slope, intercept = np.polyfit(alive["selectivity"], alive["delta_loss"], 1)
    x, y = ax.lines[0].get_data()
    assert len(x) and np.allclose(y, intercept + slope * np.asarray(x))
    assert alive["delta_loss"].min() <= y.min() and y.max() <= alive["delta_loss"].max()


def test_two_arms_are_blue_and_orange_and_corruption_runs_from_dark_to_bright():
    from matplotlib.colors import rgb_to_hsv, to_rgb

    ax = axes()
    plots.curves(ax, normalised(), hue="batch_norm")
    assert [line.get_color() for line in ax.lines] == ["#0072B2", "#E69F00"]
    ax = axes()
    plots.curves(ax, corrupted(networks=1, orders=2), hue="corruption")
    luminance = [np.dot(to_rgb(line.get_color()), [0.2126, 0.7152, 0.0722]) for line in ax.lines]
    assert np.all(np.diff(luminance) > 0)
    assert 0.6 < rgb_to_hsv(to_rgb(ax.lines[0].get_color()))[0] < 0.8  # blue to violet
    few = axes()  # two fractions have the colours that they have among six
    plots.curves(few, corrupted(networks=1, orders=2).query("corruption in (0, 1)"), hue="corruption")
    assert [line.get_color() for line in few.lines] == [ax.lines[0].get_color(), ax.lines[-1].get_color()]


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "digits · MLP 2×128 · 90 epochs · 4 networks × 10 orders"),
        ({"width": (512, 256)}, "digits · MLP 512-256 · 90 epochs · 4 networks × 10 orders"),
        ({"width": np.array([64, 64, 64])}, "digits · MLP 3×64 · 90 epochs · 4 networks × 10 orders"),
        (
            {"n_train": 10_000},
            "digits · 10,000 training images · MLP 2×128 · 90 epochs · 4 networks × 10 orders",
        ),
        (
            {"dropout": 0.2, "epochs": 1},
            "digits · MLP 2×128 · dropout 0.2 · 1 epoch · 4 networks × 10 orders",
        ),
        (
            {"corruption": 0.5},
            "digits · MLP 2×128 · 50 % of labels corrupted · 90 epochs · 4 networks × 10 orders",
        ),
        ({"epoch": 10}, "digits · MLP 2×128 · after 10 of 90 epochs · 4 networks × 10 orders"),
        (CONVNET, "cifar10-jpeg · ConvNet 1/8 width · 100 epochs · 4 networks × 10 orders"),
        (
            CONVNET | {"dataset": "folder:../x/cifar10-jpeg", "batch_norm": False, "width": None},
            "cifar10-jpeg · ConvNet full width · no batch norm · 100 epochs · 4 networks × 10 orders",
        ),
        *(
            (CONVNET | {"width": width}, f"cifar10-jpeg · ConvNet {name} width · 100 epochs · 4 networks × 10 orders")
            for width, name in ((0.01, "0.01"), (0.001, "0.001"), (1 / 3, "1/3"), (1.5, "3/2"))
        ),
        (RESNET50, "imagenette96 · ResNet-50 full width · 40 epochs · 4 networks × 10 orders"),
        (
            {"cumulative_device": "x86_64", "history_device": "arm64"},
            "digits · MLP 2×128 · 90 epochs · 4 networks × 10 orders · CPU",
        ),
        (
            {"noise_device": "NVIDIA H100 80GB HBM3"},
            "digits · MLP 2×128 · 90 epochs · 4 networks × 10 orders · NVIDIA H100 80GB HBM3",
        ),
    ],
)
def test_the_note_says_what_a_table_was_made_from(fields, text):
    rows = [recipe(f"n{s}", seed=s, **fields) | {"order": order} for s in range(4) for order in range(10)]
    assert plots.note(pd.DataFrame(rows)) == text


def test_the_note_gives_ranges_and_networks_per_setting():
    table = corrupted(networks=3, orders=1)
    assert plots.note(table) == "digits · MLP 2×128 · 90 epochs · 18 networks (3 per setting) × 1 order"
    uneven = table[~table["network"].isin([str({"corruption": 1.0}) + "2"])]
    assert "17 networks (2–3 per setting)" in plots.note(uneven)
    assert plots.note(sweep(10)).endswith("· 100 epochs · 10 networks")  # all settings differ
    both = pd.DataFrame([recipe("a", width=128), recipe("b", width=2048, epochs=60)])
    assert plots.note(both) == "digits · MLP 2×128 to 2×2048 · 60–90 epochs · 2 networks"
    devices = pd.DataFrame(
        [
            recipe("a", ranked_device="aarch64"),
            recipe("b", noise_device="NVIDIA H100"),  # as in two tables one below the other
            recipe("c", noise_device="x86_64"),
        ]
    )
    assert plots.note(devices).endswith("3 networks · CPU + NVIDIA H100")
    assert plots.note(devices.iloc[[0]]).endswith("1 network · CPU")
    models = pd.DataFrame([recipe("a"), recipe("b", **CONVNET)])
    assert plots.note(models).startswith("digits + cifar10-jpeg · MLP 2×128 + ConvNet 1/8 width · ")
    arms = pd.DataFrame([recipe(str(lr), batch_norm=lr > 0.002, lr=lr, batch_size=64) for lr in (0.001, 0.004)])
    assert "· learning rate 0.004, without batch norm 0.001 ·" in plots.note(arms)
    settings = pd.DataFrame([recipe(f"{lr}{size}", lr=lr, batch_size=size) for lr in (0.1, 1) for size in (32, 64)])
    assert "· learning rate 0.1–1 · batch size 32–64 ·" in plots.note(settings)
    default = pd.DataFrame([recipe("a", width=None, n_train=None), recipe("b", width=16, n_train=200)])
    assert plots.note(default) == "digits · MLP 2×16 to 2×128 · 90 epochs · 2 networks"


def test_depth_counts_the_layers():
    table = units(RESNET, 2, networks=2)
    assert list(plots.depth(table).unique()) == list(range(1, 50))


@pytest.mark.parametrize("preset", ["digits", "paper"])
def test_levels_keep_their_colours_in_the_palette_of_the_picture(preset):
    """In the committed figures: where a palette is chosen by area, the darkest two learning rates of Fig. 3b become one."""
    folder = Path(__file__).parents[1] / "figures" / preset
    fills = set(re.findall("fill: #([0-9a-f]{6})", (folder / "fig3b.svg").read_text()))
    levels = [
        [int(fill[i : i + 2], 16) for i in (0, 2, 4)] for fill in fills if len({fill[:2], fill[2:4], fill[4:]}) > 1
    ]
    assert len(levels) == 6
    with Image.open(folder / "fig3.png") as picture:
        drawn = np.unique(np.asarray(picture.convert("RGB"), dtype=int).reshape(-1, 3), axis=0)
    for level in levels:
        assert abs(drawn - level).max(axis=1).min() <= 8


@pytest.mark.parametrize("preset", ["digits", "paper"])
def test_greys_are_grey_in_the_palette_of_the_picture(preset):
    """In the committed figures: nearest colours of a palette gave the grid of Fig. X2 the tint of one of its bands."""
    with Image.open(Path(__file__).parents[1] / "figures" / preset / "x2.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int).reshape(-1, 3)
    colors = np.unique(pixels, axis=0)
    for grey in (255, 239):  # paper and grid
        nearest = colors[abs(colors - grey).max(axis=1) <= 6]
        assert len(nearest) and np.ptp(nearest, axis=1).min() <= 1
