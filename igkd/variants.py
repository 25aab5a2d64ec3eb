"""What becomes of the teacher's signals before a student learns from them: as described, as released, or a control.

A control changes one thing. The maps of all controls but the other attributions are made from the described signals
each time, in a second or two; nothing here needs the teacher.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Every variant of the signals and what it is. From ``same_class`` on only the map differs from ``described``, but
#: for ``uniform`` and ``online``, where only the logits do.
VARIANTS = {
    "described": "logits, attention map and IG map of the image itself, moved with its crop and mirror",
    "released": "each kind from one random crop and mirror, in its own random order, never moved with the image",
    "permuted": "each kind of the unaugmented images in its own random order, moved with the image",
    "same_class": "the IG map of another image of the same class",
    "other_image": "the IG map of another image of any class",
    "pixels_shuffled": "the image's IG map with its pixels in random order",
    "phase_scrambled": "the image's IG map with random Fourier phases, cut off at 0",
    "noise": "independent uniform noise as the map",
    "luminance": "the luminance of the image as its map",
    "edges": "the Sobel gradient magnitude of the luminance as the map",
    "dimming": "no map: what is overlaid becomes 0.5 x image",
    "saliency": "the absolute input gradient in place of IG",
    "smoothgrad": "the input gradient averaged over noisy copies, in place of IG",
    "gradcam": "the class activation of the last convolution, in place of IG",
    "uniform": "logits of 0, the same for all classes: at temperature 1 label smoothing of strength alpha",
    "online": "logits of the very view that the student sees, overlay included, computed at each step",
}
#: Those that replace IG by another attribution.
ATTRIBUTIONS = ("saliency", "smoothgrad", "gradcam")
KINDS = ("logits", "attention", "maps")
#: Red, green and blue in luminance (ITU-R BT.601).
LUMINANCE = (0.299, 0.587, 0.114)

_IMAGES_AT_ONCE = 1024  # so that 50,000 images do not need gigabytes beside the maps


def vary(
    variant: str, kind: str, signal: Tensor, images: np.ndarray, labels: np.ndarray, generator: torch.Generator
) -> Tensor:
    """The signal of one kind as a variant has it.

    Parameters
    ----------
    variant : str
        One of `VARIANTS`.
    kind : {"logits", "attention", "maps"}
    signal : Tensor (N, ...)
        Of each image, in data-set order; for ``released`` of the augmented images, for `ATTRIBUTIONS` the maps of that
        attribution.
    images : ndarray (N, H, W, 3) uint8
    labels : ndarray (N,) of integers
    generator : Generator

    Returns
    -------
    Tensor
        Of the shape and precision of `signal`; `signal` itself where the variant leaves this kind alone.
    """
    if variant in ("permuted", "released"):
        return signal[torch.randperm(len(signal), generator=generator)]
    if variant == "uniform" and kind == "logits":
        return torch.zeros_like(signal)
    if kind == "maps" and variant in MAP_CONTROLS:
        return MAP_CONTROLS[variant](signal, images, labels, generator)
    return signal


def _same_class(maps, images, labels, generator):
    return maps[_another(torch.from_numpy(labels), generator)]


def _other_image(maps, images, labels, generator):
    return maps[_another(torch.zeros(len(maps)), generator)]


def _another(groups: Tensor, generator: torch.Generator) -> Tensor:
    """For each row another one of its group, each used once; itself if it is alone."""
    chosen = torch.empty(len(groups), dtype=torch.int64)
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        ring = members[torch.randperm(len(members), generator=generator)]
        chosen[ring] = ring.roll(1)
    return chosen


def _pixels_shuffled(maps, images, labels, generator):
    parts = maps.flatten(1).split(_IMAGES_AT_ONCE)
    orders = (torch.rand(part.shape, generator=generator).argsort(1) for part in parts)
    return torch.cat([part.gather(1, order) for part, order in zip(parts, orders)]).view_as(maps)


def _phase_scrambled(maps, images, labels, generator):
    scrambled = []
    for part in maps.float().split(_IMAGES_AT_ONCE):
        # The phases of a real image of noise have the symmetry that makes the result real.
        phase = torch.fft.rfft2(torch.randn(part.shape, generator=generator)).angle()
        phase[:, 0, 0] = 0  # the mean stays, until negative values are cut off
        spectrum = torch.fft.rfft2(part) * torch.polar(torch.ones_like(phase), phase)
        scrambled.append(torch.fft.irfft2(spectrum, part.shape[1:]).clamp_min(0))
    return torch.cat(scrambled).to(maps.dtype)


def _noise(maps, images, labels, generator):
    return torch.rand(maps.shape, generator=generator).to(maps.dtype)


def _luminance(maps, images, labels, generator):
    parts = torch.from_numpy(images).split(_IMAGES_AT_ONCE)
    return torch.cat([(part / 255 @ torch.tensor(LUMINANCE)).to(maps.dtype) for part in parts])


def _edges(maps, images, labels, generator):
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    edges = []
    for part in torch.from_numpy(images).split(_IMAGES_AT_ONCE):
        grey = (part / 255 @ torch.tensor(LUMINANCE))[:, None]
        # Repeated border pixels: the frame of the image is no edge.
        gradient = F.conv2d(F.pad(grey, [1] * 4, mode="replicate"), kernels)
        edges.append(gradient.square().sum(1).sqrt().to(maps.dtype))
    return torch.cat(edges)


def _dimming(maps, images, labels, generator):
    return torch.zeros_like(maps)


#: Controls of the map alone, which stands in for the IG map.
MAP_CONTROLS = {
    "same_class": _same_class,
    "other_image": _other_image,
    "pixels_shuffled": _pixels_shuffled,
    "phase_scrambled": _phase_scrambled,
    "noise": _noise,
    "luminance": _luminance,
    "edges": _edges,
    "dimming": _dimming,
}
