"""Batch normalisation by the batch's own statistics, with both derivatives worked out by hand.

Differentiated twice, as by an inner loop, its dozen elementary operations would each be a pass over
the activations, and their derivatives several more; here everything is a sum over a channel or one
combination of whole tensors. Ioffe and Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

x [N, C, ...] has M numbers a channel; c is x less its mean, σ² the mean of c², r = (σ² + ε)^-1/2
and x̂ = r c. Under torch.vmap each task has its own: the functions below then get x [T, N, C, ...]
and γ, β, r [T, C], and `tasks`, the number of such dimensions in front, says so.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarun.kernels.vmapped import tasks_first


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """γ x̂ + β for x [N, C, ...], γ = `weight` [C] and β = `bias` [C].

    Its first and second derivatives are right, which is all that a meta-gradient takes; third ones
    are not.
    """
    return Normalise.apply(x, weight, bias, eps, 0)[0]


def normalise_and_measure(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the mean and variance [C] of x, which are constants."""
    y, c, r = Normalise.apply(x, weight, bias, eps, 0)
    with torch.no_grad():
        mean = (x[0] - c[0]).reshape(x.shape[1], -1)[
            :, 0
        ]  # what was taken out, everywhere the same
        return y, mean, r**-2 - eps


class Normalise(Function):
    """(x, γ, β, ε, tasks) -> (γ x̂ + β, c, r), the last two for NormaliseBackward alone."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, tasks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Not torch.var_mean, which takes tens of times as long as a sum where x is laid out by
        # channels or tasks; and not the mean of squares, which loses what a large mean hides.
        m = count(x, tasks)
        c = x - spread(total(x, tasks) / m, x)
        r = (total(c * c, tasks) / m + eps).rsqrt()
        return combined(bias, (weight * r, c)), c, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        _, weight, _, _, ctx.tasks = inputs
        _, c, r = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(c, weight, r)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g, more_by_x, _ = grads
        if g is None:
            return more_by_x, None, None, None, None
        by_x, by_weight, by_bias = NormaliseBackward.apply(g, *ctx.saved_tensors, ctx.tasks)
        by_x = by_x if more_by_x is None else by_x + more_by_x
        return by_x, by_weight, by_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, tuple]:
        *tensors, eps, tasks = inputs
        tensors = tasks_first(tensors, in_dims, info.batch_size)
        return Normalise.apply(*tensors, eps, tasks + 1), (0, 0, 0)


class NormaliseBackward(Function):
    """(g, c, γ, r, tasks) -> the gradients by x, γ and β, where g is the one by γ x̂ + β.

    By x: γ r (g − Σg / M − x̂ Σ(g x̂) / M).
    """

    @staticmethod
    def forward(
        g: Tensor, c: Tensor, weight: Tensor, r: Tensor, tasks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, scale = count(c, tasks), weight * r
        by_bias, by_weight = total(g, tasks), r * total(g * c, tasks)
        by_x = combined(-scale * by_bias / m, (-scale * r * by_weight / m, c), (scale, g))
        return by_x, by_weight, by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.tasks = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By g, by x in the place of c, which hands it on as it is, and by γ; r gets nothing.

        With w, p, q the gradients by the three outputs, what is differentiated is
        γ r k + p Σ(g x̂) + q Σg, where k = Σ(w g) − Σw Σg / M − Σ(w x̂) Σ(g x̂) / M.
        """
        w, p, q = grads
        g, c, weight, r, sum_gx, sum_g = ctx.saved_tensors
        m, scale = count(c, ctx.tasks), weight * r
        sum_w, sum_wx = total(w, ctx.tasks), r * total(w * c, ctx.tasks)
        k = total(w * g, ctx.tasks) - (sum_w * sum_g + sum_wx * sum_gx) / m
        by_g = combined(q - scale * sum_w / m, (r * (p - scale * sum_wx / m), c), (scale, w))

        # By x̂ it is of_w · w + of_g · g, and x̂ is x normalised; r itself moves with x too.
        of_w, of_g = -scale * sum_gx / m, p - scale * sum_wx / m
        shift = -r * (of_w * sum_w + of_g * sum_g) / m
        of_c = -r * r * (of_w * sum_wx + of_g * sum_gx + scale * k) / m
        by_x = combined(shift, (of_c, c), (r * of_w, w), (r * of_g, g))
        return by_g, by_x, r * k, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, tuple]:
        *tensors, tasks = inputs
        tensors = tasks_first(tensors, in_dims, info.batch_size)
        return NormaliseBackward.apply(*tensors, tasks + 1), (0, 0, 0)


def count(x: Tensor, tasks: int) -> int:
    """Numbers in a channel of a task."""
    return x.shape[tasks:].numel() // x.shape[tasks + 1]


def total(x: Tensor, tasks: int) -> Tensor:
    """The sum of each channel: [T, N, C, ...] -> [T, C]."""
    return x.sum([d for d in range(tasks, x.ndim) if d != tasks + 1])


def spread(values: Tensor, like: Tensor) -> Tensor:
    """[T, C] in a shape that meets [T, N, C, ...]."""
    *tasks, channels = values.shape
    return values.view(*tasks, 1, channels, *[1] * (like.ndim - values.ndim - 1))


def combined(constant: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """c + a · x + b · y + …, of coefficients [T, C] and tensors [T, N, C, ...]."""
    (first, x), *others = products
    result = torch.addcmul(spread(constant, x), spread(first, x), x)
    for coefficient, y in others:
        result = torch.addcmul(result, spread(coefficient, y), y)
    return result
