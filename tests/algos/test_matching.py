import math

import pytest
import torch
from torch import nn

from metarun.algos.matching import MatchingNet
from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError

D = 5  # features


class Same(nn.Identity):
    """A backbone whose features are the examples."""

    out_dim = D


def some_episodes(tasks=3, way=3, shot=2, query=4, shape=(D,), seed=0):
    """Random float64 episodes whose support and query are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    def normal(count):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=torch.float64)

    return Episodes(normal(way * shot), labels(shot), normal(way * query), labels(query), way=way)


def separable(tasks, way=3, shot=1, query=4, noise=0.3):
    """Tasks whose classes differ in the first two numbers only, among ten of noise."""
    angles = torch.rand(tasks, 1) * 6.28 + torch.arange(way) * 6.28 / way
    centres = torch.stack([angles.cos(), angles.sin()], dim=-1).double()  # [T, way, 2]

    def draw(each):
        y = torch.arange(way).repeat_interleave(each).expand(tasks, -1)
        x = torch.randn(tasks, way * each, 12, dtype=torch.float64)
        x[..., :2] = centres.repeat_interleave(each, dim=1) + noise * x[..., :2]
        return x, y

    return Episodes(*draw(shot), *draw(query), way=way)


def matching(backbone=None, fce=False, processing_steps=2, temperature=1.0, seed=0):
    torch.manual_seed(seed)
    backbone = Same() if backbone is None else backbone
    return MatchingNet(backbone, fce, processing_steps, temperature).double()


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


# The paper's formulas, a number at a time.


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def plus(*vectors):
    return [sum(column) for column in zip(*vectors, strict=True)]


def softmax(values):
    return [math.exp(v) / sum(map(math.exp, values)) for v in values]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def lstm_step(x, h, c, parameters):
    """Gates in torch's order: input, forget, cell, output."""
    of_x, of_h, bias_x, bias_h = parameters
    rows = zip(of_x, of_h, bias_x, bias_h, strict=True)
    gates = [dot(wx, x) + dot(wh, h) + bx + bh for wx, wh, bx, bh in rows]
    i, f, g, o = (gates[k * len(h) : (k + 1) * len(h)] for k in range(4))
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(len(h))]
    return [sigmoid(o[k]) * math.tanh(c[k]) for k in range(len(h))], c


def run_lstm(inputs, parameters):
    h, c, outputs = [0.0] * D, [0.0] * D, []
    for x in inputs:
        h, c = lstm_step(x, h, c, parameters)
        outputs.append(h)
    return outputs


