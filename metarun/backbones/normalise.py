"""Batch normalisation by the batch's own statistics, with both derivatives worked out by hand.

Differentiated twice, as by an inner loop, its dozen elementary operations would each be a pass over
the activations, and their derivatives several more; here everything is a sum over a channel or one
combination of whole tensors. Ioffe and Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

x [N, C, ...] has M numbers a channel, of mean μ and variance σ²; r = (σ² + ε)^-1/2 and
x̂ = r (x − μ). Under torch.vmap every shape has the tasks in front.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """γ x̂ + β for x [N, C, ...], γ = `weight` [C] and β = `bias` [C]; twice differentiable."""
    return Normalise.apply(x, weight, bias, eps)[0]


class Normalise(Function):
    """(x, γ, β, ε) -> (γ x̂ + β, μ, r); the last two are constants to whoever differentiates."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        variance, mean = torch.var_mean(x, others(x), correction=0)
        r = (variance + eps).rsqrt()
        return combined(bias - weight * r * mean, (weight * r, x)), mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, weight, *_ = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, weight, mean, r)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *NormaliseBackward.apply(grads[0], *ctx.saved_tensors), None


class NormaliseBackward(Function):
    """(g, x, γ, μ, r) -> the gradients by x, γ and β, where g is the one by γ x̂ + β.

    By x: γ r (g − Σg / M − x̂ Σ(g x̂) / M).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor
    ) -> tuple[Tensor, ...]:
        m, scale = count(x), weight * r
        by_bias = total(g)
        by_weight = r * (total(g * x) - mean * by_bias)
        of_x = -scale * r * by_weight / m
        by_x = combined(-scale * by_bias / m - of_x * mean, (of_x, x), (scale, g))
        return by_x, by_weight, by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By g, x and γ, where μ and r stand for what they are of x; the last two get nothing.

        With w, p, q the gradients by the three outputs, what is differentiated is
        γ r k + p Σ(g x̂) + q Σg, where k = Σ(w g) − Σw Σg / M − Σ(w x̂) Σ(g x̂) / M.
        """
        w, p, q = grads
        g, x, weight, mean, r, sum_gx, sum_g = ctx.saved_tensors
        m, scale = count(x), weight * r
        sum_w = total(w)
        sum_wx = r * (total(w * x) - mean * sum_w)
        k = total(w * g) - (sum_w * sum_g + sum_wx * sum_gx) / m

        of_x = r * (p - scale * sum_wx / m)
        by_g = combined(q - scale * sum_w / m - of_x * mean, (of_x, x), (scale, w))

        # By x̂ it is of_w · w + of_g · g, and x̂ is x normalised; r itself moves with x too.
        of_w, of_g = -scale * sum_gx / m, p - scale * sum_wx / m
        shift = -r * (of_w * sum_w + of_g * sum_g) / m
        of_x = -r * r * (of_w * sum_wx + of_g * sum_gx + scale * k) / m
        by_x = combined(shift - of_x * mean, (of_x, x), (r * of_w, w), (r * of_g, g))
        return by_g, by_x, r * k, None, None


def others(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [d for d in range(x.ndim) if d != 1]


def count(x: Tensor) -> int:
    """Numbers in a channel."""
    return x.numel() // x.shape[1]


def total(x: Tensor) -> Tensor:
    """The sum of each channel: [N, C, ...] -> [C]."""
    return x.sum(others(x))


def combined(constant: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """c + a · x + b · y + …, of coefficients [C] and tensors [N, C, ...]."""
    shape = [-1 if d == 1 else 1 for d in range(products[0][1].ndim)]
    result = constant.view(shape)
    for coefficient, tensor in products:
        result = torch.addcmul(result, tensor, coefficient.view(shape))
    return result
