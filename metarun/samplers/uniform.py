"""N-way K-shot tasks, every class and example as likely as any other (Vinyals et al. 2016)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.episodes import Episodes, episodes_at
from metarun.errors import UserError


@dataclass(frozen=True)
class Uniform:
    """Draws `tasks` tasks at a time: `way` classes, `shot` support and `query` query examples."""

    way: int
    shot: int
    query: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def check(self, split: Split) -> None:
        """Raise UserError when the split is too small for these tasks."""
        refuse_too_few(split, way=self.way, shot=self.shot, query=self.query)

    def __call__(self, split: Split, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device."""
        return self.batch(split, self.rows(split, generator))

    def rows(self, split: Split, generator: torch.Generator) -> Tensor:
        """Rows [T, way, shot + query] of the next meta-batch, each class's support first."""
        support, query = draw_tasks(
            split.first_row,
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
    first_row: Tensor, *, tasks: int, way: int, shot: int, query: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of a split for `tasks` tasks: classes, then examples, uniformly without replacement.

    Class c's examples are rows first_row[c] to first_row[c + 1]. Returns support
    [T, way, shot] and query [T, way, query] rows; place k of `way` is the label.
    """
    classes = len(first_row) - 1
    chosen = torch.rand(tasks, classes, generator=generator).argsort(dim=1, stable=True)[
        :, :way
    ]  # [T, way]
    return draw_examples(first_row, chosen, shot=shot, query=query, generator=generator)


def draw_examples(
    first_row: Tensor, classes: Tensor, *, shot: int, query: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Support [T, way, shot] and query [T, way, query] rows of `classes` [T, way], all distinct."""
    size = first_row.diff()
    # Sorting random keys draws for all tasks at once; keys past a class's end sort last.
    keys = torch.rand(*classes.shape, int(size.max()), generator=generator)
    keys[torch.arange(keys.shape[2]) >= size[classes][..., None]] = 2
    rows = first_row[classes][..., None] + keys.argsort(dim=2, stable=True)[..., : shot + query]
    return rows[..., :shot], rows[..., shot:]


def refuse_too_few(split: Split, *, way: int, shot: int, query: int) -> None:
    """Raise UserError when the split lacks classes for `way` or examples for shot + query."""
    size = split.first_row.diff()
    if way < 2:
        raise UserError(f"way={way}: a task needs at least 2 classes")
    if way > len(size):
        raise UserError(
            f"way={way}, but the split has only {len(size)} classes: lower way to {len(size)}"
        )
    refuse_small_classes(split, torch.ones(len(size), dtype=torch.bool), shot=shot, query=query)


def refuse_small_classes(split: Split, taking_part: Tensor, *, shot: int, query: int) -> None:
    """Raise UserError when a class of those `taking_part` [classes] has too few examples."""
    size = split.first_row.diff()
    smallest = int(torch.where(taking_part, size, size.max() + 1).argmin())
    if size[smallest] < shot + query:
        raise UserError(
            f"class {split.classes[smallest]!r} has {size[smallest]} examples, but shot={shot} and "
            f"query={query} need {shot + query}: lower one of them"
        )
