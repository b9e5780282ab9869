"""The notebook in JupyterLab: the same diagrams, fed by a kernel at first and alone from then on."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
import torch

from repro import data
from tests import plain

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "interactive.ipynb"
SECONDS = 120  # for what a busy machine may take; an idle one needs a tenth


@pytest.fixture
def lab(made, tmp_path):
    """Address of the notebook in a JupyterLab that listens on this machine alone."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("print('Python knows', deletion.deleted)"))
    nbformat.write(book, tmp_path / "work.ipynb")
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    token = secrets.token_hex(16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    environment = (
        os.environ
        | home
        | {
            "REPRO_STORE": str(made.store),
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
    )
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={token}", f"--notebook-dir={tmp_path}", "--LabApp.news_url="]
    command += ["--LabApp.extension_manager=readonly", "--ServerApp.port_retries=0"]
    address = f"http://127.0.0.1:{port}"
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()[-2000:]
                time.sleep(0.3)
        yield f"{address}/lab/tree/work.ipynb?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def test_diagrams_in_jupyterlab(browser, lab, made):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    page.goto(lab)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # the kernel; before, Lab asks which one to use
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    widget = page.locator(".jp-OutputArea-output .repro.deletion")
    # The cell after the diagram deletes two units from Python.
    widget.get_by_role("button", name="Layer 1, neuron 3", exact=True, pressed=True).wait_for()
    widget.get_by_role("button", name="Layer 1, neuron 5", exact=True, pressed=True).wait_for()
    page.locator(".jp-OutputArea-output .repro.memorization").wait_for()  # the last cell
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count() == 0

    widget.get_by_role("button", name="Restore all").click()
    widget.get_by_role("button", name="Layer 1, neuron 12", exact=True).click()
    widget.get_by_role("button", name="Layer 1, neuron 12", exact=True, pressed=True).wait_for()
    assert widget.get_by_role("button", pressed=True).count() == 1
    images = data.load("digits")
    expected = plain.logits(
        made.deletion.network,
        images.x_test,
        lambda name, h: h.index_fill(1, torch.tensor([12]), 0.0) if name == "relu1" else h,
    )
    shown = [float(row.get_attribute("data-logit")) for row in widget.locator(".outputs li").all()]
    assert shown == pytest.approx(expected[0].tolist(), abs=1e-4)
    accuracy = float(widget.locator(".big").get_attribute("data-value"))
    assert accuracy == pytest.approx((expected.argmax(1) == images.y_test).float().mean().item(), abs=1e-6)

    importance = page.locator(".jp-OutputArea-output .repro.importance")
    importance.get_by_role("radio", name="Measured").check()
    rho = float(importance.locator(".big").get_attribute("data-value"))
    table = made.importance.table
    assert rho == pytest.approx(table.selectivity.corr(table.delta_loss, method="spearman"), abs=1e-6)

    memorization = page.locator(".jp-OutputArea-output .repro.memorization")
    memorization.get_by_role("slider").fill("8")
    for name, curves in made.memorization.curves.items():
        value = float(memorization.locator(f".card.{name} .big").get_attribute("data-value"))
        assert value == pytest.approx(curves.query("order == 0").accuracy.iloc[8], abs=1e-6)

    page.locator(".jp-CodeCell .jp-InputArea-editor").last.click()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("Python knows [['relu1', 12]]").wait_for()  # what was clicked
    context.close()
