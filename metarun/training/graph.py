"""A training step recorded as one CUDA graph and launched as a whole: `device.graph`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun import ranks
from metarun.interfaces import Algorithm
from metarun.training.step import Figures, counts_in_python

WARM_UP = 3  # steps before the recording, in which libraries and the optimiser set themselves up
Work = Callable[[], Figures]


class Graph(Protocol):
    """What records work and repeats it; the work reads and writes the same memory each time."""

    def warm_up(self, work: Work) -> Figures:
        """Do the work, not yet recorded."""

    def capture(self, work: Work) -> None:
        """Record the work without doing it."""

    def replay(self) -> Figures:
        """Do the recorded work; its figures, which the next replay overwrites."""


class CudaGraph:
    """The graph of the GPU's own."""

    def __init__(self, device: torch.device):
        self.device = device
        self.graph = torch.cuda.CUDAGraph()
        self.side_stream = torch.cuda.Stream(device)  # nothing is recorded on the default stream

    def warm_up(self, work: Work) -> Figures:
        here = torch.cuda.current_stream(self.device)
        self.side_stream.wait_stream(here)
        with torch.cuda.stream(self.side_stream):
            figures = work()
        here.wait_stream(self.side_stream)
        return figures

    def capture(self, work: Work) -> None:
        here = torch.cuda.current_stream(self.device)
        # A recording that fails may leave its stream in place: the outer block goes back to ours.
        with torch.cuda.stream(here), torch.cuda.graph(self.graph, stream=self.side_stream):
            self.figures = work()

    def replay(self) -> Figures:
        self.graph.replay()
        return self.figures


class CapturedStep:
    """`step(rows)`, replayed from a graph after its first few times.

    What changes from step to step, the rows and the learning rates, is copied to where the graph
    reads it. If the step cannot be recorded, one line on stderr says why and the plain one goes on.
    """

    def __init__(self, step: Callable[[Tensor], Figures], optimizer: Optimizer, graph: Graph):
        self.step, self.optimizer, self.graph = step, optimizer, graph
        self.taken = 0
        self.given_up = False

    def __call__(self, rows: Tensor) -> Figures:
        """Take one step on these rows; the figures are the caller's to keep."""
        self.taken += 1
        if self.taken == WARM_UP + 1 and not self.given_up:
            self.capture(rows)
        if self.given_up:
            return self.step(rows)
        if self.taken <= WARM_UP:
            return self.warm_up(rows)
        self.rows.copy_(rows)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return {name: value.clone() for name, value in self.graph.replay().items()}

    def warm_up(self, rows: Tensor) -> Figures:
        noise = torch.get_rng_state()
        figures = self.graph.warm_up(lambda: self.step(rows))
        if not torch.equal(noise, torch.get_rng_state()):
            self.give_up("the algorithm draws random numbers on the CPU")
        return figures

    def capture(self, rows: Tensor) -> None:
        self.rows = torch.empty_like(rows)
        self.rates = [torch.zeros((), device=rows.device) for _ in self.optimizer.param_groups]

        def work() -> Figures:
            with reading(self.rates, self.optimizer):
                return self.step(self.rows)

        try:
            self.graph.capture(work)
        except Exception as error:  # what is raised depends on what cannot be recorded
            cause = error.__context__ or error  # the end of a broken recording is an error too
            reason = (str(cause) or repr(cause)).splitlines()[0]
            self.give_up(f"the step cannot be recorded ({reason})")

    def give_up(self, why: str) -> None:
        self.given_up = True
        tell(why)


@contextmanager
def reading(rates: list[Tensor], optimizer: Optimizer) -> Iterator[None]:
    """Within this block the optimiser reads its learning rates from these tensors, one a group."""
    before = [dict(group) for group in optimizer.param_groups]
    for rate, group in zip(rates, optimizer.param_groups, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = rate.is_cuda
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.update(settings)


def obstacle(algorithm: Algorithm, optimizer: Optimizer) -> str | None:
    """Why a step of these cannot be recorded, if that can be known beforehand."""
    if counts_in_python(algorithm):
        return f"{type(algorithm).__name__} does not do the same in every step"
    if not all(group.get("fused") for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} has no fused form here"
    if ranks.size() > 1:
        return "ranks exchange their gradients in every step"
    return None


def tell(why: str) -> None:
    """One line on stderr: no graph, and why."""
    if ranks.rank() == 0:
        print(f"metarun: device.graph: {why}: going on without a graph", file=sys.stderr)