def full_context(context, support, queries, steps):
    """Appendices A.2 and A.1."""
    p = {name: value.tolist() for name, value in context.named_parameters()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    forth = run_lstm(support, [p[f"support_lstm.{name}_l0"] for name in names])
    back = run_lstm(support[::-1], [p[f"support_lstm.{name}_l0_reverse"] for name in names])[::-1]
    g = [plus(*vectors) for vectors in zip(forth, back, support, strict=True)]
    f = []
    for query in queries:
        h, c = query, [0.0] * D
        for _ in range(steps):
            weights = softmax([dot(h, each) for each in g])
            r = plus(*([w * value for value in each] for w, each in zip(weights, g, strict=True)))
            h_hat, c = lstm_step(query + r, h, c, [p[f"query_lstm.{name}"] for name in names])
            h = plus(h_hat, query)
        f.append(h)
    return g, f


def probabilities(g, y, query, way, temperature):
    """Eq. 1: the attention on the support examples of each class."""
    cosines = [dot(query, each) / math.hypot(*query) / math.hypot(*each) for each in g]
    attention = softmax([cosine / temperature for cosine in cosines])
    return [sum(a for a, of in zip(attention, y, strict=True) if of == k) for k in range(way)]


@pytest.mark.parametrize(
    ("fce", "steps", "temperature"),
    [(False, 1, 1.0), (False, 1, 0.1), (True, 1, 1.0), (True, 3, 0.5)],
)
def test_scores_and_loss_equal_the_equations(fce, steps, temperature):
    episodes = some_episodes()
    algorithm = matching(fce=fce, processing_steps=steps, temperature=temperature)
    got = algorithm.predict(episodes)
    losses, hits = [], []
    for task in range(3):
        z, y, queries, labels = (tensor[task].tolist() for tensor in episodes[:4])
        if fce:
            z, queries = full_context(algorithm.context, z, queries, steps)
        for q, label in enumerate(labels):
            wanted = probabilities(z, y, queries[q], 3, temperature)
            assert got[task, q].tolist() == pytest.approx([math.log(p) for p in wanted])
            losses.append(-math.log(wanted[label]))
            hits.append(wanted[label] == max(wanted))
    loss, metrics = algorithm.loss(episodes)
    assert loss.item() == pytest.approx(sum(losses) / len(losses))
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert 0.1 < sum(hits) / len(hits) < 0.9


def test_scores_worked_by_hand():
    """Cosines 1, 0 and 0 with classes 0, 1 and 1: attention in the proportion e : 1 : 1."""
    support_x = torch.tensor([[[2.0, 0], [0, 1], [0, -3]]], dtype=torch.float64)
    query_x = torch.tensor([[[5.0, 0]]], dtype=torch.float64)
    episodes = Episodes(support_x, torch.tensor([[0, 1, 1]]), query_x, torch.tensor([[0]]), way=2)
    scores = matching().predict(episodes).flatten().exp().tolist()
    assert scores == pytest.approx([math.e / (math.e + 2), 2 / (math.e + 2)])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_with_one_shot_it_is_a_prototypical_network(distance):
    """Snell et al. 2017, sec. 2.7: one example is its class's mean."""
    episodes = some_episodes(shot=1)
    prototypical = ProtoNet(nn.Identity(), distance=distance, temperature=0.5)
    wanted = prototypical.predict(episodes).log_softmax(dim=-1)
    scores = MatchingNet(Same(), False, 1, temperature=0.5, distance=distance).predict(episodes)
    torch.testing.assert_close(scores, wanted, rtol=1e-6, atol=0)


def test_a_class_without_attention_has_a_finite_score():
    """e^(-2000) is 0 as a number; its logarithm is still -2000, and has a gradient."""
    support_x = torch.tensor([[[1.0, 0], [-1, 0]]], requires_grad=True)
    episodes = Episodes(
        support_x, torch.tensor([[0, 1]]), torch.tensor([[[1.0, 0]]]), torch.tensor([[1]]), way=2
    )
    loss = MatchingNet(nn.Identity(), False, 1, temperature=0.001).loss(episodes)[0]
    assert loss.item() == pytest.approx(2000)
    loss.backward()
    assert support_x.grad.isfinite().all()


@pytest.mark.parametrize("fce", [False, True])
@pytest.mark.parametrize("backbone", [Same(), MLP((D,), [7, 4], "running").eval()])
def test_many_tasks_at_once_equal_one_at_a_time(fce, backbone):
    algorithm, episodes = matching(backbone, fce), some_episodes(tasks=4)
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(4)]
    torch.testing.assert_close(algorithm.predict(episodes), torch.cat(alone))
    losses = [algorithm.loss(one_task(episodes, task))[0] for task in range(4)]
    torch.testing.assert_close(algorithm.loss(episodes)[0], torch.stack(losses).mean())


@pytest.mark.parametrize("fce", [False, True])
def test_relabelling_the_classes_permutes_the_scores(fce):
    episodes = some_episodes(way=4)
    order = torch.tensor([2, 0, 3, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    algorithm = matching(fce=fce)
    scores, permuted = algorithm.predict(episodes), algorithm.predict(relabelled)
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)
    torch.testing.assert_close(algorithm.loss(relabelled)[0], algorithm.loss(episodes)[0])


@pytest.mark.parametrize("fce", [False, True])
def test_the_order_of_the_support_matters_to_full_context_alone(fce):
    episodes = some_episodes()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    shuffled = episodes._replace(
        support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order]
    )
    algorithm = matching(fce=fce)
    scores = algorithm.predict(episodes)
    assert torch.equal(scores, algorithm.predict(episodes))
    assert torch.allclose(algorithm.predict(shuffled), scores) == (not fce)


