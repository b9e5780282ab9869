"""Data sets and label shuffling."""

import io
import threading
import time
import types
import urllib.error
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from repro import data

# Label shuffling --------------------------------------------------------------------------------------------

labels = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(torch.tensor)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


@given(labels, fractions, seeds)
def test_shuffling_keeps_class_counts_type_and_input(y, fraction, seed):
    before = y.clone()
    shuffled = data.shuffle_labels(y, fraction, seed)
    assert torch.equal(torch.bincount(shuffled, minlength=10), torch.bincount(y, minlength=10))
    assert shuffled.dtype == y.dtype and shuffled.shape == y.shape
    assert torch.equal(y, before)


@given(st.integers(1, 300), fractions, seeds)
def test_shuffling_touches_only_the_chosen_images(n, fraction, seed):
    y = torch.arange(n)  # every image a class of its own: an image keeps its label unless it was moved
    shuffled = data.shuffle_labels(y, fraction, seed)
    moved = (shuffled != y).sum().item()
    assert moved <= round(fraction * n)
    assert moved != 1  # a permutation moves none or at least two


@given(labels, fractions, seeds)
def test_shuffling_is_determined_by_its_arguments(y, fraction, seed):
    assert torch.equal(data.shuffle_labels(y, fraction, seed), data.shuffle_labels(y, fraction, seed))


def test_shuffling_differs_from_seed_to_seed():
    y = torch.arange(1000) % 10
    assert not torch.equal(data.shuffle_labels(y, 1, 0), data.shuffle_labels(y, 1, 1))


@pytest.mark.parametrize("fraction", [0, 0.2, 0.4, 0.6, 0.8, 1])
def test_nine_tenths_of_the_fraction_change_with_ten_classes(fraction):
    y = torch.arange(10_000) % 10
    changed = np.mean([(data.shuffle_labels(y, fraction, seed) != y).double().mean() for seed in range(10)])
    assert changed == pytest.approx(0.9 * fraction, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_shuffling_takes_any_integer_type(dtype):
    assert data.shuffle_labels(torch.tensor([0, 1, 2], dtype=dtype), 1.0, 0).dtype == dtype


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("fraction", ([0, 1], -0.1, 0)),
        ("fraction", ([0, 1], 1.1, 0)),
        ("fraction", ([0, 1], float("nan"), 0)),
        ("fraction", ([0, 1], "half", 0)),
        ("fraction", ([0, 1], True, 0)),
        ("y", ([0.0, 1.0], 0.5, 0)),
        ("y", ([[0, 1]], 0.5, 0)),
        ("y", ([True, False], 0.5, 0)),
        ("y", ([], 0.5, 0)),
        ("y", (torch.tensor([], dtype=torch.int64), 0.5, 0)),
        ("seed", ([0, 1], 0.5, -1)),
        ("seed", ([0, 1], 0.5, 0.5)),
        ("seed", ([0, 1], 0.5, True)),
    ],
)
def test_shuffling_refuses_bad_arguments(argument, arguments):
    y, fraction, seed = arguments
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        data.shuffle_labels(torch.as_tensor(y), fraction, seed)


# Digits, and what is true of every data set -----------------------------------------------------------------


def test_digits_are_split_evenly_over_the_classes():
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8) and digits.x_test.shape == (360, 1, 8, 8)
    assert digits.classes == tuple("0123456789")
    everything = torch.cat([digits.y_train, digits.y_test]).bincount()
    assert (digits.y_test.bincount() - 360 / 1797 * everything).abs().max() < 1


