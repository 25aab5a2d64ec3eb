"""Exported networks, against PyTorch."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from igkd.__main__ import main
from igkd.deploy import compare_runtimes, export_onnx, onnx_call, predict_onnx, quantize
from igkd.engine import Study
from igkd.errors import InputError
from igkd.experiments import PROFILES, Planned
from igkd.images import CIFAR10_CLASSES, Subset, load_images
from igkd.models import load_weights
from igkd.runs import Store
from igkd.signals import as_input
from igkd.training import train
from small import COMPUTE, RECIPE, small_images, small_run

IMAGES = small_images(n_train=200, n_test=100)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A student that has learnt its images, so that its logits mean something."""
    folder = tmp_path_factory.mktemp("trained")
    store = Store(folder / "records", folder / "build", folder / "weights")
    run = small_run(IMAGES, recipe=replace(RECIPE, num_epochs=20))
    train(run, IMAGES, store, COMPUTE)
    return load_weights(store.find_weights(run.key), IMAGES.num_classes)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export_onnx(model, path, IMAGES.test_images)
    return path


def logits_of(model, images):
    with torch.no_grad():
        return model(as_input(images)).numpy()


def test_the_exported_network_is_pytorch_s(model, exported):
    onnx.checker.check_model(str(exported))
    for n in (1, 7, 100):  # any batch size
        images = IMAGES.test_images[:n]
        np.testing.assert_allclose(predict_onnx(exported, images), logits_of(model, images), rtol=1e-3, atol=1e-3)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["student.onnx"]  # weights are inside


def test_eight_bits_keep_the_answers_and_shrink_the_file(model, exported, tmp_path):
    small = tmp_path / "int8.onnx"
    quantize(exported, small, IMAGES.train_images)
    kinds = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    expected, found = logits_of(model, IMAGES.test_images), predict_onnx(small, IMAGES.test_images)
    assert (expected.argmax(1) == IMAGES.test_labels).mean() > 0.9
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.95
    assert (found.argmax(1) == IMAGES.test_labels).mean() > 0.5  # chance is 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_a_call_runs_the_file(model, exported):
    (logits,) = onnx_call(exported, as_input(IMAGES.test_images[:3]), threads=1)()
    np.testing.assert_allclose(logits, logits_of(model, IMAGES.test_images[:3]), rtol=1e-3, atol=1e-3)


def test_runtimes_are_compared_on_the_same_images(model, tmp_path):
    table = compare_runtimes({"student": model}, IMAGES, {1: 6, 5: 7}, tmp_path)
    assert list(zip(table.batch_size, table.n)) == [(1, 6), (5, 7)] * 3
    torch_s, onnx_s, int8 = (rows for _, rows in table.groupby("runtime", sort=False))
    expected = (logits_of(model, IMAGES.test_images).argmax(1) == IMAGES.test_labels).mean()
    assert list(torch_s.accuracy) == list(onnx_s.accuracy) == [expected] * 2
    assert torch_s["file (kB)"].isna().all() and (onnx_s["file (kB)"] > int8["file (kB)"].to_numpy()).all()
    # ratios are to the first network in the same runtime
    np.testing.assert_allclose(torch_s.ratio, 1)
    np.testing.assert_allclose(onnx_s.ratio, 1)
    assert (table["low"] <= table["median"]).all() and (table["median"] <= table["high"]).all()


def test_a_file_that_is_no_network_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="cannot be opened by ONNX Runtime"):
        predict_onnx(tmp_path / "x.onnx", IMAGES.test_images)


def test_a_run_without_weights_is_one_line(capsys):
    assert main(["export", "--run", "0" * 16, "--onnx", "never.onnx"]) == 2
    assert capsys.readouterr().err.startswith("igkd: there are no weights of the run 0000000000000000 ")


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Digits with CIFAR-10's names, in copies, so that there are enough for every profile."""
    digits, path = load_images("digits"), tmp_path_factory.mktemp("data") / "cifar10.npz"
    arrays = {
        f"{part}_{kind}": np.concatenate([getattr(digits, f"{part}_{kind}")] * copies)
        for part, copies in (("train", 2), ("test", 25))
        for kind in ("images", "labels")
    }
    np.savez(path, class_names=np.array(CIFAR10_CLASSES), **arrays)
    return path


def exported_run(profile, data, path):
    """The command line for a run of a profile that is trained now, and its record."""
    study = Study(profile, data, "cpu", log=lambda line: None)
    run = small_run(study.images, recipe=replace(RECIPE, num_epochs=1), subset=Subset(0.05))
    study.ensure([Planned("arms", {"arm": "Student", "seed": 0}, run)])
    return ["export", "--run", run.key, "--onnx", str(path)], study.store.find(run.key)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_of_each_profile_is_exported(profile, cifar10, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("igkd.engine.REPOSITORY", tmp_path)
    data = None if profile == "demo" else cifar10
    command, record = exported_run(profile, data, tmp_path / "x.onnx")
    assert main(command + ["--data", str(data)] * (data is not None)) == 0
    said = capsys.readouterr().out
    assert f"{record.outcome['n_test']} of {record.provenance['data']} (fingerprint {record.run.data})" in said
    assert f"{record.outcome['accuracy']:.2%} by PyTorch" in said
    assert onnx.load(tmp_path / "x.onnx").graph.node


def test_a_run_of_other_images_is_not_exported(cifar10, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("igkd.engine.REPOSITORY", tmp_path)
    command, record = exported_run("laptop", cifar10, tmp_path / "x.onnx")
    with np.load(cifar10) as arrays:
        few = {name: arrays[name] if name == "class_names" else arrays[name][:100] for name in arrays}
    np.savez(tmp_path / "few.npz", **few)  # fewer than the profile takes
    assert main([*command, "--data", str(tmp_path / "few.npz")]) == 2
    assert f"with the fingerprint {record.run.data}, not of cifar10 with " in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()
