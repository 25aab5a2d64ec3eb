"""What the teacher knows about each training image: logits, attention map, IG map, in data-set order.

Signals are computed once, on unaugmented images, and kept in files that carry the fingerprint of the images, the
digest of the teacher's weights, the version of the code and a checksum. The test that makes them trustworthy is
`check_alignment`: read back by data-set index, the cached logits must name the labels as often as the teacher does.
Only then is made of them what the run's variant asks for (`of_variant`).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igkd.attribution import (
    MAX_BATCH_SIZE,
    MAX_BATCH_SIZE_ACCELERATOR,
    completeness_error,
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
from igkd.images import ImageSet, as_input
from igkd.losses import attention_map
from igkd.models import MobileNetV2, attention_tap, state_digest
from igkd.runs import SIGNALS, Record, Run, SignalSpec, stream, write_atomically
from igkd.variants import ATTRIBUTIONS, KINDS, vary

#: Raised whenever a change of the code changes the signals: files that another version made are computed again. It is
#: no part of their names, so that they are found and replaced.
SIGNALS_VERSION = 1
IMAGES_AT_ONCE = 256
#: Attribution maps of so many images at a time are kept until those of all images are done, so that little is lost with
#: a program that is stopped. A multiple of every number of images at once, so that the batches are the same.
MAPS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Teacher:
    """A trained teacher and what is known of it.

    Attributes
    ----------
    model : MobileNetV2
    accuracy : float
        Share of the labels of the images at hand, a study's training images, that it names: all that is known of it
        may be a lower bound (see `of_run`).
    """

    model: MobileNetV2
    accuracy: float

    @classmethod
    def of_run(
        cls, model: MobileNetV2, metadata: Mapping[str, str], record: Record | None, sources: Collection[str]
    ) -> "Teacher":
        """With its accuracy in training, where the images at hand are those that it was trained on.

        Where that is not known, with the lower of its accuracies on training and test images: of the official 50,000
        images of CIFAR-10, the shipped teachers have seen 40,000.

        Parameters
        ----------
        model : MobileNetV2
        metadata : mapping
            Of its weights (see `igkd.models.weights_metadata`); ``accuracy`` is that lower one.
        record : Record or None
            Of its training, if it is here.
        sources : collection of str
            Fingerprints of image sets of which the images at hand are all training images or some.
        """
        teacher = cls(model, float(metadata["accuracy"]))
        if record is None or record.run.data not in sources:
            return teacher
        saw_all = record.run.subset.fraction == 1 and not record.run.subset.validation
        # The record may have come from a machine on which the same training gave other weights.
        if not saw_all or record.outcome.get("weights") != teacher.digest:
            return teacher
        return replace(teacher, accuracy=record.outcome["train_accuracy"])

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
        Gets one line when maps are computed and one with their completeness error, and one when a file is found stale
        or damaged.
    progress : callable
        Gets the number of maps done and their total.

    Raises
    ------
    InputError
        If the logits of the images do not fit the labels (see `check_alignment`), whatever the variant.
    """
    spec, method = run.signals, run.method

    def passed_on(of: ImageSet, settings: dict, keep, tap: int = 0) -> Tensor:
        tensors, _ = _cached(
            folder,
            of,
            teacher,
            settings,
            log,
            lambda: {"signal": _forward(teacher.model, of.train_images, compute, keep, tap)},
        )
        return tensors["signal"]

    def logits_of(of: ImageSet) -> Tensor:
        return passed_on(of, {"kind": "logits"}, lambda logits, _: logits)

    own = logits_of(images)
    check_alignment(own, images.train_labels, teacher.accuracy)
    logits = attention = maps = None
    online = bool(method.alpha) and spec.variant == "online"
    if method.alpha and not online:
        of = _shown(run, images, "logits")
        logits = own if of is images else logits_of(of)
    if method.gamma:
        of = _shown(run, images, "attention")
        attention = passed_on(
            of, {"kind": "attention", "tap": tap}, lambda _, activation: attention_map(activation).half(), tap
        )
    if method.overlay_prob:
        of = _shown(run, images, "maps")
        maps = load_maps(of, teacher, spec, folder, compute, log, progress, say_read=False).maps
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


@dataclass(frozen=True, eq=False)
class Maps:
    """Attribution maps of all N training images for their labels, in data-set order.

    Attributes
    ----------
    maps : Tensor (N, H, W) float16, non-negative
    delta, rise : Tensor (N,) float32 or None
        Of each image, see `igkd.attribution.Attribution`; None for another attribution than integrated gradients.
    """

    maps: Tensor
    delta: Tensor | None = None
    rise: Tensor | None = None

    @property
    def completeness_error(self) -> float | None:
        """See `igkd.attribution.completeness_error`; of the values before they were made into maps and rounded."""
        return None if self.delta is None else completeness_error(self.delta, self.rise)


