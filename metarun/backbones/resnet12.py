"""ResNet-12, the residual network of the few-shot papers.

Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex Optimization"
(MetaOptNet), 2019, arXiv:1904.03758, sec. 4.1, after Oreshkin et al. 2018 (TADAM), whose widths are
64-128-256-512. What the text leaves open is as in MetaOptNet's code.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.batch_norm import normalisation
from metarun.backbones.convolution import Conv2d, Mean, image_shape, initialise
from metarun.backbones.drop_block import drop_block
from metarun.errors import UserError

READS = ("images",)
BLOCKS = 4
SLOPE = 0.1  # of the leaky ReLU


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions, of which the first `pools` end in max-pooling.

    Images [N, C, H, W] -> features [N, out_dim]: with `pool` the means of the last maps, otherwise
    the maps themselves (which MetaOptNet uses), and without `flatten` as maps [N, *out_shape].

    In training, dropout of `drop_rate` follows the first two blocks and DropBlock of squares of
    `block_size` pixels the last two. In their code DropBlock's rate rises from 0 over the first 20
    of 60 epochs; here it is `drop_rate` from the start, so that the network has no state of its own
    and can be called any number of times in a step, as inner loops do.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        widths: list[int],
        drop_rate: float,
        block_size: int,
        batch_norm: str,
        pools: int = BLOCKS,
        pool: bool = True,
        flatten: bool = True,
    ):
        super().__init__()
        if not 0 <= pools <= BLOCKS:
            raise UserError(f"backbone.pools={pools}: it must be from 0 to {BLOCKS}")
        channels, height, wide = image_shape(input_shape, 2**pools, "backbone=resnet12")
        if len(widths) != BLOCKS or min(widths) < 1:
            raise UserError(f"backbone.widths={widths}: four numbers of filters are needed")
        if not 0 <= drop_rate < 1:
            raise UserError(f"backbone.drop_rate={drop_rate}: it must be from 0 to below 1")
        self.blocks = nn.ModuleList(
            Block(widths[i - 1] if i else channels, widths[i], batch_norm, pool=i < pools)
            for i in range(BLOCKS)
        )
        size = (1, 1) if pool else (height // 2**pools, wide // 2**pools)
        end = [Mean()] if pool else []
        self.end = nn.Sequential(*end, *([nn.Flatten()] if flatten else []))
        self.out_shape, self.gives_maps = (widths[-1], *size), not flatten
        self.out_dim = prod(self.out_shape)
        self.drop_rate, self.block_size = drop_rate, block_size
        self.apply(initialise)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.drop_rate if self.training else 0.0
        for i, block in enumerate(self.blocks):
            x = block(x)
            if rate:
                x = F.dropout(x, rate) if i < 2 else drop_block(x, rate, self.block_size)
        return self.end(x)


class Block(nn.Module):
    """Three 3×3 convolutions beside one of 1×1: [N, channels, H, W] -> [N, width, H', W'], half as
    high and wide if it pools."""

    def __init__(self, channels: int, width: int, batch_norm: str, *, pool: bool):
        super().__init__()
        self.residual = nn.Sequential(
            *convolution(channels, width, 3, batch_norm),
            nn.LeakyReLU(SLOPE),
            *convolution(width, width, 3, batch_norm),
            nn.LeakyReLU(SLOPE),
            *convolution(width, width, 3, batch_norm),
        )
        self.shortcut = nn.Sequential(*convolution(channels, width, 1, batch_norm))
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Pooling and leaky ReLU commute; pooled first, the latter has a quarter of the work.
        return F.leaky_relu(self.pool(self.residual(x) + self.shortcut(x)), SLOPE)


def convolution(channels: int, width: int, kernel: int, batch_norm: str) -> list[nn.Module]:
    """A convolution that keeps the size, and its batch norm."""
    bias = batch_norm == "none"
    return [
        Conv2d(channels, width, kernel, padding=kernel // 2, bias=bias),
        normalisation(width, batch_norm),
    ]
