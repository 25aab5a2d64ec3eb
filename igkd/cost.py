"""What a network costs to run: parameters, operations, memory, time."""

import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
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


@torch.inference_mode()
def peak_activation_memory(model: nn.Module, size: tuple[int, int], batch_size: int = 1) -> int:
    """Bytes of the activations that are alive at once, at the worst moment of a forward pass in float32.

    Observed between the layers while PyTorch runs them one after the other; the input counts, the weights do not, nor
    does the workspace that a layer needs within itself.

    Parameters
    ----------
    model : nn.Module
        Its outputs are thrown away.
    size : (H, W)
        Of the images, pixels.
    batch_size : int
    """
    alive: dict[int, weakref.ref] = {}
    peak = 0

    def count(tensor: Tensor) -> None:
        nonlocal peak
        alive[id(tensor)] = weakref.ref(tensor)
        here = [tensor for tensor in (reference() for reference in alive.values()) if tensor is not None]
        # An operation in place gives the same memory under another name.
        peak = max(peak, sum({tensor.data_ptr(): tensor.nbytes for tensor in here}.values()))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output: count(output))
        for module in model.modules()
        if not list(module.children())
    ]
    training = model.training
    try:
        device = next(model.parameters()).device
        image = torch.zeros(batch_size, 3, *size, device=device)
        count(image)
        model.eval()(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return peak


def forward_call(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    """A call that sends `batch` (B, 3, H, W) through a PyTorch network and waits for the device, for `latency`."""
    model = model.to(memory_format=torch.channels_last).eval()
    batch = batch.to(next(model.parameters()).device).contiguous(memory_format=torch.channels_last)
    finish = getattr(torch, batch.device.type).synchronize

    def call():
        with torch.inference_mode():
            output = model(batch)
        finish()
        return output

    return call


def latency(calls: dict[str, Callable[[], object]], repetitions: int = 50, warm_up: int = 10) -> pd.DataFrame:
    """Steady-state time of several calls, measured in turn so that drift of the machine meets all of them.

    Parameters
    ----------
    calls : dict
        Name -> function without arguments that returns when the work is done.
    repetitions : int
        Measured rounds, at least 6 (fewer give no interval).
    warm_up : int
        Rounds before, which are not counted.

    Returns
    -------
    DataFrame
        Index ``name``; ``median``, with its 95 % interval ``low`` to ``high`` (from order statistics, without an
        assumption on the distribution; `scipy.stats.quantile_test`), milliseconds; ``n``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repetitions):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            elapsed = time.perf_counter() - started
            if turn >= warm_up:
                seconds[name].append(elapsed)
    rows = []
    for name, values in seconds.items():
        interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
        milliseconds = 1000 * np.array([np.median(values), interval.low, interval.high])
        rows.append({"name": name, **dict(zip(("median", "low", "high"), milliseconds)), "n": len(values)})
    return pd.DataFrame(rows).set_index("name")


_FIRST_CALLS = """
import json, sys, time, torch
from igkd.models import MobileNetV2
cuts = json.loads(sys.argv[1])
models = [MobileNetV2(10, cut).eval() for cut in cuts]
image = torch.rand(1, 3, 32, 32)
seconds = []
for model in models:
    started = time.perf_counter()
    with torch.no_grad():
        model(image)
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds))
"""


def first_calls(cuts: tuple[int, ...]) -> list[float]:
    """Seconds of each network's very first call on one image, one network after the other in a fresh process.

    This is how the released code times its models (one call each, the teacher first, nothing repeated), so the first
    network also pays for whatever PyTorch sets up once.

    Parameters
    ----------
    cuts : tuple of int
        Blocks removed, in the order of the calls; 0 is the teacher.
    """
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_CALLS, json.dumps(cuts)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
