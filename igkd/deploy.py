"""A network as someone would deploy it: ONNX, in float32 or quantised to 8 bits, run by ONNX Runtime on the CPU."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from igkd.cost import forward_call, latency
from igkd.device import Compute
from igkd.errors import InputError, first_line
from igkd.images import ImageSet
from igkd.models import MobileNetV2
from igkd.signals import as_input
from igkd.training import predict

TOLERANCE = 1e-3  # of logits: float32 sums in another order
BATCH = 256
CALIBRATION_IMAGES = 128


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
    model = model.to("cpu").eval()
    x = as_input(images[:2]).contiguous()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated parts
        torch.onnx.export(
            model,
            (x,),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    with torch.inference_mode():
        expected = torch.cat([model(as_input(part)) for part in torch.from_numpy(images).split(BATCH)]).numpy()
    difference = float(np.abs(predict_onnx(path, images) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        Path(path).unlink()
        raise InputError(f"the exported network differs from PyTorch's by {difference:.2g}; {path} is removed")
    return difference


def quantize(path: Path, quantized: Path, images: np.ndarray) -> None:
    """Write an 8-bit version of an ONNX file: static quantisation, weights per channel.

    Parameters
    ----------
    path, quantized : path
    images : ndarray (N, H, W, 3) uint8
        Typical images, a few hundred, from which the ranges of the activations are taken.
    """

    class Images(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(torch.from_numpy(images).split(32))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": as_input(batch).contiguous().numpy()}

    prepared = Path(quantized).with_suffix(".prepared")
    try:
        quant_pre_process(str(path), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink(missing_ok=True)


def session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file; `threads` of the processor, 0 for all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait actively for the next call take the cores of what is measured, or runs, beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own that it does not export
        raise InputError(f"{path} cannot be opened by ONNX Runtime ({first_line(error)})") from error


def predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits (N, num_classes) float32 of uint8 images (N, H, W, 3)."""
    opened = session(path)
    parts = torch.from_numpy(images).split(BATCH)
    return np.concatenate([opened.run(None, {"images": as_input(part).contiguous().numpy()})[0] for part in parts])


def onnx_call(path: Path, batch: torch.Tensor, threads: int = 0) -> Callable[[], object]:
    """A call that sends `batch` (B, 3, H, W) through an ONNX file, for `igkd.cost.latency`."""
    opened, inputs = session(path, threads), {"images": batch.contiguous().numpy()}
    return lambda: opened.run(None, inputs)


def compare_runtimes(
    models: dict[str, MobileNetV2], images: ImageSet, rounds: dict[int, int], folder: Path
) -> pd.DataFrame:
    """Accuracy, size and time of networks in PyTorch and exported, in float32 and in 8 bits, on the processor.

    Parameters
    ----------
    models : dict
        Name -> network.
    images : ImageSet
        The first `CALIBRATION_IMAGES` training images set the ranges of the activations.
    rounds : dict
        Batch size -> measured rounds. The calls of PyTorch are made in turn, and then those of ONNX Runtime, see
        `igkd.cost.latency`; each ratio is to the first network in PyTorch, or in ONNX Runtime in float32.
    folder : path
        Where the files are written.

    Returns
    -------
    DataFrame
        One row a network, runtime and batch size: ``network``, ``runtime``, ``batch_size``, ``accuracy`` (of the test
        images), ``file (kB)`` (NaN for PyTorch), then as `igkd.cost.latency` without its index.
    """
    # PyTorch and ONNX Runtime are not called in turn: PyTorch's threads wait actively, too.
    processor, rows, calls = Compute("cpu", bfloat16=False), [], {}
    for number, (name, model) in enumerate(models.items()):
        model = model.to("cpu")
        full, small = Path(folder) / f"{number}-float32.onnx", Path(folder) / f"{number}-int8.onnx"
        export_onnx(model, full, images.test_images[:64])
        quantize(full, small, images.train_images[:CALIBRATION_IMAGES])
        for runtime, path in (("PyTorch, float32", None), ("ONNX, float32", full), ("ONNX, int8", small)):
            test = images.test_images
            logits = predict_onnx(path, test) if path else predict(model, test, processor).numpy()
            accuracy = float((logits.argmax(1) == images.test_labels).mean())
            size = path.stat().st_size / 1e3 if path else float("nan")
            for batch_size in rounds:
                batch = as_input(test[:batch_size])
                call = onnx_call(path, batch, torch.get_num_threads()) if path else forward_call(model, batch)
                calls.setdefault((batch_size, path is None), {})[len(rows)] = call
                rows.append(
                    {"network": name, "runtime": runtime, "batch_size": batch_size}
                    | {"accuracy": accuracy, "file (kB)": size}
                )
    timed = pd.concat(latency(turns, rounds[batch_size], warm_up=3) for (batch_size, _), turns in calls.items())
    return pd.DataFrame(rows).join(timed)
