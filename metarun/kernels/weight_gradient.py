"""A 3×3 convolution of bfloat16 maps whose weight's gradient is summed in float32, of two images
at a time, as the processor multiplies such numbers. Torch's own takes 1.2 to 1.9 times as long."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from metarun.kernels import library
from metarun.kernels.library import call
from metarun.kernels.pooled_convolution import keeps_size

CHANNELS, FILTERS = 16, 32  # are computed together
PARTS = 16  # of the images, whose gradients are added up in turn, whatever the number of threads
ROOM = 2**15  # numbers of the maps of two images that a core's cache holds


def can_sum(x: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether the kernel is in use, on a processor that has the instruction, and this convolution
    of x [N, C, H, W] is one of those that it is for."""
    filters, channels, *_ = convolution.weight.shape
    return (
        library.in_use is not None
        and hasattr(library.in_use, "weight_gradient")
        and x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and torch.is_autocast_enabled("cpu")
        and convolution.weight.requires_grad
        and keeps_size(convolution)
        and channels % CHANNELS == filters % FILTERS == 0
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias, padding=1) of bfloat16 x [N, C, H, W], with autocast, channels-last."""
    return Convolution.apply(x, weight, bias)


class Convolution(Function):
    """(x, weight, bias) -> the convolution."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        ours = of_weight and not torch.is_grad_enabled()  # differentiated once
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight.to(x.dtype, memory_format=torch.channels_last),
            None,
            *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            [of_x, of_weight and not ours, False],
        )
        if ours:
            by_weight = gradient_by_weight(x, g)
        by_bias = g.sum((0, 2, 3), dtype=torch.float32) if bias is not None and of_bias else None
        return by_x, by_weight, by_bias

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Any) -> tuple[Tensor, int]:
        plain = torch.vmap(lambda *each: F.conv2d(*each, padding=1), in_dims)
        return plain(*tensors), 0


class Maps(ctypes.Structure):
    """`struct convolution` of the C function."""

    _fields_ = (
        *[
            (name, ctypes.c_int64)
            for name in "images height width channels filters parts rows".split()
        ],
        ("threads", ctypes.c_int32),
    )


def gradient_by_weight(x: Tensor, g: Tensor) -> Tensor:
    """[F, C, 3, 3] for x [N, C, H, W] and the gradient g [N, F, H, W] by the convolution."""
    (images, channels, height, width), filters = x.shape, g.shape[1]
    rows = min(height, max(1, ROOM // (width * (channels + filters) // 2)))
    maps = Maps(images, height, width, channels, filters, PARTS, rows, torch.get_num_threads())
    sums = torch.zeros(PARTS, 3, 3, channels, filters)
    call("weight_gradient", x.movedim(1, -1), g.movedim(1, -1), sums, maps)
    return sums.sum(0).permute(3, 2, 0, 1)
