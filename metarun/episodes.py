"""The batches that flow from samplers to algorithms. The first dimension is always the task."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.errors import UserError

PADDING = -1  # the label of an example that only fills up a task


class Examples(Protocol):
    """What tasks are drawn from: a split of a data set (`data.split.Split` tells the rest), or the
    splits of several."""

    @property
    def first_row(self) -> Tensor: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def superclass(self) -> Tensor: ...
    @property
    def superclasses(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> Tensor | None:
        """The number of each class's data set [classes]; None: all are of one."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...

    def stored(self, rows: Tensor) -> Tensor: ...
    def take(self, rows: Tensor) -> Tensor: ...


class Episodes(NamedTuple):
    """T tasks, each with a labelled support set and a query set to be labelled.

    support_x [T, S, *input], support_y [T, S], query_x [T, Q, *input], query_y [T, Q]; labels are
    0 .. way - 1 and belong to the task alone. In a regression the targets are real values
    [T, S, way] and [T, Q, way], and way is how many an example has.

    Tasks of unlike sizes are filled up, at the end, with examples whose label is PADDING, and
    `ways` [T] tells how many classes each has: 0 .. ways - 1. None: all alike, and no padding.
    `sizes` [T, 3], on the CPU, then has what the host would have to ask a GPU for: how many support
    examples, query examples and classes each task has. None: it is left to be asked for.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    way: int
    ways: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def real_support(self) -> Tensor | None:
        """Which support examples are no padding [T, S]; None: all."""
        return None if self.ways is None else self.support_y != PADDING

    @property
    def real_query(self) -> Tensor | None:
        """Which query examples are no padding [T, Q]; None: all."""
        return None if self.ways is None else self.query_y != PADDING

    def sizes_on_cpu(self) -> Tensor:
        """How many support examples, query examples and classes each task has [T, 3]."""
        assert self.ways is not None
        if self.sizes is not None:
            return self.sizes
        return sizes_of(self.support_y, self.query_y, self.ways).cpu()

    def known(self, scores: Tensor) -> Tensor:
        """Scores [T, Q, way], minus infinity for the classes that a task does not have."""
        if self.ways is None:
            return scores
        absent = torch.arange(self.way, device=scores.device) >= self.ways[..., None, None]
        return scores.masked_fill(absent, -torch.inf)

    def over_tasks(self) -> tuple["Episodes"]:
        """The `in_dims` of torch.vmap for a function of one task: Episodes without the T."""
        ways = None if self.ways is None else 0
        return (Episodes(0, 0, 0, 0, None, ways, None),)  # type: ignore[arg-type]


class Rows(NamedTuple):
    """Which examples of a split make T tasks: Episodes with the examples' rows in their place.

    support [T, S], query [T, Q]; padding has row 0. The rest is as in Episodes, which `gather`
    makes of it.
    """

    support: Tensor
    support_y: Tensor
    query: Tensor
    query_y: Tensor
    way: int
    ways: Tensor | None = None

    def of_tasks(self, chosen: slice) -> "Rows":
        """Those of the tasks, with no more padding than they need."""
        ways = None if self.ways is None else self.ways[chosen]
        support_y, query_y = self.support_y[chosen], self.query_y[chosen]
        places = support_y.shape[1], query_y.shape[1]
        if ways is not None:
            places = most_real(support_y), most_real(query_y)
        return Rows(
            self.support[chosen, : places[0]],
            support_y[:, : places[0]],
            self.query[chosen, : places[1]],
            query_y[:, : places[1]],
            self.way,
            ways,
        )


class NamedTasks(NamedTuple):
    """Tasks that a data set brings with it, [T] of them, and what each is called."""

    names: tuple[str, ...]
    rows: Rows


def most_real(y: Tensor) -> int:
    """How many examples of labels y [T, N] the largest task has."""
    return int((y != PADDING).sum(dim=1).max())


def joined(parts: Sequence[Rows]) -> Rows:
    """The tasks of all the parts, filled up to the size of the largest."""
    ways = [part.ways for part in parts if part.ways is not None]
    return Rows(
        side_by_side([part.support for part in parts], 0),
        side_by_side([part.support_y for part in parts], PADDING),
        side_by_side([part.query for part in parts], 0),
        side_by_side([part.query_y for part in parts], PADDING),
        parts[0].way,
        torch.cat(ways) if ways else None,
    )


def side_by_side(parts: Sequence[Tensor], value: int) -> Tensor:
    """The tasks of all the parts [T, N], shorter ones filled up with `value`."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=value) for part in parts])


def labelled(rows: Tensor, way: int, shot: int) -> Rows:
    """The tasks of rows [T, way · (shot + query)]: support, then query, each class by class.

    Class k of `way` is given label k.
    """
    tasks, examples = rows.shape
    support, query = rows[:, : way * shot], rows[:, way * shot :]
    support_y = labels(tasks, way, shot, rows.device)
    query_y = labels(tasks, way, examples // way - shot, rows.device)
    return Rows(support, support_y, query, query_y, way)


@cache  # every meta-batch of a run has the same, and a recorded step reads them where they were
def labels(tasks: int, way: int, each: int, device: torch.device) -> Tensor:
    """0 .. way - 1, each so often, in order, for so many tasks: [T, way · each]; not to be written
    to."""
    return torch.arange(way, device=device).repeat_interleave(each).repeat(tasks, 1)


def gather(split: Examples, rows: Rows) -> Episodes:
    """The tasks whose examples are at these rows, on the split's device."""
    support, support_y, query, query_y, way, ways = rows
    x = split.take(torch.cat([support, query], dim=1))  # [T, S + Q, *input]
    sizes = None
    if ways is not None:
        sizes = sizes_of(support_y, query_y, ways)
        ways = ways.to(split.device, non_blocking=True)
    support_y, query_y = (y.to(split.device, non_blocking=True) for y in (support_y, query_y))
    places = support.shape[1]
    return Episodes(x[:, :places], support_y, x[:, places:], query_y, way, ways, sizes)


def sizes_of(support_y: Tensor, query_y: Tensor, ways: Tensor) -> Tensor:
    """How many support examples, query examples and classes each task has [T, 3]."""
    examples = [(y != PADDING).sum(dim=1) for y in (support_y, query_y)]
    return torch.stack([*examples, ways], dim=1)


def of_tasks(batch: Any, chosen: slice) -> Any:
    """Those of the tasks of a batch, which is a named tuple of tensors [T, ...] and numbers."""
    return batch._make(v[chosen] if isinstance(v, Tensor) else v for v in batch)


def refuse_other_way(episodes: Episodes, way: int) -> None:
    """Raise UserError unless the tasks have `way` classes, for whoever learns so many outputs."""
    if episodes.way != way:
        raise UserError(
            f"algo.way={way} outputs are learnt, but a task has way={episodes.way}: "
            f"set way={episodes.way}, or sampler.way and eval.way to {way}"
        )
