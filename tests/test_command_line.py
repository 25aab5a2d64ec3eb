"""python -m igkd, against direct computations; and how every command ends."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from igkd.__main__ import main
from igkd.errors import TrainingError, exit_code
from igkd.images import CIFAR10_CLASSES, load_images
from igkd.models import load_weights
from small import ROOT
from test_study import digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a student of the digits, in our file and as authors release theirs, and the student's record."""
    folder = tmp_path_factory.mktemp("trained")
    study, (item,) = digits(folder, 1, 3)
    study.ensure([item])
    names = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    np.savez(folder / "images.npz", **{name: np.array(getattr(study.images, name)) for name in names})
    study.store.weights_path(item.run.key).rename(folder / "own.safetensors")
    state = load_weights(folder / "own.safetensors").state_dict()
    torch.save({key: tensor for key, tensor in state.items() if key not in ("mean", "std")}, folder / "released.pt")
    return folder, study.store.find(item.run.key)


@pytest.mark.parametrize("weights", ["own.safetensors", "released.pt"])
def test_a_network_is_evaluated_from_its_file(trained, monkeypatch, capsys, weights):
    monkeypatch.chdir(trained[0])
    assert main(["evaluate", "--data", "images.npz", "--device", "cpu", "--weights", weights]) == 0
    outcome, said = trained[1].outcome, capsys.readouterr().out.splitlines()
    shares = [outcome["accuracy"], outcome["balanced_accuracy"], *outcome["per_class_accuracy"]]
    expected = [f"{each:.2%}" for each in shares]
    expected.insert(2, f"{outcome['kappa']:.4f}")
    assert [line.split()[-1] for line in said[-13:]] == expected


def test_a_cut_is_the_training_images_alone_in_their_order(tmp_path, capsys):
    rng, n = np.random.default_rng(1), 40_010
    images, labels = rng.integers(0, 256, (n, 8, 8, 3), np.uint8), np.arange(n) % 10
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:10], "test_labels": labels[:10]}
    np.savez(tmp_path / "images.npz", class_names=np.array(CIFAR10_CLASSES), **arrays)
    path = tmp_path / "cut.npz"
    path.write_text("what was there before")
    by_class = arrays | {"train_labels": np.sort(labels)}  # as an image folder has them: the cut would lack classes
    np.savez(tmp_path / "sorted.npz", class_names=np.array(CIFAR10_CLASSES), **by_class)
    assert main(["cut", "--data", str(tmp_path / "sorted.npz"), "--npz", str(path)]) == 2
    assert path.read_text() == "what was there before"
    assert main(["cut", "--data", str(tmp_path / "images.npz"), "--npz", str(path)]) == 0
    with np.load(path) as cut:
        assert len(cut["train_labels"]) == 40_000 and tuple(cut["class_names"]) == CIFAR10_CLASSES
        for name, whole in (("images", images), ("labels", labels)):
            np.testing.assert_array_equal(np.concatenate([cut[f"train_{name}"], cut[f"test_{name}"]]), whole)
    assert load_images("cifar10", path).fingerprint in capsys.readouterr().out


def test_bad_input_is_one_line(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    before = set(Path().iterdir())
    for arguments in (
        "evaluate --weights none.pt --data images.npz",
        "evaluate --weights images.npz --data images.npz",
        "evaluate --weights own.safetensors --data images.npz --normalize cifar10",  # there is no such option
        "evaluate --weight own.safetensors --data images.npz",  # an option is given by its whole name
        "export --weights none.pt --data images.npz --onnx x.onnx",
        "export --weights own.safetensors --data images.npz --onnx nowhere/x.onnx",
        "cut --data images.npz --npz cut.npz",  # which has no 40,000 images
        "cut --data images.npz --npz cut.npy",  # which nothing would read again
    ):
        assert main(arguments.split()) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1, arguments
    assert set(Path().iterdir()) == before


def test_what_ends_a_command_is_one_line_and_its_code(capsys):
    def work():
        raise raised

    for raised, code in (
        (TrainingError("x"), 1),
        (OSError("the disk is full"), 1),
        (RuntimeError("operator torchvision::nms does not exist"), 2),  # torchvision of another torch
        (AttributeError("partially initialized module (most likely due to a circular import)"), 2),
    ):
        assert exit_code("a program", work) == code
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("a program: ") and captured.err.count("\n") == 1
    with pytest.raises(RuntimeError, match="invalid for input"):  # a mistake of ours is not dressed up as the reader's
        exit_code("a program", lambda: torch.ones(2).view(3))


PROGRAMS = [
    ["-m", "igkd", "evaluate", "--weights", "{}/own.safetensors", "--data", "{}/images.npz"],
    ["run_all.py", "--plan"],
]


def test_without_its_packages_it_names_the_way_into_the_environment(tmp_path):
    venv.create(tmp_path, symlinks=True)
    bare = tmp_path / "bin" / "python"
    for program in PROGRAMS:
        done = subprocess.run([bare, *program], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert f"is missing in {bare}" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=["igkd", "run_all.py"])
def test_a_reader_that_has_gone_is_no_error(trained, program):
    command = [sys.executable, *(part.format(trained[0]) for part in program)]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # so that what is printed last is written when Python ends
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=buffered)
    process.stdout.close()  # as head does
    assert (process.stderr.read(), process.wait()) == ("", 1)


@pytest.mark.parametrize(
    "shell", ["{} >&-", "{} 2>&-", "PYTHONIOENCODING=ascii {}"], ids=["no stdout", "no stderr", "ascii"]
)
def test_any_console_will_do(shell):
    said = "import sys; from igkd.errors import exit_code; sys.exit(exit_code('p', lambda: print('–') or 0))"
    command = shell.format(f'"{sys.executable}" -c "{said}"')
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