def test_digits_are_one_fixed_split_of_scikit_learns_images():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    raw, raw_labels = load_digits(return_X_y=True)
    images = torch.cat([digits.x_train, digits.x_test]).flatten(1).numpy()
    images = np.rint((images - images.min()) / np.ptp(images) * 16)  # standardisation undone
    order, raw_order = np.lexsort(images.T), np.lexsort(raw.T)
    assert np.array_equal(images[order], raw[raw_order])
    assert np.array_equal(torch.cat([digits.y_train, digits.y_test])[order], raw_labels[raw_order])
    # Trained networks and stored tables hang on the order of the images: it never changes.
    assert digits.y_train[:12].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8, 3, 5]
    assert digits.y_test[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_images_are_standardised_with_training_statistics():
    digits = data.load("digits")
    assert digits.x_train.dtype == torch.float32 and digits.y_train.dtype == torch.int64
    assert digits.x_train.mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.x_train.std().item() == pytest.approx(1, abs=1e-5)
    assert digits.x_test.mean().item() != pytest.approx(0, abs=1e-5)  # the test images had no say


def test_a_subset_is_the_beginning_of_one_fixed_shuffle():
    digits = data.load("digits")
    small, large = digits.subset(100), digits.subset(300)
    assert len(small.x_train) == len(small.y_train) == 100
    assert torch.equal(small.x_train, large.x_train[:100]) and torch.equal(small.y_train, large.y_train[:100])
    assert torch.equal(small.x_test, digits.x_test)
    assert digits.subset(None) is digits
    assert small.y_train.unique().numel() == 10


@pytest.mark.parametrize("n_train", [0, -1, 1438, True])
def test_a_subset_larger_than_the_data_set_is_refused(n_train):
    with pytest.raises(ValueError, match="^n_train: expected 1 to 1437"):
        data.load("digits").subset(n_train)


@pytest.mark.parametrize("name", ["imagenets", "", "folder:", "DIGITS", None, ["digits"]])
def test_an_unknown_data_set_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"^name: unknown data set .*digits, mnist.*folder:PATH"):
        data.load(name)


# Folders and zips -------------------------------------------------------------------------------------------


