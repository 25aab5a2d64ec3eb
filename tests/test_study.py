import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from igkd import experiments
from igkd.engine import Study
from igkd.errors import InputError, TrainingError
from igkd.experiments import Planned
from igkd.images import Subset
from igkd.methods import Method
from igkd.models import Architecture, pack_weights, state_digest
from igkd.runs import Record, Run, SignalSpec, write_atomically
from igkd.training import evaluate, predict
from small import COMPUTE, RECIPE, small_images, small_run, small_teacher

IMAGES = small_images()
RUN = small_run(IMAGES)
MACHINE = {"name": "a processor", "threads": 1, "bfloat16": False}


def record(run, accuracy=0.9, seconds=30.0):
    outcome = {
        "accuracy": accuracy,
        "kappa": 0.8,
        "n_test": 12,
        "n_train": 40,
        "weights": "0123",
        "per_class_accuracy": [1.0, None],
        "history": [],
    }
    return Record(run, outcome, {"data": "small", "seconds": seconds, "machine": MACHINE, "versions": {"torch": "2"}})


@pytest.fixture
def study(tmp_path):
    study = Study("demo", device="cpu", root=tmp_path, log=lambda line: study.lines.append(line), jobs=1)
    study.lines, study.compute = [], COMPUTE
    return study


@pytest.fixture
def small_study(study):
    study.images = IMAGES
    return study


def planned(*seeds):
    return [Planned("arms", {"arm": "Student", "seed": seed}, small_run(IMAGES, seed=seed)) for seed in seeds]


def test_a_run_learns_from_the_teacher_that_it_names(small_study):
    teachers = {key: small_teacher(IMAGES, seed) for seed, key in enumerate(("one", "another"))}
    for key, teacher in teachers.items():
        content = pack_weights(teacher.model, run=key, accuracy=str(teacher.accuracy))
        write_atomically(small_study.store.weights_path(key), content)
    for key, teacher in teachers.items():
        run = small_run(IMAGES, Method(alpha=0.5, temperature=2.0))
        run = replace(run, signals=replace(run.signals, teacher=key))
        torch.testing.assert_close(
            small_study.signals(run).logits, predict(teacher.model, IMAGES.train_images, COMPUTE)
        )
        assert small_study.train(run).outcome["teacher_weights"] == state_digest(teacher.model)


def test_planned_runs_start_with_the_teacher_and_go_round_the_seeds(study):
    items = study.planned()
    assert items[0].run.key == study.plan.teacher_key and items[0].labels["arm"] == "Teacher"
    keys = [item.run.key for item in items]
    assert len(set(keys)) == len(keys)
    students = items[1:]
    seeds = [item.labels["seed"] for item in students]
    assert seeds == sorted(seeds)
    arms = [
        [item.labels["arm"] for item in students if item.experiment == "arms" and item.labels["seed"] == seed]
        for seed in range(study.profile.num_seeds)
    ]
    assert arms.count(arms[0]) == len(arms) > 1  # every seed has the same arms
    for item in students:
        assert item.run.seed == item.labels["seed"] and item.run.data == study.fingerprint
        assert (item.run.signals is not None) == item.run.method.uses_teacher
        assert item.run.signals is None or item.run.signals.teacher == keys[0]


def test_constants_are_searched_on_held_out_images_only(study):
    items = [item for item in study.planned() if item.experiment == "search"]
    assert items
    for item in items:
        assert item.run.split == "validation" and item.run.subset.validation > 0


def test_no_time_trains_nothing(small_study):
    small_study.ensure(planned(0))
    table = small_study.ensure(planned(0, 1, 2), budget=0)
    assert list(table.seed) == [0] and len(small_study.store.keys()) == 1
    assert "2 runs are left" in small_study.lines[-1]


def test_what_another_program_trains_meanwhile_is_not_trained_again(small_study):
    first, second = planned(0, 1)
    other = record(second.run, accuracy=0.125)  # which twelve images do not give

    def finished(line):
        if line.startswith("[1/2]"):
            small_study.store.add(other, "elsewhere")

    small_study.log = finished
    table = small_study.ensure([first, second])
    assert table.accuracy[1] == 0.125 and not small_study.store.weights_path(second.run.key).exists()
    assert [kept.key for kept in small_study.store.records()].count(second.run.key) == 1


