"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun import ranks
from metarun.device import Device
from metarun.errors import Interrupted, UserError
from metarun.functional.metrics import Metric
from metarun.interfaces import Algorithm, Sampler
from metarun.samplers.ahead import can_draw_ahead, rows_ahead
from metarun.tracking.jsonlines import Record
from metarun.training.graph import CapturedStep, CudaGraph, obstacle, tell
from metarun.training.share import own_share
from metarun.training.step import Figures, Step

ADVICE = (
    "try a smaller optim.lr, train.clip_norm=10 or device.precision=fp32; "
    "the checkpoints of earlier steps are kept"
)


@dataclass(frozen=True)
class Plan:
    """Length and rhythm of training, in optimiser steps, and what is trained on: the keys of
    `train` in the config."""

    steps: int
    val_every: int
    log_every: int
    patience: int
    clip_norm: float
    split: str  # "train" or "trainval"
    save_minutes: float = 0.0  # a checkpoint at least that often; 0: only after validations

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step == self.steps or step % self.val_every == 0


@dataclass
class Progress:
    """How far training has come; saved with every checkpoint."""

    step: int = 0
    episodes: int = 0
    seconds: float = 0.0  # of training itself, without validation
    best: float = math.nan  # of the validations
    best_ci95: float = math.nan
    metric: str = ""  # what these two are figures of
    best_step: int = 0
    vals_since_best: int = 0


@dataclass
class Training:
    """Everything that changes while training: what a checkpoint must hold."""

    algorithm: Algorithm
    optimizer: Optimizer
    schedule: LRScheduler
    generator: torch.Generator  # of the sampler
    progress: Progress
    run: str = ""  # which run's it is: all of its checkpoints say so


def fit(
    training: Training,
    plan: Plan,
    sampler: Sampler,
    split: Any,
    device: Device,
    *,
    metric: Metric,
    validate: Callable[[], tuple[float, float]],
    save: Callable[[bool], None],
    stop: Callable[[], bool],
) -> Iterator[Record]:
    """Train to the end of `plan`, yielding a record at each line of the log and each validation.

    `validate()` gives `metric` on the validation episodes and its half-width;
    `save(best)` stores `training`; on "trainval" nothing is validated, and every state that is
    stored counts as the best. When `stop()` turns true, the state is saved and Interrupted raised.
    A loss that is not finite raises UserError, and nothing is saved after it. Several ranks
    train in step when `validate` and `stop` say the same on all of them.
    """
    training.algorithm.train()
    due = Due(0 if ranks.rank() else plan.save_minutes)  # the first rank saves

    def saved(best: bool) -> None:
        save(best)
        due.restart()

    course = Course(training, plan, sampler.tasks, metric, validate, saved, stop, due)
    taken = steps(training, plan, sampler, split, device)
    while not course.over():
        figures = next(taken)
        rate = float(training.schedule.get_last_lr()[0])
        training.schedule.step()
        yield from course.after_step(figures, rate)


@dataclass
class Course:
    """What follows each step of a training: lines of the log, validations and checkpoints.

    A step sees `tasks` tasks; `due()` is asked once after each and tells when a checkpoint is to be
    made whatever the rhythm; the rest is as in `fit`.
    """

    training: Training
    plan: Plan
    tasks: int
    metric: Metric
    validate: Callable[[], tuple[float, float]]
    save: Callable[[bool], None]
    stop: Callable[[], bool]
    due: Callable[[], bool]

    def __post_init__(self) -> None:
        self.window = Window()

    def over(self) -> bool:
        """Whether no step is left, or the last validations were in vain."""
        now, plan = self.training.progress, self.plan
        return now.step >= plan.steps or 0 < plan.patience <= now.vals_since_best

    def after_step(self, figures: Figures, rate: float) -> Iterator[Record]:
        """Take in the step just taken, at this learning rate; its records."""
        now, plan, window = self.training.progress, self.plan, self.window
        now.step += 1
        window.add(figures, episodes=self.tasks)

        validating = plan.validates_after(now.step)
        stopping, due = self.stop(), self.due()
        if validating or stopping or now.step % plan.log_every == 0:
            record = {**window.close(now), "train/lr": rate}
            if stopping and not validating:
                self.save(False)  # first: who listens to the log may take longer than is left
                yield record
                raise Interrupted(f"stopped at step {now.step} of {plan.steps}")
            yield record
            window.restart()  # what the trackers took is not training
        if validating and plan.split == "trainval":  # nothing is left to choose the weights by
            refuse_lost_weights(self.training.algorithm, now.step)
            self.save(True)
            window.restart()
        elif validating:
            refuse_lost_weights(self.training.algorithm, now.step)
            value, ci95 = self.validate()
            best = not now.best_step or self.metric.better(value, now.best)
            if best:
                now.best, now.best_ci95, now.best_step = value, ci95, now.step
                now.metric = self.metric.name
                now.vals_since_best = 0
            else:
                now.vals_since_best += 1
            yield {
                "step": now.step,
                "episodes": now.episodes,
                f"val/{self.metric.name}": value,
                "val/ci95": ci95,
                "val/best": now.best,
            }
            # After its record: what a killed run logged past its checkpoint is redone.
            self.save(best)
            window.restart()
        if stopping or (validating and self.stop()):
            self.save(False)
            raise Interrupted(f"stopped at step {now.step} of {plan.steps}")
        if due and not validating:
            window.settle(now)
            refuse_lost_weights(self.training.algorithm, now.step)
            with window.paused():
                self.save(False)


