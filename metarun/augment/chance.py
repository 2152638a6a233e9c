"""Random numbers of augmentations: torch's own generator of the images' device, one row an image.

Training seeds that generator and checkpoints keep it. On a GPU the draws stay there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(bounds: Sequence[float], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers uniform between the two `bounds`, of the type and on the device of `like`."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, dtype=like.dtype, device=like.device)
