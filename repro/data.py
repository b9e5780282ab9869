"""Image data sets held in memory as tensors, and the label shuffling of Morcos et al. 2018 (section 3.1).

``load`` reads a data set once: standardised float32 images (N, C, H, W) and int64 labels (N,). ``shuffle_labels``
permutes a fraction of the labels and so keeps the number of images in every class exactly.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm.auto import tqdm

from repro.checks import check_integer, is_integer, is_number

IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
TORCHVISION = {  # its class, and the files that it looks for
    "mnist": ("MNIST", f"MNIST/raw/{IDX}"),
    "fashion_mnist": ("FashionMNIST", f"FashionMNIST/raw/{IDX}"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/"),
}
MOST_PIXELS, MOST_BYTES = 2**24, 2**26  # of one image: larger ones, and files that unpack to more, are refused
IMAGENET_IMAGES = 5000  # as many as fit in memory at 224 × 224 (3 GB)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")
DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "data" / "raw"


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes
    ----------
    name : str
        What ``load`` was asked for.
    x_train, x_test : Tensor
        Images (N, C, H, W), float32, standardised per channel with the statistics of the training images.
    y_train, y_test : Tensor
        Labels (N,), int64.
    classes : tuple of str
        Names of the classes; label ``i`` is ``classes[i]``.
    """

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: tuple[str, ...]

    def subset(self, n_train: int | None) -> Dataset:
        """Keep the first ``n_train`` training images of a fixed shuffle (None: all, in their own order)."""
        if n_train is None:
            return self
        if not is_integer(n_train) or not 1 <= n_train <= len(self.y_train):
            raise ValueError(f"n_train: expected 1 to {len(self.y_train)} for {self.name!r}, got {n_train!r}")
        keep = torch.from_numpy(np.random.default_rng(0).permutation(len(self.y_train))[:n_train])
        return replace(self, x_train=self.x_train[keep], y_train=self.y_train[keep])


def short_name(name: str) -> str:
    """Name a data set without where it lies: "folder:path/to/cifar10-jpeg" is "cifar10-jpeg"."""
    return str(name).removeprefix("folder:").rstrip("/").rsplit("/", 1)[-1]


@torch.inference_mode(False)  # or nothing could be trained on what is loaded, and kept, inside a caller's
def load(name: str, root: str | Path | None = None) -> Dataset:
    """Read a data set into memory.

    Parameters
    ----------
    name : str
        "digits" (scikit-learn's, needs no download), "mnist", "fashion_mnist", "cifar10" (torchvision, downloaded
        when missing) or "folder:PATH": a folder with sub-folders or zips ``train`` and ``test`` (or ``val``),
        each holding one folder of images per class. A relative PATH is looked for under `root`. "imagenet": 5,000 of
        ImageNet's validation images, from the 1,000 folders of ``imagenet/val``, prepared and standardised as for
        torchvision's published networks; half of them serve as training images, as the real ones do not fit in memory.
        Recipes know a folder by its PATH: give other images another name, lest results of the old ones be taken for theirs.
        (Images that are added or taken away are noticed by the next call, those overwritten in place by the next process.)
    root : path, optional
        Folder of the data sets; by default the environment variable REPRO_DATA, else ``data/raw``.

    Returns
    -------
    Dataset
        Cached and shared: clone tensors before changing them.

    Raises
    ------
    ValueError
        Unknown name, missing folder, classes that differ between the splits or have no images, damaged or differently sized
        images.
    """
    if root is None:
        root = os.environ.get("REPRO_DATA") or DEFAULT_ROOT
    try:
        root = Path(root).resolve()
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"root: expected a folder, got {root!r:.100} ({error})") from error
    name = name if isinstance(name, str) else repr(name)
    return _load(name, root, _state(root / name.removeprefix("folder:")) if name.startswith("folder:") else ())


def _state(path: Path) -> tuple:
    """Tells a folder data set that was changed from the one that was read: when its zips and folders were written to."""
    with contextlib.suppress(OSError, ValueError):  # `_folder` says what is wrong
        return tuple((str(file), file.stat().st_mtime_ns) for file in sorted([*path.glob("*"), *path.glob("*/*")]))
    return ()


@functools.lru_cache(maxsize=2)
def _load(name: str, root: Path, state: tuple = ()) -> Dataset:
    if name == "digits":
        return _standardised(name, *_digits())
    if name in TORCHVISION:
        return _standardised(name, *_torchvision(name, root))
    if name.startswith("folder:") and name != "folder:":
        return _standardised(name, *_folder(root / name.removeprefix("folder:")))
    if name == "imagenet":
        return _imagenet(root / "imagenet" / "val")
    known = ", ".join(["digits", *TORCHVISION, "imagenet", "folder:PATH"])
    raise ValueError(f"name: unknown data set {name!r}; expected one of {known}")


