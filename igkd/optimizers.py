"""The optimizers and the learning rate of a recipe."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from igkd.runs import Recipe

#: Of Muon: the peak of its learning rate, and the part of it that each step takes off a weight (trials: docs/log.md).
MUON_LR, MUON_WEIGHT_DECAY = 0.05, 0.03
WARM_UP = 0.2  # share of the steps


class PointwiseMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for 1x1 convolutions, whose weights (out, in, 1, 1) it sees as matrices."""

    def __init__(self, weights: list[nn.Parameter], **settings):
        self.weights = weights
        super().__init__([nn.Parameter(weight.detach().flatten(1)) for weight in weights], **settings)

    def step(self, closure=None):
        """One step with the gradients of the convolutions."""
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = weight.grad.flatten(1)
        super().step(closure)


def make_optimizers(model: nn.Module, recipe: Recipe, num_steps: int) -> list[tuple[torch.optim.Optimizer, LambdaLR]]:
    """What fits the weights, each with the schedule of its learning rate, both to be stepped after every batch.

    Parameters
    ----------
    model : Module
        On its device and in its memory layout: Muon keeps views of the weights.
    recipe : Recipe
    num_steps : int
        Of the whole training.
    """
    pointwise = []
    if recipe.optimizer == "muon":
        pointwise = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    rest = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in pointwise)]
    groups = [
        {"params": [parameter for parameter in rest if parameter.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in rest if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adam":
        optimizers = [torch.optim.Adam(groups, lr=recipe.lr, fused=True)]
    else:
        optimizers = [torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)]
    if pointwise:
        optimizers.append(PointwiseMuon(pointwise, lr=MUON_LR, weight_decay=MUON_WEIGHT_DECAY))

    def one_cycle(step: int) -> float:
        return min((step + 1) / (WARM_UP * num_steps), (num_steps - step) / ((1 - WARM_UP) * num_steps), 1.0)

    rate = one_cycle if recipe.one_cycle else lambda step: 1.0
    return [(optimizer, LambdaLR(optimizer, rate)) for optimizer in optimizers]
