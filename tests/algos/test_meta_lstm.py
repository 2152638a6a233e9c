import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarun.algos.meta_lstm import MetaLSTM, preprocessed
from metarun.backbones.batch_norm import BatchNorm
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError

WAY, STEPS, HIDDEN = 3, 3, 2


def tiny():
    """Three numbers -> 2 features, smooth."""
    body = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    body.out_dim = 2
    return body


def convolutional(mode):
    """6×6 grey pictures -> 8 features, with a convolution and batch norm; smooth."""
    body = nn.Sequential(nn.Conv2d(1, 2, 5), BatchNorm(2, mode), nn.Tanh(), nn.Flatten())
    body.out_dim = 8
    return body


def some_meta_lstm(backbone, **changed):
    """With an optimiser far from that of the start, so that every term counts."""
    torch.manual_seed(0)
    settings = {"way": WAY, "inner_steps": STEPS, "hidden": HIDDEN, **changed}
    algorithm = MetaLSTM(backbone, **settings).double()
    for p in algorithm.optimizer.parameters():
        nn.init.normal_(p)
    nn.init.constant_(algorithm.optimizer.forget_gate.bias, 2.0)
    return algorithm


def some_episodes(shape=(3,), tasks=2, shot=2, query=3):
    generator = torch.Generator().manual_seed(0)

    def labels(each):
        return torch.rand(tasks, WAY * each, generator=generator).argsort(dim=1) % WAY

    def inputs(count):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=torch.float64)

    return Episodes(inputs(WAY * shot), labels(shot), inputs(WAY * query), labels(query), way=WAY)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def size_and_sign(x, p=10):
    """Andrychowicz et al. 2016, appendix A."""
    if abs(x) >= math.exp(-p):
        return [math.log(abs(x)) / p, math.copysign(1, x)]
    return [-1, math.exp(p) * x]


def lstm_by_hand(numbers, x, h, c):
    """A standard LSTM on lists; torch keeps its gates in the order input, forget, cell, output."""
    units = len(h)
    sums = [
        dot(numbers["lstm.weight_ih"][k], x)
        + numbers["lstm.bias_ih"][k]
        + dot(numbers["lstm.weight_hh"][k], h)
        + numbers["lstm.bias_hh"][k]
        for k in range(4 * units)
    ]
    new_h, new_c = [], []
    for k in range(units):
        i, f, g, o = (sums[k + gate * units] for gate in range(4))
        new_c.append(sigmoid(f) * c[k] + sigmoid(i) * math.tanh(g))
        new_h.append(sigmoid(o) * math.tanh(new_c[-1]))
    return new_h, new_c


def trained_by_hand(optimizer, start, slopes):
    """The final parameters, a number at a time; `slopes(step, weights)` gives gradient and loss."""
    numbers = {name: p.tolist() for name, p in optimizer.named_parameters()}
    weights = list(start)
    states = [([0.0] * HIDDEN, [0.0] * HIDDEN, 0.0, 0.0) for _ in weights]
    for step in range(STEPS):
        slope, loss = slopes(step, weights)
        for k, theta in enumerate(weights):
            h, c, i, f = states[k]
            h, c = lstm_by_hand(numbers, size_and_sign(slope[k]) + size_and_sign(loss), h, c)
            gates = {
                name: sigmoid(
                    dot(numbers[f"{name}_gate.weight"][0], [*h, theta, before])
                    + numbers[f"{name}_gate.bias"][0]
                )
                for name, before in (("input", i), ("forget", f))
            }
            weights[k] = gates["forget"] * theta + gates["input"] * -slope[k]
            states[k] = (h, c, gates["input"], gates["forget"])
    return weights


def slope_of(network, x, y):
    """Gradient and value of the support loss, by torch's autograd on a plain network."""

    def slopes(step, weights):
        vector_to_parameters(torch.tensor(weights, dtype=torch.float64), network.parameters())
        loss = F.cross_entropy(network(x), y)
        grads = torch.autograd.grad(loss, list(network.parameters()))
        return parameters_to_vector(grads).tolist(), loss.item()

    return slopes


