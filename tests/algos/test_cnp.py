import math

import pytest
import torch
from torch import nn

from metarun.algos.cnp import CNP
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError


class Given(nn.Identity):
    """Features that are the inputs themselves."""

    def __init__(self, out_dim: int):
        super().__init__()
        self.out_dim = out_dim


def some_episodes(tasks=2, way=3, shot=2, query=2, shape=(5,), seed=0, dtype=torch.float64):
    """Random episodes whose support and query are in no order; with way = 1, random points."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    def normal(count, shape):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=dtype)

    support_x, query_x = normal(way * shot, shape), normal(way * query, shape)
    if way == 1:
        return Episodes(support_x, normal(shot, (1,)), query_x, normal(query, (1,)), way=1)
    return Episodes(support_x, labels(shot), query_x, labels(query), way=way)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def new_cnp(way, features, width=7, dtype=torch.float64):
    torch.manual_seed(0)
    return CNP(Given(features), way, width).to(dtype).eval()  # nothing is standardised yet


def perceptron_by_numbers(layers, x):
    """The network's output for one example, a list of numbers."""
    layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(layers):
        x = [
            sum(w * v for w, v in zip(row, x, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        if i < len(layers) - 1:
            x = [max(v, 0.0) for v in x]
    return x


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def test_class_scores_and_loss_equal_the_equations():
    """Class means side by side, then g, a number at a time; -log of the softmax."""
    algorithm, episodes = new_cnp(way=3, features=5), some_episodes()
    predicted, losses, hits = algorithm.predict(episodes), [], []
    for task in range(2):
        support_x, support_y, query_x, query_y = (tensor[task].tolist() for tensor in episodes[:4])
        r = []
        for k in range(3):
            r += mean_of([x for x, y in zip(support_x, support_y, strict=True) if y == k])
        for q, (x, label) in enumerate(zip(query_x, query_y, strict=True)):
            row = perceptron_by_numbers(algorithm.decoder, x + r)
            assert predicted[task, q].tolist() == pytest.approx(row)
            losses.append(-math.log(math.exp(row[label]) / sum(map(math.exp, row))))
            hits.append(row[label] == max(row))
    loss, metrics = algorithm.loss(episodes)
    assert loss.item() == pytest.approx(sum(losses) / len(losses))
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))


def values_by_numbers(algorithm, support_x, support_y, xs):
    """Mean and deviation at each of `xs` of one task, given its context (eqs. 1 to 3)."""
    pairs = [x + y for x, y in zip(support_x, support_y, strict=True)]
    r = mean_of([perceptron_by_numbers(algorithm.encoder, pair) for pair in pairs])
    outputs = [perceptron_by_numbers(algorithm.decoder, x + r) for x in xs]
    return [(mean, 0.1 + 0.9 * math.log(1 + math.exp(rest))) for mean, rest in outputs]


def test_predicted_values_equal_the_equations():
    """The Gaussian's mean [T, Q, 1], from the whole support set."""
    algorithm, episodes = new_cnp(way=1, features=2), some_episodes(way=1, shot=4, shape=(2,))
    predicted = algorithm.predict(episodes)
    assert predicted.shape == (2, 2, 1)
    for task in range(2):
        support_x, support_y, query_x, _ = (tensor[task].tolist() for tensor in episodes[:4])
        wanted = values_by_numbers(algorithm, support_x, support_y, query_x)
        assert predicted[task, :, 0].tolist() == pytest.approx([mean for mean, _ in wanted])


def test_the_loss_of_values_equals_the_equation_for_each_size_of_context():
    """Eq. 4: the density of the normal distribution at all points, given the first N of 3."""
    algorithm, episodes = new_cnp(way=1, features=2), some_episodes(way=1, shot=3, shape=(2,))
    losses = {1: [], 2: [], 3: []}
    errors = {1: [], 2: [], 3: []}
    for n in (1, 2, 3):
        for task in range(2):
            support_x, support_y, query_x, query_y = (t[task].tolist() for t in episodes[:4])
            values = values_by_numbers(algorithm, support_x[:n], support_y[:n], support_x + query_x)
            for (mean, deviation), (y,) in zip(values, support_y + query_y, strict=True):
                density = math.exp(-(((y - mean) / deviation) ** 2) / 2)
                losses[n].append(-math.log(density / (deviation * math.sqrt(2 * math.pi))))
            errors[n] += [(y - m) ** 2 for (m, _), (y,) in zip(values[3:], query_y, strict=True)]
    drawn = []
    torch.manual_seed(0)
    for _ in range(60):
        loss, metrics = algorithm.loss(episodes)
        (n,) = [n for n in losses if loss.item() == pytest.approx(sum(losses[n]) / 10, rel=1e-9)]
        assert metrics["mse"].item() == pytest.approx(sum(errors[n]) / 4)
        drawn.append(n)
    assert min(map(drawn.count, losses)) > 10


def test_layers_of_the_paper():
    """h of three layers and g of five, 128 wide (sec. 4.1); g of three for classes (sec. 4.3)."""

    def sizes(network):
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        return [layers[0].in_features, *(layer.out_features for layer in layers)]

    values, classes = CNP(Given(1), way=1, width=128), CNP(Given(64), way=20, width=128)
    assert sizes(values.encoder) == [2, 128, 128, 128]
    assert sizes(values.decoder) == [129, 128, 128, 128, 128, 2]
    assert sizes(classes.decoder) == [64 + 20 * 64, 128, 128, 20]


@pytest.mark.parametrize("way", [1, 3])
def test_many_tasks_at_once_equal_one_at_a_time(way):
    for backbone in (Given(5), MLP((5,), [7, 4], "running").eval()):
        torch.manual_seed(0)
        algorithm, episodes = CNP(backbone, way, 7).double().eval(), some_episodes(tasks=4, way=way)
        outputs = algorithm.predict(episodes)
        alone = [algorithm.predict(one_task(episodes, task)) for task in range(4)]
        torch.testing.assert_close(outputs, torch.cat(alone))
        losses = []
        for part in [episodes, *(one_task(episodes, task) for task in range(4))]:
            torch.manual_seed(1)  # the same size of context
            losses.append(algorithm.loss(part)[0])
        torch.testing.assert_close(losses[0], torch.stack(losses[1:]).mean())


@pytest.mark.parametrize("way", [1, 3])
def test_the_order_of_the_support_does_not_matter(way):
    algorithm, episodes = new_cnp(way, features=5), some_episodes(way=way, shot=4)
    order = torch.randperm(4 * way, generator=torch.Generator().manual_seed(1))
    turned = episodes._replace(
        support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order]
    )
    torch.testing.assert_close(algorithm.predict(turned), algorithm.predict(episodes))


