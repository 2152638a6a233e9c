"""What a sampler draws, shared by ranks: each draws all the tasks, and computes some of them."""

from typing import Any

import torch
from torch import Tensor

from metarun import ranks
from metarun.episodes import of_tasks
from metarun.interfaces import RowSampler, Sampler


class Share:
    """The `chosen` ones of the tasks that a sampler draws; they still count as all `tasks`."""

    def __init__(self, sampler: Any, chosen: slice):
        self.sampler, self.chosen = sampler, chosen
        self.tasks, self.chunk = sampler.tasks, sampler.chunk

    def check(self, split: Any) -> None:
        """As the sampler itself."""
        self.sampler.check(split)

    def __call__(self, split: Any, generator: torch.Generator) -> Any:
        """These tasks of the next batch."""
        return of_tasks(self.sampler(split, generator), self.chosen)


class RowShare(Share):
    """The same of a RowSampler: only the examples of these tasks are taken."""

    def __call__(self, split: Any, generator: torch.Generator) -> Any:
        """These tasks of the next batch."""
        return self.batch(split, self.rows(split, generator))

    def rows(self, split: Any, generator: torch.Generator) -> Tensor:
        """Rows of these tasks of the next batch."""
        return self.sampler.rows(split, generator)[self.chosen]

    def batch(self, split: Any, rows: Tensor) -> Any:
        """The tasks at these rows."""
        return self.sampler.batch(split, rows)


def own_share(sampler: Sampler) -> tuple[Sampler, float]:
    """What this rank computes of the sampler's tasks, and which part of them that is."""
    if ranks.size() == 1:
        return sampler, 1.0
    own = ranks.share(sampler.tasks)
    made = RowShare if isinstance(sampler, RowSampler) else Share
    return made(sampler, own), (own.stop - own.start) / sampler.tasks
