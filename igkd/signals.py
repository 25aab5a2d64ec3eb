"""What the teacher knows about each training image: logits, attention map, IG map, in data-set order.

Signals are computed once, on unaugmented images, and kept in files that carry the fingerprint of the images, the
digest of the teacher's weights and a checksum. The test that makes them trustworthy is `check_alignment`: read back
by data-set index, the cached logits must name the labels as often as the teacher does. Only then is made of them what
the run's variant asks for (`of_variant`).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igkd.attribution import (
    MAX_BATCH_SIZE,
    MAX_BATCH_SIZE_ACCELERATOR,
    grad_cam,
    integrated_gradients,
    make_baseline,
    saliency,
    saliency_map,
    smoothgrad,
)
from igkd.augment import crop_mirror, draw, pad
from igkd.device import Compute
from igkd.errors import InputError
from igkd.images import ImageSet
from igkd.losses import attention_map
from igkd.models import MobileNetV2, attention_tap, state_digest
from igkd.runs import SIGNALS, Run, SignalSpec, stream, write_atomically
from igkd.variants import ATTRIBUTIONS, KINDS, vary

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Teacher:
    """A trained teacher and what is known of it.

    Attributes
    ----------
    model : MobileNetV2
    accuracy : float
        The lower of its accuracies on its own training and test images, a fraction.
    """

    model: MobileNetV2
    accuracy: float

    @cached_property
    def digest(self) -> str:
        """Digest of the weights."""
        return state_digest(self.model)


@dataclass(frozen=True)
class Signals:
    """Teacher signals for all N training images, in data-set order; None where the method needs none.

    Attributes
    ----------
    logits : Tensor (N, num_classes) float32
    attention : Tensor (N, h * w) float16, unit length
    maps : Tensor (N, H, W) float16, non-negative
    teacher : MobileNetV2
        Where the logits are computed at each step in place of `logits` (variant ``online``); as it is trained, for
        inference.
    """

    logits: Tensor | None = None
    attention: Tensor | None = None
    maps: Tensor | None = None
    teacher: MobileNetV2 | None = None

    def to(self, device: str) -> "Signals":
        """The same signals on another device."""
        moved = (getattr(self, name) for name in self.__dataclass_fields__)
        return Signals(*(part if part is None else part.to(device) for part in moved))


def load_signals(
    run: Run,
    images: ImageSet,
    teacher: Teacher,
    tap: int | None,
    folder: Path,
    compute: Compute,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Signals:
    """The signals of which a run's variant is made, read from `folder` or computed and kept there.

    They do not depend on the run's seed, so that runs with equal `needed` share them.

    Parameters
    ----------
    run : Run
    images : ImageSet
    teacher : Teacher
    tap : int or None
        Entry of ``features`` whose attention map is taken; not needed without attention transfer.
    folder : path
    compute : Compute
    log : callable
        Gets one line when maps are computed, or when a file is found damaged.
    progress : callable
        Gets the number of maps done and their total.

    Raises
    ------
    InputError
        If the logits of the images do not fit the labels (see `check_alignment`), whatever the variant.
    """
    spec, method = run.signals, run.method

    def logits_of(of: ImageSet) -> Tensor:
        return _cached(
            folder,
            of,
            teacher,
            {"kind": "logits"},
            log,
            lambda: _forward(teacher.model, of.train_images, compute, lambda logits, _: logits),
        )

    own = logits_of(images)
    check_alignment(own, images.train_labels, teacher.accuracy)
    logits = attention = maps = None
    online = bool(method.alpha) and spec.variant == "online"
    if method.alpha and not online:
        of = _shown(run, images, "logits")
        logits = own if of is images else logits_of(of)
    if method.gamma:
        of = _shown(run, images, "attention")
        attention = _cached(
            folder,
            of,
            teacher,
            {"kind": "attention", "tap": tap},
            log,
            lambda: _forward(
                teacher.model, of.train_images, compute, lambda _, activation: attention_map(activation).half(), tap
            ),
        )
    if method.overlay_prob:
        maps = attribution_maps(_shown(run, images, "maps"), teacher, spec, folder, compute, log, progress)
    return Signals(logits, attention, maps, compute.prepare(teacher.model).eval() if online else None)


def needed(run: Run) -> tuple:
    """On what the signals that `load_signals` gives a run depend, besides the images."""
    method = run.method
    tap = attention_tap(run.architecture.blocks_removed) if method.gamma else None
    return run.signals, run.recipe.padding, bool(method.alpha), tap, bool(method.overlay_prob)


def maps_file(run: Run, images: ImageSet, teacher_digest: str | None, folder: Path) -> Path:
    """Where `load_signals` keeps the attribution maps of a run; all runs with the same file share them.

    Parameters
    ----------
    run : Run
        That learns from maps.
    images : ImageSet
    teacher_digest : str or None
        `Teacher.digest`; None for a teacher that is still to be trained, of which there is no file.
    folder : path
        As for `load_signals`.
    """
    return _file(folder, _shown(run, images, "maps"), teacher_digest, _maps_settings(run.signals))


def of_variant(run: Run, images: ImageSet, signals: Signals) -> Signals:
    """What the run's variant makes with its seed of the signals that `load_signals` gave."""
    made = {}
    for kind in KINDS:
        signal = getattr(signals, kind)
        if signal is not None:
            generator = stream(run.seed, SIGNALS, KINDS.index(kind))
            made[kind] = vary(run.signals.variant, kind, signal, images.train_images, images.train_labels, generator)
    return replace(signals, **made)


