"""Mean and standard deviation of images, by which they are normalised."""

from collections.abc import Iterable

import torch
from torch import Tensor

FEW = 32  # images at once: they stay in the processor's caches


def channel_statistics(images: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 images [n, C, H, W], scaled to [0, 1]."""
    pixels, total, squares = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for x in images:
        pixels += x[:, 0].numel()
        # A row's sums are whole numbers below 2**24, which floats hold exactly, if it has no more
        # than 256 pixels; doubles hold all of them, but take longer.
        exact = torch.float32 if x.shape[3] <= 256 else torch.float64
        room = torch.empty(FEW, *x.shape[1:], dtype=exact)  # once: new memory is slow
        for few in x.split(FEW):
            values = room[: len(few)].copy_(few)
            total = total + values.sum(dim=3).double().sum(dim=(0, 2))
            squares = squares + values.square_().sum(dim=3).double().sum(dim=(0, 2))
    mean = total / pixels / 255
    std = (squares / pixels / 255**2 - mean.square()).clamp(min=0).sqrt()
    std[std < 1 / 255] = 1  # a channel without contrast is not blown up
    return tuple(mean.tolist()), tuple(std.tolist())
