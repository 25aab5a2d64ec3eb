"""Trains the runs of a study on many machines with Ray, in place of this machine's processes.

The program that starts the runs, the driver, alone reads and writes the study's files. It puts images and signals into
Ray's object store once, from where each machine fetches them once, and keeps each record and its weights as they come.
"""

import hashlib
import logging
import math
import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from igkd.device import pick_compute
from igkd.engine import ONE_RUN, Study
from igkd.errors import InputError, first_line
from igkd.experiments import Planned
from igkd.images import ImageSet
from igkd.models import MobileNetV2, state_digest
from igkd.runs import Record, Run, Store, write_atomically
from igkd.signals import Signals, needed, of_variant
from igkd.training import train, trains_alone

#: How often a run is started again after its process or its machine was lost.
MAX_RETRIES = 3
SECONDS_TO_ANSWER = 10

# Read when Ray is imported. It would report to its makers, and start what exceeds a machine's memory again without end.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise InputError("Ray is not installed: pip install 'igkd[cluster]'") from error


@contextmanager
def connected(study: Study, address: str | None = None) -> Iterator[None]:
    """While it lasts, a study trains its missing runs on a Ray cluster.

    Parameters
    ----------
    study : Study
    address : str, optional
        ``HOST:PORT`` of the cluster's head; without it, Ray is started on this machine and ended again.

    Raises
    ------
    InputError
        If there is no cluster at the address, or Ray cannot place what the study's device asks for.
    """
    if study.compute.device not in ("cpu", "cuda"):
        raise InputError(f"Ray chooses cores or GPUs; give --device cpu or cuda, not {study.compute.device}")
    if address:
        _check_answers(address)
        start = {}
    else:
        start = {"include_dashboard": False, "num_cpus": study.jobs if study.compute.device == "cpu" else None}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **start)
    except (ConnectionError, RayError) as error:
        raise InputError(f"Ray cannot be used at {address or 'this machine'}: {first_line(error)}") from error
    here, study.train_all = study.train_all, partial(_train_all, study)
    try:
        yield
    finally:
        study.train_all = here
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InputError(f"{address!r} is no address of a Ray cluster; give HOST:PORT as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`") from error


def _train_all(
    study: Study, items: list[Planned], on_time: Callable[[], bool]
) -> Iterator[tuple[Planned, Record | str]]:
    """`igkd.engine.TrainAll` on the cluster."""
    if not items:
        return
    device = study.compute.device
    cores = min((int(node["Resources"]["CPU"]) for node in _machines()), default=0)
    if not cores or (device == "cuda" and not _total("GPU")):
        raise InputError(f"the cluster has no {'GPU' if device == 'cuda' else 'core'} to train on; add a machine")
    # A training that gets all cores here is alone on its machine there, whichever that is; on a GPU, alone on the GPU.
    if device == "cpu":
        needs = {True: {"CPU": cores}, False: {"CPU": 1}}
    else:  # Ray counts in ten-thousandths: rounded up, the last of seven would find no place
        needs = {True: {"CPU": 1, "GPU": 1}, False: {"CPU": 1, "GPU": math.floor(1e4 / study.jobs) / 1e4}}
    tasks = {
        alone: ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_retries=MAX_RETRIES)(_train)
        for alone, need in needs.items()
    }
    threads, images = torch.get_num_threads(), ray.put(study.images)
    kept, signals = {}, {}
    failed = study.prepare_signals(items, on_time)
    yield from ((item, failed[needed(item.run)]) for item in items if needed(item.run) in failed)
    items = [item for item in items if needed(item.run) not in failed]
    for of, run in {needed(item.run): item.run for item in items}.items():
        if on_time():
            parts = vars(study.teacher_signals(run).to("cpu")).values()
            signals[of] = [None if part is None else _put_once(part, kept) for part in parts]

    waiting = deque(sorted(items, key=lambda item: not trains_alone(item.run)))
    running, used = {}, Counter()
    while True:
        if not on_time():
            waiting.clear()
        # Ray gets no more than there is place for, so that a budget is about what is started and not what is queued.
        while waiting:
            item = waiting[0]
            if record := study.store.find(item.run.key):  # another program has trained it since this one looked
                yield waiting.popleft(), record
                continue
            alone = trains_alone(item.run)
            # Twenty times 0.05 is more than 1 in floating point.
            if running and any(used[kind] + share > _total(kind) + 1e-6 for kind, share in needs[alone].items()):
                break
            taught = (study.teacher_digest(item.run), *signals[needed(item.run)])
            running[tasks[alone].remote(item.run, item.run.key, device, threads, images, *taught)] = waiting.popleft()
            used.update(needs[alone])
        if not running:
            return
        (task,), _ = ray.wait(list(running))
        item = running.pop(task)
        used.subtract(needs[trains_alone(item.run)])
        yield item, _result(task, study.store)


def _machines() -> list[dict]:
    """The machines that train; a cluster's head may have been started without cores."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _total(kind: str) -> float:
    return ray.cluster_resources().get(kind, 0)


def _put_once(part: Tensor | MobileNetV2, kept: dict[str, ray.ObjectRef]) -> ray.ObjectRef:
    """`part` in the object store; methods and variants that use the same share it."""
    if isinstance(part, MobileNetV2):
        digest = state_digest(part)
    else:
        digest = hashlib.sha256(part.numpy()).hexdigest()
    if digest not in kept:
        kept[digest] = ray.put(part)
    return kept[digest]


def _train(run: Run, key: str, device: str, threads: int, images: ImageSet, teacher_digest: str | None, *signals):
    """Train one run on a machine of the cluster, where nothing of it stays.

    Returns
    -------
    (Record, bytes) or str
        The record and the file of its weights, or what went wrong.
    """
    if run.key != key:
        raise InputError("a machine of the cluster has another version of igkd; install the same on all")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), Path(folder), Path(folder))
        try:
            taught = of_variant(run, images, Signals(*signals))
            record = train(run, images, store, pick_compute(device), taught, teacher_digest)
            return record, store.weights_path(run.key).read_bytes()
        except ONE_RUN as error:
            return first_line(error)


def _result(task: ray.ObjectRef, store: Store) -> Record | str:
    """The record of a finished run, whose weights are then here, or what went wrong."""
    try:
        result = ray.get(task)
        if isinstance(result, str):
            return result
        record, weights = result
        write_atomically(store.weights_path(record.key), weights)
        return record
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, OSError) as error:  # lost too often
        return first_line(error)
