"""python -m igkd evaluate, against a direct computation."""

import os
import resource
import signal
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, recall_score

from igkd.__main__ import main
from igkd.images import CIFAR10_CLASSES, CIFAR10_MEAN_STD, load_images
from igkd.models import MobileNetV2, pack_weights

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("ant", "bee", "cat", "dog")
FRONT = 3


def released(model, attention=False):
    """A state_dict as the authors released them: without our buffers, the attention variants in three parts."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "features" and attention:
            index = int(parts[1])
            if index < FRONT:
                parts[:2] = ["front_layers", str(index)]
            elif index == FRONT:
                parts[:2] = ["middle_layer"]
            else:
                parts[:2] = ["end_layers", str(index - FRONT - 1)]
        if parts[0] not in ("mean", "std"):
            state[".".join(parts)] = tensor
    return state


def network(mean_std=None):
    model = MobileNetV2(len(CLASSES), blocks_removed=13, mean_std=mean_std)
    generator = torch.Generator().manual_seed(3)
    model.reset_parameters(generator)
    torch.nn.init.normal_(model.classifier[1].weight, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A network with standardised input, images on which it is sure, and labels of which it gets most."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = network(CIFAR10_MEAN_STD)
    rng = np.random.default_rng(0)
    images = (rng.uniform(size=(400, 1, 1, 3)) * rng.integers(0, 256, (400, 8, 8, 3))).astype(np.uint8)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        # Rounding (some processors compute in bfloat16) must not decide an image.
        best = logits.topk(2).values
        sure = (best[:, 0] - best[:, 1]).argsort(descending=True)[:60]
    predicted = logits.argmax(1)[sure].numpy()
    labels = np.where(rng.uniform(size=60) < 0.3, rng.integers(0, 4, 60), predicted)
    labels[:4] = range(4)
    path = folder / "images.npz"
    np.savez(
        path,
        train_images=images[:8],
        train_labels=np.arange(8) % 4,
        test_images=images[sure.numpy()],
        test_labels=labels,
        class_names=np.array(CLASSES),
    )
    return folder, path, model, labels, predicted


def expected(labels, predicted):
    return [
        f"accuracy           {np.mean(labels == predicted):.2%}",
        f"balanced accuracy  {balanced_accuracy_score(labels, predicted):.2%}",
        f"Cohen's kappa      {cohen_kappa_score(labels, predicted):.4f}",
        *(f"  {name}  {recall:.2%}" for name, recall in zip(CLASSES, recall_score(labels, predicted, average=None))),
    ]


@pytest.mark.parametrize("attention", [False, True])
def test_released_checkpoint(problem, capsys, attention):
    folder, data, model, labels, predicted = problem
    weights = folder / f"{attention}.pt"
    torch.save(released(model, attention), weights)
    assert main(["evaluate", "--weights", str(weights), "--data", str(data), "--normalize", "cifar10"]) == 0
    assert capsys.readouterr().out.splitlines()[-7:] == expected(labels, predicted)


def test_own_weights_carry_their_standardisation(problem, capsys):
    folder, data, model, labels, predicted = problem
    weights = folder / "own.safetensors"
    weights.write_bytes(pack_weights(model))
    assert main(["evaluate", "--weights", str(weights), "--data", str(data)]) == 0
    assert capsys.readouterr().out.splitlines()[-7:] == expected(labels, predicted)


@pytest.mark.parametrize(("mean_std", "normalize"), [(None, "cifar10"), (CIFAR10_MEAN_STD, "none")])
def test_contradicting_standardisation_is_refused(problem, capsys, mean_std, normalize):
    folder, data, *_ = problem
    weights = folder / "contradiction.safetensors"
    weights.write_bytes(pack_weights(network(mean_std)))
    assert main(["evaluate", "--weights", str(weights), "--data", str(data), "--normalize", normalize]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "carries its own standardisation" in captured.err


def test_a_cut_is_named_as_what_reads_it_expects(problem, capsys):
    folder, data, *_ = problem
    assert main(["cut", "--data", str(data), "--npz", str(folder / "cut.npy")]) == 2
    assert "ends in .npz" in capsys.readouterr().err


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As many images as a cut needs and ten more, all different, small ones so that it is cheap."""
    rng, n = np.random.default_rng(1), 40_010
    arrays = {
        "train_images": rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
        "train_labels": np.arange(n) % 10,
        "test_images": rng.integers(0, 256, (10, 8, 8, 3), np.uint8),
        "test_labels": np.arange(10),
    }
    path = tmp_path_factory.mktemp("many") / "images.npz"
    np.savez(path, class_names=np.array(CIFAR10_CLASSES), **arrays)
    return path, arrays


