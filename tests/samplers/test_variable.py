"""Meta-Dataset's tasks: against the same drawn one at a time, as its appendix and code tell it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarun.data.mixture import Mixture
from metarun.data.split import stack_classes
from metarun.episodes import PADDING
from metarun.errors import UserError
from metarun.samplers.hierarchy import inner_nodes
from metarun.samplers.variable import Variable
from tests.samplers.few_classes import assert_uniform

# 70 classes of unequal sizes in three superclasses, of 8, 22 and 40 classes.
SIZES = [20 + (37 * c) % 173 for c in range(70)]
SUPERCLASS = ["abc"[(c >= 8) + (c >= 30)] for c in range(70)]
NAMES = [f"{s}/{c:02}" for c, s in enumerate(SUPERCLASS)]
CLASS_OF_ROW = torch.arange(70).repeat_interleave(torch.tensor(SIZES))

SAMPLER = Variable(
    way=50,
    least_way=5,
    shot=0,
    query=0,
    most_query=10,
    most_support=500,
    most_of_class=100,
    least_weight=0.5,
    most_weight=2.0,
    classes="any",
    tasks=1000,
)


def some_split(sizes=tuple(SIZES), names=tuple(NAMES), superclasses=True):
    rows = torch.arange(float(sum(sizes)))[:, None]
    classes = dict(zip(names, rows.split(list(sizes)), strict=True))
    return stack_classes(
        "vectors", classes, {n: n.split("/")[0] for n in names} if superclasses else None
    )


def drawn(tasks=10_000, split=None, seed=0, **changes):
    """Ways [T], query examples of a class [T], shots [T, 50] and classes [T, 50], -1 if absent."""
    sampler = replace(SAMPLER, tasks=tasks, **changes)
    split = split or some_split()
    rows = sampler.draw(split, torch.Generator().manual_seed(seed))
    shots, queries = (
        torch.stack([(y == k).sum(dim=1) for k in range(rows.way)], dim=1)
        for y in (rows.support_y, rows.query_y)
    )
    classes = torch.full_like(shots, -1)
    of_class = torch.searchsorted(split.first_row, rows.support, right=True) - 1
    for k in range(rows.way):
        found = rows.support_y == k
        place = found.byte().argmax(dim=1)
        mine = of_class.gather(1, place[:, None])[:, 0]
        classes[:, k] = mine.where(found.any(dim=1), -1)
    query = queries.max(dim=1).values
    assert torch.equal(queries, query[:, None] * (shots > 0))
    return rows.ways, query, shots, classes


def one_task(random, sizes):
    """The algorithm of the paper's appendix A, of one task: sizes and shots of its classes, and the
    number of queries of each."""
    ways = random.integers(5, min(50, len(sizes)) + 1)
    size = random.choice(sizes, ways, replace=False)
    query = min(10, min(size // 2))
    beta = random.random()
    support = min(500, np.floor(beta * np.minimum(100, size - query) + 1).sum())
    weights = size * np.exp(random.uniform(np.log(0.5), np.log(2), ways))
    share = weights / weights.sum()
    shots = np.minimum(np.floor(share * (support - ways)) + 1, size - query)
    return size, shots, query


def assert_same_distribution(a, b):
    """Kolmogorov and Smirnov's two-sample statistic, at one chance of error in a million."""
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    at = np.concatenate([a, b])
    distance = np.abs(
        np.searchsorted(a, at, side="right") / len(a)
        - np.searchsorted(b, at, side="right") / len(b)
    ).max()
    assert distance <= 2.7 * np.sqrt((len(a) + len(b)) / (len(a) * len(b)))
    assert distance < 0.05


def test_ten_thousand_episodes_are_distributed_as_the_published_algorithms():
    random = np.random.default_rng(0)
    naive = [one_task(random, np.array(SIZES)) for _ in range(10_000)]
    ways, query, shots, classes = drawn()
    sizes = torch.tensor([*SIZES, 0])[classes]  # of an absent class 0
    assert_uniform(ways.bincount(minlength=51)[5:])
    assert_same_distribution(ways, [len(size) for size, _, _ in naive])
    assert_same_distribution(query, [q for *_, q in naive])
    assert_same_distribution(shots.sum(dim=1), [s.sum() for _, s, _ in naive])
    assert_same_distribution(shots.max(dim=1).values, [s.max() for _, s, _ in naive])
    # Of the first class alone: its shots, and their share beside its share of all the examples.
    assert_same_distribution(shots[:, 0], [s[0] for _, s, _ in naive])
    assert_same_distribution(
        shots[:, 0] / shots.sum(dim=1) * sizes.sum(dim=1) / sizes[:, 0],
        [s[0] / s.sum() * n.sum() / n[0] for n, s, _ in naive],
    )
    assert_uniform(classes[classes >= 0].bincount(minlength=70))


