"""What the teacher knows about each training image: logits, attention map, IG map, in data-set order.

Signals are computed once, on unaugmented images, and kept in files whose names are made of the images, the teacher's
weights and the settings. `check_alignment` makes them trustworthy: read back by data-set index, the cached logits must
name the labels. Then `of_variant` makes of them what the run's variant asks for.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from igkd import attribution
from igkd.attribution import MAX_BATCH_SIZE_ACCELERATOR, evaluating
from igkd.augment import crop_mirror, draw, pad
from igkd.controls import KINDS, vary
from igkd.device import Compute
from igkd.errors import InputError
from igkd.images import ImageSet, as_input
from igkd.losses import attention_map
from igkd.models import MobileNetV2, attention_tap, state_digest
from igkd.records import write_atomically
from igkd.runs import SIGNALS, Run, SignalSpec, digest, stream

#: Part of the names of the files: raise it when a change of the code changes the signals.
SIGNALS_VERSION = 2
IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Teacher:
    """A trained teacher and its accuracy (a fraction) on test or training images."""

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
    """

    logits: Tensor | None = None
    attention: Tensor | None = None
    maps: Tensor | None = None

    def to(self, device: str) -> "Signals":
        """The same signals on another device."""
        return Signals(*(part if part is None else part.to(device) for part in vars(self).values()))


def load_signals(
    run: Run, images: ImageSet, teacher: Teacher, folder: Path, compute: Compute, log: Callable
) -> Signals:
    """The signals of which a run's variant is made, read from `folder` or computed and kept there.

    Parameters
    ----------
    run : Run
        Its seed does not matter, so runs with equal `needed` share signals.
    images : ImageSet
    teacher : Teacher
    folder : path
    compute : Compute
    log : callable
        Gets a line when maps are computed.

    Raises
    ------
    InputError
        If the logits of the images do not fit the labels (see `check_alignment`), whatever the variant.
    """
    spec, padding, distils, tap, overlays = needed(run)

    def shown(kind: str) -> ImageSet:
        return _augmented_once(images, kind, padding) if spec.variant == "released" else images

    keeps = {"logits": lambda logits, _: logits, "attention": lambda _, activation: attention_map(activation).half()}

    def passed_on(of: ImageSet, kind: str, **settings) -> Tensor:
        given = teacher.model, of.train_images, compute, keeps[kind], settings.get("tap", 0)
        return cached(_file(folder, of, teacher, kind, **settings), lambda: {"signal": _forward(*given)})["signal"]

    logits = passed_on(images, "logits")
    check_alignment(logits, images.train_labels, teacher.accuracy)
    if spec.variant == "released" and distils:
        logits = passed_on(shown("logits"), "logits")
    return Signals(
        logits if distils else None,
        passed_on(shown("attention"), "attention", tap=tap) if tap is not None else None,
        load_maps(shown("maps"), teacher, spec, folder, compute, log) if overlays else None,
    )


def needed(run: Run) -> tuple:
    """What `load_signals` makes a run's signals of: its `SignalSpec`, padding, which kinds (attention by its tap)."""
    method = run.method
    tap = attention_tap(run.architecture.blocks_removed) if method.gamma else None
    return run.signals, run.recipe.padding, bool(method.alpha), tap, bool(method.overlay_prob)


def of_variant(run: Run, signals: Signals) -> Signals:
    """Apply the run's variant to the signals of `load_signals`, with the run's seed."""
    made = {}
    for number, kind in enumerate(KINDS):
        if (signal := getattr(signals, kind)) is not None:
            made[kind] = vary(run.signals.variant, kind, signal, stream(run.seed, SIGNALS, number))
    return replace(signals, **made)