def test_the_table_has_labels_measures_and_seconds(small_study):
    items = planned(0, 1)
    table = small_study.ensure(items)
    assert list(table.columns) == [
        "arm",
        "seed",
        "key",
        "accuracy",
        "balanced_accuracy",
        "kappa",
        "loss",
        "n_test",
        "n_train",
        "train_accuracy",
        "seconds",
    ]
    assert list(table.key) == [item.run.key for item in items]
    kept = small_study.store.find(items[1].run.key)
    assert table.accuracy[1] == kept.outcome["accuracy"] and table.seconds[1] == kept.provenance["seconds"]
    assert small_study.table(planned(2)).empty


def test_evidence_counts_the_runs_of_each_machine(small_study):
    kept = [record(replace(RUN, seed=seed)) for seed in range(3)]
    kept.append(record(replace(RUN, data="other images"), seconds=60.0))
    for item in kept:
        small_study.store.add(item, "arms")
    evidence = small_study.evidence([item.key for item in kept])
    assert list(evidence.runs) == [3, 1] and list(evidence["minutes in all"]) == [1.5, 1.0]
    assert list(evidence.data) == [f"small ({IMAGES.fingerprint})", "small (other images)"]


def with_teacher(study):
    """Give the study a teacher as if it had been trained."""
    teacher = small_teacher(IMAGES)
    write_atomically(
        study.store.weights_path(study.plan.teacher_key),
        pack_weights(teacher.model, run=study.plan.teacher_key, accuracy=str(teacher.accuracy)),
    )
    (item,) = study.teacher_runs()
    study.store.add(record(item.run), "teacher")
    return teacher


@pytest.mark.parametrize("blocks_removed", [17, 16], ids=["a cut of the paper", "a cut without a tap"])
def test_a_student_learns_from_the_study_s_teacher(small_study, blocks_removed):
    teacher = with_teacher(small_study)
    signals = SignalSpec(small_study.plan.teacher_key, n_steps=2)
    run = replace(
        RUN, method=Method(alpha=0.5, overlay_prob=0.5), signals=signals, architecture=Architecture(blocks_removed)
    )
    small_study.ensure([Planned("arms", {"arm": "KD+IG", "seed": 0}, run)])
    assert small_study.store.find(run.key).outcome["teacher_weights"] == teacher.digest


def test_a_teacher_of_which_only_the_record_is_here_is_not_replaced(small_study):
    with_teacher(small_study)
    small_study.store.weights_path(small_study.plan.teacher_key).unlink()
    with pytest.raises(InputError, match="only its record"):
        small_study.teacher()


def test_a_teacher_that_fails_is_trained_once_and_its_students_not_at_all(small_study):
    teacher = small_run(IMAGES, recipe=replace(RECIPE, lr=1e30), architecture=Architecture(0, normalize=True))
    signals = SignalSpec(teacher.key, n_steps=2)
    students = [small_run(IMAGES, Method(alpha=0.5), seed=seed) for seed in range(2)]
    items = [Planned("teacher", {"arm": "Teacher", "seed": 0}, teacher)]
    items += [Planned("arms", {"arm": "KD", "seed": run.seed}, replace(run, signals=signals)) for run in students]
    with pytest.raises(TrainingError, match="3 of 4 runs failed"):
        small_study.ensure([*items, *planned(0)])
    failed = [line for line in small_study.lines if line.startswith("failed: ")]
    assert [("the loss is" in line, "its teacher" in line) for line in failed] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert small_study.store.keys() == {planned(0)[0].run.key}


def test_runs_side_by_side_are_those_one_after_the_other(tmp_path):
    outcomes = []
    for jobs in (1, 2):
        study = Study("demo", device="cpu", root=tmp_path / str(jobs), log=lambda line: None, jobs=jobs)
        runs = [
            replace(item.run, recipe=replace(item.run.recipe, num_epochs=1)) for item in experiments.recipes(study.plan)
        ]
        items = [Planned("arms", {"arm": "Student", "seed": number}, run) for number, run in enumerate(runs)]
        items = list({item.run.key: item for item in items}.values())
        study.ensure(items)
        outcomes.append([study.store.find(item.run.key).outcome for item in items])
    assert len(outcomes[0]) > 2 and outcomes[0] == outcomes[1]