def _standardised(name, x_train, y_train, x_test, y_test, classes) -> Dataset:
    """From raw images (N, C, H, W) of any number type to a Dataset."""
    x_train, x_test = (torch.as_tensor(x).float() for x in (x_train, x_test))
    std, mean = torch.std_mean(x_train, dim=(0, 2, 3), keepdim=True)
    std = std.clamp_min(1e-8)  # a channel that never varies stays at zero
    x_train, x_test = ((x - mean) / std for x in (x_train, x_test))
    y_train, y_test = (torch.as_tensor(y).long() for y in (y_train, y_test))
    return Dataset(name, x_train, y_train, x_test, y_test, tuple(classes))


def _digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x.reshape(-1, 1, 8, 8), y, test_size=360, stratify=y, random_state=0
    )
    return x_train, y_train, x_test, y_test, map(str, range(10))


def _torchvision(name: str, root: Path):
    import torchvision.datasets

    kind, files = TORCHVISION[name]
    parts = []
    for train in (True, False):
        read = functools.partial(getattr(torchvision.datasets, kind), root, train=train)
        try:
            part = read()
        except Exception:  # not there, or not yet
            try:
                with _one_at_a_time(root):
                    part = read(download=True)  # only what is missing
            except Exception as error:
                raise ValueError(
                    f"name: {name!r} can neither be read from {root} nor downloaded ({' '.join(str(error).split())}). "
                    f"Put {files} there, whole in place of damaged ones, or set REPRO_DATA to the folder that holds it."
                ) from error
        x, y = torch.as_tensor(part.data), torch.as_tensor(part.targets)
        if len(x) != len(y) or not 0 <= y.min() <= y.max() < len(part.classes):
            raise ValueError(f"name: {name!r} in {root} has labels that do not fit its images; put {files} there anew")
        parts += [x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2), y]
    return *parts, part.classes


@contextlib.contextmanager
def _one_at_a_time(root: Path):
    """Processes side by side download one after another: the later ones find what the first has brought."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _imagenet(path: Path) -> Dataset:
    """A fixed random choice of ImageNet's validation images; label i is the i-th folder by name, as torchvision has it."""
    from torchvision.models import ResNet50_Weights

    classes = sorted(folder.name for folder in path.glob("*/")) if path.is_dir() else []
    if len(classes) != 1000:
        raise ValueError(
            f"name: 'imagenet' needs 1,000 folders of images, one per class, in {path}; found {len(classes)}"
        )
    files = _files(path)
    chosen = np.random.default_rng(0).permutation(len(files))[:IMAGENET_IMAGES]
    prepare = ResNet50_Weights.IMAGENET1K_V1.transforms()
    number = {label: i for i, label in enumerate(classes)}
    x, y = torch.empty(len(chosen), 3, 224, 224), torch.empty(len(chosen), dtype=torch.int64)
    for i, (file, label, read) in enumerate(tqdm([files[k] for k in chosen], unit="image", desc="imagenet", delay=2)):
        x[i], y[i] = _read_image(file, path, read, prepare), number[label]
    half = len(x) // 2
    return Dataset("imagenet", x[:half], y[:half], x[half:], y[half:], tuple(classes))


def _folder(path: Path):
    """An ImageFolder tree, or zips of one: ``train`` and ``test`` (or ``val``)."""
    train, test = (_find_split(path, names) for names in (("train",), ("test", "val")))
    (x_train, labels_train), (x_test, labels_test) = _read_split(train), _read_split(test)
    classes = sorted(set(labels_train))
    if len(classes) < 2:
        raise ValueError(f"name: expected at least two classes in {train}, found {classes[0]!r} alone")
    if extra := sorted(set(labels_test) - set(classes)):
        raise ValueError(f"name: {test} has classes that {train} lacks: {', '.join(extra)}")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"name: images of {train} and {test} differ in size")
    y_train, y_test = ([classes.index(label) for label in labels] for labels in (labels_train, labels_test))
    return x_train, y_train, x_test, y_test, classes


def _find_split(path: Path, names: tuple[str, ...]) -> Path:
    for candidate in [path / f"{name}{ending}" for name in names for ending in ("", ".zip")]:
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            if candidate.exists():
                return candidate
    raise ValueError(
        f"name: {path} should hold {' or '.join(names)} as a folder or a zip, with one folder of images per class; "
        "a relative path is looked for under REPRO_DATA"
    )