def load_maps(
    images: ImageSet,
    teacher: Teacher,
    spec: SignalSpec,
    folder: Path,
    compute: Compute,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say_read: bool = True,
) -> Maps:
    """Maps of all training images for their labels, read from `folder` or computed and kept there.

    They are of integrated gradients unless the variant of `spec` names another attribution. Those of many images are
    kept part by part: a program that was stopped goes on where it was.

    Parameters
    ----------
    images : ImageSet
    teacher : Teacher
    spec : SignalSpec
        Its `n_steps`, `baseline` and `variant` count.
    folder : path
    compute : Compute
        Device, and whether convolutions are of bfloat16.
    log : callable
        Gets one line when maps are computed, one with the completeness error of those of integrated gradients, and one
        when a file is found stale or damaged.
    progress : callable
        Gets the number of images done and N.
    say_read : bool
        Whether the completeness error is also said of maps that were only read.

    Returns
    -------
    Maps

    Raises
    ------
    OSError
        If the maps cannot be written.
    """
    settings = _maps_settings(spec)
    kind, n = settings["kind"], len(images.train_labels)
    name = f"{'IG' if kind == 'ig' else kind} maps of {n:,} images"
    if kind == "ig":
        name += f" with {spec.n_steps} steps"
    parts = [(first, min(first + MAPS_AT_A_TIME, n)) for first in range(0, n, MAPS_AT_A_TIME)]

    def attribute(model: MobileNetV2, x: Tensor, labels: Tensor, first: int) -> dict[str, Tensor]:
        if kind == "saliency":
            return {"signal": saliency(model, x, labels)}
        if kind == "smoothgrad":
            return {"signal": smoothgrad(model, x, labels, n_samples=spec.n_steps, seed=first)}
        if kind == "gradcam":
            return {"signal": grad_cam(model, model.features[-1], x, labels)}
        baseline = make_baseline(spec.baseline, x, model)
        found = integrated_gradients(model, x, labels, n_steps=spec.n_steps, baseline=baseline)
        return {"signal": saliency_map(found.attributions), "delta": found.delta, "rise": found.rise}

    def compute_part(model: MobileNetV2, first: int, end: int) -> dict[str, Tensor]:
        labels = torch.from_numpy(images.train_labels)
        if kind == "ig":  # makes its own batches of the points on all paths; what it does once a call is dear on a GPU
            at_once = IMAGES_AT_ONCE if compute.device == "cpu" else MAX_BATCH_SIZE_ACCELERATOR
        else:
            at_once = MAX_BATCH_SIZE.get(compute.device, IMAGES_AT_ONCE)
        made = []
        for rows in torch.arange(first, end).split(at_once):
            x = as_input(images.train_images[rows.numpy()], compute.device)
            with compute.autocast():
                attributed = attribute(model, x, labels[rows].to(compute.device), int(rows[0]))
            attributed["signal"] = attributed["signal"].half()
            made.append({name: tensor.cpu() for name, tensor in attributed.items()})
            progress(int(rows[-1]) + 1, n)
        return _joined(made)

    def compute_all() -> dict[str, Tensor]:
        log(f"computing the {name}")
        model = compute.prepare(teacher.model)
        if len(parts) == 1:
            return compute_part(model, *parts[0])
        made = [
            _cached(folder, images, teacher, settings | {"rows": rows}, log, partial(compute_part, model, *rows))[0]
            for rows in parts
        ]
        return _joined(made)

    tensors, computed = _cached(folder, images, teacher, settings, log, compute_all)
    if len(parts) > 1:
        for rows in parts:
            _file(folder, images, teacher.digest, settings | {"rows": rows}).unlink(missing_ok=True)
    maps = Maps(tensors["signal"], tensors.get("delta"), tensors.get("rise"))
    if kind == "ig" and (computed or say_read):
        log(f"{name}: completeness error {maps.completeness_error:.1%}")
    return maps


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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

    The classes that the cached logits name must agree with the labels as often as the teacher does on these images,
    less four standard errors, because they may be a sample of the images that its accuracy is of. Three images may
    always differ: bfloat16 turns one that lies between two classes, also where the teacher is right on all and there is
    no scatter. Logits of shuffled images agree with about one label in ten.

    Parameters
    ----------
    logits : Tensor (N, num_classes)
    labels : ndarray (N,) of integers
    teacher_accuracy : float
        `Teacher.accuracy`.

    Raises
    ------
    InputError
        If they do not.
    """
    n = len(labels)
    named = int((logits.argmax(1).numpy() == labels).sum())
    standard_error = (n * teacher_accuracy * (1 - teacher_accuracy)) ** 0.5
    if named < n * teacher_accuracy - max(4 * standard_error, 3):
        raise InputError(
            f"the teacher's cached logits name {named / n:.1%} of the labels, but the teacher is right on "
            f"{teacher_accuracy:.1%}: they belong to other images or another order; use the teacher with the data "
            "it was trained for"
        )


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


def _cached(
    folder, images, teacher, settings, log, make: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether they were made now; ``signal`` is one of them."""
    digest = teacher.digest
    described, path = _described(images, digest, settings), _file(folder, images, digest, settings)
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
            if header.get("of") != described:
                fault = "damaged (its description does not fit its name)"
            elif header.get("version") != str(SIGNALS_VERSION):
                fault = "stale (another version of the code made it)"
            elif header.get("sha256") != _checksum(tensors):
                fault = "damaged (its content does not fit its checksum)"
            else:
                return tensors, False
        except (SafetensorError, OSError) as error:
            fault = f"damaged ({error})"
        log(f"{path.name} is {fault}; it is computed again")
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    header = {"of": described, "version": str(SIGNALS_VERSION), "sha256": _checksum(tensors)}
    write_atomically(path, save(tensors, header))
    return tensors, True


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()