@torch.no_grad()
def test_each_class_has_its_place_in_the_representation():
    """g is learnt, so renaming the classes changes the scores; but turning the blocks of g's first
    weights that read the classes, and its last rows, along with the classes permutes them."""
    algorithm, episodes = new_cnp(way=3, features=5), some_episodes()
    renamed = torch.tensor([2, 0, 1])  # class k is now called renamed[k]
    relabelled = episodes._replace(support_y=renamed[episodes.support_y])
    scores = algorithm.predict(episodes)
    assert not torch.allclose(algorithm.predict(relabelled)[..., renamed], scores)
    first, last = algorithm.decoder[0], algorithm.decoder[-1]
    blocks = first.weight.clone()[:, 5:].unflatten(1, (3, 5))  # [width, class, feature]
    first.weight[:, 5:] = blocks[:, renamed.argsort()].flatten(1)
    weight, bias = last.weight.clone(), last.bias.clone()
    last.weight[renamed], last.bias[renamed] = weight, bias
    torch.testing.assert_close(algorithm.predict(relabelled)[..., renamed], scores)


@pytest.mark.parametrize("way", [1, 3])
@pytest.mark.parametrize(
    ("batch_norm", "inductive"), [("running", True), ("support", True), ("batch", False)]
)
@torch.no_grad()
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive, way):
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), width=8, batch_norm=batch_norm)
    algorithm = CNP(backbone, way, 16).double().eval()
    episodes = some_episodes(tasks=1, way=way, shot=6 // way, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before = algorithm.predict(episodes)
    after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-9) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-3)


