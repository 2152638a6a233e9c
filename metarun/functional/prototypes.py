"""Class means and distances to them."""

from torch import Tensor
from torch.nn import functional as F


def class_means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """Prototype of each class (Snell et al. 2017, eq. 1): [T, S, D], [T, S] -> [T, way, D].

    Every class 0..way-1 has at least one row; shots may differ between classes.
    """
    members = F.one_hot(y, way).to(z.dtype)  # [T, S, way]
    return members.mT @ z / members.sum(dim=1)[..., None]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances: [T, N, D], [T, M, D] -> [T, N, M]."""
    # Not torch.cdist: above 25 rows it multiplies matrices and rounds small distances away.
    return (a[:, :, None] - b[:, None]).square().sum(dim=-1)


def cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine of the angle: [T, N, D], [T, M, D] -> [T, N, M], from 0 to 2."""
    return 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
