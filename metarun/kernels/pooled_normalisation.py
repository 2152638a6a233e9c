"""Batch normalisation, 2×2 max-pooling and ReLU as one, by the batch's own statistics.

What `metarun.backbones.normalise` does to whole maps, with the same symbols and the same
derivatives, worked out by hand; but the gradient g by what comes out is nothing where a number was
not pooled, and is never spread out over the whole map. Shapes: T for the tasks, any number of
dimensions, N images of each, maps of H × W pixels, F filters, last.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarun.kernels.library import call, inspected
from metarun.kernels.vmapped import tasks_first

AT_ONCE = 2**16  # numbers whose sums are computed in turn, about what a core's cache holds


@inspected
class PoolScaled(Function):
    """(x, scale, shift) -> (relu(max_pool2d(scale x + shift, 2)), chosen), constants."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        *before, height, width, filters = x.shape
        y = x.new_empty(*before, height // 2, width // 2, filters)
        chosen = torch.empty_like(y, dtype=torch.uint8)
        call("pool_scaled", x, scale, shift, y, chosen, maps_of(x))
        return y, chosen

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[tuple, tuple]:
        return PoolScaled.apply(*tasks_first(list(tensors), in_dims, info.batch_size)), (0, 0)


@inspected
class PooledNormalise(Function):
    """(x [T, N, H, W, F], γ [T, F], β, ε) -> (relu(max_pool2d(γ x̂ + β, 2)), chosen, mean, r):
    which number of each square was pooled, 0 to 3, or 4 where ReLU let none through; the mean of x
    and r [T, F]. The last three are constants."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, r = of_filters(x, 2)
        call("mean_and_scale", x, ctypes.c_double(eps), mean, r, maps_of(x))
        scale = weight * r
        y, chosen = PoolScaled.apply(x, scale, bias - scale * mean)
        return y, chosen, mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, weight, _, _ = inputs
        _, *constants = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constants)
        ctx.save_for_backward(x, weight, *constants)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return None, None, None, None
        return *PooledNormaliseBackward.apply(grads[0], *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        *tensors, eps = inputs
        tensors = tasks_first(tensors, in_dims, info.batch_size)
        return PooledNormalise.apply(*tensors, eps), (0, 0, 0, 0)


@inspected
class PooledNormaliseBackward(Function):
    """(g, x, γ, chosen, mean, r) -> the gradients by x, γ and β."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, chosen: Tensor, mean: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, scale = count(x), weight * r
        by_bias, of_c = of_filters(x, 2)
        call("sums_of_pooled", g, x, chosen, mean, by_bias, of_c, maps_of(x))
        by_weight = r * of_c
        by_x = combined(
            x, mean, g, chosen, a=-scale * by_bias / m, b=-scale * r * by_weight / m, c=scale
        )
        return by_x, by_weight, by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *SecondDerivatives.apply(*grads, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[tuple, tuple]:
        tensors = tuple(tasks_first(list(tensors), in_dims, info.batch_size))
        return PooledNormaliseBackward.apply(*tensors), (0, 0, 0)


@inspected
class SecondDerivatives(Function):
    """(w, p, q, g, x, γ, chosen, mean, r, Σ(g x̂), Σg) -> the gradients by g, x and γ of what
    PooledNormaliseBackward gives, w, p and q being those by its outputs: as in NormaliseBackward,
    where it is explained."""

    @staticmethod
    def forward(
        w: Tensor,
        p: Tensor,
        q: Tensor,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        chosen: Tensor,
        mean: Tensor,
        r: Tensor,
        sum_gx: Tensor,
        sum_g: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, scale = count(x), weight * r
        sum_w, sum_wc, sum_wg = of_filters(x, 3)
        call("sums_of_whole", w, x, g, chosen, mean, sum_w, sum_wc, sum_wg, maps_of(x))
        sum_wx = r * sum_wc
        k = sum_wg - (sum_w * sum_g + sum_wx * sum_gx) / m
        by_g = torch.empty_like(g, memory_format=torch.contiguous_format)
        abd = torch.stack([q - scale * sum_w / m, r * (p - scale * sum_wx / m), scale])
        call("combine_pooled", x, mean, abd, chosen, w, by_g, maps_of(x))

        of_w, of_g = -scale * sum_gx / m, p - scale * sum_wx / m
        shift = -r * (of_w * sum_w + of_g * sum_g) / m
        of_c = -r * r * (of_w * sum_wx + of_g * sum_gx + scale * k) / m
        by_x = combined(x, mean, g, chosen, a=shift, b=of_c, c=r * of_g, d=r * of_w, w=w)
        return by_g, by_x, r * k

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("the kernels have no third derivatives: use device.compile=false")

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[tuple, tuple]:
        tensors = tuple(tasks_first(list(tensors), in_dims, info.batch_size))
        return SecondDerivatives.apply(*tensors), (0, 0, 0)


class Maps(ctypes.Structure):
    """`struct maps` of the C functions."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in "tasks images height width filters together".split()],
        ("brief", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def maps_of(x: Tensor) -> Maps:
    """What the C functions are told of x."""
    *tasks, images, height, width, filters = x.shape
    together = max(1, AT_ONCE // (height * width * filters))
    brief, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
    return Maps(torch.Size(tasks).numel(), images, height, width, filters, together, brief, threads)


def count(x: Tensor) -> int:
    """Numbers of a filter in a task."""
    return x.shape[-4:-1].numel()


def of_filters(x: Tensor, number: int) -> Iterator[Tensor]:
    """Room for so many numbers of each filter, [T, F] each."""
    return (x.new_empty(*x.shape[:-4], x.shape[-1], dtype=torch.float32) for _ in range(number))


def combined(
    x: Tensor,
    mean: Tensor,
    g: Tensor,
    chosen: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    w: Tensor | None = None,
) -> Tensor:
    """a + b (x - mean) + c g + d w, where g is pooled and stands where it was pooled from."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    abcd = torch.stack([a, b, c, torch.zeros_like(a) if d is None else d])
    call("combine", x, mean, abcd, g, chosen, w, out, maps_of(x))
    return out
