"""3×3 convolution, 2×2 max-pooling and ReLU as one: what comes out is all that is ever stored.

The map before pooling is four times as large, and reading and writing it is most of what a first
layer costs, whose convolution sees one channel or three. Here each square's four numbers are
computed together and the largest is kept, with which of the four it was; and what their gradient
needs is that and the images. Shapes: T for the tasks, any number of dimensions, N images of each,
C channels, H × W pixels, F filters; 9 C taps of a filter and its bias stand in rows.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from metarun.kernels import library
from metarun.kernels.library import call, inspected
from metarun.kernels.vmapped import tasks_first

LANES = 16  # filters that are computed together
CHANNELS = (1, 3)
TOGETHER = 8  # images whose gradients are added up in turn, whatever the number of threads


def can_convolve(images: Tensor, convolution: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether the kernels are in use and can do what `convolution` does to images [N, C, H, W]
    whose gradient nobody wants, for maps of that type."""
    weight = convolution.weight
    return (
        library.in_use is not None
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and dtype in (torch.float32, torch.bfloat16)
        and not images.requires_grad
        and images.ndim == 4
        and images.shape[1] in CHANNELS
        and min(images.shape[2:]) >= 2
        and keeps_size(convolution)
        and len(weight) % LANES == 0
        and convolution.bias is not None
    )


def keeps_size(convolution: nn.Conv2d) -> bool:
    """Whether it is one of 3×3 filters, one step apart, with zeros around the image."""
    return (
        convolution.kernel_size == (3, 3)
        and convolution.padding == convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
    )


def pooled_convolution(images: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """relu(max_pool2d(conv2d(images, weight, bias, padding=1), 2)) of images [N, C, H, W], in
    channels-last [N, F, H // 2, W // 2].

    Computed in float32 and given in float32 or bfloat16. Has derivatives of any order by weight and
    bias, and none by the images: RuntimeError is raised where one is asked for.
    """
    rows = torch.cat([weight.flatten(1).mT, bias[None]])
    maps, _ = Largest.apply(images, rows, dtype)
    return maps.movedim(-1, -3)


def patch_moments(images: Tensor) -> Tensor:
    """Σ p pᵀ over the 3×3 patches of each image with zeros around it, in float64: [N, C, H, W] ->
    [N, 9 C + 1, 9 C + 1]. A patch p is its 9 C numbers and a 1, so that the last row has their
    sums and how many patches there are."""
    return Moments.apply(images)


@inspected
class Moments(Function):
    """images [T, N, C, H, W] -> [T, N, 9 C + 1, 9 C + 1], a constant."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        rows = 9 * images.shape[-3] + 1
        moments = images.new_empty(*images.shape[:-3], rows, rows, dtype=torch.float64)
        call("moments", images, moments, shape_of(images))
        return moments

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, images: Tensor) -> tuple[Tensor, int]:
        return Moments.apply(*tasks_first([images], in_dims, info.batch_size)), 0


@inspected
class Largest(Function):
    """(images, rows [T, 9 C + 1, F], type) -> the maps [T, N, H // 2, W // 2, F], and which number
    of its square each is: 0 to 3, or 4 where ReLU let none through."""

    @staticmethod
    def forward(images: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        maps = new_maps(images, rows.shape[-1], dtype)
        chosen = torch.empty_like(maps, dtype=torch.uint8)
        call("largest", images, rows, maps, chosen, shape_of(images, maps))
        return maps, chosen

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        images, _, _ = inputs
        _, chosen = output
        ctx.mark_non_differentiable(chosen)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, chosen)

    @staticmethod
    def backward(ctx: Any, by_maps: Tensor | None, _: None) -> tuple[None, Tensor | None, None]:
        if by_maps is None:
            return None, None, None
        images, chosen = constants(ctx)
        return None, Gradient.apply(images, chosen, by_maps), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        *tensors, dtype = inputs
        return Largest.apply(*tasks_first(tensors, in_dims, info.batch_size), dtype), (0, 0)


@inspected
class Gradient(Function):
    """(images, chosen, the gradient by the maps) -> that by the rows, which is linear in it."""

    @staticmethod
    def forward(images: Tensor, chosen: Tensor, by_maps: Tensor) -> Tensor:
        *tasks, count, channels, _, _ = images.shape
        parts = -(-count // TOGETHER)
        sums = images.new_zeros(*tasks, parts, 9 * channels + 1, by_maps.shape[-1])
        shape = shape_of(images, by_maps)
        call("gradient", images, chosen, by_maps, sums, ctypes.c_int64(TOGETHER), shape)
        return sums.sum(-3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        images, chosen, by_maps = inputs
        ctx.dtype = by_maps.dtype
        ctx.save_for_backward(images, chosen)

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor) -> tuple[None, None, Tensor]:
        images, chosen = constants(ctx)
        return None, None, Chosen.apply(images, chosen, by_rows, ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[Tensor, int]:
        return Gradient.apply(*tasks_first(list(tensors), in_dims, info.batch_size)), 0


@inspected
class Chosen(Function):
    """(images, chosen, rows, type) -> of the convolution's numbers those chosen, else 0: linear in
    the rows."""

    @staticmethod
    def forward(images: Tensor, chosen: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        maps = new_maps(images, rows.shape[-1], dtype)
        call("chosen_ones", images, rows, chosen, maps, shape_of(images, maps))
        return maps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        images, chosen, _, _ = inputs
        ctx.save_for_backward(images, chosen)

    @staticmethod
    def backward(ctx: Any, by_maps: Tensor) -> tuple[None, None, Tensor, None]:
        images, chosen = constants(ctx)
        return None, None, Gradient.apply(images, chosen, by_maps), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, dtype = inputs
        return Chosen.apply(*tasks_first(tensors, in_dims, info.batch_size), dtype), 0


def constants(ctx: Any) -> tuple[Tensor, Tensor]:
    """The images and what was chosen. Raises RuntimeError if the images are no constant, which
    nothing tells beforehand within torch.vmap."""
    if ctx.needs_input_grad[0]:
        raise RuntimeError("the kernels have no gradient by the images: use device.compile=false")
    return ctx.saved_tensors


class Shape(ctypes.Structure):
    """`struct shape` of the C functions."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in "tasks images channels height width filters".split()],
        ("brief", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def new_maps(images: Tensor, filters: int, dtype: torch.dtype) -> Tensor:
    """Maps to fill in."""
    *before, _, height, width = images.shape
    return images.new_empty(*before, height // 2, width // 2, filters, dtype=dtype)


def shape_of(images: Tensor, maps: Tensor | None = None) -> Shape:
    """What the C functions are told of them."""
    *tasks, count, channels, height, width = images.shape
    filters, brief = (maps.shape[-1], maps.dtype == torch.bfloat16) if maps is not None else (0, 0)
    threads = torch.get_num_threads()
    return Shape(torch.Size(tasks).numel(), count, channels, height, width, filters, brief, threads)
