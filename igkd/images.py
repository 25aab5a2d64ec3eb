"""The images: where they come from, and which of them a training sees.

Two image sets. ``digits`` are the handwritten digits that scikit-learn ships, real and offline. ``cifar10``
are the official files, or the reader's own images in a folder or an ``.npz`` file.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

from igkd import REPOSITORY
from igkd.errors import InputError, MissingImages, first_line
from igkd.runs import Subset

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Channel means and standard deviations of CIFAR-10's training pixels, as published.
CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
#: Where the official files are looked for, here and in the repository, and downloaded to.
OFFICIAL_FOLDER = Path("data/cifar10")
#: Value of ``data`` that asks for the official files.
DOWNLOAD = "download"
#: The network halves an image three times.
SIZE_MULTIPLE = 8

# One seed for every subset: all arms and all seeds are judged on the same held-out images.
_VALIDATION_SEED = 20_231
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_WAYS = (
    f"(1) download the official files with `--data {DOWNLOAD}` (170 MB into {OFFICIAL_FOLDER.as_posix()}), "
    "(2) give the folder that contains cifar-10-batches-py, or an image folder train/<class>/* with test/<class>/* "
    "(to evaluate a network, test/<class>/* alone), "
    f"or (3) give an .npz file with {', '.join(_ARRAYS)}, class_names; "
    "for (2) and (3) use --data PATH or the environment variable IGKD_DATA; in a notebook set `data` in its first cell"
)


def as_input(images: np.ndarray | Tensor, device: str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [0, 1], channels last in memory."""
    return torch.as_tensor(images).to(device).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training and test images with their labels.

    Attributes
    ----------
    name : str
    train_images, test_images : ndarray (N, H, W, 3) uint8
        There may be no training images, see `load_images`.
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
        return fingerprint_of((self.train_images, self.train_labels), (self.test_images, self.test_labels))

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

    def take(self, n_train: int, n_test: int) -> "ImageSet":
        """A smaller image set: stratified shares of the training and of the test images, the same each time.

        Raises
        ------
        InputError
            If there are fewer images, or a class would get none.
        """
        if n_train > self.n_train or n_test > self.n_test:
            found = f"{self.n_train:,} training and {self.n_test:,} test images, not {n_train:,} and {n_test:,}"
            raise InputError(
                f"there are {found} as this profile takes; for images of your own there is --profile paper"
            )
        train, _ = split_rows(self.train_labels, Subset(n_train / self.n_train))
        test, _ = split_rows(self.test_labels, Subset(n_test / self.n_test))
        taken = self.train_images[train], self.train_labels[train], self.test_images[test], self.test_labels[test]
        return ImageSet(self.name, *taken, self.class_names, self.flip)


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the rows of n images, evenly spread: the first of a folder, read class by class, are of one."""
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def fingerprint_of(*parts: tuple[np.ndarray, np.ndarray]) -> str:
    """First 16 hex digits of a SHA-256 over shapes, pixels and labels of each part: images with their labels."""
    digest = hashlib.sha256()
    for images, labels in parts:
        digest.update(repr(tuple(images.shape)).encode())
        digest.update(np.ascontiguousarray(images))
        # A fixed byte order, so that every machine finds the same fingerprint.
        digest.update(labels.astype("<i8"))
    return digest.hexdigest()[:16]


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

    num_classes = ImageSet.num_classes

    def __getattr__(self, name: str):
        raise AttributeError(name) if name.startswith("_") else self.missing


def split_rows(labels: np.ndarray, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training images that `subset` trains on, and those that it holds out.

    Parameters
    ----------
    labels : ndarray (N,) of integers
    subset : Subset

    Returns
    -------
    seen, held_out : ndarray (n,) int64, sorted
        They depend on `labels` and `subset` alone; which are held out, on neither its seed nor its fraction.

    Raises
    ------
    InputError
        If a class would get no image.
    """

    def split(rows: np.ndarray, share: float, seed: int) -> Iterable[np.ndarray]:
        # scikit-learn rounds a share down, and 0.29 * 100 is a little less than 29; so it is given numbers.
        n = round(share * len(rows))
        return map(np.sort, train_test_split(rows, train_size=n, stratify=labels[rows], random_state=seed))

    train, held_out = np.arange(len(labels), dtype=np.int64), np.arange(0, dtype=np.int64)
    try:
        if subset.validation > 0:
            held_out, train = split(train, subset.validation, _VALIDATION_SEED)
        if subset.fraction < 1:
            train, _ = split(train, subset.fraction, subset.seed)
    except ValueError as error:
        raise InputError(f"{subset} of {len(labels)} images is not possible: {first_line(error)}") from error
    for rows in (train, held_out) if len(held_out) else (train,):
        if len(missing := np.setdiff1d(labels, labels[rows])):
            raise InputError(f"{subset} leaves no image of class {missing[0]}; choose another share or add images")
    return train, held_out


