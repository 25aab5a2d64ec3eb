"""Trained networks on images that differ from those they were trained on: what they answer is counted and kept.

A confusion matrix of counts is all that is kept of an evaluation, because every measure here follows from it. It lies
in ``records/shift/<name>/<key of the run>-<fingerprint of the images>.json``, so that figures and verdicts are redrawn
where neither the weights nor the images are.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix
from torchvision.transforms.v2 import functional as transform

from igkd.engine import Study
from igkd.errors import InputError
from igkd.experiments import Planned
from igkd.imagenet import ImageNetSubset
from igkd.models import MobileNetV2, state_digest
from igkd.runs import write_atomically
from igkd.training import predict

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


@dataclass(frozen=True)
class Evaluation:
    """What a trained network answered on one image set.

    Attributes
    ----------
    name : str
        ``imagenet``, ``imagenet-corrected`` or ``robustness``.
    run : str
        Key of the run that trained the network.
    fingerprint : str
        Of the images, their labels, and what was done to them.
    images : str
        The same in words.
    teacher : str
        Key of the teacher that decides what is teacher-correct; empty where none does.
    weights : str
        Digest of the weights that were evaluated.
    confusions : dict
        Condition -> counts (num_classes, num_classes), a row for each true class, a column for each answer.
    machine : str
    """

    name: str
    run: str
    fingerprint: str
    images: str
    teacher: str
    weights: str
    confusions: dict[str, list[list[int]]]
    machine: str


def measures(confusion) -> dict:
    """Accuracy measures of a confusion matrix.

    Parameters
    ----------
    confusion : (K, K) array_like of int
        Counts; rows are true classes, columns answers.

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``kappa`` (Cohen 1960),
        ``per_class_accuracy`` (recall; NaN for a class that does not occur), as fractions; ``n_test``.
    """
    counts = np.asarray(confusion, dtype=float)
    total, true, answered = counts.sum(), counts.sum(1), counts.sum(0)
    if not total:
        nothing = np.full(len(counts), np.nan)
        return dict.fromkeys(("accuracy", "balanced_accuracy", "kappa"), np.nan) | {
            "per_class_accuracy": nothing,
            "n_test": 0,
        }
    accuracy, by_chance = counts.trace() / total, float(true @ answered) / total**2
    recall = np.divide(np.diag(counts), true, out=np.full(len(counts), np.nan), where=true > 0)
    return {
        "accuracy": float(accuracy),
        "balanced_accuracy": float(np.nanmean(recall)),
        "kappa": float((accuracy - by_chance) / (1 - by_chance)) if by_chance < 1 else np.nan,
        "per_class_accuracy": recall,
        "n_test": int(total),
    }


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
    if kind == "JPEG":
        x = transform.jpeg(x, int(level))
    elif kind == "noise":
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(_NOISE_SEED)
            x = transform.gaussian_noise(x, sigma=level)
    elif kind == "blur":
        x = transform.gaussian_blur(x, 2 * ceil(3 * level) + 1, level)
    elif kind == "contrast":
        x = transform.adjust_contrast(x, level)
    elif kind == "brightness":
        x = transform.adjust_brightness(x, level)
    else:
        raise InputError(f"no corruption {kind!r}; choose one of: {', '.join(CORRUPTIONS)}")
    return x.permute(0, 2, 3, 1).contiguous().numpy()


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
        Runs that could not be evaluated, because their weights are not here (see `Study.student`).
    """
    right: list[np.ndarray] = []

    def count(model: MobileNetV2) -> dict[str, np.ndarray]:
        if not right:
            right.append(_answers(study.teacher().model, subset.images, study) == subset.labels)
        answers, classes = _answers(model, subset.images, study), study.images.num_classes
        groups = {ALL: slice(None), TEACHER_CORRECT: right[0]}
        return {group: _confusion(subset.labels[rows], answers[rows], classes) for group, rows in groups.items()}

    name = "imagenet-corrected" if subset.corrected else "imagenet"
    return _evaluate(study, planned, name, subset.fingerprint, str(subset), study.plan.teacher_key, count)


