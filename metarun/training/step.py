"""One step of meta-training: the gradient of a meta-batch, and the optimiser's move."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarun import ranks
from metarun.backbones.batch_norm import modes_of
from metarun.device import Device
from metarun.episodes import of_tasks
from metarun.errors import UserError
from metarun.interfaces import Algorithm, Sampler

Figures = dict[str, Tensor]  # scalars of one step: the loss, and the algorithm's metrics

# Of a CPU's chunk of tasks, in the numbers of its examples: about what the caches can serve.
CPU_CHUNK = 2**19


@dataclass(frozen=True)
class Step:
    """Moves the weights by one meta-batch, and reads nothing off the device.

    `clip_norm` is the gradient's largest norm, 0 for any; `chunk` is how many tasks are computed at
    once, 0 for as many as suit the device, None for batches that are not made of tasks. `share` is
    the part of the meta-batch's tasks that this rank computes, and is given.
    """

    algorithm: Algorithm
    optimizer: Optimizer
    device: Device
    clip_norm: float = 0.0
    chunk: int | None = None
    share: float = 1.0

    @cached_property
    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass, made once: making it takes longer than entering it."""
        return self.device.autocast()

    def __call__(self, batch: Any) -> Figures:
        """Take the step; the figures of the batch before it."""
        self.optimizer.zero_grad(set_to_none=True)
        figures = self.gradient(batch)
        if self.share < 1:
            figures = self.of_all_ranks(figures)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.algorithm.parameters(), self.clip_norm)
        self.optimizer.step()
        return figures

    def gradient(self, batch: Any) -> Figures:
        """Add the gradient of the batch's loss to the parameters' own; the batch's figures."""
        if self.chunk is not None:
            chunk = self.chunk or self.suited(batch)
            if chunk < len(batch[0]):
                return self.gradient_by_chunks(batch, chunk)
        with self.autocast:
            loss, metrics = self.algorithm.loss(batch)
        loss.backward()
        return {"loss": loss.detach(), **{k: v.detach() for k, v in metrics.items()}}

    def of_all_ranks(self, figures: Figures) -> Figures:
        """The figures of the whole meta-batch; its gradient, and what it leaves in buffers, in the
        place of this rank's. All are means over tasks."""
        gradient = [p.grad for p in self.algorithm.parameters() if p.grad is not None]
        left = [b for b in self.algorithm.buffers() if b.is_floating_point()]
        ranks.add_up([*gradient, *left], self.share)
        values = torch.stack([value.double() for value in figures.values()])
        ranks.add_up([values], self.share)
        return dict(zip(figures, values, strict=True))

    def suited(self, batch: Any) -> int:
        """How many tasks of the batch are best computed at once: all of them, unless on a CPU, when
        each goes through the network by itself anyway."""
        apart = getattr(self.algorithm, "tasks_apart", False)
        if not apart or self.device.torch_device.type != "cpu":
            return len(batch[0])
        numbers = sum(v[0].numel() for v in batch if isinstance(v, Tensor))
        return max(1, CPU_CHUNK // numbers)

    def gradient_by_chunks(self, batch: Any, size: int) -> Figures:
        """The same, a chunk at a time: loss and metrics are means over tasks, and so are theirs.

        What an algorithm draws at random, it draws for each chunk.
        """
        total: Figures = {}
        for part in chunks(batch, size):
            share = len(part[0]) / len(batch[0])
            with self.autocast:
                loss, metrics = self.algorithm.loss(part)
            (share * loss).backward()  # frees what the chunk kept
            for name, value in {"loss": loss, **metrics}.items():
                total[name] = total.get(name, 0) + share * value.detach()
        return total


def chunks(batch: Any, size: int) -> Iterator[Any]:
    """The tasks of a batch, `size` at a time."""
    for start in range(0, len(batch[0]), size):
        yield of_tasks(batch, slice(start, start + size))


def refuse_chunks(algorithm: Algorithm, chunk: int) -> None:
    """Raise UserError when the algorithm cannot compute `chunk` tasks at a time."""
    asked, instead = f"sampler.chunk={chunk}", "set sampler.chunk=0"
    refuse_shared_statistics(algorithm, asked, instead)
    refuse_memory(algorithm, asked, instead)


def refuse_ranks(algorithm: Algorithm, sampler: Sampler, size: int) -> None:
    """Raise UserError when `size` ranks cannot share the tasks that the sampler draws."""
    if not hasattr(sampler, "chunk"):
        raise UserError(
            f"{size} ranks share the tasks of a meta-batch, and {type(sampler).__name__} draws no "
            "tasks: use one process"
        )
    if sampler.tasks < size:
        raise UserError(
            f"{size} ranks share the tasks of a meta-batch, but sampler.tasks={sampler.tasks}: "
            f"set it to {size} or more, or use fewer ranks"
        )
    asked, instead = f"{size} ranks", "use one process"
    refuse_shared_statistics(algorithm, asked, instead)
    if not getattr(algorithm, "averages", False):
        refuse_memory(algorithm, asked, instead)


def refuse_shared_statistics(algorithm: Algorithm, asked: str, instead: str) -> None:
    """Raise UserError when the algorithm's loss for some of the tasks depends on the others."""
    if "running" in modes_of(algorithm.modules()):
        raise UserError(
            f"{asked}: batch norm of mode running takes its statistics over all the tasks at once: "
            "set backbone.batch_norm (and algo.batch_norm, if there is one) to batch or support, "
            f"or {instead}"
        )


def refuse_memory(algorithm: Algorithm, asked: str, instead: str) -> None:
    """Raise UserError when the algorithm's loss leaves something behind for the next call."""
    if remembers(algorithm):
        raise UserError(
            f"{asked}: {type(algorithm).__name__} keeps something from one meta-batch for the "
            f"next, so that it must see the whole: {instead}"
        )


def remembers(algorithm: Algorithm) -> bool:
    """Whether its loss leaves something behind for the next call."""
    return any(True for _ in algorithm.buffers()) or counts_in_python(algorithm)


def counts_in_python(algorithm: Algorithm) -> bool:
    """Whether it has state outside of its tensors, such as a number of steps."""
    own = (type(m).get_extra_state for m in algorithm.modules())
    return any(method is not nn.Module.get_extra_state for method in own)
