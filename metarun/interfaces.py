"""What an algorithm and a sampler are. Nothing inherits from these: the methods are enough."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metarun.data.split import Split
from metarun.episodes import Episodes


class Algorithm(Protocol):
    """An nn.Module with the paper's objective of meta-training and its rule at test time."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar to be minimised, and scalars to be logged, from its sampler's batch."""

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way] of the query examples; the highest is the predicted class."""

    # What the loop uses of nn.Module.
    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Sampler(Protocol):
    """Draws batches of `tasks` tasks from a split."""

    @property
    def tasks(self) -> int: ...

    def check(self, split: Split) -> None:
        """Raise UserError when the split is too small; its examples need not be there."""

    def __call__(self, split: Split, generator: torch.Generator) -> Any:
        """The next batch, on the split's device; all chance comes from the CPU `generator`."""
