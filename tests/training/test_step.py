"""A step by chunks of its tasks is the step on all of them at once."""

import pytest
import torch
from torch import nn

from metarun.algos.matching import MatchingNet
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.algos.siamese import Siamese
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.device import Device
from metarun.errors import UserError
from metarun.samplers.pairs import Pairs
from metarun.samplers.sequences import Sequences
from metarun.training.step import Step, chunks, refuse_chunks
from tests.algos import tasks

CPU = Device(torch.device("cpu"), "fp32")
EXACT = {"rtol": 0, "atol": 1e-12}


def matching():
    torch.manual_seed(1)
    backbone = Conv4(tasks.SHAPE, width=3, batch_norm="support")
    return MatchingNet(backbone, fce=False, processing_steps=1, temperature=1.0).double()


def new_algorithm(name):
    return matching() if name == "matching" else tasks.algorithm(name)


def stepped(name, chunk, clip_norm=0.0):
    """Figures, gradient and weights after one step on five tasks."""
    algorithm = new_algorithm(name)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
    step = Step(algorithm, optimizer, CPU, clip_norm, chunk)
    figures = step(tasks.some_episodes(tasks=5))
    gradient = {k: p.grad for k, p in algorithm.named_parameters() if p.grad is not None}
    return figures, gradient, dict(algorithm.named_parameters())


@pytest.mark.parametrize("name", ["maml", "anil", "meta_sgd", "proto_maml", "matching"])
@pytest.mark.parametrize("chunk", [1, 2, 3])  # two of which leave a smaller one for the end
def test_chunks_change_nothing(name, chunk):
    """Loss, metrics, gradient and, with the gradient clipped, the weights."""
    for mine, whole in zip(stepped(name, chunk, 0.1), stepped(name, 0, 0.1), strict=True):
        assert mine.keys() == whole.keys()
        for key in whole:
            torch.testing.assert_close(mine[key], whole[key], **EXACT)


@pytest.mark.parametrize("name", ["maml", "matching"])
def test_the_gradient_is_that_of_the_mean_of_the_tasks(name):
    """So that the test above does not compare two gradients that are both wrong."""
    algorithm, episodes = new_algorithm(name), tasks.some_episodes(tasks=5)
    losses = [algorithm.loss(tasks.one_task(episodes, t))[0] for t in range(5)]
    learnt = [p for p in algorithm.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(sum(losses) / 5, learnt)
    _, gradient, _ = stepped(name, chunk=2)
    for mine, its in zip(gradient.values(), wanted, strict=True):
        torch.testing.assert_close(mine, its, **EXACT)


def test_no_more_than_a_chunk_is_computed_at_once():
    sizes, algorithm = [], matching()

    def watched(episodes):
        sizes.append(len(episodes.query_y))
        return MatchingNet.loss(algorithm, episodes)

    algorithm.loss = watched
    for chunk in (2, 5, 9, 0):
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
        Step(algorithm, optimizer, CPU, chunk=chunk)(tasks.some_episodes(tasks=5))
    assert sizes == [2, 2, 1, 5, 5, 5]


def test_batches_of_other_kinds_are_cut_too():
    sequences = Sequences(torch.rand(3, 4, 2), torch.arange(12).view(3, 4), way=2)
    first, last = chunks(sequences, 2)
    assert (first.way, len(first.x), len(last.x)) == (2, 2, 1)
    assert torch.equal(torch.cat([first.x, last.x]), sequences.x)
    assert torch.equal(torch.cat([first.y, last.y]), sequences.y)


def conv4(batch_norm):
    return Conv4(tasks.SHAPE, width=3, batch_norm=batch_norm)


def reptile():
    return Reptile(conv4("batch"), 3, 1e-3, 1, 1, 1, 1, transductive=False)


@pytest.mark.parametrize("batch_norm", ["batch", "support", "none"])
def test_chunks_are_for_losses_that_depend_on_the_batch_alone(batch_norm):
    refuse_chunks(ProtoNet(conv4(batch_norm)), chunk=2)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (lambda: ProtoNet(conv4("running")), "set backbone.batch_norm .* to batch or support"),
        (lambda: tasks.algorithm("mamlpp"), "MAMLPlusPlus keeps something .* sampler.chunk=0"),
        (reptile, "Reptile keeps something .* sampler.chunk=0"),
        (lambda: nn.BatchNorm2d(3), "batch norm of mode running takes its statistics"),
    ],
)
def test_chunks_of_others_are_refused(algorithm, said):
    with pytest.raises(UserError, match=f"^sampler.chunk=2: .*{said}"):
        refuse_chunks(algorithm(), chunk=2)


@pytest.mark.parametrize(
    ("mode", "parts"), [("batch", [2, 2, 1]), ("support", [2, 2, 1]), ("none", [2, 2, 1])]
)
def test_a_cpu_takes_as_many_tasks_at_once_as_suit_it(monkeypatch, mode, parts):
    """Of an algorithm whose loss is a mean over tasks; what it computes is the same."""
    algorithm, episodes = tasks.algorithm("maml", "mlp", mode), tasks.some_episodes(tasks=5)
    numbers = sum(t[0].numel() for t in episodes[:4])
    monkeypatch.setattr("metarun.training.step.CPU_CHUNK", 2 * numbers + 1)
    seen, loss = [], algorithm.loss
    algorithm.loss = lambda batch: seen.append(len(batch[0])) or loss(batch)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    figures = Step(algorithm, optimizer, CPU, chunk=0).gradient(episodes)
    assert seen == parts
    torch.testing.assert_close(figures["loss"], loss(episodes)[0].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, None])
def test_others_are_taken_whole(monkeypatch, chunk):
    """A batch whose statistics are of all its pairs, and one that has no tasks to count."""
    monkeypatch.setattr("metarun.training.step.CPU_CHUNK", 1)
    algorithm = Siamese(MLP((4,), [3], "batch"), distortions=False)
    pairs = Pairs(torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0]))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    step = Step(algorithm, optimizer, CPU, chunk=chunk)
    assert step.gradient(pairs)["loss"] == algorithm.loss(pairs)[0]
    algorithm.loss = lambda batch: (batch["x"].sum() * algorithm.alpha.bias.sum(), {})
    assert Step(algorithm, optimizer, CPU)({"x": torch.ones(2)})["loss"].isfinite()
