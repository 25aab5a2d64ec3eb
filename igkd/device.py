"""How arithmetic is done on this machine: device, precision, memory layout, CUDA graphs.

Every choice that a measurement supports is made here and nowhere else, and goes into each record. None of them is part
of a run's description: they change seconds and the last digits, not the experiment.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igkd.errors import InputError, first_line


@dataclass(frozen=True)
class Compute:
    """Device and precision of a training or an evaluation.

    Attributes
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"mps"``, ...
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

    def stream(self):
        """Context of a training: on CUDA never the default stream, on which nothing can be captured."""
        if not self.device.startswith("cuda"):
            return nullcontext()
        current = torch.cuda.current_stream(self.device)
        if current != torch.cuda.default_stream(self.device):
            return nullcontext()
        own = torch.cuda.Stream(self.device)
        own.wait_stream(current)
        return torch.cuda.stream(own)

    @property
    def capture(self) -> Callable | None:
        """What captures a step for `Replayed`, where launching its kernels one by one costs more than running them."""
        return _cuda_graph if self.device.startswith("cuda") else None

    def describe(self) -> dict:
        """What a record keeps about the machine."""
        described = asdict(self) | {"name": _processor_name(), "threads": torch.get_num_threads()}
        if self.device.startswith("cuda"):
            return described | {"name": torch.cuda.get_device_name(self.device)}
        # Clouds sell processors of several generations, which differ in the last digits, under one name.
        generation = [f"{field} {value}" for field in CPU_GENERATION if (value := _processor(field))]
        return described | ({"generation": ", ".join(generation)} if generation else {})


def machine_name(described: dict) -> str:
    """In words what `Compute.describe` gave: processor and threads."""
    return f"{described['name']}, {described['threads']} thread{'s' * (described['threads'] != 1)}"


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
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if device == "auto":
        device = available[0]
    if device not in available:
        raise InputError(f"device {device!r} is not available here; choose one of: auto, {', '.join(available)}")
    if device == "cpu":
        _keep_freed_memory()
        # Without bfloat16 instructions the processor emulates them, slower than float32.
        able = getattr(torch.cpu, "get_capabilities", dict)()
        bfloat16 = any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    else:
        bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return Compute(device, bfloat16)


class Replayed:
    """A step of training that is captured after a few calls and replayed from then on, where that can be done.

    The calls before are steps of the training like any other, so nothing has to be undone. In them libraries and the
    optimizer make what they make once.

    Parameters
    ----------
    step : callable
        Takes tensors on the device, of the same shapes in every call, and returns tensors, which the next replay
        overwrites. It must read no value back, because what depends on it would not be captured.
    optimizer : Optimizer
        Which `step` calls.
    capture : callable or None
        Given a function without arguments, notes what it would do and does not do it; returns a function that does it
        and returns the same. With None each call is a plain one.
    log : callable
        Gets a line if the step cannot be captured; calls are plain ones then.
    """

    PLAIN_CALLS = 3

    def __init__(self, step: Callable, optimizer, capture: Callable | None, log: Callable[[str], None]):
        self._step, self._optimizer, self._capture, self._log = step, optimizer, capture, log
        self._calls, self._replay = 0, None

    @property
    def is_replayed(self) -> bool:
        """Whether the step has been captured."""
        return self._replay is not None

    def __call__(self, *inputs: Tensor):
        """What `step` returns."""
        if self._calls == self.PLAIN_CALLS and self._capture is not None:
            self._try_to_capture(inputs)
        self._calls += 1
        if self._replay is None:
            return self._step(*inputs)
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return self._replay()

    def _try_to_capture(self, inputs: tuple[Tensor, ...]) -> None:
        # A replay finds its inputs, and whatever changes from step to step, where they were when it was captured.
        self._inputs = [tensor.clone() for tensor in inputs]
        device = inputs[0].device
        self._rates = [torch.tensor(float(group["lr"]), device=device) for group in self._optimizer.param_groups]
        try:
            with _rates_on_device(self._optimizer, self._rates):
                self._replay = self._capture(lambda: self._step(*self._inputs))
        except RuntimeError as error:
            self._log(f"a step cannot be captured ({first_line(error)}); its operations are launched one by one")


@contextmanager
def _rates_on_device(optimizer, rates: list[Tensor]):
    """Have the optimizer read its learning rates from tensors; Adam must be told that it is captured."""
    groups = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
    try:
        yield
    finally:
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group |= before


#: Trainings in threads side by side capture and replay in turn: both set the state of the device's random numbers.
_GRAPHS = threading.Lock()


def _cuda_graph(call: Callable) -> Callable:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    # "thread_local": other threads may allocate memory meanwhile.
    with _GRAPHS, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = call()

    def replay():
        with _GRAPHS:
            graph.replay()
        return outputs

    return replay


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


CPUINFO = Path("/proc/cpuinfo")
#: Its fields that tell x86 processors apart; models of one family may differ in their instructions.
CPU_GENERATION = ("cpu family", "model", "stepping")


def _processor_name() -> str:
    return _processor("model name") or platform.processor() or platform.machine()


def _processor(field: str) -> str | None:
    """What Linux says of the processor, on x86."""
    try:
        with CPUINFO.open() as lines:
            fields = (line.split(":", 1) for line in lines if ":" in line)
            return next(value.strip() for name, value in fields if name.strip() == field)
    except (OSError, StopIteration):
        return None


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
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.groups == child.in_channels and child.stride == (2, 2):
                fast = StridedDepthwiseConv2d(
                    child.in_channels, child.out_channels, 3, 2, 1, groups=child.groups, bias=False
                )
                fast.weight = child.weight
                setattr(parent, name, fast)
