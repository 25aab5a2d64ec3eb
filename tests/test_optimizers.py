import pytest
import torch
from torch import nn

from igkd.device import Compute
from igkd.methods import Recipe
from igkd.models import MobileNetV2
from igkd.optimizers import make_optimizer, orthogonal_factor, orthogonalise_gradients, pointwise_weights


def of_singular_values(rows, columns, singular_values, seed=0):
    """A matrix, and U V^T of its singular value decomposition."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, len(singular_values), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, len(singular_values), generator=generator))
    return u @ torch.diag(torch.tensor(singular_values)) @ v.T, u, v


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(6, 6), (5, 30), (30, 5)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_factor_keeps_singular_vectors_and_evens_singular_values(shape, scale, bfloat16):
    values = [scale * value for value in (1.0, 0.5, 0.2, 0.1, 0.05)]
    matrix, u, v = of_singular_values(*shape, values)
    with Compute("cpu", bfloat16).autocast():
        factor = orthogonal_factor(matrix).float()
    close = 0.03 if bfloat16 else 1e-3
    assert factor.shape == matrix.shape
    evened = u.T @ factor @ v
    assert evened.diag().min() > 0.6 and evened.diag().max() < 1.3
    assert (evened - torch.diag(evened.diag())).abs().max() < close
    # Nothing outside of the space that the matrix spans.
    torch.testing.assert_close(factor, u @ evened @ v.T, atol=close, rtol=0)


def test_nothing_stays_nothing():
    assert orthogonal_factor(torch.zeros(3, 4)).abs().max() == 0


def test_pointwise_convolutions_are_most_of_the_network():
    model = MobileNetV2()
    weights = pointwise_weights(model)
    assert all(weight.shape[2:] == (1, 1) for weight in weights)
    # Sandler et al. 2018: an expansion (all blocks but the first) and a projection in each of 17 blocks, and the head.
    assert len(weights) == 16 + 17 + 1
    assert sum(w.numel() for w in weights) > 0.9 * sum(p.numel() for p in model.parameters())


def test_gradients_of_all_other_weights_stay_as_they_are():
    model = MobileNetV2(blocks_removed=15)
    model(torch.rand(4, 3, 16, 16)).square().mean().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    orthogonalise_gradients(pointwise_weights(model))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.dim() == 4 and p.shape[2:] == (1, 1)}


def test_the_step_does_not_depend_on_the_size_of_the_gradient_and_is_larger_for_more_outputs():
    steps = {}
    for out, scale in ((4, 1.0), (4, 100.0), (16, 1.0)):
        layer = nn.Conv2d(4, out, 1, bias=False)
        (optimizer, _), before = make_optimizer(layer, Recipe(1, lr=0.1, one_cycle=False), 1), layer.weight.clone()
        matrix, *_ = of_singular_values(out, 4, [scale] * 4)
        layer.weight.grad = matrix.view_as(layer.weight)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        orthogonalise_gradients([layer.weight])
        optimizer.step()
        steps[out, scale] = torch.linalg.matrix_norm((layer.weight - before).flatten(1), 2).item()
    assert steps[4, 100.0] == pytest.approx(steps[4, 1.0], rel=1e-4)
    assert steps[16, 1.0] == pytest.approx(2 * steps[4, 1.0], rel=1e-4)  # sqrt(16 / 4)
    # Nesterov's first step is 1 + 0.9 times the gradient, whose singular values are about 1.
    assert steps[4, 1.0] / (0.1 * 1.9) == pytest.approx(1, abs=0.3)


def test_a_badly_scaled_problem_is_fitted_sooner():
    # Inputs of variances from 1 to 1e-4: the gradient hardly sees the last ones.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, 1, 1, generator=generator) * torch.logspace(0, -2, 8).view(1, 8, 1, 1)
    wanted = torch.randn(8, 8, 1, 1, generator=generator)
    y = torch.conv2d(x, wanted)

    def error(optimizer, lr):
        recipe = Recipe(1, optimizer=optimizer, lr=lr, one_cycle=False, weight_decay=0.0)
        layer = nn.Conv2d(8, 8, 1, bias=False)
        nn.init.zeros_(layer.weight)
        fitter, _ = make_optimizer(layer, recipe, 1)
        for _ in range(200):
            fitter.zero_grad()
            (layer(x) - y).square().mean().backward()
            if optimizer == "orthogonal_sgd":
                orthogonalise_gradients([layer.weight])
            fitter.step()
        return (layer.weight - wanted).square().mean().item()

    rates = [10.0**power for power in (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5)]
    best = {name: min(error(name, lr) for lr in rates) for name in ("sgd", "orthogonal_sgd")}
    assert best["orthogonal_sgd"] < 0.1 * best["sgd"]
