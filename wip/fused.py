"""Batch normalisation and ReLU6 in one pass each way, for training on CPUs (``batchnorm.cpp``)."""

import ctypes
import functools
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("batchnorm.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
GROUP = 32  # numbers that the C++ loops take at once


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled operator, or None without a working C++ compiler; built anew by each process, in about a second."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batchnorm.so")
        if subprocess.run([compiler, *FLAGS, SOURCE, "-o", path], capture_output=True).returncode:
            return None
        try:
            loaded = ctypes.CDLL(str(path))  # stays mapped when the file is gone
        except OSError:
            return None
    pointer, long, double, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_bool
    for name in NAMES.values():
        forward, backward = getattr(loaded, f"forward_{name}"), getattr(loaded, f"backward_{name}")
        forward.argtypes = [pointer] * 2 + [long] * 2 + [pointer] * 6 + [double] * 2 + [flag]
        backward.argtypes = [pointer] * 3 + [long] * 2 + [pointer] * 6 + [flag]
        forward.restype = backward.restype = None
    return loaded


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, relu6):
        y = torch.empty_like(x)
        mean, invstd = torch.empty_like(weight), torch.empty_like(weight)
        arrays = (weight, bias, running_mean, running_var, mean, invstd)
        function = getattr(library(), f"forward_{NAMES[x.dtype]}")
        pointers = [array.data_ptr() for array in arrays]
        function(x.data_ptr(), y.data_ptr(), x.numel(), x.shape[1], *pointers, momentum, eps, relu6)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.relu6 = relu6
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, mean, invstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        arrays = (weight, bias, mean, invstd, dweight, dbias)
        function = getattr(library(), f"backward_{NAMES[x.dtype]}")
        pointers = [array.data_ptr() for array in arrays]
        function(x.data_ptr(), dy.data_ptr(), dx.data_ptr(), x.numel(), x.shape[1], *pointers, ctx.relu6)
        return dx, dweight, dbias, None, None, None, None, None


class FusedBatchNormAct(nn.BatchNorm2d):
    """`BatchNorm2d`, followed by ReLU6 if `relu6`; in PyTorch's own operators wherever the fused one does not apply."""

    relu6 = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, then clamped to [0, 6] if `relu6`."""
        if not self._applies(x):
            x = super().forward(x)
            return nn.functional.relu6(x, inplace=True) if self.relu6 else x
        self.num_batches_tracked.add_(1)
        state = (self.weight, self.bias, self.running_mean, self.running_var)
        return _BatchNormAct.apply(x, *state, self.momentum, self.eps, self.relu6)

    def _applies(self, x: Tensor) -> bool:
        return (
            self.training
            and x.device.type == "cpu"
            and torch.get_num_threads() == 1
            and x.dtype in NAMES
            and x.dim() == 4
            and x.numel() > x.shape[1] == self.num_features
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.numel() % math.lcm(self.num_features, GROUP) == 0
            and self.affine
            and self.weight.dtype == torch.float32
            and self.track_running_stats
            and self.momentum is not None
            and library() is not None
        )


def fuse(model: nn.Module) -> nn.Module:
    """`model`, changed in place: every `BatchNorm2d` is fused with a ReLU6 that follows it; names stay the same."""
    for parent in list(model.modules()):
        if isinstance(parent, nn.Sequential):
            children = list(parent)
            for index, child in enumerate(children):
                if type(child) is nn.BatchNorm2d:
                    child.__class__ = FusedBatchNormAct
                    if index + 1 < len(children) and isinstance(children[index + 1], nn.ReLU6):
                        child.relu6 = True
                        parent[index + 1] = nn.Identity()
    return model
