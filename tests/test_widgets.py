"""The Python side of the diagrams, their colours, and the page they are put into."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from repro import ablation, cli, data, experiment
from repro.recipe import Recipe, training_set
from repro.widgets import Deletion, Importance, Memorization, diagram, memorization
from repro.widgets.importance import supposed

SMALL = {"dataset": "digits", "model": "mlp", "epochs": 3, "width": (8, 6)}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def deletion():
    return Deletion(Recipe(**SMALL))


# What travels to the browser ------------------------------------------------------------------------------------------------


def test_numbers_survive_packing():
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    assert (diagram.unpack(diagram.pack(values)) == values.ravel()).all()
    assert diagram.unpack(diagram.pack([0, 3, 255], "uint8")).tolist() == [0, 3, 255]


@pytest.mark.parametrize("name", ["deletion", "importance", "memorization"])
def test_a_module_stands_alone(name):
    source = diagram.module(name)
    assert not re.search(r"^\s*import\b", source, re.MULTILINE)
    assert source.count("export default") == 1
    assert "export function forward" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")  # a name, not an address


def test_every_import_from_shared_exists():
    exported = set(
        re.findall(r"^export (?:function|const) (\w+)", (diagram.HERE / "shared.js").read_text(), re.MULTILINE)
    )
    for name in ("deletion", "importance", "memorization"):
        imported = re.search(
            r"^import \{ (.*) \} from \"./shared.js\";$", (diagram.HERE / f"{name}.js").read_text(), re.MULTILINE
        )
        assert set(imported[1].split(", ")) <= exported


def test_deletion_carries_the_whole_network(deletion):
    x = data.load("digits").x_test
    layers = [
        {key: diagram.unpack(values).astype(np.float64) for key, values in layer.items()}
        for layer in deletion.data["layers"]
    ]
    images = diagram.unpack(deletion.data["images"]).reshape(len(x), -1).astype(np.float64)
    h = images
    for depth, layer in enumerate(layers):
        h = h @ layer["weight"].reshape(len(layer["bias"]), -1).T + layer["bias"]
        h = np.maximum(h, 0) if depth < 2 else h
    torch.testing.assert_close(torch.from_numpy(h).float(), deletion.network(x), atol=1e-4, rtol=1e-4)
    assert deletion.data["units"] == [["relu1", 8], ["relu2", 6]]
    assert len(deletion.data["random"]["mean"]) == 15  # after 0 to 14 deletions
    json.dumps(deletion.state())


def test_deletion_refuses_what_is_not_there(deletion):
    deletion.deleted = [["relu1", 7], ("relu2", 0)]
    assert deletion.deleted == [["relu1", 7], ["relu2", 0]]
    twice, half = [["relu1", 2], ["relu1", 2]], [["relu1", 0.7]]
    for wrong in ([["relu1", 8]], [["relu9", 0]], [["relu1", -1]], twice, half, [None], [["relu1"]]):
        with pytest.raises(ValueError, match="deleted: expected"):
            deletion.deleted = wrong
    deletion.image = 359
    with pytest.raises(ValueError, match="image: expected 0 to 359"):
        deletion.image = 360
    assert repr(deletion) == "Deletion(deleted=[['relu1', 7], ['relu2', 0]], image=359)"


def test_deletion_refuses_networks_it_cannot_draw():
    with pytest.raises(ValueError, match="recipe: expected an MLP"):
        Deletion(Recipe("digits", "convnet", width=0.05, epochs=1))
    with pytest.raises(ValueError, match="recipe: expected at most 24 units"):
        Deletion(Recipe(**SMALL | {"width": 25, "epochs": 1}))


@pytest.fixture
def little(monkeypatch):
    """Puts two classes of 3 and 9 images in place of digits, grey or with so many channels."""

    def replaced(channels):
        rng, y = torch.Generator().manual_seed(0), torch.tensor([0] * 3 + [1] * 9)
        x = torch.rand(12, channels, 5, 4, generator=rng)
        monkeypatch.setattr(data, "load", lambda name: data.Dataset(name, x, y, x, y, ("a", "b")))

    return replaced


def test_diagrams_refuse_images_with_colours(little):
    little(channels=3)
    recipe = Recipe(**SMALL)
    with pytest.raises(ValueError, match="recipe: expected a data set of grey images, one channel each, got 3"):
        Deletion(recipe)
    with pytest.raises(ValueError, match="true: expected a data set of grey images, one channel each, got 3"):
        Memorization(recipe, Recipe(**SMALL, corruption=1.0))


def test_memorization_shows_as_many_images_as_each_class_has(little):
    little(channels=1)
    widget = Memorization(Recipe(**SMALL), Recipe(**SMALL, corruption=1.0))
    assert diagram.unpack(widget.data["networks"]["true"]["labels"]).tolist() == [0, 1] * 3
    assert len(diagram.unpack(widget.data["images"])) == 6 * 5 * 4


@pytest.mark.parametrize("strength", [0.85, 0.0, -0.85])
def test_supposed_importances_are_the_measured_ones_in_another_order(strength):
    rng = np.random.default_rng(1)
    x, y = rng.random(600), rng.standard_normal(600) ** 3
    moved = supposed(x, y, strength)
    assert (np.sort(moved) == np.sort(y)).all()
    assert pd.Series(x).corr(pd.Series(moved), method="spearman") == pytest.approx(strength, abs=0.1)
    assert (moved == supposed(x, y, strength)).all()
    assert supposed(x, y, 1.0)[np.argsort(x)].tolist() == np.sort(y).tolist()
    with pytest.raises(ValueError, match="strength: expected"):
        supposed(x, y, 1.5)


def test_importance_of_a_layer_with_one_living_unit_has_no_correlation():
    widget = Importance([Recipe("digits", width=(1, 8), n_train=256, epochs=2)])
    steps = json.loads(json.dumps(widget.data["steps"], allow_nan=False))  # as a page reads them
    assert steps["measured"]["within"][0] is None


def test_importance_joins_the_two_tables():
    recipes = [Recipe(**SMALL, seed=seed) for seed in range(2)]
    widget = Importance(recipes)
    alone = experiment.measure("single_unit", recipes, split="test")
    index = ["network", "layer", "unit"]
    expected = alone.set_index(index).delta_loss[pd.MultiIndex.from_frame(widget.table[index])]
    assert (widget.table.delta_loss.to_numpy() == expected.to_numpy()).all()
    assert not widget.table.selectivity.isna().any()
    measured = widget.data["steps"]["measured"]
    assert measured["rho"] == pytest.approx(widget.table.selectivity.corr(widget.table.delta_loss, method="spearman"))
    assert len(measured["within"]) == 2
    with pytest.raises(Exception, match="step"):
        widget.step = "somewhat"
    json.dumps(widget.state())


def test_memorization_answers_are_those_of_the_curves():
    recipe = Recipe(**SMALL, corruption=1.0)
    x, y = training_set(recipe)
    curves = experiment.measure("cumulative", [recipe], orders=3, steps=4)
    counts = sorted(curves.n_ablated.unique())
    said = memorization.answers(experiment.network(recipe), x, counts, orders=3)
    assert said.shape == (3, len(counts), len(x))
    right = (said == y.numpy()).mean(2)
    expected = curves.pivot(index="order", columns="n_ablated", values="accuracy").to_numpy()
    assert right == pytest.approx(expected, abs=2 / len(x))  # a tie may fall either way


def test_memorization_carries_both_networks():
    true, shuffled = Recipe(**SMALL), Recipe(**SMALL, corruption=1.0)
    widget = Memorization(true, shuffled)
    points = len(widget.data["fraction"])
    for name, recipe in (("true", true), ("shuffled", shuffled)):
        network = widget.data["networks"][name]
        accuracy = diagram.unpack(network["accuracy"]).reshape(10, points)
        table = experiment.measure("cumulative", [recipe], orders=10)
        assert accuracy[4] == pytest.approx(table.query("order == 4").accuracy.to_numpy(), abs=1e-6)
        assert len(diagram.unpack(network["labels"])) == 60
        assert len(diagram.unpack(network["answers"])) == 10 * points * 60
    assert diagram.unpack(widget.data["networks"]["true"]["labels"]).tolist() == [*range(10)] * 6
    for name, most in (("position", points - 1), ("order", 9)):
        with pytest.raises(ValueError, match=f"{name}: expected 0 to {most}"):
            setattr(widget, name, most + 1)
    with pytest.raises(ValueError, match="shuffled: expected the width"):
        Memorization(true, Recipe(**SMALL | {"width": (8, 8)}))
    json.dumps(widget.state())


def test_deletions_chosen_by_hand_are_an_order_of_ablation(deletion):
    deletion.deleted = [["relu2", 1], ["relu1", 0]]
    images = data.load("digits")
    curve = ablation.cumulative(deletion.network, images.x_test, images.y_test, orders=[deletion.deleted], steps=2)
    assert curve.n_ablated.tolist() == [0, 1, 2]


# Colours --------------------------------------------------------------------------------------------------------------------


def palettes():
    """{theme: {name: sRGB in [0, 1]}} of the style sheet."""
    css = diagram.style()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", css))
    fixed = dict(re.findall(r"--([\w-]+): (#\w{6});", css))
    themes = {}
    for i, theme in enumerate(("light", "dark")):
        names = {name: pair.split(", ")[i] for name, pair in pairs.items()} | fixed
        themes[theme] = {name: np.array([int(h[k : k + 2], 16) for k in (1, 3, 5)]) / 255 for name, h in names.items()}
    return themes


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG's contrast ratio, 1 to 21."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


# Linear RGB as seen without one kind of cone: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(rgb_linear):
    """CIE L*a*b* of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb_linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out(theme):
    colors = palettes()[theme]
    for name in ("text", "muted", "accent", "wrong", "true", "shuffled"):  # these colour words, too
        assert contrast(colors[name], colors["ground"]) >= 4.5, name
    for name in ("edge", "layer-0", "layer-1", "rim"):
        assert contrast(colors[name], colors["ground"]) >= 2.8, name
    assert contrast(colors["ink"], colors["paper"]) >= 7  # silent and active
    assert linear(colors["ink"]).sum() < linear(colors["paper"]).sum()  # darker means more active


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", SEEN)
def test_what_must_be_told_apart_can_be(theme, vision):
    colors = palettes()[theme]
    seen = {name: lab(np.array(SEEN[vision]) @ linear(rgb)) for name, rgb in colors.items()}
    for a, b in (
        ("accent", "wrong"),
        ("true", "shuffled"),
        ("layer-0", "layer-1"),
        ("ink", "paper"),
        ("wrong", "ground"),
    ):
        assert np.linalg.norm(seen[a] - seen[b]) > 25, (a, b)  # about ten times what is just noticeable


