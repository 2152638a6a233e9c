"""Random smooth distortions of images: a stroke bends, and stays in one piece."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Elastic:
    """Moves each point of an image by a smooth random field (Simard et al. 2003, sec. 2).

    The field is drawn on `points` × `points` of the image, normal with a deviation of `strength` as
    a share of the image, and goes smoothly (bicubic) between them. What comes from beyond a border
    looks like the border.
    """

    strength: float
    points: int

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], each under a field of its own."""
        shape = (len(x), 2, self.points, self.points)
        drawn = torch.randn(shape, dtype=x.dtype, device=x.device)
        return moved(x, 2 * self.strength * drawn)  # of an image 2 wide


def moved(x: Tensor, field: Tensor) -> Tensor:
    """Images [N, C, H, W], what is at p now from p + field(p): [N, 2, points, points].

    Points are (right, down), from -1 to 1 between the borders of the image.
    """
    with torch.autocast(x.device.type, enabled=False):  # of coordinates
        size = list(x.shape)
        shift = F.interpolate(field, size[2:], mode="bicubic", align_corners=True)
        still = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        grid = F.affine_grid(still, size, align_corners=False) + shift.movedim(1, 3)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
