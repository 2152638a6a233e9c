"""Random affine maps of images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.functional.affine import affine_matrices, transformed


@dataclass(frozen=True)
class Affine:
    """Scales, shears, rotates and shifts each image (Koch et al. 2015, sec. 3.2).

    `degrees`, `shear`, `scale` and `shift` (as a share of the image) are the largest changes, drawn
    uniformly up to both sides and for both axes apart. Each of the map's seven numbers is used with
    this `probability`. What comes from beyond a border looks like the border.
    """

    degrees: float
    shear: float
    scale: float
    shift: float
    probability: float

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], each under a map of its own."""
        return mapped(x, self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """Rotation (radians), shears, changes of scale and shifts (of an image 2 wide): [N, 7]."""
        angle, shift = math.radians(self.degrees), 2 * self.shift
        largest = (angle, self.shear, self.shear, self.scale, self.scale, shift, shift)
        amount, use = torch.rand(2, len(x), len(largest), dtype=x.dtype, device=x.device)
        drawn = (2 * amount - 1) * (use < self.probability)
        # Not times a tensor of them, which the GPU would have to be sent.
        return torch.stack(
            [d * most for d, most in zip(drawn.unbind(1), largest, strict=True)], dim=1
        )


def mapped(x: Tensor, maps: Tensor) -> Tensor:
    """Images [N, C, H, W] under the affine maps of `Affine.maps` [N, 7]."""
    angle, shear, scale, shift = maps[:, 0], maps[:, 1:3], 1 + maps[:, 3:5], maps[:, 5:7]
    with torch.autocast(x.device.type, enabled=False):  # of coordinates
        return transformed(x, affine_matrices(angle, shear, scale), shift)
