"""What torch.vmap hands to an autograd Function, as our own Functions want it."""

from torch import Tensor


def tasks_first(tensors: list[Tensor], in_dims: tuple, size: int) -> list[Tensor]:
    """The tensors with torch.vmap's dimension in front, also those that are the same for all."""
    return [
        tensor.expand(size, *tensor.shape) if d is None else tensor.movedim(d, 0)
        for tensor, d in zip(tensors, in_dims, strict=False)
    ]