def outputs_by_hand(network, weights, x):
    vector_to_parameters(torch.tensor(weights, dtype=torch.float64), network.parameters())
    return network(x)


def plain_convolutional():
    """The learner of torch's own layers, whose batch norm uses the statistics of its batch."""
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 2, 5), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8, WAY))


@pytest.mark.parametrize(
    ("backbone", "network", "shape"),
    [
        (tiny(), nn.Sequential(*tiny(), nn.Linear(2, WAY)), (3,)),
        (convolutional("batch"), plain_convolutional(), (1, 6, 6)),
    ],
)
def test_scores_and_loss_equal_the_equations(backbone, network, shape):
    """In float64, one task, one step and one parameter at a time."""
    algorithm, episodes = some_meta_lstm(backbone), some_episodes(shape)
    scores, losses = algorithm.predict(episodes), []
    start = parameters_to_vector(algorithm.learner.parameters()).tolist()
    network = network.double()
    for task in range(2):
        x, y, query_x, query_y = (tensor[task] for tensor in episodes[:4])
        weights = trained_by_hand(algorithm.optimizer, start, slope_of(network, x, y))
        outputs = outputs_by_hand(network, weights, query_x)
        torch.testing.assert_close(scores[task], outputs)
        losses.append(F.cross_entropy(outputs, query_y).item())
    loss, metrics = algorithm.loss(episodes)
    assert loss.item() == pytest.approx(sum(losses) / 2)
    hits = (scores.argmax(-1) == episodes.query_y).double().mean()
    assert metrics["accuracy"] == pytest.approx(hits.item())


def test_preprocessing_by_hand():
    x = torch.tensor([1.0, -math.exp(-5), math.exp(-10) / 2, 0.0, math.e**2], dtype=torch.float64)
    wanted = [[0, 1], [-0.5, -1], [-1, 0.5], [-1, 0], [0.2, 1]]
    torch.testing.assert_close(preprocessed(x), torch.tensor(wanted, dtype=torch.float64))


