"""Captum, closed forms and SciPy's quadrature are the references."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import nn
from torchvision.models import resnet18

from igkd.attribution import (
    METHODS,
    grad_cam,
    integrated_gradients,
    make_baseline,
    quadrature,
    saliency,
    saliency_map,
    smoothgrad,
)
from igkd.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NUM_IMAGES, NUM_CLASSES = 5, 4


class SmallNet(nn.Module):
    """Convolutions, batch norm and dropout, standardising inside as the project's networks do."""

    def __init__(self, dtype=torch.float64, activation=nn.ReLU6, mean=MEAN, std=STD):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            activation(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            activation(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32, NUM_CLASSES),
        )
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
        for module in self.body:
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.abs_().add_(0.5)
                module.weight.data.abs_().add_(0.5)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.to(dtype).eval()

    def forward(self, x):
        return self.body((x - self.mean) / self.std)


class Quadratic(nn.Module):
    """Scores x^T A_k x for each class k, A_k symmetric."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(matrices)

    def forward(self, x):
        return torch.einsum("bi,kij,bj->bk", x.flatten(1), self.matrices, x.flatten(1))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def images():
    return draw(NUM_IMAGES, 3, 8, 8)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture
def double_by_default():
    """Captum draws its nodes with torch.linspace, in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_captum(model, images, target, baseline, n_steps=50, method="gausslegendre", output="logits"):
    f = model if output == "logits" else lambda x: model(x).softmax(1)
    if baseline.dim() == 3:
        baseline = baseline[None]
    return IntegratedGradients(f).attribute(
        images,
        baseline.expand_as(images),
        target=target,
        n_steps=n_steps,
        method=method,
        return_convergence_delta=True,
    )


@pytest.mark.parametrize("n_steps", [2, 3, 8, 50])
@pytest.mark.parametrize("method", METHODS)
def test_quadrature_is_captums(method, n_steps, double_by_default):
    step_sizes, alphas = approximation_parameters(method)
    nodes, weights = quadrature(method, n_steps)
    np.testing.assert_allclose(nodes, alphas(n_steps), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(weights, step_sizes(n_steps), rtol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_gauss_legendre_is_exact_for_polynomials_up_to_degree_2n_minus_1(n_steps):
    nodes, weights = quadrature("gausslegendre", n_steps)
    for degree in range(2 * n_steps):
        assert weights @ nodes**degree == pytest.approx(1 / (degree + 1), rel=1e-12)
    assert weights @ nodes ** (2 * n_steps) != pytest.approx(1 / (2 * n_steps + 1), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_equals_captum_for_each_method(method, images, labels, double_by_default):
    # Captum rounds its weights to single precision; those of equal steps are exact for a power of two.
    n_steps, rtol = 16, 1e-5 if method == "gausslegendre" else 1e-8
    model = SmallNet()
    baseline = make_baseline("mean", images, model)
    expected, expected_delta = by_captum(model, images, labels, baseline, n_steps, method)
    ours = integrated_gradients(model, images, labels, baseline=baseline, n_steps=n_steps, method=method)
    atol = rtol * float(expected.abs().max())
    torch.testing.assert_close(ours.attributions, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(ours.delta, expected_delta, rtol=rtol, atol=100 * atol)


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("kind", ["mean", "black", "blur", "one tensor", "a tensor each", "number"])
def test_equals_captum_for_each_baseline_and_output(kind, output, images, labels, double_by_default):
    model = SmallNet()
    if kind in ("mean", "black", "blur"):
        given = tensor = make_baseline(kind, images, model)
    elif kind == "number":
        given, tensor = 0.25, torch.full_like(images, 0.25)
    else:
        given = tensor = draw(3, 8, 8, seed=1) if kind == "one tensor" else draw(NUM_IMAGES, 3, 8, 8, seed=1)
    ours = integrated_gradients(
        model, images, labels, baseline=given, n_steps=8, method="riemann_middle", output=output, batch_size=17
    )
    expected, delta = by_captum(model, images, labels, tensor, 8, "riemann_middle", output)
    scale = float(expected.abs().max())
    torch.testing.assert_close(ours.attributions, expected, rtol=1e-8, atol=1e-10 * scale)
    torch.testing.assert_close(ours.delta, delta, rtol=1e-8, atol=1e-9 * scale)


def test_equals_captum_in_single_precision_at_the_papers_setting(images, labels):
    """The released code standardises first and starts from zero there; the maps are the same."""
    model = SmallNet(torch.float32)
    x = images.float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = IntegratedGradients(model.body).attribute((x - mean) / std, target=labels)
    ours = integrated_gradients(model, x, labels, baseline=make_baseline("mean", x, model))
    assert ours.attributions.dtype == ours.delta.dtype == torch.float32
    atol = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(ours.attributions, expected, rtol=1e-4, atol=atol)


def test_target_defaults_to_the_prediction(images, labels):
    model = SmallNet()
    images = images * torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0]).view(-1, 1, 1, 1)  # so that predictions differ
    predicted = model(images).argmax(1)
    assert len(predicted.unique()) > 1 and (predicted != labels).any()
    expected, _ = by_captum(model, images, predicted, torch.zeros_like(images), 2)
    ours = integrated_gradients(model, images, baseline=0.0, n_steps=2)
    torch.testing.assert_close(ours.attributions, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("shared_baseline", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 14, 20, 1000])
def test_batch_size_changes_nothing_and_is_never_exceeded(batch_size, shared_baseline, images, labels):
    model, sizes = SmallNet(), []
    baseline = draw(3, 8, 8, seed=1) if shared_baseline else draw(NUM_IMAGES, 3, 8, 8, seed=1)
    whole = integrated_gradients(model, images, labels, baseline=baseline, n_steps=7)
    model.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(outputs)))
    parts = integrated_gradients(model, images, labels, baseline=baseline, n_steps=7, batch_size=batch_size)
    torch.testing.assert_close(parts.attributions, whole.attributions, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(parts.delta, whole.delta, rtol=1e-9, atol=1e-12)
    assert max(sizes) <= batch_size
    assert sum(sizes) == NUM_IMAGES * (7 + 1) + (1 if shared_baseline else NUM_IMAGES)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "riemann_trapezoid"])
