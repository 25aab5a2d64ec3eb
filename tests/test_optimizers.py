"""PyTorch's Muon and steps worked by hand are the references."""

import pytest
import torch
from torch import nn

from igkd.device import Compute
from igkd.models import MobileNetV2
from igkd.optimizers import MUON_LR, MUON_WEIGHT_DECAY, PointwiseMuon, make_optimizers
from igkd.runs import Recipe

SETTINGS = {"lr": 0.05, "weight_decay": 0.1}


def test_pointwise_muon_is_muon_on_the_matrices():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 30, 1, bias=False), nn.Conv2d(30, 4, 1, bias=False), nn.Conv2d(4, 4, 1))
    model = Compute("cpu", bfloat16=False).prepare(model)
    weights = [layer.weight for layer in model]
    strides = [weight.stride() for weight in weights]
    matrices = [nn.Parameter(weight.detach()[:, :, 0, 0].clone()) for weight in weights]
    ours, reference = PointwiseMuon(weights, **SETTINGS), torch.optim.Muon(matrices, **SETTINGS)
    for _ in range(3):
        model.zero_grad()
        x = torch.randn(5, 6, 3, 3, generator=generator)
        model(x.contiguous(memory_format=torch.channels_last)).sum().backward()
        for weight, matrix in zip(weights, matrices, strict=True):
            matrix.grad = weight.grad[:, :, 0, 0].clone()
        ours.step()
        reference.step()
        for weight, matrix, stride in zip(weights, matrices, strides, strict=True):
            assert torch.equal(weight[:, :, 0, 0], matrix)
            # as the network's convolutions want it: where it was, in the layout that it had
            assert weight.stride() == stride and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["adam", "sgd", "muon"])
def test_each_weight_is_fitted_once_and_muon_gets_the_pointwise_convolutions(name):
    model = MobileNetV2()
    optimizers = [optimizer for optimizer, _ in make_optimizers(model, Recipe(1, optimizer=name), 10)]
    fitted = [[p.data_ptr() for group in each.param_groups for p in group["params"]] for each in optimizers]
    assert sorted(sum(fitted, [])) == sorted(parameter.data_ptr() for parameter in model.parameters())
    # Sandler et al. 2018: an expansion (all blocks but the first) and a projection in each of 17 blocks, and the head.
    assert [len(pointers) for pointers in fitted[1:]] == ([16 + 17 + 1] if name == "muon" else [])


def with_gradients_of_0():
    model = MobileNetV2(blocks_removed=17)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def test_weight_decay_leaves_batch_norm_and_biases_alone():
    model, recipe = with_gradients_of_0(), Recipe(1, optimizer="muon", lr=0.1, one_cycle=False, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for optimizer, _ in make_optimizers(model, recipe, 1):
        optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0
        if parameter.dim() > 1:  # Nesterov's first step is 1 + 0.9 times the gradient, here of the penalty
            factor -= MUON_LR * MUON_WEIGHT_DECAY if name == "features.1.conv.1.weight" else 0.1 * 1.9 * 0.5
        torch.testing.assert_close(parameter.detach(), factor * before[name])


@pytest.mark.parametrize("name", ["adam", "sgd", "muon"])
def test_one_cycle_rises_over_a_fifth_of_the_steps_and_falls_to_nothing(name):
    cycle = [0.1, 0.2, *(0.2 * left / 8 for left in range(8, -1, -1))]
    for one_cycle, expected in ((True, cycle), (False, [0.2] * 11)):
        recipe = Recipe(1, optimizer=name, lr=0.2, one_cycle=one_cycle)
        for (optimizer, schedule), peak in zip(make_optimizers(with_gradients_of_0(), recipe, 10), (0.2, MUON_LR)):
            for rate in expected:
                for group in optimizer.param_groups:
                    assert group["lr"] == pytest.approx(rate * peak / 0.2)
                optimizer.step()
                schedule.step()
