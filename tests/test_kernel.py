"""Kernels that are forked: notebooks must not notice."""

import json
import signal
from pathlib import Path

import nbformat
import pytest

from repro import execution, notebooks

pytestmark = pytest.mark.skipif(not execution.FORK, reason="kernels are forked on Linux alone")

SURROUNDINGS = """
import json, os, signal, torch
torch.rand(64, 64, 64).sum()  # on all threads
print(json.dumps({
    "folder": os.getcwd(),
    "environment": {k: v for k, v in os.environ.items() if not k.startswith(("JPY_", "PYTEST_"))},
    "threads": torch.get_num_threads(),
    "module": __name__,
    "shell": type(get_ipython()).__name__,
    "leads its group": os.getpgrp() == os.getpid(),
    "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "parameter": parameter,
}))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook of one cell by forking; gives what `execution.run` does."""
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "data"))
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)

    def run(source, **parameters):
        first = nbformat.v4.new_code_cell("parameter: int = 1", metadata={"tags": ["parameters"]})
        cells = [first, nbformat.v4.new_code_cell(source)]
        kind = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kind), tmp_path / "fig1.ipynb")
        return execution.run(["fig1"], {"fig1": parameters}, "digits", 1)["fig1"]

    return run


def said(path):
    return json.loads(nbformat.read(path, as_version=4).cells[-1].outputs[0].text)


def test_a_forked_kernel_has_what_one_of_its_own_program_has(run, tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("REPRO_SOMETHING", "here")
    forked = run(SURROUNDINGS, parameter=7)
    assert forked["error"] == ""
    forked = said(forked["output"])
    for name in ("OMP_NUM_THREADS", "REPRO_JOBS", "REPRO_PROGRESS", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.setenv(name, forked["environment"][name])
    papermill.execute_notebook(
        tmp_path / "fig1.ipynb", tmp_path / "plain.ipynb", {"parameter": 7}, cwd=tmp_path, progress_bar=False
    )
    plain = said(tmp_path / "plain.ipynb")
    assert forked == plain
    assert forked["parameter"] == 7 and forked["leads its group"] and forked["environment"]["REPRO_SOMETHING"] == "here"


def test_what_notebooks_import_is_there_when_a_forked_kernel_starts(run):
    result = run("import sys; print(int('seaborn' in sys.modules and 'repro.claims.paper' in sys.modules))")
    assert said(result["output"]) == 1


def test_an_error_in_a_forked_kernel_is_told(run):
    result = run("print(1)\nraise ValueError('no such thing\\nat all')")
    assert result["error"] == "in the cell that begins 'print(1)': ValueError: no such thing"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_forked_kernel_that_is_killed_is_missed(number, run):
    assert "Kernel died" in run(f"import os\nos.kill(os.getpid(), {int(number)})")["error"]


def test_what_a_notebook_leaves_running_ends_with_its_kernel(run):
    result = run("import subprocess\nprint(subprocess.Popen(['sleep', '1000']).pid)")
    assert result["error"] == ""
    pid = said(result["output"])
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