def side_by_side(root, *labelled):
    """A study of the demo's digits that trains two at once, and runs of one epoch: arm, seed and method of each."""
    study = Study("demo", device="cpu", root=root, log=lambda line: study.lines.append(line), jobs=2)
    study.lines = []
    teacher = Architecture(0, normalize=True).build(10, ((0.5,) * 3, (0.25,) * 3), torch.Generator().manual_seed(0))
    content = pack_weights(teacher, run=study.plan.teacher_key, accuracy="0.0")
    write_atomically(study.store.weights_path(study.plan.teacher_key), content)
    (item,) = study.teacher_runs()
    study.store.add(record(item.run), "teacher")
    recipe = replace(study.profile.recipe, num_epochs=1)
    items = []
    for number, (arm, seed, method) in enumerate(labelled):
        # The rate makes runs of it that are not alike.
        signals = SignalSpec(study.plan.teacher_key, n_steps=1) if method.uses_teacher else None
        each = replace(recipe, lr=0.01 + number / 1000)
        run = Run(study.fingerprint, Subset(), Architecture(17), method, each, signals, seed)
        items.append(Planned("arms", {"arm": arm, "seed": seed}, run))
    return study, items


def test_signals_that_cannot_be_written_fail_the_runs_that_need_them_alone(tmp_path):
    study, items = side_by_side(
        tmp_path,
        *((arm, 0, method) for arm, method in (("KD", Method(alpha=0.5)), ("Student", Method())) for _ in "12"),
    )
    (tmp_path / "build" / "signals").write_text("")
    with pytest.raises(TrainingError, match="2 of 4 runs failed.*its signals could not be computed"):
        study.ensure(items)
    assert set(study.table(items).arm) == {"Student"} and len(study.table(items)) == 2


def test_a_process_that_is_killed_fails_what_it_trained_and_nothing_else(tmp_path):
    study, items = side_by_side(tmp_path, *(("Student", 0, Method()) for _ in range(9)))

    def killing(line):
        study.lines.append(line)
        if line.startswith("[1/"):
            for process in training_processes():
                process.kill()

    study.log = killing
    with pytest.raises(TrainingError, match="was killed, perhaps for lack of memory"):
        study.ensure(items)
    failed = [line for line in study.lines if line.startswith("failed: ")]
    assert 2 <= len(failed) <= 4  # what two processes had, and what was handed to them
    assert len(study.table(items)) == 9 - len(failed) and "time is used up" not in " ".join(study.lines)
    study.log = study.lines.append
    assert len(study.ensure(items)) == 9


def training_processes(of: int | None = None):
    """Processes that train for this one, or for another."""
    return [each for each in psutil.Process(of).children(recursive=True) if "popen_loky" in " ".join(each.cmdline())]


TRAINS = """
from dataclasses import replace
from pathlib import Path
from igkd import experiments
from igkd.engine import Study
study = Study("demo", device="cpu", root=Path({root!r}), jobs=2)
student = experiments.arms(study.plan)[0]
recipes = [replace(student.run.recipe, num_epochs=10_000 * number + 1) for number in range(3)]
study.ensure([replace(student, run=replace(student.run, recipe=recipe)) for recipe in recipes])
"""