def central_differences(loss, parameters, places):
    """The derivative of `loss()` in each of `places`, (parameter, index in it), in float64."""
    found = []
    for name, index in places:
        numbers = parameters[name].data.view(-1)
        value, step = numbers[index].item(), 1e-5
        sides = []
        for moved in (value + step, value - step):
            numbers[index] = moved
            sides.append(loss())
        numbers[index] = value
        found.append((sides[0] - sides[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


def test_the_meta_gradient_is_that_of_the_equations_with_constant_gradients():
    """Central differences of the computation by hand, its inner gradients and losses held fixed."""
    algorithm, episodes = some_meta_lstm(tiny()), some_episodes()
    algorithm.loss(episodes)[0].backward()
    parameters = dict(algorithm.named_parameters())
    places = [(name, i) for name, p in parameters.items() for i in range(p.numel())][::3]
    network = nn.Sequential(*tiny(), nn.Linear(2, WAY)).double()
    seen = [[], []]

    def loss(how):
        total = 0
        start = parameters_to_vector(algorithm.learner.parameters()).tolist()
        for task in range(2):
            x, y, query_x, query_y = (tensor[task] for tensor in episodes[:4])
            fresh = slope_of(network, x, y)

            def slopes(step, weights, task=task, fresh=fresh):
                if how == "replayed":
                    return seen[task][step]
                if how == "recorded":
                    seen[task].append(fresh(step, weights))
                    return seen[task][-1]
                return fresh(step, weights)

            weights = trained_by_hand(algorithm.optimizer, start, slopes)
            outputs = outputs_by_hand(network, weights, query_x)
            total += F.cross_entropy(outputs, query_y).item() / 2
        return total

    assert loss("recorded") == pytest.approx(algorithm.loss(episodes)[0].item())
    got = torch.stack([parameters[name].grad.view(-1)[i] for name, i in places])
    wanted = central_differences(lambda: loss("replayed"), parameters, places)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)
    assert wanted.abs().max() > 0.01
    # Through the gradients as well the derivative is another one, so that the test can tell.
    whole = central_differences(lambda: loss("fresh"), parameters, places)
    assert not torch.allclose(whole, wanted, rtol=1e-2)


@pytest.mark.parametrize("mode", ["batch", "support"])
def test_the_meta_gradient_through_batch_norm(mode, monkeypatch):
    """Central differences of the loss itself, the inner gradients replayed as they first were."""
    algorithm, episodes = some_meta_lstm(convolutional(mode)), some_episodes((1, 6, 6))
    seen, real = [], algorithm.support_slope

    def recorded(*arguments):
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr(algorithm, "support_slope", recorded)
    algorithm.loss(episodes)[0].backward()
    assert len(seen) == STEPS
    assert not any(tensor.requires_grad for pair in seen for tensor in pair)

    def loss():
        replay = iter(seen)
        monkeypatch.setattr(algorithm, "support_slope", lambda *_: next(replay))
        return algorithm.loss(episodes)[0].item()

    parameters = dict(algorithm.named_parameters())
    places = [(name, i) for name, p in parameters.items() for i in range(p.numel())][::4]
    got = torch.stack([parameters[name].grad.view(-1)[i] for name, i in places])
    wanted = central_differences(loss, parameters, places)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)
    for name, p in parameters.items():
        # Batch norm takes away whatever a convolution adds to all its outputs.
        assert (p.grad.abs().max() > 1e-6) == (name != "learner.body.0.bias"), name


def test_it_starts_as_gradient_descent():
    """With an input gate of no inputs and a forget gate that is open: SGD at rate sigmoid(b_I)."""
    algorithm, episodes = some_meta_lstm(tiny()), some_episodes(tasks=1)
    for gate, bias in (
        (algorithm.optimizer.input_gate, -1.0),
        (algorithm.optimizer.forget_gate, 50),
    ):
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, bias)
    network = deepcopy(algorithm.learner)
    descent = torch.optim.SGD(network.parameters(), lr=sigmoid(-1.0))
    for _ in range(STEPS):
        descent.zero_grad()
        F.cross_entropy(network(episodes.support_x[0]), episodes.support_y[0]).backward()
        descent.step()
    torch.testing.assert_close(algorithm.predict(episodes)[0], network(episodes.query_x[0]))


def test_a_new_optimiser_is_near_gradient_descent():
    """The gates of the first step: f in sigmoid([4, 6]), i in sigmoid([-5, -4])."""
    optimizer = MetaLSTM(tiny(), WAY, inner_steps=1, hidden=20).optimizer
    weights = torch.randn(2, 5)
    state = optimizer.first_state(weights)
    _, state = optimizer(weights, torch.randn(2, 5), torch.rand(2), state)
    assert 0.98 < state.f.min() < state.f.max() < 0.998
    assert 0.006 < state.i.min() < state.i.max() < 0.019


def test_many_tasks_at_once_equal_one_at_a_time():
    algorithm = some_meta_lstm(convolutional("support"))
    episodes = some_episodes((1, 6, 6), tasks=3)
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(3)]
    torch.testing.assert_close(algorithm.predict(episodes), torch.cat(alone))
    losses = [algorithm.loss(one_task(episodes, task))[0] for task in range(3)]
    torch.testing.assert_close(algorithm.loss(episodes)[0], torch.stack(losses).mean())


def test_relabelling_the_classes_and_the_head_permutes_the_scores():
    """A head is learnt, so its rows are relabelled too; the optimiser treats all numbers alike."""
    algorithm, episodes = some_meta_lstm(tiny()), some_episodes()
    order = torch.tensor([2, 0, 1])  # class k is now called order[k]
    relabelled = deepcopy(algorithm)
    for rows in relabelled.learner.head.parameters():
        rows.data[order] = rows.data.clone()
    scores = algorithm.predict(episodes)
    permuted = relabelled.predict(episodes._replace(support_y=order[episodes.support_y]))
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)


@pytest.mark.parametrize(("mode", "inductive"), [("support", True), ("batch", False)])
def test_whether_a_prediction_depends_on_the_other_queries(mode, inductive):
    algorithm, episodes = some_meta_lstm(convolutional(mode)), some_episodes((1, 6, 6))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before = algorithm.predict(episodes)
    after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0]) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-2)


