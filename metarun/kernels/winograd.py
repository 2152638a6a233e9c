"""3×3 convolutions with 16 multiplications in the place of 36, as Winograd has it (Lavin and Gray
2016, "Fast Algorithms for Convolutional Neural Networks", sec. 4.1, F(2×2, 3×3)).

The maps of many tasks, each with weights of its own, lie task by task and pixel by pixel. They are
of float32, or of bfloat16: then what is multiplied is rounded to it once it is transformed, and the
products are summed in float32.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from metarun.kernels import library
from metarun.kernels.library import call, inspected
from metarun.kernels.pooled_convolution import LANES, keeps_size
from metarun.kernels.vmapped import tasks_first

LARGEST = 2**17  # weight, without its taps: 16 parts of its gradient take 72 MiB
PARTS = 16  # of the tasks' tiles of 2 × 2 pixels, whose gradients are added up in turn
LEAST = 96  # tiles of such a part


def can_convolve(x: Tensor, convolution: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether the kernels are in use and this convolution of x [N, C, H, W] in type `dtype` is one
    of those that they are for."""
    weight, bias = convolution.weight, convolution.bias
    filters, channels, *_ = weight.shape
    return (
        library.in_use is not None
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and (x.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bfloat16()))
        and x.ndim == 4
        and x.shape[1] == channels
        and min(x.shape[2:]) >= 2
        and keeps_size(convolution)
        and channels % LANES == filters % LANES == 0
        and channels * filters <= LARGEST
    )


def multiplies_bfloat16() -> bool:
    """Whether the kernels do: the C file says so if it was compiled with AVX512-BF16."""
    return hasattr(library.in_use, "multiplies_bfloat16")


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias, padding=1) of x [N, C, H, W], in channels-last [N, F, H, W].

    It is of x's type; weight and bias are of float32. It has derivatives of any order; in bfloat16
    the bias's gradient is rounded image by image. An infinity comes out as no number.
    """
    y = Product.apply(x.movedim(1, -1), weight.movedim(1, -1), None, bias)
    return y.movedim(-1, 1)


@inspected
class Product(Function):
    """Of maps x [T, N, H, W, C], weight w [T, F, 3, 3, C] and maps g [T, N, H, W, F], the sum of
    all g[p] · w[q] x[p + q] differentiated by the one that is None.

    By g it is the convolution, plus the bias; by x and w its gradients, g being the one by its
    output. Each is linear in the two it is computed from, and these three are all its derivatives.
    """

    @staticmethod
    def forward(
        x: Tensor | None, weight: Tensor | None, g: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        if x is not None and g is not None:
            return by_weight(x, g)
        maps = x if g is None else g
        assert maps is not None
        assert weight is not None
        *_, filters, _, _, channels = weight.shape
        back = x is None
        y = maps.new_empty(*maps.shape[:-1], channels if back else filters)
        call(
            "convolve",
            *(maps, weight, bias, y, ctypes.c_int64(back)),
            shape_of(maps, channels, filters),
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, ...]:
        three = [by_output if t is None else t for t in ctx.saved_tensors]
        *needed, of_bias = ctx.needs_input_grad
        grads = [
            Product.apply(*three[:i], None, *three[i + 1 :], None) if need else None
            for i, need in enumerate(needed)
        ]
        return *grads, by_output.sum((-3, -2)).sum(-2, dtype=torch.float32) if of_bias else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Tensor | None) -> tuple[Tensor, int]:
        size, (_, weight, _, _) = info.batch_size, inputs
        in_front = [
            tensor if tensor is None else tasks_first([tensor], (d,), size)[0]
            for tensor, d in zip(inputs, in_dims, strict=True)
        ]
        if weight is None or weight.ndim > 4 or in_dims[1] is not None or in_dims[3] is not None:
            return Product.apply(*in_front), 0
        x, _, g, _ = in_front  # one weight for all: their images are those of one task
        (maps,) = (m for m in (x, g) if m is not None)
        folded = [m if m is None else m.flatten(0, 1) for m in (x, g)]
        y = Product.apply(folded[0], weight, folded[1], inputs[3])
        return y.unflatten(0, maps.shape[:2]), 0


def by_weight(x: Tensor, g: Tensor) -> Tensor:
    """Σ g[p] x[p + q] of x [T, N, H, W, C] and g [T, N, H, W, F]: [T, F, 3, 3, C]."""
    channels, filters = x.shape[-1], g.shape[-1]
    shape = shape_of(x, channels, filters)
    tiles = shape.images * (-(-shape.height // 2) * -(-shape.width // 2))
    parts = max(1, min(PARTS // shape.tasks, tiles // LEAST))
    sums = x.new_empty(*x.shape[:-4], parts, filters, 3, 3, channels, dtype=torch.float32)
    call("by_weight", x, g, sums, ctypes.c_int64(parts), shape)
    return sums.sum(-5) if parts > 1 else sums.squeeze(-5)


class Maps(ctypes.Structure):
    """`struct maps` of the C functions."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in "tasks images height width channels filters".split()],
        ("brief", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def shape_of(maps: Tensor, channels: int, filters: int) -> Maps:
    """What the C functions are told of maps [T, N, H, W, depth]."""
    *tasks, images, height, width, _ = maps.shape
    number, brief = torch.Size(tasks).numel(), maps.dtype == torch.bfloat16
    return Maps(number, images, height, width, channels, filters, brief, torch.get_num_threads())
