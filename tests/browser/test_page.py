"""The static page in a browser: what it shows is what the library computes."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from repro import ablation, data
from tests import plain


@pytest.fixture
def images():
    return data.load("digits")


def neuron(page, depth, unit):
    return page.get_by_role("button", name=f"Layer {depth + 1}, neuron {unit}", exact=True)


def press(page, name):
    page.get_by_role("button", name=name).click()


def settle(page):
    """Wait until everything that moves has arrived."""
    page.evaluate("Promise.allSettled(document.getAnimations().map((moving) => moving.finished)).then(() => null)")


def logits_shown(page):
    return [float(row.get_attribute("data-logit")) for row in page.locator(".deletion .outputs li").all()]


def score_shown(page):
    big = page.locator(".deletion .big")
    return float(big.get_attribute("data-value")), float(big.get_attribute("data-loss"))


def deleted_shown(page):
    """(depth, unit) of every deleted neuron."""
    layers = page.locator(".deletion [role=group]").all()
    found = [layer.locator("button").evaluate_all("all => all.map(b => b.ariaPressed === 'true')") for layer in layers]
    return [(depth, unit) for depth, layer in enumerate(found) for unit, gone in enumerate(layer) if gone]


def outputs(network, x, gone):
    """Logits with some units, (layer name, unit), clamped to zero, the plain way."""

    def clamp(name, h):
        return h.index_fill(1, torch.tensor([unit for layer, unit in gone if layer == name], dtype=torch.long), 0.0)

    return plain.logits(network, x, clamp)


# Neuron deletion ------------------------------------------------------------------------------------------------------------


def test_every_deletion_is_the_ablation_of_that_unit(page, made, images):
    network, layers = made.deletion.network, made.deletion.data["units"]
    table = ablation.single_unit(network, images.x_test, images.y_test).set_index(["layer", "unit"])
    for depth, (layer, n) in enumerate(layers):
        for unit in range(n):
            neuron(page, depth, unit).click()
            expected = outputs(network, images.x_test[:1], [(layer, unit)])[0]
            assert logits_shown(page) == pytest.approx(expected.tolist(), abs=1e-4)
            accuracy, loss = score_shown(page)
            assert accuracy == pytest.approx(table.accuracy[layer, unit], abs=1e-9)
            assert loss == pytest.approx(table.loss[layer, unit], abs=1e-4)
            page.keyboard.press("Enter")  # restores it
    assert deleted_shown(page) == []


def test_deletions_add_up_to_a_cumulative_curve(page, made, images):
    order = [("relu2", 3), ("relu1", 5), ("relu1", 12), ("relu2", 10)]
    curve = ablation.cumulative(made.deletion.network, images.x_test, images.y_test, orders=[order], steps=4)
    for (layer, unit), point in zip(order, curve.itertuples(), strict=False):
        assert score_shown(page) == pytest.approx((point.accuracy, point.loss), abs=1e-4)
        neuron(page, ["relu1", "relu2"].index(layer), unit).click()
    assert score_shown(page) == pytest.approx((curve.accuracy.iloc[-1], curve.loss.iloc[-1]), abs=1e-4)
    expected = outputs(made.deletion.network, images.x_test[:1], order)[0]
    assert logits_shown(page) == pytest.approx(expected.tolist(), abs=1e-4)
    press(page, "Restore all")
    assert score_shown(page) == pytest.approx((curve.accuracy[0], curve.loss[0]), abs=1e-4)


def test_without_any_neuron_the_output_biases_decide(page, made):
    for _ in range(32):
        press(page, "Delete a random neuron")
    assert len(deleted_shown(page)) == 32
    bias = made.deletion.network.head.bias
    assert logits_shown(page) == pytest.approx(bias.tolist(), abs=1e-6)
    said = page.locator(".deletion .outputs .said .digit")
    assert said.inner_text() == str(int(bias.argmax()))
    random = page.get_by_role("button", name="Delete a random neuron")
    assert random.get_attribute("aria-disabled") == "true"
    random.click(force=True)  # nothing left to delete
    assert len(deleted_shown(page)) == 32


def test_the_most_important_neuron_is_the_one_whose_ablation_costs_most(page, made, images):
    network = made.deletion.network
    table = ablation.single_unit(network, images.x_test, images.y_test)
    first = table.loc[table.loss.idxmax()]
    press(page, "Delete the most important")
    assert deleted_shown(page) == [(["relu1", "relu2"].index(first.layer), first.unit)]
    press(page, "Delete the most important")  # given that the first is gone
    gone = [(f"relu{depth + 1}", unit) for depth, unit in deleted_shown(page)]
    loss = {
        (layer, unit): F.cross_entropy(
            outputs(network, images.x_test, [(first.layer, first.unit), (layer, unit)]), images.y_test
        )
        for layer, n in made.deletion.data["units"]
        for unit in range(n)
        if (layer, unit) != (first.layer, first.unit)
    }
    assert set(gone) == {(first.layer, first.unit), max(loss, key=loss.get)}


def test_images_follow_one_another(page, made, images):
    for i in range(3):
        label = int(images.y_test[i])
        assert (
            page.locator(".deletion .picture").first.get_attribute("aria-label") == f"Test image {i}, labelled {label}"
        )
        expected = made.deletion.network(images.x_test[i : i + 1])[0]
        assert logits_shown(page) == pytest.approx(expected.tolist(), abs=1e-4)
        shares = [float(r.get_attribute("data-probability")) for r in page.locator(".deletion .outputs li").all()]
        assert shares == pytest.approx(expected.softmax(0).tolist(), abs=1e-4)
        press(page, "Next image")
    page.locator(".cell").nth(20).click()
    assert page.locator(".cell.shown").count() == 1
    assert "Test image" in page.locator(".deletion .picture").first.get_attribute("aria-label")


def test_the_wrong_images_are_marked(page, made, images):
    neuron(page, 1, 0).click()
    said = outputs(made.deletion.network, images.x_test, [("relu2", 0)]).argmax(1)
    wrong = set(np.flatnonzero(said != images.y_test))
    marked = page.locator(".cell.missed").evaluate_all("all => all.map(c => Number(c.dataset.image))")
    assert set(marked) == wrong


# Importance against interpretability ----------------------------------------------------------------------------------------


def test_every_step_shows_its_rank_correlation(page, made):
    table = made.importance.table
    real = table.selectivity.corr(table.delta_loss, method="spearman")
    widget = page.locator(".importance")
    seen = {}
    for step in ("Positive", "Negative", "None", "Measured"):
        assert widget.get_by_role("radio", name=step).is_checked()
        settle(page)
        seen[step] = float(widget.locator(".big").get_attribute("data-value"))
        # What stands on the screen, too: x to the right, y up.
        places = widget.locator("circle.unit").evaluate_all(
            "all => all.map(c => new DOMMatrix(getComputedStyle(c).transform)).map(m => [m.e, -m.f])"
        )
        x, y = pd.DataFrame(places).to_numpy().T
        assert len(x) == len(table)
        assert pd.Series(x).corr(pd.Series(y), method="spearman") == pytest.approx(seen[step], abs=0.01)
        said = widget.locator(".words").inner_text()
        widget.get_by_role("button", name="Next").click()
    assert widget.get_by_role("radio", name="Positive").is_checked()  # round again
    assert abs(real) < 0.5 and "hardly tells how much the network needs it" in said
    assert seen["Measured"] == pytest.approx(real, abs=1e-9)
    assert seen["Positive"] > 0.75 and seen["Negative"] < -0.75 and abs(seen["None"]) < 0.1


def test_dots_move_smoothly(page):
    settle(page)
    start, middle, end, duration = page.evaluate(
        """() => {
          const dot = document.querySelector("circle.unit");
          const height = () => new DOMMatrix(getComputedStyle(dot).transform).f;
          const start = height();
          document.querySelector("input[value=negative]").click();
          const [move] = dot.getAnimations();
          const { duration } = move.effect.getTiming();
          move.pause();
          move.currentTime = duration / 2;
          const middle = height();
          move.finish();
          return [start, middle, height(), duration];
        }"""
    )
    assert min(start, end) + 1 < middle < max(start, end) - 1
    assert 500 <= duration <= 2000  # milliseconds


@pytest.mark.parametrize("width", [360, 1280])
def test_the_compressed_axis_says_so(open_page, width):
    page = open_page(width=width)
    chart = page.locator(".importance .chart")
    label = chart.get_by_text("asinh-compressed").bounding_box()
    assert label["x"] + label["width"] <= chart.bounding_box()["x"] + chart.bounding_box()["width"]


def test_clicking_the_picture_goes_on(page):
    page.locator(".importance .chart").click(position={"x": 200, "y": 150})
    assert page.locator(".importance").get_by_role("radio", name="Negative").is_checked()


# Memorizing against generalizing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1])
def test_the_slider_shows_the_table(page, made, order):
    widget = page.locator(".memorization")
    for _ in range(order):
        widget.get_by_role("button", name="Another random order").click()
    slider = widget.get_by_role("slider")
    curves = {name: curve[curve.order == order] for name, curve in made.memorization.curves.items()}
    for position in (0, 1, 7, 13, 20):
        slider.fill(str(position))
        for name, curve in curves.items():
            shown = float(widget.locator(f".card.{name} .big").get_attribute("data-value"))
            assert shown == pytest.approx(curve.accuracy.iloc[position], abs=1e-6)
            wrong = widget.locator(f".card.{name} .tile.missed").count()
            share = 1 - wrong / widget.locator(f".card.{name} .tile").count()
            assert share == pytest.approx(shown, abs=0.25)  # sixty images stand for 1437
    assert "100 %" in slider.get_attribute("aria-valuetext")


def test_slider_thumb_stands_under_the_marker(page):
    widget = page.locator(".memorization")
    slider = widget.get_by_role("slider")
    for position in (0, 6, 20):
        slider.fill(str(position))
        box, marker = slider.bounding_box(), widget.locator(".marker").bounding_box()
        thumb = box["x"] + 13 + (box["width"] - 26) * position / 20
        assert marker["x"] + marker["width"] / 2 == pytest.approx(thumb, abs=1.5)


# Keyboard, touch, sizes, themes ---------------------------------------------------------------------------------------------


def test_everything_by_keyboard(page, made):
    neuron(page, 0, 0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "Arrow keys" in page.locator(".deletion .detail").inner_text()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert deleted_shown(page) == [(0, 2), (1, 2)]
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.ariaLabel") == "Layer 2, neuron 15"
    page.keyboard.press("Tab")  # the network is one stop
    assert page.evaluate("document.activeElement.textContent") == "Delete a random neuron"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Layer 2, neuron 15"
    page.locator(".importance").get_by_role("radio", name="Positive").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".importance").get_by_role("radio", name="Negative").is_checked()
    slider = page.locator(".memorization").get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expected = made.memorization.curves["shuffled"].query("order == 0").accuracy.iloc[2]
    shown = float(page.locator(".card.shuffled .big").get_attribute("data-value"))
    assert shown == pytest.approx(expected, abs=1e-6)


def test_touch(open_page):
    page = open_page(width=390, height=800, has_touch=True, is_mobile=True)
    neuron(page, 0, 4).tap()
    assert deleted_shown(page) == [(0, 4)]
    assert "neuron 4" in page.locator(".deletion .detail").inner_text()
    neuron(page, 0, 4).tap()
    assert deleted_shown(page) == []


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_widths(open_page, width):
    page = open_page(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("deletion", "importance", "memorization"):
        box = page.locator(f".repro.{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    for selector in (".deletion .neuron", ".deletion .outputs li", ".deletion .action", ".importance .steps label"):
        for box in [node.bounding_box() for node in page.locator(selector).all()]:
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    first, second = (neuron(page, 0, unit).bounding_box() for unit in (0, 1))
    assert second["y"] - first["y"] >= 24  # pixels between targets
    gap = neuron(page, 1, 0).bounding_box()["x"] - first["x"]
    assert gap >= 24


def _luminance(color):
    numbers = [float(n) for n in re.findall(r"[\d.]+", color)]
    numbers = numbers[:3] if color.startswith("rgb") else [255 * n for n in numbers[:3]]
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in numbers]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_darker_means_more_active_in_either_theme(open_page, made, images, theme):
    page = open_page(color_scheme=theme)
    settle(page)
    ground = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground > 0.8) == (theme == "light") and (ground < 0.05) == (theme == "dark")
    text = _luminance(page.evaluate("getComputedStyle(document.querySelector('.repro')).color"))
    assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) > 7
    # The colour as pixels, whichever way the browser writes it.
    shade = """node => {
      const context = document.createElement("canvas").getContext("2d");
      context.fillStyle = getComputedStyle(node).backgroundColor;
      context.fillRect(0, 0, 1, 1);
      return `rgb(${[...context.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
    }"""
    hidden = made.deletion.network.relu1(made.deletion.network.linear1(images.x_test[0].reshape(1, -1)))[0]
    shades = [_luminance(neuron(page, 0, unit).evaluate(shade)) for unit in range(16)]
    assert pd.Series(shades).corr(pd.Series(hidden.tolist()), method="spearman") < -0.95


def test_page_forbids_requests_and_shows_figures_and_scorecard(page):
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy and "http" not in policy
    image = page.locator("figure img")
    image.scroll_into_view_if_needed()
    assert image.evaluate("node => node.decode().then(() => node.naturalWidth)") == 600
    assert "Figure 1" in page.locator("figcaption").inner_text()
    assert "~ partly" in page.locator("td.verdict").inner_text()
    assert page.locator("td.effects summary").inner_text() == "6 more"
