"""Tasks of two classes: as often as each other, shared out as a loop in plain arithmetic does."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from metarun.data.mixture import Mixture
from metarun.data.split import as_split
from metarun.episodes import PADDING
from metarun.errors import UserError
from metarun.samplers.binary import Binary, pairs_of, shared_out
from metarun.testing.fixed_episodes import fixed_episodes
from tests.samplers.few_classes import assert_uniform, generator

# Inactive and active molecules of seven assays; each was measured on some of 60 molecules.
SIZES = [(9, 4), (20, 12), (5, 8), (30, 10), (2, 3), (17, 17), (31, 5)]
BALANCED = Binary(way=2, shot=2, support=0, query=2, queries=0, tasks=1000)
STRATIFIED = Binary(way=2, shot=1, support=10, query=0, queries=0, tasks=1000)
FIRST_ROW = torch.tensor([0, *(n for sizes in SIZES for n in sizes)]).cumsum(0)
CLASS_OF_ROW = torch.arange(2 * len(SIZES)).repeat_interleave(FIRST_ROW.diff())


def assays(sizes=tuple(SIZES), name="t"):
    """Assays over shared molecules, of which the number is all that there is of each."""
    draw = torch.Generator().manual_seed(0)
    index = torch.cat([torch.randperm(60, generator=draw)[: sum(both)] for both in sizes])
    first_row = torch.tensor([0, *(n for both in sizes for n in both)]).cumsum(0)
    classes = [f"{name}{t}/{label}" for t in range(len(sizes)) for label in (0, 1)]
    x, superclass_of = torch.arange(60.0)[:, None], {c: c.split("/")[0] for c in classes}
    return as_split("vectors", x, first_row, classes, superclass_of, index=index)


def tasks_of(rows):
    """Each task's rows and labels, without padding: the support's, then the query's."""
    for t in range(len(rows.support)):
        yield tuple(
            (part[t][y[t] != PADDING], y[t][y[t] != PADDING])
            for part, y in ((rows.support, rows.support_y), (rows.query, rows.query_y))
        )


def naive_share(count, sizes):
    """The numbers of the second class that the rounding rule allows."""
    exact = Fraction(count * sizes[1], sum(sizes))
    whole = exact.numerator // exact.denominator
    rest = exact - whole
    if rest == Fraction(1, 2):
        return {whole, whole + 1}
    return {whole + (rest > Fraction(1, 2))}


