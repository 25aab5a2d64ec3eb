"""Captum, closed forms and SciPy's quadrature are the references."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd.attribution import METHODS, integrated_gradients, make_baseline
from small import refusal
from test_models import MEAN_STD, network


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_network(dtype=torch.float64, mean_std=MEAN_STD):
    return network(15, 4, mean_std).to(dtype)


IMAGES, LABELS = draw(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
START, STARTS = draw(3, 8, 8, seed=1), draw(5, 3, 8, 8, seed=1)


@pytest.fixture
def double_by_default():
    """Captum draws its nodes with torch.linspace, in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


BASELINES = {"black": "black", "blur": "blur", "one tensor": START, "a tensor each": STARTS, "number": 0.25}
PATHS = [(method, "mean") for method in METHODS] + [("riemann_middle", each) for each in BASELINES.values()]


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("method, baseline", PATHS, ids=[*METHODS, *BASELINES])
def test_equals_captum(method, baseline, output, double_by_default):
    # Captum rounds its weights to single precision; those of equal steps are exact for a power of two.
    n_steps, rtol = 16, 1e-5 if method == "gausslegendre" else 1e-8
    model = a_network()
    given = make_baseline(baseline, IMAGES, model) if isinstance(baseline, str) else baseline
    f = model if output == "logits" else lambda x: model(x).softmax(1)
    start = torch.as_tensor(given).expand_as(IMAGES)
    expected, delta = IntegratedGradients(f).attribute(
        IMAGES, start, LABELS, n_steps=n_steps, method=method, return_convergence_delta=True
    )
    ours = integrated_gradients(
        model, IMAGES, LABELS, baseline=given, n_steps=n_steps, method=method, output=output, batch_size=17
    )
    atol = rtol * float(expected.abs().max())
    torch.testing.assert_close(ours.attributions, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(ours.delta, delta, rtol=rtol, atol=100 * atol)


def test_equals_captum_in_single_precision_at_the_papers_setting():
    """The released code standardises first and starts from zero there; the maps are the same."""
    model, x = a_network(torch.float32), IMAGES.float()
    outside = a_network(torch.float32, mean_std=None)
    expected = IntegratedGradients(outside).attribute((x - model.mean) / model.std, target=LABELS)
    ours = integrated_gradients(model, x, LABELS, baseline=make_baseline("mean", x, model))
    assert ours.attributions.dtype == ours.delta.dtype == torch.float32
    torch.testing.assert_close(ours.attributions, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("start", [START, STARTS], ids=["shared baseline", "a baseline each"])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 14, 20, 1000])
def test_batch_size_changes_nothing_and_is_never_exceeded(batch_size, start):
    model, sizes = a_network(), []
    whole = integrated_gradients(model, IMAGES, LABELS, baseline=start, n_steps=7)
    model.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(outputs)))
    parts = integrated_gradients(model, IMAGES, LABELS, baseline=start, n_steps=7, batch_size=batch_size)
    torch.testing.assert_close(parts.attributions, whole.attributions, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(parts.delta, whole.delta, rtol=1e-9, atol=1e-12)
    assert max(sizes) <= batch_size
    assert sum(sizes) == 5 * (7 + 1) + (1 if start is START else 5)


def test_model_and_images_are_left_as_they_were_found():
    model, copy = a_network().train(), IMAGES.clone()
    model.features[1].eval()  # a layer that its owner has frozen
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        trained = integrated_gradients(model, IMAGES, LABELS, baseline=0.0, n_steps=4)
    assert [module.training for module in model.modules()] == modes and torch.equal(IMAGES, copy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    # the statistics of the batch had no part in it
    evaluated = integrated_gradients(model.eval(), IMAGES, LABELS, baseline=0.0, n_steps=4)
    assert torch.equal(evaluated.attributions, trained.attributions) and not evaluated.attributions.requires_grad


def test_blurred_baseline_keeps_the_colour_and_loses_the_detail():
    model = a_network()
    flat = torch.full((1, 3, 32, 32), 0.3, dtype=torch.float64)
    torch.testing.assert_close(make_baseline("blur", flat, model), flat)
    # a dot becomes the product of two Gaussians with sigma = 32 / 8 = 4, cut off at 3 sigma
    dot = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    dot[..., 15, 16] = 1
    profile = np.exp(-(np.arange(-12, 13) ** 2) / (2 * 4**2))
    profile /= profile.sum()
    blurred = make_baseline("blur", dot, model)[0, 0]
    np.testing.assert_allclose(blurred[3:28, 4:29].numpy(), np.outer(profile, profile), rtol=1e-6)
    small = make_baseline("blur", IMAGES[..., :3], model)  # an image smaller than the reach of the blur
    assert small.shape == (5, 3, 8, 3) and small.std() < IMAGES.std()


def test_bad_input_is_refused():
    good = {"model": a_network(), "images": IMAGES, "target": LABELS, "baseline": 0.0}
    bad = {"method": ["simpson"], "n_steps": [0], "output": ["loss"], "batch_size": [0], "images": [IMAGES[:0]]}
    bad |= {"target": [LABELS + 4, torch.zeros(5)], "baseline": [torch.zeros(3, 8, 7)], "model": [torch.nn.Flatten(0)]}
    for name, value in ((name, value) for name, values in bad.items() for value in values):
        refusal(integrated_gradients, **good | {name: value})
    refusal(make_baseline, "white", IMAGES, a_network())
