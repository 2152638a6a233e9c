"""Class means and distances to them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """Prototype of each class (Snell et al. 2017, eq. 1): [T, S, D], [T, S] -> [T, way, D].

    Shots may differ between classes; the mean of a class without examples is 0.
    """
    members = memberships(y, way).to(z.dtype)  # [T, S, way]
    return members.mT @ z / members.sum(dim=1).clamp(min=1)[..., None]


def memberships(y: Tensor, way: int) -> Tensor:
    """Whether an example is of the class: [T, N] -> [T, N, way]; padding is of none."""
    return y[..., None] == torch.arange(way, device=y.device)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances: [T, N, D], [T, M, D] -> [T, N, M]."""
    # Not torch.cdist: above 25 rows it multiplies matrices and rounds small distances away.
    return (a[:, :, None] - b[:, None]).square().sum(dim=-1)


def cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine of the angle: [T, N, D], [T, M, D] -> [T, N, M], from 0 to 2."""
    return 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
