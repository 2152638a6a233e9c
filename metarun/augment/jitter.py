"""Changes of brightness, contrast and saturation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.augment.chance import uniform

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Jitter:
    """Changes brightness, contrast and saturation, in this order, each by a random factor.

    A strength s draws factors uniform in [max(0, 1 - s), 1 + s]; 0 changes nothing. The order is
    that of the code of Chen et al. 2019; torchvision's ColorJitter takes any.
    """

    brightness: float
    contrast: float
    saturation: float

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], each changed by factors of its own."""
        return jittered(x, self.factors(x))

    def factors(self, x: Tensor) -> Tensor:
        """Of each image's brightness, contrast and saturation: [N, 3]."""
        strengths = (self.brightness, self.contrast, self.saturation)
        return torch.stack(
            [uniform((max(0, 1 - s), 1 + s), (len(x),), like=x) for s in strengths], dim=1
        )


def jittered(x: Tensor, factors: Tensor) -> Tensor:
    """Images [N, C, H, W] with these `factors` [N, 3] of brightness, contrast and saturation.

    They blend the image with black, with its mean grey, and with its grey version; colours beyond
    [0, 1] are cut off after each.
    """
    brightness, contrast, saturation = factors[..., None, None, None].unbind(1)  # [N, 1, 1, 1]
    x = (brightness * x).clamp(0, 1)
    x = blend(grey(x).mean(dim=(2, 3), keepdim=True), x, contrast)
    return blend(grey(x), x, saturation)


def blend(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """From `a`, factor 0, through `b`, factor 1, and beyond, cut off at 0 and 1."""
    return ((1 - factor) * a + factor * b).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """The brightness of each pixel, [N, C, H, W] -> [N, 1, H, W]: of red, green and blue as the
    eye sees it, of other channels their mean."""
    if x.shape[1] != len(LUMA):
        return x.mean(dim=1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
