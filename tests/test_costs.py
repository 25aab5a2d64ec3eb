"""What networks cost, against published counts; exported networks, against PyTorch and the record of their run."""

import numpy as np
import onnx
import pandas as pd
import pytest

from igkd import costs
from igkd.__main__ import main
from igkd.images import as_input
from igkd.models import load_weights
from small import refusal
from test_study import digits


def test_costs_of_networks_are_the_published_ones():
    table = costs.sizes([0, 5, 17])
    assert list(table["weights (kB)"][:2]) == pytest.approx([8737.04 * 1.024, 2123.04 * 1.024], abs=0.01)
    assert list(table["million MACs"]) == pytest.approx([88.0, 58.7, 1.70], abs=0.05)


def test_ratios_are_taken_within_a_round(monkeypatch):
    """A machine that becomes ten times slower half way: the ratio of paired calls does not notice."""
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds * (1 if now[0] < 40 else 10))

    monkeypatch.setattr("igkd.costs.time.perf_counter", lambda: now[0])
    table = costs.latency({"teacher": takes(3.0), "student": takes(1.0)}, repetitions=20, warm_up=0)
    assert table.ratio.to_list() == pytest.approx([1, 3])
    assert table.loc["student", ["ratio_low", "ratio_high"]].to_list() == pytest.approx([3, 3])
    assert table.loc["teacher", "low"] < table.loc["teacher", "high"]


def test_what_is_kept_is_measured_again_for_another_machine_or_another_question_only(tmp_path):
    count, path = iter(range(10)), tmp_path / "new" / "measured.json"

    def once(name="a", of=3, machine="m"):
        kept = costs.Measurements(path, {"name": machine})
        return int(kept.once(name, {"of": (of, None)}, lambda: pd.DataFrame([{"n": next(count)}])).n.iloc[0])

    assert [once(), once(), once("b"), once(), once(of=4), once(of=4), once("b")] == [0, 0, 1, 0, 2, 2, 1]
    assert costs.Measurements(path).rows("a").n.tolist() == [2]
    refusal(costs.Measurements(path).rows, "c")
    assert [once(machine="other", of=4), once("b", machine="other"), once("b")] == [3, 4, 5]
    for damaged in ("", "{}", '{"a": [{"n": 1}], "machine": {}}', "[1]"):
        path.write_text(damaged)
        refusal(once)
    path.unlink()
    refusal(costs.Measurements, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A student of the demo's digits, and its study in a folder of its own."""
    study, (item,) = digits(tmp_path_factory.mktemp("study"), 1, 12)
    study.ensure([item])
    return study, study.store.find(item.run.key)


def test_a_network_is_exported_from_the_command_line_as_its_record_says(trained, tmp_path, capsys):
    study, record = trained
    weights = str(study.store.find_weights(record.key))
    assert main(["export", "--weights", weights, "--data", "digits", "--onnx", str(tmp_path / "x.onnx")]) == 0
    accuracy = f"{record.outcome['accuracy']:.2%}"
    assert f"{accuracy} by ONNX Runtime; {accuracy} by PyTorch" in capsys.readouterr().out
    onnx.checker.check_model(str(tmp_path / "x.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]  # weights are inside
    model = load_weights(study.store.find_weights(record.key))
    for n in (1, 7, 100):  # any batch size
        images = study.images.test_images[:n]
        expected = model(as_input(images)).detach().numpy()
        np.testing.assert_allclose(costs.predict_onnx(tmp_path / "x.onnx", images), expected, rtol=1e-3, atol=1e-3)


def test_an_export_that_fails_leaves_what_was_there(trained, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no space left")

    study, record = trained
    monkeypatch.setattr(costs, "quantize", fails)
    path, weights = tmp_path / "x.onnx", str(study.store.find_weights(record.key))
    path.write_bytes(b"an earlier network")
    assert main(["export", "--weights", weights, "--data", "digits", "--onnx", str(path), "--int8"]) == 1
    assert path.read_bytes() == b"an earlier network" and list(tmp_path.iterdir()) == [path]


def test_runtimes_are_compared_on_the_same_images_and_eight_bits_keep_most_answers(trained, tmp_path):
    study, record = trained
    model, images = load_weights(study.store.find_weights(record.key)), study.images
    table = costs.compare_runtimes({"student": model}, images, {1: 6, 5: 7}, tmp_path)
    assert list(zip(table.batch_size, table.n)) == [(1, 6), (5, 7)] * 3
    torch_s, onnx_s, int8 = (rows for _, rows in table.groupby("runtime", sort=False))
    expected = record.outcome["accuracy"]
    assert expected > 0.3 and torch_s.accuracy.tolist() == onnx_s.accuracy.tolist() == pytest.approx([expected] * 2)
    assert (int8.accuracy > expected - 0.1).all()
    assert torch_s["file (kB)"].isna().all() and (onnx_s["file (kB)"] > int8["file (kB)"].to_numpy()).all()
    np.testing.assert_allclose([*torch_s.ratio, *onnx_s.ratio], 1)  # to the first network in the same runtime
