"""CIFAR-10 is not here: what is recorded is shown all the same, and whatever needs the images says how to get them."""

from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_output
from safetensors.numpy import save

from igkd import experiments
from igkd.errors import InputError, MissingImages
from igkd.images import CIFAR10_CLASSES
from igkd.records import write_atomically
from igkd.study import SHIPPED_TEACHER, Study
from small import refusal
from test_images import random_arrays
from test_run_all import RUN_ALL, run_all, small_repository, write_notebook
from test_study import record

PARAMETERS = 'profile = "paper"\ndata = ""\ndevice = "auto"'
DRAWS = """
from igkd import experiments
from igkd.study import Study
study = Study(profile, data, device, log=lambda line: None)
print(study.ensure(experiments.arms(study.plan)[:8]).accuracy.round(3).tolist())
"""


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Two studies on the same records of eight runs each of two experiments; the second has no images."""
    np.savez(tmp_path / "images.npz", **random_arrays(CIFAR10_CLASSES, 4, size=32))
    monkeypatch.delenv("IGKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    quiet = {"device": "cpu", "root": tmp_path, "log": lambda line: None, "jobs": 1}
    here = Study("paper", data=tmp_path / "images.npz", **quiet)
    for number, item in enumerate([*experiments.monte_carlo(here.plan)[:8], *experiments.arms(here.plan)[:8]]):
        made = record(item.run, accuracy=0.9 + number / 1000, data="cifar10")
        counts = {"n_train": round(item.run.subset.fraction * 40), "n_test": 40}
        here.store.add(replace(made, outcome=made.outcome | counts), item.experiment)
    return here, Study("paper", **quiet)


def test_records_tell_what_is_known_of_the_images(studies):
    here, without = studies
    assert here.has_images and not without.has_images
    for name in ("name", "class_names", "num_classes", "size", "n_train", "n_test", "fingerprint"):
        assert getattr(without.images, name) == getattr(here.images, name), name
    for words in ("describe_data", "describe_student", "title"):
        assert getattr(without, words)() == getattr(here, words)()
    assert without.planned() == here.planned()


def test_other_images_are_a_study_of_their_own(studies):
    here, _ = studies
    here.store.add(record(here.teacher_runs()[0].run, data="cifar10"), "teacher")
    np.savez(here.root / "mine.npz", **random_arrays(CIFAR10_CLASSES, 5, size=32))
    again, mine = (Study("paper", here.root / name, "cpu", here.root) for name in ("images.npz", "mine.npz"))
    (item,) = experiments.arms(mine.plan)[:1]
    mine.store.add(record(item.run, data="cifar10"), "arms")
    assert again.store.keys() == here.store.keys() and mine.store.keys() == {item.run.key}
    assert again.at_laptop_size.profile.name == "laptop" and mine.at_laptop_size is mine
    with pytest.raises(InputError):
        RUN_ALL["publish"](mine, [])


def test_as_many_classes_as_records_have_room_for(tmp_path):
    for n in (256, 257):
        np.savez(tmp_path / f"{n}.npz", **random_arrays([f"class {number}" for number in range(n)], 1))
    few, many = (Study("paper", tmp_path / f"{n}.npz", "cpu", tmp_path) for n in (256, 257))
    assert few.images.num_classes == 256
    refusal(lambda: many.images, match="257")


def test_the_teacher_of_the_repository_is_there_for_other_images_too(studies):
    here, _ = studies
    teacher = record(here.teacher_runs()[0].run, data="cifar10")
    here.store.add(teacher, "teacher")
    write_atomically(here.root / "weights" / SHIPPED_TEACHER, save({}, {"run": teacher.key}))
    np.savez(here.root / "mine.npz", **random_arrays(CIFAR10_CLASSES, 5, size=32))
    mine = Study("laptop", here.root / "mine.npz", "cpu", here.root)
    mine.profile = replace(mine.profile, take=None)
    assert mine.own_images and mine.teacher_record() == teacher
    assert list(mine.table([mine.planned_teacher()]).key) == [teacher.key]


def test_recorded_runs_are_shown_and_missing_ones_ask_for_the_images(studies):
    here, without = studies
    declared = experiments.arms(here.plan)
    for some in (declared[:8], declared):  # of which the last are not recorded
        pd.testing.assert_frame_equal(without.ensure(some), here.ensure(declared[:8]))
    evidence = without.evidence(without.table(declared).key)
    assert list(evidence.runs) == [8] and list(evidence["minutes in all"]) == [4.0]  # of 30 seconds
    for needs in (lambda: without.ensure(declared[8:]), lambda: without.images.train_images):
        with pytest.raises(MissingImages, match="--data download"):
            needs()
    with pytest.raises(InputError, match="nowhere.npz"):  # images that were named must be there
        Study("paper", data="nowhere.npz", device="cpu", root=here.root).images  # noqa: B018


def test_the_program_draws_what_is_recorded_and_forgets_nothing(studies):
    """Cells that need the images are skipped, and keep the repository's outputs of the same profile."""
    root = studies[0].root
    (root / "images.npz").unlink()
    small_repository(root)
    path = write_notebook(root / "notebooks" / "05_x.ipynb", "X", DRAWS, parameters=PARAMETERS)
    notebook = nbformat.read(path, 4)
    old = new_output("stream", name="stdout", text="made with the images\n")
    tagged = {"tags": [RUN_ALL["NEEDS_IMAGES"]]}
    notebook.cells.append(new_code_cell("raise ValueError", metadata=tagged, outputs=[old]))
    for profile, kept in (("paper", [old]), ("laptop", [])):
        notebook.metadata["profile"] = profile
        nbformat.write(notebook, path)
        done = run_all(root, "--profile", "paper", "--only", "05")
        assert done.returncode == 0 and "05_x: ok" in done.stdout, done.stdout + done.stderr
        drawn, skipped = nbformat.read(root / "build" / "paper" / "notebooks" / path.name, 4).cells[-2:]
        assert drawn.outputs[0].text == f"{[round(0.908 + number / 1000, 3) for number in range(8)]}\n"
        assert "needs the images" in skipped.outputs[0].text and skipped.outputs[1:] == kept
    before = studies[0].store.keys()
    refused = run_all(root, "--profile", "paper", "--only", "05", "--force")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1) and "no CIFAR-10" in refused.stderr
    assert studies[0].store.keys() == before
