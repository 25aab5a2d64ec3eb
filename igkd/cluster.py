"""Trains the runs of a study on many machines with Ray, in place of this machine's processes.

The program that starts the runs, the driver, alone reads and writes the study's files. It puts images and signals into
Ray's object store, from where each machine fetches them once, and keeps each record and its weights as they come.
"""

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from igkd.device import pick_compute
from igkd.errors import InputError, first_line
from igkd.experiments import Planned
from igkd.images import ImageSet
from igkd.records import Record, Store, write_atomically
from igkd.runs import Run
from igkd.signals import Signals, needed, of_variant
from igkd.study import ONE_RUN, Study
from igkd.training import train

# Read when Ray is imported. It would report to its makers, and start what exceeds a machine's memory again without end;
# what was lost with its process or its machine it starts again three times.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_task_oom_retries", "3")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError
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
    here = {"include_dashboard": False, "num_cpus": study.jobs if study.compute.device == "cpu" else None}
    try:
        if address:  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
    except (OSError, ValueError, OverflowError, RuntimeError, RayError) as error:
        why = " ".join(str(error).split()) or type(error).__name__  # of other versions Ray tells in several lines
        what = f"no Ray cluster at {address or 'local'} ({why})"
        raise InputError(f"{what}; give HOST:PORT of the head of one with the versions of this machine") from error
    before, study.train_all = study.train_all, partial(_train_all, study)
    try:
        yield
    finally:
        study.train_all = before
        ray.shutdown()


def _train_all(study: Study, items: list[Planned]) -> Iterator[tuple[Planned, Record | str]]:
    """`igkd.study.TrainAll` on the cluster: all runs are queued there; those not yet begun leave when time is up."""
    if not items or not study.on_time():
        return
    device = study.compute.device
    resource = "GPU" if device == "cuda" else "CPU"
    if not ray.cluster_resources().get(resource):
        raise InputError(f"the cluster has no {resource} to train on; add a machine")
    task, images, queued = ray.remote(_train), ray.put(study.images), {}
    runs = {needed(item.run): item.run for item in items}
    signals = {kind: ray.put(study.teacher_signals(run).to("cpu")) for kind, run in runs.items()}
    # Ray counts in ten-thousandths: rounded up, the last of seven would find no place on a GPU.
    share = {"num_cpus": 1} if device == "cpu" else {"num_gpus": int(1e4 / study.jobs) / 1e4}
    for item in items:
        given = images, study.teacher_digest(item.run), signals[needed(item.run)]
        queued[task.options(**share).remote(item.run, item.run.key, device, *given)] = item
    while queued:
        done, _ = ray.wait(list(queued), timeout=1)
        if not study.on_time():  # what has begun ignores it
            list(map(ray.cancel, queued))
        for each in done:
            item, result = queued.pop(each), _result(each, study.store)
            if result is not None:
                yield item, result


def _train(run: Run, key: str, device: str, images: ImageSet, digest: str | None, signals: Signals):
    """Train one run on a machine of the cluster, where nothing of it stays; record or error, and weights."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by which Ray would cancel it although it has begun
    if run.key != key:
        raise InputError("a machine of the cluster has another version of igkd; install the same on all")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), Path(folder), Path(folder))
        try:
            record = train(run, images, store, pick_compute(device), of_variant(run, signals), digest)
            return record, store.weights_path(run.key).read_bytes()
        except ONE_RUN as error:
            return first_line(error), None


def _result(task: ray.ObjectRef, store: Store) -> Record | str | None:
    """The record of a finished run, whose weights are then here, or what went wrong; None if it had not begun."""
    try:
        result, weights = ray.get(task)
        if weights:
            write_atomically(store.weights_path(result.key), weights)
        return result
    except TaskCancelledError:
        return None
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, OSError) as error:  # lost too often
        return first_line(error)
