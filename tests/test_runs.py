import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from igkd import runs
from igkd.errors import InputError
from igkd.images import Subset
from igkd.methods import Method, Recipe
from igkd.models import Architecture, pack_weights
from igkd.runs import Record, Run, SignalSpec, Store, pack_predictions, unpack_predictions, write_atomically

RUN = Run(
    data="0123456789abcdef",
    subset=Subset(fraction=0.8, seed=3, validation=0.1),
    architecture=Architecture(blocks_removed=5, width=1.0, normalize=False),
    method=Method(alpha=0.01, temperature=2.5, overlay_prob=0.1, gamma=0.8, overlay_weight=0.5, max_exponent=2.0),
    recipe=Recipe(num_epochs=16, batch_size=64, optimizer="sgd", lr=0.05, one_cycle=True, weight_decay=5e-4, padding=4),
    signals=SignalSpec(teacher="fedcba9876543210", variant="described", n_steps=50, baseline="mean"),
    seed=7,
    split="test",
)
PLAIN = dataclasses.replace(RUN, method=Method(), signals=None)
OUTCOME = {"accuracy": 0.925, "history": [{"epoch": 1, "loss": 0.1}], "per_class_accuracy": [0.9, None]}
PROVENANCE = {"seconds": 1.5, "machine": {"device": "cpu"}, "versions": {"torch": "2"}}


def record(run=RUN, **fields):
    return Record(run, OUTCOME | fields, PROVENANCE)


def store(folder):
    return Store(folder / "records", folder / "build", folder / "weights")


# One other value for each field.
OTHER = {
    "data": "0123456789abcdee",
    "seed": 8,
    "split": "validation",
    "subset": {"fraction": 0.7, "seed": 4, "validation": 0.2},
    "architecture": {"blocks_removed": 3, "width": 0.5, "normalize": True},
    "method": {
        "alpha": 0.02,
        "temperature": 3.0,
        "overlay_prob": 0.2,
        "gamma": 0.9,
        "overlay_weight": 0.4,
        "max_exponent": 3.0,
        "cutout": 4,
    },
    "recipe": {
        "num_epochs": 17,
        "batch_size": 32,
        "optimizer": "adam",
        "lr": 0.04,
        "one_cycle": False,
        "weight_decay": 0.0,
        "padding": 3,
        "zero_init_residual": True,
    },
    "signals": {"teacher": "fedcba9876543211", "variant": "released", "n_steps": 49, "baseline": "black"},
}


def test_the_key_changes_with_every_field():
    changed = [RUN]
    for field in dataclasses.fields(Run):
        part = getattr(RUN, field.name)
        if not dataclasses.is_dataclass(part):
            changed.append(dataclasses.replace(RUN, **{field.name: OTHER[field.name]}))
            continue
        assert {inner.name for inner in dataclasses.fields(part)} == set(OTHER[field.name])
        for name, value in OTHER[field.name].items():
            other = dataclasses.replace(part, **{name: value})
            changed.append(dataclasses.replace(RUN, **{field.name: other}))
    assert len({run.key for run in changed}) == len(changed)


def test_the_key_is_this_one():
    # A change here means that every recorded run is trained again: raise TRAINING_VERSION if it is meant.
    assert runs.TRAINING_VERSION == 1
    assert RUN.key == "5df98d6e91c7b0af"
    assert PLAIN.key == "bcf6b1e1d1fd5b8d"


def test_the_key_changes_with_the_version_of_the_training_code(monkeypatch):
    before = RUN.key
    monkeypatch.setattr(runs, "TRAINING_VERSION", 2)
    assert RUN.key != before


def test_equal_runs_have_equal_keys_however_their_numbers_are_written():
    whole = dataclasses.replace(RUN, method=Method(gamma=1, temperature=2), recipe=Recipe(num_epochs=1, lr=1))
    broken = dataclasses.replace(RUN, method=Method(gamma=1.0, temperature=2.0), recipe=Recipe(num_epochs=1, lr=1.0))
    assert whole == broken and whole.key == broken.key


def test_the_key_does_not_depend_on_what_came_out():
    assert record().key == record(accuracy=0.1).key == RUN.key


@pytest.mark.parametrize(
    "change",
    [
        lambda: Recipe(num_epochs=1, optimizer="Adam"),
        lambda: SignalSpec("fedcba9876543210", variant="relesed"),
        lambda: dataclasses.replace(RUN, split="val"),
        lambda: dataclasses.replace(RUN, subset=Subset(), split="validation"),
        lambda: dataclasses.replace(RUN, signals=None),
    ],
    ids=["optimizer", "variant", "split", "nothing held out", "no teacher"],
)
def test_a_run_that_cannot_mean_what_it_says_is_refused(change):
    with pytest.raises(InputError):
        change()


