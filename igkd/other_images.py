"""Trained networks on other images than those they were trained on: ImageNet's, and corrupted ones.

Which ImageNet synset (a WordNet number such as n02690373) belongs to which class of CIFAR-10 is data, `mapping`.

What is kept of an evaluation, confusion matrices and answers, lies in ``records/shift/<name>/<key of the
run>-<fingerprint of the images>.json``, so that figures and verdicts are redrawn where neither the weights nor the
images are.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import functional as transform

from igkd.errors import InputError
from igkd.experiments import Planned
from igkd.images import CIFAR10_CLASSES, check_arrays, class_folders, fingerprint_of, read_folder, read_npz
from igkd.models import MobileNetV2, state_digest
from igkd.records import pack_predictions, unpack_predictions, write_atomically
from igkd.study import Study
from igkd.training import confusion, measures, predict

#: The environment variable that says where the ImageNet images are.
VARIABLE = "IGKD_IMAGENET"
#: How to get them; the end of every message about missing or damaged ones.
WAYS = (
    "(1) the ILSVRC 2012 validation images of image-net.org sorted into val/<synset>/*, (2) a folder test/<class>/* "
    "with CIFAR-10's class names, or (3) an .npz file with test_images, test_labels and class_names; name it in the "
    f"environment variable {VARIABLE} or with -p imagenet PATH"
)
#: Kinds of corruption and their levels: JPEG quality, standard deviation of the noise as a share of the range of
#: pixels, standard deviation of the blur in pixels, factors of contrast (about the mean grey) and of brightness.
CORRUPTIONS = {
    "JPEG": (75, 50, 25, 10),
    "noise": (0.04, 0.08),
    "blur": (0.5, 1.0),
    "contrast": (0.5, 0.25),
    "brightness": (1.5, 0.5, 0.25),
}
CLEAN = "clean"
#: Groups of the ImageNet images: all of them, and those that the teacher gets right.
ALL, TEACHER_CORRECT = "all", "teacher_correct"
_NOISE_SEED = 0
_SIDE = 32  # of an ImageNet image, in pixels
#: What a network is shown: conditions with their images and labels, made when the first network is evaluated.
Shown = Callable[[], Iterator[tuple[str, np.ndarray, np.ndarray]]]


@dataclass(frozen=True, eq=False)
class ImageNetSubset:
    """ImageNet images with CIFAR-10 labels.

    Attributes
    ----------
    images : ndarray (N, 32, 32, 3) uint8
    labels : ndarray (N,) int64
        Indices into `igkd.images.CIFAR10_CLASSES`; classes may be missing.
    left_out : int
        Files that were found and belong to no mapped class, or are no images.
    source : str
        What they were read from, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    left_out: int
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over shape, pixels and labels."""
        return fingerprint_of((self.images, self.labels))

    def __str__(self) -> str:
        others = f", {self.left_out:,} others left out" * bool(self.left_out)
        return f"{len(self.images):,} images from {self.source}{others}"


def mapping() -> pd.DataFrame:
    """The published mapping of synsets to classes, and what can be argued about in it.

    Returns
    -------
    DataFrame
        One row a synset: ``wnid``, ``name``, ``cifar10`` (the published class; empty for a synset that the published
        mapping does not have), ``corrected`` (the class that it ought to have; empty where none
        fits), ``debatable`` (why the two differ; empty where they do not), ``source``.
    """
    path = Path(__file__).with_name("published") / "imagenet_mapping.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def load_imagenet(path: str | Path | None = None) -> ImageNetSubset:
    """Load the ImageNet images of the mapped classes.

    Parameters
    ----------
    path : str or Path, optional
        The environment variable IGKD_IMAGENET if not given. One of

        - a folder with ``val/<synset>/*``, the ILSVRC validation images at any size: brought to 32x32 with a box
          filter, not cropped, as downsampled ImageNet is (Chrabaszcz et al. 2017);
        - a folder with ``test/<class>/*``, named as CIFAR-10's classes are, of any size too;
        - an ``.npz`` file with ``test_images`` (N, 32, 32, 3) uint8, ``test_labels`` (N,) and ``class_names``.

    Raises
    ------
    InputError
        If nothing is found, or what is found is damaged.

    Notes
    -----
    Of CINIC-10 only the files ``n*.png`` are from ImageNet: copy those. ImageNet 32x32 (``val_data``, a pickle: of a
    copy that you trust) becomes the third form by::

        batch = pickle.load(open("val_data", "rb"))
        wnids = [line.split()[0] for line in open("map_clsloc.txt")]
        known = mapping().set_index("wnid").cifar10.reindex(wnids).fillna("")
        numpy.savez("imagenet.npz", test_images=batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
                    test_labels=pandas.factorize(known)[0][numpy.array(batch["labels"]) - 1],
                    class_names=pandas.factorize(known)[1].to_numpy(str))
    """
    given = path or os.environ.get(VARIABLE)
    if not given:
        raise InputError(f"no ImageNet images were named; get {WAYS}")
    path = Path(os.path.expanduser(given))
    folder = next((each for each in (path / "val", path / "test", path) if class_folders(each)), None)
    numbers = {name: number for number, name in enumerate(CIFAR10_CLASSES)}
    if folder is not None:
        if any(folder.glob("*/cifar10-*")):
            raise InputError(f"{folder} has images of CIFAR-10 (cifar10-*); copy only those of ImageNet, n*.png")
        source = "a folder"
        if any(re.fullmatch(r"n\d{8}", name) for name in class_folders(folder)):
            source = "the ILSVRC validation images, published mapping"
            numbers = mapping().set_index("wnid").cifar10.map(numbers).dropna().astype(int).to_dict()
        images, labels, left_out = read_folder(folder, numbers, _SIDE)
        return ImageNetSubset(images, labels, left_out.total(), source)
    if not path.is_file():
        raise InputError(f"{path} is {'none of the forms known' if path.exists() else 'not there'}; get {WAYS}")
    arrays = read_npz(path, ("test_images", "test_labels"))
    if len(arrays) < 3:
        raise InputError(f"{path} has only {', '.join(arrays)}; get {WAYS}")
    images, labels, classes = arrays.values()
    check_arrays(str(path), images, labels, classes)
    labels = np.array([numbers.get(name, -1) for name in classes])[labels]
    mapped = labels >= 0
    if images.shape[1:3] != (_SIDE, _SIDE) or not mapped.any():
        raise InputError(f"{path} has no images of {_SIDE}x{_SIDE} pixels with CIFAR-10's class names; get {WAYS}")
    return ImageNetSubset(images[mapped], labels[mapped], int((~mapped).sum()), "an .npz file")


