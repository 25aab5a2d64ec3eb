"""SciPy, closed forms and cases worked by hand are the references."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, rel_entr, softmax

from igkd.losses import attention_loss, attention_map, distillation_loss, fitted_loss
from small import refusal


def logits(rows, classes, seed, dtype=torch.float64):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 20.0])
def test_distillation_loss_and_its_gradient_are_those_of_the_textbook_divergence(temperature):
    student, teacher = logits(6, 10, 0), logits(6, 10, 1)
    teacher[:3, 2] = -math.inf  # a class that the teacher excludes has probability 0
    p, q = softmax(teacher.numpy() / temperature, 1), softmax(student.numpy() / temperature, 1)
    loss = distillation_loss(student.requires_grad_(), teacher, temperature)
    assert loss.item() == pytest.approx(temperature**2 * rel_entr(p, q).sum() / 6, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(student.grad, temperature / 6 * (q - p), atol=1e-12)
    confident = distillation_loss(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]), temperature)
    assert float(confident) == pytest.approx(1e4 * temperature)


@pytest.mark.parametrize("temperature", [1e4, 1e6])
def test_distillation_at_high_temperature_compares_centred_logits(temperature):
    """Hinton et al. 2015, section 2.1: the loss tends to half the variance over the classes of the difference of the
    logits, and the gradient of centred logits to the difference over the number of classes."""
    student, teacher = (each - each.mean(1, keepdim=True) for each in (logits(6, 10, 0), logits(6, 10, 1)))
    limit = float((student - teacher).var(1, correction=0).mean() / 2)
    loss = distillation_loss(student.float(), teacher.float(), temperature)
    assert float(loss) == pytest.approx(limit, rel=1e-3)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, temperature), student)
    torch.testing.assert_close(gradient, (student - teacher).detach() / 10 / 6, rtol=1e-2, atol=1e-3)


def test_attention_map_worked_by_hand():
    # channel means of the squares: 9 / 2, 0, 0, (16 + 20) / 2; that is (1, 0, 0, 4) times 4.5
    activation = torch.tensor([[[[3.0, 0.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 20**0.5]]]])
    expected = np.array([[1, 0, 0, 4]]) / 17**0.5
    np.testing.assert_allclose(attention_map(activation).numpy(), expected, rtol=1e-6)
    assert attention_map(torch.zeros(1, 2, 3, 3)).eq(0).all()
    # one bright position each, at different places, is as far as two maps can be: 2 over their size
    corners = torch.eye(64)[[0, 63]]
    assert float(attention_loss(*corners[:, None])) == pytest.approx(2 / 64)


def test_what_has_no_loss_is_refused():
    ones = torch.ones
    for function, *arguments in (
        (attention_loss, ones(2, 64), ones(2, 256)),
        (attention_loss, ones(64), ones(8, 64)),
        (attention_map, ones(3, 4, 4)),
        (distillation_loss, ones(8, 10), ones(1, 10), 2.5),
        *((distillation_loss, ones(2, 3), ones(2, 3), t) for t in (0, -1.0, math.nan, math.inf)),
    ):
        refusal(function, *arguments)
    refusal(fitted_loss, -1, 0.1, 3, permuted=True)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    ("alpha", "temperature", "gap", "classes"), [(0.1, 3, 6, 10), (0.01, 2.5, 9, 4), (0.9, 1, 2, 3), (0.1, 3, 0, 10)]
)
def test_fitted_loss_is_the_least_over_all_logits(permuted, alpha, temperature, gap, classes):
    """SciPy's minimiser, free in every logit and told nothing of margins or symmetry, is the reference."""
    targets = softmax(gap * np.eye(classes)[: classes if permuted else 1] / temperature, 1)

    def expected(logits):
        divergence = rel_entr(targets, softmax(logits / temperature)).sum() / len(targets)
        return -(1 - alpha) * log_softmax(logits)[0] + alpha * temperature**2 * divergence

    found = minimize(expected, np.zeros(classes), tol=1e-10)
    fitted = fitted_loss(gap, alpha, temperature, permuted=permuted, num_classes=classes)
    assert fitted == pytest.approx(found.fun, rel=1e-6)
