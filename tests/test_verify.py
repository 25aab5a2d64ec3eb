"""Records that hold and records that do not."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from igkd import experiments, figures
from igkd.engine import Study
from igkd.errors import InputError
from igkd.models import load_weights, state_digest, weights_metadata
from igkd.runs import Record, Store
from igkd.verify import compare, verify_figures, verify_runs
from small import small_images, small_run

ROOT = Path(__file__).resolve().parent.parent
RUN = small_run(small_images())


def record(accuracy, weights="0", machine="one", **fields):
    provenance = {"machine": {"name": machine} | fields, "versions": {}, "seconds": 1}
    return Record(RUN, {"accuracy": accuracy, "weights": weights}, provenance)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A demo study that consists of the two short runs of one experiment."""
    study = Study("demo", device="cpu", root=tmp_path_factory.mktemp("study"), log=lambda line: None, jobs=1)
    items = [item for item in experiments.recipes(study.plan) if item.run.recipe.num_epochs < 100]
    study.planned = lambda: items
    study.ensure(items)
    return study


def test_a_run_trained_again_is_equal_bit_for_bit(study):
    checks = list(verify_runs(study, 1, np.random.default_rng(0)))
    assert [(check.holds, check.detail) for check in checks] == [(True, "equal bit for bit")]


def test_a_record_that_was_changed_does_not_hold(study):
    (item, *_) = study.planned()
    kept = study.store.find(item.run.key)
    (path,) = study.store.root.glob(f"*/{kept.key}.json")
    changed = replace(kept, outcome=kept.outcome | {"weights": "0" * 16, "accuracy": kept.outcome["accuracy"] + 0.01})
    try:
        study.store.add(changed, path.parent.name)
        checks = list(verify_runs(study, 2, np.random.default_rng(0)))
    finally:
        study.store.add(kept, path.parent.name)
    assert sorted(check.holds for check in checks) == [False, True]
    (failed,) = [check for check in checks if not check.holds]
    assert kept.key in failed.name and "-1.00 points on the same kind of machine" in failed.detail


def test_nothing_recorded_is_one_line(tmp_path):
    empty = Study("demo", device="cpu", root=tmp_path, log=lambda line: None)
    with pytest.raises(InputError, match="no run of the demo profile is recorded"):
        list(verify_runs(empty, 1, np.random.default_rng(0)))


def test_another_machine_is_judged_by_the_spread_of_seeds():
    """Two seeds at 0.89, one at 0.91: sd 0.01155, t(0.995, 2) = 9.925, so 0.1621 for a difference."""
    spread = [0.89, 0.89, 0.91]
    there = record(0.9, "a", "one")
    assert compare("x", there, record(0.9 - 0.162, "b", "two"), spread).holds
    assert not compare("x", there, record(0.9 - 0.163, "b", "two"), spread).holds
    assert not compare("x", there, record(0.9001, "b", "one"), spread).holds  # the same machine must be equal
    few = compare("x", there, record(0.5, "b", "two"), spread[:2])
    assert few.holds is None and "too few seeds" in few.detail


def test_a_record_that_does_not_name_the_generation_is_judged_as_of_another_machine():
    here = record(0.88, "b", "one", generation="cpu family 26, model 2")
    check = compare("x", record(0.9, "a", "one"), here, [0.89, 0.89, 0.91])
    assert check.holds and "generation is not recorded" in check.detail
    assert not compare("x", record(0.7, "a", "one"), here, [0.89, 0.89, 0.91]).holds


def test_only_a_record_of_a_compiled_training_may_differ_on_the_same_machine():
    here, spread = record(0.9001, "b", "one"), [0.89, 0.89, 0.91]
    assert not compare("x", record(0.9, "a", "one", compiled=False), here, spread).holds
    assert compare("x", record(0.9, "a", "one", compiled=True), here, spread).holds


def test_monte_carlo_runs_are_judged_by_those_on_other_subsets(tmp_path):
    """Other seeds draw other images, and are the same experiment all the same."""
    study = Study("demo", device="cpu", root=tmp_path, log=lambda line: None, jobs=1)
    students = [item for item in experiments.monte_carlo(study.plan) if item.labels["arm"] == "Student"]
    shared = {item.labels["seed"]: item for item in students}
    for seed, item in shared.items():
        made_up = {"accuracy": 0.1 + seed / 1000, "weights": "0", "n_train": 384, "n_test": 450}
        provenance = {"machine": {"name": "another"}, "versions": {}, "seconds": 1}
        study.store.add(Record(item.run, made_up, provenance), "monte_carlo")
    study.planned = lambda: students
    [check] = verify_runs(study, 1, np.random.default_rng(0))
    # A tenth of the accuracy of the run trained here, and far outside of what the made-up seeds span.
    assert len(shared) >= 3 and check.holds is False and "seeds explain" in check.detail


def test_figures_are_compared_with_the_records(study, tmp_path):
    study.figures = tmp_path
    table = study.table(study.planned())
    for name, shown in (("ours", table), ("published", None)):
        figures.save(plt.figure(), name, study, shown)
    assert [(check.name, check.holds) for check in verify_figures(tmp_path, study.store)] == [
        ("ours.png", True),
        ("published.png", True),
    ]
    (path,) = study.store.root.glob(f"*/{table.key[0]}.json")
    text = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(text) | {"outcome": {"accuracy": 0.5}}))
        changed = list(verify_figures(tmp_path, study.store))
        path.unlink()
        gone = list(verify_figures(tmp_path, study.store))
    finally:
        path.write_text(text)
    assert [check.holds for check in changed] == [False, True] and "the figure says" in changed[0].detail
    assert [check.holds for check in gone] == [False, True] and "1 of its 2 records are not here" in gone[0].detail
    plt.figure().savefig(tmp_path / "stranger.png")
    stamp = {"Description": "profile demo · 2 runs · records 0123456789ab"}  # names records but does not list them
    plt.figure().savefig(tmp_path / "unlisted.png", metadata=stamp)
    checks = {check.name: check for check in verify_figures(tmp_path, study.store)}
    assert not checks["stranger.png"].holds
    assert not checks["unlisted.png"].holds and "draw it again" in checks["unlisted.png"].detail


def test_a_figure_of_another_study_says_whose_records_it_shows(study, tmp_path):
    study.figures = tmp_path
    paper = Study("paper", device="cpu", root=ROOT, log=lambda line: None)
    path, _ = figures.save(plt.figure(), "theirs", study, study.table(study.planned()), records_of=paper)
    with Image.open(path) as picture:
        assert picture.text["Description"].startswith("profile paper · CIFAR-10, ")
    assert path.parent == tmp_path and [check.holds for check in verify_figures(tmp_path, study.store)] == [True]


SHIPPED = sorted((ROOT / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_their_records(path):
    store = Store(ROOT / "records", ROOT / "build", ROOT / "weights")
    record = store.find(weights_metadata(path)["run"])
    model = load_weights(path, len(record.outcome["per_class_accuracy"]))
    assert state_digest(model) == record.outcome["weights"]


def test_evaluations_on_other_images_are_of_the_networks_that_the_records_are_of():
    store = Store(ROOT / "records", ROOT / "build", ROOT / "weights")
    kept = [json.loads(path.read_text()) for path in (ROOT / "records" / "shift").glob("*/*.json")]
    others = [each["run"] for each in kept if store.find(each["run"]).outcome["weights"] != each["weights"]]
    assert kept and not others
