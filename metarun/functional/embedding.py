"""Features of many tasks' examples in one pass."""

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import mode_of, statistics_from
from metarun.episodes import PADDING, Episodes
from metarun.errors import UserError


def embed(
    backbone: nn.Module,
    x: Tensor,
    support: int,
    real: Tensor | None = None,
    count: int | None = None,
) -> Tensor:
    """Features of every example: [T, N, *input] -> [T, N, *features].

    The first `support` examples of each task are its support set; those that `real` [T, N] does not
    mark are padding, with features of no meaning. `count` is how many it marks; None: that is asked
    of the device. Batch norm that uses the task's own statistics
    takes those of one task at a time, so that a task's features do not depend on which other tasks
    are computed beside it.
    """
    if mode_of(backbone) in ("batch", "support"):

        def of_task(x: Tensor, real: Tensor | None) -> Tensor:
            with statistics_from(backbone, support=support, real=real):
                return backbone(x)

        in_dims = (0, None if real is None else 0)
        return torch.vmap(of_task, in_dims, randomness="different")(x, real)
    if real is None:
        return backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    places = real.nonzero_static(size=int(real.sum()) if count is None else count).unbind(1)
    z = backbone(x[places])
    return z.new_zeros(*real.shape, *z.shape[1:]).index_put(places, z)


def embed_task(backbone: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Features of support and query, which go through together: [T, S, ...] and [T, Q, ...]."""
    support = episodes.support_x.shape[1]
    x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
    real = real_examples(episodes)
    count = None if real is None else int(episodes.sizes_on_cpu()[:, :2].sum())
    z = embed(backbone, x, support, real, count)
    return z[:, :support], z[:, support:]


def embed_apart(backbone: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """As `embed_task`, but with batch norm of mode "batch" the query has statistics of its own."""
    if mode_of(backbone) != "batch":
        return embed_task(backbone, episodes)
    support_x, query_x = episodes.support_x, episodes.query_x
    support_z = embed(backbone, support_x, support_x.shape[1], episodes.real_support)
    return support_z, embed(backbone, query_x, query_x.shape[1], episodes.real_query)


def real_examples(episodes: Episodes) -> Tensor | None:
    """Which examples of support and query, side by side, are no padding [T, S + Q]; None: all.

    Of one task without the T: [S + Q].
    """
    if episodes.ways is None:
        return None
    return torch.cat([episodes.support_y, episodes.query_y], dim=-1) != PADDING


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
