"""A network as someone would deploy it: ONNX, in float32 or quantised to 8 bits, run by ONNX Runtime on the CPU."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from igkd.errors import InputError
from igkd.models import MobileNetV2
from igkd.signals import as_input

TOLERANCE = 1e-3  # of logits: float32 sums in another order
BATCH = 256


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
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own that it does not export
        raise InputError(f"{path} cannot be opened by ONNX Runtime ({str(error).splitlines()[0]})") from error


def predict_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits (N, num_classes) float32 of uint8 images (N, H, W, 3)."""
    opened = session(path)
    parts = torch.from_numpy(images).split(BATCH)
    return np.concatenate([opened.run(None, {"images": as_input(part).contiguous().numpy()})[0] for part in parts])


def onnx_call(path: Path, batch: torch.Tensor, threads: int = 0) -> Callable[[], object]:
    """A call that sends `batch` (B, 3, H, W) through an ONNX file, for `igkd.cost.latency`."""
    opened, inputs = session(path, threads), {"images": batch.contiguous().numpy()}
    return lambda: opened.run(None, inputs)
