"""The convolutional networks of four and six blocks of the few-shot papers ("Conv4", "C64")."""

from math import prod

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import BatchNorm, normalisation
from metarun.backbones.convolution import Conv2d, Mean, image_shape, type_of_maps
from metarun.backbones.folding import folded
from metarun.backbones.pooling import can_pool, pooled_normalisation
from metarun.errors import UserError
from metarun.kernels.pooled_convolution import can_convolve, pooled_convolution

READS = ("images",)
BLOCKS = 4


class Conv4(nn.Sequential):
    """Blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pooling (Vinyals et al. 2016).

    Images [N, C, H, W] -> features [N, out_dim], out_dim = width · (H // 16) · (W // 16): 64 for
    28×28 and 1600 for 84×84 images at width 64. Only the first `pools` blocks pool; relation
    networks keep the larger map (Sung et al. 2018, fig. 2), and of six blocks the last two do not
    (Chen et al. 2019, "A Closer Look at Few-shot Classification", in their code). With `strides`,
    convolutions of stride 2 take the place of pooling and the last map is averaged: out_dim = width
    (Finn et al. 2017, sec. 5.2; the average is in their code). Without `flatten` features are maps
    [N, *out_shape].
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: int,
        batch_norm: str,
        pools: int = BLOCKS,
        strides: bool = False,
        flatten: bool = True,
        blocks: int = BLOCKS,
    ):
        if not 0 <= pools <= blocks:
            raise UserError(f"backbone.pools={pools}: it must be from 0 to {blocks}")
        halvings = 0 if strides else pools
        channels, height, wide = image_shape(input_shape, 2**halvings, f"backbone=conv{blocks}")
        layers: list[nn.Module] = [
            Block(width if i else channels, width, batch_norm, pool=i < halvings, strides=strides)
            for i in range(blocks)
        ]
        size = (1, 1) if strides else (height // 2**halvings, wide // 2**halvings)
        if strides:
            layers.append(Mean())
        super().__init__(*layers, *([nn.Flatten()] if flatten else []))
        self.out_shape, self.gives_maps = (width, *size), not flatten
        self.out_dim = prod(self.out_shape)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)


class Block(nn.Sequential):
    """[N, channels, H, W] -> [N, width, H, W], half as high and wide if it reduces."""

    def __init__(self, channels: int, width: int, batch_norm: str, *, pool: bool, strides: bool):
        # Pooling and ReLU commute; pooled first, ReLU has a quarter of the work.
        super().__init__(
            Conv2d(channels, width, 3, padding=1, stride=2 if strides else 1),
            normalisation(width, batch_norm),
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.ReLU(),
        )
        self.pools = pool and not strides

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, normalised, pooled and through ReLU; all in one where that can be, or
        all after the convolution."""
        if not self.pools:
            return super().forward(x)
        convolution, norm, pool, relu = self
        assert isinstance(convolution, Conv2d)
        dtype = type_of_maps(x)
        if type(norm) in (BatchNorm, nn.Identity) and can_convolve(x, convolution, dtype):
            return pooled_convolution(x, *folded(convolution, norm, x), dtype)
        x = convolution(x)
        if isinstance(norm, BatchNorm) and can_pool(x, norm):
            return pooled_normalisation(x, norm)
        return relu(pool(norm(x)))
