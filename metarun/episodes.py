"""The batches that flow from samplers to algorithms. The first dimension is always the task."""

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.errors import UserError

PADDING = -1  # the label of an example that only fills up a task


class Episodes(NamedTuple):
    """T tasks, each with a labelled support set and a query set to be labelled.

    support_x [T, S, *input], support_y [T, S], query_x [T, Q, *input], query_y [T, Q]; labels are
    0 .. way - 1 and belong to the task alone. In a regression the targets are real values
    [T, S, way] and [T, Q, way], and way is how many an example has.

    Tasks of unlike sizes are filled up, at the end, with examples whose label is PADDING, and
    `ways` [T] tells how many classes each has: 0 .. ways - 1. None: all alike, and no padding.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    way: int
    ways: Tensor | None = None

    @property
    def real_support(self) -> Tensor | None:
        """Which support examples are no padding [T, S]; None: all."""
        return None if self.ways is None else self.support_y != PADDING

    @property
    def real_query(self) -> Tensor | None:
        """Which query examples are no padding [T, Q]; None: all."""
        return None if self.ways is None else self.query_y != PADDING

    def known(self, scores: Tensor) -> Tensor:
        """Scores [T, Q, way], minus infinity for the classes that a task does not have."""
        if self.ways is None:
            return scores
        absent = torch.arange(self.way, device=scores.device) >= self.ways[..., None, None]
        return scores.masked_fill(absent, -torch.inf)

    def over_tasks(self) -> tuple["Episodes"]:
        """The `in_dims` of torch.vmap for a function of one task: Episodes without the T."""
        return (Episodes(0, 0, 0, 0, None, None if self.ways is None else 0),)  # type: ignore[arg-type]


def gather(split: Split, support: Tensor, query: Tensor) -> Episodes:
    """The tasks whose examples are at rows `support` [T, way, shot] and `query` [T, way, query].

    Row k of `way` is given label k.
    """
    return episodes_at(split, torch.cat([support, query], dim=2), support.shape[2])


def episodes_at(split: Split, rows: Tensor, shot: int) -> Episodes:
    """As `gather`, of rows [T, way, shot + query] in which each class's support comes first."""
    tasks, way, examples = rows.shape
    x = split.take(rows)  # [T, way, shot + query, *input]
    labels = torch.arange(way, device=split.device)[:, None]
    support_y, query_y = (
        labels.expand(tasks, way, each).flatten(1) for each in (shot, examples - shot)
    )  # [T, S], [T, Q]
    return Episodes(
        x[:, :, :shot].flatten(1, 2), support_y, x[:, :, shot:].flatten(1, 2), query_y, way
    )


def refuse_other_way(episodes: Episodes, way: int) -> None:
    """Raise UserError unless the tasks have `way` classes, for whoever learns so many outputs."""
    if episodes.way != way:
        raise UserError(
            f"algo.way={way} outputs are learnt, but a task has way={episodes.way}: "
            f"set way={episodes.way}, or sampler.way and eval.way to {way}"
        )