#: What is kept of an evaluation: `fingerprint` is of the images, their labels and what was done to them, `images` the
#: same in words; `teacher` decides what is teacher-correct (empty where none does); `weights` is a digest. `confusions`
#: has, for each condition, counts with a row a true class; `predictions` the answers (`igkd.records`).
KEPT = ("name", "run", "fingerprint", "images", "teacher", "weights", "confusions", "predictions", "machine")


def corrupted(images: np.ndarray, kind: str, level: float) -> np.ndarray:
    """Images after one corruption, the same each time.

    Parameters
    ----------
    images : ndarray (N, H, W, 3) uint8
    kind : {"JPEG", "noise", "blur", "contrast", "brightness"}
    level : float
        See `CORRUPTIONS`.

    Returns
    -------
    ndarray (N, H, W, 3) uint8

    Notes
    -----
    The transforms are torchvision's (``torchvision.transforms.v2.functional``).
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with torch.random.fork_rng(devices=[]):  # torchvision draws noise from the global generator
        torch.manual_seed(_NOISE_SEED)
        made = {
            "JPEG": lambda: transform.jpeg(x, int(level)),
            "noise": lambda: transform.gaussian_noise(x, sigma=level),
            "blur": lambda: transform.gaussian_blur(x, 2 * ceil(3 * level) + 1, level),
            "contrast": lambda: transform.adjust_contrast(x, level),
            "brightness": lambda: transform.adjust_brightness(x, level),
        }[kind]()
    return made.permute(0, 2, 3, 1).contiguous().numpy()


def conditions(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The images as they are and after each corruption of `CORRUPTIONS`, with the name of the condition."""
    yield CLEAN, images
    for kind, levels in CORRUPTIONS.items():
        for level in levels:
            yield f"{kind} {level:g}", corrupted(images, kind, level)


