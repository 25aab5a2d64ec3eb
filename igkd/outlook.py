"""What a study has still to train: how many runs, how long on this machine, how much disk, and why."""

import dataclasses
import functools
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from igkd.engine import Study, describe, differences
from igkd.errors import InputError
from igkd.experiments import NOTEBOOKS, TEACHER_NOTEBOOK, Planned
from igkd.images import Subset
from igkd.methods import Method
from igkd.models import Architecture, MobileNetV2, count_parameters, load_weights, state_digest
from igkd.runs import Run, Store
from igkd.signals import maps_file, needed
from igkd.training import train, trains_alone


def needed_by(study: Study, number: str) -> list[Planned]:
    """The runs that a notebook opens, the teacher's among them."""
    return study.planned([number]) if number in NOTEBOOKS else []


def shared_out(study: Study, notebooks: Iterable[str]) -> dict[str, list[Planned]]:
    """The runs of each notebook that none before it needs, so that no run is counted twice; the teacher is 01's."""
    seen: set[str] = set()
    runs: dict[str, list[Planned]] = dict.fromkeys(notebooks, [])
    for number in sorted(runs, key=lambda number: number != TEACHER_NOTEBOOK):
        runs[number] = [item for item in needed_by(study, number) if item.run.key not in seen]
        seen |= {item.run.key for item in runs[number]}
    return runs


@dataclass(frozen=True)
class Outlook:
    """What one notebook needs.

    Attributes
    ----------
    done, missing : int
        Runs.
    seconds : float or None
        Estimate for training what is missing, side by side where `igkd.engine` does so; None where the images are
        not here.
    disk : int
        Bytes of the weights and attribution maps that will be written.
    """

    done: int
    missing: int
    seconds: float | None
    disk: int


def outlook(study: Study, notebooks: Iterable[str]) -> tuple[dict[str, Outlook], str]:
    """What each notebook has still to train.

    Returns
    -------
    dict
        Number of the notebook -> `Outlook`.
    str
        What the estimate of the time rests on.
    """
    recorded = study.store.keys()
    runs = shared_out(study, notebooks)
    missing = {number: [item for item in items if item.run.key not in recorded] for number, items in runs.items()}
    everything = [item.run for items in missing.values() for item in items]
    counts = {number: (len(runs[number]) - len(items), len(items)) for number, items in missing.items()}
    if not everything:
        return {number: Outlook(*count, 0.0, 0) for number, count in counts.items()}, "nothing is missing"
    try:
        study.images.train_labels  # noqa: B018 - without the images nothing is trained, whatever the records say
        speed, source = measure_speed(study, everything)
    except InputError as error:
        return {number: Outlook(*count, None, 0) for number, count in counts.items()}, f"not known: {error}"

    @functools.cache
    def digest(teacher: str) -> str | None:
        path = study.store.find_weights(teacher)
        return path and state_digest(load_weights(path, study.images.num_classes))

    found, counted = {}, set()
    for number, items in missing.items():
        todo = [item.run for item in items]
        seconds = sum(speed.seconds(study, run) / (1 if trains_alone(run) else study.jobs) for run in todo)
        disk = sum(_weights_bytes(study, run) for run in todo)
        for run in {needed(run): run for run in todo if run.method.overlay_prob}.values():
            maps = maps_file(run, study.images, digest(run.signals.teacher), study.store.scratch / "signals")
            if maps not in counted and not maps.exists():
                n, (height, width) = study.images.n_train, study.images.size
                seconds += speed.seconds(study, _as_training(run))
                disk += 2 * n * height * width
            counted.add(maps)
        found[number] = Outlook(*counts[number], seconds, disk)
    return found, source


@dataclass(frozen=True)
class Speed:
    """Seconds of training for each unit of `Study.work`, for each number of blocks removed and width."""

    rates: dict[tuple[int, float], float]

    def seconds(self, study: Study, run: Run) -> float:
        """Estimate for one run; a network that was never measured is taken as the mean of the others."""
        mean = sum(self.rates.values()) / len(self.rates)
        seconds = self.rates.get(_shape(run), mean) * study.work(run)
        if run.signals and run.signals.variant == "online":
            # The teacher only goes forward, a third of a step of training.
            taught = dataclasses.replace(run, architecture=Architecture())
            seconds += self.rates.get(_shape(taught), mean) * study.work(taught) / 3
        return seconds


