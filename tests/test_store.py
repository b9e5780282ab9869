"""The cache on disk: what goes in comes out, whole, or not at all."""

import errno
import multiprocessing
import os
import signal
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from repro import store

ORIGIN = {"recipe": {"dataset": "digits", "lr": 0.1, "strides": [1, 2]}, "format": 1}
TENSORS = {
    "linear.weight": torch.arange(12.0).reshape(3, 4).half(),
    "running_var": torch.tensor([0.1, 0.2]),
    "num_batches_tracked": torch.tensor(7),
}
TABLE = pd.DataFrame(
    {
        "layer": ["relu1", "relu1", "relu2"],
        "unit": np.arange(3),
        "selectivity": [0.25, np.nan, 1.0],
        "dead": [False, True, False],
    }
)


def write_network(path, origin=ORIGIN):
    store.write_tensors(path, TENSORS, origin, {"seconds": 1.5, "device": "x86_64"})


def write_table(path, origin=ORIGIN):
    store.write_table(path, TABLE, origin, {"seconds": 1.5, "device": "x86_64"})


@pytest.fixture(params=["network", "table"])
def kind(request):
    """(a path in the store, its writer, its reader) for both kinds of file."""
    if request.param == "network":
        return store.network_path("k"), write_network, store.read_tensors
    return store.table_path("k"), write_table, store.read_table


# Round trip -------------------------------------------------------------------------------------------------


def test_tensors_come_back_as_they_were(tmp_path):
    path = tmp_path / "a" / "k.safetensors"
    write_network(path)
    found = store.read_tensors(path, ORIGIN)
    assert found.keys() == TENSORS.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in TENSORS.items())


def test_tensors_of_any_layout_are_stored(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    store.write_tensors(tmp_path / "k.safetensors", {"w": weight, "t": weight.transpose(0, 1)}, ORIGIN)
    found = store.read_tensors(tmp_path / "k.safetensors", ORIGIN)
    assert torch.equal(found["w"], weight) and torch.equal(found["t"], weight.transpose(0, 1))


def test_a_table_comes_back_as_it_was(tmp_path):
    path = tmp_path / "a" / "k.parquet"
    write_table(path)
    found = store.read_table(path, ORIGIN)
    pd.testing.assert_frame_equal(found, TABLE, check_dtype=False)
    assert (
        found.dtypes[["unit", "selectivity", "dead"]].tolist() == TABLE.dtypes[["unit", "selectivity", "dead"]].tolist()
    )


def test_a_file_says_what_it_was_made_from_and_with(kind):
    path, write, _ = kind
    write(path)
    entry = store.read_entry(path)
    assert entry.path == path and entry.origin == ORIGIN
    assert entry.made["seconds"] == 1.5 and entry.made["device"] == "x86_64"
    assert entry.made["torch"] == torch.__version__
    assert {"python", "torch", "commit", "device", "seconds"} == set(entry.made)


def test_columns_come_with_how_they_were_made():
    path = store.table_path("k")
    write_table(path)
    columns, made = store.read_columns(path, ORIGIN)
    pd.testing.assert_frame_equal(columns.to_pandas(), TABLE, check_dtype=False)
    assert made == store.read_entry(path).made


def test_what_is_not_there_is_none(kind):
    path, _, read = kind
    assert read(path, ORIGIN) is None
    with pytest.raises(store.Damaged, match="no such file"):
        store.read_entry(path)


def test_the_folder_of_the_store(monkeypatch, tmp_path):
    assert store.root() == tmp_path / "store"
    monkeypatch.delenv("REPRO_STORE")
    assert store.root() == store.REPOSITORY / "data"
    assert store.network_path("k", 5).name == "k@5.safetensors"


def test_a_second_writing_replaces_the_first(kind):
    path, write, read = kind
    write(path, ORIGIN | {"format": 0})
    write(path)
    assert read(path, ORIGIN) is not None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_noticed(kind):
    path, write, read = kind
    write(path)
    content = path.read_bytes()
    seal = content.index(store.SEAL)
    places = {*range(0, len(content), 7), *range(seal - 3, seal + 80, 2), len(content) - 1}
    for at in places:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(store.Damaged, match=f"{path}.*delete the file"):
            read(path, ORIGIN)
    path.write_bytes(content)
    assert read(path, ORIGIN) is not None


def test_a_truncated_or_longer_file_is_noticed(kind):
    path, write, read = kind
    write(path)
    content = path.read_bytes()
    for size in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        for look in (lambda: read(path, ORIGIN), lambda: store.read_entry(path)):
            with pytest.raises(store.Damaged, match="checksum"):
                look()
    path.write_bytes(content + b"\0")
    with pytest.raises(store.Damaged, match="checksum"):
        read(path, ORIGIN)


def test_a_renamed_file_is_noticed(kind):
    path, write, read = kind
    write(path)
    other = path.with_stem("other")
    path.rename(other)
    with pytest.raises(store.Damaged, match=f"written as {path.name}"):
        read(other, ORIGIN)


@pytest.mark.parametrize(
    "origin",
    [
        ORIGIN | {"recipe": ORIGIN["recipe"] | {"lr": 0.2}},
        ORIGIN | {"format": 2},
        ORIGIN | {"epoch": 3},
        {"recipe": ORIGIN["recipe"]},
    ],
)
def test_another_origin_is_noticed(kind, origin):
    path, write, read = kind
    write(path)
    with pytest.raises(store.Damaged, match="made from"):
        read(path, origin)


def test_a_field_newer_than_the_file_is_no_other_origin(kind):
    path, write, read = kind
    write(path)
    assert read(path, ORIGIN | {"recipe": ORIGIN["recipe"] | {"augmentation": "none"}}) is not None
    with pytest.raises(store.Damaged, match="made from"):  # nor is one forgotten that the file knows
        read(path, ORIGIN | {"recipe": {"dataset": "digits", "lr": 0.1}})


def test_another_file_format_is_noticed(kind, monkeypatch):
    path, write, read = kind
    write(path)
    monkeypatch.setattr(store, "FORMAT", "2")
    with pytest.raises(store.Damaged, match="format 1, this version reads 2"):
        read(path, ORIGIN)


def test_a_file_that_cannot_be_read_is_no_missing_file(kind, monkeypatch):
    path, write, read = kind
    write(path)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(store.Damaged, match=f"{path}: cannot be read .Permission denied"):
        read(path, ORIGIN)


def test_a_folder_in_place_of_a_file_is_no_missing_file(kind):
    path, _, read = kind
    path.mkdir(parents=True)
    with pytest.raises(store.Damaged, match="cannot be read"):
        read(path, ORIGIN)


# Writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(kind, monkeypatch, step):
    path, write, read = kind
    write(path, ORIGIN)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, step, fail)
    with pytest.raises(OSError, match=f"cannot write {path}: No space left.*REPRO_STORE") as error:
        write(path, ORIGIN | {"format": 2})
    assert error.value.errno == errno.ENOSPC
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before and read(path, ORIGIN) is not None


