"""How arithmetic is done on this machine: device, precision, memory layout.

None of these choices is part of a run's description: they change seconds and the last digits, not the experiment. Sizes
of batches in which a network is only read are chosen where it is (`igkd.training`, `igkd.attribution`). GPUs of Apple's
are not used: we have none on which to check gradients.
"""

import ctypes
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igkd.errors import InputError


@dataclass(frozen=True)
class Compute:
    """Device and precision of a training or an evaluation.

    Attributes
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    bfloat16 : bool
        Whether convolutions run in bfloat16 (weights, losses and statistics stay in float32).
    """

    device: str
    bfloat16: bool

    def autocast(self):
        """Context in which the network's forward pass runs."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bfloat16)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device in the memory layout that is fastest there."""
        if self.device == "cpu" and self.bfloat16:
            _replace_strided_depthwise(model)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def describe(self) -> dict:
        """What a record keeps about the machine."""
        cpu = _cpuinfo()
        name = cpu.get("model name") or platform.processor() or platform.machine()
        described = asdict(self) | {"name": name, "threads": torch.get_num_threads()}
        if self.device.startswith("cuda"):
            return described | {"name": torch.cuda.get_device_name(self.device)}
        # Clouds sell processors of several generations, which differ in the last digits, under one name.
        generation = [f"{field} {cpu[field]}" for field in CPU_GENERATION if cpu.get(field)]
        return described | ({"generation": ", ".join(generation)} if generation else {})


def machine_name(described: dict) -> str:
    """In words what `Compute.describe` gave: processor, threads, precision."""
    threads = f"{described['threads']} thread{'s' * (described['threads'] != 1)}"
    return f"{described['name']}, {threads}" + ", bfloat16" * described.get("bfloat16", False)


def pick_compute(device: str = "auto") -> Compute:
    """The fastest device here, or the one asked for.

    Raises
    ------
    InputError
        If `device` is not available.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device == "auto":
        device = available[0]
    if device not in available:
        raise InputError(f"device {device!r} is not available here; choose one of: auto, {', '.join(available)}")
    if device != "cpu":
        return Compute(device, torch.cuda.is_bf16_supported(including_emulation=False))
    _keep_freed_memory()
    # Without bfloat16 instructions the processor emulates them, slower than float32.
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return Compute(device, any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16")))


def _keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors give back, where it can be told to.

    By default glibc returns large blocks to the kernel, which must clear every page that the next step asks for: with
    batches of 64 images that took as long as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the options in malloc.h
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            mallopt(option, value)


#: Fields of /proc/cpuinfo that tell x86 processors apart; models of one family may differ in their instructions.
CPU_GENERATION = ("cpu family", "model", "stepping")


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


class _StridedDepthwise(torch.autograd.Function):
    """Depthwise 3x3 convolution with stride 2 whose input gradient goes through the stride-1 kernel.

    oneDNN has no fast bfloat16 kernel for the input gradient at stride 2: it takes 57 ms where the same gradient,
    spread over a zero grid, takes 5 ms at stride 1 (64 images, 144 channels, 32x32, two cores).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, 2, 1, 1, x.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        channels = x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        spread = torch.zeros_like(x)
        spread[:, :, ::2, ::2] = grad

        def gradients(at, stride, mask):
            return torch.ops.aten.convolution_backward(
                at, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], channels, mask
            )

        grad_x = gradients(spread, 1, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        grad_weight = gradients(grad, 2, [False, True, False])[1] if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


class StridedDepthwiseConv2d(nn.Conv2d):
    """A 3x3 depthwise convolution of stride 2 with a fast bfloat16 gradient on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _StridedDepthwise.apply(x.to(torch.bfloat16), self.weight.to(torch.bfloat16))


def _replace_strided_depthwise(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels and module.stride == (2, 2):
            module.__class__ = StridedDepthwiseConv2d  # which has the same weight, and only another gradient
