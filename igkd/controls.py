"""What becomes of the teacher's signals before a student learns from them: as described, as released, or a control.

A control changes one thing. Those from `other_image` on change the map alone. Each function takes the signal of one
kind, a tensor (N, ...) of each image in data-set order (for `released` of the augmented images), and a generator, and
gives a tensor of the same shape and precision.
"""

import torch
from torch import Tensor

KINDS = ("logits", "attention", "maps")


def described(signal: Tensor, generator: torch.Generator) -> Tensor:
    """Logits, attention map and IG map of the image itself, moved with its crop and mirror."""
    return signal


def released(signal: Tensor, generator: torch.Generator) -> Tensor:
    """Each kind from one random crop and mirror, in its own random order, never moved with the image."""
    return permuted(signal, generator)


def permuted(signal: Tensor, generator: torch.Generator) -> Tensor:
    """Each kind of the unaugmented images in its own random order, moved with the image."""
    return signal[torch.randperm(len(signal), generator=generator)]


def other_image(signal: Tensor, generator: torch.Generator) -> Tensor:
    """The IG map of another image."""
    ring = torch.randperm(len(signal), generator=generator)
    others = torch.empty_like(ring)
    others[ring] = ring.roll(1)
    return signal[others]


def noise(signal: Tensor, generator: torch.Generator) -> Tensor:
    """Independent uniform noise as the map."""
    return torch.rand(signal.shape, generator=generator).to(signal.dtype)


def dimming(signal: Tensor, generator: torch.Generator) -> Tensor:
    """No map: what is overlaid becomes 0.5 x image."""
    return torch.zeros_like(signal)


MAP_CONTROLS = {control.__name__: control for control in (other_image, noise, dimming)}
VARIANTS = {variant.__name__: variant for variant in (described, released, permuted)} | MAP_CONTROLS


def vary(variant: str, kind: str, signal: Tensor, generator: torch.Generator) -> Tensor:
    """The signal of one kind (of `KINDS`) as a variant (of `VARIANTS`) has it."""
    return signal if variant in MAP_CONTROLS and kind != "maps" else VARIANTS[variant](signal, generator)
