"""The four-block convolutional network of the few-shot papers ("Conv4", "C64")."""

import torch
from torch import nn

from metarun.backbones.batch_norm import BatchNorm
from metarun.errors import UserError

BLOCKS = 4


class Conv4(nn.Sequential):
    """Four blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pooling (Vinyals et al. 2016).

    Images [N, C, H, W] -> features [N, out_dim], out_dim = width · (H // 16) · (W // 16): 64 for
    28×28 and 1600 for 84×84 images at width 64.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int, batch_norm: str):
        if len(input_shape) != 3 or min(input_shape[1:]) < 2**BLOCKS:
            raise UserError(
                f"backbone=conv4 takes images of at least 16×16, not examples of shape "
                f"{list(input_shape)}: raise data.size, or use backbone=mlp"
            )
        channels, height, wide = input_shape
        blocks = [block(width if i else channels, width, batch_norm) for i in range(BLOCKS)]
        super().__init__(*blocks, nn.Flatten())
        self.out_dim = width * (height // 2**BLOCKS) * (wide // 2**BLOCKS)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)


def block(channels: int, width: int, batch_norm: str) -> nn.Sequential:
    """One block: [N, channels, H, W] -> [N, width, H // 2, W // 2]."""
    # Pooling and ReLU commute; pooled first, ReLU has a quarter of the work.
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        BatchNorm(width, batch_norm),
        nn.MaxPool2d(2),
        nn.ReLU(),
    )
