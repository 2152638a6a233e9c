import math

import pytest
import torch
from torch import nn

from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError


def some_episodes(tasks=3, way=3, shot=2, query=4, shape=(5,), seed=0):
    """Random episodes whose support and query are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        orders = torch.rand(tasks, way * each, generator=generator).argsort(dim=1)
        return orders % way

    def normal(count):
        return torch.randn(tasks, count, *shape, generator=generator)

    return Episodes(normal(way * shot), labels(shot), normal(way * query), labels(query), way=way)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def scores_by_loops(z, y, queries, way, distance):
    """Minus the distance of each query to each mean of the rows with that label, as numbers."""
    means = []
    for label in range(way):
        members = [row for row, of in zip(z, y, strict=True) if of == label]
        means.append([sum(column) / len(members) for column in zip(*members, strict=True)])
    return [[-distance(query, mean) for mean in means] for query in queries]


def squared(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def one_minus_cosine(a, b):
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return 1 - dot / (math.hypot(*a) * math.hypot(*b))


def test_scores_worked_by_hand():
    """Means (1, 0) and (0, 4); squared distances of (1, 1) to them are 1 and 10."""
    support_x = torch.tensor([[[0, 0], [0, 4], [2, 0]]], dtype=torch.float64)
    support_y = torch.tensor([[0, 1, 0]])  # unordered, unequal shots
    query_x = torch.tensor([[[1, 1]]], dtype=torch.float64)
    episodes = Episodes(support_x, support_y, query_x, query_y=torch.tensor([[0]]), way=2)
    assert ProtoNet(backbone=nn.Identity()).predict(episodes).tolist() == [[[-1, -10]]]


@pytest.mark.parametrize(
    ("name", "distance", "temperature"),
    [
        ("euclidean", squared, 1.0),
        ("euclidean", squared, 8.0),
        ("cosine", one_minus_cosine, 1.0),
        ("cosine", one_minus_cosine, 0.1),
    ],
)
def test_scores_and_loss_equal_the_equation(name, distance, temperature):
    """Eq. 2 in float64, a number at a time: -log of the softmax of minus the distances."""
    episodes = some_episodes()
    algorithm = ProtoNet(nn.Identity(), distance=name, temperature=temperature)
    got = algorithm.predict(episodes)
    losses, hits = [], []
    for task in range(3):
        z, y, queries, labels = (tensor[task].tolist() for tensor in episodes[:4])
        scores = scores_by_loops(z, y, queries, 3, distance)
        for q, label in enumerate(labels):
            row = [score / temperature for score in scores[q]]
            for k in range(3):
                assert got[task, q, k].item() == pytest.approx(row[k], rel=1e-5, abs=1e-5)
            losses.append(-math.log(math.exp(row[label]) / sum(map(math.exp, row))))
            hits.append(row[label] == max(row))
    loss, metrics = algorithm.loss(episodes)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert 0.1 < sum(hits) / len(hits) < 0.9


def test_relabelling_the_classes_permutes_the_scores():
    episodes = some_episodes(way=4)
    order = torch.tensor([2, 0, 3, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    algorithm = ProtoNet(nn.Identity())
    scores, permuted = algorithm.predict(episodes), algorithm.predict(relabelled)
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)
    torch.testing.assert_close(algorithm.loss(relabelled)[0], algorithm.loss(episodes)[0])


def test_the_order_of_the_support_does_not_matter():
    episodes = some_episodes()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    shuffled = episodes._replace(
        support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order]
    )
    algorithm = ProtoNet(nn.Identity())
    torch.testing.assert_close(algorithm.predict(shuffled), algorithm.predict(episodes))


@pytest.mark.parametrize("backbone", [nn.Identity(), MLP((5,), [7, 4], "running").eval()])
def test_many_tasks_at_once_equal_one_at_a_time(backbone):
    algorithm, episodes = ProtoNet(backbone), some_episodes(tasks=4)
    scores = algorithm.predict(episodes)
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(4)]
    torch.testing.assert_close(scores, torch.cat(alone))
    losses = [algorithm.loss(one_task(episodes, task))[0] for task in range(4)]
    torch.testing.assert_close(algorithm.loss(episodes)[0], torch.stack(losses).mean())


def test_a_learnt_temperature_gets_the_gradient_of_the_equation():
    """Scores are -d / e^s, so ds of the loss is, by central differences, the same."""
    episodes = some_episodes()
    algorithm = ProtoNet(nn.Identity(), "cosine", temperature=0.5, learn_temperature=True)
    algorithm.loss(episodes)[0].backward()
    step = 1e-2
    losses = [
        ProtoNet(nn.Identity(), "cosine", math.exp(math.log(0.5) + s)).loss(episodes)[0].item()
        for s in (step, -step)
    ]
    slope = (losses[0] - losses[1]) / (2 * step)
    assert abs(slope) > 0.01
    assert algorithm.log_temperature.grad.item() == pytest.approx(slope, rel=1e-2)


def test_a_given_temperature_stays():
    algorithm = ProtoNet(MLP((5,), [4], "running"), temperature=2.0)
    algorithm.loss(some_episodes())[0].backward()
    assert algorithm.log_temperature.grad is None
    assert algorithm.log_temperature.exp().item() == pytest.approx(2.0)


def test_a_temperature_that_is_a_whole_number():
    episodes = some_episodes()
    half = ProtoNet(nn.Identity(), temperature=2).predict(episodes)
    torch.testing.assert_close(half * 2, ProtoNet(nn.Identity()).predict(episodes))


def test_an_unknown_distance_is_refused():
    with pytest.raises(UserError, match=r"algo.distance=cosin: choose one of euclidean, cosine"):
        ProtoNet(nn.Identity(), distance="cosin")


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(UserError, match=rf"algo.temperature={temperature}: .* above 0"):
        ProtoNet(nn.Identity(), temperature=temperature)


@pytest.mark.parametrize(("batch_norm", "inductive"), [("running", True), ("batch", False)])
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive):
    """With running statistics it does not; with the batch's own it does."""
    torch.manual_seed(0)
    algorithm = ProtoNet(Conv4((1, 16, 16), width=8, batch_norm=batch_norm)).eval()
    episodes = some_episodes(tasks=1, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    with torch.no_grad():
        before = algorithm.predict(episodes)
        after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-4, atol=1e-5) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-2)


def test_the_loss_teaches_every_layer_of_the_backbone():
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), width=8, batch_norm="running")
    ProtoNet(backbone).loss(some_episodes(shape=(1, 16, 16)))[0].backward()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_bfloat16_stops_at_the_features(distance):
    """Under autocast, means and distances of float32 features are those without it."""
    torch.manual_seed(0)
    support_x, query_x = torch.randn(2, 6, 8), torch.randn(2, 4, 8)
    support_y = torch.arange(3).repeat(2, 2)
    episodes = Episodes(support_x, support_y, query_x, torch.zeros(2, 4, dtype=torch.int64), way=3)
    algorithm = ProtoNet(nn.Identity(), distance=distance)
    wanted = algorithm.predict(episodes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), wanted)
