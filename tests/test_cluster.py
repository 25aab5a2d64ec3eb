"""The cluster engine on two machines that are processes here, one of which is killed while it trains."""

import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from igkd import runs
from igkd.errors import TrainingError
from igkd.experiments import Planned
from igkd.models import load_weights, state_digest
from igkd.runs import Method, Recipe
from igkd.study import Study
from small import refusal


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster on this machine: a head that trains nothing, and a folder for all its files, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # pytest's own are too long for the sockets in it
    before = dict(os.environ)
    os.environ |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
    os.environ["RAY_worker_niceness"] = "0"  # by default 15: beside other programs the workers would hardly start
    from ray.cluster_utils import Cluster

    from igkd.cluster import connected, ray  # with what igkd sets before

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.folder, made.connected = folder, connected
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(folder)


def add_machine(cluster, name):
    """One core; what its trainings write is in a folder of its own."""
    (cluster.folder / name).mkdir()
    return cluster.add_node(num_cpus=1, env_vars={"TMPDIR": str(cluster.folder / name)}), cluster.folder / name


def study_in(folder):
    """A demo on few digits, with a teacher that is not yet trained and then knows some of them."""
    study = Study("demo", device="cpu", root=folder, log=lambda line: None, jobs=1)
    study.profile = replace(study.profile, take=(64, 40), teacher=Recipe(16, 16, padding=1), n_steps=2)
    return study


def student(study, method=Method(), seed=0, variant="described", num_epochs=20, lr=0.05):
    recipe = Recipe(num_epochs, 16, lr=lr, one_cycle=False, padding=1)
    run = study.plan.student(method, seed, blocks_removed=17, variant=variant, recipe=recipe)
    return Planned("arms", {"arm": variant, "seed": seed}, run)


def test_a_machine_that_dies_costs_no_run_and_changes_none(cluster, tmp_path):
    doomed, written = add_machine(cluster, "doomed")
    add_machine(cluster, "other")
    study = study_in(tmp_path / "cluster")
    # Some share the teacher's signals, and some have signals of their own seed.
    taught = Method(alpha=0.5, overlay_prob=0.5, gamma=1.0)
    items = study.teacher_runs() + [student(study, seed=seed) for seed in range(2)]
    items += [student(study, taught, *given) for given in ((0, "described"), (0, "permuted"), (1, "permuted"))]
    killed_in, done = [], threading.Event()

    def kill():
        """Once a student's training has gone through an epoch there, so that it is lost in the middle."""
        keys = {item.run.key for item in items[1:]}
        while not killed_in and not done.wait(0.02):
            killed_in.extend(path.stem for path in written.glob("*/checkpoints/*.pt") if path.stem in keys)
        # All at once, as when the power fails; Ray's own way takes a second, in which a run can end or tidy up.
        raylet = psutil.Process(doomed.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        cluster.remove_node(doomed, allow_graceful=False)

    with ThreadPoolExecutor() as pool, cluster.connected(study, cluster.address):
        killer = pool.submit(kill)
        try:
            table = study.ensure(items)
        finally:
            done.set()
    killer.result()
    assert killed_in and list(written.glob(f"*/checkpoints/{killed_in[0]}.pt"))  # it never came to its end there
    assert list(table.key) == [item.run.key for item in items]

    here = study_in(tmp_path / "here")
    here.ensure(items)
    for item in items:
        outcome = here.store.find(item.run.key).outcome
        assert study.store.find(item.run.key).outcome == outcome
        weights = load_weights(study.store.find_weights(item.run.key), study.images.num_classes)
        assert state_digest(weights) == outcome["weights"]


def test_a_run_that_fails_leaves_the_others_alone(cluster, tmp_path, monkeypatch):
    add_machine(cluster, "third")
    study = study_in(tmp_path)
    good, bad = student(study, num_epochs=1), student(study, num_epochs=1, lr=1e30)
    with cluster.connected(study, cluster.address):
        with pytest.raises(TrainingError, match="1 of 2 runs failed.*the loss is"):
            study.ensure([bad, good])
        monkeypatch.setattr(study, "compute", replace(study.compute, device="cuda"))
        refusal(study.ensure, [student(study, seed=1)], match="no GPU")
        monkeypatch.undo()
        monkeypatch.setattr(runs, "TRAINING_VERSION", runs.TRAINING_VERSION + 1)
        refusal(study.ensure, [student(study, seed=1)], match="another version of igkd")
        monkeypatch.undo()
    assert study.store.keys() == {good.run.key}


@pytest.mark.parametrize("address", ["head", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_without_a_cluster_is_said_in_one_line(address, tmp_path):
    from igkd.cluster import connected

    refusal(connected(study_in(tmp_path), address).__enter__, match=address)


def test_a_cluster_of_other_versions_is_said_in_one_line(tmp_path, monkeypatch):
    from igkd.cluster import connected

    def init(*_, **__):
        raise RuntimeError("Version mismatch:\n    Ray: 2.0\n    Python: 3.11")

    monkeypatch.setattr("ray.init", init)
    refusal(connected(study_in(tmp_path)).__enter__, match="Ray: 2.0 Python: 3.11")
