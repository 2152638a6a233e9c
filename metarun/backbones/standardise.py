"""Features as a network's first layer should meet them, however the data happens to be scaled."""

import torch
from torch import Tensor, nn

from metarun.functional.embedding import at_least_float32, out_dim

MOMENTUM = 0.1  # of the running statistics, as batch norm's
FARTHEST = 10.0  # deviations from the mean that a feature can be: a test may have ink in new places
LEAST = 1e-5  # of its mean, that a feature must vary by for not to be a constant


class Standardise(nn.Module):
    """Each feature less its mean and divided by its deviation, which are the batch's own in
    training, and their running means in tests; then all times `scale`. Nothing is learnt.

    The first batch is taken in whole, and before it features are only multiplied.
    """

    def __init__(self, features: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.mean: Tensor
        self.variance: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros(()))  # that the running statistics are of

    def forward(self, z: Tensor, real: Tensor | None = None) -> Tensor:
        """Features z [..., D], of which those that `real` [...] does not mark count for nothing:
        [..., D], in float32 at least."""
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            mean, variance = self.moments(z, real) if self.training else (self.mean, self.variance)
            deviation = (variance + (LEAST * mean).square() + torch.finfo(z.dtype).tiny).sqrt()
            farthest = FARTHEST / self.batches.clamp(max=1)  # of a batch, or without bounds
            return self.scale * ((z - mean) / deviation).clamp(-farthest, farthest)

    def moments(self, z: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature, which the running ones take in."""
        z = z.flatten(0, -2)
        if real is None:
            mean = z.mean(dim=0)
            variance = (z - mean).square().mean(dim=0)
        else:
            weight = (real / real.sum()).to(z.dtype).flatten()[:, None]
            mean = (weight * z).sum(dim=0)
            variance = (weight * (z - mean).square()).sum(dim=0)
        self.batches.add_(1)
        share = self.batches.reciprocal().clamp(min=MOMENTUM)
        for running, now in ((self.mean, mean), (self.variance, variance)):
            running.mul_(1 - share).add_(share * now.detach())
        return mean, variance


class AsTheyAre(nn.Module):
    """Leaves features as they are, in float32 at least."""

    def forward(self, z: Tensor, real: Tensor | None = None) -> Tensor:
        return at_least_float32(z)


def if_raw(backbone: nn.Module) -> nn.Module:
    """What standardises the features of a backbone that hands on the data as it is."""
    learns = any(True for _ in backbone.parameters())
    return AsTheyAre() if learns else Standardise(out_dim(backbone))