def png(level, size=(6, 5)):
    """A PNG of width × height `size` with a flat colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (level, 255 - level, 7)).save(file, "png")
    return file.getvalue()


FILES = {
    "train": {"cat/1.png": png(10), "cat/2.png": png(20), "dog/1.png": png(30)},
    "test": {"cat/9.png": png(40), "dog/9.png": png(50)},
}


def write_tree(root, files=FILES):
    for split, images in files.items():
        for name, content in images.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def write_zips(root, files=FILES, inside=""):
    root.mkdir(parents=True, exist_ok=True)
    for split, images in files.items():
        with zipfile.ZipFile(root / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in images.items():
                archive.writestr(inside + name, content)


def change(split, **files):
    """FILES with some of one split added, replaced or (None) taken away; cat_1 stands for cat/1.png."""
    files = {name.replace("_", "/") + ".png": content for name, content in files.items()}
    images = {name: content for name, content in (FILES[split] | files).items() if content is not None}
    return FILES | {split: images}


@pytest.fixture(params=[write_tree, write_zips])
def write(request, tmp_path):
    """Writes files as a tree or as zips into a new folder and returns what `load` calls it."""
    count = iter(range(9))

    def write_and_name(files=FILES, **options):
        path = tmp_path / f"images{next(count)}"
        request.param(path, files, **options)
        return f"folder:{path}"

    return write_and_name


def test_a_tree_and_zips_of_it_are_the_same_data_set(tmp_path):
    write_tree(tmp_path / "tree")
    write_zips(tmp_path / "zips")
    write_zips(tmp_path / "nested", inside="some/where/")
    tree, *zips = (data.load(f"folder:{tmp_path / kind}") for kind in ("tree", "zips", "nested"))
    assert tree.classes == ("cat", "dog")
    assert tree.y_train.tolist() == [0, 0, 1] and tree.y_test.tolist() == [0, 1]
    assert tree.x_train.shape == (3, 3, 5, 6)  # N, C, H, W
    for other in zips:
        for field in ("x_train", "y_train", "x_test", "y_test", "classes"):
            left, right = getattr(tree, field), getattr(other, field)
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_pixels_come_through(write):
    x = data.load(write()).x_train
    red = x[:, 0, 0, 0]  # 10, 20, 30, standardised
    assert red.tolist() == pytest.approx([-1.2179, 0, 1.2179], abs=1e-3)
    assert torch.equal(x[:, 2], torch.zeros_like(x[:, 2]))  # blue never varies


def test_a_relative_path_is_looked_for_under_repro_data(tmp_path, monkeypatch):
    write_tree(tmp_path / "here" / "pets")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "here"))
    assert data.load("folder:pets").classes == ("cat", "dog")
    assert data.load("folder:pets", root=tmp_path / "here").classes == ("cat", "dog")
    with pytest.raises(ValueError, match="REPRO_DATA"):
        data.load("folder:pets", root=tmp_path / "elsewhere")


def test_val_stands_for_test_and_other_files_are_left_alone(write):
    files = {"train": FILES["train"] | {"cat/readme.txt": b"?", "cat/Thumbs.db": b"?"}, "val": FILES["test"]}
    assert data.load(write(files)).y_test.tolist() == [0, 1]


def test_hidden_files_and_those_of_macos_are_no_images(write):
    odd = {"__MACOSX/cat/._1.png": b"?", "cat/._1.png": b"?", ".ipynb_checkpoints/cat.png": png(1)}
    assert torch.equal(data.load(write(FILES | {"train": FILES["train"] | odd})).x_train, data.load(write()).x_train)


def test_images_that_lie_deeper_are_refused_not_missed(write):
    with pytest.raises(ValueError, match=r"^name: .*images deeper or aside: dog/1\.png and dog/more/1\.png"):
        data.load(write(change("train", dog_more_1=png(3))))
    with pytest.raises(ValueError, match=r"^name: .*images deeper or aside: a/b/c/1\.png and dog/1\.png"):
        data.load(write(FILES | {"train": FILES["train"] | {"a/b/c/1.png": png(3)}}))
    with pytest.raises(ValueError, match=r"^name: .*images deeper or aside: .*top\.png"):
        data.load(write(FILES | {"train": {"top.png": png(3)}}))


def test_a_class_without_readable_images_is_refused_not_missed(write, tmp_path):
    with pytest.raises(
        ValueError, match=r"^name: no images in .*train(\.zip)?/emu, a class like those beside it; expected \.jpg"
    ):
        data.load(write(FILES | {"train": FILES["train"] | {"emu/1.gif": b"GIF"}}))
    with pytest.raises(ValueError, match=r"^name: expected at least two classes in .*, found 'cat' alone"):
        data.load(write({split: {"cat/1.png": png(1), "cat/2.png": png(2)} for split in FILES}))


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_folder_of_a_class_is_refused_not_missed(tmp_path, split):
    write_tree(tmp_path)
    (tmp_path / split / "emu").mkdir()
    with pytest.raises(ValueError, match=rf"^name: no images in .*{split}/emu, a class"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("content", [b"P6 6 5 2\xe85 ", b"P6 " + b"1" * 40])
def test_a_damaged_header_of_plain_numbers_is_named(tmp_path, content):
    write_tree(tmp_path)
    (tmp_path / "train" / "dog" / "2.ppm").write_bytes(content)
    with pytest.raises(ValueError, match=r"^name: cannot read image dog/2\.ppm in .*train"):
        data.load(f"folder:{tmp_path}")


def test_images_of_more_than_eight_bits_are_refused_not_clipped(write):
    file = io.BytesIO()
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(file, "png")
    with pytest.raises(ValueError, match=r"dog/1\.png in .*: expected 8 bits"):
        data.load(write(change("train", dog_1=file.getvalue())))


def test_a_folder_that_changed_is_read_again(tmp_path):
    write_tree(tmp_path)
    before = data.load(f"folder:{tmp_path}")
    assert data.load(f"folder:{tmp_path}") is before
    (tmp_path / "train" / "dog" / "9.png").write_bytes(png(70))
    assert len(data.load(f"folder:{tmp_path}").y_train) == len(before.y_train) + 1


@pytest.mark.parametrize("size", [0, 20, -25])
def test_a_damaged_image_is_named(write, size):
    with pytest.raises(ValueError, match=r"^name: cannot read image .*dog/1\.png"):
        data.load(write(change("train", dog_1=png(30)[:size])))


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    write_zips(tmp_path)
    path = tmp_path / "train.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.infolist()[1]
    for at in (entry.header_offset + 45, entry.header_offset + 60, entry.header_offset + 90):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"^name: cannot read image .*cat/2\.png"):
            data.load(f"folder:{tmp_path}")
        data._load.cache_clear()


def test_a_file_that_is_no_zip_is_named(tmp_path):
    write_zips(tmp_path)
    path = tmp_path / "test.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"^name: cannot read .*test\.zip"):
        data.load(f"folder:{tmp_path}")


def test_images_of_different_size_are_named(write):
    with pytest.raises(ValueError, match=r"^name: .*dog/1\.png .*6×4 pixels, the first image 6×5"):
        data.load(write(change("train", dog_1=png(30, (6, 4)))))
    with pytest.raises(ValueError, match="^name: images of .* differ in size"):
        data.load(write(change("test", cat_9=png(1, (7, 7)), dog_9=png(2, (7, 7)))))


def test_classes_that_training_lacks_are_named(write):
    with pytest.raises(ValueError, match=r"^name: .*has classes that .* lacks: emu"):
        data.load(write(change("test", emu_1=png(1))))


def test_a_class_without_test_images_keeps_its_label(write):
    folder = data.load(write(change("test", cat_9=None)))
    assert folder.classes == ("cat", "dog") and folder.y_test.tolist() == [1]


def test_empty_and_missing_folders_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="^name: no images in"):
        data.load(write({"train": FILES["train"], "test": {"readme.txt": b"?"}}))
    with pytest.raises(ValueError, match="^name: .* should hold test or val as a folder or a zip"):
        data.load(write({"train": FILES["train"]}))
    with pytest.raises(ValueError, match="^name: .* should hold train as a folder or a zip"):
        data.load(f"folder:{tmp_path / 'nowhere'}")


# Torchvision's ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to fetch something fails, and is counted."""
    attempts = []

    def fail(request, *_, **__):
        attempts.append(request)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    return attempts


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "MNIST/raw/.*images-idx3"),
        ("fashion_mnist", "FashionMNIST/raw/.*images-idx3"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_without_a_network_one_line_says_what_to_put_where(name, files, tmp_path, no_network):
    with pytest.raises(
        ValueError, match=f"^name: '{name}' can neither be read from {tmp_path} .*Put {files}.*REPRO_DATA"
    ):
        data.load(name, root=tmp_path)
    assert no_network  # it did try


def idx(array):
    """MNIST's file format."""
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def little_mnist(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 20), ("t10k", 10)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28))
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    return tmp_path


