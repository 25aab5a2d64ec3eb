"""The images: where they come from, and which of them a training sees.

Two image sets. ``digits`` are the handwritten digits that scikit-learn ships, real and offline. ``cifar10``
are the official files, or the reader's own images in a folder or an ``.npz`` file.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from http.client import HTTPException
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from igkd.errors import InputError, MissingImages

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Channel means and standard deviations of CIFAR-10's training pixels, as published.
CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
#: Where the official files are looked for and downloaded to, relative to the current directory.
OFFICIAL_FOLDER = Path("data/cifar10")
#: Value of ``data`` that asks for the official files.
DOWNLOAD = "download"
#: The network halves an image three times.
SIZE_MULTIPLE = 8

# One seed for every subset: all arms and all seeds are judged on the same held-out images.
_VALIDATION_SEED = 20_231
_DIGITS_SEED = 0
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
_WAYS = (
    f"(1) download the official files with `--data {DOWNLOAD}` (170 MB into {OFFICIAL_FOLDER.as_posix()}), "
    "(2) give the folder that contains cifar-10-batches-py, or an image folder train/<class>/*.png with "
    f"test/<class>/*.png, or (3) give an .npz file with {', '.join(_ARRAYS)}; "
    "for (2) and (3) use --data PATH or the environment variable IGKD_DATA"
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training and test images with their labels.

    Attributes
    ----------
    name : str
    train_images, test_images : ndarray (N, H, W, 3) uint8
    train_labels, test_labels : ndarray (N,) int64
        Indices into `class_names`.
    class_names : tuple of str
    flip : bool
        Whether a mirrored image keeps its label.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    flip: bool

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def n_train(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def n_test(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1:3]

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over shapes, pixels and labels; names do not enter."""
        digest = hashlib.sha256()
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            digest.update(repr(tuple(images.shape)).encode())
            digest.update(np.ascontiguousarray(images))
            # A fixed byte order, so that every machine finds the same fingerprint.
            digest.update(labels.astype("<i8"))
        return digest.hexdigest()[:16]

    @cached_property
    def mean_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Channel means and standard deviations of the training pixels in [0, 1].

        For CIFAR-10 the published constants, which the paper's teacher uses. A standard deviation is at least
        one grey level, so that a constant channel can be divided by it.
        """
        if self.name == "cifar10":
            return CIFAR10_MEAN_STD
        axes = (0, 1, 2)
        mean = self.train_images.mean(axes)
        # Integer squares take a quarter of the memory of the deviations that ndarray.std would build.
        variance = np.square(self.train_images, dtype=np.uint16).mean(axes) - mean**2
        std = np.sqrt(np.maximum(variance, 1))
        return tuple((mean / 255).tolist()), tuple((std / 255).tolist())

    def take(self, n_train: int, n_test: int, seed: int = 0) -> "ImageSet":
        """A smaller image set: stratified shares of the training and of the test images, drawn with `seed`.

        Raises
        ------
        InputError
            If there are fewer images, or a class would get none.
        """
        if n_train > len(self.train_labels) or n_test > len(self.test_labels):
            raise InputError(
                f"there are {len(self.train_labels):,} training and {len(self.test_labels):,} test images, fewer than the "
                f"{n_train:,} and {n_test:,} that this profile takes; for images of your own there is --profile paper"
            )
        train = train_indices(self.train_labels, Subset(n_train / len(self.train_labels), seed))
        test = train_indices(self.test_labels, Subset(n_test / len(self.test_labels), seed))
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
        )


@dataclass(frozen=True)
class RecordedImages:
    """What records tell of an `ImageSet` that is not here; whoever asks for more of it is told how to get it.

    Attributes
    ----------
    name, class_names, size, n_train, n_test, fingerprint
        As in `ImageSet`.
    missing : MissingImages
        Raised instead of pixels and labels.
    """

    name: str
    class_names: tuple[str, ...]
    size: tuple[int, int]
    n_train: int
    n_test: int
    fingerprint: str
    missing: MissingImages

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __getattr__(self, name: str):
        if name in ("train_images", "train_labels", "test_images", "test_labels", "mean_std", "flip", "take"):
            raise self.missing
        raise AttributeError(name)


@dataclass(frozen=True)
class Subset:
    """Which training images a training sees.

    Attributes
    ----------
    fraction : float, default 1.0
        Share of the images that are left after `validation`, in (0, 1], the same for every class.
    seed : int, default 0
        Draws the fraction.
    validation : float, default 0.0
        Share of the training images that is held out first, in [0, 1): the same images for every seed and
        fraction.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    fraction: float = 1.0
    seed: int = 0
    validation: float = 0.0

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}; give a share of the images in (0, 1]")
        if not 0 <= self.validation < 1:
            raise InputError(f"validation is {self.validation}; give a share of the images in [0, 1)")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the seed of a subset is {self.seed}; give a whole number from 0 to 4294967295")
        # 1 and 1.0 are the same share, so they must be the same text in the key of a run.
        object.__setattr__(self, "fraction", float(self.fraction))
        object.__setattr__(self, "validation", float(self.validation))


