"""What a data set, a sampler and an algorithm are. Nothing inherits from these: methods are enough.

An algorithm may have seven things more, which are used where they are found:
    regression = True               it predicts real values too, not classes alone;
    features_suffice = True         what it predicts and measures needs examples' features alone,
                                    so that a test need embed each of them but once;
    tasks_apart = True              its loss is the mean of the tasks' own, none of which depends on
                                    the others, so that a few at a time will do as well;
    averages = True                 what its loss leaves behind, for the next, in floating-point
                                    buffers are means over tasks, as its gradient is, so that ranks
                                    may add up theirs;
    scores_are_log_p = False        softmax of its scores is not what it believes of the classes, so
                                    that neither nll nor ece is told of it;
    predict_and_measure(episodes)   what `predict` gives, and {name: values [T]}: what its paper
                                    reports beside the accuracy, found in results.json;
    stages(episodes)                {inner steps: outputs [T, Q, way]}, for a regression's picture.
A data set may have `own_tasks(split)`, the NamedTasks that its test (or validation) consists of, or
None where tasks are drawn.
A sampler may have a number `chunk`: how many of its batch's tasks are computed at once (0: as
suits the device); and `within_superclass`, true if all the classes of a task are of one superclass,
which then names the task; and `left_out(split)`, in words what it leaves out of a split.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metarun.episodes import Episodes, Rows
from metarun.functional.metrics import Metric


class Data(Protocol):
    """A data set: three splits, "train", "val" and "test", opened when they are needed."""

    name: str
    metric: Metric  # what its papers report
    checksum: str
    outlines: Mapping[str, Any]  # the splits, known by sizes and shapes but without examples

    def open(self, split: str) -> Any:
        """The split with its examples; what its sampler draws from."""

    def sealed(self, split: str) -> AbstractContextManager[None]:
        """Within this block the split cannot be opened."""

    def facts(self) -> dict[str, Any]:
        """Which data this is, exactly: the `data` part of the results."""

    def summary(self) -> str:
        """One line for the console."""


class Algorithm(Protocol):
    """An nn.Module with the paper's objective of meta-training and its rule at test time."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar to be minimised, and scalars to be logged, from its sampler's batch."""

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the query examples: scores of classes, the highest of which is
        the predicted one, or values. It draws no random numbers."""

    # What the loop uses of nn.Module.
    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Sampler(Protocol):
    """Draws batches of `tasks` tasks from a split."""

    @property
    def tasks(self) -> int: ...

    def check(self, split: Any) -> None:
        """Raise UserError when the split is too small; its examples need not be there."""

    def __call__(self, split: Any, generator: torch.Generator) -> Any:
        """The next batch, on the split's device; all chance comes from the CPU `generator`."""


class TestSampler(Sampler, Protocol):
    """A dataclass that draws the tasks of a test: it says where they are before they are taken."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def draw(self, split: Any, generator: torch.Generator) -> Rows:
        """Rows and labels of the next batch; all chance comes from the CPU `generator`."""


@runtime_checkable
class RowSampler(Sampler, Protocol):
    """A sampler whose batch is decided by row numbers, so that these can be drawn ahead."""

    def rows(self, split: Any, generator: torch.Generator) -> Tensor:
        """Rows of the split for the next batch, on the CPU; of the same shape each time."""

    def batch(self, split: Any, rows: Tensor) -> Any:
        """The batch at these rows, on the split's device."""
