"""Batch normalisation, 2×2 max-pooling and ReLU as one, where the kernels can."""

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import BatchNorm
from metarun.kernels import library
from metarun.kernels.pooled_convolution import LANES
from metarun.kernels.pooled_normalisation import PooledNormalise, PoolScaled


def can_pool(x: Tensor, norm: nn.Module) -> bool:
    """Whether the kernels are in use and can do to x [N, F, H, W] what `norm`, pooling and ReLU
    would."""
    return (
        library.in_use is not None
        and type(norm) is BatchNorm
        and norm.counted is None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and norm.weight.dtype == torch.float32
        and x.ndim == 4
        and min(x.shape[2:]) >= 2
        and x.shape[1] % LANES == 0
        and (norm.batch_norm_mode != "running" or norm.training or not torch.is_grad_enabled())
    )


def pooled_normalisation(x: Tensor, norm: BatchNorm) -> Tensor:
    """relu(max_pool2d(norm(x), 2)) of x [N, F, H, W], in channels-last [N, F, H // 2, W // 2] and
    of the same type.

    It has first and second derivatives; where third ones are asked for, RuntimeError is raised.
    """
    x = x.movedim(-3, -1)
    if norm.batch_norm_mode == "running" and not norm.training:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        y, _ = PoolScaled.apply(x, scale, norm.bias - scale * norm.running_mean)
        return y.movedim(-1, -3)
    y, _, mean, r = PooledNormalise.apply(x, norm.weight, norm.bias, norm.eps)
    if norm.batch_norm_mode == "running":
        norm.take_in(mean, r**-2 - norm.eps, x[..., 0].numel())
    return y.movedim(-1, -3)
