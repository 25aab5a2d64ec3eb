import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn import functional as F

from igkd.augment import draw, overlay
from igkd.errors import InputError
from igkd.losses import attention_loss, attention_map, distillation_loss, fitted_loss


def logits(rows, classes, seed, dtype=torch.float64):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_distillation_loss_of_two_classes_worked_by_hand():
    # teacher / T = (ln 3, 0) gives p = (3/4, 1/4); student / T = (0, 0) gives q = (1/2, 1/2)
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    student = torch.tensor([[5.0, 5.0]])
    expected = 2**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)


def test_distillation_loss_is_accurate_at_any_temperature():
    """For T to infinity it tends to the variance of the difference of the logits over the classes, over 2."""
    student, teacher = logits(6, 10, 0).float(), logits(6, 10, 1).float()
    limit = float((student - teacher).double().var(1, correction=0).mean() / 2)
    for temperature in (1e4, 1e6):
        assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(limit, rel=1e-3)


def test_a_class_that_the_teacher_excludes_has_probability_zero():
    student, teacher = logits(3, 5, 0), logits(3, 5, 1)
    teacher[:, 2] = -math.inf
    student.requires_grad_()
    loss = distillation_loss(student, teacher, 2.5)
    p, q = softmax(teacher.numpy() / 2.5, 1), softmax(student.detach().numpy() / 2.5, 1)
    assert loss.item() == pytest.approx(2.5**2 * rel_entr(p, q).sum() / 3)
    loss.backward()
    np.testing.assert_allclose(student.grad, 2.5 / 3 * (q - p), atol=1e-12)


def test_what_is_no_activation_is_refused():
    with pytest.raises(InputError):
        attention_map(torch.ones(3, 4, 4))


@pytest.mark.parametrize("temperature", [1.0, 2.5, 20.0])
def test_distillation_loss_is_the_textbook_divergence_of_teacher_from_student(temperature):
    student, teacher = logits(6, 10, 0), logits(6, 10, 1)
    p, q = softmax(teacher.numpy() / temperature, 1), softmax(student.numpy() / temperature, 1)
    expected = temperature**2 * rel_entr(p, q).sum() / 6
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    # the other direction of the divergence is another number, so the order of the arguments is tested too
    assert expected != pytest.approx(temperature**2 * rel_entr(q, p).sum() / 6, rel=1e-3)


def test_distillation_gradient_keeps_its_size_at_high_temperature():
    """Hinton et al. 2015, section 2.1: for large T and centred logits the gradient tends to (z - v) / N."""
    student, teacher = logits(1, 10, 0), logits(1, 10, 1)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, 1e4), student)
    torch.testing.assert_close(gradient, (student - teacher).detach() / 10, rtol=1e-2, atol=1e-3)


def test_equal_inputs_cost_nothing():
    same = logits(4, 10, 0)
    assert float(distillation_loss(same, same, 2.5)) == pytest.approx(0, abs=1e-15)
    assert float(distillation_loss(same + 7, same, 2.5)) == pytest.approx(0, abs=1e-14)  # a shift is ignored
    rows = attention_map(torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert float(attention_loss(rows, rows)) == 0


def test_confident_logits_stay_finite():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert float(distillation_loss(student, teacher, 1.0)) == pytest.approx(1e4)


def test_attention_map_worked_by_hand():
    # channel means of the squares: 9 / 2, 0, 0, (16 + 20) / 2; that is (1, 0, 0, 4) times 4.5
    activation = torch.tensor([[[[3.0, 0.0], [0.0, -4.0]], [[0.0, 0.0], [0.0, 20**0.5]]]])
    expected = np.array([[1, 0, 0, 4]]) / 17**0.5
    np.testing.assert_allclose(attention_map(activation).numpy(), expected, rtol=1e-6)


def test_attention_map_has_unit_length_and_ignores_scale_but_not_silence():
    activation = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = attention_map(activation)
    assert rows.shape == (3, 24)
    np.testing.assert_allclose(np.linalg.norm(rows.numpy(), axis=1), 1, rtol=1e-12)
    torch.testing.assert_close(attention_map(-7 * activation), rows)
    assert attention_map(torch.zeros(1, 2, 3, 3)).eq(0).all()


@pytest.mark.parametrize("size", [2, 8, 16, 32])
def test_attention_loss_is_at_most_two_over_the_size_of_the_map(size):
    """One bright position each, at different places, attains the bound; no pair of maps exceeds it."""
    one_hot = F.one_hot(torch.tensor([0, size * size - 1]), size * size).float()
    student, teacher = (attention_map(row.view(1, 1, size, size)) for row in one_hot)
    bound = 2 / size**2
    assert float(attention_loss(student, teacher)) == pytest.approx(bound)
    generator = torch.Generator().manual_seed(size)
    student, teacher = (attention_map(torch.randn(20, 3, size, size, generator=generator)) for _ in range(2))
    assert 0 < float(attention_loss(student, teacher)) < bound


def test_attention_loss_worked_by_hand():
    student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert float(attention_loss(student, teacher)) == pytest.approx((1 + 1 + 0 + 0) / 4)


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (attention_loss, (2, 64), (2, 256)),
        (attention_loss, (8, 64), (8, 1)),
        (attention_loss, (8, 64), (64,)),
        (lambda *logits: distillation_loss(*logits, 2.5), (8, 10), (1, 10)),
        (lambda *logits: distillation_loss(*logits, 2.5), (8, 10), (8, 1)),
    ],
)
def test_what_is_of_different_shapes_is_not_compared(loss, student, teacher):
    for first, second in ((student, teacher), (teacher, student)):
        with pytest.raises(InputError) as caught:
            loss(torch.ones(first), torch.ones(second))
        assert str(first) in str(caught.value) and str(second) in str(caught.value)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_a_temperature_that_softens_nothing_is_refused(temperature):
    with pytest.raises(InputError, match="temperature"):
        distillation_loss(logits(2, 3, 0), logits(2, 3, 1), temperature)


