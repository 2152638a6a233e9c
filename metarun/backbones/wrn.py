"""Wide residual networks, such as WRN-28-10.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016, arXiv:1605.07146, table 1.
"""

from math import prod

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import normalisation
from metarun.backbones.convolution import Conv2d, Mean, image_shape, initialise
from metarun.errors import UserError

READS = ("images",)
STEM = 16  # filters of the first convolution


class WRN(nn.Sequential):
    """WRN-`depth`-`widening`: three groups of (depth − 4) / 6 blocks of 16, 32 and 64 times
    `widening` filters, the last two of which halve the map.

    Images [N, C, H, W] -> features [N, out_dim]: with `pool` the means of the last maps, otherwise
    the maps themselves, and without `flatten` as maps [N, *out_shape]. `dropout` stands between the
    two convolutions of a block (sec. 2.4).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        depth: int,
        widening: int,
        dropout: float,
        batch_norm: str,
        pool: bool = True,
        flatten: bool = True,
    ):
        channels, *size = image_shape(input_shape, 1, "backbone=wrn28_10")
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"backbone.depth={depth}: it must be 6n + 4, such as 10, 16, 22 or 28")
        if widening < 1:
            raise UserError(f"backbone.widening={widening}: it must be at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"backbone.dropout={dropout}: it must be from 0 to below 1")
        layers: list[nn.Module] = [Conv2d(channels, STEM, 3, padding=1, bias=batch_norm == "none")]
        before = STEM
        for i, width in enumerate([16 * widening, 32 * widening, 64 * widening]):
            for j in range((depth - 4) // 6):
                stride = 2 if i and not j else 1
                layers.append(Block(before, width, stride, dropout, batch_norm))
                before = width
        layers += [normalisation(before, batch_norm), nn.ReLU()]
        size = [-(-side // 4) for side in size]  # each halving rounds up
        if pool:
            layers, size = [*layers, Mean()], [1, 1]
        super().__init__(*layers, *([nn.Flatten()] if flatten else []))
        self.out_shape, self.gives_maps = (before, *size), not flatten
        self.out_dim = prod(self.out_shape)
        self.apply(initialise)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions: [N, channels, H, W] ->
    [N, width, H', W'].

    Where the shape changes, the shortcut is a 1×1 convolution of what the first ReLU gives, as in
    the authors' code.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float, batch_norm: str):
        super().__init__()
        bias = batch_norm == "none"
        self.first = nn.Sequential(normalisation(channels, batch_norm), nn.ReLU())
        self.residual = nn.Sequential(
            Conv2d(channels, width, 3, stride=stride, padding=1, bias=bias),
            normalisation(width, batch_norm),
            nn.ReLU(),
            nn.Dropout(dropout),
            Conv2d(width, width, 3, padding=1, bias=bias),
        )
        changes = stride > 1 or channels != width
        self.shortcut = Conv2d(channels, width, 1, stride=stride, bias=bias) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.residual(z) + (x if self.shortcut is None else self.shortcut(z))