def test_linear_model_in_closed_form(method, images):
    """f = w x + b gives w (x - x0), exact with one step of any rule whose weights add up to 1."""
    linear = nn.Linear(3 * 8 * 8, NUM_CLASSES).double()
    start = draw(3, 8, 8, seed=1)
    target = torch.tensor([3, 2, 1, 0, 0])
    model = nn.Sequential(nn.Flatten(), linear)
    ours = integrated_gradients(model, images, target, baseline=start, n_steps=1, method=method)
    expected = linear.weight.detach()[target].view_as(images) * (images - start)
    torch.testing.assert_close(ours.attributions, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(ours.delta, torch.zeros(NUM_IMAGES, dtype=torch.float64), rtol=0, atol=1e-12)


def test_quadratic_model_in_closed_form():
    """f = x^T A x has gradient 2 A x, linear along the path, so its mean is that of the two ends:

    IG_i = (x - x0)_i (A (x + x0))_i, exact with one Gauss-Legendre node.
    """
    matrices = draw(NUM_CLASSES, 12, 12, seed=2) - 0.5
    matrices = (matrices + matrices.mT) / 2
    x, start, target = draw(NUM_IMAGES, 3, 2, 2), draw(3, 2, 2, seed=1), torch.tensor([0, 3, 1, 2, 2])
    step = (x - start).flatten(1)
    expected = step * torch.einsum("bij,bj->bi", matrices[target], (x + start).flatten(1))
    for n_steps in (1, 4):
        ours = integrated_gradients(Quadratic(matrices), x, target, baseline=start, n_steps=n_steps)
        torch.testing.assert_close(ours.attributions.flatten(1), expected, rtol=1e-10, atol=1e-13)
        assert ours.delta.abs().max() < 1e-12
    # the left sum with n steps lacks half a step of the gradient's rise: (x - x0)_i (A (x - x0))_i / n
    left = integrated_gradients(Quadratic(matrices), x, target, baseline=start, n_steps=5, method="riemann_left")
    missing = step * torch.einsum("bij,bj->bi", matrices[target], step) / 5
    torch.testing.assert_close(left.attributions.flatten(1), expected - missing, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(left.delta, -missing.sum(1), rtol=1e-9, atol=1e-12)


def test_model_is_left_as_it_was_found(images, labels):
    model = SmallNet().train()
    model.body[1].eval()  # a layer that its owner has frozen
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = integrated_gradients(model, images, labels, baseline=0.0, n_steps=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    # neither dropout nor the statistics of the batch had a part in it
    evaluated = integrated_gradients(model.eval(), images, labels, baseline=0.0, n_steps=4)
    assert torch.equal(evaluated.attributions, trained.attributions)


def test_works_inside_no_grad_and_leaves_the_images_alone(images, labels):
    model, copy = SmallNet(), images.clone()
    expected = integrated_gradients(model, images, labels, baseline=0.0, n_steps=4)
    with torch.no_grad():
        ours = integrated_gradients(model, images, labels, baseline=0.0, n_steps=4)
    assert torch.equal(ours.attributions, expected.attributions)
    assert torch.equal(images, copy)
    assert not ours.attributions.requires_grad and not ours.delta.requires_grad


def test_lower_precision_is_accumulated_in_single_precision(images, labels):
    model, x = SmallNet(torch.float32), images.bfloat16()
    expected = integrated_gradients(model, x.float(), labels, baseline=0.5, n_steps=4)
    ours = integrated_gradients(model, x, labels, baseline=0.5, n_steps=4)
    assert torch.equal(ours.attributions, expected.attributions)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = integrated_gradients(model, x.float(), labels, baseline=0.5, n_steps=4)
    assert mixed.attributions.dtype == mixed.delta.dtype == torch.float32
    difference = (mixed.attributions - expected.attributions).norm() / expected.attributions.norm()
    assert 0 < float(difference) < 0.1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, start = model(x.float()).float(), model(torch.full_like(x, 0.5).float()).float()
    rise = (scores - start)[range(NUM_IMAGES), labels]
    torch.testing.assert_close(mixed.delta, mixed.attributions.sum((1, 2, 3)) - rise, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_the_same(images, labels):
    model = SmallNet()
    expected = integrated_gradients(model, images, labels, baseline=0.5, n_steps=4)
    ours = integrated_gradients(model.cuda(), images.cuda(), labels, baseline=0.5, n_steps=4)
    torch.testing.assert_close(ours.attributions.cpu(), expected.attributions, rtol=1e-9, atol=1e-12)


def test_mean_baseline_is_zero_after_the_models_standardisation(images):
    model = SmallNet()
    baseline = make_baseline("mean", images, model)
    assert baseline.shape == (3, 8, 8)
    assert ((baseline - model.mean) / model.std).eq(0).all()
    assert make_baseline("black", images, model).eq(0).all()


def test_blurred_baseline_keeps_the_colour_and_loses_the_detail(images):
    model = SmallNet()
    flat = torch.full((1, 3, 32, 32), 0.3, dtype=torch.float64)
    torch.testing.assert_close(make_baseline("blur", flat, model), flat)
    # a dot becomes the product of two Gaussians with sigma = 32 / 8 = 4, cut off at 3 sigma
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    dot[..., 15, 16] = 1
    reach = np.arange(-12, 13)
    profile = np.exp(-(reach**2) / (2 * 4**2))
    profile /= profile.sum()
    blurred = make_baseline("blur", dot, model)[0, 0]
    np.testing.assert_allclose(blurred[3:28, 4:29].numpy(), np.outer(profile, profile), rtol=1e-6)
    small = make_baseline("blur", images[..., :3], model)  # an image smaller than the reach of the blur
    assert small.shape == (NUM_IMAGES, 3, 8, 3)
    assert small.std() < images.std()


def test_saliency_map_worked_by_hand():
    attributions = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.0]], [[0.5, 4.0]]]])
    assert saliency_map(attributions).tolist() == [[[4.5, 6.0]]]