def under_corruption(study: Study, planned: list[Planned]) -> int:
    """Evaluate the networks of these runs on corrupted test images, where that is not done yet.

    Returns
    -------
    int
        Runs that could not be evaluated, because their weights are not here (see `Study.student`).
    """
    images = study.images
    made: dict[str, np.ndarray] = {}

    def count(model: MobileNetV2) -> dict[str, np.ndarray]:
        if not made:
            made.update(conditions(images.test_images))
        return {
            condition: _confusion(images.test_labels, _answers(model, pictures, study), images.num_classes)
            for condition, pictures in made.items()
        }

    name, fingerprint = "robustness", robustness_fingerprint(study)
    return _evaluate(study, planned, name, fingerprint, f"{images.n_test:,} test images", "", count)


def robustness_fingerprint(study: Study) -> str:
    """Fingerprint of the test images and of the corruptions."""
    spec = json.dumps([study.fingerprint, CORRUPTIONS, _NOISE_SEED])
    return hashlib.sha256(spec.encode()).hexdigest()[:16]


def kept(study: Study, planned: list[Planned], name: str, fingerprint: str | None = None) -> pd.DataFrame:
    """The evaluations that are kept of these runs.

    Parameters
    ----------
    study : Study
    planned : list of Planned
    name : str
        See `Evaluation`.
    fingerprint : str, optional
        Of the image set. If not given, the one on which most of the runs were evaluated (of several, the first in
        alphabetical order): different image sets are never pooled.

    Returns
    -------
    DataFrame
        One row a run and condition: its labels, ``key``, ``condition``, the measures of `measures`, ``confusion``
        (ndarray), ``images`` (in words), ``fingerprint``. Empty if nothing is kept.
    """
    keys = {item.run.key for item in planned}
    found = [path for path in _folder(study, name).glob("*-*.json") if path.stem.split("-")[0] in keys]
    read = [evaluation for path in found if (evaluation := _read(path)).teacher in ("", study.plan.teacher_key)]
    if fingerprint is None and read:
        counts = Counter(each.fingerprint for each in read)
        fingerprint = min(counts, key=lambda one: (-counts[one], one))
    by_key = {each.run: each for each in read if each.fingerprint == fingerprint}
    return pd.DataFrame(
        [
            item.labels
            | {"key": item.run.key, "condition": condition}
            | measures(confusion)
            | {"confusion": np.array(confusion), "images": by_key[item.run.key].images, "fingerprint": fingerprint}
            for item in planned
            if item.run.key in by_key
            for condition, confusion in by_key[item.run.key].confusions.items()
        ]
    )


def _evaluate(
    study: Study,
    planned: list[Planned],
    name: str,
    fingerprint: str,
    images: str,
    teacher: str,
    count: Callable[[MobileNetV2], dict[str, np.ndarray]],
) -> int:
    without_weights, done = 0, 0
    for item in planned:
        key = item.run.key
        path = _folder(study, name) / f"{key}-{fingerprint}.json"
        if path.exists() and _read(path).teacher == teacher:
            continue
        model = study.teacher().model if key == study.plan.teacher_key else study.student(item.run)
        if model is None:
            without_weights += 1
            continue
        confusions = {condition: counts.tolist() for condition, counts in count(model).items()}
        machine = study.compute.describe()["name"]
        evaluation = Evaluation(name, key, fingerprint, images, teacher, state_digest(model), confusions, machine)
        write_atomically(path, (json.dumps(asdict(evaluation)) + "\n").encode())
        done += 1
    if done:
        study.log(f"{name}: {done} networks evaluated")
    return without_weights


def _folder(study: Study, name: str) -> Path:
    return study.store.root / "shift" / name


def _read(path: Path) -> Evaluation:
    try:
        return Evaluation(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no kept evaluation ({error}); delete it and it is made again") from error


def _answers(model: MobileNetV2, images: np.ndarray, study: Study) -> np.ndarray:
    return predict(model, images, study.compute).argmax(1).numpy()


def _confusion(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    if not len(labels):  # scikit-learn refuses to count nothing
        return np.zeros((num_classes, num_classes), int)
    return confusion_matrix(labels, answers, labels=np.arange(num_classes))