def load_images(
    name: str, data: str | Path | None = None, test_alone: bool = False, log: Callable[[str], object] = print
) -> ImageSet:
    """Load an image set.

    Parameters
    ----------
    name : {"digits", "cifar10"}
        ``digits``: scikit-learn's 8x8 grey digits, enlarged to 16x16, 1,347 for training and 450 for testing.
        ``cifar10``: CIFAR-10, or other images instead of it.
    data : str or Path, optional
        Where ``cifar10`` is; the environment variable IGKD_DATA if not given, else the repository's ``data/cifar10``.
        A relative path is looked for in the current directory, then in the repository. One of

        - a folder that contains ``cifar-10-batches-py``, the official files as torchvision lays them out;
        - an image folder, ``train/<class>/*`` and ``test/<class>/*``, read like `torchvision.datasets.ImageFolder`:
          all images of one size;
        - an ``.npz`` file with ``train_images``, ``test_images`` (N, H, W, 3) uint8, ``train_labels``,
          ``test_labels`` (N,) integers, and ``class_names`` (strings);
        - the word ``download``: the official files, downloaded to the repository's ``data/cifar10`` if not there;
        - the word ``digits``: those.
    test_alone : bool, default False
        Test images are enough; then the set may have no training images, and classes without a test image.
    log : callable
        Is told how many images of a folder were loaded, and how many were left out and why.

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

    Examples
    --------
    >>> images = load_images("digits")
    >>> images.train_images.shape, images.n_test, images.class_names[:3]
    ((1347, 16, 16, 3), 450, ('0', '1', '2'))
    """
    if name not in ("digits", "cifar10"):
        raise InputError(f"there is no image set {name!r}; choose digits or cifar10")
    if "digits" in (name, data):
        if data not in (None, "digits"):
            how = "leave out --data, or add --profile laptop, or --profile paper for images of your own"
            raise InputError(f"the digits of the demo come with scikit-learn; {how}")
        return _digits()
    given = data or os.environ.get("IGKD_DATA")
    # Not Path.expanduser, which fails for a user that is not known; this leaves the name, and nothing is there.
    path = REPOSITORY / OFFICIAL_FOLDER if given in (None, "", DOWNLOAD) else Path(os.path.expanduser(given))
    if not path.exists() and (REPOSITORY / path).exists():
        path = REPOSITORY / path  # a notebook starts in its own folder
    if given == DOWNLOAD or (path / CIFAR10.base_folder).is_dir():
        arrays, classes = _official(path, given == DOWNLOAD), CIFAR10_CLASSES
    elif not given:
        raise MissingImages(f"no CIFAR-10 here; {_WAYS}")
    elif (path / "test").is_dir():
        classes, arrays = class_folders(path / "test"), {}
        for part in ("train", "test") if (path / "train").is_dir() else ("test",):
            if class_folders(path / part) != classes:
                raise InputError(f"{path}: train and test do not have the same class folders; give both every class")
            images, labels, left_out = read_folder(path / part, {each: label for label, each in enumerate(classes)})
            arrays |= {f"{part}_images": images, f"{part}_labels": labels}
            why = "".join(f", {n} {reason}" for reason, n in left_out.items())
            log(f"{path / part}: {len(images):,} images loaded, {left_out.total():,} files left out{why}")
    elif path.suffix == ".npz" and path.is_file():
        arrays = read_npz(path, _ARRAYS)
        classes = arrays["class_names"]
    else:
        raise InputError(f"{path} is {'not one of the forms known' if path.exists() else 'not there'}; {_WAYS}")
    return _checked(path, arrays, classes, test_alone)


def _official(folder: Path, download: bool) -> dict[str, np.ndarray]:
    # The constructor compares the MD5 of every file with the published one before it unpickles the first.
    try:
        train, test = CIFAR10(folder, download=download), CIFAR10(folder, train=False)
    except (OSError, RuntimeError) as error:
        why = f"the files in {folder} are not the published ones (MD5), or cannot be downloaded ({first_line(error)})"
        raise InputError(f"{why}; delete them, then {_WAYS}") from error
    return dict(zip(_ARRAYS, (train.data, np.array(train.targets), test.data, np.array(test.targets)), strict=True))


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that an ``.npz`` file has, and ``class_names`` as a tuple of strings.

    Raises
    ------
    InputError
        If the file is damaged, lacks ``class_names``, or holds Python objects.
    """
    try:
        # Never unpickled: a pickle from elsewhere can run any code.
        with np.load(path, allow_pickle=False) as file:
            classes = tuple(file["class_names"].astype(str).tolist())
            return {name: file[name] for name in names if name in file} | {"class_names": classes}
    # What NumPy and zipfile raise depends on what is wrong: damage, encryption, compression, no room in memory.
    except Exception as error:
        how = f"write {', '.join(names)}, class_names with numpy.savez, without object arrays"
        raise InputError(f"{path} cannot be read ({first_line(error)}); {how}") from error


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sorted names of the folders in `folder` that are not hidden."""
    found = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(entry.name for entry in found if entry.is_dir() and entry.name[0] != "."))


