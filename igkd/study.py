"""Runs a study on this machine: what is recorded is read, what is missing is trained.

`Study` is what a notebook opens; its `ensure` turns declared runs into a table. It never repeats a finished run, goes
on where it was stopped, and is not stopped by a run that fails. The way from there to a trained network:

- `ensure` looks up what is missing, and keeps each record as it comes.
- `_trained` has the teachers trained, and computes their signals, before the students that need them.
- `train_all` trains many runs: `_train_here`, unless `igkd.cluster` puts itself in its place.
- `_attempt` trains one: `igkd.training.train`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed

from igkd import REPOSITORY
from igkd.costs import Measurements
from igkd.device import Compute, machine_name, pick_compute
from igkd.errors import InputError, MissingImages, TrainingError, first_line
from igkd.experiments import NOTEBOOKS, ORDER, PROFILES, Plan, Planned, Profile, teacher_run
from igkd.images import CIFAR10_CLASSES, ImageSet, RecordedImages, load_images
from igkd.models import MobileNetV2, compression_factor, count_parameters, load_weights, weights_metadata
from igkd.records import Record, Store, unpack_predictions
from igkd.runs import ARMS, Run, Subset
from igkd.signals import Signals, Teacher, load_signals, needed, of_variant
from igkd.training import train

SHIPPED_TEACHER = "teacher-cifar10.safetensors"
#: Seconds that a reader waits for a recorded network to be trained again, because its weights are not here.
PATIENCE = 300
#: Environment variable: the time (seconds since 1970) after which no study of a program starts another run.
UNTIL = "IGKD_UNTIL"
#: Errors that end one run only: its own, a full disk, too little memory (on a processor a RuntimeError).
ONE_RUN = (TrainingError, InputError, OSError, RuntimeError, MemoryError)
#: Trains runs as long as the study is `on_time`, and gives each that was started as soon as it is finished, with its
#: record or with what went wrong.
TrainAll = Callable[[list[Planned]], Iterator[tuple[Planned, Record | str]]]


class Study:
    """The runs of one profile on this machine.

    Parameters
    ----------
    profile_name : str
        ``"demo"``, ``"laptop"`` or ``"paper"``.
    data : str or path, optional
        Where CIFAR-10 is (see `igkd.images.load_images`).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    root : path, optional
        Folder that holds ``records``, ``weights`` and ``build``; the repository by default.
    log : callable
        Gets one line for each thing worth knowing.
    jobs : int, optional
        How many runs are trained side by side; by default one a processor core, and one at a time on a GPU.

    Raises
    ------
    InputError
        If the profile, the data or the device cannot be used.
    """

    def __init__(
        self,
        profile_name: str = "demo",
        data=None,
        device: str = "auto",
        root: Path | None = None,
        log: Callable[[str], None] = print,
        jobs: int | None = None,
    ):
        self.root = root = Path(root or REPOSITORY)
        if profile_name not in PROFILES:
            raise InputError(f"no profile {profile_name!r}; choose one of: {', '.join(PROFILES)}")
        self.profile: Profile = PROFILES[profile_name]
        self.data = data or None
        self.log = log
        self._repository = Store(root / "records", root / "build", root / "weights")
        self.compute: Compute = pick_compute(device)
        try:
            self.jobs = jobs or (cpu_count() if self.compute.device == "cpu" else 1)
        except ValueError as error:
            raise InputError(f"LOKY_MAX_CPU_COUNT is no number of processors ({error}); unset it") from error
        #: Where missing runs are trained: on this machine, unless `igkd.cluster` puts itself in its place.
        self.train_all: TrainAll = self._train_here
        self.until = float(os.environ.get(UNTIL, "inf"))
        self._teachers: dict[str, Teacher] = {}

    @cached_property
    def _loaded(self) -> ImageSet:
        images = load_images(self.profile.dataset, self.data, log=self.log)
        if images.num_classes > 256:  # see `igkd.records.pack_predictions`
            raise InputError(f"{images.name} has {images.num_classes} classes; records have room for 256")
        return images

    @cached_property
    def images(self) -> ImageSet | RecordedImages:
        """The profile's images; without the data, what the records tell of them."""
        try:
            images = self._loaded
        except MissingImages as missing:
            return self._recorded_images(missing)
        if self.profile.dataset == "cifar10" and self.profile.teacher is None and images.class_names != CIFAR10_CLASSES:
            knows = f"the teacher of the {self.profile.name} profile knows CIFAR-10's classes, in their order"
            raise InputError(f"{knows}; for images of your own there is --profile paper")
        return images if self.profile.take is None else images.take(*self.profile.take)

    @cached_property
    def own_images(self) -> bool:
        """Whether the images are others than those of the repository's records.

        Theirs is another study, of which nothing goes where the repository keeps its records, figures and outputs.
        """
        known = {record.run.data for record in self._repository.records("teacher")}
        if self.profile.name == "demo" or not known or not self.has_images:
            return False
        return self._loaded.fingerprint not in known

    @cached_property
    def folder(self) -> Path:
        """Where figures, executed notebooks and times go."""
        return self.root / "build" / (self.profile.name + f"-{self.images.fingerprint}" * self.own_images)

    @cached_property
    def store(self) -> Store:
        """Records, weights and checkpoints."""
        # The demo is trained live by every reader, so its records are build products, too.
        if self.profile.name == "demo" or self.own_images:
            return Store(self.folder / "records", self._repository.scratch, self._repository.shipped)
        return self._repository

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.folder / "figures"

    @property
    def has_images(self) -> bool:
        """Whether there are pixels and labels, so that something can be trained, evaluated or shown."""
        return isinstance(self.images, ImageSet)

    def on_time(self) -> bool:
        """Whether another run can be started: its images are here, and the budget is not used up."""
        return self.has_images and time.time() < self.until

    def _recorded_images(self, missing: MissingImages) -> RecordedImages:
        """CIFAR-10 as the first of this profile's records saw it."""
        recipes = self.profile.recipe, self.profile.teacher
        for record in self._repository.records():
            run, outcome = record.run, record.outcome
            if run.recipe in recipes and (run.subset, run.split) == (Subset(), "test"):
                counts = outcome["n_train"], outcome["n_test"]
                return RecordedImages("cifar10", CIFAR10_CLASSES, (32, 32), *counts, run.data, missing)
        raise missing

    @cached_property
    def plan(self) -> Plan:
        """What the experiments need to know to declare their runs."""
        fingerprint, path = self.images.fingerprint, self.store.shipped / SHIPPED_TEACHER
        if self.profile.teacher is not None:
            teacher = teacher_run(fingerprint, self.profile.teacher).key
        elif (teacher := weights_metadata(path).get("run")) is None:
            raise InputError(f"{path} does not say of which run it is; get it from the repository again")
        return Plan(self.profile, fingerprint, teacher)

    @property
    def data_name(self) -> str:
        """Name of the images, as it is written."""
        return {"cifar10": "CIFAR-10"}.get(self.images.name, self.images.name)

    @property
    def full_size(self) -> bool:
        """Whether it is of the size that the paper's claims are about: a student at 4.12x, on CIFAR-10.

        At least 40,000 training images count, as many as the paper's Monte Carlo runs have. More than CIFAR-10 has are
        of another set with its class names.
        """
        images = self.images
        return images.name == "cifar10" and 40_000 <= images.n_train <= 50_000 and self.profile.blocks_removed == 5

    @cached_property
    def at_laptop_size(self) -> "Study":
        """Where constants are searched and integration steps compared: this study, for the paper's the laptop's."""
        if self.profile.search or self.own_images:
            return self
        return Study("laptop", self.data, self.compute.device, self.root, self.log, self.jobs)

    def describe_data(self) -> str:
        """Name and numbers of the images, for captions."""
        images = self.images
        return f"{self.data_name}, {images.n_train:,} training and {images.n_test:,} test images"

    def describe_student(self) -> str:
        """The profile's student, for captions."""
        cut = self.profile.blocks_removed
        parameters = count_parameters(cut, self.images.num_classes)
        return f"{cut} of 19 blocks removed, {parameters:,} parameters, {self._factor()} fewer than the teacher"

    def title(self) -> str:
        """Data and size of the student in two short lines."""
        return f"here: {self.data_name}, {self.images.n_train:,} images,\nstudent {self._factor()} smaller"

    def _factor(self) -> str:
        factor = compression_factor(self.profile.blocks_removed, num_classes=self.images.num_classes)
        return f"{factor:.0f}x" if factor >= 100 else f"{factor:.2f}x"

    def teacher_runs(self) -> list[Planned]:
        """The teacher's own training, where this profile trains one."""
        if self.profile.teacher is None:
            return []
        return [_as_teacher(teacher_run(self.images.fingerprint, self.profile.teacher))]

    def planned(self, notebooks: Iterable[str] = NOTEBOOKS) -> list[Planned]:
        """The runs that the notebooks declare: the teacher, then in the order of doing.

        A run that several experiments share has the labels of the first.
        """
        declared = {experiment for name in notebooks for experiment in NOTEBOOKS.get(name, ())}
        items = [item for experiment in ORDER if experiment in declared for item in experiment(self.plan)]
        return self.teacher_runs() + _different(items)

    def teacher(self, key: str | None = None) -> Teacher:
        """The teacher of this key, by default the profile's own, which is trained first if need be.

        Raises
        ------
        InputError
            If it is not recorded, its weights are not here, or it is hardly better than a guess.
        """
        key = key or self.plan.teacher_key
        if key not in self._teachers:
            record = self.teacher_record() if key == self.plan.teacher_key else self.store.find(key)
            if record is None:
                raise InputError(f"there is no teacher {key}; run the teacher's notebook first")
            model, outcome = self.network(record.run, patience=np.inf), record.outcome
            if model is None:
                raise InputError(f"the weights of the teacher {key} are not here; get weights/ from the repository")
            teacher = Teacher(model, min(outcome["accuracy"], outcome["train_accuracy"]))
            if self.has_images:
                self._check_teacher(teacher.accuracy)
            self._teachers[key] = teacher
        return self._teachers[key]

    def _check_teacher(self, accuracy: float) -> None:
        """Refuse a teacher from which nothing can be learned, before its students are trained."""
        n = self.images.n_test
        largest = np.bincount(self.images.test_labels).max() / n
        if accuracy < largest + 2 * (largest * (1 - largest) / n) ** 0.5:
            found = f"the teacher is right on {accuracy:.1%}, and {largest:.1%} of the {n} test images are of one class"
            raise InputError(f"{found}: students would learn nothing from it; give more images")

    def teacher_record(self) -> Record:
        """What came out of the teacher's training."""
        self.ensure(self.teacher_runs())
        key = self.plan.teacher_key
        if (record := self.store.find(key)) is None and (record := self._repository.find(key)):
            # Other images have a store of their own; the shipped teacher is theirs, too.
            self.store.add(record, "teacher")
        if record is None:
            raise InputError(f"there is no record of the teacher {key}; get it from the repository")
        return record

    def planned_teacher(self) -> Planned:
        """The teacher's training, done here or not, with the labels under which tables show it."""
        return _as_teacher(self.teacher_record().run)

    def ig_maps(self):
        """IG maps (N, H, W) of all training images."""
        return self.teacher_signals(self.plan.student(ARMS["IG"], seed=0)).maps

    def signals(self, run: Run, images: ImageSet | None = None) -> Signals:
        """What a run learns from besides the labels, read or computed; or what it would from other images."""
        return of_variant(run, self.teacher_signals(run, images))

    def teacher_signals(self, run: Run, images: ImageSet | None = None) -> Signals:
        """As `signals`, before the run's variant and seed make something else of them."""
        if run.signals is None:
            return Signals()
        images = self.images if images is None else images
        teacher = self.teacher(run.signals.teacher)
        return load_signals(run, images, teacher, self.store.scratch / "signals", self.compute, self.log)

    def teacher_digest(self, run: Run) -> str | None:
        """Digest of the weights that a run's signals come from."""
        return self.teacher(run.signals.teacher).digest if run.signals else None

    def train(self, run: Run, log: Callable[[str], None] = lambda line: None) -> Record:
        """Train one run now, whether or not it is recorded; the record is returned, not kept."""
        record = train(run, *self._given(run), log)
        self.store.checkpoint_path(run.key).unlink(missing_ok=True)
        return record

    def _given(self, run: Run) -> tuple:
        return self.images, self.store, self.compute, self.signals(run), self.teacher_digest(run)

    def network(self, run: Run, patience: float = PATIENCE) -> MobileNetV2 | None:
        """The trained network of a run.

        Records are kept and shared, weights only where they were made; where those are missing or damaged, the training
        is repeated, which on another machine gives other digits than the record.

        Parameters
        ----------
        run : Run
        patience : float
            Seconds that training it again may take on a processor, going by its record.

        Returns
        -------
        MobileNetV2 or None
            None if its weights are not here, and it is not recorded, or training it again would take longer or needs
            images that are not here.

        Raises
        ------
        InputError
            If weights that came with the repository are damaged.
        """
        path, made_here = self.store.find_weights(run.key), self.store.weights_path(run.key)
        try:
            return load_weights(path or made_here, self.images.num_classes)
        except InputError:
            if path not in (None, made_here):
                raise
        record = self.store.find(run.key)
        if record is None or not self.has_images or run.data != self.images.fingerprint:
            return None
        if self.compute.device == "cpu" and record.provenance["seconds"] > patience:
            return None
        self.log(f"the weights of run {run.key} are not here, or damaged; it is trained again")
        self.train(run)
        return load_weights(made_here, self.images.num_classes)

    def ensure(self, planned: list[Planned]) -> pd.DataFrame:
        """Records of the planned runs, trained where missing, as long as the images are here and the time lasts.

        Parameters
        ----------
        planned : list of Planned

        Returns
        -------
        DataFrame
            One row a recorded run: its labels, ``key``, the measures of its outcome, ``seconds``.

        Raises
        ------
        TrainingError
            If runs failed, after all others were done.
        InputError
            If there is no teacher to learn from, or not one of the runs is recorded.

        Examples
        --------
        >>> from igkd import experiments
        >>> study = Study("demo")  # doctest: +SKIP
        >>> study.ensure(experiments.arms(study.plan))  # trains for a minute  # doctest: +SKIP
        """

        different, failures, number = _different(planned), [], 0
        missing = [item for item in different if self.store.find(item.run.key) is None]
        for number, (item, record) in enumerate(self._trained(missing), 1):
            name = describe(item)
            try:
                if isinstance(record, str):
                    raise TrainingError(record)
                if self.store.find(record.key) is None:
                    self.store.add(record, item.experiment)
                self.store.checkpoint_path(record.key).unlink(missing_ok=True)
            except (TrainingError, OSError) as error:
                failures.append(f"{name} ({item.run.key}): {error}")
                self.log(f"failed: {failures[-1]}")
                continue
            right = f"{record.outcome['accuracy']:.1%} of the {record.run.split} images"
            self.log(f"[{number}/{len(missing)}] {name}: {right} in {record.provenance['seconds']:.0f} s")
        if number < len(missing):
            need = "time" if self.has_images else "the images"
            recorded = len(different) - len(missing) + number - len(failures)
            self.log(f"{recorded} of {len(different)} runs are recorded, the others need {need}")
        if failures:
            counts = f"{len(failures)} of {len(missing)} runs failed"
            raise TrainingError(f"{counts}, the others are kept; first: {failures[0]}")
        table = self.table(planned)
        if planned and table.empty:
            self.images.train_labels  # noqa: B018 - without the images, the way to them is what to say
            raise InputError("none of these runs is recorded, and the time is used up; give more with --budget")
        return table

    def _trained(self, missing: list[Planned]) -> Iterator[tuple[Planned, Record | str]]:
        """As `TrainAll`: first the teachers, then all signals, which this process computes, then all others."""
        teachers, failed = {item.run.signals.teacher for item in missing if item.run.signals}, set()
        for item, result in self.train_all([item for item in missing if item.run.key in teachers]):
            yield item, result
            if isinstance(result, str):
                failed.add(item.run.key)
        for key in teachers - failed:
            if self.on_time():
                self.teacher(key)  # one that knows nothing stops the study here
        rest, wrong = [item for item in missing if item.run.key not in teachers], {}
        for kind, item in {needed(item.run): item for item in rest}.items():
            try:
                if item.run.signals and item.run.signals.teacher in failed:
                    raise TrainingError("its teacher could not be trained")
                if self.on_time():
                    self.teacher_signals(item.run)
            except ONE_RUN as error:
                wrong[kind] = f"it has no signals to learn from: {first_line(error)}"
        yield from ((item, wrong[needed(item.run)]) for item in rest if needed(item.run) in wrong)
        yield from self.train_all([item for item in rest if needed(item.run) not in wrong])

    def _train_here(self, items: list[Planned]) -> Iterator[tuple[Planned, Record | str]]:
        """`TrainAll` on this machine: several runs get a core each, in processes of their own."""
        if self.jobs == 1 or len(items) < 2:
            yield from map(self._attempt, takewhile(lambda _: self.on_time(), items))
            return
        left = {item.run.key: item for item in items}
        where = (self.profile.name, self.data, self.compute.device, self.root)
        while left and self.on_time():
            handed_out = []

            def tasks() -> Iterator:
                for item in takewhile(lambda _: self.on_time(), list(left.values())):
                    handed_out.append(item.run.key)  # noqa: B023
                    yield delayed(_attempt_elsewhere)(where, item)

            parallel = Parallel(n_jobs=self.jobs, pre_dispatch=self.jobs, batch_size=1, return_as="generator_unordered")
            try:
                for item, result in parallel(tasks()):
                    yield left.pop(item.run.key), result
                return
            except BrokenProcessPool:  # which of them was killed is not known; the others get new processes
                killed = "a process that trained was killed, perhaps for lack of memory; free some, or give --jobs 1"
                blamed = [left.pop(key) for key in handed_out if key in left]
                yield from ((item, killed) for item in blamed)
                if not blamed:
                    raise

    def _attempt(self, item: Planned) -> tuple[Planned, Record | str]:
        # Of the teacher, for which all others wait, each epoch is told.
        log = self.log if item.run.architecture.blocks_removed == 0 else lambda line: None
        try:
            # Another program may have trained it since this one looked.
            record = self.store.find(item.run.key)
            return item, record or train(item.run, *self._given(item.run), log)
        except ONE_RUN as error:
            return item, first_line(error)

    def predictions(self, planned: list[Planned]) -> np.ndarray:
        """Predicted classes (runs, images) uint8 of recorded runs that are scored on the same images.

        Raises
        ------
        InputError
            If a run is not recorded.
        """
        records = [self.store.find(item.run.key) for item in planned]
        if missing := [describe(item) for item, record in zip(planned, records) if record is None]:
            raise InputError(f"there is no record of {missing[0]}; train it first")
        return np.array([unpack_predictions(record.outcome["predictions"]) for record in records])

    def paired_predictions(self, planned: list[Planned], *arms: str) -> dict[str, np.ndarray]:
        """`predictions` of each arm, (pairs, images): a row for each seed with which all of these arms are recorded."""
        items = {(item.labels["arm"], item.run.seed): item for item in planned if self.store.find(item.run.key)}
        shared = sorted(set.intersection(*({seed for name, seed in items if name == arm} for arm in arms)))
        return {arm: self.predictions([items[arm, seed] for seed in shared]) for arm in arms}

    def table(self, planned: list[Planned]) -> pd.DataFrame:
        """The records that are here, a row a run: its labels, ``key``, the numbers of its outcome, ``seconds``."""
        rows = []
        for item in planned:
            record = self.store.find(item.run.key)
            if record is not None:
                measures = {name: value for name, value in record.outcome.items() if isinstance(value, float | int)}
                rows.append(item.labels | {"key": record.key} | measures | {"seconds": record.provenance["seconds"]})
        return pd.DataFrame(rows)

    def epochs(self, planned: list[Planned]) -> pd.DataFrame:
        """What the recorded runs measured while they were trained.

        Returns
        -------
        DataFrame
            One row an epoch of a run: its labels, ``key``, ``epoch`` (from 1), means over the epoch of ``loss``, of its
            terms (unweighted) and of ``train_accuracy``, and ``gradient_norms.<term>``, of the weighted terms in its
            last batch. NaN where a run has no such term.
        """
        rows = []
        for item in planned:
            record = self.store.find(item.run.key)
            for epoch in record.outcome["history"] if record else ():
                rows.append(item.labels | {"key": record.key} | epoch)
        return pd.DataFrame(rows)

    def evidence(self, records: Iterable[Record | str]) -> pd.DataFrame:
        """Where numbers come from: one row for each kind of machine and data behind the records.

        Parameters
        ----------
        records : iterable of Record or key
        """
        columns, rows = ["data", "training images", "evaluated on", "machine", "generation", "torch"], []
        for record in records:
            record = self.store.find(record) if isinstance(record, str) else record
            run, outcome, made = record.run, record.outcome, record.provenance
            of = f"{made['data']} ({run.data})", outcome["n_train"], f"{outcome['n_test']:,} {run.split} images"
            machine = machine_name(made["machine"]), made["machine"].get("generation", "–")
            rows.append([*of, *machine, made["versions"]["torch"], made["seconds"]])
        table = pd.DataFrame(rows, columns=[*columns, "seconds"])
        grouped = table.groupby(columns, sort=False).seconds.agg(["count", "sum"])
        return pd.DataFrame({"runs": grouped["count"], "minutes in all": (grouped["sum"] / 60).round(1)}).reset_index()

    @property
    def latency_files(self) -> tuple[Path, Path]:
        """Where times that are measured here are kept, and where the repository brings some."""
        name = f"latency-{self.profile.name}.json"
        return self.folder / name, self.root / "bench" / name

    def measurements(self) -> Measurements:
        """Times on this machine; without the images, on which some are measured, those that are kept."""
        here, brought = self.latency_files
        if self.has_images:
            return Measurements(here, self.compute.describe())
        return Measurements(here if here.exists() else brought)


@cache
def _study_elsewhere(profile_name: str, data, device: str, root: Path) -> Study:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to us too; the program ends us
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    return Study(profile_name, data, device, root, log=lambda line: None, jobs=1)


def _attempt_elsewhere(where: tuple, item: Planned) -> tuple[Planned, Record | str]:
    """`Study._attempt` in a process beside this one."""
    return _study_elsewhere(*where)._attempt(item)


def _different(items: Iterable[Planned]) -> list[Planned]:
    """Of those that are of one run, the first."""
    first = {}
    for item in items:
        first.setdefault(item.run.key, item)
    return list(first.values())


def _end_with(parent: int) -> None:
    """End this process when the one that started it was killed: nobody would keep its records."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _as_teacher(run: Run) -> Planned:
    return Planned("teacher", {"arm": "Teacher", "seed": run.seed}, run)


def describe(item: Planned) -> str:
    """One planned run in words: experiment, arm, and what of its labels is not 0."""
    others = [f"{name} {value}" for name, value in item.labels.items() if name not in ("arm", "seed") and value]
    return ", ".join([f"{item.experiment}: {item.labels['arm']}", *others, f"seed {item.labels['seed']}"])