def test_gradients_in_double_precision():
    teacher = logits(3, 4, 1)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, 2.5), logits(3, 4, 0).requires_grad_())
    activation = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = attention_map(activation.flip(0))
    assert torch.autograd.gradcheck(lambda a: attention_loss(attention_map(a), target), activation.requires_grad_())


def test_bfloat16_is_computed_in_float32():
    student, teacher = logits(8, 10, 0).bfloat16(), logits(8, 10, 1).bfloat16()
    loss = distillation_loss(student, teacher, 2.5)
    p = softmax(teacher.double().numpy() / 2.5, 1)
    expected = 2.5**2 * (p * (np.log(p) - log_softmax(student.double().numpy() / 2.5, 1))).sum() / 8
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # bfloat16 carries three digits only
    assert attention_map(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert attention_loss(torch.ones(1, 9).bfloat16(), torch.zeros(1, 9).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    ("alpha", "temperature", "gap", "classes"), [(0.1, 3, 6, 10), (0.01, 2.5, 9, 4), (0.9, 1, 2, 3)]
)
def test_fitted_loss_is_the_least_over_all_logits(permuted, alpha, temperature, gap, classes):
    """SciPy's minimiser, free in every logit and told nothing of margins or symmetry, is the reference."""
    targets = softmax(gap * np.eye(classes)[: classes if permuted else 1] / temperature, 1)

    def expected(logits):
        divergence = rel_entr(targets, softmax(logits / temperature)).sum() / len(targets)
        return -(1 - alpha) * log_softmax(logits)[0] + alpha * temperature**2 * divergence

    found = minimize(expected, np.zeros(classes), tol=1e-10)
    fitted = fitted_loss(gap, alpha, temperature, permuted=permuted, num_classes=classes)
    assert fitted["loss"] == pytest.approx(found.fun, rel=1e-6)
    assert fitted["margin"] == pytest.approx(found.x[0] - found.x[1:].mean(), abs=1e-2)
    parts = (1 - alpha) * fitted["cross_entropy"] + alpha * fitted["distillation"]
    assert parts == pytest.approx(fitted["loss"])


def test_a_teacher_that_knows_nothing_is_as_good_permuted_as_aligned():
    aligned, permuted = (fitted_loss(0, 0.1, 3, permuted=permuted) for permuted in (False, True))
    assert aligned == pytest.approx(permuted)
    # at T = 1 it is label smoothing, whose least loss is the excess of the smoothed target's entropy, worked by hand
    smoothed = np.array([0.9 + 0.1 / 10, *[0.1 / 10] * 9])
    least = -(smoothed * np.log(smoothed)).sum() - 0.1 * np.log(10)
    assert fitted_loss(0, 0.1, 1, permuted=True)["loss"] == pytest.approx(least)


def test_a_hopeless_teacher_is_refused():
    for gap, alpha, temperature in ((-1, 0.1, 3), (6, 0.0, 3), (6, 0.1, 0)):
        with pytest.raises(InputError, match="give gap >= 0"):
            fitted_loss(gap, alpha, temperature, permuted=True)


def test_maps_below_zero_are_not_overlaid():
    drawn = draw(2, torch.Generator(), padding=0, mirror=False, overlay_prob=1.0)
    with pytest.raises(InputError, match="negative"):
        overlay(torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4) - 0.9, drawn)
