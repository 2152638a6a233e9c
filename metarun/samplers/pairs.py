"""Pairs of examples for verification: do they show the same class? (Koch et al. 2015)"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.errors import UserError


class Pairs(NamedTuple):
    """T pairs of examples: a and b [T, *input], and whether they are of the same class [T]."""

    a: Tensor
    b: Tensor
    same: Tensor


@dataclass(frozen=True)
class PairSampler:
    """Draws `tasks` pairs at a time: by turns two examples of one class, and one each of two."""

    tasks: int

    def check(self, split: Split) -> None:
        """Raise UserError when the split is too small for both kinds of pairs."""
        size = split.first_row.diff()
        if len(size) < 2:
            raise UserError(f"pairs need at least 2 classes, but the split has {len(size)}")
        smallest = int(size.argmin())
        if size[smallest] < 2:
            raise UserError(
                f"class {split.classes[smallest]!r} has {size[smallest]} example, but a pair of "
                "the same class needs 2: leave that class out"
            )

    def __call__(self, split: Split, generator: torch.Generator) -> Pairs:
        """The next batch of pairs, on the split's device."""
        a, b, same = draw_pairs(split.first_row, pairs=self.tasks, generator=generator)
        x = split.take(torch.stack([a, b]))  # [2, T, *input]
        return Pairs(x[0], x[1], same.to(split.device, non_blocking=True))


def draw_pairs(
    first_row: Tensor, *, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows a [T] and b [T] of a split, and whether they are of the same class [T]: every other one.

    Class c's examples are rows first_row[c] to first_row[c + 1]. Classes are equally likely, then
    their examples; the two are distinct examples, or of distinct classes.
    """

    def below(count: Tensor) -> Tensor:
        """A whole number from 0 to count - 1 for each of `count` [T], all equally likely."""
        uniform = torch.rand(pairs, generator=generator, dtype=torch.float64)
        return (uniform * count).long()

    size = first_row.diff()
    classes = torch.full((pairs,), len(size))
    same = torch.arange(pairs) % 2 == 0
    class_a = below(classes)
    another = (class_a + 1 + below(classes - 1)) % classes
    class_b = torch.where(same, class_a, another)
    place_a = below(size[class_a])
    # In the same class b is one of the examples that come after a, going round.
    after = (place_a + 1 + below(size[class_a] - 1)) % size[class_a]
    place_b = torch.where(same, after, below(size[class_b]))
    return first_row[class_a] + place_a, first_row[class_b] + place_b, same
