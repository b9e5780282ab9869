"""Ctrl-C, or `timeout` and batch systems that end a job: whatever the command had started ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 120  # seconds


def until(holds):
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.1)


def alive(folder):
    """Processes that were given this folder: a notebook's, its kernel's, its workers'."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture
def at_work(tmp_path):
    """A command whose workers are training; what it says goes into a file."""
    folders = {"REPRO_STORE": str(tmp_path / "data"), "REPRO_FIGURES": str(tmp_path / "figures")}
    command = [sys.executable, "-m", "repro.cli", "figures", "fig1", "--jobs", "2"]
    command += ["-p", "mlp", "{dataset: digits, width: 64, epochs: 100000}"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, env=os.environ | folders, stdout=said, stderr=said, start_new_session=True)
    until(lambda: len(list(tmp_path.glob("data/work/*.lock"))) >= 2)  # two workers are at it
    assert len(alive(tmp_path)) >= 5
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_goes_on_when_the_command_has_ended(how, at_work, tmp_path):
    # From the keyboard the signal goes to the notebook's process, too.
    (os.killpg if how == signal.SIGINT else os.kill)(at_work.pid, how)
    assert at_work.wait(PATIENCE) == 130
    assert "interrupted; what was finished is in the store" in (tmp_path / "said").read_text()
    until(lambda: not alive(tmp_path))


def test_nothing_goes_on_when_the_command_was_killed(at_work, tmp_path):
    at_work.kill()
    assert at_work.wait(PATIENCE) == -signal.SIGKILL
    until(lambda: not alive(tmp_path))
