import math
from itertools import permutations

import pytest
import torch
from torch import nn

from metarun.algos import snail
from metarun.algos.snail import SNAIL, TCBlock, in_order, shuffled
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.standardise import AsTheyAre
from metarun.episodes import Episodes
from metarun.errors import UserError


class Given(nn.Identity):
    """Features that are the inputs themselves."""

    def __init__(self, out_dim: int):
        super().__init__()
        self.out_dim = out_dim


def some_episodes(tasks=2, way=3, shot=2, query=1, shape=(5,), seed=0, dtype=torch.float64):
    """Random episodes whose support and query are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    def normal(count):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=dtype)

    return Episodes(normal(way * shot), labels(shot), normal(way * query), labels(query), way=way)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def new_snail(way=3, shot=2, features=5, dtype=torch.float64):
    torch.manual_seed(0)
    return SNAIL(Given(features), way, shot).to(dtype).eval()  # nothing is standardised yet


def affine(layer, x):
    return layer.weight @ x + layer.bias


def attention_by_steps(block, sequence):
    """The paper's pseudocode, a step at a time: softmax over the steps up to this one."""
    outputs = []
    for t, x in enumerate(sequence):
        query = affine(block.query, x)
        weights = [
            math.exp(query @ affine(block.key, past) / math.sqrt(len(query)))
            for past in sequence[: t + 1]
        ]
        read = sum(
            weight * affine(block.value, past)
            for weight, past in zip(weights, sequence[: t + 1], strict=True)
        )
        outputs.append(torch.cat([x, read / sum(weights)]))
    return outputs


def dense_by_steps(block, sequence, dilation):
    """Two causal convolutions with kernels of two taps, now and `dilation` steps ago."""
    channels = len(sequence[0])
    filters = len(block.convolution.bias) // 2
    now, ago = block.convolution.weight.split(channels, dim=1)
    outputs = []
    for t, x in enumerate(sequence):
        both = now @ x + block.convolution.bias
        if t >= dilation:
            both = both + ago @ sequence[t - dilation]
        signal, gate = both[:filters], both[filters:]
        outputs.append(torch.cat([x, torch.tanh(signal) / (1 + torch.exp(-gate))]))
    return outputs


def scores_by_steps(algorithm, episodes):
    """Each query's own sequence through the whole network; the last step's scores [T, Q, way]."""
    first, tc1, second, tc2, third = algorithm.blocks
    tasks = []
    for support_x, support_y, query_x, _ in zip(*episodes[:4], strict=True):
        rows = []
        for query in query_x:
            sequence = []
            for x, y in zip(support_x, support_y, strict=True):
                label = [1.0 if k == y else 0.0 for k in range(episodes.way)]
                sequence.append(torch.cat([x, x.new_tensor(label)]))
            sequence.append(torch.cat([query, query.new_tensor([0.0] * episodes.way)]))
            sequence = attention_by_steps(first, sequence)
            for i, block in enumerate(tc1.dense_blocks):
                sequence = dense_by_steps(block, sequence, 2**i)
            sequence = attention_by_steps(second, sequence)
            for i, block in enumerate(tc2.dense_blocks):
                sequence = dense_by_steps(block, sequence, 2**i)
            rows.append(affine(algorithm.head, attention_by_steps(third, sequence)[-1]))
        tasks.append(torch.stack(rows))
    return torch.stack(tasks)


@pytest.mark.parametrize("shot", [1, 2, 3])
@torch.no_grad()
def test_scores_equal_a_sequence_for_each_query(shot):
    """The support's part is computed once, which gives what each query's own sequence gives; with
    fewer and with more examples than the convolutions were built for, too."""
    algorithm, episodes = new_snail(shot=2), some_episodes(shot=shot)
    torch.testing.assert_close(algorithm.scores(episodes), scores_by_steps(algorithm, episodes))


@torch.no_grad()
def test_the_architecture_of_the_paper():
    """Key and value sizes, filters, and ceil(log2 T) dense blocks; T = 5 · 5 + 1 needs 5."""
    algorithm = SNAIL(Given(64), way=5, shot=5)
    first, tc1, second, tc2, third = algorithm.blocks
    assert [len(tc.dense_blocks) for tc in (tc1, tc2)] == [5, 5]
    for block, key, value in ((first, 64, 32), (second, 256, 128), (third, 512, 256)):
        sizes = (block.query.out_features, block.key.out_features, block.value.out_features)
        assert sizes == (key, key, value)
    widths = [64 + 5 + 32]
    widths += [widths[-1] + 5 * 128]
    widths += [widths[-1] + 128]
    widths += [widths[-1] + 5 * 128]
    assert [block.query.in_features for block in (second, third)] == [widths[1], widths[3]]
    assert (algorithm.head.in_features, algorithm.head.out_features) == (widths[3] + 256, 5)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 9])
