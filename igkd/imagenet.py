"""ImageNet images of the classes that CIFAR-10 has: other photographs, never seen in a training.

Which synset (a WordNet number such as n02690373) belongs to which class is data, `mapping`. The images come from the
reader's own copy of ImageNet in any of four forms.
"""

import codecs
import hashlib
import os
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from igkd.errors import InputError
from igkd.images import CIFAR10_CLASSES, IMAGE_SUFFIXES, check_images, read_image, read_npz

#: Side of an image in pixels.
SIZE = 32
#: The environment variable that says where the images are.
VARIABLE = "IGKD_IMAGENET"
#: How to get the images; the end of every message about missing or damaged ones.
WAYS = (
    "(1) the ILSVRC 2012 validation images of image-net.org sorted into val/<synset>/*.JPEG, (2) the file val_data of "
    "ImageNet 32x32 from image-net.org with map_clsloc.txt of the ILSVRC development kit beside it, (3) CINIC-10 "
    "(doi 10.7488/ds/2448), the folder with test/<class>/*.png, or (4) an .npz file with test_images, test_labels and "
    f"class_names; name it in the environment variable {VARIABLE} or with -p imagenet PATH"
)

_SYNSET = re.compile(r"n\d{8}")
_ARRAYS = ("test_images", "test_labels", "class_names")


@dataclass(frozen=True, eq=False)
class ImageNetSubset:
    """ImageNet images with CIFAR-10 labels.

    Attributes
    ----------
    images : ndarray (N, 32, 32, 3) uint8
    labels : ndarray (N,) int64
        Indices into `igkd.images.CIFAR10_CLASSES`; classes may be missing.
    left_out : int
        Images that were found and belong to no mapped class.
    source : str
        What they were read from, in words.
    by_synset : bool
        Whether the labels come from synsets through `mapping`, so that its correction can be asked for.
    corrected : bool
        Whether the labels follow the corrected mapping.
    """

    images: np.ndarray
    labels: np.ndarray
    left_out: int
    source: str
    by_synset: bool
    corrected: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over shape, pixels and labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(self.labels.astype("<i8"))
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        mapping = "corrected mapping" if self.corrected else "published mapping"
        how = mapping if self.by_synset else "classes as the source has them"
        return f"{len(self.images):,} images from {self.source}, {how}, {self.left_out:,} others left out"


