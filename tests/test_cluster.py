"""A sweep on a Dask cluster of two processes on this machine, one of which is lost half way."""

import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from repro import experiment, store
from repro.experiment import measure
from repro.training import Recipe

Client = pytest.importorskip("dask.distributed").Client
RECIPES = [Recipe("digits", width=32, n_train=300, epochs=30, seed=seed) for seed in range(12)]


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler, and its two workers."""
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    note = tmp_path / "scheduler.json"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(note)]
    processes = [subprocess.Popen([*dask, *options], **quiet)]
    for name in ("one", "two"):
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--name", name]
        processes.append(subprocess.Popen([*worker, "--scheduler-file", str(note), *options], **quiet))
    deadline = time.monotonic() + 60
    while not note.exists():
        assert time.monotonic() < deadline, "the scheduler did not start"
        time.sleep(0.1)
    try:
        with Client(scheduler_file=str(note)) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_sweep_survives_the_loss_of_a_worker(cluster, tmp_path, monkeypatch):
    serial = measure("cumulative", RECIPES, orders=2)
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "elsewhere"))
    assert not list(store.paths())

    address, workers = cluster
    monkeypatch.setenv("REPRO_SCHEDULER", address)
    lost = []

    def lose_one():
        while len(list(store.paths())) < 6:  # networks and tables of a few of the twelve recipes
            time.sleep(0.02)
        lost.append(len(list(store.paths())))
        workers[0].kill()

    killer = threading.Thread(target=lose_one, daemon=True)
    killer.start()
    clustered = measure("cumulative", RECIPES, orders=2)
    killer.join(timeout=10)

    assert lost and lost[0] < 2 * len(RECIPES), "the worker was lost after the work was done"
    pd.testing.assert_frame_equal(clustered, serial, rtol=1e-5)
    assert len(list(store.paths())) == 2 * len(RECIPES)


@pytest.fixture
def half_installed(tmp_path):
    """Where the processes of the cluster look first, a library that they cannot import."""
    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "__init__.py").write_text("raise ImportError('no torch here')")


def test_a_cluster_that_lacks_the_library_is_refused(half_installed, cluster, monkeypatch):
    monkeypatch.setenv("REPRO_SCHEDULER", cluster[0])
    with pytest.raises(ValueError, match=r"REPRO_SCHEDULER: .* need repro installed \(no torch here"):
        measure("cumulative", RECIPES[:2], orders=2)


def test_a_cluster_without_workers_is_waited_for_and_then_said_to_have_none(cluster, monkeypatch):
    address, workers = cluster
    for worker in workers:
        worker.kill()
    with Client(address) as client:
        while client.ncores():
            time.sleep(0.1)
    monkeypatch.setenv("REPRO_SCHEDULER", address)
    monkeypatch.setattr(experiment, "WORKERS_WITHIN", 0.5)
    with (
        pytest.warns(UserWarning, match=f"{address} has no workers yet"),
        pytest.raises(TimeoutError, match=f"no worker came to {address}; start some: dask worker {address}"),
    ):
        measure("cumulative", RECIPES[:2], orders=2)
