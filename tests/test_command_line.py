"""python -m igkd, against direct computations; and how every command ends."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, recall_score

from igkd.__main__ import main
from igkd.errors import InputError, TrainingError, exit_code
from igkd.images import CIFAR10_CLASSES, CIFAR10_MEAN_STD, load_images
from igkd.models import MobileNetV2, pack_weights
from test_study import digits

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a network with standardised input and one without, the first also as authors release it."""
    folder, rng = tmp_path_factory.mktemp("evaluate"), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8), np.arange(60) % 4
    arrays = {
        f"{part}_{name}": of for part in ("train", "test") for name, of in (("images", images), ("labels", labels))
    }
    np.savez(folder / "images.npz", class_names=np.array(CLASSES), **arrays)
    for name, mean_std in (("own", CIFAR10_MEAN_STD), ("plain", None)):
        model = MobileNetV2(len(CLASSES), blocks_removed=13, mean_std=mean_std)
        model.reset_parameters(torch.Generator().manual_seed(3))
        torch.nn.init.normal_(model.classifier[1].weight, generator=torch.Generator().manual_seed(4))
        (folder / f"{name}.safetensors").write_bytes(pack_weights(model.eval()))
        if mean_std:
            state = {key: tensor for key, tensor in model.state_dict().items() if key not in ("mean", "std")}
            torch.save(state, folder / "released.pt")
            with torch.no_grad():
                predicted = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    (folder / "text.pt").write_text("no weights")
    np.save(folder / "predicted.npy", predicted)
    return folder


@pytest.mark.parametrize("options", [["own.safetensors"], ["released.pt", "--normalize", "cifar10"]], ids=" ".join)
def test_a_network_is_evaluated_from_its_file(folder, monkeypatch, capsys, options):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "--data", "images.npz", "--device", "cpu", "--weights", *options]) == 0
    labels, predicted = np.arange(60) % 4, np.load("predicted.npy")
    assert capsys.readouterr().out.splitlines()[-7:] == [
        f"accuracy           {np.mean(labels == predicted):.2%}",
        f"balanced accuracy  {balanced_accuracy_score(labels, predicted):.2%}",
        f"Cohen's kappa      {cohen_kappa_score(labels, predicted):.4f}",
        *(f"  {name}  {recall:.2%}" for name, recall in zip(CLASSES, recall_score(labels, predicted, average=None))),
    ]


def test_the_network_of_a_run_is_exported_with_its_accuracy(tmp_path, monkeypatch, capsys):
    study, (item,) = digits(tmp_path, 1, 2)
    study.ensure([item])
    monkeypatch.setattr("igkd.study.REPOSITORY", tmp_path)
    monkeypatch.delenv("IGKD_DATA", raising=False)
    assert main(["export", "--run", item.run.key, "--onnx", str(tmp_path / "student.onnx")]) == 0
    accuracy = f"{study.store.find(item.run.key).outcome['accuracy']:.2%}"
    assert f"{accuracy} by ONNX Runtime; {accuracy} by PyTorch" in capsys.readouterr().out
    assert (tmp_path / "student.onnx").exists()


def test_a_cut_is_the_training_images_alone_in_their_order(tmp_path, capsys):
    rng, n = np.random.default_rng(1), 40_010
    images, labels = rng.integers(0, 256, (n, 8, 8, 3), np.uint8), np.arange(n) % 10
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:10], "test_labels": labels[:10]}
    np.savez(tmp_path / "images.npz", class_names=np.array(CIFAR10_CLASSES), **arrays)
    path = tmp_path / "cut.npz"
    path.write_text("what was there before")
    assert main(["cut", "--data", str(tmp_path / "images.npz"), "--npz", str(path)]) == 0
    with np.load(path) as cut:
        assert len(cut["train_labels"]) == 40_000 and tuple(cut["class_names"]) == CIFAR10_CLASSES
        for name, whole in (("images", images), ("labels", labels)):
            np.testing.assert_array_equal(np.concatenate([cut[f"train_{name}"], cut[f"test_{name}"]]), whole)
    assert load_images("cifar10", path).fingerprint in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate --weights none.pt --data images.npz",
        "evaluate --weights text.pt --data images.npz",
        "evaluate --weights images.npz --data images.npz",
        "evaluate --weights own.safetensors --data images.npz --normalize none",  # it has one of its own
        "evaluate --weights plain.safetensors --data images.npz --normalize cifar10",
        "evaluate --weights own.safetensors",
        "evaluate --weight own.safetensors --data images.npz",  # an option is given by its whole name
        "evaluate --weights own.safetensors --data ~nobody-here/x.npz",
        "export --run 0123456789abcdef --onnx x.onnx",
        "export --run 0123456789abcdef --onnx nowhere/x.onnx",
        "cut --data images.npz --npz cut.npz",  # which has no 40,000 images
        "cut --data images.npz --npz cut.npy",  # which nothing would read again
    ],
)
def test_bad_input_is_one_line(folder, monkeypatch, capsys, arguments):
    monkeypatch.chdir(folder)
    before = set(Path().iterdir())
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and "weights_only" not in captured.err
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (InputError("x"), 2),
        (TrainingError("x"), 1),
        (OSError("the disk is full"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("x", name="torch"), 2),
        # torchvision of another torch
        (RuntimeError("operator torchvision::nms does not exist"), 2),
        (AttributeError("partially initialized module (most likely due to a circular import)"), 2),
    ],
    ids=repr,
)
def test_what_ends_a_command_is_one_line_and_its_code(raised, code, capsys):
    def work():
        raise raised

    assert exit_code("a program", work) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("a program: ") and captured.err.count("\n") == 1
    with pytest.raises(RuntimeError, match="invalid for input"):  # a mistake of ours is not dressed up as the reader's
        exit_code("a program", lambda: torch.ones(2).view(3))


PROGRAMS = (
    ["-m", "igkd", "evaluate", "--weights", "own.safetensors", "--data", "images.npz"],
    ["run_all.py", "--list"],
)


@pytest.mark.parametrize("program", [PROGRAMS[0], ["run_all.py", "--plan"]], ids=["igkd", "run_all.py"])
def test_without_its_packages_it_names_the_way_into_the_environment(tmp_path, program):
    venv.create(tmp_path, symlinks=True)
    bare = tmp_path / "bin" / "python"
    done = subprocess.run([bare, *program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"is missing in {bare}" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=["igkd", "run_all.py"])
def test_a_reader_that_has_gone_is_no_error(folder, program):
    process = subprocess.Popen(
        [sys.executable, *(str(folder / part) if (folder / part).exists() else part for part in program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # so that what is printed last is written when Python ends
    )
    process.stdout.close()  # as head does
    assert (process.stderr.read(), process.wait()) == ("", 1)