def on_imagenet(study: Study, planned: list[Planned], subset: ImageNetSubset) -> int:
    """Evaluate the networks of these runs on ImageNet images, where that is not done yet.

    Parameters
    ----------
    study : Study
        Of CIFAR-10's ten classes.
    planned : list of Planned
        The teacher's own run may be among them.
    subset : ImageNetSubset

    Returns
    -------
    int
        Runs that could not be evaluated, because their weights are not here (see `Study.network`).
    """

    def shown() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        right = _answers(study.teacher().model, subset.images, study) == subset.labels
        for group, rows in ((ALL, slice(None)), (TEACHER_CORRECT, right)):
            yield group, subset.images[rows], subset.labels[rows]

    return _evaluate(study, planned, "imagenet", subset.fingerprint, str(subset), study.plan.teacher_key, shown)


def under_corruption(study: Study, planned: list[Planned]) -> int:
    """Evaluate the networks of these runs on corrupted test images, where that is not done yet.

    Returns
    -------
    int
        Runs that could not be evaluated, because their weights are not here (see `Study.network`).
    """

    def shown() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for condition, pictures in conditions(study.images.test_images):
            yield condition, pictures, study.images.test_labels

    fingerprint, images = robustness_fingerprint(study), f"{study.images.n_test:,} test images"
    return _evaluate(study, planned, "robustness", fingerprint, images, "", shown)


def robustness_fingerprint(study: Study) -> str:
    """Fingerprint of the test images and of the corruptions."""
    spec = json.dumps([study.images.fingerprint, CORRUPTIONS, _NOISE_SEED])
    return hashlib.sha256(spec.encode()).hexdigest()[:16]


def kept(study: Study, planned: list[Planned], name: str, fingerprint: str | None = None) -> pd.DataFrame:
    """The evaluations that are kept of these runs.

    Parameters
    ----------
    study : Study
    planned : list of Planned
    name : str
        See `KEPT`.
    fingerprint : str, optional
        Of the image set. If not given, the one on which most of the runs were evaluated (of several, the first in
        alphabetical order): different image sets are never pooled.

    Returns
    -------
    DataFrame
        One row a run and condition: its labels, ``key``, ``condition``, the measures of `measures`, ``confusion``
        (ndarray), ``predictions`` (N,) uint8, ``images`` (in words), ``fingerprint``. Empty if nothing is kept.
    """
    keys = {item.run.key for item in planned}
    found = [path for path in study.store.root.glob(f"shift/{name}/*-*.json") if path.stem.split("-")[0] in keys]
    read = [evaluation for path in found if (evaluation := _read(path))["teacher"] in ("", study.plan.teacher_key)]
    if fingerprint is None and read:
        fingerprint = pd.Series([each["fingerprint"] for each in read]).mode()[0]
    by_key = {each["run"]: each for each in read if each["fingerprint"] == fingerprint}
    rows = []
    for item in [each for each in planned if each.run.key in by_key]:
        found = by_key[item.run.key]
        for condition, counts in found["confusions"].items():
            of = {"key": item.run.key, "condition": condition, "confusion": np.array(counts), "images": found["images"]}
            of |= {"fingerprint": fingerprint, "predictions": unpack_predictions(found["predictions"][condition])}
            rows.append(item.labels | of | measures(counts))
    return pd.DataFrame(rows)


def _evaluate(study: Study, planned, name: str, fingerprint: str, images: str, teacher: str, shown: Shown) -> int:
    without_weights, done, made = 0, 0, []
    for item in planned:
        key = item.run.key
        path = study.store.root / "shift" / name / f"{key}-{fingerprint}.json"
        if path.exists() and _read(path)["teacher"] == teacher:
            continue
        model = study.network(item.run)
        if model is None:
            without_weights += 1
            continue
        made, n = made or list(shown()), study.images.num_classes
        answers = {condition: _answers(model, pictures, study) for condition, pictures, _ in made}
        confusions = {condition: confusion(labels, answers[condition], n).tolist() for condition, _, labels in made}
        predictions = {condition: pack_predictions(each) for condition, each in answers.items()}
        of_run = name, key, fingerprint, images, teacher, state_digest(model), confusions, predictions
        evaluation = dict(zip(KEPT, (*of_run, study.compute.describe()["name"]), strict=True))
        write_atomically(path, (json.dumps(evaluation) + "\n").encode())
        done += 1
    if done:
        study.log(f"{name}: {done} networks evaluated")
    return without_weights


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
        return {field: found[field] for field in KEPT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no kept evaluation ({error}); delete it and it is made again") from error


def _answers(model: MobileNetV2, images: np.ndarray, study: Study) -> np.ndarray:
    return predict(model, images, study.compute).argmax(1).numpy()
