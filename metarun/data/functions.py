"""Families of one-dimensional functions: a task is one function, known at some of its points.

There is nothing to store. Meta-train, -val and -test draw new functions of the same family, each
from a random stream of its own (Finn et al. 2017, sec. 5.1).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from metarun.data.split import CPU
from metarun.data.store import SPLITS, sha256
from metarun.errors import UserError
from metarun.functional.metrics import MSE

# draw(tasks, points, generator) -> x [T, N, 1], y [T, N, 1]
Draw = Callable[[int, int, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Functions:
    """One split of a family; what it draws belongs on `device`."""

    draw: Draw
    device: torch.device = CPU

    input_shape, kind = (1,), "vectors"

    def to(self, device: torch.device) -> "Functions":
        """This split for use on `device`."""
        return replace(self, device=device)


class FunctionData:
    """A family as a data set; `description` says in words what decides its functions."""

    metric = MSE

    def __init__(self, name: str, description: str, draw: Draw):
        self.name, self.description = name, description
        self.outlines = {split: Functions(draw) for split in SPLITS}
        self.checksum = sha256(f"{name}: {description}".encode())
        self._sealed: set[str] = set()

    def open(self, split: str) -> Functions:
        """The split, whose functions are drawn when asked for."""
        assert split not in self._sealed, f"the {split} split was opened while it was sealed"
        return self.outlines[split]

    @contextmanager
    def sealed(self, split: str) -> Iterator[None]:
        """Within this block the split cannot be opened: nothing is chosen by looking at it."""
        self._sealed.add(split)
        try:
            yield
        finally:
            self._sealed.remove(split)

    def facts(self) -> dict[str, str]:
        """Which functions these were, exactly."""
        return {"name": self.name, "checksum": self.checksum, "family": self.description}

    def summary(self) -> str:
        """One line for the console."""
        return self.description


def sinusoid(amplitude: list[float], phase: list[float], x: list[float]) -> FunctionData:
    """y = A sin(x − φ) with A, φ and x uniform in the given ranges (Finn et al. 2017, sec. 5.1)."""

    refuse_no_range(amplitude=amplitude, phase=phase, x=x)

    def draw(tasks: int, points: int, generator: Generator) -> tuple[Tensor, Tensor]:
        amplitudes = uniform(amplitude, (tasks, 1, 1), generator)
        phases = uniform(phase, (tasks, 1, 1), generator)
        inputs = uniform(x, (tasks, points, 1), generator)
        return inputs, amplitudes * (inputs - phases).sin()

    return FunctionData("sinusoid", f"A sin(x - p), A in {amplitude}, p in {phase}, x in {x}", draw)


def harmonics(frequency: list[float], noise: float) -> FunctionData:
    """Two harmonics: y = a₁ sin(ωx + b₁) + a₂ sin(2ωx + b₂) + noise (Lacoste et al. 2018).

    a ~ N(0, 1), b uniform in [0, 2π], ω uniform in the given range; inputs x ~ N(μ, 1) about a
    centre μ of the task's own, uniform in [−4, 4]; `noise` is the standard deviation added to y.
    """

    refuse_no_range(frequency=frequency)

    def draw(tasks: int, points: int, generator: Generator) -> tuple[Tensor, Tensor]:
        centres = uniform([-4.0, 4.0], (tasks, 1, 1), generator)
        inputs = centres + torch.randn(tasks, points, 1, generator=generator)
        omega = uniform(frequency, (tasks, 1, 1), generator)
        phases = uniform([0.0, 2 * math.pi], (tasks, 1, 2), generator)
        amplitudes = torch.randn(tasks, 1, 2, generator=generator)
        waves = amplitudes * (omega * inputs * torch.tensor([1.0, 2.0]) + phases).sin()
        added = noise * torch.randn(tasks, points, 1, generator=generator)
        return inputs, waves.sum(dim=2, keepdim=True) + added

    return FunctionData(
        "harmonics",
        f"a1 sin(wx + b1) + a2 sin(2wx + b2), w in {frequency}, noise of deviation {noise}",
        draw,
    )


def uniform(bounds: list[float], shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Numbers uniform between the two `bounds`."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def refuse_no_range(**ranges: list[float]) -> None:
    """Raise UserError unless each is a lowest and a highest value."""
    for key, bounds in ranges.items():
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise UserError(f"data.{key}={bounds}: give the lowest and the highest value")