def steps(
    training: Training, plan: Plan, sampler: Sampler, split: Any, device: Device
) -> Iterator[Figures]:
    """Take one step after another, each when its figures are asked for."""
    algorithm, optimizer = training.algorithm, training.optimizer
    sampler, share = own_share(sampler)
    chunk = getattr(sampler, "chunk", None)
    step = Step(algorithm, optimizer, device, plan.clip_norm, chunk, share)
    if not can_draw_ahead(sampler, split):
        if device.graph:
            tell(f"batches of {type(sampler).__name__} are not made on the GPU")
        while True:
            yield step(sampler(split, training.generator))

    def on_rows(rows: Tensor) -> Figures:
        return step(sampler.batch(split, rows))

    take = on_rows
    if device.graph:
        if why := obstacle(algorithm, optimizer):
            tell(why)
        else:
            take = CapturedStep(on_rows, optimizer, CudaGraph(device.torch_device))
    for rows in rows_ahead(sampler, split, training.generator):
        yield take(rows)


def refuse_lost_weights(algorithm: Algorithm, step: int) -> None:
    """Raise UserError if a weight is not finite: neither a test nor more training can use it."""
    if not torch.stack([p.isfinite().all() for p in algorithm.parameters()]).all():
        raise UserError(f"a weight is not finite after step {step}: {ADVICE}")


class Due:
    """Whether the last checkpoint is so many minutes old; never, if they are 0."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint has just been made."""
        self.since = time.monotonic()

    def __call__(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self.since


class Window:
    """The steps since the last line of the log. Nothing is read off the device until it closes, or
    a checkpoint in its midst is made."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new window now."""
        self.steps: list[Figures] = []
        self.episodes = 0
        self.started = time.perf_counter()
        self.told: tuple[int, float] = (0, 0.0)  # episodes and seconds that `now` knows of already

    def add(self, figures: Figures, episodes: int) -> None:
        """Take in one step."""
        self.steps.append(figures)
        self.episodes += episodes

    def close(self, now: Progress) -> Record:
        """Means over the window's steps, `now` brought up to date, and a new window begun.

        Raises UserError naming the first step whose loss is not finite.
        """
        columns = {
            name: torch.stack([step[name] for step in self.steps]).tolist()
            for name in self.steps[0]
        }
        seconds = self.brought_up(now, columns["loss"])
        record = {
            "step": now.step,
            "episodes": now.episodes,
            **{f"train/{name}": sum(values) / len(values) for name, values in columns.items()},
            "train/episodes_per_second": self.episodes / seconds,
        }
        self.restart()
        return record

    def settle(self, now: Progress) -> None:
        """Bring `now` up to date in the midst of the window; raises UserError as `close` does."""
        if self.steps:
            self.brought_up(now, torch.stack([step["loss"] for step in self.steps]).tolist())

    def brought_up(self, now: Progress, losses: list[float]) -> float:
        """The seconds of the window so far; `now` knows of them and of its episodes then."""
        for back, loss in enumerate(losses, 1 - len(losses)):
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {now.step + back}: {ADVICE}")
        seconds, (episodes_told, seconds_told) = time.perf_counter() - self.started, self.told
        now.seconds += seconds - seconds_told
        now.episodes += self.episodes - episodes_told
        self.told = (self.episodes, seconds)
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What this block takes is not training."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began
