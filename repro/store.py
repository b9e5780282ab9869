"""The cache on disk: networks as safetensors, tables as parquet, found by what they were made from.

    data/checkpoints/KEY.safetensors         a trained network; KEY@EPOCH: a snapshot on the way
    data/results/KEY.parquet                 the table of one analysis of one network
    data/work/                               locks, states of networks in training, notebooks as executed
    data/fresh/                              a store of its own: what `repro figures --fresh` has made so far

Results are committed, and of the networks a few small ones.

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
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors

REPOSITORY = Path(__file__).resolve().parents[1]
FORMAT = "1"
SEAL = b"repro-sha256:"
BLANK = b"0" * 64
# The largest table that is read, in cells and in bytes unpacked: more than the class drops of a full ResNet-50 on 1,000 classes
# take, and far less than a decompression bomb.
LARGEST = 2**28


class Damaged(Exception):
    """A file of the store is not what its name says; it is never used."""


def root() -> Path:
    """The store's folder: REPRO_STORE, by default ``data`` beside the library."""
    return Path(os.environ.get("REPRO_STORE") or REPOSITORY / "data")


def figures(preset: str) -> Path:
    """Where the pictures of a preset go: a folder of REPRO_FIGURES, by default of ``figures`` beside the library."""
    return Path(os.environ.get("REPRO_FIGURES") or REPOSITORY / "figures") / plain_name("preset", preset)


def plain_name(argument: str, name: str) -> str:
    """A name that files or a folder may bear; else a ValueError that names the argument."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{argument}: expected a name of letters and digits, got {name!r}")
    return name


@dataclass(frozen=True)
class Entry:
    """A file of the store without its content.

    Attributes
    ----------
    path : Path
    origin : dict
        What the content was made from: a recipe and an epoch, or an analysis and its options besides.
    made : dict
        Versions and commit, and what the writer told of its making: device, seconds.
    size : int
        Of the file, in bytes.
    """

    path: Path
    origin: dict
    made: dict
    size: int


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
    try:
        return parse_tensors(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that torch has not
        raise damaged(path, error) from error


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
    found = read_columns(path, origin)
    return None if found is None else found[0].to_pandas()


def read_columns(path: Path, origin: dict) -> tuple[pa.Table, dict] | None:
    """(table, how it was made) as `read_table` reads it, but an Arrow table: thousands of small ones are joined faster than
    pandas'."""
    content = _read(path)
    if content is None:
        return None
    header = _parse_header(path, content)
    _compare(path, header, origin)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _check_size(path, file)
        return file.read(use_threads=False), header["made"]
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from error


def _check_size(path: Path, file: pq.ParquetFile) -> None:
    """Refuse what no analysis writes, before it is unpacked: other than flat columns, and tables of enormous size."""
    metadata, schema = file.metadata, file.schema_arrow
    packed = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if max(packed, metadata.num_rows * metadata.num_columns) > LARGEST:
        raise damaged(path, f"it would unpack to {metadata.num_rows} rows of {metadata.num_columns} columns")
    for column in schema:
        flat = pa.types.is_primitive(column.type) or pa.types.is_string(column.type)
        if not flat and not pa.types.is_null(column.type):
            raise damaged(path, f"column {column.name!r} has type {column.type}")


def _header(path: Path, origin: dict, made: dict | None) -> dict[str, str]:
    return {
        "name": path.name,
        "origin": json.dumps(origin, sort_keys=True),
        "made": json.dumps(made_with() | (made or {})),
        "format": FORMAT,
        "seal": (SEAL + BLANK).decode(),
    }


def _write(path: Path, content: bytes) -> None:
    """Seal `content` and write it."""
    at = content.index(SEAL) + len(SEAL)
    write_whole(path, content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + len(BLANK) :])


def write_whole(path: Path, content: bytes) -> None:
    """Let `content` appear under `path` in one step: a disk that is full, or the end of the process, leaves what was there.

    Raises
    ------
    OSError
        Names the file, and what to do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # tells `leftovers` that somebody is writing
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror}; free space or set REPRO_STORE (figures: REPRO_FIGURES; tables: --out)",
        ) from error


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
        raise damaged(path, "its checksum does not fit")
    return content


def _parse_header(path: Path, content: bytes) -> dict:
    """What `_header` wrote into a file of that name."""
    try:
        if path.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])["__metadata__"]
        else:
            metadata = pq.ParquetFile(pa.BufferReader(content)).metadata.metadata
            header = {name.decode(): value.decode() for name, value in metadata.items()}
        if header.get("format") != FORMAT:
            raise damaged(path, f"it has format {header.get('format')}, this version reads {FORMAT}")
        if header["name"] != path.name:
            raise damaged(path, f"it was written as {header['name']}")
        header |= {name: json.loads(header[name]) for name in ("origin", "made")}
        if not isinstance(header["origin"]["recipe"], dict) or not isinstance(header["made"], dict):
            raise ValueError("no recipe, or not how it was made")
        return header
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, pa.ArrowException) as error:
        raise damaged(path, f"its header cannot be read ({type(error).__name__}: {error})") from error


def _compare(path: Path, header: dict, origin: dict) -> None:
    """A file must be made from `origin`.

    A field of a recipe that the file does not know yet is newer than the file; that it has its default value is in the
    name, the hash of those fields that differ from theirs.
    """
    found = header["origin"]
    recipe = {name: value for name, value in origin["recipe"].items() if name in found["recipe"]}
    if found != origin | {"recipe": recipe}:
        raise damaged(path, f"it was made from {json.dumps(found)}, its name stands for {json.dumps(origin)}")


def damaged(path: Path, reason) -> Damaged:
    """The error that says why a file is not used, and what to do."""
    line = " ".join(str(reason).split())
    return Damaged(f"{path}: not used, {line}; delete the file and run again to make it anew")


# Locks, and what there is ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(key: str, wait: bool = True) -> Iterator[bool]:
    """Hold the right to make what `key` names; yields False where another process holds it and `wait` is off.

    The operating system lets go of the lock when its process ends, however it ends.
    """
    path = root() / "work" / f"{key}.lock"
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file unlocks


def paths() -> list[Path]:
    """Every network, table and state of training in the store, sorted by name."""
    kinds = ("checkpoints/*.safetensors", "results/*.parquet", "work/*.safetensors")
    return [path for kind in kinds for path in sorted(root().glob(kind), key=attrgetter("name"))]


def leftovers() -> list[Path]:
    """What processes that were killed in the middle of writing a file left behind."""
    found = []
    for path in sorted(path for kind in ("checkpoints", "results", "work") for path in root().glob(f"{kind}/.*.*.*")):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path)
    return found


def read_entry(path: Path) -> Entry:
    """Origin and making of one file; raises Damaged where it cannot be trusted."""
    content = _read(path)
    if content is None:
        raise Damaged(f"{path}: no such file")
    header = _parse_header(path, content)
    return Entry(path, header["origin"], header["made"], len(content))


@functools.cache
def made_with() -> dict[str, str]:
    """Versions and commit that files written by this process were made with."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "repro"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit, dirty = "unknown", ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit[:12] + ("+" if dirty else ""),
    }
