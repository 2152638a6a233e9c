import pytest
import torch

from metarun.data.split import stack_classes
from metarun.errors import UserError
from metarun.samplers.pairs import PairSampler, draw_pairs
from tests.samplers.few_classes import assert_uniform, generator

SIZES = [7, 2, 9, 5, 6]
FIRST_ROW = torch.tensor([0, *SIZES]).cumsum(0)
CLASS_OF_ROW = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))

# Rows a and b of seeds 0 and 1: six pairs of classes of SIZES examples.
# Changing them changes the batches of every run, and so every result.
GOLDEN = {
    0: ([25, 21, 13, 25, 20, 19], [23, 3, 15, 8, 21, 24]),
    1: ([5, 7, 7, 0, 14, 1], [2, 23, 8, 17, 13, 12]),
}


def draw(seed, pairs):
    return draw_pairs(FIRST_ROW, pairs=pairs, generator=generator(seed))


def some_split(sizes=SIZES):
    """A split of classes of these sizes, each example the number of its row."""
    rows = torch.arange(float(sum(sizes)))[:, None]
    names = ["seven", "two", "nine", "five", "six"][: len(sizes)]
    return stack_classes("vectors", dict(zip(names, rows.split(sizes), strict=True)))


@pytest.mark.parametrize("pairs", [1, 2, 7, 4000])
def test_half_of_the_pairs_are_two_examples_of_one_class(pairs):
    """Or one more than half of an odd number; never an example with itself."""
    a, b, same = draw(0, pairs)
    assert a.shape == b.shape == same.shape == (pairs,)
    assert torch.equal(CLASS_OF_ROW[a] == CLASS_OF_ROW[b], same)
    assert same.sum() == (pairs + 1) // 2
    assert (a != b).all()


def test_ordered_pairs_of_different_classes_are_equally_likely():
    a, b, same = draw(1, 20_000)
    counts = (CLASS_OF_ROW[a] * 5 + CLASS_OF_ROW[b])[~same].bincount(minlength=25).view(5, 5)
    assert counts.diag().tolist() == [0] * 5
    assert_uniform(counts[~torch.eye(5, dtype=torch.bool)])


def test_classes_of_equal_pairs_are_equally_likely_however_large():
    a, _, same = draw(2, 20_000)
    assert_uniform(CLASS_OF_ROW[a][same].bincount(minlength=5))


def test_ordered_pairs_of_one_class_are_equally_likely():
    """Both of the two examples of the second class, and all 6 · 7 pairs of the first."""
    a, b, same = draw(3, 40_000)
    for of_class, size in enumerate(SIZES):
        here = same & (CLASS_OF_ROW[a] == of_class)
        first, second = a[here] - FIRST_ROW[of_class], b[here] - FIRST_ROW[of_class]
        counts = (first * size + second).bincount(minlength=size**2).view(size, size)
        assert counts.diag().sum() == 0
        assert_uniform(counts[~torch.eye(size, dtype=torch.bool)])


@pytest.mark.parametrize("twin", [0, 1])
def test_examples_of_different_classes_are_equally_likely(twin):
    drawn = draw(4, 40_000)
    counts = drawn[twin][~drawn[2]].bincount(minlength=len(CLASS_OF_ROW))
    for of_class in counts.split(SIZES):
        assert_uniform(of_class)


def test_a_seed_decides_the_rows():
    torch.manual_seed(5)
    first = draw(3, 8)
    torch.manual_seed(6)
    again, other = draw(3, 8), draw(4, 8)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_next_draw_is_another():
    of_seed = generator(0)
    first, second = (draw_pairs(FIRST_ROW, pairs=8, generator=of_seed) for _ in range(2))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_rows(seed):
    a, b, _ = draw(seed, 6)
    assert (a.tolist(), b.tolist()) == GOLDEN[seed]


def test_the_sampler_gives_the_examples_of_the_drawn_rows():
    """Each example of `some_split` is the number of its row."""
    pairs = PairSampler(tasks=6)(some_split(), generator(7))
    a, b, same = draw(7, 6)
    assert pairs.a[:, 0].tolist() == a.tolist()
    assert pairs.b[:, 0].tolist() == b.tolist()
    assert pairs.same.tolist() == same.tolist()


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match=r"at least 2 classes, but the split has 1"):
        PairSampler(tasks=4).check(some_split([7]))


def test_a_class_of_one_example_is_refused():
    with pytest.raises(UserError, match=r"class 'nine' has 1 example, .* needs 2: leave that"):
        PairSampler(tasks=4).check(some_split([7, 2, 1, 5]))


def test_two_classes_of_two_examples_are_enough():
    split, sampler = some_split([2, 2]), PairSampler(tasks=400)
    sampler.check(split)
    pairs = sampler(split, generator(0))
    seen = {(int(a), int(b)) for a, b in zip(pairs.a, pairs.b, strict=True)}
    assert seen == {(a, b) for a in range(4) for b in range(4) if a != b}