def test_in_training_the_queries_have_statistics_of_their_own():
    """Whatever the mode: only tests use the support set's."""
    episodes = some_episodes((1, 6, 6))
    losses = {
        mode: some_meta_lstm(convolutional(mode)).loss(episodes)[0].item()
        for mode in ("batch", "support")
    }
    assert losses["support"] == pytest.approx(losses["batch"])
    scores = {
        mode: some_meta_lstm(convolutional(mode)).predict(episodes) for mode in ("batch", "support")
    }
    assert not torch.allclose(scores["support"], scores["batch"], rtol=1e-2)


def test_the_module_stays_as_it_is_and_a_test_keeps_no_graph():
    algorithm, episodes = some_meta_lstm(tiny()), some_episodes()
    before = deepcopy(algorithm.state_dict())
    algorithm.loss(episodes)
    with torch.no_grad():
        scores = algorithm.predict(episodes)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, algorithm.predict(episodes))
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_bfloat16_is_not_used():
    algorithm, episodes = some_meta_lstm(tiny()).float(), some_episodes()
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    scores, loss = algorithm.predict(episodes), algorithm.loss(episodes)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), scores)
        assert torch.equal(algorithm.loss(episodes)[0], loss)


@pytest.mark.parametrize("key", ["inner_steps", "hidden"])
def test_no_steps_and_no_units_are_refused(key):
    with pytest.raises(UserError, match=rf"algo.{key}=0: it must be at least 1"):
        some_meta_lstm(tiny(), **{key: 0})


def test_running_statistics_are_refused():
    with pytest.raises(UserError, match=r"backbone.batch_norm=running"):
        some_meta_lstm(convolutional("running"))


def test_tasks_of_another_way_are_refused():
    algorithm, episodes = some_meta_lstm(tiny()), some_episodes()._replace(way=4)
    for method in (algorithm.loss, algorithm.predict):
        with pytest.raises(UserError, match=r"algo.way=3"):
            method(episodes)


def clusters(seed, tasks=4, way=2, shot=2, query=5):
    """Two well separated clusters, either of which may be class 0."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[2.0, 0.0, 1.0], [-2.0, 0.0, 1.0]])
    order = torch.rand(tasks, way, generator=generator).argsort(dim=1)

    def draw(each):
        y = torch.arange(way).repeat_interleave(each).expand(tasks, -1)
        x = centres[order.gather(1, y)]
        return x + 0.3 * torch.randn(x.shape, generator=generator), y

    return Episodes(*draw(shot), *draw(query), way=way)


def test_it_learns_to_train():
    """Which cluster is which class only the support set tells: no one network can be right."""
    torch.manual_seed(0)
    algorithm = MetaLSTM(MLP((3,), [8], "none"), 2, inner_steps=3, hidden=8)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.02)
    test = clusters(seed=1_000_000, tasks=100)

    def accuracy():
        return (algorithm.predict(test).argmax(-1) == test.query_y).float().mean().item()

    untrained = accuracy()
    for seed in range(80):
        optimizer.zero_grad()
        algorithm.loss(clusters(seed))[0].backward()
        optimizer.step()
    assert untrained < 0.7
    assert accuracy() > 0.9


def test_regression():
    """Real targets: the mean squared error, as the loss and as the metric."""
    torch.manual_seed(0)
    algorithm = MetaLSTM(MLP((1,), [8], "none"), 1, inner_steps=2, hidden=4).double()
    x = torch.randn(2, 6, 1, dtype=torch.float64)
    episodes = Episodes(x, x.sin(), x + 1, (x + 1).sin(), way=1)
    loss, metrics = algorithm.loss(episodes)
    wanted = (algorithm.predict(episodes) - episodes.query_y).square().mean()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(metrics["mse"], wanted.detach())


def test_command_line(metarun):
    results = metarun.run("algo=meta_lstm", "name=x", "algo.inner_steps=2")
    assert results["status"] == "finished"
    assert results["test"]["batch_norm"] == "support"