def test_a_cut_is_the_training_images_alone_in_their_order(many, tmp_path, capsys):
    data, arrays = many
    path = tmp_path / "cut.npz"
    path.write_text("what was there before")
    assert main(["cut", "--data", str(data), "--npz", str(path)]) == 0
    expected = {
        "train_images": arrays["train_images"][:40_000],
        "train_labels": arrays["train_labels"][:40_000],
        "test_images": arrays["train_images"][40_000:],
        "test_labels": arrays["train_labels"][40_000:],
    }
    with np.load(path) as cut:
        for name, values in expected.items():
            np.testing.assert_array_equal(cut[name], values)
        assert tuple(cut["class_names"]) == CIFAR10_CLASSES
    said = capsys.readouterr().out
    assert "40,000 to train on, 10 to test on" in said and load_images("cifar10", path).fingerprint in said
    assert [each.name for each in tmp_path.iterdir()] == ["cut.npz"]


def test_a_cut_for_which_there_is_no_room_leaves_nothing(many, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "igkd", "cut", "--data", str(many[0]), "--npz", str(tmp_path / "cut.npz")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "cut.npz cannot be written" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "igkd", "evaluate", "--weights", "weights/teacher-cifar10.safetensors", "--data"],
        ["run_all.py", "--list"],
    ],
    ids=["igkd", "run_all.py"],
)
def test_a_reader_that_has_gone_is_no_error(many, program):
    arguments = [*program, str(many[0])] if "--data" in program else program
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # so that what is printed last is written when Python ends
    )
    process.stdout.close()  # as head does
    assert (process.stderr.read(), process.wait()) == ("", 1)


def test_ctrl_c_is_one_line():
    code = (
        "import sys, time; from igkd.errors import exit_code\n"
        "def work(): print('works', flush=True); time.sleep(600)\n"
        "sys.exit(exit_code('igkd', work))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        # A shell's background jobs ignore the signal, and so would what these tests start there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "igkd: stopped; finished runs are kept, and the same command goes on\n"
    assert process.returncode == 130


def test_without_its_packages_it_names_the_way_into_the_environment(tmp_path):
    venv.create(tmp_path, symlinks=True)
    command = [tmp_path / "bin" / "python", "-m", "igkd", "evaluate", "--weights", "x", "--data", "y"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"igkd: torch is missing in {command[0]}; run make, then source .venv/bin/activate\n"


def test_as_a_program(problem):
    folder, data, *_ = problem
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    (folder / "text.pt").write_text("no weights")
    for arguments in (
        ["evaluate", "--weights", str(folder / "none.pt"), "--data", str(data)],
        ["evaluate", "--weights", str(folder / "text.pt"), "--data", str(data)],
        # of CIFAR-10, not of these
        ["export", "--run", "f9d3dd852b66866c", "--onnx", str(folder / "x.onnx"), "--data", str(data)],
        ["export", "--run", "f9d3dd852b66866c", "--onnx", str(folder)],
        ["export", "--run", "f9d3dd852b66866c", "--onnx", str(folder / "nowhere" / "x.onnx")],
        ["cut", "--data", str(data), "--npz", str(folder / "cut.npz")],  # which has no 40,000 images
        ["evaluate", "--weights", str(data), "--data", str(data)],
        ["evaluate", "--weights", "x.pt"],
        ["evaluate", "--weight", "x.pt", "--data", str(data)],  # an option is given by its whole name
        ["evaluate", "--weights", "x.pt", "--data", "~nobody-here/x.npz"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "igkd", *arguments], capture_output=True, text=True, env=environment, cwd=folder
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "weights_only" not in done.stderr
    assert {path.suffix for path in folder.iterdir()} <= {".npz", ".pt", ".safetensors"}