def test_a_task_can_be_told_from_others():
    """So the statistics above can fail: without its weights, or with a smaller support set."""
    *_, shots, _ = drawn(2000)
    for changes in ({"most_weight": 0.5}, {"most_support": 300}, {"most_of_class": 50}):
        *_, others, _ = drawn(2000, **changes)
        with pytest.raises(AssertionError):
            assert_same_distribution(shots.max(dim=1).values, others.max(dim=1).values)


def test_every_task_is_one_of_its_kind():
    """Distinct classes, no example twice, labels in order, and no more than there are."""
    rows = replace(SAMPLER, tasks=50).draw(some_split(), torch.Generator().manual_seed(1))
    for t in range(50):
        support, query = (
            r[t][y[t] != PADDING]
            for r, y in ((rows.support, rows.support_y), (rows.query, rows.query_y))
        )
        everything = torch.cat([support, query])
        assert len(everything.unique()) == len(everything)
        assert len(support) <= 500
        labels = torch.cat([rows.support_y[t], rows.query_y[t]])
        labels = labels[labels != PADDING]
        pairs = {
            (k, c) for k, c in zip(labels.tolist(), CLASS_OF_ROW[everything].tolist(), strict=True)
        }
        assert len(pairs) == rows.ways[t]
        assert sorted(k for k, _ in pairs) == list(range(rows.ways[t]))
        assert len({c for _, c in pairs}) == rows.ways[t]
        # Padding comes last.
        real = rows.support_y[t] != PADDING
        assert real[: len(support)].all()


def test_fixed_numbers_replace_their_steps():
    ways, query, shots, _ = drawn(200, way=7, least_way=7, shot=3, query=4)
    assert set(ways.tolist()) == {7}
    assert set(query.tolist()) == {4}
    assert set(shots[shots > 0].tolist()) == {3}
    ways, query, shots, classes = drawn(200, shot=15)
    smallest = torch.tensor([*SIZES, 10**6])[classes].min(dim=1).values
    assert torch.equal(query, (smallest - 15).clamp(max=10))