def symmetric(n):
    matrices = draw(NUM_CLASSES, n, n, seed=5) - 0.5
    return matrices + matrices.transpose(1, 2)


def test_saliency_is_the_absolute_gradient_in_closed_form(images, labels):
    matrices = symmetric(3 * 8 * 8)
    # x^T A x has the gradient 2 A x
    gradient = 2 * torch.einsum("bij,bj->bi", matrices[labels], images.flatten(1)).view_as(images)
    torch.testing.assert_close(saliency(Quadratic(matrices), images, labels), gradient.abs().sum(1))


def test_smoothgrad_is_its_seeds_and_leaves_the_global_generator(images, labels):
    model = SmallNet()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    maps = [smoothgrad(model, images, labels, n_samples=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert maps[0].shape == (NUM_IMAGES, 8, 8) and (maps[0] >= 0).all()


def test_a_batch_norm_network_in_training_mode_is_asked_in_evaluation_mode(labels):
    torch.manual_seed(0)
    model, x, target = resnet18(num_classes=NUM_CLASSES), draw(5, 3, 32, 32, dtype=torch.float32), labels
    asked = {
        "ig": lambda: integrated_gradients(model, x, target, baseline=0.0, n_steps=4).attributions,
        "saliency": lambda: saliency(model, x, target),
        "smoothgrad": lambda: smoothgrad(model, x, target, n_samples=2, seed=0),
        "gradcam": lambda: grad_cam(model, model.layer4, x, target),
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {name: ask() for name, ask in asked.items()}
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    assert all(torch.equal(ask(), found[name]) for name, ask in asked.items())
    expected, _ = by_captum(model, x, target, torch.zeros_like(x), 4)
    torch.testing.assert_close(found["ig"], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_bfloat16_model_is_computed_in_its_own_precision(images, labels):
    model, x = SmallNet(torch.bfloat16), images.bfloat16()
    ours = integrated_gradients(model, x, labels, baseline=make_baseline("black", x, model), n_steps=8)
    expected, _ = by_captum(model, x, labels, torch.zeros_like(x), 8)
    assert ours.attributions.dtype == torch.float32
    assert (ours.attributions - expected).norm() < 0.05 * expected.float().norm()


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "simpson"},
        {"n_steps": 0},
        {"n_steps": 1, "method": "riemann_trapezoid"},
        {"output": "loss"},
        {"batch_size": 0},
        {"target": torch.tensor([0, 1, 2, 3, 4])},
        {"target": torch.tensor([0, 1, 2, 3, -1])},
        {"target": torch.tensor([0, 1])},
        {"target": torch.zeros(5)},
        {"baseline": torch.zeros(3, 8, 7)},
        {"images": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)},
        {"images": torch.zeros(0, 3, 8, 8)},
    ],
)
def test_bad_input_is_refused(arguments, images, labels):
    with pytest.raises(InputError):
        integrated_gradients(SmallNet(), **{"images": images, "target": labels, "baseline": 0.0} | arguments)
    for kind, model in (("white", SmallNet()), ("mean", nn.Flatten())):
        with pytest.raises(InputError):
            make_baseline(kind, images, model)
