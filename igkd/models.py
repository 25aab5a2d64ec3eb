"""MobileNetV2 for small images, cut after fewer blocks to make students, and the attention tap.

The network is torchvision's; only the strides (for 32x32 instead of 224x224) and the cutting are ours, so the
parameter names are torchvision's.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models import mobilenetv2

from igkd.errors import InputError
from igkd.runs import Architecture

#: (expansion, channels, repeats, stride of the first repeat), Sandler et al. 2018, table 2, with the first two
#: strides set to 1 for 32x32 images.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
NUM_FEATURES = 19  # stem, 17 blocks, head convolution

#: Number of trailing entries of ``features`` that the paper's students leave out, and for each the divider d of
#: the attention tap ``features[19 // d]``.
ATTENTION_DIVIDERS = {3: 2, 5: 2, 7: 2, 9: 4, 11: 4, 13: 4, 15: 8, 17: 20}
BLOCKS_REMOVED = tuple(ATTENTION_DIVIDERS)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018) for images of about 32x32 pixels.

    Parameters
    ----------
    num_classes : int
    blocks_removed : int, default 0
        Trailing entries of ``features`` to leave out, 0 to 18. With more than 0 the head convolution is gone too,
        and the classifier has no dropout, as in the paper's students.
    mean_std : pair of 3 floats, optional
        Channel means and standard deviations by which the input is standardised inside the network.

    Raises
    ------
    InputError
        If `blocks_removed` is out of its range.

    Notes
    -----
    Input: float (B, 3, H, W) in [0, 1]. Three blocks halve the image, so H and W should be multiples of 8.
    """

    def __init__(self, num_classes: int = 10, blocks_removed: int = 0, mean_std=None):
        super().__init__()
        if not 0 <= blocks_removed < NUM_FEATURES:
            raise InputError(f"blocks_removed must be 0 to {NUM_FEATURES - 1}, not {blocks_removed}")
        whole = mobilenetv2.MobileNetV2(num_classes, inverted_residual_setting=BLOCKS)
        whole.features[0][0].stride = (1, 1)  # 2 there, for 224x224
        self.features = whole.features[: NUM_FEATURES - blocks_removed]
        before = nn.Identity() if blocks_removed else nn.Dropout(0.2)
        self.classifier = nn.Sequential(before, nn.Linear(self.features[-1].out_channels, num_classes))
        mean, std = mean_std or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor, tap: int | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, num_classes); with `tap`, also the activation (B, C, h, w) of ``features[tap]``."""
        x = (x - self.mean) / self.std
        tapped = None
        for index, block in enumerate(self.features):
            x = block(x)
            if index == tap:
                tapped = x
        logits = self.classifier(x.mean((2, 3)))
        return logits if tap is None else (logits, tapped)


def build(architecture: Architecture, num_classes: int, mean_std, generator: torch.Generator) -> MobileNetV2:
    """The network with fresh weights, in training mode; `mean_std` (see `MobileNetV2`) is used only if `normalize`."""
    model = MobileNetV2(num_classes, architecture.blocks_removed, mean_std if architecture.normalize else None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def attention_tap(blocks_removed: int) -> int:
    """Index into ``features`` whose output is compared in attention transfer with a student of this cut.

    Parameters
    ----------
    blocks_removed : int
        One of `BLOCKS_REMOVED`.

    Returns
    -------
    int
        The same for teacher and student: 19 // d of `ATTENTION_DIVIDERS`.

    Raises
    ------
    InputError
        If the paper has no student of this cut.
    """
    if blocks_removed not in ATTENTION_DIVIDERS:
        raise InputError(f"the paper gives an attention tap for {BLOCKS_REMOVED} blocks removed, not {blocks_removed}")
    return NUM_FEATURES // ATTENTION_DIVIDERS[blocks_removed]


def count_parameters(blocks_removed: int, num_classes: int = 10) -> int:
    """Number of trainable numbers."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MobileNetV2(num_classes, blocks_removed).parameters())


def compression_factor(blocks_removed: int, num_classes: int = 10) -> float:
    """Parameters of the teacher over parameters of the student."""
    return count_parameters(0, num_classes) / count_parameters(blocks_removed, num_classes)


def pack_weights(model: MobileNetV2, **metadata: str) -> bytes:
    """The weights as the content of a safetensors file with `metadata` in its header."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, metadata)


def weights_metadata(path: Path) -> dict[str, str]:
    """The header that `pack_weights` wrote, without reading the weights.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file.

    Returns
    -------
    dict
        What was given, all as text; empty if the file has none.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights ({error}); fetch or train it again") from error


def load_weights(path: str | Path, num_classes: int = 10) -> MobileNetV2:
    """A network from our safetensors or from a PyTorch ``state_dict``.

    Parameters
    ----------
    path : path
        ``*.safetensors``, or a ``state_dict`` (read with ``weights_only=True``) of torchvision's names, ``features.*``
        and ``classifier.*``, for images in [0, 1].
    num_classes : int

    Returns
    -------
    MobileNetV2
        In evaluation mode; the cut is read off the weights.

    Raises
    ------
    InputError
        If the file is missing, damaged, or fits no network of this family.
    """
    path = Path(path)
    try:
        ours = path.suffix == ".safetensors"
        state = load_file(path) if ours else torch.load(path, map_location="cpu", weights_only=True)
        blocks = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("features.")), default=-1)
        known = len(state.get("classifier.1.weight", ()))
    # torch.load raises pickle, zip and runtime errors alike, with the advice to read the file without this protection.
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); fetch or train it again") from error
    if known not in (0, num_classes):
        raise InputError(f"{path} knows {known} classes, and the images are of {num_classes}; name all of its classes")
    try:
        model = MobileNetV2(num_classes, NUM_FEATURES - blocks)
        model.load_state_dict({"mean": model.mean, "std": model.std} | state)
    except (InputError, RuntimeError) as error:
        what = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} is no MobileNetV2 of this family, cut after some block: {what}") from error
    return model.eval()


def state_digest(model: nn.Module) -> str:
    """First 16 hex digits of a SHA-256 over all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return digest.hexdigest()[:16]