def mapping() -> pd.DataFrame:
    """The published mapping of synsets to classes, and what may be corrected in it.

    Returns
    -------
    DataFrame
        One row a synset: ``wnid``, ``name``, ``cifar10`` (the published class; empty for a synset that the published
        mapping does not have), ``corrected`` (the class in the corrected mapping; empty where it is left out),
        ``debatable`` (why the two differ; empty where they do not), ``source``.
    """
    with files("igkd").joinpath("published", "imagenet_mapping.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def load_imagenet(path: str | Path | None = None, corrected: bool = False) -> ImageNetSubset:
    """Load the ImageNet images of the mapped classes.

    Parameters
    ----------
    path : str or Path, optional
        The environment variable IGKD_IMAGENET if not given. One of

        - a folder with ``val/<synset>/*.JPEG``, the ILSVRC validation images at any size: brought to 32x32 with a box
          filter, not cropped, as downsampled ImageNet is (Chrabaszcz et al. 2017);
        - ``val_data`` of downsampled ImageNet 32x32, or its folder, with ``map_clsloc.txt`` beside it, which numbers
          the synsets from 1. It is a pickle, of which only arrays, lists, numbers and texts are read;
        - a folder with ``test/<class>/*.png``, CINIC-10: only its part from ImageNet, ``n*.png``;
        - an ``.npz`` file with ``test_images`` (N, 32, 32, 3) uint8, ``test_labels`` (N,) and ``class_names``.
    corrected : bool, default False
        Take the corrected mapping instead of the published one; for the first two forms only, because the other two
        come with classes.

    Raises
    ------
    InputError
        If nothing is found, what is found is damaged, or the correction is not possible.
    """
    given = path or os.environ.get(VARIABLE)
    if not given:
        raise InputError(f"no ImageNet images were named; get {WAYS}")
    path = Path(given).expanduser()
    pickled = path / "val_data" if path.is_dir() else path
    validation = next((folder for folder in (path / "val", path) if _synset_folders(folder)), None)
    cinic = next((folder for folder in (path / "test", path) if _class_folders(folder)), None)
    by_synset = pickled.is_file() and path.suffix != ".npz" or validation is not None
    if corrected and (cinic is not None or path.suffix == ".npz") and not by_synset:
        raise InputError(f"{path} has classes, not synsets, so they cannot be mapped anew; get (1) or (2) of: {WAYS}")
    if path.suffix == ".npz" and path.is_file():
        (images, labels, left_out), source = _from_npz(path), "an .npz file"
    elif pickled.is_file():
        (images, labels, left_out), source = _from_pickle(pickled, corrected), "downsampled ImageNet 32x32"
    elif validation is not None:
        (images, labels, left_out), source = _from_validation(validation, corrected), "the ILSVRC validation images"
    elif cinic is not None:
        (images, labels, left_out), source = _from_cinic(cinic), "the ImageNet part of CINIC-10"
    else:
        raise InputError(f"{path} is {'none of the forms known' if path.exists() else 'not there'}; get {WAYS}")
    if not len(images):
        raise InputError(f"{path} has no image of a mapped class; get {WAYS}")
    return ImageNetSubset(images, labels.astype(np.int64), left_out, source, by_synset, corrected)


def _classes_of_synsets(corrected: bool) -> dict[str, int]:
    table = mapping()
    column = table["corrected" if corrected else "cifar10"]
    return {wnid: CIFAR10_CLASSES.index(name) for wnid, name in zip(table.wnid, column, strict=True) if name}


def _synset_folders(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in found if _SYNSET.fullmatch(entry.name) and entry.is_dir())


def _class_folders(folder: Path) -> list[Path]:
    return [folder / name for name in CIFAR10_CLASSES if (folder / name).is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _from_validation(folder: Path, corrected: bool) -> tuple[np.ndarray, np.ndarray, int]:
    classes = _classes_of_synsets(corrected)
    chosen, labels, left_out = [], [], 0
    for synset in _synset_folders(folder):
        found = _files(synset)
        if synset.name in classes:
            chosen += found
            labels += [classes[synset.name]] * len(found)
        else:
            left_out += len(found)
    return _read_all(chosen), np.array(labels), left_out


def _from_cinic(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    chosen, labels, left_out = [], [], 0
    for entry in _class_folders(folder):
        found = _files(entry)
        of_imagenet = [file for file in found if _SYNSET.match(file.name)]  # the others are CIFAR-10's own images
        chosen += of_imagenet
        labels += [CIFAR10_CLASSES.index(entry.name)] * len(of_imagenet)
        left_out += len(found) - len(of_imagenet)
    return _read_all(chosen), np.array(labels), left_out


def _read_all(chosen: list[Path]) -> np.ndarray:
    images = np.empty((len(chosen), SIZE, SIZE, 3), np.uint8)
    for row, file in enumerate(chosen):
        images[row] = Image.fromarray(read_image(file)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return images


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    loaded = read_npz(path, _ARRAYS)
    images, labels = loaded["test_images"], loaded["test_labels"]
    names = loaded["class_names"].tolist()
    check_images(f"{path}: test_images", images)
    if images.shape[1:3] != (SIZE, SIZE):
        raise InputError(f"{path}: test_images are {images.shape[1:3]}; bring them to {SIZE}x{SIZE}")
    _check_labels(f"{path}: test_labels", labels, len(images), 0, len(names) - 1)
    known = np.array([CIFAR10_CLASSES.index(name) if name in CIFAR10_CLASSES else -1 for name in names])
    return _mapped(images, known[labels])


def _from_pickle(path: Path, corrected: bool) -> tuple[np.ndarray, np.ndarray, int]:
    order = path.with_name("map_clsloc.txt")
    if not order.is_file():
        raise InputError(f"{order} is not there, which says which synset each label of {path.name} is; get {WAYS}")
    numbered = [
        line.split() for line in order.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    sound = all(len(line) >= 2 and _SYNSET.fullmatch(line[0]) for line in numbered)
    if not numbered or not sound or [line[1] for line in numbered] != [str(n + 1) for n in range(len(numbered))]:
        raise InputError(f"{order} must have lines such as 'n02119789 1 kit_fox', numbered from 1; get {WAYS}")
    content = read_arrays(path)
    if not isinstance(content, dict) or not {"data", "labels"} <= set(content):
        raise InputError(f"{path} must hold 'data' and 'labels'; get {WAYS}")
    data, labels = content["data"], np.asarray(content["labels"])
    channels = 3 * SIZE * SIZE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != channels:
        raise InputError(f"{path}: data must be uint8 of shape (images, {channels}), ImageNet 32x32; get {WAYS}")
    _check_labels(f"{path}: labels", labels, len(data), 1, len(numbered))
    classes = _classes_of_synsets(corrected)
    known = np.array([classes.get(line[0], -1) for line in numbered])
    kept, mapped, left_out = _mapped(data, known[labels - 1])
    return np.ascontiguousarray(kept.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)), mapped, left_out


def _mapped(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    inside = labels >= 0
    return images[inside], labels[inside], int((~inside).sum())


def _check_labels(what: str, labels: np.ndarray, n: int, lowest: int, highest: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise InputError(
            f"{what} is {labels.dtype} of shape {labels.shape}; give one whole number for each of {n} images"
        )
    if n and (labels.min() < lowest or labels.max() > highest):
        raise InputError(f"{what} goes from {labels.min()} to {labels.max()}; the classes are {lowest} to {highest}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


# An array is rebuilt by three functions: two that numpy names itself, under a module that moved in numpy 2, and the one
# by which Python writes bytes in old protocols. Nothing else that a pickle asks for is looked up.
_REBUILD, _FROM_BUFFER = np.empty(1).__reduce__()[0], np.empty(1).__reduce_ex__(5)[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _REBUILD for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return _ALLOWED[module, name]


def read_arrays(path: Path):
    """Content of a pickle of arrays, lists, dicts, numbers and texts; code in it is not executed.

    Raises
    ------
    InputError
        If it asks for anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}; get {WAYS}"
        ) from error