def load_maps(
    images: ImageSet, teacher: Teacher, spec: SignalSpec, folder: Path, compute: Compute, log: Callable
) -> Tensor:
    """IG maps (N, H, W) float16 of all training images for their labels, read from `folder` or computed and kept there.

    They have the steps and the baseline of `spec`. The other parameters are those of `load_signals`; `log` gets two
    lines when maps are computed, the second with their completeness error (see `igkd.attribution`).
    """
    # IG makes its own batches of the points on all paths; what it does once a call is dear on a GPU.
    at_once = IMAGES_AT_ONCE if compute.device == "cpu" else MAX_BATCH_SIZE_ACCELERATOR

    def make() -> dict[str, Tensor]:
        log(f"computing the IG maps of {images.n_train:,} images with {spec.n_steps} steps")
        model, parts = compute.prepare(teacher.model), []
        for rows in torch.arange(images.n_train).split(at_once):
            x = as_input(images.train_images[rows.numpy()], compute.device)
            labels = torch.from_numpy(images.train_labels)[rows].to(compute.device)
            baseline = attribution.make_baseline(spec.baseline, x, model)
            with compute.autocast():
                found = attribution.integrated_gradients(model, x, labels, n_steps=spec.n_steps, baseline=baseline)
            maps = attribution.saliency_map(found.attributions).half()
            parts.append({"maps": maps.cpu(), "delta": found.delta.cpu(), "rise": found.rise.cpu()})
        made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        error = attribution.completeness_error(made["delta"], made["rise"])
        log(f"IG maps of {images.n_train:,} images with {spec.n_steps} steps: completeness error {error:.1%}")
        return made

    return cached(_file(folder, images, teacher, kind="IG", n_steps=spec.n_steps, baseline=spec.baseline), make)["maps"]


def attention_maps(model: MobileNetV2, images: np.ndarray, tap: int, compute: Compute) -> Tensor:
    """Attention maps of a network for any images, to be looked at.

    Parameters
    ----------
    model : MobileNetV2
        Teacher or student.
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


def _augmented_once(images: ImageSet, kind: str, padding: int) -> ImageSet:
    """The training images under one random crop and mirror, for all runs the same, another for each kind of signal."""
    n = len(images.train_labels)
    drawn = draw(n, stream(0, SIGNALS, len(KINDS) + KINDS.index(kind)), padding=padding, mirror=images.flip)
    padded = pad(torch.from_numpy(images.train_images), padding)
    return replace(images, train_images=crop_mirror(padded, torch.arange(n), drawn, images.size).numpy())


def check_alignment(logits: Tensor, labels: np.ndarray, teacher_accuracy: float) -> None:
    """Check that signals read by data-set index belong to the images of that index.

    The teacher's cached logits must name at least half as many labels beyond chance as the teacher does. Shuffled
    logits name labels by chance, one in K, so a good teacher's are never taken for the right ones.

    Parameters
    ----------
    logits : Tensor (N, K)
    labels : ndarray (N,) of integers
    teacher_accuracy : float
        On any images like these: a test accuracy will do.

    Raises
    ------
    InputError
        If they do not.
    """
    named, chance = float((logits.argmax(1).numpy() == labels).mean()), 1 / logits.shape[1]
    # A teacher that is no better than chance names no label by which its own logits could be known.
    if teacher_accuracy > chance and named < chance + (teacher_accuracy - chance) / 2:
        why = f"the teacher's cached logits name {named:.1%} of the labels, the teacher {teacher_accuracy:.1%}"
        raise InputError(f"{why}: other images or another order; use the teacher with the data it was trained for")


@torch.no_grad()
def _forward(model: MobileNetV2, images: np.ndarray, compute: Compute, keep, tap: int = 0) -> Tensor:
    kept = []
    with evaluating(compute.prepare(model)), compute.autocast():
        for batch in torch.from_numpy(images).split(IMAGES_AT_ONCE):
            kept.append(keep(*(part.float() for part in model(as_input(batch, compute.device), tap))).cpu())
    return torch.cat(kept)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file; where it is missing or cannot be read they are made and written."""
    with suppress(FileNotFoundError, SafetensorError):
        return load_file(path)
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    write_atomically(path, save(tensors))
    return tensors


def _file(folder: Path, images: ImageSet, teacher: Teacher, kind: str, **settings) -> Path:
    of = {"images": images.fingerprint, "teacher": teacher.digest, "version": SIGNALS_VERSION, **settings}
    return Path(folder) / f"{kind}-{digest(of)}.safetensors"
