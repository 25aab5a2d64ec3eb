"""What a network costs to run."""

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from igkd.models import BLOCKS_REMOVED, MobileNetV2, count_parameters


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


def sizes(num_classes: int = 10, size: tuple[int, int] = (32, 32)) -> pd.DataFrame:
    """Parameters and multiply-accumulates of the teacher and of the paper's eight students.

    Parameters
    ----------
    num_classes : int
    size : (H, W)
        Of the images, pixels.

    Returns
    -------
    DataFrame
        ``blocks removed``, ``parameters``, ``compression factor``, ``million MACs``, ``MAC ratio``.
    """
    rows = []
    for cut in (0, *BLOCKS_REMOVED):
        model = MobileNetV2(num_classes, cut)
        rows.append(
            {
                "blocks removed": cut,
                "parameters": count_parameters(model),
                "million MACs": multiply_accumulates(model, size) / 1e6,
            }
        )
    table = pd.DataFrame(rows)
    table.insert(2, "compression factor", table.parameters[0] / table.parameters)
    table["MAC ratio"] = table["million MACs"][0] / table["million MACs"]
    return table
