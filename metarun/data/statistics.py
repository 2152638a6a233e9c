"""Mean and standard deviation of images, by which they are normalised."""

from collections.abc import Iterable

import torch
from torch import Tensor


def channel_statistics(images: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 images [n, C, H, W], scaled to [0, 1]."""
    pixels, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for x in images:  # class by class, in whole numbers: exact whatever the number of threads
        pixels += x[:, 0].numel()
        total = total + x.int().sum(dim=(0, 2, 3)).double()
        squares = squares + x.int().square().sum(dim=(0, 2, 3)).double()
    mean = total / pixels / 255
    std = (squares / pixels / 255**2 - mean.square()).clamp(min=0).sqrt()
    std[std < 1 / 255] = 1  # a channel without contrast is not blown up
    return tuple(mean.tolist()), tuple(std.tolist())
