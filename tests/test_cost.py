"""What networks cost, against closed forms and published counts."""

import pytest
import torch
from torch import nn

from igkd.cost import first_calls, forward_call, latency, multiply_accumulates, peak_activation_memory
from igkd.models import MobileNetV2


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
    seconds = first_calls((17, 17))
    assert len(seconds) == 2 and all(value > 0 for value in seconds)
