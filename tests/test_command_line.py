"""python -m igkd, against direct computations; and how every command ends."""

import os
import resource
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
FRONT = 3


def released(model, attention=False):
    """A state_dict as the authors released them: without our buffers, the attention variants in three parts."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "features" and attention:
            index = int(parts[1])
            front, end = ["front_layers", str(index)], ["end_layers", str(index - FRONT - 1)]
            parts[:2] = front if index < FRONT else ["middle_layer"] if index == FRONT else end
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
    """Images on which a network with standardised input is sure, labels of which it gets most, and its measures."""
    folder, rng = tmp_path_factory.mktemp("evaluate"), np.random.default_rng(0)
    model = network(CIFAR10_MEAN_STD)
    images = (rng.uniform(size=(400, 1, 1, 3)) * rng.integers(0, 256, (400, 8, 8, 3))).astype(np.uint8)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    # Rounding (some processors compute in bfloat16) must not decide an image.
    best = logits.topk(2).values
    sure = (best[:, 0] - best[:, 1]).argsort(descending=True)[:60]
    predicted, test_images = logits.argmax(1)[sure].numpy(), images[sure.numpy()]
    labels = np.where(rng.uniform(size=60) < 0.3, rng.integers(0, 4, 60), predicted)
    labels[:4] = range(4)
    train = {"train_images": images[:8], "train_labels": np.arange(8) % 4, "class_names": np.array(CLASSES)}
    np.savez(folder / "images.npz", **train, test_images=test_images, test_labels=labels)
    recalls = zip(CLASSES, recall_score(labels, predicted, average=None))
    expected = [
        f"accuracy           {np.mean(labels == predicted):.2%}",
        f"balanced accuracy  {balanced_accuracy_score(labels, predicted):.2%}",
        f"Cohen's kappa      {cohen_kappa_score(labels, predicted):.4f}",
        *(f"  {name}  {recall:.2%}" for name, recall in recalls),
    ]
    return folder, folder / "images.npz", model, expected


@pytest.mark.parametrize("kind", ["own", "released", "released with attention"])
def test_a_network_is_evaluated_from_its_file(problem, capsys, kind):
    folder, data, model, expected = problem
    weights = folder / f"{kind}.{'safetensors' if kind == 'own' else 'pt'}"
    if kind == "own":  # which carries its standardisation
        weights.write_bytes(pack_weights(model))
    else:
        torch.save(released(model, kind != "released"), weights)
    options = [] if kind == "own" else ["--normalize", "cifar10"]
    assert main(["evaluate", "--weights", str(weights), "--data", str(data), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-7:] == expected


@pytest.mark.parametrize(("mean_std", "normalize"), [(None, "cifar10"), (CIFAR10_MEAN_STD, "none")])
def test_contradicting_standardisation_is_refused(problem, capsys, mean_std, normalize):
    weights = problem[0] / "contradiction.safetensors"
    weights.write_bytes(pack_weights(network(mean_std)))
    assert main(["evaluate", "--weights", str(weights), "--data", str(problem[1]), "--normalize", normalize]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "standardisation" in captured.err


def test_the_network_of_a_run_is_exported_with_its_accuracy(tmp_path, monkeypatch, capsys):
    study, (item,) = digits(tmp_path, 1, 2)
    study.ensure([item])
    monkeypatch.setattr("igkd.study.REPOSITORY", tmp_path)
    monkeypatch.delenv("IGKD_DATA", raising=False)
    path = tmp_path / "student.onnx"
    assert main(["export", "--run", item.run.key, "--onnx", str(path)]) == 0
    accuracy = f"{study.store.find(item.run.key).outcome['accuracy']:.2%}"
    assert f"{accuracy} by ONNX Runtime; {accuracy} by PyTorch" in capsys.readouterr().out and path.exists()
    study.store.weights_path(item.run.key).unlink()
    assert main(["export", "--run", item.run.key, "--onnx", str(path)]) == 2


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
    with np.load(path) as cut:
        for name in ("images", "labels"):
            both = [cut[f"{part}_{name}"] for part in ("train", "test")]
            assert len(both[0]) == 40_000
            np.testing.assert_array_equal(np.concatenate(both), arrays[f"train_{name}"])
        assert tuple(cut["class_names"]) == CIFAR10_CLASSES
    assert load_images("cifar10", path).fingerprint in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["cut.npz"]


def test_a_cut_for_which_there_is_no_room_leaves_nothing(many, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "igkd", "cut", "--data", str(many[0]), "--npz", str(tmp_path / "cut.npz")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and "cut.npz" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--weights", "none.pt", "--data", "images.npz"],
        ["evaluate", "--weights", "text.pt", "--data", "images.npz"],
        ["evaluate", "--weights", "images.npz", "--data", "images.npz"],
        ["evaluate", "--weights", "x.pt"],
        ["evaluate", "--weight", "x.pt", "--data", "images.npz"],  # an option is given by its whole name
        ["evaluate", "--weights", "x.pt", "--data", "~nobody-here/x.npz"],
        ["export", "--run", "0123456789abcdef", "--onnx", "x.onnx"],
        ["export", "--run", "0123456789abcdef", "--onnx", "."],
        ["export", "--run", "0123456789abcdef", "--onnx", "nowhere/x.onnx"],
        ["cut", "--data", "images.npz", "--npz", "cut.npz"],  # which has no 40,000 images
        ["cut", "--data", "images.npz", "--npz", "cut.npy"],  # which nothing would read again
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(problem, monkeypatch, capsys, arguments):
    monkeypatch.chdir(problem[0])
    Path("text.pt").write_text("no weights")
    before = set(Path().iterdir())
    assert main(arguments) == 2
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


def test_a_mistake_of_ours_is_not_dressed_up_as_the_reader_s():
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        exit_code("a program", lambda: torch.ones(2).view(3))


PROGRAMS = pytest.mark.parametrize(
    "program", [["-m", "igkd", "evaluate", "--weights", "own.safetensors", "--data"], ["run_all.py", "--list"]]
)


@PROGRAMS
def test_without_its_packages_it_names_the_way_into_the_environment(tmp_path, program):
    venv.create(tmp_path, symlinks=True)
    bare = tmp_path / "bin" / "python"
    program = [*program, "x"] if "--data" in program else ["run_all.py", "--plan"]
    done = subprocess.run([bare, *program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"is missing in {bare}" in done.stderr


@PROGRAMS
def test_a_reader_that_has_gone_is_no_error(problem, program):
    folder, data, model, _ = problem
    (folder / "own.safetensors").write_bytes(pack_weights(model))
    program = [str(folder / part) if part == "own.safetensors" else part for part in program]
    process = subprocess.Popen(
        [sys.executable, *program, *([str(data)] if "--data" in program else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # so that what is printed last is written when Python ends
    )
    process.stdout.close()  # as head does
    assert (process.stderr.read(), process.wait()) == ("", 1)