def attribution_maps(
    images: ImageSet,
    teacher: Teacher,
    spec: SignalSpec,
    folder: Path,
    compute: Compute,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Maps (N, H, W) float16 of all training images for their labels, read from `folder` or computed.

    They are of integrated gradients unless the variant of `spec` names another attribution, and computed in the
    precision of `compute`; `progress` gets the number of images done and N.
    """
    settings = _maps_settings(spec)
    kind = settings["kind"]

    def attribute(model: MobileNetV2, x: Tensor, labels: Tensor, first: int) -> Tensor:
        if kind == "saliency":
            return saliency(model, x, labels)
        if kind == "smoothgrad":
            return smoothgrad(model, x, labels, n_samples=spec.n_steps, seed=first)
        if kind == "gradcam":
            return grad_cam(model, model.features[-1], x, labels)
        baseline = make_baseline(spec.baseline, x, model)
        return saliency_map(
            integrated_gradients(model, x, labels, n_steps=spec.n_steps, baseline=baseline).attributions
        )

    def compute_maps() -> Tensor:
        name = f"IG maps of {len(images.train_labels):,} images with {spec.n_steps} steps"
        log(f"computing the {name if kind == 'ig' else f'{kind} maps of {len(images.train_labels):,} images'}")
        model = compute.prepare(teacher.model)
        labels = torch.from_numpy(images.train_labels)
        maps = []
        if kind == "ig":  # makes its own batches of the points on all paths; what it does once a call is dear on a GPU
            at_once = IMAGES_AT_ONCE if compute.device == "cpu" else MAX_BATCH_SIZE_ACCELERATOR
        else:
            at_once = MAX_BATCH_SIZE.get(compute.device, IMAGES_AT_ONCE)
        for rows in torch.arange(len(labels)).split(at_once):
            x = as_input(images.train_images[rows.numpy()], compute.device)
            with compute.autocast():
                attributed = attribute(model, x, labels[rows].to(compute.device), int(rows[0]))
            maps.append(attributed.half().cpu())
            progress(int(rows[-1]) + 1, len(labels))
        return torch.cat(maps)

    return _cached(folder, images, teacher, settings, log, compute_maps)


def _maps_settings(spec: SignalSpec) -> dict:
    """What attribution maps of the same images and teacher may differ in."""
    kind = spec.variant if spec.variant in ATTRIBUTIONS else "ig"
    settings = {"kind": kind}
    if kind == "ig":
        settings |= {"n_steps": spec.n_steps, "baseline": spec.baseline}
    elif kind == "smoothgrad":
        settings |= {"n_samples": spec.n_steps}
    return settings


def attention_maps(model: MobileNetV2, images: np.ndarray, tap: int, compute: Compute) -> Tensor:
    """Attention maps of a network for any images, to be looked at.

    Parameters
    ----------
    model : MobileNetV2
        Teacher or student; put into evaluation mode.
    images : ndarray (N, H, W, 3) uint8
    tap : int
        See `igkd.models.attention_tap`.
    compute : Compute

    Returns
    -------
    Tensor (N, h, w)
        Float32, on the CPU; each map has unit length (see `igkd.losses.attention_map`).
    """

    def keep(_, activation: Tensor) -> Tensor:
        return attention_map(activation).unflatten(1, activation.shape[2:])

    return _forward(model, images, compute, keep, tap)


def _shown(run: Run, images: ImageSet, kind: str) -> ImageSet:
    """The images that the teacher sees: their fingerprint tells the files of the signals apart."""
    return _augmented_once(images, kind, run.recipe.padding) if run.signals.variant == "released" else images


def _augmented_once(images: ImageSet, kind: str, padding: int) -> ImageSet:
    """The training images under one random crop and mirror, for all runs the same, another for each kind of signal."""
    n = len(images.train_labels)
    drawn = draw(n, stream(0, SIGNALS, len(KINDS) + KINDS.index(kind)), padding=padding, mirror=images.flip)
    padded = pad(torch.from_numpy(images.train_images), padding)
    return replace(images, train_images=crop_mirror(padded, torch.arange(n), drawn, images.size).numpy())


def check_alignment(logits: Tensor, labels: np.ndarray, teacher_accuracy: float) -> None:
    """Assert that signals read by data-set index belong to the images of that index.

    The classes that the cached logits name must agree with the labels as often as the teacher is right, less four
    standard errors. Logits of shuffled images agree with about one label in ten.

    Raises
    ------
    InputError
        If they do not.
    """
    agreement = float((logits.argmax(1).numpy() == labels).mean())
    standard_error = (teacher_accuracy * (1 - teacher_accuracy) / len(labels)) ** 0.5
    if agreement < teacher_accuracy - 4 * standard_error:
        raise InputError(
            f"the teacher's cached logits name {agreement:.1%} of the labels, but the teacher is right on "
            f"{teacher_accuracy:.1%}: they belong to other images or another order; use the teacher with the data "
            "it was trained for"
        )


def as_input(images: np.ndarray | Tensor, device: str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [0, 1], channels last in memory."""
    return torch.as_tensor(images).to(device).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _forward(model: MobileNetV2, images: np.ndarray, compute: Compute, keep, tap: int = 0) -> Tensor:
    model = compute.prepare(model).eval()
    kept = []
    for batch in torch.from_numpy(images).split(IMAGES_AT_ONCE):
        with compute.autocast():
            kept.append(keep(*(part.float() for part in model(as_input(batch, compute.device), tap))).cpu())
    return torch.cat(kept)


def _described(images: ImageSet, teacher_digest: str | None, settings: dict) -> str:
    return json.dumps({"images": images.fingerprint, "teacher": teacher_digest, **settings}, sort_keys=True)


def _file(folder, images: ImageSet, teacher_digest: str | None, settings: dict) -> Path:
    described = _described(images, teacher_digest, settings)
    return Path(folder) / f"{settings['kind']}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"


def _cached(folder, images, teacher, settings, log, make: Callable[[], Tensor]) -> Tensor:
    digest = teacher.digest
    described, path = _described(images, digest, settings), _file(folder, images, digest, settings)
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                tensor, metadata = file.get_tensor("signal"), file.metadata()
            if metadata == {"of": described, "sha256": _checksum(tensor)}:
                return tensor
            reason = "its content does not fit its checksum"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        log(f"{path.name} is damaged ({reason}); it is computed again")
    tensor = make().contiguous()
    write_atomically(path, save({"signal": tensor}, {"of": described, "sha256": _checksum(tensor)}))
    return tensor


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy())).hexdigest()
