"""The optimizer and the learning rate of a recipe."""

import torch
from torch import Tensor, nn

from igkd.methods import Recipe

#: Coefficients of the quintic that is iterated, by Jordan et al. (2024). The iteration does not converge: its steep slope
#: at 0 lifts small singular values within a few steps, after which they scatter around 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def make_optimizer(model: nn.Module, recipe: Recipe, steps_per_epoch: int):
    """What fits the weights, and the schedule of its learning rate.

    Parameters
    ----------
    model : Module
    recipe : Recipe
    steps_per_epoch : int

    Returns
    -------
    Optimizer, LRScheduler
        The schedule is to be stepped after every step of the optimizer.
    """
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=recipe.lr, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    if not recipe.one_cycle:
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # Its warm-up would have no length at 5 steps, by which OneCycleLR divides.
    total_steps = max(6, recipe.num_epochs * steps_per_epoch + 1)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.lr,
        total_steps=total_steps,
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=25,
        final_div_factor=1e4,
    )


def pointwise_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights (out, in, 1, 1) of the convolutions that are matrix products at each position."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]


@torch.no_grad()
def orthogonalise_gradients(weights: list[nn.Parameter]) -> None:
    """Put in place of each gradient its orthogonal polar factor, about as large in each direction that it spans.

    As in Orthogonal-SGDM (Tuddenham et al., arXiv 2202.07052) the momentum, which comes after, sums these factors; in
    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) it comes before. From Muon are the iteration in place of
    a singular value decomposition and the scale, sqrt(max(1, out / in)).

    Parameters
    ----------
    weights : list of Parameter (out, in, 1, 1)
        With gradients.
    """
    for weight in weights:
        out, inputs = weight.shape[:2]
        factor = orthogonal_factor(weight.grad.flatten(1))
        weight.grad.copy_((max(1.0, out / inputs) ** 0.5 * factor).view_as(weight))


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """The orthogonal polar factor U V^T of a matrix U S V^T, about.

    Five iterations of the kind of Newton and Schulz, matrix products alone, bring singular values from a hundredth of
    the Frobenius norm up to between 0.6 and 1.3; 0 stays 0.

    Parameters
    ----------
    matrix : Tensor (m, n)

    Returns
    -------
    Tensor (m, n)
        In bfloat16 under autocast to it.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if len(matrix) <= len(matrix.T) else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == matrix.shape else wide.T
