"""N-way K-shot tasks, every class and example as likely as any other (Vinyals et al. 2016)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.episodes import Episodes, Examples, Rows, gather, labelled
from metarun.errors import NOTHING, Unsuited, UserError


@dataclass(frozen=True)
class Uniform:
    """Draws `tasks` tasks at a time: `way` classes, `shot` support and `query` query examples.

    Of several sources, each task comes from one, those with enough classes being equally likely.
    """

    way: int
    shot: int
    query: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def __post_init__(self) -> None:
        for key, count in {"shot": self.shot, "query": self.query}.items():
            if count < 1:
                raise UserError(f"{key}={count}: it must be at least 1, but for sampler=variable")

    def check(self, split: Examples) -> None:
        """Raise UserError when the split is too small for these tasks."""
        refuse_too_few(split, way=self.way, shot=self.shot, query=self.query)

    def __call__(self, split: Examples, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device."""
        return self.batch(split, self.rows(split, generator))

    def draw(self, split: Examples, generator: torch.Generator) -> Rows:
        """Where the examples of the next meta-batch are."""
        return labelled(self.rows(split, generator), self.way, self.shot)

    def rows(self, split: Examples, generator: torch.Generator) -> Tensor:
        """Rows [T, way · (shot + query)] of the next meta-batch: support, then query, each class by
        class."""
        classes = self.classes(split, generator)
        rows = draw_examples(split.first_row, classes, self.shot + self.query, generator)
        return torch.cat([part.flatten(1) for part in rows.tensor_split([self.shot], dim=2)], dim=1)

    def classes(self, split: Examples, generator: torch.Generator) -> Tensor:
        """The classes [T, way] of the next meta-batch."""
        among = None
        if split.source is not None:
            among = of_drawn_group(split.source, self.way, self.tasks, generator)
        return in_random_order(self.tasks, len(split.classes), among, generator)[:, : self.way]

    def batch(self, split: Examples, rows: Tensor) -> Episodes:
        """The meta-batch at these rows."""
        return gather(split, labelled(rows, self.way, self.shot))


def draw_tasks(
    first_row: Tensor, *, tasks: int, way: int, shot: int, query: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of a split for `tasks` tasks: classes, then examples, uniformly without replacement.

    Class c's examples are rows first_row[c] to first_row[c + 1]. Returns support [T, way, shot] and
    query [T, way, query] rows; place k of `way` is the label.
    """
    classes = in_random_order(tasks, len(first_row) - 1, None, generator)[:, :way]
    rows = draw_examples(first_row, classes, shot + query, generator)
    return rows[..., :shot], rows[..., shot:]


def of_drawn_group(group: Tensor, way: int, tasks: int, generator: torch.Generator) -> Tensor:
    """Whether each class is of the group that its task drew, [T, classes].

    Of `group` [classes], those with `way` classes or more are equally likely.
    """
    large = (group.bincount() >= way).nonzero()[:, 0]
    return group == large[torch.randint(len(large), (tasks, 1), generator=generator)]


def in_random_order(
    tasks: int, classes: int, among: Tensor | None, generator: torch.Generator
) -> Tensor:
    """The classes in a random order for each task, [T, classes]; those not `among` [T, classes]
    come last."""
    keys = torch.rand(tasks, classes, generator=generator)
    if among is not None:
        keys[~among] = 2
    return keys.argsort(dim=1, stable=True)


def draw_examples(
    first_row: Tensor, classes: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Rows [T, way, count] of `classes` [T, way], all distinct."""
    size = first_row.diff()
    return shuffled(first_row[classes], size[classes], int(size.max()), generator)[..., :count]


def shuffled(first_row: Tensor, size: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """The rows [T, way, largest] of classes that start at `first_row` and have `size` examples,
    both [T, way], in random order; what follows a class's own is of no meaning."""
    # Sorting random keys draws for all tasks at once; keys past a class's end sort last.
    keys = torch.rand(*size.shape, largest, generator=generator)
    keys.masked_fill_(torch.arange(largest) >= size[..., None], 2)
    return first_row[..., None] + keys.argsort(dim=2, stable=True)


def refuse_too_few(split: Examples, *, way: int, shot: int, query: int) -> None:
    """Raise UserError when the split lacks classes for `way` or examples for shot + query."""
    refuse_way(way, len(split.first_row) - 1 if split.source is None else largest(split.source))
    taking_part = torch.ones(len(split.classes), dtype=torch.bool)
    if split.source is not None:
        taking_part = split.source.bincount()[split.source] >= way
    refuse_small_classes(split, taking_part, shot=shot, query=query)


def refuse_way(way: int, classes: int) -> None:
    """Raise UserError unless a task can have `way` of so many classes."""
    if way < 2:
        raise UserError(f"way={way}: a task needs at least 2 classes")
    if way > classes:
        ways = {NOTHING: f"lower way to {classes}"} if classes > 1 else {}
        ways["data.fractions"] = "give the split more of the classes by data.fractions"
        raise Unsuited(f"way={way}, but the split has only {classes} classes", ways)


def largest(group: Tensor) -> int:
    """How many classes the largest group has, of `group` [classes]."""
    return int(group.bincount().max()) if len(group) else 0


def refuse_small_classes(split: Examples, taking_part: Tensor, *, shot: int, query: int) -> None:
    """Raise UserError when a class of those `taking_part` [classes] has too few examples."""
    size = split.first_row.diff()
    smallest = int(torch.where(taking_part, size, size.max() + 1).argmin())
    if size[smallest] < shot + query:
        raise Unsuited(
            f"class {split.classes[smallest]!r} has {size[smallest]} examples, but shot={shot} and "
            f"query={query} need {shot + query}",
            {NOTHING: "lower one of them"} | without_small_classes(size, shot + query),
        )


def without_small_classes(size: Tensor, needed: int) -> dict[str, str]:
    """The way out that leaves larger classes [classes] alone, if there are some."""
    if not (size >= needed).any():
        return {}
    return {"data.min_examples": f"leave out small classes by data.min_examples={needed}"}
