"""Features of many tasks' examples in one pass."""

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import BatchNorm


def embed(backbone: nn.Module, x: Tensor) -> Tensor:
    """Features of every example: [T, N, *input] -> [T, N, D].

    Batch norm that uses the batch's own statistics takes those of one task at a time, so that a
    task's features do not depend on which other tasks are computed beside it.
    """
    if any(isinstance(m, BatchNorm) and m.batch_norm_mode == "batch" for m in backbone.modules()):
        return torch.vmap(backbone)(x)
    return backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])