def test_of_small_classes_half_the_smallest_is_for_queries():
    """And of each class there is something to learn from."""
    sizes = [2 + c % 30 for c in range(70)]
    ways, query, shots, classes = drawn(500, some_split(sizes))
    smallest = torch.tensor([*sizes, 10**6])[classes].min(dim=1).values
    assert torch.equal(query, (smallest // 2).clamp(max=10))
    assert torch.equal((shots > 0).sum(dim=1), ways)


def test_classes_of_one_superclass():
    """Each superclass as often, and as many of its classes as it may have, equally likely."""
    few_examples = some_split([6] * 70)  # which are not looked at here, and quickly shuffled
    ways, _, _, classes = drawn(9000, few_examples, classes="superclass")
    group = torch.tensor(["abc".index(s) for s in SUPERCLASS])
    of_task = group[classes[:, 0]]
    assert all((group[c[c >= 0]] == g).all() for c, g in zip(classes, of_task, strict=True))
    assert_uniform(of_task.bincount())
    for g, most in enumerate([8, 22, 40]):
        assert_uniform(ways[of_task == g].bincount(minlength=most + 1)[5:])
        assert ways[of_task == g].max() == most


TREE = ["x/p/1", "x/p/2", "x/p/3", "x/q/1", "x/q/2", "y/1", "y/2", "y/3", "z"]


def test_nodes_of_a_hierarchy():
    """The root, x, x/p and y have at least three classes; x/q and z fewer."""
    nodes = inner_nodes(tuple(TREE), 3, 392)
    below = {tuple(node.nonzero()[:, 0].tolist()) for node in nodes}
    assert below == {tuple(range(9)), (0, 1, 2, 3, 4), (0, 1, 2), (5, 6, 7)}
    assert len(inner_nodes(tuple(TREE), 3, 5)) == 3
    assert len(inner_nodes(("a/1", "a/2", "a/3"), 2, 9)) == 1  # the root has the same classes


def test_classes_below_one_node():
    """Nodes are equally likely; a task has all the classes below its own, or 6 of them."""
    split = some_split([40] * 9, TREE, superclasses=False)
    changes = {"way": 6, "least_way": 3, "classes": "hierarchy"}
    sampler = replace(SAMPLER, tasks=4000, **changes)
    chosen, ways = sampler.draw_classes(split, torch.Generator().manual_seed(0))
    tasks = [tuple(sorted(c[:n].tolist())) for c, n in zip(chosen, ways, strict=True)]
    counts = {task: tasks.count(task) for task in {(0, 1, 2, 3, 4), (0, 1, 2), (5, 6, 7)}}
    counts["root"] = len(tasks) - sum(counts.values())
    assert_uniform(torch.tensor(list(counts.values())))
    assert {len(set(task)) for task in tasks} == {3, 5, 6}


@pytest.mark.parametrize("classes", ["any", "superclass", "hierarchy"])
def test_each_task_comes_from_one_source(classes):
    """Sources are equally likely, whatever they have; one with too few classes is never drawn."""
    parts = {
        "a": some_split([30] * 6, [f"s/{i}" for i in range(6)]),
        "b": some_split([40] * 20, [f"{'tu'[i // 12]}/{i}" for i in range(20)]),
        "c": some_split([50] * 4, [f"v/{i}" for i in range(4)]),
    }
    split = Mixture(parts, (1,), "vectors")
    sampler = replace(SAMPLER, tasks=3000, classes=classes)
    sampler.check(split)
    chosen, ways = sampler.draw_classes(split, torch.Generator().manual_seed(0))
    sources = [set(split.source[c[:n]].tolist()) for c, n in zip(chosen, ways, strict=True)]
    assert {len(s) for s in sources} == {1}
    assert_uniform(torch.tensor([s.pop() for s in sources]).bincount(minlength=3)[:2])
    assert ways.max() <= 20


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"least_way": 1}, SIZES, "least_way=1: it must be from 2 to way=50"),
        ({"way": 4}, SIZES, "least_way=5: it must be from 2 to way=4"),
        ({"classes": "all"}, SIZES, "classes=all: choose one of any, superclass, hierarchy"),
        ({"least_weight": 3.0}, SIZES, "least_weight=3.0: it must be above 0, and at most"),
        ({}, SIZES[:4], "least_way=5, but the split has only 4 classes"),
        ({"classes": "superclass"}, [9] * 8 + [9] * 3, None),
        ({}, [9] * 8 + [1], "class 'b/08' has 1 examples, but a task needs 2"),
        ({"shot": 5, "query": 5}, [9] * 9, "class 'a/00' has 9 examples, but a task needs 10"),
    ],
)
def test_what_cannot_be_is_refused(changes, sizes, message):
    split = some_split(tuple(sizes), tuple(NAMES[: len(sizes)]))
    sampler = replace(SAMPLER, **changes)
    if message is None:
        sampler.check(split)
        return
    with pytest.raises(UserError, match=message):
        sampler.check(split)


def flat(classes):
    return stack_classes("vectors", {str(c): torch.zeros(20, 1) for c in range(classes)})


def test_sources_without_a_node_take_no_part():
    """A source of 450 classes without a tree has none small enough: all tasks are of the others,
    which are equally likely."""
    parts = {"large": flat(450), "a": flat(10), "b": flat(20), "few": flat(4)}
    sampler, split = replace(SAMPLER, classes="hierarchy"), Mixture(parts, (1,), "vectors")
    sampler.check(split)
    classes, ways = sampler.draw_classes(split, torch.Generator().manual_seed(0))
    source = split.source[classes[:, 0]]
    assert source.unique().tolist() == [1, 2]
    assert (source == 1).float().mean().item() == pytest.approx(0.5, abs=0.06)  # 4 deviations
    assert torch.equal(ways, torch.where(source == 1, 10, 20))
    with pytest.raises(UserError, match="least_way=5, but the split has only 0 classes"):
        sampler.check(Mixture({"a": flat(3), "b": flat(4)}, (1,), "vectors"))