@pytest.mark.parametrize("sampler", [BALANCED, STRATIFIED, replace(STRATIFIED, queries=6)])
def test_support_and_query_share_no_row_and_labels_keep_their_order(sampler):
    """Label 0 is the superclass's first class, 1 its second; all the rows are one superclass's."""
    split = assays()
    rows = sampler.draw(split, generator(0))
    for (support, support_y), (query, query_y) in tasks_of(rows):
        both, y = torch.cat([support, query]), torch.cat([support_y, query_y])
        assert len(both.unique()) == len(both)
        assert len(split.stored(both).unique()) == len(both)
        classes = CLASS_OF_ROW[both]
        assert torch.equal(classes % 2, y)
        assert (classes // 2 == classes[0] // 2).all()
        assert {0, 1} == set(support_y.tolist()) == set(query_y.tolist())


@pytest.mark.parametrize(("sampler", "tasks"), [(BALANCED, 6), (STRATIFIED, 6)])
def test_assays_with_enough_examples_are_equally_likely(sampler, tasks):
    """The fifth has too few for either."""
    rows = replace(sampler, tasks=6000).draw(assays(), generator(1))
    of_task = CLASS_OF_ROW[rows.support[:, 0]] // 2
    counts = of_task.bincount(minlength=len(SIZES))
    assert counts[4] == 0
    assert_uniform(counts[counts > 0])
    assert (counts > 0).sum() == tasks


def test_balanced_tasks_are_all_alike():
    """No padding, so that whatever takes tasks of one size takes these."""
    rows = BALANCED.draw(assays(), generator(0))
    assert rows.ways is None
    assert rows.support_y.unique(dim=0).tolist() == [[0, 0, 1, 1]]
    assert rows.query_y.unique(dim=0).tolist() == [[0, 0, 1, 1]]


def test_stratified_tasks_against_plain_arithmetic():
    """Ten of support in the task's proportion, all the rest for queries."""
    seen = {}
    rows = STRATIFIED.draw(assays(), generator(0))
    for (support, y), (query, _) in tasks_of(rows):
        task = int(CLASS_OF_ROW[support[0]] // 2)
        assert len(y) == 10
        assert len(query) == sum(SIZES[task]) - 10
        seen.setdefault(task, set()).add(int(y.sum()))
    for task, shots in seen.items():
        assert shots == naive_share(10, SIZES[task]), SIZES[task]
    assert seen[3] == {2, 3}, "a half goes either way"
    assert rows.ways.unique().tolist() == [2]


def test_at_least_one_of_each_class():
    """As 2 of 36 would not be of the rarer class's 1 : 30."""
    split = assays(sizes=((30, 4),))
    for support in (2, 3, 5):
        sampler = replace(STRATIFIED, support=support, tasks=200)
        rows = sampler.draw(split, generator(0))
        assert rows.support_y.sum(dim=1).unique().tolist() == [1]


def test_a_bound_on_the_queries():
    """At most so many, in the proportion of what the support set leaves; fewer where there are."""
    sampler, lengths = replace(STRATIFIED, queries=12), set()
    for (support, y), (_, query_y) in tasks_of(sampler.draw(assays(), generator(0))):
        sizes = SIZES[int(CLASS_OF_ROW[support[0]] // 2)]
        left = (sizes[0] - int((y == 0).sum()), sizes[1] - int((y == 1).sum()))
        lengths.add(len(query_y))
        if sum(left) <= 12:
            assert query_y.bincount().tolist() == list(left)
        else:
            assert len(query_y) == 12
            assert int(query_y.sum()) in {max(1, n) for n in naive_share(12, left)}
    assert lengths == {3, 12}


def test_balanced_support_and_all_the_rest():
    rows = replace(BALANCED, query=0).draw(assays(), generator(0))
    for (support, y), (_, query_y) in tasks_of(rows):
        sizes = SIZES[int(CLASS_OF_ROW[support[0]] // 2)]
        assert y.bincount().tolist() == [2, 2]
        assert query_y.bincount().tolist() == [sizes[0] - 2, sizes[1] - 2]


def test_every_example_is_as_likely_as_any_other_of_its_class():
    split = assays(sizes=((6, 5),))
    rows = replace(BALANCED, tasks=6000).draw(split, generator(0))
    counts = rows.support.flatten().bincount(minlength=11)
    assert_uniform(counts[:6])
    assert_uniform(counts[6:])


def test_the_seed_decides():
    split = assays()
    first, again, other = (STRATIFIED.draw(split, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not torch.equal(first.support, other.support)
    few, many = (
        fixed_episodes(split, STRATIFIED, name="test", seed=0, episodes=n) for n in (30, 130)
    )
    assert few.sha256 == many.part(slice(30)).sha256


def test_shared_out():
    """Against exact fractions, for every pair of sizes; both ways where there is a half."""
    sizes = torch.cartesian_prod(torch.arange(1, 30), torch.arange(1, 30))
    for count in (2, 7, 16):
        ways = [
            shared_out(count, sizes, torch.full((len(sizes),), coin))[:, 1]
            for coin in (False, True)
        ]
        for both, *got in zip(sizes.tolist(), *(way.tolist() for way in ways), strict=True):
            assert set(got) == naive_share(count, both)


def test_as_scikit_learn_splits():
    selection = pytest.importorskip("sklearn.model_selection")
    for inactive, active in SIZES[:4]:
        y = [0] * inactive + [1] * active
        split = selection.StratifiedShuffleSplit(1, train_size=8, random_state=0)
        train, _ = next(split.split(y, y))
        assert sum(y[i] for i in train) in naive_share(8, (inactive, active))


def test_pairs_of_classes_in_the_splits_order():
    """Wherever a superclass's two classes stand; one and three make no task."""
    superclass = torch.tensor([2, 0, 1, 2, 3, 0, 1, 1])
    assert pairs_of(superclass).tolist() == [[1, 5], [0, 3]]
    assert len(pairs_of(torch.tensor([0, 0, 0]))) == 0


def test_each_task_comes_from_one_source():
    """Both as often as each other, though one has twice as many assays; a third has none."""
    plain = as_split("vectors", torch.zeros(9, 1), torch.tensor([0, 3, 6, 9]), "abc")
    parts = {"a": assays(SIZES[:2]), "b": assays(SIZES[3:4]), "c": plain}
    split = Mixture(parts, (1,), "vectors")
    BALANCED.check(split)
    rows = replace(BALANCED, tasks=4000).draw(split, generator(0))
    classes = torch.searchsorted(split.first_row, rows.support.contiguous(), right=True) - 1
    counts = split.source[classes[:, 0]].bincount(minlength=3)
    assert counts[2] == 0
    assert_uniform(counts[:2])


def test_left_out_with_a_word(capsys):
    BALANCED.check(assays())
    assert capsys.readouterr().out.splitlines() == [
        "left out 1 of 7 superclasses of two classes, which have too few examples"
    ]


@pytest.mark.parametrize(
    ("sampler", "split", "said"),
    [
        (replace(BALANCED, way=5), assays(), "way=5: a task of sampler=binary has 2 classes"),
        (replace(BALANCED, support=1), assays(), "sampler.support=1: give 2 or more"),
        (replace(BALANCED, shot=0), assays(), "shot=0: give 1 or more of each class"),
        (replace(BALANCED, queries=5), assays(), "sampler.queries=5 is a bound on all the rest"),
        (BALANCED, as_split("vectors", torch.zeros(9, 1), torch.tensor([0, 9]), "a"), "the data h"),
        (
            BALANCED,
            as_split(
                *("vectors", torch.zeros(9, 1), torch.tensor([0, 3, 6, 9]), "abc"),
                dict.fromkeys("abc", "s"),
            ),
            "superclass 's' has 3 of the split's classes, and none has just two",
        ),
        (replace(BALANCED, shot=40), assays(), "7 of 7 superclasses of two classes have too few"),
        (
            replace(STRATIFIED, support=99),
            assays(),
            "too few examples for support=99 and qu",
        ),
    ],
)
def test_what_cannot_be_drawn(sampler, split, said):
    with pytest.raises(UserError, match=said):
        sampler.check(split)
