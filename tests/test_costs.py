"""What networks cost, against closed forms and published counts."""

import pandas as pd
import pytest
import torch
from torch import nn

from igkd.cost import (
    Measurements,
    costs,
    first_calls,
    forward_call,
    latency,
    multiply_accumulates,
    peak_activation_memory,
    read_measurement,
    steady_state,
)
from igkd.errors import InputError
from igkd.models import Architecture, MobileNetV2


@pytest.mark.parametrize(("cut", "millions"), [(0, 88.0), (5, 58.7), (17, 1.70)])
def test_published_counts_of_operations(cut, millions):
    assert multiply_accumulates(MobileNetV2(10, cut), (32, 32)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_peak_memory_of_a_chain_is_that_of_two_neighbours():
    """3 -> 8 -> 2 channels on 4x4 pixels: at worst the 8 channels lie beside the 3 (1x1 convolutions, float32)."""
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1))
    # While the last layer runs, the caller still holds the image.
    assert peak_activation_memory(chain, (4, 4)) == 4 * 16 * (3 + 8 + 2)
    assert peak_activation_memory(chain, (4, 4), batch_size=5) == 5 * 4 * 16 * (3 + 8 + 2)
    wide = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=False), nn.Conv2d(8, 2, 1))
    assert peak_activation_memory(wide, (4, 4)) == 4 * 16 * (3 + 8 + 8)


def test_peak_memory_leaves_the_network_as_it_was():
    model = MobileNetV2(10, 17)
    assert peak_activation_memory(model, (32, 32)) > 4 * 32 * 32 * (3 + 32)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_calls_are_measured_in_turn():
    order = []
    table = latency({name: lambda name=name: order.append(name) for name in "ab"}, repetitions=8, warm_up=2)
    assert order == ["a", "b"] * 10
    assert list(table.index) == ["a", "b"] and list(table.n) == [8, 8]
    assert ((table.low <= table["median"]) & (table["median"] <= table.high)).all()


def test_a_call_gives_what_the_network_gives():
    model, batch = MobileNetV2(4, 17).eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(batch)
    torch.testing.assert_close(forward_call(model, batch)(), expected, rtol=1e-4, atol=1e-6)


def test_first_calls_come_from_a_fresh_process():
    table = first_calls({"one": (17, 15), "other": (15, 17)})
    assert list(zip(table.order, table.blocks_removed)) == [("one", 17), ("one", 15), ("other", 15), ("other", 17)]
    assert (table.milliseconds > 0).all()


def test_costs_of_networks_are_the_published_ones():
    table = costs([Architecture(), Architecture(5)])
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
        patch.setattr("igkd.cost.time.perf_counter", lambda: now[0])
        table = latency({"teacher": takes(3.0), "student": takes(1.0)}, repetitions=20, warm_up=0)
    assert table.ratio.to_list() == pytest.approx([1, 3])
    assert table.loc["student", ["ratio_low", "ratio_high"]].to_list() == pytest.approx([3, 3])
    assert table.loc["teacher", "low"] < table.loc["teacher", "high"]


def test_interval_of_a_median_is_that_of_the_binomial():
    """20 different times: the 95 % interval goes from the 6th to the 15th (Conover 1999, table A3)."""
    durations = iter([0.0, *range(1, 21)])
    clock = [0.0]

    def call():
        clock[0] += next(durations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("igkd.cost.time.perf_counter", lambda: clock[0])
        row = latency({"one": call}, repetitions=20, warm_up=1).iloc[0]
    assert (row["median"], row.low, row.high) == pytest.approx((10_500, 6_000, 15_000))


def test_latencies_are_kept_with_their_machine(tmp_path):
    table = steady_state([Architecture(17), Architecture(17, 0.5)], {1: 6, 2: 7}, size=(8, 8))
    assert (
        list(table.batch_size) == [1, 1, 2, 2] and list(table.width) == [1, 0.5] * 2 and list(table.n) == [6, 6, 7, 7]
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


def test_without_a_machine_nothing_is_measured(tmp_path):
    path, table = tmp_path / "measured.json", pd.DataFrame([{"n": 1}])
    machine = {"name": "a machine", "device": "cpu", "threads": 1}
    Measurements(path, machine).once("a", {"of": 3}, lambda: table)
    kept = Measurements(path)
    pd.testing.assert_frame_equal(kept.once("a", {"of": 3}, lambda: pytest.fail("it was measured")), table)
    assert kept.machine == "a machine, 1 thread (cpu)"
    for name, of in (("a", {"of": 4}), ("b", {"of": 3})):
        with pytest.raises(InputError, match=f"holds no {name} of what this profile has"):
            kept.once(name, of, lambda: pytest.fail("it was measured"))
    with pytest.raises(InputError, match="holds no measurements"):
        Measurements(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", ["", "{}", '{"steady_state": [{"n": 1}], "machine": {}}', "[1]"])
def test_damaged_measurements_are_one_line(tmp_path, content):
    path = tmp_path / "latency-demo.json"
    path.write_text(content)
    with pytest.raises(InputError, match="holds no measurements"):
        read_measurement(path, "steady_state")
    with pytest.raises(InputError, match="holds no measurements"):
        Measurements(path, {"name": "m"}).once("steady_state", {"n": 1}, pd.DataFrame)
