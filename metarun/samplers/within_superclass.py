"""N-way K-shot tasks whose classes share one superclass: the letters of one alphabet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.episodes import Episodes, episodes_at
from metarun.errors import UserError
from metarun.samplers.uniform import draw_examples, refuse_small_classes


@dataclass(frozen=True)
class WithinSuperclass:
    """Draws `tasks` tasks at a time, each from one of the superclasses with `way` or more classes.

    Those superclasses are equally likely (as in Triantafillou et al. 2020, for Omniglot).
    """

    way: int
    shot: int
    query: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def check(self, split: Split) -> None:
        """Raise UserError when no superclass of the split is large enough for these tasks."""
        refuse_too_small_superclasses(split, way=self.way, shot=self.shot, query=self.query)

    def __call__(self, split: Split, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device."""
        return self.batch(split, self.rows(split, generator))

    def rows(self, split: Split, generator: torch.Generator) -> Tensor:
        """Rows [T, way, shot + query] of the next meta-batch, each class's support first."""
        support, query = draw_tasks(
            split.first_row,
            split.superclass,
            tasks=self.tasks,
            way=self.way,
            shot=self.shot,
            query=self.query,
            generator=generator,
        )
        return torch.cat([support, query], dim=2)

    def batch(self, split: Split, rows: Tensor) -> Episodes:
        """The meta-batch at these rows."""
        return episodes_at(split, rows, self.shot)


def draw_tasks(
    first_row: Tensor,
    superclass: Tensor,
    *,
    tasks: int,
    way: int,
    shot: int,
    query: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows for `tasks` tasks: a superclass, `way` of its classes, then examples of each.

    `superclass` [classes] is the superclass of each class; those with fewer than `way` classes
    take no part. Returns support [T, way, shot] and query [T, way, query] rows.
    """
    large = (superclass.bincount() >= way).nonzero()[:, 0]
    drawn = large[torch.randint(len(large), (tasks,), generator=generator)]  # [T]
    keys = torch.rand(tasks, len(superclass), generator=generator)
    keys[superclass[None] != drawn[:, None]] = 2  # classes of other superclasses sort last
    return draw_examples(
        first_row,
        keys.argsort(dim=1, stable=True)[:, :way],
        shot=shot,
        query=query,
        generator=generator,
    )


def refuse_too_small_superclasses(split: Split, *, way: int, shot: int, query: int) -> None:
    """Raise UserError when no superclass has `way` classes, or a class too few examples."""
    if not len(split.superclass):
        raise UserError("the data has no superclasses: use sampler=uniform")
    if way < 2:
        raise UserError(f"way={way}: a task needs at least 2 classes")
    sizes = split.superclass.bincount()
    largest = int(sizes.max())
    if way > largest:
        raise UserError(
            f"way={way}, but the largest superclass has only {largest} classes: "
            f"lower way to {largest}, or use sampler=uniform"
        )
    taking_part = sizes[split.superclass] >= way
    refuse_small_classes(split, taking_part, shot=shot, query=query)