@pytest.mark.parametrize("way", [1, 3])
def test_gradients_reach_every_parameter(way):
    torch.manual_seed(0)
    algorithm = CNP(Conv4((1, 16, 16), width=8, batch_norm="running"), way, 16)
    episodes = some_episodes(way=way, shot=4, shape=(1, 16, 16), dtype=torch.float32)
    algorithm.loss(episodes)[0].backward()
    for name, parameter in algorithm.named_parameters():
        if not name.endswith(".0.bias") or "coder" in name:  # batch norm takes that bias away
            assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize(("learnt", "given"), [(3, 4), (1, 3), (3, 1)])
def test_tasks_with_another_number_of_classes_are_refused(learnt, given):
    algorithm, episodes = new_cnp(learnt, features=5), some_episodes(way=given)
    for answer in (algorithm.predict, algorithm.loss):
        with pytest.raises(UserError, match=rf"algo.way={learnt} .* way={given}"):
            answer(episodes)


@pytest.mark.parametrize(("way", "width", "key"), [(0, 128, "way=0"), (5, 0, "width=0")])
def test_values_that_make_no_network_are_refused(way, width, key):
    with pytest.raises(UserError, match=rf"algo.{key}: "):
        CNP(Given(5), way, width)


@pytest.mark.parametrize("way", [1, 3])
def test_bfloat16_stops_at_the_features(way):
    algorithm = new_cnp(way, features=5, dtype=torch.float32)
    episodes = some_episodes(way=way, shot=3, dtype=torch.float32)

    def answers():
        torch.manual_seed(0)
        with torch.no_grad():
            return algorithm.predict(episodes), algorithm.loss(episodes)[0]

    wanted = answers()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, answers(), wanted))
        algorithm.backbone = MLP((5,), [7, 5], "running")  # whose features are bfloat16
        assert {answer.dtype for answer in answers()} == {torch.float32}


def test_it_learns_to_classify():
    """Two kinds of examples, named 0 and 1 or the other way round: only the support can tell."""
    torch.manual_seed(0)
    algorithm = CNP(Given(2), way=2, width=32)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.01)

    def named(tasks):
        y = torch.rand(tasks, 2).argsort(dim=1)  # [T, 2]: what each kind is called
        support_x, query_x = torch.eye(2) + 0.1 * torch.randn(2, tasks, 2, 2)
        return Episodes(support_x, y, query_x, y, way=2)

    test = named(100)

    def accuracy():
        with torch.no_grad():
            return (algorithm.predict(test).argmax(-1) == test.query_y).float().mean().item()

    assert accuracy() < 0.7
    for _ in range(60):
        optimizer.zero_grad()
        algorithm.loss(named(16))[0].backward()
        optimizer.step()
    assert accuracy() > 0.95


def test_it_learns_to_predict_values():
    """Sine waves of any phase, 8 points of which are known: most of the variance is explained, and
    more points are worth more."""
    torch.manual_seed(0)
    algorithm = CNP(MLP((1,), [40, 40], "none"), way=1, width=64)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.002)

    def waves(tasks, shot=8, query=8):
        x = 6 * torch.rand(tasks, shot + query, 1) - 3
        y = (x + 2 * math.pi * torch.rand(tasks, 1, 1)).sin()
        return Episodes(x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:], way=1)

    test = waves(200)
    for _ in range(300):
        optimizer.zero_grad()
        algorithm.loss(waves(32))[0].backward()
        optimizer.step()

    def mse(n):
        known = test._replace(support_x=test.support_x[:, :n], support_y=test.support_y[:, :n])
        with torch.no_grad():
            return (algorithm.predict(known) - test.query_y).square().mean().item()

    variance = test.query_y.var().item()
    assert mse(8) < 0.25 * variance
    assert mse(8) < 0.5 * mse(1)


def test_from_the_command_line(metarun):
    results = metarun.run("algo=cnp", "name=x", "algo.width=16")
    assert results["status"] == "finished"
    assert results["test"]["batch_norm"] == "running"
