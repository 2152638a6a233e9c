"""Orders in which a test reads a support set: as good as random, and the same every time."""

import torch
from torch import Tensor


def fixed_order_keys(examples: int, seed: int = 0) -> Tensor:
    """Random numbers [examples] to sort by; the first ones do not depend on how many there are."""
    return torch.rand(examples, generator=torch.Generator().manual_seed(seed))


def fixed_orders(examples: int, real: Tensor | None, tasks: int) -> Tensor:
    """An order of every task's examples, [tasks, examples]; those not `real` [T, N] come last."""
    keys = fixed_order_keys(examples).expand(tasks, -1)
    if real is not None:
        keys = keys.to(real.device, non_blocking=True).masked_fill(~real, torch.inf)
    return keys.argsort(dim=1)
