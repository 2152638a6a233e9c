"""Affine maps of images."""

import torch
from torch import Tensor
from torch.nn import functional as F


def affine_matrices(angle: Tensor, shear: Tensor, scale: Tensor) -> Tensor:
    """Maps of the plane that scale both axes, then shear, then rotate: [N], [N, 2], [N, 2] ->
    [N, 2, 2].

    Angles are in radians, from the first axis (right) towards the second (down).
    """
    one, (shear_x, shear_y) = torch.ones_like(angle), shear.unbind(1)
    cosine, sine = angle.cos(), angle.sin()
    sheared = torch.stack([one, shear_x, shear_y, one], dim=1).unflatten(1, (2, 2))
    rotated = torch.stack([cosine, -sine, sine, cosine], dim=1).unflatten(1, (2, 2))
    return rotated @ sheared @ torch.diag_embed(scale)


def transformed(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Images [N, C, H, W], what was at p in each now at `matrix` p + `shift`: [N, 2, 2], [N, 2].

    Points are (right, down), from -1 to 1 between the borders of the image. What comes from beyond
    a border looks like the border, so that the background goes on whatever its value.
    """
    # For each pixel of the result, the point it comes from: the map's inverse.
    inverse = torch.linalg.inv_ex(matrix).inverse
    theta = torch.cat([inverse, -inverse @ shift[..., None]], dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