def _shape(run: Run) -> tuple[int, float]:
    return run.architecture.blocks_removed, run.architecture.width


def measure_speed(study: Study, runs: list[Run]) -> tuple[Speed, str]:
    """How fast this machine trains: from its own records, or else from a few steps of one of `runs`."""
    here = study.compute.describe()
    totals = defaultdict(lambda: [0.0, 0.0])
    count = 0
    for record in study.store.records():
        # One name stands for processors of several generations, of which old records say nothing.
        alike = ["name", "device", "generation"]
        if here["device"] == "cpu" and trains_alone(record.run):
            alike.append("threads")  # the others have one, however many there are
        machine = record.provenance.get("machine", {})
        same = all(machine.get(name) == here.get(name) for name in alike)
        if record.run.data == study.fingerprint and same:
            total = totals[_shape(record.run)]
            total[0] += record.provenance["seconds"]
            total[1] += study.work(record.run)
            count += 1
    if count:
        return Speed(
            {shape: seconds / work for shape, (seconds, work) in totals.items()}
        ), f"{count} records of this machine"
    return _calibrate(study, runs[-1]), "a few steps measured now; there is no record of this machine"


def _calibrate(study: Study, run: Run) -> Speed:
    """Time two epochs of four batches, after one that warms up."""
    steps, images = 4, study.images
    n = steps * run.recipe.batch_size
    few = dataclasses.replace(
        images,
        train_images=images.train_images[:n],
        train_labels=images.train_labels[:n],
        test_images=images.test_images[:1],
        test_labels=images.test_labels[:1],
    )
    plain = dataclasses.replace(run, data=few.fingerprint, subset=Subset(), method=Method(), signals=None, split="test")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "records", Path(folder), Path(folder))
        for epochs in (1, 2):
            # A constant rate: the one-cycle schedule cannot be fitted into so few steps.
            recipe = dataclasses.replace(run.recipe, num_epochs=epochs, one_cycle=False)
            short = dataclasses.replace(plain, recipe=recipe)
            record = train(short, few, store, study.compute)
            seconds = record.provenance["seconds"]
    # The first call also pays for whatever is set up once, so the second alone is counted.
    per_image = study.work(plain) / (len(images.train_images) * run.recipe.num_epochs)
    return Speed({_shape(run): seconds / (per_image * record.outcome["n_train"] * epochs)})


def _as_training(run: Run) -> Run:
    """A training that takes about as long as the attribution maps of a run.

    A step of integration, like a noisy copy of SmoothGrad, is a forward pass and the gradient with respect to the
    image, somewhat less than a step of training; the teacher goes over all training images once for each. Saliency and
    Grad-CAM need one.
    """
    passes = 1 if run.signals.variant in ("saliency", "gradcam") else run.signals.n_steps
    recipe = dataclasses.replace(run.recipe, num_epochs=passes)
    return dataclasses.replace(
        run, subset=Subset(), architecture=Architecture(), method=Method(), signals=None, recipe=recipe, split="test"
    )


def _weights_bytes(study: Study, run: Run) -> int:
    with torch.device("meta"):
        model = MobileNetV2(study.images.num_classes, run.architecture.blocks_removed, run.architecture.width)
    return 4 * count_parameters(model)


def reasons(study: Study, notebooks: Iterable[str]) -> list[str]:
    """For each run that is not recorded, in which fields it differs from the nearest record."""
    records = list(study.store.records())
    recorded = study.store.keys()
    lines = []
    for items in shared_out(study, notebooks).values():
        for item in items:
            if item.run.key in recorded:
                continue
            if not records:
                why = "nothing is recorded yet"
            else:
                changed = differences(item.run, records)
                why = ", ".join(f"{name}: {then} -> {now}" for name, (then, now) in changed.items())
                why = why or "the training code has changed since (TRAINING_VERSION)"
            lines.append(f"{describe(item)} ({item.run.key}): {why}")
    return lines
