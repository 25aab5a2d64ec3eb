"""CIFAR-10 is not here: what is recorded is shown all the same, and whatever needs the images says how to get them."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from igkd import experiments
from igkd.engine import Study
from igkd.errors import InputError, MissingImages
from igkd.images import CIFAR10_CLASSES
from test_engine import record

ROOT = Path(__file__).resolve().parent.parent
RUN_ALL = runpy.run_path(str(ROOT / "run_all.py"))
NEEDS_IMAGES, execute = RUN_ALL["NEEDS_IMAGES"], RUN_ALL["execute"]
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
N_TRAIN, N_TEST = 40, 20


def with_and_without(folder, monkeypatch):
    """Two studies on the same records, of which the second has no images."""
    pixels = np.random.default_rng(0).integers(0, 256, (N_TRAIN, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(N_TRAIN) % 10
    names = np.array(CIFAR10_CLASSES)
    path = folder / "images.npz"
    np.savez(
        path,
        train_images=pixels,
        train_labels=labels,
        test_images=pixels[:N_TEST],
        test_labels=labels[:N_TEST],
        class_names=names,
    )
    monkeypatch.delenv("IGKD_DATA", raising=False)
    monkeypatch.chdir(folder)
    quiet = {"device": "cpu", "root": folder, "log": lambda line: None, "jobs": 1}
    here = Study("paper", data=path, **quiet)
    for number, item in enumerate([*experiments.monte_carlo(here.plan)[:8], *experiments.arms(here.plan)[:8]]):
        made = record(item.run, accuracy=0.9 + number / 1000)
        n_train = round(item.run.subset.fraction * N_TRAIN)
        outcome = made.outcome | {"n_train": n_train, "n_test": N_TEST}
        here.store.add(
            replace(made, outcome=outcome, provenance=made.provenance | {"data": "cifar10"}), item.experiment
        )
    return here, Study("paper", **quiet)


def test_records_tell_what_is_known_of_the_images(tmp_path, monkeypatch):
    here, without = with_and_without(tmp_path, monkeypatch)
    assert here.has_images and not without.has_images
    for name in ("name", "class_names", "num_classes", "size", "n_train", "n_test", "fingerprint"):
        assert getattr(without.images, name) == getattr(here.images, name), name
    for words in ("describe_data", "describe_student", "title"):
        assert getattr(without, words)() == getattr(here, words)()
    assert without.plan.data == here.plan.data and without.planned() == here.planned()


def test_recorded_runs_are_shown_and_missing_ones_ask_for_the_images(tmp_path, monkeypatch):
    here, without = with_and_without(tmp_path, monkeypatch)
    declared = experiments.arms(here.plan)
    pd.testing.assert_frame_equal(without.ensure(declared[:8]), here.ensure(declared[:8]))
    keys = without.table(declared).key
    pd.testing.assert_frame_equal(without.evidence(keys), here.evidence(keys))
    with pytest.raises(MissingImages, match="no CIFAR-10 here; .*--data download"):
        without.ensure(declared[:9])
    for pixels in (lambda images: images.train_images, lambda images: images.take(10, 10)):
        with pytest.raises(MissingImages, match="no CIFAR-10 here"):
            pixels(without.images)


def test_records_of_other_images_do_not_stand_in_for_cifar10(tmp_path, monkeypatch):
    here, without = with_and_without(tmp_path, monkeypatch)
    for each in list(here.store.records()):
        here.store.add(replace(each, provenance=each.provenance | {"data": "my images"}), "arms")
        (here.store.root / "monte_carlo" / f"{each.key}.json").unlink(missing_ok=True)
    with pytest.raises(MissingImages):
        without.plan  # noqa: B018


def test_images_that_were_named_must_be_there(tmp_path, monkeypatch):
    with_and_without(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="nowhere.npz is not there"):
        Study("paper", data="nowhere.npz", device="cpu", root=tmp_path).images  # noqa: B018


@pytest.mark.parametrize(("profile", "kept"), [("laptop", True), ("paper", False)])
def test_cells_that_need_the_images_are_skipped(tmp_path, profile, kept):
    """Their copies keep the outputs of the repository, if those are of the same profile."""
    old = new_output("stream", name="stdout", text="made with the images\n")
    cells = [
        new_code_cell('profile = "demo"', metadata={"tags": ["parameters"]}),
        new_code_cell("raise ValueError", metadata={"tags": [NEEDS_IMAGES]}, outputs=[old]),
        new_code_cell("print('from records')", outputs=[old]),
    ]
    path = tmp_path / "00_x.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"profile": "laptop"} | KERNEL), path)
    copy = tmp_path / "copy.ipynb"
    assert execute(path, copy, {"profile": profile}, with_images=False) == ""
    skipped, drawn = nbformat.read(copy, 4).cells[-2:]
    assert "needs the images" in skipped.outputs[0].text and "README" in skipped.outputs[0].text
    assert skipped.outputs[1:] == [old] * kept
    assert [shown.text for shown in drawn.outputs] == ["from records\n"]
    assert execute(path, copy, {"profile": profile}).startswith("failed: ValueError")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What a reader has who cloned the repository and nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "igkd", folder / "igkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "records", folder / "records")
    shutil.copy(ROOT / "run_all.py", folder)
    for name in ("notebooks", "bench", "weights"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_all(folder, *arguments):
    without = {name: value for name, value in os.environ.items() if name not in ("IGKD_DATA", "IGKD_IMAGENET")}
    return subprocess.run(
        [sys.executable, "run_all.py", "--profile", "laptop", *arguments],
        cwd=folder,
        env=without | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_nothing_is_forgotten_that_could_not_be_trained_again(checkout):
    before = sorted((checkout / "records").rglob("*.json"))
    done = run_all(checkout, "--only", "05", "--force")
    assert done.returncode == 2
    assert re.fullmatch(r"run_all.py: no CIFAR-10 here; .*\n", done.stderr)
    assert sorted((checkout / "records").rglob("*.json")) == before