def test_kill_9_of_the_program_ends_the_processes_that_train_for_it(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", TRAINS.format(root=str(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert "[1/" in program.stdout.readline()
    trained = training_processes(program.pid)
    assert len(trained) >= 2
    program.kill()
    program.wait()
    _, alive = psutil.wait_procs(trained, timeout=30)
    assert not alive


def test_runs_are_trained_seed_by_seed_arms_first_and_long_ones_last(small_study):
    plain = small_run(IMAGES)
    wanted = [
        ("arms", 0, plain),
        ("recipes", 0, replace(plain, recipe=replace(RECIPE, lr=0.01))),
        ("recipes", 0, replace(plain, architecture=Architecture(0, 0.25, True))),  # trains alone
        ("arms", 1, replace(plain, seed=1)),
    ]
    given = [Planned(name, {"arm": "Student", "seed": seed}, run) for name, seed, run in wanted]
    small_study.ensure([given[0], given[2], given[1], given[3]])
    times = [small_study.store.root / name / f"{run.key}.json" for name, _, run in wanted]
    assert [path.stat().st_mtime_ns for path in times] == sorted(path.stat().st_mtime_ns for path in times)


def test_a_student_is_the_network_that_its_record_describes(small_study):
    small_study.ensure(planned(0))
    weights = small_study.store.weights_path(RUN.key)
    for _ in range(2):  # read, then trained again
        accuracy = evaluate(small_study.student(RUN), IMAGES.test_images, IMAGES.test_labels, COMPUTE)["accuracy"]
        assert accuracy == small_study.store.find(RUN.key).outcome["accuracy"]
        assert state_digest(small_study.student(RUN)) == small_study.store.find(RUN.key).outcome["weights"]
        weights.unlink()
    assert [line for line in small_study.lines if "trained again" in line] == [
        f"the weights of run {RUN.key} are not here; it is trained again"
    ]


def test_a_long_training_is_not_repeated_for_its_weights(small_study):
    small_study.ensure(planned(0))
    kept = small_study.store.find(RUN.key)
    small_study.store.add(replace(kept, provenance=kept.provenance | {"seconds": 3600.0}), "arms")
    small_study.store.weights_path(RUN.key).unlink()
    assert small_study.student(RUN) is None


def test_epochs_are_rows_with_the_labels_of_their_run(small_study):
    with_teacher(small_study)
    signals = SignalSpec(small_study.plan.teacher_key, n_steps=2)
    items = [
        *planned(0),
        Planned("arms", {"arm": "AT", "seed": 1}, replace(RUN, method=Method(gamma=5.0), signals=signals)),
    ]
    small_study.ensure(items)
    table = small_study.epochs([*items, *planned(2)])
    assert list(table.arm) == ["Student", "Student", "AT", "AT"] and list(table.epoch) == [1, 2, 1, 2]
    history = small_study.store.find(items[1].run.key).outcome["history"]
    taught = table[table.arm == "AT"]
    assert list(taught["gradient_norms.attention"]) == [epoch["gradient_norms"]["attention"] for epoch in history]
    assert list(taught.attention) == [epoch["attention"] for epoch in history]
    assert table[table.arm == "Student"][["attention", "gradient_norms.cross_entropy"]].isna().all(axis=None)


def test_epochs_of_records_older_than_a_measure_lack_it(small_study):
    old = record(RUN)
    old.outcome["history"] = [{"epoch": 1, "loss": 2.0}]
    small_study.store.add(old, "arms")
    (row,) = small_study.epochs(planned(0)).itertuples()
    assert row.loss == 2.0 and "gradient_norms.attention" not in row._fields


def test_runs_that_depend_on_results_are_trained_after_them(small_study, monkeypatch):
    def first(plan):
        return planned(0, 1)

    def best_again(plan):
        """The better seed of the two, for longer."""
        accuracies = {item.run: plan.accuracy(item.run.key) for item in planned(0, 1)}
        if None in accuracies.values():
            return []
        best = max(accuracies, key=accuracies.get)
        run = replace(best, recipe=replace(RECIPE, num_epochs=3))
        return [Planned("longer", {"arm": "Student", "seed": best.seed}, run)]

    monkeypatch.setattr("igkd.engine.NOTEBOOKS", {"99": (first, best_again)})
    small_study.store.add(record(small_study.teacher_runs()[0].run), "teacher")
    small_study.complete(["99"], budget=0)
    assert not list(small_study.store.records("arms"))
    small_study.complete(["99"])
    accuracies = {kept.run.seed: kept.outcome["accuracy"] for kept in small_study.store.records("arms")}
    (longer,) = small_study.store.records("longer")
    assert len(accuracies) == 2 and accuracies[longer.run.seed] == max(accuracies.values())
