"""What networks cost, against closed forms and published counts; exported networks, against PyTorch."""

from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from igkd.__main__ import main
from igkd.costs import (
    Measurements,
    compare_runtimes,
    export_onnx,
    latency,
    multiply_accumulates,
    predict_onnx,
    quantize,
    read_measurement,
    sizes,
    steady_state,
)
from igkd.study import Study
from igkd.errors import InputError
from igkd.experiments import PROFILES, Planned
from igkd.images import CIFAR10_CLASSES, as_input, load_images
from igkd.models import MobileNetV2, load_weights
from igkd.records import Store
from igkd.runs import Architecture, Subset
from igkd.training import train
from small import COMPUTE, RECIPE, small_images, small_run


@pytest.mark.parametrize(("cut", "millions"), [(0, 88.0), (5, 58.7), (17, 1.70)])
def test_published_counts_of_operations(cut, millions):
    assert multiply_accumulates(MobileNetV2(10, cut), (32, 32)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_costs_of_networks_are_the_published_ones():
    table = sizes([Architecture(), Architecture(5)])
    assert list(table.parameters) == [2_236_682, 543_498]
    assert list(table["compression factor"]) == pytest.approx([1, 4.1153], abs=1e-4)
    assert list(table["weights (kB)"]) == pytest.approx([8737.04 * 1.024, 2123.04 * 1.024], abs=0.01)
    assert list(table["MAC ratio"]) == pytest.approx([1, 1.50], abs=0.005)


def test_ratios_are_taken_within_a_round():
    """A machine that becomes ten times slower half way: the ratio of paired calls does not notice."""
    now, slow = [0.0], [1.0]

    def takes(seconds):
        def call():
            slow[0] *= 1.0 if now[0] < 40 else 10.0 / slow[0]
            now[0] += slow[0] * seconds

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igkd.costs.time.perf_counter", lambda: now[0])
        table = latency({"teacher": takes(3.0), "student": takes(1.0)}, repetitions=20, warm_up=0)
    assert table.ratio.to_list() == pytest.approx([1, 3])
    assert table.loc["student", ["ratio_low", "ratio_high"]].to_list() == pytest.approx([3, 3])
    assert table.loc["teacher", "low"] < table.loc["teacher", "high"]


def test_latencies_are_kept_with_their_machine(tmp_path):
    table = steady_state([Architecture(17), Architecture(15)], {1: 6, 2: 7}, size=(8, 8))
    assert (
        list(table.batch_size) == [1, 1, 2, 2] and list(table.blocks_removed) == [17, 15] * 2 and list(table.n) == [6, 6, 7, 7]
    )
    path, machine = tmp_path / "new" / "latency-demo.json", {"name": "a machine", "threads": 1}
    kept = Measurements(path, machine).once("steady_state", {"networks": 2}, lambda: table)
    pd.testing.assert_frame_equal(kept, table)
    again, where = read_measurement(path, "steady_state")
    assert where == machine
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(InputError, match="no measurement first_calls"):
        read_measurement(path, "first_calls")


def test_what_is_kept_is_not_measured_again(tmp_path):
    """Other things, another machine: measured; the same: kept, beside the other tables."""
    numbers, path = iter(range(10)), tmp_path / "measured.json"

    def once(name="a", of=3, machine="m"):
        table = Measurements(path, {"name": machine}).once(
            name, {"of": (of, None)}, lambda: pd.DataFrame([{"n": next(numbers)}])
        )
        return int(table.n.iloc[0])

    assert [once(), once(), once("b"), once(), once(of=4), once(of=4), once("b")] == [0, 0, 1, 0, 2, 2, 1]
    assert [once(machine="other", of=4), once("b", machine="other"), once("b")] == [3, 4, 5]


@pytest.mark.parametrize("content", ["", "{}", '{"steady_state": [{"n": 1}], "machine": {}}', "[1]"])
def test_damaged_measurements_are_one_line(tmp_path, content):
    path = tmp_path / "latency-demo.json"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no measurements"):
        read_measurement(path, "steady_state")
    with pytest.raises(InputError, match="holds no measurements"):
        Measurements(path, {"name": "m"}).once("steady_state", {"n": 1}, pd.DataFrame)


# Exported networks

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
    monkeypatch.setattr("igkd.study.REPOSITORY", tmp_path)
    data = None if profile == "demo" else cifar10
    command, record = exported_run(profile, data, tmp_path / "x.onnx")
    assert main(command + ["--data", str(data)] * (data is not None)) == 0
    said = capsys.readouterr().out
    assert f"{record.outcome['n_test']} of {record.provenance['data']} (fingerprint {record.run.data})" in said
    assert f"{record.outcome['accuracy']:.2%} by PyTorch" in said
    assert onnx.load(tmp_path / "x.onnx").graph.node
