"""A browser, the static page, and what must hold of everything that is shown in it.

These tests run where REPRO_BROWSER_TESTS=1, which asks for a Chromium (found, or named in REPRO_CHROMIUM); elsewhere they
are skipped. `make test-browser` sets it.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [  # nothing in the background, nothing that needs a display or a sandbox
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
GET_ONE = "no Chromium found: install one (Debian: apt-get install chromium), or name one in REPRO_CHROMIUM"


def chromium():
    """Path of a Chromium, or None."""
    if named := os.environ.get("REPRO_CHROMIUM"):
        return named if Path(named).exists() else None
    return next(filter(None, map(shutil.which, NAMES)), None)


def why_not():
    """Why these tests cannot run here, or None."""
    if os.environ.get("REPRO_BROWSER_TESTS") != "1":
        return "tests in a browser run with: make test-browser"
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install '.[test]'"
    return None if chromium() else GET_ONE


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: needs a Chromium")


def pytest_collection_modifyitems(items):
    reason = why_not()
    if reason and os.environ.get("REPRO_BROWSER_TESTS") == "1":
        raise pytest.UsageError(reason)  # where they were asked for, nothing is skipped
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The page and, to compare with, the diagrams on it; a store with their networks."""
    from PIL import Image

    from repro import site

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_STORE", str(folder / "store"))
        patch.setenv("REPRO_FIGURES", str(folder / "figures"))
        patch.setenv("REPRO_DEVICE", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        figures = folder / "figures" / "digits"
        figures.mkdir(parents=True)
        Image.new("RGB", (600, 290), "white").save(figures / "fig1.png", dpi=(200, 200))
        effect = {"name": "ρ", "estimate": -0.9, "low": -0.95, "high": None, "judged": True}
        verdict = {"claim": "C1", "subject": "mlp on digits", "statement": "It falls.", "verdict": "partly"}
        (figures / "scorecard.json").write_text(json.dumps([verdict | {"effects": [effect] * 9}]))
        path = site.write("digits")
        deletion, importance, memorization = site.diagrams()
    return SimpleNamespace(
        path=path,
        store=folder / "store",
        deletion=deletion,
        importance=importance,
        memorization=memorization,
    )


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, made):
    """A function that opens the static page; at the end, the page must have asked nothing of any network and be free of
    errors."""
    contexts, asked, errors = [], [], []

    def open_page(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(made.path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [made.path.as_uri()] * len(contexts)


@pytest.fixture
def page(open_page):
    return open_page()