def train_indices(labels: np.ndarray, subset: Subset) -> np.ndarray:
    """Rows of the training images that `subset` trains on.

    Parameters
    ----------
    labels : ndarray (N,) of integers
    subset : Subset

    Returns
    -------
    ndarray (n,) int64, sorted
        Depends on `labels` and `subset` alone.

    Raises
    ------
    InputError
        If a class would get no image.
    """
    rest, _ = _hold_out(labels, subset)
    if subset.fraction == 1:
        return rest
    drawn, _ = _split(rest, labels, subset.fraction, subset.seed, f"a fraction of {subset.fraction:g}")
    _require_every_class(labels, drawn, f"a fraction of {subset.fraction:g}")
    return drawn


def validation_indices(labels: np.ndarray, subset: Subset) -> np.ndarray:
    """Rows of the training images that `subset` holds out; see `train_indices`.

    Returns
    -------
    ndarray (n,) int64, sorted
        Empty if ``subset.validation`` is 0. The same for every ``subset.seed`` and ``subset.fraction``.
    """
    return _hold_out(labels, subset)[1]


def _hold_out(labels: np.ndarray, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(labels), dtype=np.int64)
    if subset.validation == 0:
        return rows, rows[:0]
    what = f"holding out a share of {subset.validation:g}"
    held_out, rest = _split(rows, labels, subset.validation, _VALIDATION_SEED, what)
    _require_every_class(labels, held_out, what)
    _require_every_class(labels, rest, what)
    return rest, held_out


