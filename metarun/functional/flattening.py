"""A network's parameters as one vector, and back."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def flattened(parameters: Iterable[Tensor]) -> Tensor:
    """The parameters one after another: [P]."""
    return torch.cat([p.flatten() for p in parameters])


def unflattened(vector: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """`vector` [P] as parameters of `network`: what functional_call wants in their place."""
    own = dict(network.named_parameters())
    parts = vector.split([p.numel() for p in own.values()])
    return {name: part.view(own[name].shape) for name, part in zip(own, parts, strict=True)}
