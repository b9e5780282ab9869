"""What every test starts from: an empty store, no data sets but the bundled one, the CPU, and no download."""

import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import settings

settings.register_profile("repro", deadline=None, derandomize=True)  # the same examples on every machine
settings.load_profile("repro")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "raw"))
    monkeypatch.setenv("REPRO_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes that a test starts
    for name in ("REPRO_JOBS", "REPRO_PROGRESS", "REPRO_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    opened = urllib.request.urlopen

    def local(url, *arguments, **options):
        if urlsplit(getattr(url, "full_url", url)).hostname not in ("127.0.0.1", "localhost"):
            raise urllib.error.URLError("tests use no network")
        return opened(url, *arguments, **options)

    monkeypatch.setattr(urllib.request, "urlopen", local)
    torch.set_num_threads(1)  # small tensors, and machines whose cores are busy: threads would wait for each other
    torch.manual_seed(0)
