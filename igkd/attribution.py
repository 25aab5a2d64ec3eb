"""Integrated gradients (Sundararajan et al. 2017) over many images at once.

Captum is the reference that the tests hold this against. What is added here: the points of many images share
one batch, their buffer is written in place, no parameter collects a gradient, and the error of the integral
is always returned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from igkd.errors import InputError

METHODS = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")
OUTPUTS = ("logits", "probabilities")
BASELINES = ("mean", "black", "blur")

#: Most evaluations of a network at once. Processors slow down beyond 64: on one thread 400 evaluations of MobileNetV2
#: took 4 s in batches of 25 to 100, 10 s in batches of 200 and 17 s in one, because large activations are handed back
#: to the system and faulted in again.
MAX_BATCH_SIZE = {"cpu": 64}
MAX_BATCH_SIZE_ACCELERATOR = 2048


@dataclass(frozen=True, eq=False)
class Attribution:
    """What integrated gradients say about N images.

    Attributes
    ----------
    attributions : Tensor (N, C, H, W)
        Contribution of each input number to the rise of the output from the baseline to the image, in units
        of the output (logits or probability).
    delta : Tensor (N,)
        Completeness error, sum of the attributions - (f(image) - f(baseline)); 0 if the integral were exact.
    """

    attributions: Tensor
    delta: Tensor

    @property
    def rise(self) -> Tensor:
        """f(image) - f(baseline), (N,): what the attributions should add up to."""
        return self.attributions.sum((1, 2, 3)) - self.delta


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Tensor | float,
    n_steps: int = 50,
    method: str = "gausslegendre",
    output: str = "logits",
    batch_size: int | None = None,
) -> Attribution:
    """IG_i = (x_i - x0_i) * integral over a from 0 to 1 of df(x0 + a (x - x0)) / dx_i, by quadrature.

    Parameters
    ----------
    model : Module
        Takes (B, C, H, W), returns logits (B, K). It is evaluated in evaluation mode and in its own precision, and left
        as it was found; its parameters collect no gradients.
    images : Tensor or ndarray (N, C, H, W)
        x, floating point, in the units that `model` takes (here [0, 1]). The integral of lower precisions than float32
        is summed in float32.
    target : Tensor or ndarray (N,) of integers, optional
        The class whose output f is; by default the one that the model predicts. The paper takes the label.
    baseline : Tensor (C, H, W) or (N, C, H, W), or float
        x0, see `make_baseline`. There is no default because no baseline is neutral.
    n_steps : int, default 50
        Points on the path from baseline to image.
    method : str, default "gausslegendre"
        Rule of quadrature, see `quadrature`.
    output : {"logits", "probabilities"}, default "logits"
        What f is.
    batch_size : int, optional
        Most evaluations of the model at once; it changes nothing but rounding. By default 64 on a processor and 2048
        on an accelerator; give less where memory is short.

    Returns
    -------
    Attribution

    Raises
    ------
    InputError
        If an argument is not as described.

    Notes
    -----
    Multiplication by x - x0 makes IG indifferent to an affine change of units, so maps for a model that
    standardises its input inside, as here, equal those that the released code computes on standardised
    images.

    References
    ----------
    Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, arXiv 1703.01365.

    Examples
    --------
    Of a linear network the attributions are weight times difference from the baseline:

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False))
    >>> _ = nn.init.constant_(model[1].weight, 2.0)
    >>> image = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    >>> found = integrated_gradients(model, image, baseline=0.0, n_steps=2)
    >>> found.attributions.flatten()
    tensor([0.2000, 0.4000, 0.6000])
    >>> saliency_map(found.attributions).shape  # what is laid over an image: one number a pixel
    torch.Size([1, 1, 1])
    """
    images = torch.as_tensor(images)
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise InputError(f"images are {images.dtype} {tuple(images.shape)}; give floating point (N, C, H, W), N > 0")
    if output not in OUTPUTS or (batch_size is not None and batch_size < 1):
        raise InputError(f"output {output!r}, batch_size {batch_size}; give one of {OUTPUTS} and 1 or more")
    dtype = torch.promote_types(images.dtype, torch.float32)
    images = images.detach().to(dtype)
    baseline = baseline.detach() if isinstance(baseline, Tensor) else torch.full_like(images[0], baseline)
    if baseline.shape not in (images.shape, images.shape[1:]):
        raise InputError(f"baseline is {tuple(baseline.shape)}; give the shape of one image or {tuple(images.shape)}")
    baseline = baseline.to(images).reshape(-1, *images.shape[1:])
    batch_size = batch_size or MAX_BATCH_SIZE.get(images.device.type, MAX_BATCH_SIZE_ACCELERATOR)
    nodes, weights = (torch.tensor(a, dtype=dtype, device=images.device) for a in quadrature(method, n_steps))
    of_model = next((parameter.dtype for parameter in model.parameters()), dtype)

    def f(x: Tensor) -> Tensor:
        scores = model(x.to(of_model)).to(dtype)
        return scores.softmax(1) if output == "probabilities" else scores

    with evaluating(model):
        with torch.no_grad():
            at_image, at_baseline = (torch.cat([f(x) for x in part.split(batch_size)]) for part in (images, baseline))
        if at_image.dim() != 2:
            raise InputError(f"the model returns {tuple(at_image.shape)}; give one that returns logits (N, K)")
        target = at_image.argmax(1) if target is None else torch.as_tensor(target, device=images.device)
        n, num_classes = at_image.shape
        if target.shape != (n,) or target.is_floating_point() or not ((0 <= target) & (target < num_classes)).all():
            raise InputError(f"target must be {n} integers, one per image, from 0 to {num_classes - 1}")
        target = target.long()
        attributions = torch.empty_like(images)
        for rows, integral in _integrals(f, images, baseline, target, nodes, weights, batch_size):
            attributions[rows] = integral
    rise = (at_image - at_baseline).gather(1, target[:, None]).squeeze(1)
    return Attribution(attributions, attributions.sum((1, 2, 3)) - rise)


def completeness_error(delta: Tensor, rise: Tensor) -> float:
    """Mean size of `delta` over that of `rise`: how far sums of attributions miss, as a share of what is due.

    Parameters
    ----------
    delta, rise : Tensor (N,)
        Of `Attribution`.

    Returns
    -------
    float
        0 if all integrals are exact.
    """
    return float(delta.abs().mean() / rise.abs().mean())


def quadrature(method: str, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes a_k and weights w_k with which the sum of w_k g(a_k) stands for the integral of g from 0 to 1.

    Parameters
    ----------
    method : str
        ``"gausslegendre"`` (exact for polynomials up to degree 2 n - 1), or ``"riemann_left"``,
        ``"riemann_right"``, ``"riemann_middle"``, ``"riemann_trapezoid"``.
    n_steps : int
        n, 1 or more; 2 or more for the trapezoid.

    Returns
    -------
    nodes, weights : ndarray (n,) float64

    Raises
    ------
    InputError
        If there is no such rule.

    Notes
    -----
    These are Captum's rules (version 0.9), in double precision. Its trapezoid spaces n nodes by 1 / (n - 1)
    and weighs them by 1 / n, half of it at both ends, so the weights add up to 1 - 1 / n and
    attributions come out too small by about 1 / n.
    """
    if method not in METHODS or n_steps < 1 + (method == "riemann_trapezoid"):
        raise InputError(f"no rule {method!r} has n_steps {n_steps}; give one of {METHODS} and 1 (trapezoid 2) or more")
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        return (nodes + 1) / 2, weights / 2
    weights = np.full(n_steps, 1 / n_steps)
    if method == "riemann_trapezoid":
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps), weights
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
    return (np.arange(n_steps) + shift) / n_steps, weights