def _read_split(path: Path):
    """Images (N, C, H, W), uint8, and the name of each one's class, of one split."""
    images, labels = [], []
    for file, label, read in _files(path):
        pixels = _read_image(file, path, read, np.asarray)
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"name: {file} in {path} is {pixels.shape[1]}×{pixels.shape[0]} pixels, the first image "
                f"{images[0].shape[1]}×{images[0].shape[0]}; resize the images to one size first"
            )
        images.append(pixels)
        labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def _read_image(file: str, path: Path, read, convert):
    """What `convert` makes of an RGB image; a ValueError names the file that is damaged or too large."""
    from PIL import Image, UnidentifiedImageError

    damage = (OSError, SyntaxError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)
    damage += (RuntimeError, EOFError, ValueError)  # a file under a password; one cut short; a header without numbers
    try:
        with Image.open(io.BytesIO(read())) as image:
            if image.width * image.height > MOST_PIXELS:
                raise OSError(f"it has {image.width}×{image.height} pixels, more than {MOST_PIXELS}")
            if image.mode.startswith(("I", "F")):  # which Pillow would clip to white
                raise OSError("expected 8 bits a channel")
            return convert(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"name: cannot read image {file} in {path}: it is damaged, or no image") from error
    except damage as error:
        raise ValueError(f"name: cannot read image {file} in {path}: {error}") from error


def _files(path: Path) -> list[tuple]:
    """Every image of a folder or zip, sorted: its name there, that of its class, and a function that reads it."""
    entries = list(_entries(path))
    images = [("/".join(parts), parts, read) for parts, read in entries if read and _is_image(parts[-1])]
    if not images:
        raise ValueError(f"name: no images in {path}; expected one folder per class with {' '.join(SUFFIXES)} files")
    images.sort(key=lambda image: image[0])
    one_of = {parts[:-2] if len(parts) > 1 else None: file for file, parts, _ in images}  # by what holds the classes
    if len(one_of) > 1 or None in one_of:
        some = " and ".join(sorted(one_of.values())[:2])
        raise ValueError(
            f"name: expected one folder of images per class in {path}, found images deeper or aside: {some}"
        )
    (above,) = one_of
    inside = [(parts[len(above) :], read) for parts, read in entries if parts[: len(above)] == above]
    folders = {parts[0] for parts, read in inside if len(parts) > 1 or (parts and not read)}
    if empty := sorted(folders - {parts[-2] for _, parts, _ in images}):
        folder = "/".join([str(path), *above, empty[0]])
        raise ValueError(
            f"name: no images in {folder}, a class like those beside it; expected {' '.join(SUFFIXES)} files"
        )
    return [(file, parts[-2], read) for file, parts, read in images]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _entries(path: Path) -> Iterator[tuple]:
    """The parts of the name of each file and folder in a folder or zip, and a function that reads the file; but for what is
    hidden, and what macOS puts into a zip."""
    for parts, read in _zip_entries(path) if path.suffix == ".zip" else _tree_entries(path):
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield parts, read


def _tree_entries(path: Path):
    for depth in range(1, 6):  # three would do, but what lies deeper shall not be missed in silence
        for file in path.glob("/".join("*" * depth)):
            yield file.relative_to(path).parts, None if file.is_dir() else file.read_bytes


def _zip_entries(path: Path):
    # Members are read in place and never written anywhere; a name with ".." is somebody's trick all the same.
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"name: cannot read {path}: {error}") from error
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or parts[:1] == ("/",):
            raise ValueError(f"name: refused {path}: {member.filename!r} leads out of it")
        if parts:
            yield parts, None if member.is_dir() else functools.partial(_unpack, archive, member)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The content of a file in a zip; never more than it declares, and never much."""
    if member.file_size > MOST_BYTES or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"expected at most {MOST_BYTES} bytes, stored or deflated")  # others unpack unbounded
    with archive.open(member) as file:
        return file.read(member.file_size)


def shuffle_labels(y: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Permute the labels of a random `fraction` of the images among those images (section 3.1).

    Class counts stay exactly as they were; with balanced ten classes about 0.9 × `fraction` of the labels change.

    Parameters
    ----------
    y : Tensor (N,)
        Integer labels; left as they are.
    fraction : float
        Share of the images that take part, in [0, 1].
    seed : int
        Determines which images take part and how they are permuted.

    Returns
    -------
    Tensor (N,)
        A new tensor of the same type.

    Raises
    ------
    ValueError
        For no labels or ones that are no integers, a fraction outside [0, 1] and a negative seed.
    """
    try:
        y = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"y: expected a vector of integer labels, got {y!r:.100} ({error})") from error
    no_labels = y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
    if y.ndim != 1 or not len(y) or no_labels or y.layout != torch.strided or y.device.type == "meta":
        raise ValueError(f"y: expected a vector of integer labels, got {y.dtype} of shape {tuple(y.shape)}")
    if not is_number(fraction) or not 0 <= fraction <= 1:  # also refuses NaN
        raise ValueError(f"fraction: expected a number in [0, 1], got {fraction!r}")
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    chosen = rng.permutation(len(y))[: round(fraction * len(y))]
    order = np.arange(len(y))
    order[chosen] = rng.permutation(chosen)
    return y[torch.from_numpy(order)]
