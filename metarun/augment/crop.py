"""Random windows of images, as large as the image again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.augment.chance import uniform
from metarun.errors import UserError

TRIES = 10  # windows drawn for an image, of which the first that fits is taken


@dataclass(frozen=True)
class PaddedCrop:
    """Moves each image by up to `padding` pixels; what comes in from beyond the border is black.

    It is a crop of the image's own size after padding with zeros (He et al. 2016, "Deep Residual
    Learning for Image Recognition", sec. 4.2).
    """

    padding: int

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], each moved by an amount of its own."""
        return padded_crop(x, self.padding, self.corners(x))

    def corners(self, x: Tensor) -> Tensor:
        """The window's first row and column in each padded image: int64 [N, 2]."""
        return torch.randint(2 * self.padding + 1, (len(x), 2), device=x.device)


def padded_crop(x: Tensor, padding: int, corner: Tensor) -> Tensor:
    """Of images [N, C, H, W] with `padding` zeros around them, the H × W windows at `corner`."""
    padded = F.pad(x, (padding,) * 4)
    rows, columns = (
        first[:, None] + torch.arange(size, device=x.device)
        for first, size in zip(corner.unbind(1), x.shape[2:], strict=True)
    )  # [N, H], [N, W]
    image = torch.arange(len(x), device=x.device)
    cropped = padded[image[:, None, None], :, rows[:, :, None], columns[:, None]]  # [N, H, W, C]
    return cropped.movedim(-1, 1)


@dataclass(frozen=True)
class ResizedCrop:
    """Enlarges a window of each image to the size of the image.

    The window's share of the area is uniform within `scale`, the logarithm of its width over its
    height within that of `ratio` (Szegedy et al. 2015, "Going Deeper with Convolutions", sec. 6;
    torchvision's RandomResizedCrop). An image into which none of a few such windows fits is kept.
    """

    scale: Sequence[float]
    ratio: Sequence[float]

    def __post_init__(self) -> None:
        for name, bounds, most in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
                raise UserError(
                    f"{name}={list(bounds)} of augment's resized crop: give the lowest and the "
                    f"highest value, above 0{' and at most 1' if most == 1 else ''}"
                )

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], of each a window of its own."""
        return resized_crop(x, self.boxes(x))

    def boxes(self, x: Tensor) -> Tensor:
        """Each window's first row, first column, height and width, whole numbers: [N, 4]."""
        height, width = x.shape[2:]
        area = height * width * uniform(self.scale, (TRIES, len(x)), like=x)
        ratio = uniform([math.log(r) for r in self.ratio], (TRIES, len(x)), like=x).exp()
        # At least one pixel, and after the others a window that fits: the whole.
        high = F.pad((area / ratio).sqrt().round().clamp(min=1), (0, 0, 0, 1), value=height)
        wide = F.pad((area * ratio).sqrt().round().clamp(min=1), (0, 0, 0, 1), value=width)
        fits = (high <= height) & (wide <= width)
        first = fits.int().argmax(dim=0, keepdim=True)  # of equal values, the first
        high, wide = high.gather(0, first)[0], wide.gather(0, first)[0]
        place = uniform((0, 1), (2, len(x)), like=x)
        top = (place[0] * (height - high + 1)).floor()
        left = (place[1] * (width - wide + 1)).floor()
        return torch.stack([top, left, high, wide], dim=1)


def resized_crop(x: Tensor, box: Tensor) -> Tensor:
    """The windows `box` [N, 4] (first row, first column, height, width) of images [N, C, H, W],
    enlarged to H × W by bilinear interpolation within the window."""
    (top, left, high, wide), (height, width) = box[:, :, None].unbind(1), x.shape[2:]
    rows = source(top, high, height)  # [N, H]
    columns = source(left, wide, width)  # [N, W]
    grid = torch.stack(
        torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=3
    )  # [N, H, W, 2]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def source(first: Tensor, length: Tensor, size: int) -> Tensor:
    """Where each of `size` pixels comes from in a window of `length` pixels after `first` [N, 1]:
    [N, size], from -1 to 1 between the borders of the image."""
    centres = torch.arange(size, dtype=first.dtype, device=first.device) + 0.5
    # No further than the centres of the outermost pixels: what is beyond is not in the window.
    inside = (centres * length / size).clamp(min=0.5).minimum(length - 0.5)
    return 2 * (first + inside) / size - 1
