"""The cache on disk: networks as safetensors, tables as parquet, found by what they were made from.

    data/checkpoints/KEY.safetensors         a trained network; KEY@EPOCH: a snapshot on the way
    data/results/KEY.parquet                 the table of one analysis of one network
    data/work/                               locks, and states of networks in training (not committed)

A file's name is the key of its content's origin (a recipe; an analysis with its options and a recipe). The origin
itself stands in the file and is compared when the file is read; a checksum over the whole file stands in it too.
Files appear under their name only when complete. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors

HERE = Path(__file__).resolve().parents[1]
FORMAT = "1"
SEAL = b"repro-sha256:"
BLANK = b"0" * 64


class Damaged(Exception):
    """A file of the store is not what its name says; it is never used."""


def root() -> Path:
    """The store's folder: REPRO_STORE, by default ``data`` beside the library."""
    return Path(os.environ.get("REPRO_STORE") or HERE / "data")


def figures(preset: str) -> Path:
    """Where the pictures of a preset go: a folder of REPRO_FIGURES, by default of ``figures`` beside the library."""
    return Path(os.environ.get("REPRO_FIGURES") or HERE / "figures") / preset


@dataclass(frozen=True)
class Entry:
    """A file of the store without its content.

    Attributes
    ----------
    path : Path
    origin : dict
        What the content was made from: a recipe and an epoch, or an analysis and its options besides.
    made : dict
        Versions, commit, device and seconds of its making.
    """

    path: Path
    origin: dict
    made: dict


def network_path(key: str, epoch: int | None = None) -> Path:
    return root() / "checkpoints" / (f"{key}.safetensors" if epoch is None else f"{key}@{epoch}.safetensors")


def table_path(key: str) -> Path:
    return root() / "results" / f"{key}.parquet"


def state_path(key: str) -> Path:
    return root() / "work" / f"{key}.safetensors"


# Reading and writing one file -----------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], origin: dict, made: dict | None = None) -> None:
    """Write tensors with their origin."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _write(path, format_tensors(tensors, _header(path, origin, made)))


def read_tensors(path: Path, origin: dict) -> dict[str, torch.Tensor] | None:
    """The tensors of a file whose origin is `origin`; None where there is no file.

    Raises
    ------
    Damaged
        The file is damaged, of another format, or made from something else.
    """
    content = _read(path)
    if content is None:
        return None
    _compare(path, _parse_header(path, content), origin)
    return parse_tensors(content)


def write_table(path: Path, table: pd.DataFrame, origin: dict, made: dict | None = None) -> None:
    """Write a table with its origin."""
    columns = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, columns.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(columns)
        writer.add_key_value_metadata(_header(path, origin, made))
    _write(path, sink.getvalue().to_pybytes())


def read_table(path: Path, origin: dict) -> pd.DataFrame | None:
    """The table of a file whose origin is `origin`; None where there is no file. Raises as `read_tensors` does."""
    content = _read(path)
    if content is None:
        return None
    _compare(path, _parse_header(path, content), origin)
    return pq.ParquetFile(pa.BufferReader(content)).read().to_pandas()


def _header(path: Path, origin: dict, made: dict | None) -> dict[str, str]:
    return {
        "name": path.name,
        "origin": json.dumps(origin, sort_keys=True),
        "made": json.dumps(made_with() | (made or {})),
        "format": FORMAT,
        "seal": (SEAL + BLANK).decode(),
    }


def _write(path: Path, content: bytes) -> None:
    """Seal `content` and let it appear under `path` in one step."""
    at = content.index(SEAL) + len(SEAL)
    content = content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + len(BLANK) :]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; free space or set REPRO_STORE") from error


def _read(path: Path) -> bytes | None:
    """A file's content if its seal is whole; None where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror}); repair or delete it") from error
    at = content.find(SEAL) + len(SEAL)
    blank = content[:at] + BLANK + content[at + len(BLANK) :]
    if at < len(SEAL) or hashlib.sha256(blank).hexdigest().encode() != content[at : at + len(BLANK)]:
        raise _damaged(path, "its checksum does not fit")
    return content


def _parse_header(path: Path, content: bytes) -> dict[str, str]:
    """What `_header` wrote into a file."""
    try:
        if path.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])["__metadata__"]
        else:
            metadata = pq.read_metadata(pa.BufferReader(content)).metadata
            header = {name.decode(): value.decode() for name, value in metadata.items()}
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    if header.get("format") != FORMAT:
        raise _damaged(path, f"it has format {header.get('format')}, this version reads {FORMAT}")
    return header


def _compare(path: Path, header: dict[str, str], origin: dict) -> None:
    """A file must bear the name it was written under, and be made from `origin`.

    A field of a recipe that the file does not know yet is newer than the file; that it has its default value is in the
    name, the hash of those fields that differ from theirs.
    """
    if header["name"] != path.name:
        raise _damaged(path, f"it was written as {header['name']}")
    found = json.loads(header["origin"])
    recipe = {name: value for name, value in origin["recipe"].items() if name in found["recipe"]}
    if found != origin | {"recipe": recipe}:
        raise _damaged(path, f"it was made from {json.dumps(found)}, its name stands for {json.dumps(origin)}")


def _damaged(path: Path, reason) -> Damaged:
    return Damaged(f"{path}: not used, {reason}; delete the file and run again to make it anew")


# Locks, and what there is ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(key: str, wait: bool = True) -> Iterator[bool]:
    """Hold the right to make what `key` names; yields False where another process holds it and `wait` is off.

    The operating system lets go of the lock when its process ends, however it ends.
    """
    path = root() / "work" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file unlocks


def paths() -> list[Path]:
    """Every network and table of the store, sorted by name."""
    return sorted(root().glob("checkpoints/*.safetensors")) + sorted(root().glob("results/*.parquet"))


def read_entry(path: Path) -> Entry:
    """Origin and making of one file; raises Damaged where it cannot be trusted."""
    content = _read(path)
    if content is None:
        raise Damaged(f"{path}: no such file")
    header = _parse_header(path, content)
    return Entry(path, json.loads(header["origin"]), json.loads(header["made"]))


@functools.cache
def made_with() -> dict[str, str]:
    """Versions, commit and device that files written by this process were made with."""
    git = ["git", "-C", str(HERE)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "repro"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit, dirty = "unknown", ""
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit[:12] + ("+" if dirty else ""),
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
    }
