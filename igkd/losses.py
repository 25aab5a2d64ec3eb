"""The two terms that knowledge distillation and attention transfer add to the cross-entropy.

Total loss of a student: ``(1 - alpha) * cross_entropy + alpha * distillation_loss + gamma * attention_loss``.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from igkd.errors import InputError


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""T^2 * mean over the batch of KL(softmax(teacher / T) || softmax(student / T)).

    Written out, with p_bk = softmax(teacher_b / T)_k and q_bk = softmax(student_b / T)_k::

        T^2 / B * sum_b sum_k p_bk * (log p_bk - log q_bk)

    Parameters
    ----------
    student_logits, teacher_logits : Tensor (B, K)
        Rows of the same images. Gradients reach both, so pass the teacher's without a graph.
    temperature : float
        T > 0; the larger, the softer both distributions.

    Returns
    -------
    Tensor ()
        In nats, at least 0; 0 where the two distributions are equal.

    Raises
    ------
    InputError
        If T is not above 0, or the logits have different shapes.

    Notes
    -----
    The factor T^2 is Hinton et al.'s: soft-target gradients shrink as 1 / T^2, so with it the balance between
    this term and the cross-entropy hardly moves with T. The released code takes the sum by the deprecated
    ``size_average=False`` and divides it by B, which is the same number. With the paper's alpha = 0.01
    and T = 2.5 it is weighed by alpha * T^2 = 0.0625 against 0.99 of cross-entropy.

    Lower precision than float32 is raised to float32 before the softmax. Above T = 20 float64 is needed: the loss is
    T^2 times the tiny difference of two nearly uniform distributions. A class whose teacher logit is -inf has p = 0, so
    its term is 0.

    References
    ----------
    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531, 2015.

    Examples
    --------
    A teacher that gives 3/4 and 1/4, a student that gives both classes the same: 3/4 ln 3/2 + 1/4 ln 1/2.

    >>> teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.zeros(1, 2)
    >>> round(float(distillation_loss(student, teacher, temperature=1.0)), 4)
    0.1308
    """
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature is {temperature}; give a finite number above 0")
    _check_rows(student_logits, teacher_logits, "logits")
    least = torch.float64 if temperature > 20 else torch.float32
    log_p, log_q = (
        F.log_softmax(logits.to(torch.promote_types(logits.dtype, least)) / temperature, dim=1)
        for logits in (teacher_logits, student_logits)
    )
    log_p = log_p.clamp_min(torch.finfo(log_p.dtype).min)  # 0 * -inf would not be a number
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def attention_map(activation: Tensor) -> Tensor:
    """Q = q / ||q||_2 with q = the channel mean of activation^2, flattened over rows and columns.

    Parameters
    ----------
    activation : Tensor (B, C, H, W)

    Returns
    -------
    Tensor (B, H * W)
        Non-negative rows of unit length (a row of zeros where the whole activation is 0); float32 for lower
        precisions.

    Raises
    ------
    InputError
        If the activation has another number of dimensions.

    Notes
    -----
    This is Zagoruyko and Komodakis' F^2 map; they sum over channels and their code takes the mean, as the
    released code does, and the normalisation removes the difference. The released docstring speaks of
    absolute values, its code squares.

    References
    ----------
    Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017, arXiv 1612.03928.

    Examples
    --------
    Two channels, one row of two positions: the mean squares are 1 and 2, and their length is the root of 5.

    >>> attention_map(torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]]))
    tensor([[0.4472, 0.8944]])
    """
    if activation.dim() != 4:
        raise InputError(f"activation is {tuple(activation.shape)}; give (B, C, H, W)")
    return F.normalize(_at_least_float32(activation).square().mean(1).flatten(1), dim=1)


def attention_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean over the batch and the H * W positions of (student_map - teacher_map)^2.

    Parameters
    ----------
    student_map, teacher_map : Tensor (B, H * W)
        From `attention_map`.

    Returns
    -------
    Tensor ()
        From 0 (equal maps) to 2 / (H * W) (maps that share no position).

    Raises
    ------
    InputError
        If the maps have different shapes.

    Notes
    -----
    The squared distance of two non-negative unit vectors is at most 2, and the *mean* divides it by the
    size of the map: at most 0.031 for 8x8, 0.0078 for 16x16, 0.0020 for 32x32. With the paper's gamma = 0.8
    this adds at most 0.025 to the loss, and less for the larger maps of the smaller students. The mean is
    also what the attention-transfer authors' code takes, but with a weight of about 1000 and three pairs of
    layers where the paper has one. Their article instead states the length of the difference, || Q_S - Q_T
    ||_2, which no factor 1 / (H * W) shrinks.

    References
    ----------
    Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017, arXiv 1612.03928, equation 2.

    Examples
    --------
    Two maps of two positions that share none:

    >>> float(attention_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])))
    1.0
    """
    _check_rows(student_map, teacher_map, "attention maps")
    return F.mse_loss(_at_least_float32(student_map), _at_least_float32(teacher_map))


def fitted_loss(gap: float, alpha: float, temperature: float, *, permuted: bool, num_classes: int = 10) -> float:
    """Training loss of a student that fits its images, if the teacher's logits are the image's own or another's.

    The teacher puts the logit of the label `gap` above all others, which are equal. If its logits are `permuted`, they
    are those of an image of any class, each as likely, and the student cannot know which. The student takes, for
    every image, the logits with the least expected loss; by symmetry they too have one margin, of the label over all
    others, and the loss is convex in it.

    Parameters
    ----------
    gap : float
        At least 0.
    alpha : float
        Weight of the distillation loss, above 0 and below 1.
    temperature : float
    permuted : bool
    num_classes : int
        K.

    Returns
    -------
    float
        ``(1 - alpha) * cross-entropy + alpha * distillation`` in nats.

    Raises
    ------
    InputError
        If a parameter is out of range.

    Notes
    -----
    With s(x) = 1 / (1 + (K - 1) exp(-x)), the probability of a class whose logit is x above all others, and target
    probability P of the label (s(gap / T), or 1 / K on average), the margin m solves
    ``alpha * T * (s(m / T) - P) = (1 - alpha) * (1 - s(m))``. What a real student adds, images that it gets wrong,
    is not in it; a student that learned by heart which wrong target each image has could go below it.
    """
    if not (gap >= 0 and 0 < alpha < 1 and temperature > 0 and num_classes > 1):
        given = f"gap {gap}, alpha {alpha}, temperature {temperature}, {num_classes} classes"
        raise InputError(f"{given}; give gap >= 0, alpha between 0 and 1, temperature > 0 and 2 classes or more")
    labels = torch.arange(num_classes if permuted else 1)  # whose logits are given; the image's own label is 0
    own, teacher = torch.zeros_like(labels), gap * F.one_hot(labels, num_classes).double()

    def expected(margin: float) -> float:
        student = margin * F.one_hot(own, num_classes).double()
        distillation = distillation_loss(student, teacher, temperature)
        return float((1 - alpha) * F.cross_entropy(student, own) + alpha * distillation)

    return float(minimize_scalar(expected, bracket=(0, gap + 1)).fun)


def _check_rows(student: Tensor, teacher: Tensor, what: str) -> None:
    # PyTorch would repeat a single row or column for all others, and the loss would be of something else.
    if student.shape != teacher.shape or student.dim() != 2:
        given = f"the student's {what} are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
        raise InputError(f"{given}; give both as rows of the same images, of the same length")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
