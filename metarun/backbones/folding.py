"""A convolution and its batch normalisation as one convolution, in training too.

What a channel's numbers are on average, and how they vary, follows from the images' patches: of
patches p (with a 1 behind, for the bias) and a filter w, the mean of w·p is w·E[p] and that of its
square wᵀ E[p pᵀ] w. So that the statistics are known before the convolution is computed, and no
map is read to find them. Shapes: F filters of K = 9 C taps.
"""

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import BatchNorm
from metarun.kernels.pooled_convolution import patch_moments


def folded(convolution: nn.Conv2d, norm: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution whose output is that of `convolution` normalised by
    `norm`, a BatchNorm or nn.Identity, which remembers the statistics if it does so."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    if not isinstance(norm, BatchNorm):
        return weight, bias
    if norm.batch_norm_mode == "running" and not norm.training:
        mean, variance = norm.running_mean.double(), norm.running_var.double()
    else:
        # In float64: a variance is a small difference where numbers lie close about a large mean.
        rows = torch.cat([weight.flatten(1), bias[:, None]], dim=1).double()  # [F, K + 1]
        counted = None if norm.batch_norm_mode == "running" else norm.counted
        moments = mean_moments(images, counted)
        mean = rows @ moments[-1]
        variance = (((rows @ moments) * rows).sum(1) - mean.square()).clamp(min=0)
        if norm.batch_norm_mode == "running":
            norm.take_in(mean.detach(), variance.detach(), images[:, 0].numel())
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shift = norm.bias + scale * (bias - mean)
    return (weight * scale[:, None, None, None]).float(), shift.float()


def mean_moments(images: Tensor, counted: int | Tensor | None) -> Tensor:
    """E[p pᵀ] over all patches p of the images that `BatchNorm.counted` counts."""
    moments = patch_moments(images)
    if isinstance(counted, Tensor):
        total = (moments * counted[:, None, None]).sum(0)
    else:
        total = moments[:counted].sum(0)
    return total / total[-1, -1]
