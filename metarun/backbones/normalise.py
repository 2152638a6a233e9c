"""Batch normalisation by the batch's own statistics, with both derivatives worked out by hand.

Differentiated twice, as by an inner loop, its dozen elementary operations would each be a pass over
the activations, and their derivatives several more; here everything is a sum over a channel or one
combination of whole tensors. Ioffe and Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

x [N, C, ...] has M numbers a channel; c is x less its mean, σ² the mean of c², r = (σ² + ε)^-1/2
and x̂ = r c. Under torch.vmap every shape has the tasks in front.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """γ x̂ + β for x [N, C, ...], γ = `weight` [C] and β = `bias` [C]; twice differentiable."""
    return Normalise.apply(x, weight, bias, eps)[0]


class Normalise(Function):
    """(x, γ, β, ε) -> (γ x̂ + β, c, r), the last two for NormaliseBackward alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        # Not torch.var_mean, which takes tens of times as long as a sum where x is laid out by
        # channels or tasks; and not the mean of squares, which loses what a large mean hides.
        c = x - (total(x) / count(x)).view(shape(x))
        r = (total(c * c) / count(x) + eps).rsqrt()
        return combined(bias, (weight * r, c)), c, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        _, c, r = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(c, inputs[1], r)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g, more_by_x, _ = grads
        if g is None:
            return more_by_x, None, None, None
        by_x, by_weight, by_bias = NormaliseBackward.apply(g, *ctx.saved_tensors)
        return by_x if more_by_x is None else by_x + more_by_x, by_weight, by_bias, None


class NormaliseBackward(Function):
    """(g, c, γ, r) -> the gradients by x, γ and β, where g is the one by γ x̂ + β.

    By x: γ r (g − Σg / M − x̂ Σ(g x̂) / M).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, c: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        m, scale = count(c), weight * r
        by_bias, by_weight = total(g), r * total(g * c)
        by_x = combined(-scale * by_bias / m, (-scale * r * by_weight / m, c), (scale, g))
        return by_x, by_weight, by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By g, by x in the place of c, which hands it on as it is, and by γ; r gets nothing.

        With w, p, q the gradients by the three outputs, what is differentiated is
        γ r k + p Σ(g x̂) + q Σg, where k = Σ(w g) − Σw Σg / M − Σ(w x̂) Σ(g x̂) / M.
        """
        w, p, q = grads
        g, c, weight, r, sum_gx, sum_g = ctx.saved_tensors
        m, scale = count(c), weight * r
        sum_w, sum_wx = total(w), r * total(w * c)
        k = total(w * g) - (sum_w * sum_g + sum_wx * sum_gx) / m
        by_g = combined(q - scale * sum_w / m, (r * (p - scale * sum_wx / m), c), (scale, w))

        # By x̂ it is of_w · w + of_g · g, and x̂ is x normalised; r itself moves with x too.
        of_w, of_g = -scale * sum_gx / m, p - scale * sum_wx / m
        shift = -r * (of_w * sum_w + of_g * sum_g) / m
        of_c = -r * r * (of_w * sum_wx + of_g * sum_gx + scale * k) / m
        by_x = combined(shift, (of_c, c), (r * of_w, w), (r * of_g, g))
        return by_g, by_x, r * k, None


def count(x: Tensor) -> int:
    """Numbers in a channel."""
    return x.numel() // x.shape[1]


def total(x: Tensor) -> Tensor:
    """The sum of each channel: [N, C, ...] -> [C]."""
    return x.sum([d for d in range(x.ndim) if d != 1])


def shape(x: Tensor) -> list[int]:
    """The shape in which [C] meets x [N, C, ...]."""
    return [-1 if d == 1 else 1 for d in range(x.ndim)]


def combined(constant: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """c + a · x + b · y + …, of coefficients [C] and tensors [N, C, ...]."""
    result = constant.view(shape(products[0][1]))
    for coefficient, tensor in products:
        result = torch.addcmul(result, tensor, coefficient.view(shape(tensor)))
    return result