def test_convolutions_reach_back_over_the_whole_sequence(length):
    """The last step has a gradient to every step before it, and to none beyond 2^ceil(log2 T)."""
    torch.manual_seed(0)
    block = TCBlock(3, length, filters=4).double()
    steps = 2 * length + 3
    x = torch.randn(1, steps, 3, dtype=torch.float64, requires_grad=True)
    block(x, torch.arange(steps)[None])[0, -1].sum().backward()
    seen = (x.grad[0].abs().sum(dim=-1) > 0).flip(0).tolist()
    reach = 2 ** math.ceil(math.log2(length))
    assert seen == [True] * reach + [False] * (steps - reach)


@torch.no_grad()
def test_a_test_reads_the_support_in_one_order_that_is_not_the_given():
    """Of all orders of three examples exactly one gives the predicted scores, for every task, in
    training and evaluation mode, whatever random numbers were drawn before."""
    algorithm, episodes = new_snail(shot=1), some_episodes(tasks=3, shot=1)
    algorithm.standardise = AsTheyAre()
    orders = {
        order: algorithm.scores(in_order(episodes, torch.tensor([order] * 3)))
        for order in permutations(range(3))
    }
    for mode, seed in ((True, 0), (False, 1), (False, 2)):
        torch.manual_seed(seed)
        predicted = algorithm.train(mode).predict(episodes)
        same = [order for order, scores in orders.items() if torch.allclose(scores, predicted)]
        assert len(same) == 1
    more = some_episodes(tasks=1, shot=3)
    assert not torch.allclose(algorithm.predict(more), algorithm.scores(more))


def test_the_loss_is_the_cross_entropy_of_the_last_step(monkeypatch):
    """In float64, a number at a time, for the order and the examples that were drawn."""
    algorithm, episodes = new_snail(shot=3), some_episodes(shot=3)
    order = torch.tensor([[4, 0, 2, 8, 1, 3], [7, 5, 6, 0, 3, 1]])
    monkeypatch.setattr(snail, "shuffled", lambda episodes, shot: order)
    loss, metrics = algorithm.loss(episodes)
    with torch.no_grad():
        scores = scores_by_steps(algorithm, in_order(episodes, order))
    losses, hits = [], []
    for row, label in zip(scores.flatten(0, 1), episodes.query_y.flatten(), strict=True):
        row = row.tolist()
        losses.append(-math.log(math.exp(row[label]) / sum(map(math.exp, row))))
        hits.append(row[label] == max(row))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))


def test_training_draws_the_number_of_examples_and_their_order(monkeypatch):
    """1, 2 and 3 of 3 examples per class about equally often; each time all classes alike."""
    drawn, algorithm, episodes = [], new_snail(way=2, shot=3), some_episodes(way=2, shot=3)
    episodes = episodes._replace(support_y=episodes.support_y[:1].expand(2, 6))

    def spied(given, shot):
        order = shuffled(given, shot)
        drawn.append((shot, order))
        return order

    monkeypatch.setattr(snail, "shuffled", spied)
    monkeypatch.setattr(algorithm, "scores", lambda given: torch.zeros(2, 2, 2))
    torch.manual_seed(0)
    for _ in range(300):
        algorithm.loss(episodes)
    for shot, order in drawn:
        assert order.shape == (2, 2 * shot)
        for places, y in zip(order.tolist(), episodes.support_y, strict=True):
            assert len(set(places)) == len(places)
            assert y[places].bincount(minlength=2).tolist() == [shot, shot]
    counts = [sum(shot == n for shot, _ in drawn) for n in (1, 2, 3)]
    assert min(counts) > 70
    full = [order for shot, order in drawn if shot == 3]
    # Any of the six examples may come first, and the two tasks have orders of their own.
    assert {order[0, 0].item() for order in full} == set(range(6))
    assert any(not torch.equal(*order) for order in full)


@torch.no_grad()
def test_many_tasks_at_once_equal_one_at_a_time():
    for backbone in (Given(5), MLP((5,), [7, 4], "running").eval()):
        torch.manual_seed(0)
        algorithm, episodes = SNAIL(backbone, 3, 2).double().eval(), some_episodes(tasks=4)
        scores = algorithm.predict(episodes)
        alone = [algorithm.predict(one_task(episodes, task)) for task in range(4)]
        torch.testing.assert_close(scores, torch.cat(alone))


