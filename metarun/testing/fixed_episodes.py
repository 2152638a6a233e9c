"""Test episodes, fixed by a seed: every run on the same data answers the same ones."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from metarun.data.functions import Functions as Family
from metarun.data.split import stack_classes
from metarun.episodes import PADDING, Episodes, Examples, NamedTasks, Rows, gather, joined
from metarun.interfaces import Data, TestSampler
from metarun.samplers.functions import Functions
from metarun.seeds import stream

DRAWN_AT_ONCE = 100  # changing it changes every test episode
MOST_FEATURES = 2**31  # bytes of them that a test keeps


class FixedEpisodes(Protocol):
    """A list of test tasks, fixed by a seed."""

    def __len__(self) -> int: ...

    def batch(self, rows: slice) -> Episodes:
        """Those of the tasks, on the device."""

    def part(self, rows: slice) -> "FixedEpisodes":
        """The list of those of the tasks alone."""

    @property
    def disjoint(self) -> int:
        """How many tasks without a common example their examples would make."""

    @property
    def task_names(self) -> tuple[str, ...] | None:
        """What each task is called [E]; None if they have no names."""

    @property
    def sha256(self) -> str:
        """Identifies the episodes: results with equal values can be paired episode by episode."""


@dataclass(frozen=True)
class RowEpisodes:
    """Tasks of stored examples, at these rows of the split."""

    split: Examples
    rows: Rows
    within_superclass: bool = False  # all the classes of a task are of one

    def __len__(self) -> int:
        return len(self.rows.support)

    def batch(self, rows: slice) -> Episodes:
        """Those of the tasks, on the split's device."""
        return gather(self.split, self.rows.of_tasks(rows))

    def part(self, rows: slice) -> "RowEpisodes":
        """The list of those of the tasks alone."""
        return replace(self, rows=self.rows.of_tasks(rows))

    def embedded(self, backbone: nn.Module, tasks: int) -> "RowEpisodes | None":
        """These tasks with the features of `backbone` for examples, each computed once.

        As many examples go through at once as `tasks` tasks have. None when the features would take
        more than MOST_FEATURES.
        """
        places = self.rows.support.shape[1]
        rows = torch.cat([self.rows.support, self.rows.query], dim=1)  # [E, S + Q]
        stored, place = self.split.stored(rows).unique(return_inverse=True)
        distinct = torch.empty_like(stored)  # a row for each
        distinct[place.flatten()] = rows.flatten()
        first, *others = distinct.split(tasks * rows[0].numel())
        z = backbone(self.split.take(first))
        if z[0].nbytes * len(distinct) > MOST_FEATURES:
            return None
        features = z.new_empty(len(distinct), *z.shape[1:])
        first_room, *rooms = features.split(len(first))
        first_room.copy_(z)
        for room, part in zip(rooms, others, strict=True):
            room.copy_(backbone(self.split.take(part)))
        return RowEpisodes(
            stack_classes("vectors", {"features": features}).to(features.device),
            self.rows._replace(support=place[:, :places], query=place[:, places:]),
        )

    @property
    def numbers(self) -> int:
        """How many numbers the examples of a task consist of."""
        places = self.rows.support.shape[1] + self.rows.query.shape[1]
        return places * math.prod(self.split.input_shape)

    @property
    def disjoint(self) -> int:
        """How many tasks without a common example their examples would make."""
        return room(self.rows, self.split.first_row)

    @property
    def task_names(self) -> tuple[str, ...] | None:
        """The superclass of each task, if every task's classes are drawn from one."""
        if not self.within_superclass:
            return None
        # An example that only fills up a task stands at the end.
        rows = self.rows.support[:, 0].contiguous()
        classes = torch.searchsorted(self.split.first_row, rows, right=True) - 1
        return tuple(self.split.superclasses[i] for i in self.split.superclass[classes].tolist())

    @property
    def sha256(self) -> str:
        """Hash of the rows and labels."""
        return digest(tensor for tensor in self.rows if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class FunctionEpisodes:
    """Regression tasks, kept as they were drawn: support_x, support_y, query_x, query_y."""

    tensors: tuple[Tensor, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, rows: slice) -> Episodes:
        """Those of the tasks, on the device."""
        there = (t[rows].to(self.device, non_blocking=True) for t in self.tensors)
        support_x, support_y, query_x, query_y = there
        return Episodes(support_x, support_y, query_x, query_y, way=1)

    def part(self, rows: slice) -> "FunctionEpisodes":
        """The list of those of the tasks alone."""
        return replace(self, tensors=tuple(tensor[rows] for tensor in self.tensors))

    @property
    def disjoint(self) -> int:
        """All of them: each function is drawn anew."""
        return len(self)

    @property
    def task_names(self) -> None:
        """A function has no name."""

    @property
    def sha256(self) -> str:
        """Hash of the points."""
        return digest(self.tensors)


def room(rows: Rows, first_row: Tensor) -> int:
    """How many tasks without a common example the examples of these tasks would make.

    An example is one row: where assays share molecules, each measurement is one of its own. Class
    c's examples are rows first_row[c] to first_row[c + 1] of the split; a class has room for as
    many tasks as it has examples for, at the mean number that it has in one.
    """
    real = torch.cat([rows.support_y, rows.query_y], dim=1) != PADDING  # [E, S + Q]
    examples = torch.cat([rows.support, rows.query], dim=1)[real]
    tasks = len(rows.support)
    ways = int(rows.ways.sum()) if rows.ways is not None else tasks * rows.way
    of_class = torch.searchsorted(first_row, examples.unique(), right=True) - 1
    per_class = math.ceil(len(examples) / ways)
    return min(tasks, int((of_class.bincount() // per_class).sum()) * tasks // ways)


def digest_of(several: Iterable[FixedEpisodes]) -> str:
    """The one list's sha256, or a hash of those of several."""
    digests = [episodes.sha256 for episodes in several]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the tensors' shapes and numbers, hex."""
    tensors = list(tensors)
    total = hashlib.sha256(repr([tensor.shape for tensor in tensors]).encode())
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def fixed_episodes(
    split: Examples, sampler: TestSampler, *, name: str, seed: int, episodes: int
) -> RowEpisodes:
    """The first `episodes` tasks that the sampler draws in the stream `name` of `seed`.

    They depend on the sampler and the split's class sizes alone, and a shorter list is the
    beginning of a longer one.
    """
    generator, sampler = stream(seed, name), replace(sampler, tasks=DRAWN_AT_ONCE)
    drawn = [sampler.draw(split, generator) for _ in range(0, episodes, DRAWN_AT_ONCE)]
    rows = joined(drawn).of_tasks(slice(episodes))
    return RowEpisodes(split, rows, getattr(sampler, "within_superclass", False))


def fixed_functions(
    family: Family, sampler: Functions, *, name: str, seed: int, episodes: int
) -> FunctionEpisodes:
    """The first `episodes` functions that the sampler draws in the stream `name` of `seed`.

    They depend on the sampler and the family alone; a shorter list begins a longer one.
    """
    generator, sampler = stream(seed, name), replace(sampler, tasks=DRAWN_AT_ONCE)
    on_cpu = Family(family.draw)
    drawn = [sampler(on_cpu, generator)[:4] for _ in range(0, episodes, DRAWN_AT_ONCE)]
    tensors = tuple(torch.cat(parts)[:episodes] for parts in zip(*drawn, strict=True))
    return FunctionEpisodes(tensors, family.device)


def own_tasks(data: Data, split: str) -> NamedTasks | None:
    """The tasks that the data brings with it for this split; None: they are to be drawn."""
    own: NamedTasks | None = data.own_tasks(split) if hasattr(data, "own_tasks") else None
    return own
