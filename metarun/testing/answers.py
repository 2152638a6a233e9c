"""A model's answers to episodes, each episode's figures."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import modes_of
from metarun.device import Device
from metarun.errors import out_of_memory
from metarun.functional.metrics import Metric, measures_for
from metarun.functional.objective import merit
from metarun.interfaces import Algorithm
from metarun.testing.fixed_episodes import FixedEpisodes, RowEpisodes

FEATURES_AT_ONCE = 2**19  # numbers of them in the tasks answered at once, if more than asked for


def answers(
    algorithm: Algorithm, episodes: FixedEpisodes, *, tasks: int, **how: Any
) -> dict[str, Tensor]:
    """As `answers_at_once`, of fewer tasks at once where memory does not suffice: the figures are
    the same."""
    while True:
        noise = torch.get_rng_state()
        try:
            return answers_at_once(algorithm, episodes, tasks=tasks, **how)
        except (MemoryError, RuntimeError) as error:
            if tasks == 1 or not out_of_memory(error):
                raise
        fewer = tasks // 2
        told = f"metarun: not enough memory for {tasks} tasks at once: {fewer} at once (eval.tasks)"
        print(told, file=sys.stderr, flush=True)
        torch.set_rng_state(noise)
        tasks = fewer


@torch.no_grad()
def answers_at_once(
    algorithm: Algorithm,
    episodes: FixedEpisodes,
    *,
    tasks: int,
    device: Device,
    metric: Metric | None = None,
    measures: bool = False,
) -> dict[str, Tensor]:
    """Each episode's figures [E], float64, `tasks` episodes at once: first that of `metric`, or of
    accuracy or mse without one.

    With `measures` those follow that the algorithm's paper reports beside it, and the other metrics
    that make sense. The algorithm is in evaluation mode meanwhile. No graph is kept, but an
    algorithm may differentiate within.
    """
    was_training = algorithm.training
    algorithm.eval()
    try:
        batches = batches_of(algorithm, episodes, tasks, device, metric, measures)
    finally:
        algorithm.train(was_training)
    return {name: torch.cat([figures[name] for figures in batches]).cpu() for name in batches[0]}


def batches_of(
    algorithm: Algorithm,
    episodes: FixedEpisodes,
    tasks: int,
    device: Device,
    metric: Metric | None,
    measures: bool,
) -> list[dict[str, Tensor]]:
    """The figures of `tasks` episodes after the other."""
    batches = []
    with device.autocast(), embedded_once(algorithm, episodes, tasks) as (episodes, tasks):
        for start in range(0, len(episodes), tasks):
            batch = episodes.batch(slice(start, start + tasks))
            main, own = metric or merit(batch.query_y), {}
            if measures and hasattr(algorithm, "predict_and_measure"):
                outputs, own = algorithm.predict_and_measure(batch)
            else:
                outputs = algorithm.predict(batch)
            others = measures_for(main, batch.way, log_p=scores_are_log_p(algorithm))
            figures = {
                main.name: main.of_tasks(outputs, batch.query_y),
                **own,
                **{m.name: m.of_tasks(outputs, batch.query_y) for m in others if measures},
            }
            batches.append({name: values.double() for name, values in figures.items()})
    return batches


@contextmanager
def embedded_once(
    algorithm: Any, episodes: FixedEpisodes, tasks: int
) -> Iterator[tuple[FixedEpisodes, int]]:
    """Within this block, the episodes to answer, and how many at once: of features, when the
    algorithm sees no more.

    An example then goes through the backbone once, however many of the episodes it appears in.
    """
    once = None
    if features_suffice(algorithm) and isinstance(episodes, RowEpisodes):
        once = episodes.embedded(algorithm.backbone, tasks)
    if once is None:
        yield episodes, tasks
        return
    backbone, algorithm.backbone = algorithm.backbone, nn.Identity()
    try:
        of_one_size = once.rows.ways is None
        yield once, max(tasks, FEATURES_AT_ONCE // once.numbers) if of_one_size else tasks
    finally:
        algorithm.backbone = backbone


def features_suffice(algorithm: Any) -> bool:
    """Whether it sees examples through its backbone alone, and each of them by itself."""
    # A subclass that predicts otherwise has to say so again.
    predicts = next(kind for kind in type(algorithm).__mro__ if "predict" in vars(kind))
    if not vars(predicts).get("features_suffice", False):
        return False
    return set(modes_of(algorithm.backbone.modules())) <= {"running"}


def scores_are_log_p(algorithm: Any) -> bool:
    """Whether softmax of its scores is what it believes of the classes."""
    return getattr(algorithm, "scores_are_log_p", True)
