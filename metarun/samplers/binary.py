"""Tasks of the two classes of a superclass, such as an assay's inactive and active molecules.

Stanley et al., "FS-Mol: A Few-Shot Learning Dataset of Molecules", 2021: support sets of a fixed
size in the assay's own proportion, rounded as scikit-learn does in their code, and all the rest for
queries. Altae-Tran et al., "Low Data Drug Discovery with One-Shot Learning", 2017,
arXiv:1611.03199: so many of each class. Shapes: T tasks, P superclasses that can be one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.told import doubt
from metarun.episodes import Episodes, Examples, Rows, gather
from metarun.errors import UserError
from metarun.samplers.variable import labelled_rows


@dataclass(frozen=True)
class Binary:
    """Draws `tasks` tasks at a time, each of one of the superclasses that have two classes.

    Those with enough examples are equally likely; of several sources, each task first draws one
    that has any. The first class has label 0, the second label 1. The support set has `shot`
    examples of each, or `support` in all, shared out by the task's own proportion, at least one of
    each. Queries are `query` of each, or with query=0 all the rest, of which `queries` at most, by
    their proportion; 0: no such bound.
    """

    way: int
    shot: int
    support: int
    query: int
    queries: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def check(self, split: Examples) -> None:
        """Raise UserError when the keys do not fit together, or no task can be drawn; tell how many
        superclasses are left out."""
        if self.way != 2:
            raise UserError(f"way={self.way}: a task of sampler=binary has 2 classes: set way=2")
        for key, count in {"support": self.support, "queries": self.queries}.items():
            if count == 1:
                raise UserError(f"sampler.{key}=1: give 2 or more, of two classes, or 0")
        if not self.support and self.shot < 1:
            raise UserError("shot=0: give 1 or more of each class, or sampler.support in all")
        if self.queries and self.query:
            raise UserError(
                f"sampler.queries={self.queries} is a bound on all the rest: set sampler.query=0, "
                "or eval.query=0"
            )
        if not len(split.superclass):
            raise UserError(
                "the data has no superclasses, of which sampler=binary makes its tasks: use "
                "sampler=uniform"
            )
        pairs = pairs_of(split.superclass)
        if not len(pairs):
            name, classes = split.superclasses[0], int(split.superclass.bincount()[0])
            raise UserError(
                f"superclass {name!r} has {classes} of the split's classes, and none has just two, "
                "as sampler=binary needs: use sampler=within_superclass"
            )
        usable = int(self.is_large(split.first_row.diff()[pairs]).sum())
        left_out = f"{len(pairs) - usable} of {len(pairs)} superclasses of two classes"
        if not usable:
            asked = f"support={self.support}" if self.support else f"shot={self.shot}"
            raise UserError(
                f"{left_out} have too few examples for {asked} and "
                f"query={self.query or 'all the rest'}: lower one of them"
            )
        if usable < len(pairs):
            doubt(f"left out {left_out}, which have too few examples")

    def is_large(self, size: Tensor) -> Tensor:
        """Whether both classes have enough examples, of sizes [P, 2] -> [P]."""
        up, down = (self.shots(size, torch.full((len(size),), half)) for half in (True, False))
        return (size >= up.maximum(down) + max(self.query, 1)).all(dim=1)

    def __call__(self, split: Examples, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device."""
        return gather(split, self.draw(split, generator))

    def draw(self, split: Examples, generator: torch.Generator) -> Rows:
        """Where the examples of the next meta-batch are."""
        classes = self.classes(split, generator)
        size = split.first_row.diff()[classes]  # [T, 2]
        coins = torch.rand(2, self.tasks, generator=generator) < 0.5
        shots = self.shots(size, coins[0])
        query = self.asked(size - shots, coins[1])
        present = torch.ones_like(classes, dtype=torch.bool)
        first_row = split.first_row[classes]
        rows = labelled_rows(first_row, size, shots, query, present, generator)
        # All alike: other algorithms and several seeds at once can do with such tasks.
        return rows._replace(ways=None) if self.query and not self.support else rows

    def classes(self, split: Examples, generator: torch.Generator) -> Tensor:
        """The two classes of each task [T, 2], in the split's order."""
        pairs = pairs_of(split.superclass)
        pairs = pairs[self.is_large(split.first_row.diff()[pairs])]
        keys = torch.rand(self.tasks, len(pairs), generator=generator)
        if split.source is not None:
            source = split.source[pairs[:, 0]]
            able = source.unique()
            drawn = able[torch.randint(len(able), (self.tasks, 1), generator=generator)]
            keys[source != drawn] = -1
        return pairs[keys.argmax(dim=1)]

    def shots(self, size: Tensor, coin: Tensor) -> Tensor:
        """Support examples of each class [T, 2], of sizes [T, 2]; `coin` [T]: see `shared_out`."""
        if not self.support:
            return torch.full_like(size, self.shot)
        second = shared_out(self.support, size, coin)[:, 1].clamp(1, self.support - 1)
        return torch.stack([self.support - second, second], dim=1)

    def asked(self, left: Tensor, coin: Tensor) -> Tensor:
        """Query examples of each class [T, 2], of those that the support set leaves [T, 2]."""
        if self.query:
            return torch.full_like(left, self.query)
        if not self.queries:
            return left
        fewer = left.sum(dim=1, keepdim=True) <= self.queries
        second = shared_out(self.queries, left, coin)[:, 1].clamp(1, self.queries - 1)
        return left.where(fewer, torch.stack([self.queries - second, second], dim=1))


def pairs_of(superclass: Tensor) -> Tensor:
    """The classes [P, 2] of the superclasses that have two, of `superclass` [classes]."""
    in_order = superclass.argsort(stable=True)
    count = superclass.bincount()
    first = (count.cumsum(0) - count)[count == 2]
    return torch.stack([in_order[first], in_order[first + 1]], dim=1)


def shared_out(count: int, size: Tensor, coin: Tensor) -> Tensor:
    """`count` examples as two classes of sizes [T, 2] share them, rounded: [T, 2].

    A half goes to the second class if the `coin` [T] says so, and to the first if not.
    """
    all_of_it = size.sum(dim=1).clamp(min=1)
    whole = (count * size[:, 1]).div(all_of_it, rounding_mode="floor")
    rest = 2 * (count * size[:, 1] - whole * all_of_it)
    second = whole + ((rest > all_of_it) | ((rest == all_of_it) & coin))
    return torch.stack([count - second, second], dim=1)
