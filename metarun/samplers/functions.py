"""Regression tasks: a function, `shot` of its points to learn from and `query` to be tested on."""

from dataclasses import dataclass

import torch

from metarun.data.functions import Functions as Family
from metarun.episodes import Episodes
from metarun.errors import UserError


@dataclass(frozen=True)
class Functions:
    """Draws `tasks` functions at a time (K-shot regression, Finn et al. 2017, sec. 5.1)."""

    shot: int
    query: int
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    def check(self, split: Family) -> None:
        """Raise UserError when the data has no functions to draw."""
        if not isinstance(split, Family):
            raise UserError("sampler=functions: the data has classes: use sampler=uniform")

    def __call__(self, split: Family, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device; way is 1, one real value a point."""
        x, y = split.draw(self.tasks, self.shot + self.query, generator)
        x, y = (values.to(split.device, non_blocking=True) for values in (x, y))
        shot = self.shot
        return Episodes(x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:], way=1)
