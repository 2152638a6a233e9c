"""A model's answers to episodes, against loops and against embedding everything again."""

from functools import partial

import pytest
import torch
from torch import nn

from metarun.algos.matching import MatchingNet
from metarun.algos.protonet import ProtoNet
from metarun.algos.siamese import Siamese
from metarun.backbones.mlp import MLP
from metarun.testing.answers import answers, features_suffice
from tests.testing.test_fixed_episodes import (
    CPU,
    classwise,
    sines,
    some_episodes,
    some_split,
)


def test_accuracies_equal_a_loop():
    """The nearest class mean of each query, an episode and a number at a time."""
    split, episodes = some_split(), some_episodes(shot=2)
    wanted = []
    rows = (classwise(episodes.rows.support), classwise(episodes.rows.query))
    for support, query in zip(*(r.tolist() for r in rows), strict=True):
        means = [split.x[rows].double().mean(dim=0) for rows in support]
        hits = []
        for label, rows in enumerate(query):
            for row in rows:
                distances = [(split.x[row] - mean).square().sum().item() for mean in means]
                hits.append(distances.index(min(distances)) == label)
        wanted.append(sum(hits) / len(hits))
    got = answers(ProtoNet(nn.Identity()), episodes, tasks=7, device=CPU)["accuracy"]
    assert got.dtype == torch.float64
    assert got.tolist() == wanted
    assert len(set(wanted)) > 3


@pytest.mark.parametrize("tasks", [1, 7, 100])
def test_how_many_at_once_does_not_matter(tasks):
    torch.manual_seed(0)
    evaluate = partial(answers, ProtoNet(MLP((4,), [6], "running")), some_episodes(), device=CPU)
    assert torch.equal(evaluate(tasks=tasks)["accuracy"], evaluate(tasks=40)["accuracy"])


def matching(backbone):
    return MatchingNet(backbone, fce=True, processing_steps=2, temperature=0.2)


def siamese(backbone):
    return Siamese(backbone, distortions=False)


@pytest.mark.parametrize("algorithm", [ProtoNet, matching, siamese])
@pytest.mark.parametrize("mode", ["running", "none", "support", "batch"])
def test_each_example_is_embedded_once_where_that_is_exact(algorithm, mode):
    """The answers are those of embedding it again for every episode; the backbone says how often
    it was asked. With a task's own statistics a feature belongs to a task."""
    torch.manual_seed(0)
    algorithm, episodes = algorithm(MLP((4,), [6, 5], mode)), some_episodes(60)
    with torch.no_grad():  # statistics that are not those of the start
        algorithm.train().backbone(some_split().x)
    asked = []
    algorithm.backbone.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
    got = answers(algorithm, episodes, tasks=7, device=CPU, measures=True)
    rows = torch.cat([episodes.rows.support.flatten(), episodes.rows.query.flatten()])
    once = mode in ("running", "none")
    if once:
        assert sum(asked) == len(rows.unique()) < len(rows)
        assert max(asked) <= 7 * 9  # no more at once than seven tasks have
    type(algorithm).features_suffice, before = False, asked.copy()
    try:
        wanted = answers(algorithm, episodes, tasks=7, device=CPU, measures=True)
    finally:
        type(algorithm).features_suffice = True
    assert (asked[len(before) :] == before) is not once
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        exact = {} if name in ("nll", "ece") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(got[name].float(), values.float(), **exact)
    assert 0.4 < wanted["accuracy"].mean() < 1


