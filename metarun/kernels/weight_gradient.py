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
LARGEST = 2**14  # weight, without its taps: of larger ones the parts would be too much to add up
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
        and x.ndim == 4
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and convolution.weight.requires_grad
        and keeps_size(convolution)
        and channels % CHANNELS == filters % FILTERS == 0
        and channels * filters <= LARGEST
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias, padding=1) of bfloat16 x [N, C, H, W]: that, channels-last."""
    return Convolution.apply(x, weight, bias)


class Convolution(Function):
    """(x, weight, bias) -> the convolution, of x's type."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        ours = of_weight and not torch.is_grad_enabled()  # differentiated once
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight.to(x.dtype),
            None,
            *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            [of_x, of_weight and not ours, False],
        )
        by_bias = None
        if ours:
            by_weight, by_bias = gradients(x, g)
        elif of_bias:
            by_bias = g.sum((0, 2, 3), dtype=torch.float32)
        return by_x, by_weight, by_bias if of_bias else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Any) -> tuple[Tensor, int]:
        return torch.vmap(plain, in_dims)(*tensors), 0


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution as torch does it, in x's type."""
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), bias, padding=1)


class Maps(ctypes.Structure):
    """`struct convolution` of the C function."""

    _fields_ = (
        *[
            (name, ctypes.c_int64)
            for name in "images height width channels filters parts rows".split()
        ],
        ("threads", ctypes.c_int32),
    )


def gradients(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """By the weight [F, C, 3, 3] and the bias [F], of x [N, C, H, W] and the gradient g
    [N, F, H, W] by the convolution."""
    (images, channels, height, width), filters = x.shape, g.shape[1]
    rows = min(height, max(1, ROOM // (width * (channels + filters) // 2)))
    maps = Maps(images, height, width, channels, filters, PARTS, rows, torch.get_num_threads())
    parts = torch.zeros(PARTS, 9 * channels + 1, filters)
    call("weight_gradient", x.movedim(1, -1), g.movedim(1, -1), parts, maps)
    sums = parts.sum(0)
    return sums[:-1].view(3, 3, channels, filters).permute(3, 2, 0, 1), sums[-1]
