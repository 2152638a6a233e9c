import pytest
import torch

from metarun.errors import UserError
from metarun.samplers.uniform import Uniform, draw_tasks
from tests.samplers.few_classes import (
    CLASS_OF_ROW,
    FIRST_ROW,
    SIZES,
    assert_uniform,
    generator,
    some_split,
)

# Rows of seeds 0 and 1: tasks=2, way=3, shot=1, query=2 of classes of SIZES examples.
# Changing them changes the episodes of every run, and so every result.
GOLDEN = {
    0: (
        [[[13], [20], [29]], [[24], [9], [27]]],
        [[[19, 14], [23, 21], [25, 30]], [[23, 21], [10, 8], [28, 25]]],
    ),
    1: (
        [[[28], [9], [11]], [[9], [29], [22]]],
        [[[30, 29], [8, 10], [17, 16]], [[7, 8], [25, 30], [21, 24]]],
    ),
}


def draw(seed, **sizes):
    """Rows of one draw, two tasks of three classes where `sizes` says nothing else."""
    sizes = {"tasks": 2, "way": 3, "shot": 1, "query": 2} | sizes
    return draw_tasks(FIRST_ROW, generator=generator(seed), **sizes)


@pytest.mark.parametrize(("way", "shot", "query"), [(3, 1, 2), (5, 2, 2), (2, 3, 1), (1, 1, 3)])
def test_every_task_is_one_of_its_kind(way, shot, query):
    """Distinct classes, a place's rows from one class, no row twice; 4 of 4 examples still go."""
    for seed in range(150):
        support, queries = draw(seed, way=way, shot=shot, query=query)
        assert support.shape == (2, way, shot)
        assert queries.shape == (2, way, query)
        for task in torch.cat([support, queries], dim=2):
            classes = CLASS_OF_ROW[task]
            assert (classes == classes[:, :1]).all()
            assert len(set(classes[:, 0].tolist())) == way
            assert len(set(task.flatten().tolist())) == way * (shot + query)


def test_ordered_pairs_of_classes_are_equally_likely():
    """So no class prefers a label, nor another class's company."""
    support, _ = draw(0, tasks=6000, way=3)
    first, second, _ = CLASS_OF_ROW[support[..., 0]].unbind(1)
    counts = (first * 5 + second).bincount(minlength=25).view(5, 5)
    assert counts.diag().tolist() == [0] * 5
    assert_uniform(counts[~torch.eye(5, dtype=torch.bool)])


@pytest.mark.parametrize("part", [0, 1])  # support, query
def test_examples_of_a_class_are_equally_likely(part):
    rows = draw(1, tasks=6000, shot=2, query=2)[part]
    counts = rows.flatten().bincount(minlength=len(CLASS_OF_ROW))
    for of_class in counts.split(SIZES):
        assert_uniform(of_class)


def test_a_seed_decides_the_rows():
    torch.manual_seed(5)
    first = draw(3)
    torch.manual_seed(6)
    again, other = draw(3), draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_next_draw_is_another():
    of_seed = generator(0)
    sizes = {"tasks": 4, "way": 3, "shot": 1, "query": 2}
    first, second = (draw_tasks(FIRST_ROW, generator=of_seed, **sizes) for _ in range(2))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_rows(seed):
    support, query = draw(seed)
    assert (support.tolist(), query.tolist()) == GOLDEN[seed]


def test_the_sampler_gives_the_examples_of_the_drawn_rows():
    """Each example of `some_split` is the number of its row."""
    episodes = Uniform(way=3, shot=1, query=2, tasks=2)(some_split(), generator(7))
    support, query = draw(7)
    assert episodes.support_x[..., 0].tolist() == support.flatten(1).tolist()
    assert episodes.query_x[..., 0].tolist() == query.flatten(1).tolist()
    assert episodes.way == 3


def test_too_many_classes_are_refused():
    with pytest.raises(UserError, match=r"way=6.* only 5 classes: lower way to 5"):
        Uniform(way=6, shot=1, query=1, tasks=1).check(some_split())


def test_too_many_examples_are_refused():
    wanted = r"'four' has 4 examples, but shot=2 and query=3 need 5: lower one"
    with pytest.raises(UserError, match=wanted):
        Uniform(way=2, shot=2, query=3, tasks=1).check(some_split())


def test_as_many_as_there_are_is_allowed():
    Uniform(way=5, shot=1, query=3, tasks=1).check(some_split())
