"""What a network costs to run: parameters, operations, memory, time."""

import json
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from igkd.device import machine_name
from igkd.errors import InputError
from igkd.models import BLOCKS_REMOVED, Architecture, MobileNetV2, count_parameters
from igkd.runs import write_atomically


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


def costs(
    networks: Iterable[Architecture], num_classes: int = 10, size: tuple[int, int] = (32, 32), batch_size: int = 1
) -> pd.DataFrame:
    """What networks cost whatever the machine, beside the teacher.

    Parameters
    ----------
    networks : iterable of Architecture
    num_classes : int
    size : (H, W)
        Of the images, pixels.
    batch_size : int
        For the activations.

    Returns
    -------
    DataFrame
        One row a network: ``blocks removed``, ``width``, ``parameters``, ``compression factor``, ``weights (kB)``
        (of 1,000 bytes, float32), ``million MACs``, ``MAC ratio``, ``activations (kB)`` (`peak_activation_memory`).
    """
    teacher = MobileNetV2(num_classes)
    parameters, operations = count_parameters(teacher), multiply_accumulates(teacher, size)
    rows = []
    for network in networks:
        model = MobileNetV2(num_classes, network.blocks_removed, network.width)
        count, macs = count_parameters(model), multiply_accumulates(model, size)
        rows.append(
            {
                "blocks removed": network.blocks_removed,
                "width": network.width,
                "parameters": count,
                "compression factor": parameters / count,
                "weights (kB)": 4 * count / 1e3,
                "million MACs": macs / 1e6,
                "MAC ratio": operations / macs,
                "activations (kB)": peak_activation_memory(model, size, batch_size) / 1e3,
            }
        )
    return pd.DataFrame(rows)


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
    columns = ["blocks removed", "parameters", "compression factor", "million MACs", "MAC ratio"]
    return costs(map(Architecture, (0, *BLOCKS_REMOVED)), num_classes, size)[columns]


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
        assumption on the distribution; `scipy.stats.quantile_test`), milliseconds; ``ratio``, ``ratio_low``,
        ``ratio_high``: the same of the time of the first call over that of this one in the same round; ``n``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repetitions):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            elapsed = time.perf_counter() - started
            if turn >= warm_up:
                seconds[name].append(elapsed)
    first = np.array(next(iter(seconds.values())))
    rows = []
    for name, values in seconds.items():
        time_taken = _median(1000 * np.array(values), ("median", "low", "high"))
        ratio = _median(first / np.array(values), ("ratio", "ratio_low", "ratio_high"))
        rows.append({"name": name} | time_taken | ratio | {"n": len(values)})
    return pd.DataFrame(rows).set_index("name")


def _median(values: np.ndarray, names: tuple[str, str, str]) -> dict[str, float]:
    interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    return dict(zip(names, map(float, (np.median(values), interval.low, interval.high)), strict=True))


def steady_state(
    networks: Iterable[Architecture],
    rounds: dict[int, int],
    device: str = "cpu",
    num_classes: int = 10,
    size: tuple[int, int] = (32, 32),
) -> pd.DataFrame:
    """Latency of networks with fresh weights in PyTorch, float32: what they hold does not change their time.

    Parameters
    ----------
    networks : iterable of Architecture
        The first is what the others are compared with.
    rounds : dict
        Batch size -> measured rounds, at least 6; see `latency`.
    device : str
    num_classes : int
    size : (H, W)
        Of the images, pixels.

    Returns
    -------
    DataFrame
        One row a network and batch size: ``blocks_removed``, ``width``, ``batch_size``, then as `latency` without
        its index.
    """
    networks = list(networks)
    models = [each.build(num_classes, None, torch.Generator().manual_seed(0)).to(device) for each in networks]
    tables = []
    for batch_size, repetitions in rounds.items():
        batch = torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(0))
        calls = {each.name: forward_call(model, batch) for each, model in zip(networks, models, strict=True)}
        table = latency(calls, repetitions, warm_up=3).reset_index(drop=True)
        table.insert(0, "batch_size", batch_size)
        table.insert(0, "width", [each.width for each in networks])
        table.insert(0, "blocks_removed", [each.blocks_removed for each in networks])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


class Measurements:
    """Tables that were measured on this machine, kept in a JSON file, so that they are measured once.

    What the file holds of another machine or of other versions is dropped by the first new measurement.

    Parameters
    ----------
    path : path
        Delete it to measure again.
    machine : dict, optional
        From `igkd.device.Compute.describe`. Without it nothing is measured: what the file holds is shown, whichever
        machine it is of.

    Raises
    ------
    InputError
        If the file is to be shown and is damaged or not there.
    """

    def __init__(self, path: Path, machine: dict | None = None):
        self.path = Path(path)
        self.measures = machine is not None
        if self.measures:
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            self.of = {"machine": machine, "versions": versions}
        else:
            content = _read_measurements(self.path)
            self.of = {name: content[name] for name in ("machine", "versions")}

    @property
    def machine(self) -> str:
        """The machine in words."""
        machine = self.of["machine"]
        return f"{machine_name(machine)} ({machine['device']})"

    def __str__(self) -> str:
        kept = "delete it to measure again" if self.measures else "to measure again, get the images"
        return f"measured on {self.machine}, torch {self.of['versions']['torch']}; kept in {self.path.name}, {kept}"

    def once(self, name: str, of: dict, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table, measured now unless it is kept.

        Parameters
        ----------
        name : str
        of : dict
            What is measured and how, in JSON's types; a kept table of something else is measured again.
        measure : callable
            Returns the table.

        Raises
        ------
        InputError
            If the file is damaged, or the table is not in it and must not be measured.
        """
        content = _read_measurements(self.path) if self.path.exists() else self.of
        content = content if content.items() >= self.of.items() else self.of
        of = json.loads(json.dumps(of))
        if name not in content or content[name]["of"] != of:
            if not self.measures:
                raise InputError(f"{self.path} holds no {name} of what this profile has; to measure it, get the images")
            content = content | {name: {"of": of, "rows": measure().to_dict("records")}}
            write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())
        return pd.DataFrame(content[name]["rows"])


def read_measurement(path: Path, name: str) -> tuple[pd.DataFrame, dict]:
    """A table that `Measurements` keeps, and the machine.

    Raises
    ------
    InputError
        If the file is damaged or does not hold the table.
    """
    content = _read_measurements(path)
    if name not in content:
        raise InputError(f"{path} has no measurement {name}; execute notebook 07 again")
    return pd.DataFrame(content[name]["rows"]), content["machine"]


def _read_measurements(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        content["machine"]["name"], content["versions"]
        for name in content.keys() - {"machine", "versions"}:
            content[name]["of"], content[name]["rows"]
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no measurements ({error}); delete it and execute notebook 07 again") from error


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


def first_calls(orders: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """Time of each network's very first call on one image, one network after the other in a fresh process.

    This is how the released code times its models (one call each, the teacher first, nothing repeated), so the first
    network also pays for whatever PyTorch sets up once.

    Parameters
    ----------
    orders : dict
        Name of an order -> blocks removed, in the order of the calls; 0 is the teacher.

    Returns
    -------
    DataFrame
        ``order``, ``blocks_removed``, ``milliseconds``.
    """
    rows = []
    for name, cuts in orders.items():
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_CALLS, json.dumps(cuts)], capture_output=True, text=True, check=True
        )
        for cut, seconds in zip(cuts, json.loads(done.stdout), strict=True):
            rows.append({"order": name, "blocks_removed": cut, "milliseconds": 1000 * seconds})
    return pd.DataFrame(rows)
