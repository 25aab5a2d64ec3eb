"""One training: a function of a `Run`, its images and its signals.

All random numbers come from the run's seed and the epoch's number, drawn on the CPU, so a training that was
interrupted goes on exactly as if it had not been, and arms with the same seed see the same images in the same order
under the same crops.
"""

import copy
import io
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score, recall_score
from torch import Tensor, nn
from torch.nn import functional as F

from igkd import __version__
from igkd.augment import Draw, crop_mirror, cutout, draw, move_attention, overlay, pad
from igkd.device import Compute, Replayed
from igkd.errors import InputError, TrainingError, first_line
from igkd.images import ImageSet, train_indices, validation_indices
from igkd.losses import attention_loss, attention_map, distillation_loss
from igkd.models import MobileNetV2, attention_tap, pack_weights, state_digest
from igkd.optimizers import make_optimizer, orthogonalise_gradients, pointwise_weights
from igkd.runs import AUGMENTATION, DROPOUT, ORDER, WEIGHTS, Record, Run, Store, stream, write_atomically
from igkd.signals import Signals, as_input

CHECKPOINT_EVERY_SECONDS = 20
EVALUATION_BATCH = {"cpu": 128}
EVALUATION_BATCH_ACCELERATOR = 1024


def train(
    run: Run,
    images: ImageSet,
    store: Store,
    compute: Compute,
    signals: Signals = Signals(),
    teacher_digest: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Record:
    """Train and evaluate one network.

    Parameters
    ----------
    run : Run
    images : ImageSet
        With the run's fingerprint.
    store : Store
        Where checkpoints and the weights are written; the record is returned, not stored. The last checkpoint of a long
        training stays: whoever keeps the record removes it.
    compute : Compute
    signals : Signals
        Of all training images of `images`.
    teacher_digest : str, optional
        Digest of the weights that the signals come from.
    log : callable
        Gets one line an epoch.

    Returns
    -------
    Record

    Raises
    ------
    TrainingError
        If the loss stops being finite, or the weights cannot be written.
    InputError
        If the images are others than the run's.
    """
    if images.fingerprint != run.data:
        raise InputError(f"the run is of the images {run.data}, not of {images.fingerprint}; give it those")
    rows = torch.from_numpy(train_indices(images.train_labels, run.subset))
    start = stream(run.seed, WEIGHTS), run.recipe.zero_init_residual
    model = run.architecture.build(images.num_classes, images.mean_std, *start)
    threads = torch.get_num_threads()
    # Sums are taken in another order by another number of threads, so the number must depend on the run alone.
    torch.set_num_threads(threads if trains_alone(run) else 1)
    try:
        with compute.stream():
            return _fit(run, model, rows, images, store, compute, signals, teacher_digest, log)
    finally:
        torch.set_num_threads(threads)


def trains_alone(run: Run) -> bool:
    """Whether a training gets all processor cores, rather than one core beside other trainings.

    Two trainings, each on a core of its own, are done sooner than one after the other on both cores; but whatever
    waits for a teacher waits less if it has all cores.
    """
    return run.architecture.blocks_removed == 0


def takes_long(work: float) -> bool:
    """Whether a training of so many multiply-accumulates (of all forward passes) takes many minutes on a processor."""
    return work > 8e12


def _fit(run, model, rows, images, store, compute, signals, teacher_digest, log) -> Record:
    recipe = run.recipe
    model = compute.prepare(model)
    optimizer, scheduler = make_optimizer(model, recipe, max(1, len(rows) // recipe.batch_size))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint = store.checkpoint_path(run.key)
    history, seconds = _restore(checkpoint, parts, teacher_digest, log)
    loop = _Loop(run, images, signals, rows, compute, model, optimizer)

    def repeated(measured: bool) -> Replayed:
        def update(rows: Tensor, *drawn: Tensor):
            return loop.update(rows, Draw(*drawn), measured)

        return Replayed(update, optimizer, compute.capture, log)

    update, measure = repeated(False), repeated(True)
    saved = -math.inf
    for epoch in range(len(history), recipe.num_epochs):
        started = time.monotonic()
        means = loop.epoch(update, measure, scheduler, epoch)
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the loss is {means['loss']} in epoch {epoch + 1}; lower lr, alpha or gamma")
        elapsed = time.monotonic() - started
        seconds += elapsed
        history.append({"epoch": epoch + 1} | means)
        log(
            f"epoch {epoch + 1}/{recipe.num_epochs}  loss {means['loss']:.3f}  "
            f"train accuracy {means['train_accuracy']:.1%}  {elapsed:.1f} s"
        )
        if elapsed > CHECKPOINT_EVERY_SECONDS or time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
            _checkpoint(checkpoint, parts, {"teacher": teacher_digest, "history": history, "seconds": seconds})
            saved = time.monotonic()

    scored = validation_indices(images.train_labels, run.subset) if run.split == "validation" else None
    test_images = images.test_images if scored is None else images.train_images[scored]
    test_labels = images.test_labels if scored is None else images.train_labels[scored]
    trained_on = rows.numpy()
    outcome = evaluate(model, test_images, test_labels, compute)
    if not math.isfinite(outcome["loss"]):  # the last step can break the weights after its own loss was fine
        raise TrainingError(f"the loss is {outcome['loss']} after training; lower lr, alpha or gamma")
    train_accuracy = evaluate(model, images.train_images[trained_on], images.train_labels[trained_on], compute)
    outcome |= {
        "train_accuracy": train_accuracy["accuracy"],
        "n_train": len(rows),
        "history": history,
        "weights": state_digest(model),
        "teacher_weights": teacher_digest,
    }
    replayed = {} if compute.capture is None else {"replayed": update.is_replayed or measure.is_replayed}
    provenance = {
        "data": images.name,
        "seconds": round(seconds, 2),
        "machine": compute.describe() | replayed,
        "versions": {"igkd": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    path = store.weights_path(run.key)
    content = pack_weights(model, run=run.key, accuracy=str(min(outcome["accuracy"], outcome["train_accuracy"])))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise TrainingError(f"the weights cannot be written to {path.parent}: {error}") from error
    return Record(run, outcome, provenance)


@torch.no_grad()
def predict(model: MobileNetV2, images: np.ndarray, compute: Compute) -> Tensor:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), float32, returned on the CPU.

    Computed in float32, except that on NVIDIA convolutions multiply in TF32, as PyTorch has it unless told otherwise.
    """
    training = model.training
    model = compute.prepare(model).eval()
    batches = torch.from_numpy(images).split(EVALUATION_BATCH.get(compute.device, EVALUATION_BATCH_ACCELERATOR))
    logits = torch.cat([model(as_input(batch, compute.device)) for batch in batches]).cpu()
    model.train(training)
    return logits


def evaluate(model: MobileNetV2, images: np.ndarray, labels: np.ndarray, compute: Compute) -> dict:
    """Accuracy measures of a network.

    Parameters
    ----------
    model : MobileNetV2
    images : ndarray (N, H, W, 3) uint8
    labels : ndarray (N,)
    compute : Compute

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``kappa`` (Cohen 1960),
        ``per_class_accuracy`` (recall; None for a class that does not occur), as fractions; ``loss`` (mean
        cross-entropy, nats); ``n_test``.
    """
    logits = predict(model, images, compute)
    target = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    predicted = logits.argmax(1).numpy()
    classes = np.arange(logits.shape[1])
    present = np.isin(classes, labels)
    recall = recall_score(labels, predicted, labels=classes, average=None, zero_division=0)
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "kappa": float(cohen_kappa_score(labels, predicted, labels=classes)),
        "per_class_accuracy": [float(value) if there else None for value, there in zip(recall, present)],
        "loss": float(F.cross_entropy(logits, target)),
        "n_test": len(labels),
    }


class _Loop:
    """Everything that an epoch needs, on the device."""

    def __init__(self, run: Run, images: ImageSet, signals: Signals, rows: Tensor, compute: Compute, model, optimizer):
        device, padding = compute.device, run.recipe.padding
        self.run, self.compute, self.rows, self.size, self.mirror = run, compute, rows, images.size, images.flip
        self.model, self.optimizer = model, optimizer
        self.images = pad(torch.from_numpy(images.train_images).to(device), padding)
        self.labels = torch.from_numpy(images.train_labels).to(device)
        self.signals = signals.to(device)
        self.maps = None if signals.maps is None else pad(self.signals.maps, padding)
        # The released code crops and mirrors the image alone.
        self.moves_signals = run.signals is not None and run.signals.variant != "released"
        self.tap = attention_tap(run.architecture.blocks_removed) if run.method.gamma else None
        self.orthogonalised = pointwise_weights(model) if run.recipe.optimizer == "orthogonal_sgd" else []

    def epoch(self, update: Callable, measure: Callable, scheduler, epoch: int) -> dict:
        """One pass over the training images; means of the loss terms and the running accuracy.

        Both callables do as the method `update` does, `measure` at the epoch's last batch. With several terms in the
        loss it gives also ``gradient_norms``: the Euclidean norm of the gradient of each, weighted as in the loss.
        """
        batches = self.batches(epoch)
        several = self.run.method.alpha or self.run.method.gamma
        sums: dict[str, Tensor] = {}
        self.model.train()
        with torch.random.fork_rng([self.compute.device] if self.compute.device.startswith("cuda") else []):
            torch.manual_seed(stream(self.run.seed, DROPOUT, epoch).initial_seed())
            for number, (rows, drawn) in enumerate(batches, 1):
                call = measure if several and number == len(batches) else update
                terms, norms = call(rows, *drawn.tensors)
                scheduler.step()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0) + term
        # Nothing above reads a value back, so the device is waited for once an epoch, here.
        means = {name: float(total) / len(batches) for name, total in sums.items()}
        return means | ({"gradient_norms": {name: float(norm) for name, norm in norms.items()}} if norms else {})

    def batches(self, epoch: int) -> list[tuple[Tensor, Draw]]:
        """Rows and random numbers of each batch of an epoch, moved to the device all at once."""
        recipe, method, device = self.run.recipe, self.run.method, self.compute.device
        order = self.rows[torch.randperm(len(self.rows), generator=stream(self.run.seed, ORDER, epoch))]
        drawn = draw(
            len(order),
            stream(self.run.seed, AUGMENTATION, epoch),
            padding=recipe.padding,
            mirror=self.mirror,
            overlay_prob=method.overlay_prob,
            max_exponent=method.max_exponent,
        ).to(device)
        size = min(recipe.batch_size, len(order))
        # What does not fill a batch is left out, other images in each epoch, so that every step has the same shape.
        starts = range(0, len(order) - size + 1, size)
        order = order.to(device)
        return [(order[at : at + size], drawn[at : at + size]) for at in starts]

    def update(self, rows: Tensor, drawn: Draw, measured: bool) -> tuple[dict, dict]:
        """One step of the optimizer: the terms of the loss, and if `measured` the norms of their gradients."""
        terms, weighted = self.step(rows, drawn)
        norms = _gradient_norms(weighted, self.model) if measured else {}
        self.optimizer.zero_grad()
        terms["loss"].backward()
        with self.compute.autocast():
            orthogonalise_gradients(self.orthogonalised)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}, norms

    def step(self, rows: Tensor, drawn: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss and its terms for one batch, and the terms weighted as in the loss."""
        method = self.run.method
        padding = self.run.recipe.padding
        moved = drawn if self.moves_signals else drawn.centred(padding)
        x = crop_mirror(self.images, rows, drawn, self.size).permute(0, 3, 1, 2).float() / 255
        if method.overlay_prob:
            maps = crop_mirror(self.maps, rows, moved, self.size).float()
            x = overlay(x, maps, drawn, method.overlay_weight)
        if method.cutout:
            x = cutout(x, drawn, method.cutout)
        with self.compute.autocast():
            output = self.model(x, self.tap)
        logits, activation = (output, None) if self.tap is None else output
        logits, labels = logits.float(), self.labels[rows]
        terms = {"cross_entropy": F.cross_entropy(logits, labels)}
        weighted = {"cross_entropy": (1 - method.alpha) * terms["cross_entropy"]}
        if method.alpha:
            terms["distillation"] = distillation_loss(logits, self.teacher_logits(x, rows), method.temperature)
            weighted["distillation"] = method.alpha * terms["distillation"]
        if method.gamma:
            target = move_attention(self.signals.attention, rows, moved, padding, self.size)
            terms["attention"] = attention_loss(attention_map(activation.float()), target)
            weighted["attention"] = method.gamma * terms["attention"]
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": sum(weighted.values()), **terms, "train_accuracy": accuracy}, weighted

    @torch.no_grad()
    def teacher_logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """The kept logits of the images, or the teacher's for the views `x` of them (Beyer et al., arXiv 2106.05237)."""
        if self.signals.teacher is None:
            return self.signals.logits[rows]
        with self.compute.autocast():
            return self.signals.teacher(x).float()


def _gradient_norms(weighted: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    norms = {}
    for name, term in weighted.items():
        gradients = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt()
    return norms


def _checkpoint(path: Path, parts: dict, progress: dict) -> None:
    content = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | progress, content)
    try:
        write_atomically(path, content.getbuffer())
    except OSError as error:
        raise TrainingError(f"the checkpoint cannot be written to {path.parent}: {error}") from error


def _restore(path: Path, parts: dict, teacher_digest: str | None, log) -> tuple[list, float]:
    """History and seconds of an interrupted training, whose state is put back; else a training that starts anew."""
    if not path.exists():
        return [], 0.0
    fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        history, seconds = state["history"], state["seconds"]
        if state.get("teacher") != teacher_digest:
            raise ValueError("it is of another teacher")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise  # nothing is wrong with it
    except Exception as error:  # torch.load raises pickle, zip and runtime errors alike
        path.unlink()
        for name, part in parts.items():
            part.load_state_dict(fresh[name])
        log(f"the checkpoint {path.name} cannot be used ({first_line(error)}) and is removed; the training starts anew")
        return [], 0.0
    log(f"goes on after epoch {len(history)}")
    return history, seconds