@torch.no_grad()
def test_labels_enter_and_leave_by_their_own_weights():
    """The head is learnt, so renaming the classes changes the scores; but renaming the weights that
    read the labels, and the head's rows, along with the classes permutes them."""
    algorithm, episodes = new_snail(), some_episodes()
    renamed = torch.tensor([2, 0, 1])  # class k is now called renamed[k]
    relabelled = episodes._replace(support_y=renamed[episodes.support_y])
    scores = algorithm.predict(episodes)
    assert not torch.allclose(algorithm.predict(relabelled)[..., renamed], scores)
    old, new = torch.arange(5, 8), 5 + renamed  # the label's channels follow the features'
    for layer in [m for m in algorithm.modules() if isinstance(m, nn.Linear)]:
        weight = layer.weight.clone()
        layer.weight[:, new] = weight[:, old]
    for block in [m for m in algorithm.modules() if isinstance(m, snail.DenseBlock)]:
        weight, half = block.convolution.weight.clone(), block.convolution.in_features // 2
        block.convolution.weight[:, half + new] = weight[:, half + old]
    head = algorithm.head.weight.clone(), algorithm.head.bias.clone()
    algorithm.head.weight[renamed], algorithm.head.bias[renamed] = head
    torch.testing.assert_close(algorithm.predict(relabelled)[..., renamed], scores)


@pytest.mark.parametrize(
    ("batch_norm", "inductive"), [("running", True), ("support", True), ("batch", False)]
)
@torch.no_grad()
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive):
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), width=8, batch_norm=batch_norm)
    algorithm = SNAIL(backbone, way=3, shot=2).double().eval()
    episodes = some_episodes(tasks=1, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before = algorithm.predict(episodes)
    after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-9) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-3)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    algorithm = SNAIL(Conv4((1, 16, 16), width=8, batch_norm="running"), way=3, shot=2)
    scores = algorithm.scores(some_episodes(shape=(1, 16, 16), dtype=torch.float32))
    scores.square().sum().backward()
    for name, parameter in algorithm.named_parameters():
        # Batch norm takes the convolution's bias away; softmax takes the key's.
        if not name.endswith((".0.bias", "key.bias")):
            assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("way", [2, 4])
def test_tasks_with_another_number_of_classes_are_refused(way):
    algorithm, episodes = new_snail(way=3), some_episodes(way=way, shot=1)
    for answer in (algorithm.predict, algorithm.loss):
        with pytest.raises(UserError, match=rf"algo.way=3 .* way={way}"):
            answer(episodes)


@pytest.mark.parametrize(("way", "shot", "key"), [(1, 1, "way=1"), (5, 0, "shot=0")])
def test_values_that_make_no_sequence_are_refused(way, shot, key):
    with pytest.raises(UserError, match=rf"algo.{key}: "):
        SNAIL(Given(5), way, shot)


@torch.no_grad()
def test_bfloat16_stops_at_the_features():
    algorithm = new_snail(dtype=torch.float32)
    episodes = some_episodes(dtype=torch.float32)
    wanted = algorithm.predict(episodes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), wanted)
        algorithm.backbone = MLP((5,), [7, 5], "running")  # whose features are bfloat16
        assert algorithm.predict(episodes).dtype == torch.float32


def test_it_learns():
    """Two kinds of examples, named 0 and 1 or the other way round: only the support can tell."""
    torch.manual_seed(0)
    algorithm = SNAIL(Given(2), way=2, shot=1)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.003)

    def named(tasks):
        y = torch.rand(tasks, 2).argsort(dim=1)  # [T, 2]: what each kind is called
        support_x, query_x = torch.eye(2) + 0.1 * torch.randn(2, tasks, 2, 2)
        return Episodes(support_x, y, query_x, y, way=2)

    test = named(100)

    def accuracy():
        with torch.no_grad():
            return (algorithm.predict(test).argmax(-1) == test.query_y).float().mean().item()

    assert accuracy() < 0.7
    for _ in range(40):
        optimizer.zero_grad()
        algorithm.loss(named(16))[0].backward()
        optimizer.step()
    assert accuracy() > 0.9


def test_from_the_command_line(metarun):
    """Trained with up to 2 examples per class, tested with 1."""
    results = metarun.run("algo=snail", "name=x", "shot=2", "eval.shot=1", "sampler.tasks=2")
    assert results["status"] == "finished"
    assert results["test"]["shot"] == 1
    refused = metarun.error(*metarun.data, "algo=snail", "eval.way=4", "tracker=none")
    assert refused.startswith("algo.way=3 outputs are learnt, but a task has way=4")