def test_mnist_is_read_from_torchvisions_layout(little_mnist, no_network):
    mnist = data.load("mnist", root=little_mnist)
    assert mnist.x_train.shape == (20, 1, 28, 28) and mnist.x_test.shape == (10, 1, 28, 28)
    assert mnist.y_train.tolist() == [i % 10 for i in range(20)] and len(mnist.classes) == 10
    assert mnist.x_train.mean().item() == pytest.approx(0, abs=1e-5)
    assert not no_network


@pytest.mark.parametrize("labels", [np.arange(19) % 10, np.arange(20)])
def test_labels_that_do_not_fit_the_images_are_refused(little_mnist, no_network, labels):
    (little_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(
        ValueError, match=f"^name: 'mnist' in {little_mnist} has labels that do not fit its images; put"
    ):
        data.load("mnist", root=little_mnist)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("size", [0, 3, 10, -5])
def test_a_truncated_mnist_is_an_error_that_says_where(little_mnist, no_network, file, size):
    path = little_mnist / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"^name: 'mnist' can neither be read from {little_mnist}"):
        data.load("mnist", root=little_mnist)


def test_processes_side_by_side_download_once(tmp_path, monkeypatch):
    """As torchvision does: it finds a file as soon as somebody has begun to write it."""
    working, downloads = threading.Semaphore(1), []

    def mnist(root, train, download=False):
        if download and not (root / "whole").exists():
            assert working.acquire(blocking=False), "two at once"
            downloads.append(train)
            time.sleep(0.2)
            (root / "whole").touch()
            working.release()
        if not (root / "whole").exists():
            raise RuntimeError("not found or corrupted")
        return types.SimpleNamespace(data=np.zeros((3, 28, 28), np.uint8), targets=[0, 1, 2], classes="abc")

    monkeypatch.setattr("torchvision.datasets.MNIST", mnist)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: data._torchvision("mnist", tmp_path / "new"), range(4)))) == 4
    assert downloads == [True]


def test_a_data_set_is_read_once(tmp_path, monkeypatch):
    write_tree(tmp_path / "pets")
    first = data.load(f"folder:{tmp_path / 'pets'}")
    monkeypatch.setattr(data, "_folder", lambda path: pytest.fail("it is read again"))
    assert data.load(f"folder:{tmp_path / 'pets'}") is first
