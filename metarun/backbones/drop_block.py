"""DropBlock: dropout of whole patches of a map (Ghiasi, Lin and Le 2018, arXiv:1810.12890)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def drop_block(x: Tensor, rate: float, size: int) -> Tensor:
    """Maps x [N, C, H, W] with squares of `size` × `size` pixels set to zero, about `rate` of all
    pixels, and the rest scaled up to make good for them (Algorithm 1).

    Squares lie within the map; one smaller than a square loses its smaller side. Each example and
    channel has its own.
    """
    height, wide = x.shape[2:]
    size = min(size, height, wide)
    places = (height - size + 1, wide - size + 1)  # where a square's corner can be
    gamma = rate / size**2 * (height * wide) / (places[0] * places[1])  # eq. 1
    corners = torch.rand(*x.shape[:2], *places, device=x.device) < gamma
    padded = F.pad(corners.to(x.dtype), [size - 1] * 4)
    kept = 1 - F.max_pool2d(padded, size, stride=1)
    return x * kept / kept.mean(dtype=torch.float32).clamp(min=1 / kept.numel()).to(x.dtype)
