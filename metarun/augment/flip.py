"""Images mirrored, and turned by right angles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.augment.chance import uniform
from metarun.errors import UserError


@dataclass(frozen=True)
class Flip:
    """Mirrors each image, left to right, with this `probability`."""

    probability: float

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], some of them mirrored."""
        return flipped(x, uniform((0, 1), (len(x),), like=x) < self.probability)


def flipped(x: Tensor, mirrored: Tensor) -> Tensor:
    """Images [N, C, H, W], those `mirrored` (bool [N]) with left and right exchanged."""
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


@dataclass(frozen=True)
class QuarterTurns:
    """Turns each image by 0, 90, 180 or 270 degrees, equally likely."""

    def __call__(self, x: Tensor) -> Tensor:
        """Square images [N, C, H, H], each turned by an angle of its own."""
        if x.shape[2] != x.shape[3]:
            raise UserError(
                f"augment: quarter turns need square images, not {x.shape[2]}×{x.shape[3]} ones: "
                "use another augment"
            )
        return turned(x, torch.randint(4, (len(x),), device=x.device))


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Images [N, C, H, H] after so many counter-clockwise quarter `turns` [N] from 0 to 3."""
    every = torch.stack([x.rot90(turn, dims=(2, 3)) for turn in range(4)])
    return every[turns, torch.arange(len(x), device=x.device)]
