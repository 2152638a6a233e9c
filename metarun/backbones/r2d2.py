"""The convolutional network of Bertinetto et al. 2019, "Meta-learning with Differentiable
Closed-form Solvers", arXiv:1805.08136, sec. 4.2."""

from math import prod

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import normalisation
from metarun.backbones.convolution import Conv2d, image_shape
from metarun.errors import UserError

READS = ("images",)
SLOPE = 0.1  # of the leaky ReLU


class R2D2(nn.Module):
    """Four blocks of 3×3 convolution, batch norm, 2×2 max-pooling and leaky ReLU; the features are
    the maps of the last two, next to each other.

    Images [N, C, H, W] -> [N, out_dim], or without `flatten` maps [N, *out_shape]: 3584 numbers for
    28×28, 8064 for 32×32 and 72576 for 84×84 images, as in the paper. For that the last pooling has
    stride 1, and the third block's map is pooled so once more, as in the authors' code. `dropout`
    follows the last two blocks.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        widths: list[int],
        dropout: float,
        batch_norm: str,
        flatten: bool = True,
    ):
        super().__init__()
        channels, height, wide = image_shape(input_shape, 16, "backbone=r2d2")
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"backbone.widths={widths}: four numbers of filters are needed")
        if not 0 <= dropout < 1:
            raise UserError(f"backbone.dropout={dropout}: it must be from 0 to below 1")
        first, second, third, fourth = widths
        self.first_three = nn.Sequential(
            block(channels, first, batch_norm, stride=2),
            block(first, second, batch_norm, stride=2),
            block(second, third, batch_norm, stride=2),
            nn.Dropout(dropout),
        )
        self.last = nn.Sequential(block(third, fourth, batch_norm, stride=1), nn.Dropout(dropout))
        self.pool = nn.MaxPool2d(2, stride=1)
        self.out_shape = (third + fourth, height // 8 - 1, wide // 8 - 1)
        self.out_dim, self.gives_maps = prod(self.out_shape), not flatten
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first_three(x)
        z = torch.cat([self.pool(z), self.last(z)], dim=1)
        return z if self.gives_maps else z.flatten(1)


def block(channels: int, width: int, batch_norm: str, *, stride: int) -> nn.Module:
    """One block: [N, channels, H, W] -> [N, width, H', W'], half as high and wide with stride 2,
    a pixel less with stride 1."""
    return nn.Sequential(
        Conv2d(channels, width, 3, padding=1),
        normalisation(width, batch_norm),
        nn.MaxPool2d(2, stride=stride),
        nn.LeakyReLU(SLOPE),
    )