def make_baseline(kind: str, images: Tensor, model: nn.Module) -> Tensor:
    """The image from which the path of integration starts.

    Parameters
    ----------
    kind : str
        - ``"mean"``: what the model standardises to zero, its buffer ``mean`` (the paper's baseline: the mean
          colour of the training images, a grey; black only for a model that does not standardise).
        - ``"black"``: zero.
        - ``"blur"``: each image, blurred by a Gaussian with a standard deviation of an eighth of its height,
          which keeps colour and coarse layout (Sturmfels et al. 2020 compare such baselines).
    images : Tensor (N, C, H, W)
        In [0, 1].
    model : Module

    Returns
    -------
    Tensor (C, H, W), or (N, C, H, W) for ``"blur"``

    Raises
    ------
    InputError
        If the kind is unknown, or the model has no buffer ``mean``.

    References
    ----------
    Sturmfels, Lundberg, Lee, "Visualizing the impact of feature attribution baselines", Distill, 2020.
    """
    mean = getattr(model, "mean", None)
    if kind not in BASELINES or (kind == "mean" and not isinstance(mean, Tensor)):
        raise InputError(f"baseline {kind!r}: choose one of {BASELINES}; 'mean' needs a model with a buffer `mean`")
    if kind == "mean":
        return mean.to(images).view(-1, 1, 1).expand(images.shape[1:])
    if kind == "black":
        return torch.zeros_like(images[0])
    sigma = images.shape[2] / 8
    # The blur reflects the image at its edges, which it can do for less than its size.
    radius = min(round(3 * sigma), min(images.shape[2:]) - 1)
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def saliency_map(attributions: Tensor) -> Tensor:
    """Sum over channels of absolute attributions, (N, C, H, W) to (N, H, W): the map that the paper overlays."""
    return attributions.abs().sum(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode: dropout is off, batch norm keeps its statistics. Modes are restored at the end."""
    # Module by module, because model.train() would also wake those that were frozen in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def _integrals(f, images: Tensor, baseline: Tensor, target: Tensor, nodes: Tensor, weights: Tensor, batch_size: int):
    """Yield (rows, attributions of these images); a batch holds whole images or some steps of one."""
    n_steps = len(nodes)
    num_images = max(1, min(batch_size // n_steps, len(images)))
    num_steps = -(-n_steps // -(-n_steps // batch_size))  # of one image at once, in as few batches of equal size as fit
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    # Allocating and faulting in fresh pages for each batch costs more than writing the points.
    shape = (num_images * num_steps, *images.shape[1:])
    buffer = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout)
    for first in range(0, len(images), num_images):
        rows = slice(first, first + num_images)
        start = baseline if len(baseline) == 1 else baseline[rows]
        difference = images[rows] - start
        count = len(difference)
        gradient = torch.zeros_like(difference)
        for alphas, shares in zip(nodes.split(num_steps), weights.split(num_steps), strict=True):
            points = buffer[: count * len(alphas)]
            of_images = points.unflatten(0, (count, -1))
            torch.addcmul(start[:, None], difference[:, None], alphas.view(-1, 1, 1, 1), out=of_images)
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                classes = target[rows].repeat_interleave(len(alphas))
                scores = f(points).gather(1, classes[:, None]).squeeze(1)
                (weighted,) = torch.autograd.grad(scores, points, shares.repeat(count))
            gradient += weighted.unflatten(0, (count, -1)).sum(1)
        yield rows, gradient * difference