# The page and the notebook --------------------------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch, tmp_path):
    """`repro.site` with small, quickly trained networks."""
    from repro import site

    monkeypatch.setenv("REPRO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(site, "parameters", lambda: {"small": SMALL, "wide": SMALL, "networks": 2})
    return site


def test_page_contains_everything_and_asks_for_nothing(site, tmp_path):
    folder = tmp_path / "figures" / "digits"
    folder.mkdir(parents=True)
    from PIL import Image

    for name in ("fig2", "fig1", "figX"):
        Image.new("RGB", (20, 10)).save(folder / f"{name}.png")
    (folder / "fig1.json").write_text(json.dumps({"panels": {"a": {"title": "An <MLP>"}}}))
    effects = [{"name": "a < b", "estimate": 0.5, "low": 0.1, "high": None, "judged": True}]
    verdict = {"claim": "C1", "statement": "S & T", "subject": "mlp", "verdict": "not reproduced", "effects": effects}
    later = verdict | {"claim": "X1", "rule": "Reproduced: more than 3 > 2."}
    (folder / "scorecard.json").write_text(json.dumps([verdict, later]))
    path = site.write("digits")
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "figures" / "site" / "index.html"
    assert path.stat().st_size < 8e6
    for place in re.findall(r"(?:src|href)=\"([^\"]*)", page):
        assert place.startswith("data:")
    assert set(re.findall(r"https?://[^\s\"'<)]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page and "@import" not in page
    positions = [page.index(f"<figcaption>{title}") for title in ("Figure 1", "Figure 2", "figX")]
    assert positions == sorted(positions)
    assert "a: An &lt;MLP&gt;" in page and "S &amp; T" in page and "a &lt; b: <b>0.5</b>&nbsp;[0.1,&nbsp;–]" in page
    assert "✗ not reproduced" in page and "<summary>rule</summary>Reproduced: more than 3 &gt; 2.<" in page
    # Only the paper's claims have rules from before any training.
    order = ["before any network was trained", "<b>C1</b>", "when the networks of the paper", "<b>X1</b>"]
    assert sorted(order, key=page.index) == order
    states = json.loads(re.search(r'id="widgets">(.*?)</script>', page)[1])
    assert [state["module"] for state in states] == ["deletion", "importance", "memorization"]
    for state in states:
        assert f'id="{state["module"]}"' in page and f'id="{state["place"]}"' in page


def test_page_without_figures_shows_the_diagrams(site):
    page = site.write("paper").read_text()
    assert "<figure" not in page and "<table" not in page
    assert 'id="widget-deletion"' in page


def test_repro_site(site, capsys):
    assert cli.main(["site"]) == 0
    assert "index.html" in capsys.readouterr().out
    assert cli.main(["site", "--preset", "pocket"]) == 2
    assert "unknown preset 'pocket'" in capsys.readouterr().err


def test_notebook_is_committed_without_widget_state():
    notebook = nbformat.read(ROOT / "notebooks" / "interactive.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # The number of a widget that only a running kernel knows.
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_notebook_and_page_show_the_same_networks():
    from repro import site

    found = site.parameters()
    assert Recipe(**found["small"]).width == (16, 16)
    assert [Recipe(**found["wide"], seed=seed).width for seed in range(found["networks"])] == [128] * 4


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("recipe: expected a Recipe, got 'digits'", lambda: Deletion("digits")),
        ("true: expected a Recipe, got 'digits'", lambda: Memorization("digits", "digits")),
        ("recipes: expected a sequence, got Recipe.*not iterable", lambda: Importance(Recipe("digits"))),
        ("recipes: expected at least one Recipe, got none", lambda: Importance([])),
        ("recipes: expected Recipes, got 'digits'", lambda: Importance("digits")),
    ],
)
def test_diagrams_ask_for_recipes(words, make):
    with pytest.raises(ValueError, match=f"^{words}"):
        make()
