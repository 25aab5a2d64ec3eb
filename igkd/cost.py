"""What a network costs to run."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image of `size` (H, W) pixels.

    Counted by PyTorch's `FlopCounterMode`, which counts two operations for each.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device)
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    model.train(training)
    return counter.get_total_flops() // 2
