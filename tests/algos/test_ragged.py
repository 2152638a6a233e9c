"""Tasks of unlike sizes, filled up to be computed together, are to every algorithm what each of
them is alone."""

from copy import deepcopy
from itertools import product
from pathlib import Path

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from metarun.configs.rules import conf_folder
from metarun.episodes import PADDING, Episodes, of_tasks
from metarun.errors import UserError
from tests.algos.tasks import generic, normal

WAY, SHAPE = 4, (1, 32, 32)
SHOTS = [[1, 3], [2, 1, 1, 4], [2, 2, 1]]  # of each task's classes
QUERIES = [3, 1, 2]  # of each class of a task
ALGORITHMS = sorted(path.stem for path in (Path(conf_folder()) / "algo").glob("*.yaml"))
MODES = ["running", "batch", "support", "none"]
# Batch norm that an algorithm cannot have.
REFUSED = [("mamlpp", "support")] + [
    (name, "running")
    for name in "anil boil fomaml maml meta_lstm meta_sgd proto_maml reptile".split()
]
TAKEN = [pair for pair in product(ALGORITHMS, MODES) if pair not in REFUSED]
# Two that draw at random, and two that train on other batches.
OTHER_LOSSES = ["siamese", "mann", "snail", "reptile"]


def build(name: str, mode: str):
    """The committed algorithm in float64, tiny, with batch norm of this mode."""
    small = [f"algo={name}", "backbone=conv4", f"backbone.batch_norm={mode}"]
    small += [f"way={WAY}", "shot=4"]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose("config", [*small, "backbone.width=3"])
    torch.manual_seed(0)
    backbone = instantiate(config.backbone, input_shape=SHAPE)
    return generic(instantiate(config.algo, backbone=backbone, _convert_="all")).eval()


@pytest.mark.parametrize(("name", "mode"), REFUSED)
def test_batch_norm_that_is_refused(name, mode):
    with pytest.raises(InstantiationException) as refused:
        build(name, mode)
    assert isinstance(refused.value.__cause__, UserError)


def tasks_alone() -> list[Episodes]:
    """Each task by itself, its examples in an order that has nothing to do with their classes."""
    alone = []
    for task, (shots, query) in enumerate(zip(SHOTS, QUERIES, strict=True)):
        way = len(shots)
        support_y = torch.arange(way).repeat_interleave(torch.tensor(shots))
        query_y = torch.arange(way).repeat_interleave(query)
        support_y, query_y = (
            y[torch.randperm(len(y), generator=torch.Generator().manual_seed(task))]
            for y in (support_y, query_y)
        )
        x = (1 + task) * normal(len(support_y) + len(query_y), *SHAPE, seed=task)
        support_x, query_x = x[: len(support_y)], x[len(support_y) :]
        parts = (each[None] for each in (support_x, support_y, query_x, query_y))
        alone.append(Episodes(*parts, way=WAY, ways=torch.tensor([way])))
    return alone


def together(alone: list[Episodes]) -> Episodes:
    """The tasks filled up: with large numbers, which show wherever they get in."""

    def filled(tensors, value):
        longest = max(t.shape[1] for t in tensors)
        full = [
            torch.cat([t, t.new_full((1, longest - t.shape[1], *t.shape[2:]), value)], dim=1)
            for t in tensors
        ]
        return torch.cat(full)

    values = (100, PADDING, 100, PADDING)
    parts = (
        filled(tensors, v)
        for tensors, v in zip(zip(*(t[:4] for t in alone), strict=True), values, strict=True)
    )
    return Episodes(*parts, way=WAY, ways=torch.cat([t.ways for t in alone]))


@pytest.mark.parametrize(("name", "mode"), TAKEN)
def test_predictions_are_those_of_each_task_alone(name, mode):
    algorithm, alone = build(name, mode), tasks_alone()
    scores = algorithm.predict(together(alone))
    for of_task, task, shots in zip(scores, alone, SHOTS, strict=True):
        queries = task.query_y.shape[1]
        torch.testing.assert_close(of_task[:queries], algorithm.predict(task)[0])
        assert of_task[:, : len(shots)].isfinite().all()
        assert (of_task[:, len(shots) :] == -torch.inf).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_full_task_is_an_ordinary_one(name):
    """A task with every class, and `ways` to say so, scores as one without."""
    algorithm = build(name, "none")
    task = tasks_alone()[1]
    torch.testing.assert_close(algorithm.predict(task), algorithm.predict(task._replace(ways=None)))


@pytest.mark.parametrize("name", ["protonet", "matching", "relation", "siamese", "proto_maml"])
def test_fewer_classes_are_a_smaller_task(name):
    """Where no output is learnt for each class, absent classes are as if never thought of."""
    algorithm = build(name, "none")
    for task, shots in zip(tasks_alone(), SHOTS, strict=True):
        plain = task._replace(way=len(shots), ways=None)
        got = algorithm.predict(task)[..., : len(shots)]
        torch.testing.assert_close(got, algorithm.predict(plain))


@pytest.mark.parametrize(
    ("name", "mode"), [(n, m) for n, m in TAKEN if m != "running" and n not in OTHER_LOSSES]
)
def test_loss_is_the_mean_of_the_tasks_own(name, mode):
    """And so is its gradient."""
    algorithm, alone = build(name, mode).train(), tasks_alone()
    losses, gradients = [], []
    for batch in (together(alone), *alone):
        copy = deepcopy(algorithm)
        loss, metrics = copy.loss(batch)
        loss.backward()
        grads = [p.new_zeros(1) if p.grad is None else p.grad.flatten() for p in copy.parameters()]
        losses.append(torch.stack([loss.detach(), metrics["accuracy"].double()]))
        gradients.append(torch.cat(grads))
    for whole, *parts in (losses, gradients):
        torch.testing.assert_close(whole, torch.stack(parts).mean(dim=0), rtol=1e-6, atol=1e-9)
        assert whole.isfinite().all()
        assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["snail", "reptile"])
def test_padding_changes_no_loss_that_draws(name):
    """The same examples are drawn in another order, so that losses differ; but a loss that reads
    padding differs beyond all measure."""
    algorithm = build(name, "none" if name == "snail" else "batch").train()
    task = tasks_alone()[0]
    more = together(tasks_alone())
    first = of_tasks(more, slice(1))
    for batch in (task, first):
        loss, _ = deepcopy(algorithm).loss(batch)
        assert loss.isfinite()
        assert loss < 20


def test_measures_of_siamese_networks_leave_padding_out():
    algorithm, alone = build("siamese", "none"), tasks_alone()
    whole = algorithm.predict_and_measure(together(alone))[1]["verification_accuracy"]
    parts = [algorithm.predict_and_measure(task)[1]["verification_accuracy"] for task in alone]
    torch.testing.assert_close(whole, torch.cat(parts))
