from functools import partial

import pytest
import torch
from torch import nn

from metarun.algos.protonet import ProtoNet
from metarun.backbones.mlp import MLP
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.evaluate import FixedEpisodes, accuracies, fixed_episodes

CPU = Device(torch.device("cpu"), "fp32")
SIZES = [5, 7, 4, 6, 8, 5, 6]
SUPERCLASS = "aabbbaa"
TASK = {"way": 3, "shot": 1, "query": 2}


def some_split():
    """Seven clouds of points that overlap, of two superclasses."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(7, 4, generator=generator)
    classes = {
        f"{SUPERCLASS[c]}/{c}": centres[c] + torch.randn(size, 4, generator=generator)
        for c, size in enumerate(SIZES)
    }
    return stack_classes(classes, {name: name[0] for name in classes})


def some_episodes(episodes=40, split=None, **changes):
    arguments = {"name": "test", "seed": 0, "within": False, **TASK} | changes
    return fixed_episodes(split or some_split(), episodes=episodes, **arguments)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("count", [1, 30, 100, 101])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(count, within):
    long, short = some_episodes(250, within=within), some_episodes(count, within=within)
    assert (len(long), len(short)) == (250, count)
    assert torch.equal(short.support, long.support[:count])
    assert torch.equal(short.query, long.query[:count])
    assert len(long.support.unique(dim=0)) > 150


def test_episodes_do_not_depend_on_what_ran_before():
    torch.manual_seed(1)
    first = some_episodes()
    torch.manual_seed(2)
    torch.rand(10)
    assert some_episodes().sha256 == first.sha256


def test_episodes_do_not_depend_on_the_examples_themselves():
    split = some_split()
    other = stack_classes(
        {name: torch.zeros(size, 9) for name, size in zip(split.classes, SIZES, strict=True)}
    )
    assert some_episodes(split=other).sha256 == some_episodes(split=split).sha256


def test_golden_episodes():
    """The first task and the 101st; other rows here mean other test episodes for every run."""
    episodes = some_episodes(101)
    assert episodes.support[[0, 100], :, 0].tolist() == [[24, 38, 12], [27, 14, 1]]
    assert episodes.query[[0, 100], :, 1].tolist() == [[22, 39, 14], [24, 13, 0]]


@pytest.mark.parametrize(
    "changes", [{"name": "val"}, {"seed": 1}, {"within": True}, {"shot": 2}, {"episodes": 39}]
)
def test_other_episodes_have_another_sha256(changes):
    assert some_episodes(**changes).sha256 != some_episodes().sha256


def test_sha256_tells_support_from_query():
    rows = torch.arange(12).view(2, 3, 2)
    first = FixedEpisodes(some_split(), rows[..., :1], rows[..., 1:])
    swapped = FixedEpisodes(some_split(), rows[..., 1:], rows[..., :1])
    reshaped = FixedEpisodes(
        some_split(), *(r.reshape(1, 6, 1) for r in (first.support, first.query))
    )
    assert len({first.sha256, swapped.sha256, reshaped.sha256}) == 3


def test_within_superclass():
    split = some_split()
    first_examples = some_episodes(within=True).support[..., 0].contiguous()
    classes = torch.searchsorted(split.first_row, first_examples, right=True) - 1
    superclasses = split.superclass[classes]
    assert (superclasses == superclasses[:, :1]).all()
    assert len(superclasses.unique()) == 2


def test_accuracies_equal_a_loop():
    """The nearest class mean of each query, an episode and a number at a time."""
    split, episodes = some_split(), some_episodes(shot=2)
    wanted = []
    for support, query in zip(episodes.support.tolist(), episodes.query.tolist(), strict=True):
        means = [split.x[rows].double().mean(dim=0) for rows in support]
        hits = []
        for label, rows in enumerate(query):
            for row in rows:
                distances = [(split.x[row] - mean).square().sum().item() for mean in means]
                hits.append(distances.index(min(distances)) == label)
        wanted.append(sum(hits) / len(hits))
    got = accuracies(ProtoNet(nn.Identity()), episodes, tasks=7, device=CPU)
    assert got.dtype == torch.float64
    assert got.tolist() == wanted
    assert len(set(wanted)) > 3


@pytest.mark.parametrize("tasks", [1, 7, 100])
def test_how_many_at_once_does_not_matter(tasks):
    torch.manual_seed(0)
    evaluate = partial(accuracies, ProtoNet(MLP((4,), [6], "running")), some_episodes(), device=CPU)
    assert torch.equal(evaluate(tasks=tasks), evaluate(tasks=40))


@pytest.mark.parametrize("training", [True, False])
def test_the_algorithm_is_as_it_was(training):
    """Its running statistics and its mode; it is in evaluation mode meanwhile."""
    torch.manual_seed(0)
    algorithm = ProtoNet(MLP((4,), [6], "running")).train(training)
    seen = []
    algorithm.backbone.register_forward_hook(lambda *_: seen.append(algorithm.backbone.training))
    before = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    accuracies(algorithm, some_episodes(), tasks=4, device=CPU)
    assert seen == [False] * 10
    assert {module.training for module in algorithm.modules()} == {training}
    for name, tensor in algorithm.state_dict().items():
        assert torch.equal(tensor, before[name])
    if training:  # the same forward pass in training does move them
        algorithm.backbone(some_split().x)
        assert not torch.equal(
            algorithm.backbone[2].running_mean, before["backbone.2.running_mean"]
        )
