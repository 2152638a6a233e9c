import json
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarun.algos import reptile
from metarun.algos.reptile import Reptile, minibatches
from metarun.backbones.batch_norm import BatchNorm
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.orders import fixed_order_keys

WAY = 3
DEFAULTS = {"inner_lr": 0.01, "inner_steps": 4, "inner_batch": 5, "test_steps": 7, "test_batch": 4}


def small(mode):
    """6×6 grey pictures -> 8 features, with a convolution and batch norm."""
    body = nn.Sequential(nn.Conv2d(1, 2, 5), BatchNorm(2, mode), nn.ReLU(), nn.Flatten())
    body.out_dim = 8
    return body


def some_reptile(mode="batch", transductive=False, **changed):
    torch.manual_seed(0)
    settings = {**DEFAULTS, "transductive": transductive, **changed}
    return Reptile(small(mode), WAY, **settings).double()


def some_episodes(tasks=2, shot=2, query=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, WAY * each, generator=generator).argsort(dim=1) % WAY

    def pictures(count):
        return torch.randn(tasks, count, 1, 6, 6, generator=generator, dtype=torch.float64)

    return Episodes(
        pictures(WAY * shot), labels(shot), pictures(WAY * query), labels(query), way=WAY
    )


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def plain_network(algorithm):
    """The learner of torch's own layers, whose batch norm uses the statistics of its batch."""
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 5), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8, WAY)
    ).double()
    for own, given in zip(network.parameters(), algorithm.learner.parameters(), strict=True):
        own.data.copy_(given)
    return network


def trained_by_torch(algorithm, x, y, rows, second_moment, updates):
    """One task's network after torch's Adam, from a given second moment, and the moment then."""
    network = plain_network(algorithm)
    adam = torch.optim.Adam(network.parameters(), lr=algorithm.inner_lr, betas=(0.0, 0.999))
    moments = deepcopy(list(network.parameters()))
    vector_to_parameters(second_moment.clone(), moments)
    for p, moment in zip(network.parameters(), moments, strict=True):
        adam.state[p] = {
            "step": torch.tensor(float(updates)),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": moment.detach().clone(),
        }
    for row in rows:
        adam.zero_grad()
        F.cross_entropy(network(x[row]), y[row]).backward()
        adam.step()
    second_moments = [adam.state[p]["exp_avg_sq"] for p in network.parameters()]
    return network, parameters_to_vector(second_moments)


@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_two_meta_steps_equal_the_papers_update(epsilon):
    """In float64, against torch's Adam on one task at a time; its second moment is handed on."""
    algorithm = some_reptile()
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=epsilon)
    second_moment = torch.zeros_like(algorithm.second_moment)
    for step in range(2):
        episodes = some_episodes(seed=step)
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        y = torch.cat([episodes.support_y, episodes.query_y], dim=1)
        torch.manual_seed(step)
        # 20 examples of 15 take two passes over each task.
        rows = minibatches(torch.rand(2, 2, 15), None, steps=4, size=5)
        before = parameters_to_vector(algorithm.parameters()).detach().clone()
        found = [
            trained_by_torch(algorithm, x[t], y[t], rows[t], second_moment, 4 * step)
            for t in range(2)
        ]
        mean = sum(parameters_to_vector(network.parameters()) for network, _ in found) / 2
        second_moment = sum(moment for _, moment in found) / 2

        torch.manual_seed(step)
        loss, metrics = algorithm.loss(episodes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(((mean - before) ** 2).sum().item() / 2)
        after = parameters_to_vector(algorithm.parameters())
        torch.testing.assert_close(after, before + epsilon * (mean - before))
        torch.testing.assert_close(algorithm.second_moment, second_moment)
        assert algorithm.updates == 4 * (step + 1)
        assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.parametrize("transductive", [False, True])
def test_predictions_equal_training_on_the_support_set_and_one_pass_a_query(transductive):
    """Each query in a batch of the support set and itself; or all queries in one batch."""
    algorithm, episodes = some_reptile(transductive=transductive).eval(), some_episodes()
    algorithm.second_moment += 0.01 * torch.rand_like(algorithm.second_moment)
    algorithm.updates += 20
    keys = torch.stack([fixed_order_keys(6, seed) for seed in range(5)])  # 5 passes are 30 of 28
    rows = minibatches(keys[None], None, steps=7, size=4)[0]
    scores = algorithm.predict(episodes)
    for task in range(2):
        x, y, query_x, _ = (tensor[task] for tensor in episodes[:4])
        network, _ = trained_by_torch(algorithm, x, y, rows, algorithm.second_moment, 20)
        if transductive:
            wanted = network(query_x)
        else:
            wanted = torch.stack([network(torch.cat([x, q[None]]))[-1] for q in query_x])
        torch.testing.assert_close(scores[task], wanted)


def test_stages_are_the_outputs_on_the_way():
    algorithm, episodes = some_reptile().eval(), some_episodes()
    stages = algorithm.stages(episodes)
    assert list(stages) == [0, 1, 5, 7]
    torch.testing.assert_close(stages[7], algorithm.predict(episodes))
    network, x = plain_network(algorithm), episodes.support_x[0]
    wanted = network(torch.cat([x, episodes.query_x[0, :1]]))[-1]
    torch.testing.assert_close(stages[0][0, 0], wanted)
    assert not torch.allclose(stages[0], stages[1])


def test_many_tasks_at_once_equal_one_at_a_time():
    algorithm, episodes = some_reptile().eval(), some_episodes(tasks=3)
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(3)]
    torch.testing.assert_close(algorithm.predict(episodes), torch.cat(alone))
    x, y = episodes.support_x, episodes.support_y
    rows = minibatches(torch.rand(3, 4, 6), None, steps=4, size=5)
    together = algorithm.trained(x, y, rows, episodes)[0]
    one_by_one = [
        algorithm.trained(x[t, None], y[t, None], rows[t, None], one_task(episodes, t))[0]
        for t in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(one_by_one))


