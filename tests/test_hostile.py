"""Nothing that is read can execute code, write elsewhere, or unpack to more than memory holds: each is tried and refused."""

import contextlib
import hashlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from repro import cli, data, execution, notebooks, store
from repro.training import Recipe

ORIGIN = {"recipe": {"dataset": "digits"}}


@pytest.fixture
def trap(tmp_path):
    """(something that makes a file when it is unpickled, that file)."""
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    pickle.loads(pickle.dumps(Trap()))
    assert sprung.exists()  # it works
    sprung.unlink()
    return Trap(), sprung


def sealed(content):
    """`content`, which holds an empty seal, with a checksum that fits: it was made on purpose, not by accident."""
    at = content.index(store.SEAL + store.BLANK) + len(store.SEAL)
    return content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + 64 :]


def header(name):
    """What a file of the store says of itself."""
    seal = (store.SEAL + store.BLANK).decode()
    return {"name": name, "origin": json.dumps(ORIGIN), "made": "{}", "format": store.FORMAT, "seal": seal}


def refused(path, content):
    """The line with which the store refuses a file of that content; `repro store verify` says the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(content))
    read = store.read_tensors if path.suffix == ".safetensors" else store.read_table
    with pytest.raises(store.Damaged, match="delete the file") as error:
        read(path, ORIGIN)
    assert "\n" not in str(error.value)
    return str(error.value)


# Networks and tables ------------------------------------------------------------------------------------------


def tensors(entries, size=16, **metadata):
    """A safetensors file with these entries in its header and `size` bytes behind it."""
    text = json.dumps({"__metadata__": header("k.safetensors") | metadata} | entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        tensors({"w": entry([2**40], [0, 2**42])}),
        tensors({"w": entry([2**62, 4], [0, 16])}),
        tensors({"w": entry([4], [0, 16]), "v": entry([4], [0, 16])}),  # one place for two
        tensors({"w": entry([2], [8, 16])}),  # a hole
        tensors({"w": entry([4], [16, 0])}),
        tensors({"w": entry([4], [0, 16], dtype="PICKLE")}),
        tensors({"w": "no entry"}),
        tensors({}, size=0, origin="[]"),
        tensors({}, size=0, origin='{"recipe": 3}'),
        tensors({}, size=0, origin="[" * 100_000),
        tensors({}, size=0, made="{"),
        tensors({}, size=0, made="[]"),
        tensors({}, size=0, format="0"),
        (2**63).to_bytes(8, "little") + store.SEAL + store.BLANK,
        (2).to_bytes(8, "little") + b"[]" + store.SEAL + store.BLANK,
    ],
    ids=lambda content: f"{zlib.crc32(content):x}",
)
def test_tensors_that_are_none_are_refused(content):
    refused(store.network_path("k"), content)


def test_pickles_are_refused(trap):
    bait, sprung = trap
    file = io.BytesIO()
    torch.save({"w": bait}, file)
    for content in (pickle.dumps(bait), file.getvalue()):
        for path in (store.network_path("k"), store.table_path("k"), store.state_path("k")):
            refused(path, content + store.SEAL + store.BLANK)
    assert cli.main(["store", "verify"]) == 1
    assert not sprung.exists()


def test_nothing_in_the_library_unpickles():
    source = "".join(path.read_text() for path in Path(store.__file__).parent.rglob("*.py"))
    assert not re.search(
        r"pickle\.|torch\.load|joblib\.load|read_pickle|allow_pickle|np\.load|yaml\.(load|unsafe)", source
    )


def parquet(table):
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(header("k.parquet"))
    return sink.getvalue().to_pybytes()


def test_a_pickled_type_of_a_column_stays_a_pickle(trap):
    bait, sprung = trap
    spell = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(bait)}
    field = pa.field("unit", pa.int64(), metadata=spell)
    path = store.table_path("k")
    path.parent.mkdir(parents=True)
    path.write_bytes(sealed(parquet(pa.table([[1, 2]], schema=pa.schema([field])))))
    with contextlib.suppress(store.Damaged):  # as other versions of pyarrow may have it
        assert store.read_table(path, ORIGIN)["unit"].tolist() == [1, 2]
    assert not sprung.exists()


def test_columns_that_no_analysis_writes_are_refused(trap):
    bait, sprung = trap
    content = parquet(pa.table({"unit": [pickle.dumps(bait)]}))
    assert "binary" in refused(store.table_path("k"), content)
    assert "list" in refused(store.table_path("k"), parquet(pa.table({"unit": [[1], [2]]})))
    assert not sprung.exists()


def test_a_table_that_unpacks_to_gigabytes_is_refused():
    content = parquet(pa.table({"unit": pa.nulls(store.LARGEST + 1)}))
    assert len(content) < 1_000_000
    assert "rows" in refused(store.table_path("k"), content)


def test_a_table_with_a_broken_body_is_refused():
    content = bytearray(parquet(pa.table({"unit": np.random.default_rng(0).normal(size=500)})))
    content[4:1000] = bytes(996)  # between the magic bytes and the header
    refused(store.table_path("k"), bytes(content))


def test_a_network_of_another_shape_is_refused():
    from repro.experiment import network

    recipe = Recipe("digits", width=4, n_train=20, epochs=1)
    network(recipe)
    path = store.network_path(recipe.key)
    found = store.read_tensors(path, store.read_entry(path).origin)
    found["head.bias"] = torch.zeros(11)
    store.write_tensors(path, found, store.read_entry(path).origin)
    with pytest.raises(store.Damaged, match=r"head\.bias.*delete the file"):
        network(recipe)


# Data sets ----------------------------------------------------------------------------------------------------


def png(size=(6, 5)):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "png")
    return file.getvalue()


def write_zip(folder, files, compression=zipfile.ZIP_DEFLATED):
    for split in ("train", "test"):
        with zipfile.ZipFile(folder / f"{split}.zip", "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    return f"folder:{folder}"


@pytest.mark.parametrize("name", ["../cat/1.png", "cat/../../1.png", "/cat/1.png", "..\\cat\\1.png"])
def test_a_zip_whose_names_lead_out_of_it_is_refused(tmp_path, name):
    (tmp_path / "zips").mkdir()
    before = sorted(tmp_path.rglob("*"))
    source = write_zip(tmp_path / "zips", {"dog/1.png": png(), name: png()})
    with pytest.raises(ValueError, match=r"^name: refused .*train\.zip: .* leads out of it"):
        data.load(source)
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} == {"train.zip", "test.zip"}


def test_a_zip_under_a_password_is_refused(tmp_path):
    source = write_zip(tmp_path, {"dog/1.png": png()}, zipfile.ZIP_STORED)
    for path in tmp_path.glob("*.zip"):
        content = bytearray(path.read_bytes())
        for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            content[content.index(mark) + flags] |= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^name: cannot read image dog/1\.png .*password"):
        data.load(source)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_unpacks_to_a_gigabyte_is_refused_unread(tmp_path, compression):
    write_zip(tmp_path, {"cat/1.png": bytes(data.MOST_BYTES + 1), "dog/1.png": png()}, compression)
    # In a process that may not have that much memory.
    script = """
        import resource, sys
        from repro import data
        import PIL.Image
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
        data.load(sys.argv[1])
    """
    command = [sys.executable, "-c", "if 1:" + script, f"folder:{tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: name: cannot read image cat/1.png")


def test_a_file_that_unpacks_to_more_than_it_declares_is_refused(tmp_path):
    source = write_zip(tmp_path, {"cat/1.png": png() + bytes(10**7), "dog/1.png": png()})
    path = tmp_path / "train.zip"
    size = (len(png()) + 10**7).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, len(png()).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"^name: cannot read image cat/1\.png"):
        data.load(source)


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    bomb = bytearray(png((1, 1)))
    for side in (2**12 + 1, 2**13, 2**16, 2**31 - 1):
        bomb[16:24] = side.to_bytes(4, "big") * 2
        bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
        with pytest.raises(ValueError, match=r"^name: cannot read image cat/1\.png.*pixels"):  # not: truncated
            data.load(write_zip(tmp_path, {"cat/1.png": bytes(bomb), "dog/1.png": png()}))


def test_a_pickled_data_set_other_than_the_published_one_is_refused(tmp_path, trap, monkeypatch):
    bait, sprung = trap
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps({"data": bait, "label_names": bait}))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match="^name: 'cifar10' can neither be read"):
        data.load("cifar10", root=tmp_path)
    assert not sprung.exists()


# Presets ------------------------------------------------------------------------------------------------------

EVIL = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{file}]]"
LAUGHS = "corruptions: &a [1.0, 1.0]\n" + "".join(
    f"x{i}: &{b} [*{a}, *{a}, *{a}, *{a}]\n"
    for i, (a, b) in enumerate(zip("abcdefghijklmno", "bcdefghijklmnop", strict=True))
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("networks: " + EVIL, "no YAML of plain values"),
        ("networks: !!python/name:os.system", "no YAML of plain values"),
        ("networks: !include /etc/passwd", "no YAML of plain values"),
        (LAUGHS, "found an anchor"),
        ("networks: [", "no YAML of plain values"),
        ("networks: " + "[" * 2_000, "no YAML of plain values"),
        ("\0", "no YAML of plain values"),
        ("- networks", "name: value"),
        ("", "name: value"),
    ],
)
def test_a_preset_with_tags_or_tricks_is_refused(text, words, tmp_path, monkeypatch, capsys):
    shutil.copytree(notebooks.FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr(execution, "run", lambda *_: pytest.fail("a kernel was started"))
    (tmp_path / "notebooks" / "presets" / "mine.yaml").write_text(text.replace("{file}", str(tmp_path / "sprung")))
    assert cli.main(["figures", "fig1", "--preset", "mine"]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert not (tmp_path / "sprung").exists()


def test_the_name_of_a_preset_leads_nowhere_else():
    for name in ("../other", "/tmp", "a/b", "", ".", ".."):
        with pytest.raises(ValueError, match="^preset: "):
            store.figures(name)
    assert store.figures("my-preset_2.1").name == "my-preset_2.1"