FROM_0 = ("of 0 or more", (0,), (-1, math.inf, math.nan, "1"))
FROM_1 = ("of 1 or more", (1, 4), (0, -1, math.inf, math.nan, None))
SHARE = ("from 0 to 1", (0, 0.5, 1), (-0.1, 1.5, 5, math.nan))
ABOVE_0 = ("above 0", (1e-9, 1, 1e30), (0, -1, math.inf, math.nan))
WHOLE = (2.0, 1.5, True)
#: For each number what it may be, some that it may be, and some that it may not.
RANGES = {
    "method": {
        "alpha": SHARE,
        "temperature": ABOVE_0,
        "overlay_prob": SHARE,
        "gamma": (FROM_0[0], (0, 0.8, 1000.0), FROM_0[2]),
        "overlay_weight": SHARE,
        "max_exponent": FROM_1,
        "cutout": (FROM_0[0], FROM_0[1], FROM_0[2] + WHOLE),
    },
    "recipe": {
        "num_epochs": (FROM_1[0], FROM_1[1], FROM_1[2] + WHOLE),
        "batch_size": (FROM_1[0], FROM_1[1], FROM_1[2] + WHOLE),
        "lr": ABOVE_0,
        "weight_decay": (FROM_0[0], (0, 5e-4, 10.0), FROM_0[2]),
        "padding": (FROM_0[0], FROM_0[1], FROM_0[2] + WHOLE),
    },
    "signals": {
        "n_steps": (FROM_1[0], FROM_1[1], FROM_1[2] + WHOLE),
        "baseline": ("choose one of: mean, black, blur", ("mean", "black", "blur"), ("white", "", 0.0)),
    },
    "architecture": {"blocks_removed": (FROM_0[0], FROM_0[1], FROM_0[2] + WHOLE), "width": ABOVE_0},
    "run": {"seed": (FROM_0[0], (0, 2**40), FROM_0[2] + WHOLE)},
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in RANGES.items() for name in names])
def test_numbers_out_of_range_are_refused_before_anything_is_trained(part, name):
    whole = RUN if part == "run" else getattr(RUN, part)
    says, fitting, others = RANGES[part][name]
    for value in fitting:
        assert getattr(dataclasses.replace(whole, **{name: value}), name) == value
    for value in others:
        with pytest.raises(InputError, match=says) as caught:
            dataclasses.replace(whole, **{name: value})
        assert name in str(caught.value) and repr(value) in str(caught.value)


def test_every_number_of_a_run_has_a_range():
    for part, names in RANGES.items():
        whole = RUN if part == "run" else getattr(RUN, part)
        numbers = {field.name for field in dataclasses.fields(whole) if field.type in (int, float)}
        assert numbers <= set(names)


@pytest.mark.parametrize("run", [RUN, PLAIN], ids=["with a teacher", "without"])
def test_a_record_comes_back_from_json(run):
    text = record(run).to_json()
    again = Record.from_json(text)
    assert again == record(run)
    assert again.to_json() == text
    assert json.loads(text)["key"] == run.key


def change_text(content: bytes) -> bytes:
    changed = content.replace(b'"seed": 7', b'"seed": 8')
    assert changed != content
    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"[]",
        lambda content: b'"text"',
        lambda content: b"\xff\xfe" + content,
        lambda content: content.replace(b'"outcome"', b'"outcame"'),
        lambda content: content.replace(b'"lr": 0.05', b'"lr": 0.05, "warmth": 1'),
        lambda content: content.replace(b'"fraction": 0.8', b'"fraction": 8'),
        change_text,
    ],
    ids=["empty", "half", "list", "text", "bytes", "lacking", "unknown field", "out of range", "edited"],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    kept = store(tmp_path)
    path = kept.add(record(), "arms")
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda: kept.find(RUN.key), lambda: list(kept.records())):
        with pytest.raises(InputError, match=RUN.key) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_what_was_changed_in_a_record_is_found_whatever_it_is(tmp_path):
    kept = store(tmp_path)
    path = kept.add(record(), "arms")
    text = path.read_text()
    fields = json.loads(text)
    for part in ("outcome", "provenance"):
        path.write_text(json.dumps(fields | {part: fields[part] | {"accuracy": 500}}))
        with pytest.raises(InputError):
            kept.find(RUN.key)
    path.write_text(text)
    assert kept.find(RUN.key) == record()


