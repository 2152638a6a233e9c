"""Sequences of examples to be labelled one after the other (Santoro et al. 2016, sec. 2)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.errors import UserError
from metarun.samplers.uniform import draw_tasks, refuse_too_few


class Sequences(NamedTuple):
    """T sequences of L examples, x [T, L, *input], with labels y [T, L] in 0 .. way - 1.

    Every label occurs equally often in a sequence.
    """

    x: Tensor
    y: Tensor
    way: int


@dataclass(frozen=True)
class SequenceSampler:
    """Draws `tasks` sequences at a time: `presentations` examples of each of `way` classes."""

    way: int
    presentations: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def check(self, split: Split) -> None:
        """Raise UserError when the split is too small for these sequences."""
        refuse_too_few(split, way=self.way, shot=0, query=0)
        size = split.first_row.diff()
        smallest = int(size.argmin())
        if size[smallest] < self.presentations:
            raise UserError(
                f"class {split.classes[smallest]!r} has {size[smallest]} examples: "
                f"lower sampler.presentations={self.presentations} to {size[smallest]}"
            )

    def __call__(self, split: Split, generator: torch.Generator) -> Sequences:
        """The next batch, on the split's device."""
        rows, y = draw_sequences(
            split.first_row,
            tasks=self.tasks,
            way=self.way,
            presentations=self.presentations,
            generator=generator,
        )
        return Sequences(split.take(rows), y.to(split.device, non_blocking=True), self.way)


def draw_sequences(
    first_row: Tensor, *, tasks: int, way: int, presentations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of a split and their labels, [T, L] each with L = way · presentations, in random order.

    Classes and examples are drawn uniformly without replacement, and so is each class's label: what
    a class was called in one sequence says nothing of the next.
    """
    rows, _ = draw_tasks(
        first_row, tasks=tasks, way=way, shot=presentations, query=0, generator=generator
    )  # [T, way, presentations], whose place in `way` is as random as its class
    keys = torch.rand(tasks, way * presentations, generator=generator)
    order = keys.argsort(dim=1, stable=True)
    return rows.flatten(1).gather(1, order), order // presentations
