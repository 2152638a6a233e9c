import pytest
import torch

from metarun.data.split import stack_classes
from metarun.errors import UserError
from metarun.samplers.within_superclass import WithinSuperclass
from tests.samplers.few_classes import assert_uniform

# Ten classes, mixed: five of superclass 0, three of 1 and two of 2.
SUPERCLASS = torch.tensor([0, 1, 0, 2, 0, 1, 0, 2, 1, 0])
SIZES = [4, 6, 5, 4, 7, 5, 4, 6, 4, 5]
CLASS_OF_ROW = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))

# Rows of seeds 0 and 1: tasks=2, way=3, shot=1, query=2 of the classes above.
# Changing them changes the episodes of every run, and so every result.
GOLDEN = {
    0: (
        [[[0], [13], [45]], [[4], [44], [26]]],
        [[[2, 3], [14, 11], [49, 47]], [[5, 6], [43, 41], [27, 28]]],
    ),
    1: (
        [[[42], [9], [29]], [[7], [41], [26]]],
        [[[43, 41], [8, 5], [27, 28]], [[5, 9], [42, 44], [29, 28]]],
    ),
}


def draw(seed, **sizes):
    """Rows of one draw, two tasks of three classes where `sizes` says nothing else."""
    sizes = {"tasks": 2, "way": 3, "shot": 1, "query": 2} | sizes
    of_seed = torch.Generator().manual_seed(seed)
    rows = WithinSuperclass(**sizes).rows(some_split(), of_seed)
    parts = rows.tensor_split([sizes["way"] * sizes["shot"]], dim=1)
    return [part.unflatten(1, (sizes["way"], -1)) for part in parts]


def some_split(superclasses=True):
    """A split of the classes above, each example the number of its row."""
    rows = torch.arange(float(sum(SIZES)))[:, None]
    names = [f"{'abc'[s]}/{i}" for i, s in enumerate(SUPERCLASS.tolist())]
    superclass_of = {name: name[0] for name in names} if superclasses else None
    return stack_classes("vectors", dict(zip(names, rows.split(SIZES), strict=True)), superclass_of)


@pytest.mark.parametrize(("way", "shot", "query"), [(3, 1, 2), (2, 2, 2), (5, 1, 3)])
def test_every_task_is_one_of_its_kind(way, shot, query):
    """One superclass a task, distinct classes, a place's rows from one class, no row twice."""
    for seed in range(150):
        support, queries = draw(seed, way=way, shot=shot, query=query)
        for task in torch.cat([support, queries], dim=2):
            classes = CLASS_OF_ROW[task]
            assert (classes == classes[:, :1]).all()
            assert len(set(classes[:, 0].tolist())) == way
            assert len(set(SUPERCLASS[classes[:, 0]].tolist())) == 1
            assert len(set(task.flatten().tolist())) == way * (shot + query)


@pytest.mark.parametrize(("way", "large"), [(2, [0, 1, 2]), (3, [0, 1]), (4, [0])])
def test_superclasses_with_enough_classes_are_equally_likely(way, large):
    """However many classes they have; the others never occur."""
    support, _ = draw(0, tasks=6000, way=way)
    counts = SUPERCLASS[CLASS_OF_ROW[support[:, 0, 0]]].bincount(minlength=3)
    assert counts.nonzero()[:, 0].tolist() == large
    assert_uniform(counts[large])


def test_classes_of_a_superclass_are_equally_likely_at_every_place():
    support, _ = draw(1, tasks=6000)
    for place in range(3):
        counts = CLASS_OF_ROW[support[:, place, 0]].bincount(minlength=10)
        assert_uniform(counts[SUPERCLASS == 0])
        assert_uniform(counts[SUPERCLASS == 1])


@pytest.mark.parametrize("part", [0, 1])  # support, query
def test_examples_of_a_class_are_equally_likely(part):
    rows = draw(2, tasks=6000, way=2, shot=2, query=2)[part]
    counts = rows.flatten().bincount(minlength=len(CLASS_OF_ROW))
    for of_class in counts.split(SIZES):
        assert_uniform(of_class)


def test_a_seed_decides_the_rows():
    first, again, other = draw(3), draw(3), draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_rows(seed):
    support, query = draw(seed)
    assert (support.tolist(), query.tolist()) == GOLDEN[seed]


def test_the_sampler_gives_the_examples_of_the_drawn_rows():
    """Each example of `some_split` is the number of its row."""
    sampler = WithinSuperclass(way=3, shot=1, query=2, tasks=2)
    episodes = sampler(some_split(), torch.Generator().manual_seed(7))
    support, query = draw(7)
    assert episodes.support_x[..., 0].tolist() == support.flatten(1).tolist()
    assert episodes.query_x[..., 0].tolist() == query.flatten(1).tolist()


def test_data_without_superclasses_are_refused():
    with pytest.raises(UserError, match=r"no superclasses: use sampler=uniform"):
        WithinSuperclass(way=2, shot=1, query=1, tasks=1).check(some_split(superclasses=False))


def test_more_classes_than_the_largest_superclass_has_are_refused():
    with pytest.raises(UserError, match=r"way=6.* only 5 classes: lower way to 5, or use sampler="):
        WithinSuperclass(way=6, shot=1, query=1, tasks=1).check(some_split())


def test_too_many_examples_are_refused():
    wanted = r"'a/0' has 4 examples, but shot=2 and query=3 need 5: lower one"
    with pytest.raises(UserError, match=wanted):
        WithinSuperclass(way=2, shot=2, query=3, tasks=1).check(some_split())


def test_as_many_as_there_are_is_allowed():
    WithinSuperclass(way=5, shot=1, query=3, tasks=1).check(some_split())