def test_two_records_of_one_run_that_differ_are_refused(tmp_path):
    kept = store(tmp_path)
    kept.add(record(), "arms")
    kept.add(record(), "search")
    assert kept.find(RUN.key) == record()
    kept.add(dataclasses.replace(record(), outcome=record().outcome | {"accuracy": 0.0}), "search")
    with pytest.raises(InputError):
        kept.find(RUN.key)


def test_predictions_take_half_a_byte_an_image_and_come_back():
    classes = np.random.default_rng(0).integers(0, 10, 10_000)
    text = pack_predictions(classes)
    assert np.array_equal(unpack_predictions(text), classes) and len(text) < 7000


def test_a_copy_of_a_record_under_the_name_of_another_run_is_refused(tmp_path):
    kept = store(tmp_path)
    path = kept.add(record(), "arms")
    shutil.copy(path, path.with_stem(PLAIN.key))
    for read in (lambda: kept.find(PLAIN.key), lambda: list(kept.records())):
        with pytest.raises(InputError, match=f"{PLAIN.key}.json holds the record of another run, {RUN.key}"):
            read()
    assert kept.find(RUN.key) == record()


def test_a_copy_that_a_file_manager_named_is_not_counted_twice(tmp_path):
    kept = store(tmp_path)
    path = kept.add(record(), "arms")
    shutil.copy(path, path.with_stem(f"{RUN.key} (1)"))
    with pytest.raises(InputError, match=r"\(1\)\.json holds the record"):
        list(kept.records())


def test_the_records_of_the_repository_are_read_under_their_keys():
    root = Path(__file__).parent.parent / "records"
    kept = Store(root, root, root)
    assert {each.key for each in kept.records()} == kept.keys() != set()


def test_a_record_of_older_training_code_can_be_read_but_is_not_this_run(tmp_path, monkeypatch):
    kept = store(tmp_path)
    kept.add(record(), "arms")
    monkeypatch.setattr(runs, "TRAINING_VERSION", 2)
    assert [old.run for old in kept.records()] == [RUN]
    assert kept.find(RUN.key) is None


def test_records_are_merged_by_copying_files(tmp_path):
    here, there = store(tmp_path / "here"), store(tmp_path / "there")
    here.add(record(), "arms")
    there.add(record(), "arms")
    there.add(record(PLAIN), "search")
    shutil.copytree(there.root, here.root, dirs_exist_ok=True)
    assert here.keys() == {RUN.key, PLAIN.key}
    assert here.find(PLAIN.key) == record(PLAIN)
    assert list(here.records("arms")) == [record()]
    assert [kept.key for kept in here.records()] == sorted([RUN.key, PLAIN.key])


def test_a_forgotten_run_leaves_nothing(tmp_path):
    kept = store(tmp_path)
    kept.add(record(), "arms")
    kept.add(record(PLAIN), "arms")
    for path in (kept.weights_path(RUN.key), kept.checkpoint_path(RUN.key)):
        write_atomically(path, b"content")
    kept.forget(RUN.key)
    assert kept.find(RUN.key) is None and kept.find(PLAIN.key) is not None
    assert not [path for path in tmp_path.rglob(f"{RUN.key}*")]


def test_weights_are_found_where_they_were_made_or_shipped(tmp_path):
    kept = store(tmp_path)
    model = Architecture(17).build(10, None)
    assert kept.find_weights("abc") is None
    write_atomically(kept.shipped / "teacher.safetensors", pack_weights(model, run="abc"))
    write_atomically(kept.shipped / "another.safetensors", pack_weights(model, run="xyz"))
    assert kept.find_weights("abc") == kept.shipped / "teacher.safetensors"
    write_atomically(kept.weights_path("abc"), pack_weights(model, run="abc"))
    assert kept.find_weights("abc") == kept.weights_path("abc")


def test_a_damaged_file_among_the_shipped_weights_is_named(tmp_path):
    kept = store(tmp_path)
    write_atomically(kept.shipped / "teacher.safetensors", b"not weights")
    with pytest.raises(InputError, match="teacher.safetensors"):
        kept.find_weights("abc")


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_atomically(path, b"a long first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, before):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.json"
    if before is not None:
        path.write_bytes(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses what goes beyond this size, in the middle of the file as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError):
            write_atomically(path, bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])
