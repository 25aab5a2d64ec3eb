"""The fused operator against PyTorch's batch norm and ReLU6 in float32 and bfloat16."""

import copy

import pytest
import torch
from torch import nn

from fused import FusedBatchNormAct, fuse, library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def one_thread():
    """The operator applies to one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(channels, relu6):
    """A block of batch norm and perhaps ReLU6 with random parameters, plain and fused."""
    plain = nn.Sequential(nn.BatchNorm2d(channels), *[nn.ReLU6()] * relu6)
    nn.init.normal_(plain[0].weight, 1, 2)
    nn.init.normal_(plain[0].bias, 1, 2)
    return plain, fuse(copy.deepcopy(plain))


def results(block, x, dy):
    """Output, gradients of input, weight and bias, and the running statistics."""
    x = x.detach().requires_grad_()
    y = block(x)
    y.backward(dy)
    return y.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()


def error(got, expected):
    """Relative error in the Euclidean norm."""
    return ((got.double() - expected.double()).norm() / (expected.double().norm() + 1e-30)).item()


@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize("channels", [8, 16, 24, 32, 96, 144, 576])
@pytest.mark.parametrize("mean", [0, 50])
def test_agrees_in_float32(channels, relu6, mean):
    """To 1e-5 of float64, also when the mean is far larger than the deviation."""
    torch.manual_seed(channels)
    x = (mean + torch.randn(16, channels, 10, 10)).contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(x)
    plain, fused = pair(channels, relu6)
    assert fused[0]._applies(x)
    got = results(fused, x, dy)
    for mine, exact in zip(got, results(plain.double(), x.double(), dy.double()), strict=True):
        assert error(mine, exact) < (1e-5 if mean == 0 else 1e-4)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize("channels", [16, 24, 192])
def test_agrees_in_bfloat16(channels, relu6):
    """No further from the exact result than rounding of the output, and than PyTorch's own operators."""
    torch.manual_seed(channels)
    x = torch.randn(16, channels, 10, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(x)
    plain, fused = pair(channels, relu6)
    own = results(copy.deepcopy(plain), x, dy)
    for mine, theirs, exact in zip(
        results(fused, x, dy), own, results(plain.double(), x.double(), dy.double()), strict=True
    ):
        assert mine.dtype == theirs.dtype
        assert error(mine, exact) < max(1.1 * error(theirs, exact), 1e-5) and error(mine, exact) < 2**-8


def test_gradient_by_differences():
    """The gradient of the input is the slope along a random direction."""
    torch.manual_seed(0)
    x = torch.randn(8, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    dy, direction = torch.randn_like(x), torch.randn_like(x)
    _, fused = pair(32, True)
    slope = (results(fused, x, dy)[1] * direction).sum().item()
    ends = [(fused(x + step * direction).double() * dy).sum().item() for step in (-1e-3, 1e-3)]
    assert slope == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=2e-2)


def test_not_a_number_passes():
    """A NaN in a channel reaches its outputs, as in PyTorch, and no other channel."""
    x = torch.randn(8, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 3, 0, 0] = torch.nan
    for values in (x, x.bfloat16()):
        y = pair(32, True)[1](values)
        assert y[:, 3].isnan().all() and not y[:, 4:].isnan().any()


@pytest.mark.parametrize("change", ["eval", "contiguous", "odd", "double"])
def test_falls_back(change):
    """Where the fused operator does not apply, the block is PyTorch's, bit by bit."""
    torch.manual_seed(0)
    x = torch.randn(*(3, 24, 5, 5) if change == "odd" else (8, 24, 4, 4)).contiguous(memory_format=torch.channels_last)
    blocks = pair(24, True)
    if change == "eval":
        blocks = [block.eval() for block in blocks]
    elif change == "contiguous":
        x = x.contiguous()
    elif change == "double":
        blocks, x = [block.double() for block in blocks], x.double()
    assert not blocks[1][0]._applies(x)
    for mine, theirs in zip(*(results(block, x, torch.ones_like(x)) for block in reversed(blocks)), strict=True):
        assert torch.equal(mine, theirs)


def test_names_stay():
    """Fusing keeps parameter names, and a copy keeps what was fused."""
    plain, fused = pair(32, True)
    fused = copy.deepcopy(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert isinstance(fused[0], FusedBatchNormAct) and fused[0].relu6 and isinstance(fused[1], nn.Identity)
