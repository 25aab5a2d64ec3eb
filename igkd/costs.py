"""What a network costs to run: parameters, operations, time; in PyTorch, and exported as ONNX in float32 and 8 bits."""

import copy
import json
import multiprocessing
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from igkd.attribution import evaluating
from igkd.device import Compute, machine_name
from igkd.errors import InputError
from igkd.images import ImageSet, as_input, spread
from igkd.models import BLOCKS_REMOVED, MobileNetV2, build, count_parameters
from igkd.records import write_atomically
from igkd.runs import Architecture
from igkd.training import predict

TOLERANCE = 1e-3  # of logits: float32 sums in another order
BATCH = 256
CALIBRATION_IMAGES = 128


def multiply_accumulates(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image of `size` (H, W) pixels.

    Counted by PyTorch's `FlopCounterMode`, which counts two operations for each.
    """
    image = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(model):
        model(image)
    return counter.get_total_flops() // 2


def sizes(
    cuts: Sequence[int] = (0, *BLOCKS_REMOVED), num_classes: int = 10, size: tuple[int, int] = (32, 32)
) -> pd.DataFrame:
    """What networks cost whatever the machine, beside the teacher.

    Parameters
    ----------
    cuts : sequence of int
        Blocks removed; by default the teacher and the paper's eight students.
    num_classes : int
    size : (H, W)
        Of the images, pixels.

    Returns
    -------
    DataFrame
        One row a network: ``blocks removed``, ``parameters``, ``compression factor``, ``weights (kB)``
        (of 1,000 bytes, float32), ``million MACs``, ``MAC ratio``.
    """
    teacher, *operations = (multiply_accumulates(MobileNetV2(num_classes, cut), size) for cut in (0, *cuts))
    table = pd.DataFrame({"blocks removed": cuts})
    table["parameters"] = [count_parameters(cut, num_classes) for cut in cuts]
    table["compression factor"] = count_parameters(0, num_classes) / table["parameters"]
    table["weights (kB)"] = 4 * table["parameters"] / 1e3
    table["million MACs"], table["MAC ratio"] = np.array(operations) / 1e6, teacher / np.array(operations)
    return table


def forward_call(model: nn.Module, batch: Tensor) -> Callable[[], Tensor]:
    """A call that sends `batch` (B, 3, H, W) through a PyTorch network and waits for the device, for `latency`."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).eval()
    batch = batch.to(next(model.parameters()).device).contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            output = model(batch)
        getattr(torch, batch.device.type).synchronize()
        return output

    return call


def latency(calls: dict[str, Callable[[], object]], repetitions: int, warm_up: int = 3) -> pd.DataFrame:
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
    rounds = [{name: _seconds(call) for name, call in calls.items()} for _ in range(warm_up + repetitions)]
    seconds = pd.DataFrame(rounds)[warm_up:]
    ratios = seconds.rdiv(seconds.iloc[:, 0], axis=0)
    columns = ["median", "low", "high", "ratio", "ratio_low", "ratio_high", "n"]
    rows = [[*_median(1000 * seconds[name]), *_median(ratios[name]), repetitions] for name in calls]
    return pd.DataFrame(rows, pd.Index(calls, name="name"), columns)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _median(values: pd.Series) -> tuple[float, float, float]:
    interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    return float(np.median(values)), float(interval.low), float(interval.high)


def steady_state(networks: Sequence[Architecture], rounds: dict[int, int], device: str = "cpu") -> pd.DataFrame:
    """Latency of networks with fresh weights in PyTorch, float32, 32x32 pixels: what weights hold does not change it.

    Parameters
    ----------
    networks : sequence of Architecture
        The first is what the others are compared with.
    rounds : dict
        Batch size -> measured rounds, at least 6; see `latency`.
    device : str

    Returns
    -------
    DataFrame
        One row a network and batch size: ``blocks_removed``, ``batch_size``, then as `latency` without
        its index.
    """
    models = {each: build(each, 10, None, torch.Generator().manual_seed(0)).to(device) for each in networks}
    tables = []
    for batch_size, repetitions in rounds.items():
        batch = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        table = latency({each: forward_call(model, batch) for each, model in models.items()}, repetitions)
        of = [{"blocks_removed": network.blocks_removed, "batch_size": batch_size} for network in models]
        tables.append(pd.DataFrame(of).join(table.reset_index(drop=True)))
    return pd.concat(tables, ignore_index=True)


class Measurements:
    """Tables that were measured once, in a JSON file with the machine they are of; delete it to measure again.

    Parameters
    ----------
    path : path
    machine : dict, optional
        From `igkd.device.Compute.describe`; what the file holds of another machine or of other versions does not
        count. If not given, what the file holds is shown, whichever machine it is of.

    Raises
    ------
    InputError
        If the file is damaged, or needed and not there.
    """

    def __init__(self, path: Path, machine: dict | None = None):
        self.path, self.measures = Path(path), machine is not None
        here = {"machine": machine, "versions": {"python": platform.python_version(), "torch": torch.__version__}}
        try:
            kept = here if self.measures and not self.path.exists() else json.loads(self.path.read_text())
            is_of_here = {name: kept[name] for name in here} == here
            kept["machine"]["name"], kept["versions"]["torch"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no measurements ({error!r}); delete it, run notebook 07 again") from error
        self.content = here if self.measures and not is_of_here else kept

    @property
    def machine(self) -> str:
        """The machine in words."""
        machine = self.content["machine"]
        return f"{machine_name(machine | {'bfloat16': False})} ({machine['device']})"  # times are of float32

    def __str__(self) -> str:
        return f"measured on {self.machine}, torch {self.content['versions']['torch']}; kept in {self.path.name}"

    def once(self, name: str, of: dict, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table `name`, measured now unless it is kept and of the same `of` (what and how, in JSON's types)."""
        of = json.loads(json.dumps(of))
        if self.content.get(name, {}).get("of") != of:
            if not self.measures:
                raise InputError(f"{self.path} holds no {name} of what this profile has; to measure it, get the images")
            self.content = self.content | {name: {"of": of, "rows": measure().to_dict("records")}}
            write_atomically(self.path, (json.dumps(self.content, indent=1) + "\n").encode())
        return self.rows(name)

    def rows(self, name: str) -> pd.DataFrame:
        """The table `name` as it is kept; InputError if it is not."""
        if name not in self.content:
            raise InputError(f"{self.path} has no measurement {name}; execute notebook 07 again")
        return pd.DataFrame(self.content[name]["rows"])


def first_calls(orders: dict[str, tuple[int, ...]], rounds: int = 3) -> pd.DataFrame:
    """Time of each network's very first call on one image, one network after the other in a fresh process.

    This is how the released code times its models (one call each, the teacher first, nothing repeated), so the first
    network also pays for whatever PyTorch sets up once.

    Parameters
    ----------
    orders : dict
        Name of an order -> blocks removed, in the order of the calls; 0 is the teacher.
    rounds : int
        Fresh processes of each order.

    Returns
    -------
    DataFrame
        ``order``, ``round``, ``blocks_removed``, ``milliseconds``.
    """
    rows = []
    for number, (name, cuts) in product(range(rounds), orders.items()):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            rows += [(name, number, *each) for each in zip(cuts, fresh.submit(_call_each, cuts).result())]
    return pd.DataFrame(rows, columns=["order", "round", "blocks_removed", "milliseconds"])


def _call_each(cuts: tuple[int, ...]) -> list[float]:
    """Milliseconds of one call of each network in this process."""
    models = [MobileNetV2(10, cut).eval() for cut in cuts]
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        return [1e3 * _seconds(partial(model, image)) for model in models]


def export_onnx(model: MobileNetV2, path: Path, images: np.ndarray) -> float:
    """Write a network as ONNX and check its outputs against PyTorch's.

    Parameters
    ----------
    model : MobileNetV2
    path : path
        Input ``images`` float32 (batch, 3, H, W) in [0, 1], output ``logits`` (batch, num_classes).
    images : ndarray (N, H, W, 3) uint8
        For the check; they also set H and W.

    Returns
    -------
    float
        Largest difference of a logit.

    Raises
    ------
    InputError
        If an output differs by more than `TOLERANCE`; the file is removed.
    """
    model, path = copy.deepcopy(model).to("cpu").eval(), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    shapes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated parts
        x = (as_input(images[:2]).contiguous(),)
        torch.onnx.export(model, x, str(path), dynamic_shapes=shapes, external_data=False, verbose=False, **names)
    expected = predict(model, images, Compute("cpu", bfloat16=False)).numpy()
    difference = float(np.abs(predict_onnx(path, images) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        path.unlink()
        raise InputError(f"the exported network differs from PyTorch's by {difference:.2g}; it is not kept")
    return difference


def quantize(path: Path, quantized: Path, images: np.ndarray) -> None:
    """Write an 8-bit version of an ONNX file: static quantisation, weights per channel.

    Parameters
    ----------
    path, quantized : path
    images : ndarray (N, H, W, 3) uint8
        Typical images, a few hundred, from which the ranges of the activations are taken.
    """
    # Here and below, because every training imports this module, and ONNX Runtime takes half a second.
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        batches = ({"images": as_input(part).contiguous().numpy()} for part in torch.from_numpy(images).split(32))

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    prepared = Path(quantized).with_suffix(".prepared")
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    try:
        quant_pre_process(str(path), str(prepared))
        quantize_static(str(prepared), str(quantized), Images(), per_channel=True, **types)
    finally:
        prepared.unlink(missing_ok=True)


def _network(path: Path, threads: int = 0) -> Callable[[Tensor], np.ndarray]:
    """An ONNX file as a function of a batch (B, 3, H, W); `threads` of the processor, 0 for all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait actively for the next call take the cores of what is measured, or runs, beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: opened.run(None, {"images": batch.contiguous().numpy()})[0]


def predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits (N, num_classes) float32 of uint8 images (N, H, W, 3)."""
    network = _network(path)
    return np.concatenate([network(as_input(part)) for part in torch.from_numpy(images).split(BATCH)])


def compare_runtimes(
    models: dict[str, MobileNetV2], images: ImageSet, rounds: dict[int, int], folder: Path
) -> pd.DataFrame:
    """Accuracy, size and time of networks in PyTorch and exported, in float32 and in 8 bits, on the processor.

    Parameters
    ----------
    models : dict
        Name -> network.
    images : ImageSet
        `CALIBRATION_IMAGES` of the training images set the ranges of the activations.
    rounds : dict
        Batch size -> measured rounds. The calls of PyTorch are made in turn, and then those of ONNX Runtime, see
        `latency`; each ratio is to the first network in PyTorch, or in ONNX Runtime in float32.
    folder : path
        Where the files are written.

    Returns
    -------
    DataFrame
        One row a network, runtime and batch size: ``network``, ``runtime``, ``batch_size``, ``accuracy`` (of the test
        images), ``agreement`` (share of them with PyTorch's answer), ``file (kB)`` (NaN for PyTorch), then as `latency`
        without its index.
    """
    test, rows, calls = images.test_images, [], {}
    for number, (name, model) in enumerate(models.items()):
        full, small = Path(folder) / f"{number}-float32.onnx", Path(folder) / f"{number}-int8.onnx"
        export_onnx(model, full, test[:64])
        quantize(full, small, images.train_images[spread(images.n_train, CALIBRATION_IMAGES)])
        plain = predict(model, test, Compute("cpu", bfloat16=False)).argmax(1).numpy()
        for runtime, path in (("PyTorch, float32", None), ("ONNX, float32", full), ("ONNX, int8", small)):
            answers = predict_onnx(path, test).argmax(1) if path else plain
            of = {
                "accuracy": float((answers == images.test_labels).mean()),
                "agreement": float((answers == plain).mean()),
                "file (kB)": path.stat().st_size / 1e3 if path else float("nan"),
            }
            network = _network(path, torch.get_num_threads()) if path else None
            for batch_size in rounds:
                # PyTorch and ONNX Runtime are not called in turn: PyTorch's threads wait actively, too.
                batch = as_input(test[:batch_size]).contiguous()
                turns = calls.setdefault((batch_size, path is None), {})
                turns[len(rows)] = partial(network, batch) if path else forward_call(model, batch)
                rows.append({"network": name, "runtime": runtime, "batch_size": batch_size} | of)
    timed = pd.concat(latency(turns, rounds[batch_size]) for (batch_size, _), turns in calls.items())
    return pd.DataFrame(rows).join(timed)