def test_how_many_queries_go_through_at_once_does_not_matter(monkeypatch):
    algorithm, episodes = some_reptile().eval(), some_episodes()
    scores = algorithm.predict(episodes)
    monkeypatch.setattr(reptile, "ROWS_AT_ONCE", 1)
    torch.testing.assert_close(algorithm.predict(episodes), scores)


def test_relabelling_the_classes_and_the_head_permutes_the_scores():
    """A head is learnt, so its rows, and what Adam remembers of them, are relabelled too."""
    algorithm, episodes = some_reptile(), some_episodes()
    for _ in range(2):
        algorithm.loss(episodes)  # so that Adam remembers something
    order = torch.tensor([2, 0, 1])  # class k is now called order[k]
    relabelled = deepcopy(algorithm)
    moments = [torch.empty_like(p) for p in algorithm.parameters()]
    vector_to_parameters(algorithm.second_moment.clone(), moments)
    for rows in (*relabelled.learner.head.parameters(), *moments[-2:]):
        rows.data[order] = rows.data.clone()
    relabelled.second_moment.copy_(parameters_to_vector(moments))
    scores = algorithm.predict(episodes)
    permuted = relabelled.predict(episodes._replace(support_y=order[episodes.support_y]))
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)


@pytest.mark.parametrize(
    ("mode", "transductive", "said"),
    [
        ("batch", False, "support and one query"),
        ("batch", True, "batch"),
        ("support", False, "support"),
        ("none", True, "none"),
    ],
)
def test_whether_a_prediction_depends_on_the_other_queries(mode, transductive, said):
    if mode == "none":
        torch.manual_seed(0)
        backbone = MLP((1, 6, 6), [4], "none")
        algorithm = Reptile(backbone, WAY, **DEFAULTS, transductive=transductive).double()
    else:
        algorithm = some_reptile(mode, transductive)
    episodes = some_episodes()
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before = algorithm.predict(episodes)
    after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0]) == (said != "batch")
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-2)
    assert algorithm.batch_norm_mode == said


def test_minibatches_go_through_the_task_before_any_example_comes_again():
    keys = torch.rand(50, 4, 6, generator=torch.Generator().manual_seed(0))
    rows = minibatches(keys, None, steps=5, size=4)
    assert rows.shape == (50, 5, 4)
    for task in rows.flatten(1):
        for start in (0, 6, 12):  # passes; the fourth has only begun
            assert sorted(task[start : start + 6].tolist()) == list(range(6))
    firsts = rows[:, 0, 0].bincount(minlength=6)
    assert firsts.min() >= 2  # every example is first in some task
    assert len({tuple(task.tolist()) for task in rows.flatten(1)}) == 50
    rows = minibatches(torch.rand(1, 5, 3), None, steps=2, size=7)
    assert rows.flatten()[:12].bincount().tolist() == [4, 4, 4]


def test_minibatches_of_unlike_tasks_go_through_the_real_examples_alone():
    """And in the order in which they go through the same examples without padding."""
    keys = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    rows = minibatches(keys, real, steps=4, size=4)
    assert rows[0].equal(minibatches(keys[:1], None, steps=4, size=4)[0])
    assert rows[1].equal(minibatches(keys[1:, :, :4], None, steps=4, size=4)[0])