def test_features_that_take_too_much_memory_are_not_kept(monkeypatch):
    """Nor does a subclass that predicts otherwise inherit that features suffice."""
    torch.manual_seed(0)
    algorithm, episodes = ProtoNet(MLP((4,), [6, 5], "running")), some_episodes(60)
    distinct = torch.cat([episodes.rows.support, episodes.rows.query], dim=1).unique()
    wanted = answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"]
    asked = []
    algorithm.backbone.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
    for most, once in ((20 * len(distinct), True), (20 * len(distinct) - 1, False)):
        monkeypatch.setattr("metarun.testing.fixed_episodes.MOST_FEATURES", most)
        asked.clear()
        assert torch.equal(answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"], wanted)
        assert (sum(asked) == len(distinct)) is once
    assert features_suffice(algorithm)
    assert not features_suffice(LooksItself(algorithm.backbone))


@pytest.mark.parametrize(("most", "batches"), [(10**6, 1), (9 * 5 * 20, 3), (1, 9)])
def test_of_features_as_many_are_answered_at_once_as_the_caches_hold(monkeypatch, most, batches):
    """Never fewer than are asked; a task here has nine examples, of five features each."""
    torch.manual_seed(0)
    algorithm, episodes = ProtoNet(MLP((4,), [6, 5], "running")), some_episodes(60)
    asked, predict = [], algorithm.predict
    wanted = answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"]
    monkeypatch.setattr("metarun.testing.answers.FEATURES_AT_ONCE", most)
    monkeypatch.setattr(algorithm, "predict", lambda e: asked.append(len(e[0])) or predict(e))
    assert torch.equal(answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"], wanted)
    assert (sum(asked), len(asked)) == (60, batches)


class LooksItself(ProtoNet):
    def predict(self, episodes):
        return super().predict(episodes._replace(query_x=2 * episodes.query_x))


@pytest.mark.parametrize("training", [True, False])
def test_the_algorithm_is_as_it_was(training):
    """Its running statistics and its mode; it is in evaluation mode meanwhile."""
    torch.manual_seed(0)
    algorithm = ProtoNet(MLP((4,), [6], "running")).train(training)
    seen = []
    algorithm.backbone.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    answers(algorithm, some_episodes(), tasks=4, device=CPU)
    assert set(seen) == {False}
    assert {module.training for module in algorithm.modules()} == {training}
    for name, tensor in algorithm.state_dict().items():
        assert torch.equal(tensor, before[name])
    if training:  # the same forward pass in training does move them
        algorithm.backbone(some_split().x)
        assert not torch.equal(
            algorithm.backbone[3].running_mean, before["backbone.3.running_mean"]
        )


class Guess(nn.Module):
    """Answers every query point with the mean of the support's values."""

    def predict(self, episodes):
        return episodes.support_y.mean(dim=1, keepdim=True).expand_as(episodes.query_y)

    def predict_and_measure(self, episodes):
        size = torch.full((len(episodes.query_y),), episodes.support_x.shape[1])
        return self.predict(episodes), {"support_size": size}


def test_errors_of_functions_equal_a_loop():
    """The mean squared error of a constant guess, a number at a time; the own measure beside."""
    episodes = sines()
    figures = answers(Guess(), episodes, tasks=7, device=CPU, measures=True)
    assert list(figures) == ["mse", "support_size"]
    for task in range(40):
        _, support_y, _, query_y = (t[task].flatten().tolist() for t in episodes.tensors)
        guess = sum(support_y) / 3
        wanted = sum((y - guess) ** 2 for y in query_y) / 5
        assert figures["mse"][task].item() == pytest.approx(wanted, rel=1e-5)
    assert figures["support_size"].tolist() == [3] * 40
    assert "support_size" not in answers(Guess(), episodes, tasks=7, device=CPU)


def test_what_is_measured_is_not_predicted_again():
    """The prediction that comes with the measures stands for that of `predict`."""

    class Both(Guess):
        def predict(self, episodes):
            raise AssertionError

        def predict_and_measure(self, episodes):
            place = torch.arange(float(len(episodes.query_y)))
            return episodes.query_y + 2, {"mse_after_0": place}

    figures = answers(Both(), sines(), tasks=4, device=CPU, measures=True)
    assert list(figures) == ["mse", "mse_after_0"]
    assert figures["mse"][:6].tolist() == pytest.approx([4] * 6, rel=1e-5)
    assert figures["mse_after_0"][:6].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_fewer_at_once_where_memory_does_not_suffice(monkeypatch, capsys, error):
    """The figures are the same, and the algorithm is as it was; one task must do."""
    torch.manual_seed(0)
    algorithm, episodes = ProtoNet(MLP((4,), [6], "batch")), some_episodes()
    wanted = answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"]
    predict, fits = algorithm.predict, 2

    def short_of_memory(batch):
        if len(batch.query_x) > fits:
            raise error
        return predict(batch)

    monkeypatch.setattr(algorithm, "predict", short_of_memory)
    assert torch.equal(answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"], wanted)
    assert algorithm.training
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"metarun: not enough memory for {n} tasks at once: {n // 2} at once (eval.tasks)"
        for n in (7, 3)
    ]
    fits = 0
    with pytest.raises(type(error)):
        answers(algorithm, episodes, tasks=7, device=CPU)
    assert algorithm.training


def test_another_error_is_no_lack_of_memory(monkeypatch):
    algorithm = ProtoNet(MLP((4,), [6], "batch"))

    def wrong(batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(algorithm, "predict", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        answers(algorithm, some_episodes(), tasks=7, device=CPU)