def test_a_place_that_cannot_be_written_is_named(kind, tmp_path, monkeypatch):
    _, write, _ = kind
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write .*REPRO_STORE"):
        write(store.network_path("k"))


def test_a_file_appears_only_when_complete(kind, monkeypatch):
    path, write, _ = kind
    replace, seen = os.replace, []

    def look(source, target):
        seen.append((path.exists(), source.parent == path.parent))
        replace(source, target)

    monkeypatch.setattr(store.os, "replace", look)
    write(path)
    assert seen == [(False, True)] and path.exists()


# Locks ------------------------------------------------------------------------------------------------------

fork = multiprocessing.get_context("fork")


def hold(key, ready):
    with store.lock(key):
        ready.set()
        signal.pause()


@pytest.fixture
def holder():
    """Another process that holds the lock "k"."""
    ready = fork.Event()
    process = fork.Process(target=hold, args=("k", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_lock_is_busy_elsewhere_until_its_holder_is_killed(holder):
    with store.lock("k", wait=False) as mine:
        assert mine is False
    with store.lock("another", wait=False) as mine:
        assert mine is True
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with store.lock("k", wait=False) as mine:
        assert mine is True


def test_waiting_for_a_lock_ends_when_it_is_free(holder):
    threading.Timer(0.3, holder.kill).start()
    with store.lock("k") as mine:
        assert mine is True
        holder.join(60)  # its files are closed a moment before it is gone
        assert holder.exitcode == -signal.SIGKILL


def test_a_lock_is_free_after_use_and_after_an_error():
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), store.lock("k"):
            raise RuntimeError("inside")
    with store.lock("k", wait=False) as mine:
        assert mine is True
