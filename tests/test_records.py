"""What is kept of a training, that what was damaged is not taken for it, and that what is shipped fits together."""

import json
import shutil

import pytest
import torch

from igkd.models import build, load_weights, pack_weights, state_digest, weights_metadata
from igkd.records import Record, write_atomically
from igkd.runs import Architecture
from small import ROOT, refusal, store_in
from test_runs import PLAIN, RUN

SHIPPED = store_in(ROOT)
OUTCOME = {"accuracy": 0.925, "history": [{"epoch": 1, "loss": 0.1}], "per_class_accuracy": [0.9, None]}
PROVENANCE = {"seconds": 1.5, "machine": {"device": "cpu"}, "versions": {"torch": "2"}}


def record(run=RUN, **fields):
    return Record(run, OUTCOME | fields, PROVENANCE)


@pytest.fixture
def kept(tmp_path):
    return store_in(tmp_path)


def test_a_record_comes_back_from_json():
    for run in (RUN, PLAIN):  # with a teacher, and without
        text = record(run).to_json()
        again = Record.from_json(text)
        assert again == record(run) and again.to_json() == text
        assert json.loads(text)["key"] == run.key


def test_a_record_that_was_damaged_or_edited_is_refused_by_its_name(kept):
    path = kept.add(record(), "arms")
    whole = path.read_bytes()
    for old, new in (
        (whole, b""),
        (whole, whole[:-100]),
        (whole, b"\xff\xfe" + whole),
        (b'"lr": 0.05', b'"lr": 0.05, "warmth": 1'),  # of another version
        (b'"fraction": 0.8', b'"fraction": 8'),
        (b'"accuracy": 0.925', b'"accuracy": 0.926'),
        (b'"seconds": 1.5', b'"seconds": 0.5'),
    ):
        assert whole.replace(old, new) != whole
        path.write_bytes(whole.replace(old, new))
        for read in (lambda: kept.find(RUN.key), lambda: list(kept.records())):
            refusal(read, match=RUN.key)


def test_two_records_of_one_run_that_differ_are_refused_until_it_is_forgotten(kept, tmp_path):
    kept.add(record(), "arms")
    kept.add(record(), "search")
    assert kept.find(RUN.key) == record() and kept.keys() == {RUN.key}
    kept.add(record(accuracy=0.0), "search")
    refusal(kept.find, RUN.key)
    for kept_of_it in (kept.weights_path(RUN.key), kept.checkpoint_path(RUN.key)):
        write_atomically(kept_of_it, b"content")
    kept.forget(RUN.key)
    assert not list(tmp_path.rglob(f"*{RUN.key}*"))


@pytest.mark.parametrize("name", [PLAIN.key, f"{RUN.key} (1)"], ids=["another run", "a file manager's copy"])
def test_a_copy_of_a_record_under_another_name_is_refused(kept, name):
    path = kept.add(record(), "arms")
    shutil.copy(path, path.with_stem(name))
    for read in (lambda: kept.find(name), lambda: list(kept.records())):
        refusal(read)
    assert kept.find(RUN.key) == record()


def test_weights_are_found_where_they_were_made_or_shipped(kept):
    model = build(Architecture(17), 10, None, torch.Generator())
    assert kept.find_weights("abc") is None
    for name, key in (("teacher", "abc"), ("another", "xyz")):
        write_atomically(kept.shipped / f"{name}.safetensors", pack_weights(model, run=key))
    assert kept.find_weights("abc") == kept.shipped / "teacher.safetensors"
    write_atomically(kept.weights_path("abc"), pack_weights(model, run="abc"))
    assert kept.find_weights("abc") == kept.weights_path("abc")
    write_atomically(kept.shipped / "another.safetensors", b"not weights")
    refusal(kept.find_weights, "no such run", match="another.safetensors")


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(tmp_path / "old.json", b"what was there")
    # The kernel refuses what goes beyond this size, in the middle of the file as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for name in ("old.json", "new.json"):
            with pytest.raises(OSError):
                write_atomically(tmp_path / name, bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"what was there"]


def test_shipped_weights_are_those_of_their_records():
    assert (paths := list(SHIPPED.shipped.glob("*.safetensors")))
    for path in paths:
        record = SHIPPED.find(weights_metadata(path)["run"])
        assert record, f"{path.name} is of a run that has no record"
        network = load_weights(path, len(record.outcome["per_class_accuracy"]))
        assert state_digest(network) == record.outcome["weights"], path.name


def test_students_learned_from_a_teacher_whose_record_is_here():
    assert (records := list(SHIPPED.records()))
    for record in records:  # each file is read, and refused if it is damaged or of other training code
        if record.run.signals:
            teacher = SHIPPED.find(record.run.signals.teacher)
            assert teacher and teacher.outcome["weights"] == record.outcome["teacher_weights"], record.key


def test_evaluations_on_other_images_are_of_the_networks_that_the_records_are_of():
    assert (paths := list(SHIPPED.root.glob("shift/*/*.json")))
    for path in paths:
        kept = json.loads(path.read_text())
        record = SHIPPED.find(kept["run"])
        assert record and record.outcome["weights"] == kept["weights"], path.name
