"""Looking after a store: what its files are, what a fresh one replaces, what may go."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import torch

from repro import store
from repro.recipe import key


def read_all() -> tuple[list[store.Entry], int]:
    """All whole files of the store, and how many are damaged; each of those is named on standard error."""
    sound, damaged = [], 0
    for path in store.paths():
        try:
            sound.append(store.read_entry(path))
        except store.Damaged as error:
            if path.exists():  # a state of training goes when the training is done
                print(error, file=sys.stderr)
                damaged += 1
    return sound, damaged


def described(entry: store.Entry) -> str:
    """One line on a file: its name and size, what it holds, and the recipe's fields that are set."""
    kind = entry.origin.get("analysis", "state of training" if entry.path.parent.name == "work" else "network")
    at = f" epoch {entry.origin['epoch']}" if "epoch" in entry.origin else ""
    what = " ".join(f"{name}={value}" for name, value in entry.origin["recipe"].items() if value is not None)
    return f"{entry.path.name}  {entry.size / 1000:8.1f} kB  {kind}{at}  {what}"


def merge(files: set[Path], fresh: Path, final: Path) -> None:
    """Let files of a fresh store replace those of another. Where a network came out differently, as on another machine, all
    that was made of the old one is deleted. What another, interrupted run left in the fresh store stays."""
    changed = {_key(entry) for entry in map(store.read_entry, files) if _differs(entry, final)}
    stale = []
    if changed:
        new = {path.name for path in files}
        old = (path for kind in ("results/*.parquet", "checkpoints/*.safetensors") for path in final.glob(kind))
        stale = [path for path in old if path.name not in new and _made_of(path) in changed]
    for path in files:
        _move(path, final / path.parent.name / path.name)
    for path in stale:
        path.unlink()
    if stale:
        print(f"{len(stale)} files made of networks that came out differently here were removed", file=sys.stderr)
    if not any(fresh.glob("*/*.parquet")) and not any(fresh.glob("*/*.safetensors")):
        shutil.rmtree(fresh)


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        store.write_whole(target, path.read_bytes())  # a folder of the store may be a link to another disk
        path.unlink()


def _made_of(path: Path) -> str | None:
    """The key of the network that a file was made of; None if it is damaged."""
    try:
        return _key(store.read_entry(path))
    except store.Damaged:
        return None


def _differs(entry: store.Entry, final: Path) -> bool:
    """Whether a store holds this network, or this table, with other numbers; or damaged, when nobody can tell."""
    old = final / entry.path.parent.name / entry.path.name
    if not old.exists():
        return False
    try:
        if old.suffix == ".parquet":
            if (final / "checkpoints" / f"{_key(entry)}.safetensors").exists():  # then the network itself tells
                return False
            (new, _), (old, _) = (store.read_columns(path, entry.origin) for path in (entry.path, old))
            return not new.equals(old)
        new, old = (store.read_tensors(path, entry.origin) for path in (entry.path, old))
        return any(not torch.equal(tensor, old[name]) for name, tensor in new.items())
    except store.Damaged:
        return True


def report_orphans(entries: list[store.Entry]) -> None:
    """Say how many tables are of networks that the store lacks."""
    there = {_key(entry) for entry in entries if entry.path.parent.name == "checkpoints"}
    alone = [entry for entry in entries if entry.path.parent.name == "results" and _key(entry) not in there]
    if alone:
        print(f"{len(alone)} tables whose network is not kept here; --fresh trains it again")


def remove(entries: list[store.Entry], for_good: bool) -> None:
    """Say which files nothing refers to, and remove them `for_good`, except where somebody works on that network."""
    for entry in entries:
        print(described(entry))
    leftovers = store.leftovers()
    for path in leftovers:
        print(f"{path.name}  left by a process that was killed")
    number = len(entries) + len(leftovers)
    total = (sum(entry.size for entry in entries) + sum(path.stat().st_size for path in leftovers)) / 1e6
    if not for_good:
        print(f"{number} files, {total:.1f} MB; nothing is removed without --yes")
        return
    removed = 0
    for entry in entries:
        with store.lock(_key(entry), wait=False) as mine:
            if mine:
                entry.path.unlink(missing_ok=True)
            else:
                print(f"{entry.path.name} is left: its network is being trained or measured")
            removed += mine
    for path in leftovers:
        path.unlink(missing_ok=True)
    print(f"{removed + len(leftovers)} of {number} files removed")


def _key(entry: store.Entry) -> str:
    """The key of a file's network, by which it is locked, whether or not its recipe still has a meaning."""
    return key(entry.origin["recipe"])