@pytest.mark.parametrize("fce", [False, True])
def test_way_and_shot_are_free(fce):
    algorithm = matching(fce=fce)
    for way, shot in [(2, 1), (7, 3)]:
        scores = algorithm.predict(some_episodes(way=way, shot=shot))
        assert scores.shape == (3, 4 * way, way)
        torch.testing.assert_close(scores.exp().sum(-1), torch.ones_like(scores[..., 0]))


@pytest.mark.parametrize("fce", [False, True])
@pytest.mark.parametrize(
    ("batch_norm", "inductive"), [("running", True), ("support", True), ("batch", False)]
)
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive, fce):
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), width=8, batch_norm=batch_norm)
    algorithm = matching(backbone, fce).eval()
    episodes = some_episodes(tasks=2, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    with torch.no_grad():
        before = algorithm.predict(episodes)
        after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-8) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-2)


@pytest.mark.parametrize("fce", [False, True])
def test_the_loss_teaches_every_parameter(fce):
    torch.manual_seed(0)
    algorithm = matching(MLP((D,), [8, 6], "support"), fce)
    algorithm.loss(some_episodes())[0].backward()
    for name, parameter in algorithm.named_parameters():
        # Batch norm takes away what the linear layer before it adds.
        if not name.startswith("backbone") or parameter.ndim > 1:
            assert parameter.grad.abs().max() > 1e-6, name


def test_maps_are_compared_as_vectors():
    """backbone.flatten changes nothing, but where LSTMs must know how many features there are."""
    episodes = some_episodes(shape=(1, 16, 16))
    scores = []
    for flatten in (False, True):
        torch.manual_seed(0)
        backbone = Conv4((1, 16, 16), 4, "running", pools=3, flatten=flatten)
        scores.append(matching(backbone, False).predict(episodes))
    torch.testing.assert_close(*scores)
    with pytest.raises(UserError, match=r"backbone.flatten=false: this algorithm needs it to be"):
        matching(Conv4((1, 16, 16), 4, "running", flatten=False), True)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(UserError, match=rf"algo.temperature={temperature}: .* above 0"):
        matching(temperature=temperature)


def test_a_number_of_steps_below_one_is_refused():
    with pytest.raises(UserError, match=r"algo.processing_steps=0: it must be at least 1"):
        matching(fce=True, processing_steps=0)


@pytest.mark.parametrize("fce", [False, True])
def test_bfloat16_stops_at_the_features(fce):
    """Under autocast, attention over float32 features is that without it."""
    episodes = some_episodes()
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    algorithm = matching(fce=fce).float()
    wanted = algorithm.predict(episodes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), wanted)


@pytest.mark.parametrize("fce", [False, True])
def test_it_learns(fce):
    """Which two numbers tell the classes apart is learnt on some tasks and holds on others."""
    algorithm = matching(MLP((12,), [16, 8], "running"), fce)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.01)

    def accuracy():
        algorithm.eval()
        torch.manual_seed(1)
        unseen = separable(tasks=100)
        with torch.no_grad():
            return (algorithm.predict(unseen).argmax(-1) == unseen.query_y).double().mean().item()

    before = accuracy()
    algorithm.train()
    for _ in range(60):
        optimizer.zero_grad()
        algorithm.loss(separable(tasks=32))[0].backward()
        optimizer.step()
    assert before < 0.6
    assert accuracy() > 0.8


def test_a_run(metarun):
    """Trained on 3 classes and 1 shot, tested on 4 and 2."""
    results = metarun.run("algo=matching", "algo.fce=true", "eval.way=4", "eval.shot=2", "name=x")
    assert results["status"] == "finished"
    assert results["test"]["way"] == 4


def test_euclidean_attention_worked_by_hand():
    """Squared distances of (0, 1) to the support are 1, 1 and 5."""
    support_x = torch.tensor([[[0, 0], [0, 2], [2, 2]]], dtype=torch.float64)
    query_x = torch.tensor([[[0, 1]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1]]), torch.tensor([[0]])
    episodes = Episodes(support_x, labels[0], query_x, labels[1], way=2)
    algorithm = MatchingNet(nn.Identity(), False, 1, temperature=1.0, distance="euclidean")
    near, far = math.exp(-1), math.exp(-5)
    expected = [2 * near / (2 * near + far), far / (2 * near + far)]
    assert algorithm.predict(episodes).exp()[0, 0].tolist() == pytest.approx(expected)
