"""Batch normalisation that says whose statistics it uses (Ioffe and Szegedy 2015)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.backbones.normalise import normalise, normalise_and_measure
from metarun.errors import UserError

MODES = ("running", "batch", "support", "none")


class BatchNorm(nn.Module):
    """Normalises dimension 1 of x [N, C, ...], then scales and shifts each channel.

    `mode="running"` trains on the batch's statistics and tests on their running mean: inductive,
    a prediction does not depend on what else is in the batch. `mode="batch"` uses the batch's own
    statistics always, so a test on a query set is transductive. `mode="support"` uses those of the
    task's support set, which `statistics_from` points out: inductive, and still the task's own
    (the MetaBN of Bronskill et al. 2020, "TaskNorm", sec. 3.2).
    """

    # Modes "batch" and "support": the first rows, or those marked in [N], that count in statistics.
    counted: int | Tensor | None = None

    # Mode "running": trains by operations of ours, which torch.vmap does faster than torch's own.
    by_hand = False

    def __init__(self, channels: int, mode: str, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        if mode not in MODES:
            raise UserError(f"backbone.batch_norm={mode}: choose one of {', '.join(MODES)}")
        self.batch_norm_mode, self.momentum, self.eps = mode, momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if mode == "running":
            self.running_mean: Tensor
            self.running_var: Tensor
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and type as x."""
        if self.batch_norm_mode == "running":
            if self.training and self.by_hand:
                return self.remembering(x)
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.training,
                momentum=self.momentum,
                eps=self.eps,
            )
        return batch_normalised(x, self.weight, self.bias, self.eps, self.counted)

    def remembering(self, x: Tensor) -> Tensor:
        """x normalised by its own statistics, which the running ones take in."""
        full = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics lose bits
        y, mean, variance = normalise_and_measure(full, self.weight, self.bias, self.eps)
        self.take_in(mean, variance, x.numel() // x.shape[1])
        return y.to(x.dtype)

    def take_in(self, mean: Tensor, variance: Tensor, numbers: int) -> None:
        """Move the running statistics towards these, of so many numbers in each channel."""
        self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        unbiased = variance * numbers / (numbers - 1)
        self.running_var.mul_(1 - self.momentum).add_(self.momentum * unbiased)


def normalisation(channels: int, mode: str) -> nn.Module:
    """The layer that `backbone.batch_norm` asks for: batch normalisation, or nothing at all."""
    return nn.Identity() if mode == "none" else BatchNorm(channels, mode)


def mode_of(network: nn.Module) -> str:
    """Whose statistics the network's first batch normalisation uses; "none" without one."""
    return next(iter(modes_of(network.modules())), "none")


def modes_of(modules: Iterable[nn.Module]) -> list[str]:
    """Whose statistics each batch normalisation among the modules uses: torch's own, "running"."""
    return [
        module.batch_norm_mode if isinstance(module, BatchNorm) else "running"
        for module in modules
        if isinstance(module, BatchNorm | _BatchNorm)
    ]


@contextmanager
def statistics_from(
    network: nn.Module, *, support: int | None = None, real: Tensor | None = None
) -> Iterator[None]:
    """Within this block, layers of mode "support" take the first `support` rows for the support
    set; with marks `real` [N], rows that are padding count in no statistics."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
    for layer in layers:
        first = support if layer.batch_norm_mode == "support" else None
        if real is not None and first is not None:
            layer.counted = real & (torch.arange(len(real), device=real.device) < first)
        else:
            layer.counted = first if real is None else real
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = None


def batch_normalised(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, counted: int | Tensor | None = None
) -> Tensor:
    """x [N, C, ...] of which the `counted` rows have mean `bias` and standard deviation `weight` in
    each channel: the first so many, those marked in [N], or (None) all.

    Not torch's own, which is silently wrong when autograd differentiates through vmap of a
    gradient, as in an inner loop over many tasks.
    """
    full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # statistics lose bits
    if counted is None:
        return normalise(full, weight, bias, eps).to(x.dtype)
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    centred = full - counted_mean(full, counted)
    variance = counted_mean(centred.square(), counted)
    scale = weight.view(shape) * (variance + eps).rsqrt()
    return (centred * scale + bias.view(shape)).to(x.dtype)


def counted_mean(x: Tensor, counted: int | Tensor) -> Tensor:
    """The mean of each channel of x [N, C, ...] over the counted rows: [1, C, 1, ...]."""
    others = [d for d in range(x.ndim) if d != 1]
    if isinstance(counted, int):
        return x[:counted].mean(dim=others, keepdim=True)
    share = (counted / counted.sum()).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return (x * share).sum(dim=others, keepdim=True) / x[0, 0].numel()
