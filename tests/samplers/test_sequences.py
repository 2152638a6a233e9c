import pytest
import torch

from metarun.errors import UserError
from metarun.samplers.sequences import SequenceSampler, draw_sequences
from tests.samplers.few_classes import (
    CLASS_OF_ROW,
    FIRST_ROW,
    SIZES,
    assert_uniform,
    generator,
    some_split,
)

# Rows and labels of seeds 0 and 1: tasks=2, way=2, presentations=3 of classes of SIZES examples.
# Changing them changes the batches of every run, and so every result.
GOLDEN = {
    0: (
        [[14, 20, 19, 13, 23, 21], [9, 10, 20, 8, 24, 22]],
        [[0, 1, 0, 0, 1, 1], [1, 1, 0, 1, 0, 0]],
    ),
    1: ([[8, 28, 10, 29, 9, 30], [25, 9, 29, 7, 27, 8]], [[1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0]]),
}


def draw(seed, **sizes):
    """Rows and labels of one draw: two sequences of three classes unless `sizes` says else."""
    sizes = {"tasks": 2, "way": 3, "presentations": 2} | sizes
    return draw_sequences(FIRST_ROW, generator=generator(seed), **sizes)


@pytest.mark.parametrize(("way", "presentations"), [(3, 2), (5, 4), (2, 3), (4, 1)])
def test_every_sequence_is_one_of_its_kind(way, presentations):
    """Each label names one class and occurs equally often; no example twice; 4 of 4 still go."""
    for seed in range(150):
        rows, y = draw(seed, way=way, presentations=presentations)
        assert rows.shape == y.shape == (2, way * presentations)
        for task_rows, task_y in zip(rows, y, strict=True):
            assert len(set(task_rows.tolist())) == way * presentations
            assert task_y.bincount(minlength=way).tolist() == [presentations] * way
            pairs = set(zip(task_y.tolist(), CLASS_OF_ROW[task_rows].tolist(), strict=True))
            assert len(pairs) == len({c for _, c in pairs}) == way


def test_a_class_takes_every_label_equally_often():
    """So that its label in one sequence says nothing of the next."""
    rows, y = draw(0, tasks=6000)
    counts = (CLASS_OF_ROW[rows[:, 0]] * 3 + y[:, 0]).bincount(minlength=15)
    assert_uniform(counts)


def test_orders_of_the_labels_are_equally_likely():
    """Of 2 classes shown twice there are six."""
    _, y = draw(1, tasks=6000, way=2)
    counts = (y @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
    assert counts.nonzero()[:, 0].tolist() == [3, 5, 6, 9, 10, 12]
    assert_uniform(counts[counts > 0])


def test_examples_of_a_class_are_equally_likely_at_every_step():
    rows, _ = draw(2, tasks=6000)
    for step in (0, 5):
        counts = rows[:, step].bincount(minlength=len(CLASS_OF_ROW))
        assert_uniform(torch.stack([of_class.sum() for of_class in counts.split(SIZES)]))
        for of_class in counts.split(SIZES):
            assert_uniform(of_class)


def test_a_seed_decides_the_sequences():
    torch.manual_seed(5)
    first = draw(3)
    torch.manual_seed(6)
    again, other = draw(3), draw(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_sequences(seed):
    rows, y = draw(seed, way=2, presentations=3)
    assert (rows.tolist(), y.tolist()) == GOLDEN[seed]


def test_the_sampler_gives_the_examples_of_the_drawn_rows():
    """Each example of `some_split` is the number of its row."""
    sequences = SequenceSampler(way=3, presentations=2, tasks=2)(some_split(), generator(7))
    rows, y = draw(7)
    assert sequences.x[..., 0].tolist() == rows.tolist()
    assert sequences.y.tolist() == y.tolist()
    assert sequences.way == 3


def test_too_many_classes_are_refused():
    with pytest.raises(UserError, match=r"way=6.* only 5 classes: lower way to 5"):
        SequenceSampler(way=6, presentations=1, tasks=1).check(some_split())


def test_too_many_presentations_are_refused():
    wanted = r"'four' has 4 examples: lower sampler.presentations=5 to 4"
    with pytest.raises(UserError, match=wanted):
        SequenceSampler(way=2, presentations=5, tasks=1).check(some_split())


def test_as_many_as_there_are_is_allowed():
    SequenceSampler(way=5, presentations=4, tasks=1).check(some_split())