def _split(rows, labels, share: float, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Stratified parts of `rows`, `share` of them and the others, each sorted."""
    # scikit-learn rounds a share down, and 0.29 * 100 is a little less than 29.
    n = round(share * len(rows))
    try:
        first, second = train_test_split(rows, train_size=n, stratify=labels[rows], random_state=seed)
    except ValueError as error:
        raise InputError(f"{what} of {len(rows)} images is not possible: {error}") from error
    return np.sort(first), np.sort(second)


def _require_every_class(labels: np.ndarray, rows: np.ndarray, what: str) -> None:
    missing = np.setdiff1d(labels, labels[rows])
    if len(missing):
        raise InputError(f"{what} leaves no image of class {missing[0]}; choose another share or add images")


def load_images(name: str, data: str | Path | None = None, download: bool = False) -> ImageSet:
    """Load an image set.

    Parameters
    ----------
    name : {"digits", "cifar10"}
        ``digits``: scikit-learn's 8x8 grey digits, enlarged to 16x16, 1,347 for training and 450 for testing.
        ``cifar10``: CIFAR-10, or the reader's own images instead of it.
    data : str or Path, optional
        Where ``cifar10`` is; the environment variable IGKD_DATA if not given, else ``data/cifar10`` under the
        current directory. One of

        - a folder that contains ``cifar-10-batches-py``, the official files as torchvision lays them out;
        - an image folder, ``train/<class>/*`` and ``test/<class>/*``: .png, .jpg or .jpeg, all of one size;
        - an ``.npz`` file with ``train_images``, ``test_images`` (N, H, W, 3) uint8, ``train_labels``,
          ``test_labels`` (N,) integers, and ``class_names`` (strings);
        - the word ``download``: the official files, downloaded to ``data/cifar10`` if they are not there.
    download : bool, default False
        Download the official files to `data` if they are not there.

    Returns
    -------
    ImageSet
        Named ``cifar10`` if its classes are CIFAR-10's ten, else after the file or folder.

    Raises
    ------
    MissingImages
        If `data` is not given and nothing is found.
    InputError
        If there is nothing at `data`, or what is found is damaged or not in one of these forms.
    """
    if name == "digits":
        if data is not None or download:
            raise InputError("the digits of the demo come with scikit-learn; leave out --data, or add --profile laptop")
        return _digits()
    if name != "cifar10":
        raise InputError(f"there is no image set {name!r}; choose digits or cifar10")
    given = data or os.environ.get("IGKD_DATA")
    download = download or given == DOWNLOAD
    # Not Path.expanduser, which fails for a user that is not known; this leaves the name, and nothing is there.
    path = OFFICIAL_FOLDER if given in (None, "", DOWNLOAD) else Path(os.path.expanduser(given))
    try:
        if download or (path / "cifar-10-batches-py").is_dir():
            return _official(path, download)
        if path == OFFICIAL_FOLDER and not given:
            raise MissingImages(f"no CIFAR-10 here; {_WAYS}")
        if (path / "train").is_dir():
            return _from_folder(path)
        if path.suffix == ".npz" and path.is_file():
            return _from_npz(path)
        raise InputError(f"{path} is {'not one of the forms known' if path.exists() else 'not there'}; {_WAYS}")
    except OSError as error:  # a folder without permission, a name that is too long
        raise InputError(f"{path} cannot be read: {_line(error)}; mend its permissions, or give other data") from error


def _official(folder: Path, download: bool) -> ImageSet:
    # Here, because the other sources do without torch, which takes seconds to import.
    from torchvision.datasets import CIFAR10

    # The constructor compares the MD5 of every file with the published one before it unpickles the first.
    try:
        train = CIFAR10(folder, train=True, download=download)
        test = CIFAR10(folder, train=False)
    except (OSError, RuntimeError, HTTPException) as error:
        if download:
            raise InputError(f"cannot download CIFAR-10 to {folder}: {_line(error)}; {_WAYS}") from error
        raise InputError(
            f"a file of {folder / CIFAR10.base_folder} is missing or is not the published one (MD5); delete "
            f"that folder and get the files again, for example with --data {DOWNLOAD}"
        ) from error
    return _checked(folder, train.data, np.array(train.targets), test.data, np.array(test.targets), CIFAR10_CLASSES)


def cut_official(images: ImageSet, n_train: int = 40_000) -> dict[str, np.ndarray]:
    """The official training images alone, cut in their order: the first to train on, the others to test on.

    The records of this repository are of CIFAR-10's ``data_batch_1`` to ``4``, tested on ``data_batch_5``.

    Parameters
    ----------
    images : ImageSet
        The official set; its test images are left out.
    n_train : int

    Returns
    -------
    dict
        The arrays of an ``.npz`` file.

    Raises
    ------
    InputError
        If it has no image more than `n_train`.
    """
    if len(images.train_labels) <= n_train:
        raise InputError(
            f"there are {len(images.train_labels):,} training images, so none is left after {n_train:,}; give the "
            f"official files (a folder with cifar-10-batches-py, or {DOWNLOAD})"
        )
    parts = {"train": slice(n_train), "test": slice(n_train, None)}
    arrays = {f"{part}_images": images.train_images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": images.train_labels[rows] for part, rows in parts.items()}
    return arrays | {"class_names": np.array(images.class_names)}


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file, ``class_names`` among them, without unpickling anything.

    Raises
    ------
    InputError
        If the file is damaged, lacks an array, or holds Python objects.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file, or was cut short; write it with numpy.savez")
    try:
        # Never unpickled: a pickle from elsewhere can run any code.
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}; save all of {', '.join(names)}")
            loaded = {name: np.asarray(arrays[name]) for name in names}
    except InputError:
        raise
    # What NumPy and zipfile raise depends on what is wrong: damage, encryption, compression, no room in memory.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read: {_line(error)}; write it with numpy.savez, without object arrays"
        ) from error
    classes = loaded["class_names"]
    if classes.dtype.kind != "U" or classes.ndim != 1:
        raise InputError(
            f"{path}: class_names is {classes.dtype} of shape {classes.shape}; give a row of strings, one a class"
        )
    return loaded


def _from_npz(path: Path) -> ImageSet:
    loaded = read_npz(path, _ARRAYS)
    return _checked(path, *(loaded[name] for name in _ARRAYS[:4]), tuple(loaded["class_names"].tolist()))


def _from_folder(folder: Path) -> ImageSet:
    classes = _subfolders(folder / "train")
    if _subfolders(folder / "test") != classes:
        differ = sorted(set(classes) ^ set(_subfolders(folder / "test")))
        raise InputError(
            f"{folder}: train and test do not have the same class folders ({', '.join(differ[:5])}); "
            "give both a folder for every class"
        )
    train, test = (_read_part(folder / part, classes) for part in ("train", "test"))
    return _checked(folder, *train, *test, classes)


def _subfolders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))


def _read_part(folder: Path, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    files, labels = [], []
    for label, name in enumerate(classes):
        # Sorted, because the order in which a folder is listed differs from machine to machine.
        found = sorted(file for file in (folder / name).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"{folder / name} has no .png, .jpg or .jpeg file; add some or remove the class")
        files += found
        labels += [label] * len(found)
    if not files:
        raise InputError(f"{folder} has no class folders; give {folder}/<class>/*.png")
    first = read_image(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, file in enumerate(files):
        image = read_image(file)
        if image.shape != first.shape:
            raise InputError(
                f"{file} has {image.shape[0]}x{image.shape[1]} pixels but {files[0]} has "
                f"{first.shape[0]}x{first.shape[1]}; bring all images to one size"
            )
        images[row] = image
    return images, np.array(labels)


def read_image(file: Path) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a .png or .jpeg file; a grey image gets three equal channels."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{file} has more than 8 bits a channel; save it with 8")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    # What Pillow raises for a damaged file depends on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as image: {_line(error)}; replace or remove it") from error


def _checked(source: Path, train_images, train_labels, test_images, test_labels, classes) -> ImageSet:
    """An image set of arrays that came from `source`, if they are sound."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"{source}: class_names must be two or more different names, not {list(classes)}")
    for part, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        check_images(f"{source}: {part}_images", images)
        _check_labels(f"{source}: {part}_labels", labels, len(images), classes)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise InputError(
            f"{source}: train_images are {train_images.shape[1:]} but test_images {test_images.shape[1:]}; "
            "bring all images to one size"
        )
    return ImageSet(
        # The published constants belong to the ten classes, wherever the file lies.
        name="cifar10" if set(classes) == set(CIFAR10_CLASSES) else source.resolve().stem,
        train_images=np.ascontiguousarray(train_images),
        train_labels=train_labels.astype(np.int64),
        test_images=np.ascontiguousarray(test_images),
        test_labels=test_labels.astype(np.int64),
        class_names=classes,
        flip=True,
    )


def check_images(what: str, images: np.ndarray) -> None:
    """Refuse what is no stack of images (N, H, W, 3) uint8 that the networks take; `what` is its name."""
    if images.dtype != np.uint8:
        raise InputError(f"{what} is {images.dtype}; save whole pixel values 0 to 255 as uint8")
    if images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"{what} has shape {images.shape}; give (images, height, width, 3)")
    if images.size == 0:
        raise InputError(f"{what} has shape {images.shape}; give at least one image of each class")
    if images.shape[1] % SIZE_MULTIPLE or images.shape[2] % SIZE_MULTIPLE:
        raise InputError(f"{what} has shape {images.shape}; height and width: multiples of {SIZE_MULTIPLE}")


def _check_labels(what: str, labels: np.ndarray, n: int, classes: tuple[str, ...]) -> None:
    if labels.dtype.kind not in "iu":
        raise InputError(f"{what} is {labels.dtype}; save whole numbers 0 to {len(classes) - 1} (int64)")
    if labels.shape != (n,):
        raise InputError(f"{what} has shape {labels.shape} but there are {n} images; give one label an image")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"{what} goes from {labels.min()} to {labels.max()} but there are {len(classes)} class_names; "
            f"use 0 to {len(classes) - 1}"
        )
    missing = np.setdiff1d(np.arange(len(classes)), labels)
    if len(missing):
        raise InputError(f"{what} has no image of class {classes[missing[0]]!r}; add some or drop the class")


def _digits() -> ImageSet:
    bunch = load_digits()
    # 16x16 leaves 2x2 after the network's three halvings; 8x8 would leave a single cell.
    small = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(image).resize((16, 16), Image.BILINEAR)) for image in small])
    images = np.repeat(grey[..., None], 3, axis=3)
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.25, stratify=bunch.target, random_state=_DIGITS_SEED
    )
    train, test = np.sort(train), np.sort(test)
    labels = bunch.target.astype(np.int64)
    return ImageSet(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in bunch.target_names),
        flip=False,
    )


def _line(error: Exception) -> str:
    """The error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
