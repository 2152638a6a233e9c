"""Features of many tasks' examples in one pass."""

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import mode_of, statistics_of_first
from metarun.errors import UserError


def embed(backbone: nn.Module, x: Tensor, support: int) -> Tensor:
    """Features of every example: [T, N, *input] -> [T, N, *features].

    The first `support` examples of each task are its support set. Batch norm that uses the task's
    own statistics takes those of one task at a time, so that a task's features do not depend on
    which other tasks are computed beside it.
    """
    if mode_of(backbone) in ("batch", "support"):
        with statistics_of_first(backbone, support):
            return torch.vmap(backbone, randomness="different")(x)
    return backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def embed_task(backbone: nn.Module, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of support and query, which go through together: [T, S, ...] and [T, Q, ...]."""
    support = support_x.shape[1]
    z = embed(backbone, torch.cat([support_x, query_x], dim=1), support)
    return z[:, :support], z[:, support:]


def embed_apart(backbone: nn.Module, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """As `embed_task`, but with batch norm of mode "batch" the query has statistics of its own."""
    if mode_of(backbone) != "batch":
        return embed_task(backbone, support_x, query_x)
    own = [embed(backbone, x, support=x.shape[1]) for x in (support_x, query_x)]
    return own[0], own[1]


def out_dim(backbone: nn.Module) -> int:
    """How many features of an example the backbone gives, as one vector.

    Raises UserError if it does not tell, or gives maps.
    """
    size = getattr(backbone, "out_dim", None)
    if not isinstance(size, int):
        raise UserError(
            f"{type(backbone).__name__} has no out_dim, the number of its features, which this "
            "algorithm needs: use backbone=conv4 or mlp, or give yours one"
        )
    if getattr(backbone, "gives_maps", False):
        raise UserError("backbone.flatten=false: this algorithm needs it to be true")
    return size


def at_least_float32(z: Tensor) -> Tensor:
    """z in float32, or in its own type where that is finer."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