def test_a_test_draws_nothing_and_changes_nothing():
    algorithm, episodes = some_reptile().eval(), some_episodes()
    state, before = torch.get_rng_state(), deepcopy(algorithm.state_dict())
    scores = algorithm.predict(episodes)
    assert not scores.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(algorithm.predict(episodes), scores)
    algorithm.loss(episodes)
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        assert torch.equal(algorithm.predict(episodes), scores)


def test_training_draws_other_minibatches_each_time():
    algorithm, episodes = some_reptile().eval(), some_episodes()
    assert algorithm.loss(episodes)[0] != algorithm.loss(episodes)[0]


def test_bfloat16_is_not_used():
    torch.manual_seed(0)
    algorithm = Reptile(small("batch"), WAY, **DEFAULTS, transductive=False).eval()
    episodes = some_episodes()
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    torch.manual_seed(1)
    scores, loss = algorithm.predict(episodes), algorithm.loss(episodes)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), scores)
        assert torch.equal(algorithm.loss(episodes)[0], loss)


@pytest.mark.parametrize("key", ["inner_steps", "inner_batch", "test_steps", "test_batch"])
def test_no_steps_and_empty_minibatches_are_refused(key):
    with pytest.raises(UserError, match=rf"algo.{key}=0: it must be at least 1"):
        some_reptile(**{key: 0})


def test_running_statistics_are_refused():
    with pytest.raises(UserError, match=r"backbone.batch_norm=running"):
        some_reptile("running")


def test_tasks_of_another_way_are_refused():
    algorithm, episodes = some_reptile(), some_episodes()._replace(way=4)
    for method in (algorithm.loss, algorithm.predict):
        with pytest.raises(UserError, match=r"algo.way=3"):
            method(episodes)


def hidden_signs(seed, tasks=5, shot=5, query=5, noise=10):
    """Two classes told apart by the sign of one number in louder noise; which is which varies."""
    generator = torch.Generator().manual_seed(seed)

    def draw(each):
        y = torch.arange(2).repeat_interleave(each).expand(tasks, -1)
        x = 3 * torch.randn(tasks, 2 * each, 1 + noise, generator=generator)
        x[..., 0] = sign * (2.0 * y - 1) + 0.3 * torch.randn(tasks, 2 * each, generator=generator)
        return x, y

    sign = torch.randint(0, 2, (tasks, 1), generator=generator) * 2 - 1
    return Episodes(*draw(shot), *draw(query), way=2)


def test_it_learns_what_to_look_at():
    """After meta-training a few steps on few examples find the sign through the noise."""
    torch.manual_seed(0)
    settings = {"inner_lr": 0.05, "inner_steps": 8, "inner_batch": 10, "test_steps": 8}
    algorithm = Reptile(MLP((11,), [16], "none"), 2, **settings, test_batch=10, transductive=False)
    test = hidden_signs(seed=1_000_000, tasks=100)

    def accuracy():
        return (algorithm.predict(test).argmax(-1) == test.query_y).float().mean().item()

    untrained = accuracy()
    steps = 60
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for seed in range(steps):
        optimizer.zero_grad()
        algorithm.loss(hidden_signs(seed))[0].backward()
        optimizer.step()
        schedule.step()
    assert untrained < 0.7
    assert accuracy() > 0.9


def test_regression():
    """Real targets: the squared error falls along a support set of one curve."""
    torch.manual_seed(0)
    algorithm = Reptile(
        MLP((1,), [20, 20], "none"), 1, **{**DEFAULTS, "test_steps": 100}, transductive=False
    ).double()
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).view(1, 10, 1).expand(2, -1, -1)
    y = torch.stack([x[0].sin(), -x[1].sin()])
    episodes = Episodes(x, y, x, y, way=1)
    loss, metrics = algorithm.loss(episodes)
    assert loss > 0
    assert metrics["mse"] > 0
    stages = algorithm.stages(episodes)
    first, last = (F.mse_loss(stages[n], y).item() for n in (0, 100))
    assert last < first / 5


def test_command_line(metarun):
    """The meta-step's rate falls to 0 along a line; the results tell what a batch is made of."""
    results = metarun.run("algo=reptile", "name=x", "algo.test_steps=2", "train.steps=5")
    assert results["status"] == "finished"
    assert "support and one query" in results["test"]["batch_norm"]
    lines = (metarun.folder / "outputs" / "x" / "metrics.jsonl").read_text().splitlines()
    rates = [record["train/lr"] for record in map(json.loads, lines) if "train/lr" in record]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    saved = torch.load(metarun.folder / "outputs" / "x" / "checkpoints" / "last.pt")["algorithm"]
    assert saved["updates"] == 5 * 5
    assert saved["second_moment"].max() > 0