def read_folder(
    folder: Path, numbered: dict[str, int], side: int | None = None
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Read ``<class>/*`` like `torchvision.datasets.ImageFolder`: its endings, its order, folders within folders.

    Hidden files, among them the ``._x.png`` that macOS leaves, and folders that are no class are left out. Photographs
    are turned as their EXIF orientation says.

    Parameters
    ----------
    folder : path
    numbered : dict
        Name of a class folder -> its label.
    side : int, optional
        Bring images of any size to ``side`` x ``side`` pixels with a box filter. If not given, they must have one size.

    Returns
    -------
    images : ndarray (N, H, W, 3) uint8
    labels : ndarray (N,) int64
    left_out : Counter
        Reason -> number of files that were left out.

    Raises
    ------
    InputError
        If there is no image, one cannot be read, or their sizes differ.
    """
    left_out: Counter[str] = Counter()

    def is_loaded(file: str) -> bool:
        inside = Path(file).relative_to(folder).parts
        reasons = {
            "hidden": any(part.startswith(".") for part in inside),
            "not an image by their ending": not has_file_allowed_extension(file, IMG_EXTENSIONS),
            "of other classes": inside[0] not in numbered,
        }
        first = [reason for reason, holds in reasons.items() if holds][:1]
        left_out.update(first)
        return not first

    every = {name: numbered.get(name, -1) for name in class_folders(folder)}
    samples = make_dataset(folder, every, is_valid_file=is_loaded, allow_empty=True) if every else []
    if not samples:
        raise InputError(f"{folder} has no image of a class; give {folder}/<class>/* ({', '.join(IMG_EXTENSIONS)})")
    images = [_read_image(file, side) for file, _ in samples]
    for image, (file, _) in zip(images, samples, strict=True):
        if image.shape != images[0].shape:
            raise InputError(f"{file} has not the size of {samples[0][0]}; bring all images to one size")
    return np.stack(images), np.array([label for _, label in samples]), left_out


def _read_image(file: str, side: int | None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits a channel")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(upright.resize((side, side), Image.Resampling.BOX) if side else upright)
    # What Pillow raises for a damaged file depends on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as image ({first_line(error)}); replace or remove it") from error


def _checked(source: Path, arrays: dict[str, np.ndarray], classes: tuple[str, ...], test_alone: bool) -> ImageSet:
    """An image set of arrays that came from `source`, if they are sound."""
    if len(set(classes)) < max(2, len(classes)):
        raise InputError(f"{source}: there must be two or more classes of different names, not {list(classes)}")
    if test_alone and "test_images" in arrays:
        arrays = {"train_images": arrays["test_images"][:0], "train_labels": np.empty(0, np.int64)} | arrays
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise InputError(f"{source} lacks {', '.join(missing)}; {_WAYS}")
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"]
        check_arrays(f"{source}, {part}", arrays[f"{part}_images"], labels, classes)
        if not test_alone and (absent := set(range(len(classes))) - set(labels.tolist())):
            raise InputError(f"{source}, {part}: no image of class {classes[min(absent)]!r}; add some or drop it")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise InputError(f"{source}: train_images and test_images differ in size; bring all images to one size")
    if not len(arrays["test_labels"]):
        raise InputError(f"{source} has no test image; {_WAYS}")
    name = source.resolve().stem
    if set(classes) == set(CIFAR10_CLASSES):
        # The published constants belong to the ten classes, wherever the file lies; weights know them in their order.
        order = np.array([CIFAR10_CLASSES.index(each) for each in classes])
        arrays = arrays | {each: order[arrays[each]] for each in ("train_labels", "test_labels")}
        name, classes = "cifar10", CIFAR10_CLASSES
    sound = [arrays[each].astype(np.int64 if "labels" in each else np.uint8, order="C", copy=False) for each in _ARRAYS]
    return ImageSet(name, *sound, classes, flip=True)


def check_arrays(what: str, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Refuse what is no images (N, H, W, 3) uint8 that the networks take, with a label of `classes` for each."""
    h, w = images.shape[1:3] if images.ndim == 4 else (0, 0)
    if images.dtype != np.uint8 or not h * w or images.shape[3] != 3 or h % SIZE_MULTIPLE or w % SIZE_MULTIPLE:
        form = f"uint8 (images, height, width, 3), resized to a height and width that are multiples of {SIZE_MULTIPLE}"
        raise InputError(f"{what}: images are {images.dtype} {images.shape}; give {form}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(f"{what}: labels are {labels.dtype} {labels.shape}; give a whole number for each image")
    if len(labels) and (labels.min() < 0 or labels.max() >= len(classes)):
        raise InputError(f"{what}: labels go from {labels.min()} to {labels.max()}; use 0 to {len(classes) - 1}")


def _digits() -> ImageSet:
    pixels, labels = load_digits(return_X_y=True)
    # 16x16 leaves 2x2 after the network's three halvings; 8x8 would leave a single cell.
    small = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = (Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR).convert("RGB") for image in small)
    images, labels, rows = np.stack([np.asarray(image) for image in large]), labels.astype(np.int64), range(len(labels))
    train, test = map(np.sort, train_test_split(rows, test_size=0.25, stratify=labels, random_state=0))
    return ImageSet("digits", images[train], labels[train], images[test], labels[test], tuple("0123456789"), flip=False)
