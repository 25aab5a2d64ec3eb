"""Crop, mirror and overlay for whole batches on the device, with one draw for an image and its maps.

Whatever belongs to an image (its IG map, the teacher's attention map) is moved by the same draw as the image. The
released code moves the image alone (`Draw.centred` is how its maps stay where they are).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from igkd.errors import InputError


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch.

    Attributes
    ----------
    top, left : Tensor (B,) int64
        Corner of the crop in the padded image, pixels, 0 to 2 * padding.
    mirror : Tensor (B,) bool
    overlay : Tensor (B,) bool
        Which images get their map laid over them.
    exponent : Tensor (B,) float32
        Power to which the map is raised, log-uniform.
    cut_row, cut_column : Tensor (B,) float32
        Centre of the square that is cut out, as shares of height and width, in [0, 1).
    """

    top: Tensor
    left: Tensor
    mirror: Tensor
    overlay: Tensor
    exponent: Tensor
    cut_row: Tensor
    cut_column: Tensor

    def to(self, device) -> "Draw":
        """The same draw on another device."""
        return Draw(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def __getitem__(self, rows) -> "Draw":
        """The draw of some of the images."""
        return Draw(*(tensor[rows] for tensor in vars(self).values()))

    def centred(self, padding: int) -> "Draw":
        """The same overlays and exponents without crop and mirror: what it moves stays where it is."""
        corner = torch.full_like(self.top, padding)
        return replace(self, top=corner, left=corner, mirror=torch.zeros_like(self.mirror))


def draw(
    n: int,
    generator: torch.Generator,
    *,
    padding: int,
    mirror: bool,
    overlay_prob: float = 0.0,
    max_exponent: float = 2.0,
) -> Draw:
    """Draw for `n` images.

    The number of random numbers does not depend on the options, so arms that share a generator's seed share crops
    and mirrors whether or not they overlay maps.

    Parameters
    ----------
    n : int
    generator : Generator
        On the CPU, where the draw is made too.
    padding : int
        Pixels of border from which the crops are taken.
    mirror : bool
        Whether half of the images are mirrored.
    overlay_prob : float
        Share of the images that get their map laid over them, on average.
    max_exponent : float
        1 or more.

    Returns
    -------
    Draw
    """
    uniform = torch.rand(7, n, generator=generator)
    corner = (uniform[:2] * (2 * padding + 1)).long()
    exponent = torch.exp(uniform[4] * torch.log(torch.tensor(max_exponent)))
    return Draw(*corner, (uniform[2] < 0.5) & mirror, uniform[3] < overlay_prob, exponent, *uniform[5:])


def pad(images: Tensor, padding: int) -> Tensor:
    """Zero border around images or maps.

    Parameters
    ----------
    images : Tensor (N, H, W, ...)
    padding : int
        Pixels on each of the four sides.

    Returns
    -------
    Tensor (N, H + 2 * padding, W + 2 * padding, ...)
        Of the same type.
    """
    border = [0, 0] * (images.dim() - 3) + [padding] * 4
    return F.pad(images, border)


def crop_mirror(padded: Tensor, rows: Tensor, drawn: Draw, size: tuple[int, int]) -> Tensor:
    """Crop and mirror some of the padded images or maps.

    Parameters
    ----------
    padded : Tensor (N, H + 2 * padding, W + 2 * padding, ...)
    rows : Tensor (B,) int64
        Which of the N.
    drawn : Draw of B
    size : (H, W)

    Returns
    -------
    Tensor (B, H, W, ...)
    """
    height, width = size
    across = torch.arange(width, device=padded.device)
    across = torch.where(drawn.mirror[:, None], width - 1 - across, across) + drawn.left[:, None]
    down = torch.arange(height, device=padded.device) + drawn.top[:, None]
    return padded[rows[:, None, None], down[:, :, None], across[:, None, :]]


def rescale(maps: Tensor) -> Tensor:
    """Each map (B, H, W) to [0, 1]; a constant map becomes 0."""
    low = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - low
    return (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny)


def overlay(images: Tensor, maps: Tensor, drawn: Draw, weight: float = 0.5) -> Tensor:
    """Lay the maps over the drawn images: ``(1 - weight) * image + weight * rescale(map ** exponent)``.

    Parameters
    ----------
    images : Tensor (B, 3, H, W) in [0, 1]
    maps : Tensor (B, H, W), non-negative
    drawn : Draw of B
    weight : float
        0.5 in the paper.

    Returns
    -------
    Tensor (B, 3, H, W)
        Images that were not drawn are unchanged.

    Raises
    ------
    InputError
        If maps are negative. Not asked on a GPU, which would have to be waited for.

    Examples
    --------
    A grey image of two pixels under the map (0, 4): the map becomes (0, 1), and the mean is taken.

    >>> drawn = draw(1, torch.Generator(), padding=0, mirror=False, overlay_prob=1.0)
    >>> overlay(torch.full((1, 3, 1, 2), 0.5), torch.tensor([[[0.0, 4.0]]]), drawn)[0, 0]
    tensor([[0.2500, 0.7500]])
    """
    if maps.is_cpu and (maps < 0).any():
        raise InputError(f"maps go down to {float(maps.min()):.3g}; give maps without negative values")
    shaped = rescale(maps ** drawn.exponent[:, None, None])
    blended = (1 - weight) * images + weight * shaped[:, None]
    return torch.where(drawn.overlay[:, None, None, None], blended, images)


def cutout(images: Tensor, drawn: Draw, side: int) -> Tensor:
    """Blacken a square in each image; what reaches over the border is lost.

    Parameters
    ----------
    images : Tensor (B, 3, H, W)
    drawn : Draw of B
    side : int
        Pixels.

    Returns
    -------
    Tensor (B, 3, H, W)

    References
    ----------
    DeVries, Taylor, "Improved regularization of convolutional neural networks with cutout", arXiv 1708.04552, 2017.
    """
    height, width = images.shape[2:]

    def covered(length: int, share: Tensor) -> Tensor:
        first = (share * length).long() - side // 2
        position = torch.arange(length, device=images.device) - first[:, None]
        return (position >= 0) & (position < side)

    square = covered(height, drawn.cut_row)[:, :, None] & covered(width, drawn.cut_column)[:, None, :]
    return images.masked_fill(square[:, None], 0.0)


def move_attention(
    maps: Tensor, rows: Tensor, drawn: Draw, padding: int, size: tuple[int, int], cells: tuple[int, int]
) -> Tensor:
    """Attention maps of the unaugmented images, moved as the images are.

    Each cell of a map covers a square of pixels. The map is spread over those pixels, cropped and mirrored with the
    image, averaged over each cell of the student's map, and brought to unit length again.

    Parameters
    ----------
    maps : Tensor (N, h * w), unit length, float16 or float32
    rows : Tensor (B,) int64
    drawn : Draw of B
    padding : int, pixels
    size : (H, W), the same multiple of (h, w)
    cells : (h', w') of the student's map; fewer than (h, w) where its images are scaled down

    Returns
    -------
    Tensor (B, h' * w') float32, unit length

    Raises
    ------
    InputError
        If no square cells of whole pixels make h * w of an image of this size.
    """
    cell = max(1, round((size[0] * size[1] / maps.shape[1]) ** 0.5))
    h, w = size[0] // cell, size[1] // cell
    if (h * cell, w * cell, h * w) != (*size, maps.shape[1]):
        given = f"attention maps of {maps.shape[1]} cells, images of {size[0]}x{size[1]} pixels: these are no squares"
        raise InputError(f"{given}; give images whose height and width are multiples of 8")
    spread = maps[rows].float().view(-1, h, w).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    index = torch.arange(len(rows), device=maps.device)
    moved = crop_mirror(pad(spread, padding), index, drawn, size)
    return F.normalize(F.adaptive_avg_pool2d(moved, cells).flatten(1), dim=1)
