"""N-way K-shot tasks whose classes share one superclass: the letters of one alphabet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.episodes import Examples
from metarun.errors import UserError
from metarun.samplers.uniform import (
    Uniform,
    in_random_order,
    largest,
    of_drawn_group,
    refuse_small_classes,
)


@dataclass(frozen=True)
class WithinSuperclass(Uniform):
    """Draws `tasks` tasks at a time, each from one of the superclasses with `way` or more classes.

    Those superclasses are equally likely (as in Triantafillou et al. 2020, for Omniglot). Of
    several sources, each task comes from one of those that have such a superclass.
    """

    within_superclass = True

    def check(self, split: Examples) -> None:
        """Raise UserError when no superclass of the split is large enough for these tasks."""
        refuse_too_small_superclasses(split, way=self.way, shot=self.shot, query=self.query)

    def classes(self, split: Examples, generator: torch.Generator) -> Tensor:
        """The classes [T, way] of the next meta-batch, none of a smaller superclass."""
        among = of_drawn_superclass(split.superclass, split.source, self.way, self.tasks, generator)
        return in_random_order(self.tasks, len(split.classes), among, generator)[:, : self.way]


def of_drawn_superclass(
    superclass: Tensor, source: Tensor | None, way: int, tasks: int, generator: torch.Generator
) -> Tensor:
    """Whether each class is of the superclass, with `way` classes or more, that its task drew.

    [T, classes]. Of several sources, `source` [classes], a task first draws one of those that have
    such a superclass.
    """
    if source is None:
        return of_drawn_group(superclass, way, tasks, generator)
    large = superclass.bincount()[superclass] >= way  # [classes]
    with_large = source[large].unique()
    drawn = with_large[torch.randint(len(with_large), (tasks, 1), generator=generator)]
    usable = large & (source == drawn)  # [T, classes]
    keys = torch.rand(tasks, int(superclass.max()) + 1, generator=generator)[:, superclass]
    return superclass == superclass[keys.where(usable, -1).argmax(dim=1, keepdim=True)]


def refuse_too_small_superclasses(split: Examples, *, way: int, shot: int, query: int) -> None:
    """Raise UserError when no superclass has `way` classes, or a class too few examples."""
    if not len(split.superclass):
        raise UserError("the data has no superclasses: use sampler=uniform")
    if way < 2:
        raise UserError(f"way={way}: a task needs at least 2 classes")
    most = largest(split.superclass)
    if way > most:
        raise UserError(
            f"way={way}, but the largest superclass has only {most} classes: "
            f"lower way to {most}, or use sampler=uniform"
        )
    taking_part = split.superclass.bincount()[split.superclass] >= way
    refuse_small_classes(split, taking_part, shot=shot, query=query)
