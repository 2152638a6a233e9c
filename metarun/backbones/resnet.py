"""Residual networks of basic blocks: ResNet-10 and ResNet-18.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385,
table 1. ResNet-10 has one block at each width (Chen et al. 2019, "A Closer Look at Few-shot
Classification", arXiv:1904.04232, sec. 4.1).
"""

from math import prod

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import normalisation
from metarun.backbones.convolution import Conv2d, Mean, image_shape, initialise
from metarun.errors import UserError

READS = ("images",)
STEMS = ("large", "small")


class ResNet(nn.Sequential):
    """`blocks[i]` basic blocks of `widths[i]` filters; the first has stride 2, except where i = 0.

    Images [N, C, H, W] -> features [N, out_dim]: with `pool` the means of the last maps, otherwise
    the maps themselves, and without `flatten` as maps [N, *out_shape]. The stem is "large", a 7×7
    convolution and max-pooling, each of stride 2, as for ImageNet, or "small", a 3×3 convolution,
    as for CIFAR and, at 84×84, in Wang et al. 2019, "SimpleShot". Images of 84×84 end in maps of
    3×3 or 11×11.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        blocks: list[int],
        widths: list[int],
        stem: str,
        batch_norm: str,
        pool: bool = True,
        flatten: bool = True,
    ):
        channels, *size = image_shape(input_shape, 1, "A residual network")
        if not blocks or len(blocks) != len(widths) or min(*blocks, *widths) < 1:
            raise UserError(
                f"backbone.blocks={blocks}, backbone.widths={widths}: two lists of the same length "
                "are needed, of numbers from 1 on"
            )
        if stem not in STEMS:
            raise UserError(f"backbone.stem={stem}: choose one of {', '.join(STEMS)}")
        width, large = widths[0], stem == "large"
        layers: list[nn.Module] = [
            Conv2d(channels, width, 7, stride=2, padding=3, bias=batch_norm == "none")
            if large
            else Conv2d(channels, width, 3, padding=1, bias=batch_norm == "none"),
            normalisation(width, batch_norm),
            nn.ReLU(),
        ]
        if large:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        for i in range(len(widths)):
            for j in range(blocks[i]):
                stride = 2 if i and not j else 1
                layers.append(Block(width, widths[i], stride, batch_norm))
                width = widths[i]
        halvings = len(widths) - 1 + 2 * large
        size = [-(-side // 2**halvings) for side in size]  # each halving rounds up
        if pool:
            layers, size = [*layers, Mean()], [1, 1]
        super().__init__(*layers, *([nn.Flatten()] if flatten else []))
        self.out_shape, self.gives_maps = (width, *size), not flatten
        self.out_dim = prod(self.out_shape)
        self.apply(initialise)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (fig. 2): [N, channels, H, W] -> [N, width, H', W'].

    The shortcut is the identity, or a 1×1 convolution where the shape changes (option B).
    """

    def __init__(self, channels: int, width: int, stride: int, batch_norm: str):
        super().__init__()
        bias = batch_norm == "none"
        self.residual = nn.Sequential(
            Conv2d(channels, width, 3, stride=stride, padding=1, bias=bias),
            normalisation(width, batch_norm),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1, bias=bias),
            normalisation(width, batch_norm),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut.append(Conv2d(channels, width, 1, stride=stride, bias=bias))
            self.shortcut.append(normalisation(width, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()
