"""A study: which runs it plans, what it trains and keeps, and what a kill, a second program or a failure costs."""

import subprocess
import sys
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil
import pytest

from igkd.errors import MissingImages, TrainingError
from igkd.experiments import PROFILES, Planned
from igkd.images import CIFAR10_CLASSES, RecordedImages
from igkd.models import pack_weights, state_digest
from igkd.records import Record, write_atomically
from igkd.runs import Architecture, Method, SignalSpec
from igkd.study import Study
from igkd.training import evaluate, predict
from small import COMPUTE, RECIPE, refusal, small_images, small_run, small_teacher, wait

IMAGES = small_images()
RUN = small_run(IMAGES)
KD_IG = Method(alpha=0.5, temperature=2.0, overlay_prob=0.5)


def record(run, accuracy=0.9, seconds=30.0, data="small"):
    outcome = {"accuracy": accuracy, "train_accuracy": accuracy, "n_test": 12, "n_train": 40}
    outcome |= {"weights": "0123", "history": []}
    machine = {"name": "a processor", "threads": 1, "bfloat16": False}
    return Record(run, outcome, {"data": data, "seconds": seconds, "machine": machine, "versions": {"torch": "2"}})


def study_of(root, jobs=1):
    study = Study("demo", device="cpu", root=root, log=lambda line: study.lines.append(line), jobs=jobs)
    study.lines = []
    return study


@pytest.fixture
def study(tmp_path):
    study = study_of(tmp_path)
    study.images, study.compute = IMAGES, COMPUTE
    return study


def planned(*seeds):
    return [Planned("arms", {"arm": "Student", "seed": seed}, small_run(IMAGES, seed=seed)) for seed in seeds]


def with_teacher(study, seed=0):
    """Give the study its teacher, or one of another seed, as if it had been trained."""
    teacher, run = small_teacher(study.images, seed), replace(study.teacher_runs()[0].run, seed=seed)
    write_atomically(study.store.weights_path(run.key), pack_weights(teacher.model, run=run.key))
    study.store.add(record(run), "teacher")
    return run.key, teacher


def digits(root, jobs, *epochs):
    """A study of the demo's digits, and a tiny student of each seed with so many epochs."""
    study = study_of(root, jobs)
    recipes = [replace(study.profile.recipe, num_epochs=num_epochs) for num_epochs in epochs]
    runs = [study.plan.student(Method(), seed, recipe=recipe, blocks_removed=17) for seed, recipe in enumerate(recipes)]
    return study, [Planned("arms", {"arm": "Student", "seed": run.seed}, run) for run in runs]


def outcomes(study, items):
    return [study.store.find(item.run.key).outcome for item in items]


def test_the_paper_s_runs_are_done_in_the_order_of_their_weight(study):
    """Pairs behind the claims, what the signals contribute, then factorial, Monte Carlo, sweep, constants, recipe."""
    study.profile = PROFILES["paper"]
    teacher, *items = study.planned()
    counted = [(name, len(list(group))) for name, group in groupby(items, lambda item: item.experiment)]
    # Two arms of ten seeds; seven controls of five; four arms with AT of five, and KD+IG+AT of five more; seven cuts
    # (the eighth is that of the pairs), two arms, two seeds; five arms with chosen constants of five seeds.
    first = [("arms", 20), ("controls", 35), ("arms", 25), ("monte_carlo", 20), ("sweep", 28)]
    assert teacher.labels["arm"] == "Teacher" and counted == [*first, ("tuned", 25), ("paper_recipe", 6)]
    assert len({item.run.key for item in items}) == len(items)
    assert {item.run.signals.teacher for item in items if item.run.signals} == {teacher.run.key}


def test_the_paper_s_size_is_that_of_cifar10(study):
    """CINIC-10 has its class names and 90,000 training images: no verdict on the paper's claims."""
    study.profile, sizes = PROFILES["paper"], (39_999, 40_000, 50_000, 90_000)
    for n_train, is_full in zip(sizes, (False, True, True, False), strict=True):
        study.images = RecordedImages("cifar10", CIFAR10_CLASSES, (32, 32), n_train, 10_000, "", MissingImages())
        assert study.full_size is is_full


@pytest.mark.parametrize("blocks_removed", [17, 16], ids=["a cut of the paper", "a cut without a tap"])
def test_a_student_learns_from_the_teacher_that_it_names(study, blocks_removed):
    for key, teacher in (with_teacher(study), with_teacher(study, seed=1)):
        run = replace(RUN, method=KD_IG, signals=SignalSpec(key, n_steps=2), architecture=Architecture(blocks_removed))
        logits = predict(teacher.model, IMAGES.train_images, COMPUTE)
        np.testing.assert_allclose(study.signals(run).logits, logits, rtol=1e-4, atol=1e-4)
        study.ensure([Planned("arms", {"arm": "KD+IG", "seed": 0}, run)])
        assert study.store.find(run.key).outcome["teacher_weights"] == state_digest(teacher.model)


def test_the_table_has_what_the_records_have_and_a_second_time_nothing_is_trained(study):
    items = planned(0, 1)
    table = study.ensure(items)
    measures = ["accuracy", "balanced_accuracy", "kappa", "loss", "n_test", "n_train", "train_accuracy"]
    assert list(table.columns) == ["arm", "seed", "key", *measures, "seconds"]
    assert list(table.key) == [item.run.key for item in items]
    kept = study.store.find(items[1].run.key)
    assert table.accuracy[1] == kept.outcome["accuracy"] and table.seconds[1] == kept.provenance["seconds"]
    right = study.predictions(items) == IMAGES.test_labels
    np.testing.assert_allclose(right.mean(1), table.accuracy)
    paired = study.paired_predictions(planned(1, 0, 2), "Student")  # in the order of the seeds, those recorded
    np.testing.assert_array_equal(paired["Student"], study.predictions(items))
    assert {len(rows) for rows in study.paired_predictions(items, "Student", "KD").values()} == {0}
    refusal(study.predictions, planned(0, 2), match="arms: Student, seed 2")
    said = len(study.lines)
    study.until = time.time()
    assert study.ensure(planned(0, 1, 2)).equals(table)
    assert len(study.lines) == said + 1 and len(study.store.keys()) == 2  # it says that the time is used up


