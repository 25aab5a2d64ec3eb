"""What the teacher knows about each training image: logits, attention map, IG map, in data-set order.

Signals are computed once, on unaugmented images, and kept in files that carry the fingerprint of the images, the
digest of the teacher's weights and a checksum. The test that makes them trustworthy is `check_alignment`: read back
by data-set index, the cached logits must name the labels as often as the teacher does.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igkd.attribution import integrated_gradients, make_baseline, saliency_map
from igkd.device import Compute
from igkd.errors import InputError
from igkd.images import ImageSet
from igkd.losses import attention_map
from igkd.models import MobileNetV2, state_digest
from igkd.runs import Run, SignalSpec, write_atomically

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

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return state_digest(self.model)


@dataclass(frozen=True)
class Signals:
    """Teacher signals of all N training images, in data-set order; None where the method needs none.

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
        moved = (getattr(self, name) for name in self.__dataclass_fields__)
        return Signals(*(tensor if tensor is None else tensor.to(device) for tensor in moved))


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
    """The signals that a run learns from, read from `folder` or computed and kept there.

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
        Gets the number of IG maps done and their total.

    Raises
    ------
    InputError
        If the logits do not fit the labels (see `check_alignment`).
    """
    spec, method = run.signals, run.method
    logits = _cached(
        folder,
        images,
        teacher,
        {"kind": "logits"},
        log,
        lambda: _forward(teacher.model, images.train_images, compute, lambda logits, _: logits),
    )
    check_alignment(logits, images.train_labels, teacher.accuracy)
    attention = maps = None
    if method.gamma:
        attention = _cached(
            folder,
            images,
            teacher,
            {"kind": "attention", "tap": tap},
            log,
            lambda: _forward(
                teacher.model, images.train_images, compute, lambda _, activation: attention_map(activation).half(), tap
            ),
        )
    if method.overlay_prob:
        maps = ig_maps(images, teacher, spec, folder, compute, log, progress)
    return Signals(logits if method.alpha else None, attention, maps)


def ig_maps(
    images: ImageSet,
    teacher: Teacher,
    spec: SignalSpec,
    folder: Path,
    compute: Compute,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """IG maps (N, H, W) float16 of all training images for their labels, read from `folder` or computed.

    They are computed in the precision of `compute`; `progress` gets the number of images done and N.
    """
    settings = {"kind": "ig", "n_steps": spec.n_steps, "baseline": spec.baseline}

    def compute_maps() -> Tensor:
        log(f"computing the IG maps of {len(images.train_labels):,} images with {spec.n_steps} steps")
        model = compute.prepare(teacher.model)
        labels = torch.from_numpy(images.train_labels)
        maps = []
        for rows in torch.arange(len(labels)).split(IMAGES_AT_ONCE):
            x = as_input(images.train_images[rows.numpy()], compute.device)
            with compute.autocast():
                result = integrated_gradients(
                    model,
                    x,
                    labels[rows].to(compute.device),
                    n_steps=spec.n_steps,
                    baseline=make_baseline(spec.baseline, x, model),
                )
            maps.append(saliency_map(result.attributions).half().cpu())
            progress(int(rows[-1]) + 1, len(labels))
        return torch.cat(maps)

    return _cached(folder, images, teacher, settings, log, compute_maps)


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


def _cached(folder, images, teacher, settings, log, make: Callable[[], Tensor]) -> Tensor:
    described = json.dumps({"images": images.fingerprint, "teacher": teacher.digest, **settings}, sort_keys=True)
    path = Path(folder) / f"{settings['kind']}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"
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
