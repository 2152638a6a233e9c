"""Fixed episodes: the same for every model, whatever ran before."""

import pytest
import torch

from metarun.data.functions import sinusoid
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.episodes import Rows, labelled
from metarun.samplers.functions import Functions
from metarun.samplers.uniform import Uniform
from metarun.samplers.within_superclass import WithinSuperclass
from metarun.testing.fixed_episodes import RowEpisodes, fixed_episodes, fixed_functions, room

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
    return stack_classes("vectors", classes, {name: name[0] for name in classes})


def some_episodes(episodes=40, split=None, **changes):
    arguments = {"name": "test", "seed": 0, "within": False, **TASK} | changes
    stream = {key: arguments.pop(key) for key in ("name", "seed")}
    sampler = (WithinSuperclass if arguments.pop("within") else Uniform)(**arguments, tasks=1)
    return fixed_episodes(split or some_split(), sampler, episodes=episodes, **stream)


def classwise(rows, way=3):
    """Rows [E, way · n] with the classes apart: [E, way, n]."""
    return rows.unflatten(1, (way, -1))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("count", [1, 30, 100, 101])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(count, within):
    long, short = some_episodes(250, within=within), some_episodes(count, within=within)
    assert (len(long), len(short)) == (250, count)
    assert torch.equal(short.rows.support, long.rows.support[:count])
    assert torch.equal(short.rows.query, long.rows.query[:count])
    assert len(long.rows.support.unique(dim=0)) > 150


def test_episodes_do_not_depend_on_what_ran_before():
    torch.manual_seed(1)
    first = some_episodes()
    torch.manual_seed(2)
    torch.rand(10)
    assert some_episodes().sha256 == first.sha256


def test_episodes_do_not_depend_on_the_examples_themselves():
    split = some_split()
    other = stack_classes(
        "vectors",
        {name: torch.zeros(size, 9) for name, size in zip(split.classes, SIZES, strict=True)},
    )
    assert some_episodes(split=other).sha256 == some_episodes(split=split).sha256


def test_golden_episodes():
    """The first task and the 101st; other rows here mean other test episodes for every run."""
    episodes = some_episodes(101)
    support, query = classwise(episodes.rows.support), classwise(episodes.rows.query)
    assert support[[0, 100], :, 0].tolist() == [[24, 38, 12], [27, 14, 1]]
    assert query[[0, 100], :, 1].tolist() == [[22, 39, 14], [24, 13, 0]]


@pytest.mark.parametrize(
    "changes", [{"name": "val"}, {"seed": 1}, {"within": True}, {"shot": 2}, {"episodes": 39}]
)
def test_other_episodes_have_another_sha256(changes):
    assert some_episodes(**changes).sha256 != some_episodes().sha256


def test_sha256_tells_support_from_query():
    rows = torch.arange(12).view(2, 6)
    first, swapped, reshaped = (
        RowEpisodes(some_split(), labelled(r, way, shot=1)).sha256
        for r, way in ((rows, 3), (rows.roll(3, dims=1), 3), (rows.view(1, 12), 6))
    )
    assert len({first, swapped, reshaped}) == 3


def test_sha256_tells_labels():
    rows = labelled(torch.arange(12).view(2, 6), way=3, shot=1)
    other = rows._replace(query_y=rows.query_y.flip(1))
    assert RowEpisodes(some_split(), rows).sha256 != RowEpisodes(some_split(), other).sha256


def test_within_superclass():
    split = some_split()
    first_examples = some_episodes(within=True).rows.support  # one of each class
    classes = torch.searchsorted(split.first_row, first_examples, right=True) - 1
    superclasses = split.superclass[classes]
    assert (superclasses == superclasses[:, :1]).all()
    assert len(superclasses.unique()) == 2


def sines(**changes):
    arguments = {"name": "test", "seed": 0, "episodes": 40, "shot": 3, "query": 5} | changes
    family = sinusoid([0.1, 5.0], [0.0, 3.0], [-5.0, 5.0]).open("test")
    sampler = Functions(arguments.pop("shot"), arguments.pop("query"), tasks=1)
    return fixed_functions(family, sampler, **arguments)


def test_functions_are_fixed_by_name_and_seed():
    """A shorter list begins a longer one, other names and seeds have other functions."""
    long, short = sines(episodes=130), sines(episodes=7)
    assert (len(long), len(short)) == (130, 7)
    for tensor, beginning in zip(long.tensors, short.tensors, strict=True):
        assert torch.equal(tensor[:7], beginning)
    assert sines().sha256 == sines().sha256
    others = [sines(**c).sha256 for c in ({}, {"name": "val"}, {"seed": 1}, {"shot": 4})]
    assert len(set(others)) == 4


def test_tasks_that_the_examples_have_room_for():
    """Classes of 5, 7, 4, 6, 8, 5, 6 examples hold 1, 2, 1, 2, 2, 1, 2 tasks of 3: 11, 3 a task."""
    assert some_episodes(300).disjoint == 3
    assert some_episodes(2).disjoint <= 2
    assert some_episodes(300, shot=2, query=2).disjoint == 8 // 3  # 1, 1, 1, 1, 2, 1, 1
    assert sines(episodes=7).disjoint == 7, "each function is drawn anew"


def test_room_for_tasks_of_unlike_sizes():
    """Padding is no example: two tasks of 2 and 1 classes, 2 examples each, of classes of 4."""
    support = torch.tensor([[0, 4], [8, 0]])
    support_y = torch.tensor([[0, 1], [0, -1]])
    query, ways = torch.tensor([[1, 5], [9, 0]]), torch.tensor([2, 1])
    rows = Rows(support, support_y, query, support_y, way=2, ways=ways)
    assert room(rows, torch.tensor([0, 4, 8, 12])) == 2