def test_what_another_program_trains_meanwhile_is_not_trained_again(study):
    first, second = planned(0, 1)
    other = record(second.run, accuracy=0.125)  # which twelve images do not give
    study.log = lambda line: line.startswith("[1/2]") and study.store.add(other, "elsewhere")
    table = study.ensure([first, second])
    assert table.accuracy[1] == 0.125 and not study.store.weights_path(second.run.key).exists()
    assert [kept.key for kept in study.store.records()].count(second.run.key) == 1


def test_a_student_is_the_network_that_its_record_describes(study):
    study.ensure(planned(0))
    kept, weights = study.store.find(RUN.key), study.store.weights_path(RUN.key)
    for spoil in (lambda: None, weights.unlink, lambda: weights.write_bytes(b"not weights")):
        spoil()  # by the latter two: trained again
        network = study.network(RUN)
        assert state_digest(network) == kept.outcome["weights"]
        accuracy = evaluate(network, IMAGES.test_images, IMAGES.test_labels, COMPUTE)["accuracy"]
        assert accuracy == kept.outcome["accuracy"]
    weights.unlink()
    study.store.add(replace(kept, provenance=kept.provenance | {"seconds": 3600.0}), "arms")
    assert study.network(RUN) is None  # nobody waits for an hour to see a network
    study.store.forget(RUN.key)
    assert study.network(RUN) is None  # nor trains one that no record describes


def test_a_teacher_that_fails_is_trained_once_and_its_students_not_at_all(study):
    teacher = small_run(IMAGES, recipe=replace(RECIPE, lr=1e30), architecture=Architecture(0, normalize=True))
    signals = SignalSpec(teacher.key, n_steps=2)
    runs = [replace(small_run(IMAGES, KD_IG, seed=seed), signals=signals) for seed in range(2)]
    items = [Planned("arms", {"arm": "KD+IG", "seed": run.seed}, run) for run in runs]
    items += [*planned(0), Planned("teacher", {"arm": "Teacher", "seed": 0}, teacher)]
    with pytest.raises(TrainingError, match="3 of 4 runs failed"):
        study.ensure(items)
    failed = [line for line in study.lines if line.startswith("failed: ")]
    assert ["the loss is" in line for line in failed] == [True, False, False]  # first, although it was given last
    assert study.store.keys() == {RUN.key}


def program(root, jobs, *epochs):
    """Another program that trains `digits`, and says each line as it comes."""
    code = (
        f"import functools, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_study import *\n"
        f"study, items = digits(Path({str(root)!r}), {jobs}, *{epochs})\n"
        "study.log = functools.partial(print, flush=True); study.ensure(items)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def trainers(of: int | None = None):
    """Processes that train for this one, or for another."""
    return [each for each in psutil.Process(of).children(recursive=True) if "popen_loky" in " ".join(each.cmdline())]


def test_two_programs_at_once_train_what_one_trains(tmp_path):
    study, items = digits(tmp_path / "one", 1, 1, 1, 1)
    study.ensure(items)
    programs = [program(tmp_path / "two", 1, 1, 1, 1) for _ in "12"]
    assert [(each.communicate() and each.returncode) for each in programs] == [0, 0]
    found = outcomes(digits(tmp_path / "two", 1)[0], items)
    assert found == outcomes(study, items) and len({str(outcome) for outcome in found}) == 3
    assert len([path for path in (tmp_path / "two").rglob("*") if path.is_file()]) == 6  # records and weights alone


def test_after_kill_9_no_process_is_left_and_the_study_ends_as_if_nothing_had_been(tmp_path):
    """And as if runs had been trained one by one."""
    epochs = 1, 15, 15
    study, items = digits(tmp_path / "killed", 1, *epochs)
    killed = program(tmp_path / "killed", 2, *epochs)
    assert "[1/3]" in killed.stdout.readline()
    checkpoints = [study.store.checkpoint_path(item.run.key) for item in items[1:]]
    wait(killed, lambda: all(path.exists() for path in checkpoints))
    training = trainers(killed.pid)
    killed.kill()
    killed.communicate()
    assert len(training) >= 2 and not psutil.wait_procs(training, timeout=30)[1]
    assert study.store.keys() < {item.run.key for item in items}
    study.ensure(items)
    assert not any(path.exists() for path in checkpoints)
    whole, _ = digits(tmp_path / "whole", 1)
    whole.ensure(items)
    assert outcomes(study, items) == outcomes(whole, items)


def test_a_process_that_is_killed_fails_what_it_trained_and_nothing_else(tmp_path):
    study, items = digits(tmp_path, 2, *[1] * 7)

    def killing(line):
        study.lines.append(line)
        if line.startswith("[1/"):
            for process in trainers():
                process.kill()

    study.log = killing
    with pytest.raises(TrainingError, match="was killed, perhaps for lack of memory"):
        study.ensure(items)
    failed = [line for line in study.lines if line.startswith("failed: ")]
    assert 2 <= len(failed) <= 4  # what two processes had, and what was handed to them
    assert len(study.table(items)) == 7 - len(failed)
