"""One training: a function of a `Run`, its images and its signals.

All random numbers come from the run's seed and the epoch's number, drawn on the CPU (those of dropout on the device),
so a training that was interrupted goes on exactly as if it had not been, and arms with the same seed see the same
images in the same order under the same crops.
"""

import copy
import io
import math
import platform
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igkd import __version__
from igkd.attribution import evaluating
from igkd.augment import Draw, crop_mirror, cutout, draw, move_attention, overlay, pad
from igkd.device import Compute
from igkd.errors import InputError, TrainingError, first_line
from igkd.images import ImageSet, as_input, split_rows
from igkd.losses import attention_loss, attention_map, distillation_loss
from igkd.models import MobileNetV2, attention_tap, build, pack_weights, state_digest
from igkd.optimizers import make_optimizers
from igkd.records import Record, Store, code_version, pack_predictions, write_atomically
from igkd.runs import AUGMENTATION, DROPOUT, SHUFFLE, WEIGHTS, Run, stream
from igkd.signals import Signals

CHECKPOINT_EVERY_SECONDS = 20
#: PyTorch's batch norm averages over about ten steps; here over at most a tenth of all.
LAG = 10


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
        Where checkpoints and the weights are written; the record is returned, not stored. The last checkpoint stays:
        whoever keeps the record removes it.
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
        If the loss stops being finite.
    InputError
        If the images are others than the run's.
    OSError
        If the weights cannot be written.
    """
    if images.fingerprint != run.data:
        raise InputError(f"the run is of the images {run.data}, not of {images.fingerprint}; give it those")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would add up in another order, and two trainings side by side are faster
    try:
        return _train(run, images, store, compute, signals, teacher_digest, log)
    finally:
        torch.set_num_threads(threads)


def _train(run, images, store, compute, signals, teacher_digest, log) -> Record:
    method, recipe, device = run.method, run.recipe, compute.device
    seen, held_out = split_rows(images.train_labels, run.subset)
    chosen = torch.from_numpy(seen)
    batch_size = min(recipe.batch_size, len(chosen))
    num_batches = len(chosen) // batch_size  # what does not fill a batch is left out, other images in each epoch
    num_steps = recipe.num_epochs * num_batches
    model = build(run.architecture, images.num_classes, images.mean_std, stream(run.seed, WEIGHTS))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # its average over ten steps lags behind where there are few
            module.momentum = max(module.momentum, min(1.0, LAG / num_steps))
    model = compute.prepare(model)
    optimizers = make_optimizers(model, recipe, num_steps)
    parts = {"model": model} | {f"{number}": part for number, part in enumerate(chain.from_iterable(optimizers))}
    checkpoint = store.checkpoint_path(run.key)
    history, seconds = _restore(checkpoint, parts, teacher_digest, log)

    pixels = pad(torch.from_numpy(images.train_images).to(device), recipe.padding)
    labels = torch.from_numpy(images.train_labels).to(device)
    signals = signals.to(device)
    maps = None if signals.maps is None else pad(signals.maps, recipe.padding)
    tap = attention_tap(run.architecture.blocks_removed) if method.gamma else None
    released = run.signals is not None and run.signals.variant == "released"  # its code moves the image alone
    sizes = [(tuple(round(scale * side) for side in images.size), until * num_steps) for scale, until in recipe.scales]

    def losses(rows: Tensor, drawn: Draw, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the loss by name, not weighted, and the share of the batch that is right."""
        of_signals = drawn.centred(recipe.padding) if released else drawn
        x = crop_mirror(pixels, rows, drawn, images.size).permute(0, 3, 1, 2).float() / 255
        if method.overlay_prob:
            x = overlay(x, crop_mirror(maps, rows, of_signals, images.size).float(), drawn, method.overlay_weight)
        if recipe.cutout:
            x = cutout(x, drawn, recipe.cutout)
        if size := next((size for size, until in sizes if step < until), None):
            x = F.interpolate(x, size, mode="area")
        with compute.autocast():
            output = model(x, tap)
        logits, activation = output if method.gamma else (output, None)
        logits = logits.float()
        terms = {"cross_entropy": F.cross_entropy(logits, labels[rows])}
        if method.alpha:
            terms["distillation"] = distillation_loss(logits, signals.logits[rows], method.temperature)
        if method.gamma:
            cells = tuple(activation.shape[2:])
            target = move_attention(signals.attention, rows, of_signals, recipe.padding, images.size, cells)
            terms["attention"] = attention_loss(attention_map(activation.float()), target)
        return terms, (logits.argmax(1) == labels[rows]).float().mean()

    how = {"padding": recipe.padding, "mirror": images.flip}
    how |= {"overlay_prob": method.overlay_prob, "max_exponent": method.max_exponent}
    weights = {"cross_entropy": 1 - method.alpha, "distillation": method.alpha, "attention": method.gamma}
    saved = -math.inf
    for epoch in range(len(history), recipe.num_epochs):
        started, sums, norms = time.monotonic(), Counter(), {}
        order = chosen[torch.randperm(len(chosen), generator=stream(run.seed, SHUFFLE, epoch))].to(device)
        drawn = draw(len(order), stream(run.seed, AUGMENTATION, epoch), **how).to(device)
        model.train()
        with torch.random.fork_rng([device] if device.startswith("cuda") else []):
            torch.manual_seed(stream(run.seed, DROPOUT, epoch).initial_seed())
            for batch in range(num_batches):
                rows = slice(batch * batch_size, (batch + 1) * batch_size)
                terms, right = losses(order[rows], drawn[rows], epoch * num_batches + batch)
                weighted = {name: weights[name] * term for name, term in terms.items()}
                loss = sum(weighted.values())
                if len(terms) > 1 and batch == num_batches - 1:
                    norms = {name: _gradient_norm(term, model) for name, term in weighted.items()}
                model.zero_grad()
                loss.backward()
                for optimizer, scheduler in optimizers:
                    optimizer.step()
                    scheduler.step()
                measured = {"loss": loss, **terms, "train_accuracy": right}
                sums.update({name: value.detach() for name, value in measured.items()})
        # Nothing above reads a value back, so the device is waited for once an epoch, here.
        means = {name: float(total) / num_batches for name, total in sums.items()}
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the loss is {means['loss']} in epoch {epoch + 1}; lower lr, alpha or gamma")
        means |= {f"gradient_norms.{name}": float(norm) for name, norm in norms.items()}
        elapsed = time.monotonic() - started
        seconds += elapsed
        history.append({"epoch": epoch + 1} | means)
        said = f"loss {means['loss']:.3f}  train accuracy {means['train_accuracy']:.1%}  {elapsed:.1f} s"
        log(f"epoch {epoch + 1}/{recipe.num_epochs}  {said}")
        if time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
            _checkpoint(checkpoint, parts, {"teacher": teacher_digest, "history": history, "seconds": seconds})
            saved = time.monotonic()

    scored = images.test_images, images.test_labels
    if run.split == "validation":
        scored = images.train_images[held_out], images.train_labels[held_out]
    logits = predict(model, scored[0], compute)
    outcome = _outcome(logits, scored[1])
    if not math.isfinite(outcome["loss"]):  # the last step can break the weights after its own loss was fine
        raise TrainingError(f"the loss is {outcome['loss']} after training; lower lr, alpha or gamma")
    outcome |= {
        "train_accuracy": evaluate(model, images.train_images[seen], images.train_labels[seen], compute)["accuracy"],
        "n_train": len(seen),
        "predictions": pack_predictions(logits.argmax(1).numpy()),
        "history": history,
        "weights": state_digest(model),
        "teacher_weights": teacher_digest,
    }
    provenance = {
        "data": images.name,
        "seconds": round(seconds, 2),
        "machine": compute.describe(),
        "versions": {"igkd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "code": code_version(),
    }
    write_atomically(store.weights_path(run.key), pack_weights(model, run=run.key))
    return Record(run, outcome, provenance)


@torch.no_grad()
def predict(model: MobileNetV2, images: np.ndarray, compute: Compute) -> Tensor:
    """Logits (N, num_classes) of uint8 images (N, H, W, 3), float32, returned on the CPU.

    Computed in float32, except that on NVIDIA convolutions multiply in TF32, as PyTorch has it unless told otherwise.
    """
    # Where memory is new, a processor takes 1.7 times as long in batches of 128, for the same bits.
    batches = torch.from_numpy(images).split(32 if compute.device == "cpu" else 1024)
    with evaluating(compute.prepare(model)) as network:
        return torch.cat([network(as_input(batch, compute.device)) for batch in batches]).cpu()


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
    return _outcome(predict(model, images, compute), labels)


def _outcome(logits: Tensor, labels: np.ndarray) -> dict:
    found = measures(confusion(labels, logits.argmax(1).numpy(), logits.shape[1]))
    recall = [None if np.isnan(value) else value for value in found["per_class_accuracy"].tolist()]  # JSON has no NaN
    return found | {"per_class_accuracy": recall, "loss": float(F.cross_entropy(logits, torch.from_numpy(labels)))}


def confusion(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes): a row for each true class, a column for each answer."""
    return np.bincount(num_classes * labels + answers, minlength=num_classes**2).reshape(num_classes, num_classes)


def measures(counts) -> dict:
    """Accuracy measures of a confusion matrix.

    Parameters
    ----------
    counts : (K, K) array_like of int
        From `confusion`.

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``kappa`` (Cohen 1960),
        ``per_class_accuracy`` (recall; NaN for a class that does not occur), as fractions; ``n_test``.
    """
    counts = np.asarray(counts, dtype=float)
    total, of_class = counts.sum(), counts.sum(1)
    with np.errstate(invalid="ignore"):  # where nothing is counted, 0 / 0 is NaN
        accuracy, recall = counts.trace() / total, counts.diagonal() / of_class
        by_chance = of_class @ counts.sum(0) / total**2
        return {
            "accuracy": float(accuracy),
            "balanced_accuracy": float(pd.Series(recall).mean()),  # without the NaN
            "kappa": float((accuracy - by_chance) / (1 - by_chance)),
            "per_class_accuracy": recall,
            "n_test": int(total),
        }


def _gradient_norm(term: Tensor, model: nn.Module) -> Tensor:
    """Euclidean norm of the gradient of one weighted term of the loss."""
    gradients = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt()


def _checkpoint(path: Path, parts: dict, progress: dict) -> None:
    content = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | progress, content)
    write_atomically(path, content.getbuffer())


def _restore(path: Path, parts: dict, teacher_digest: str | None, log) -> tuple[list, float]:
    """History and seconds of an interrupted training, whose state is put back; else a training that starts anew."""
    fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        history, seconds = state["history"], state["seconds"]
        if state.get("teacher") != teacher_digest:
            raise ValueError("it is of another teacher")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except FileNotFoundError:  # not asked before: another program that trains the same run may remove it in between
        return [], 0.0
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise  # nothing is wrong with it
    except Exception as error:  # torch.load raises pickle, zip and runtime errors alike
        path.unlink(missing_ok=True)
        for name, part in parts.items():
            part.load_state_dict(fresh[name])
        log(f"the checkpoint {path.name} cannot be used ({first_line(error)}) and is removed; the training starts anew")
        return [], 0.0
    log(f"goes on after epoch {len(history)}")
    return history, seconds
