"""What the convolutional networks have in common: images in, maps that lie pixel by pixel."""

import torch
from torch import Tensor, nn

from metarun.errors import NOTHING, Unsuited
from metarun.kernels.winograd import can_convolve, convolution


class Conv2d(nn.Conv2d):
    """A convolution whose maps lie in memory pixel by pixel, under torch.vmap too.

    There the convolutions of many tasks come out task by task within an image, and pooling that is
    many times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = type_of_maps(x)
        if can_convolve(x, self, dtype):
            return convolution(x.to(dtype), self.weight, self.bias)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            bias = None if self.bias is None else self.bias.to(dtype)
            y = self._conv_forward(x.to(dtype), self.weight.to(dtype), bias)
        else:
            y = super().forward(x)
        return y.movedim(1, -1).contiguous().movedim(-1, 1)


def type_of_maps(x: Tensor) -> torch.dtype:
    """What type a convolution of x has: on a CPU that of autocast, which torch does not heed within
    torch.vmap where nothing is differentiated."""
    if x.device.type == "cpu" and x.dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


class Mean(nn.Module):
    """The mean of each map: [N, C, H, W] -> [N, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


def image_shape(input_shape: tuple[int, ...], least: int, network: str) -> tuple[int, int, int]:
    """Channels, height and width. Raises UserError unless they are those of images from
    `least` × `least` on, which is what `network` takes."""
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise Unsuited(
            f"{network} takes images of at least {least}×{least}, not examples of shape "
            f"{list(input_shape)}",
            {"data.size": "raise data.size", NOTHING: "use backbone=mlp"},
        )
    channels, height, wide = input_shape
    return channels, height, wide


def initialise(layer: nn.Module) -> None:
    """Draws a convolution's weights as He et al. 2015 do, by its filters' count (eq. 14)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
