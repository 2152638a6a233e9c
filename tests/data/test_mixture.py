"""A mixture is its sources, one after the other; a test of each is that of the source alone."""

import json
from dataclasses import replace

import pytest
import torch

from metarun.data.mixture import Mixture, load, same_but_for_grey
from metarun.data.split import as_split, stack_classes
from metarun.data.store import DataSet, prepare
from metarun.episodes import gather
from metarun.errors import UserError
from metarun.samplers.pairs import PairSampler
from metarun.samplers.uniform import Uniform
from metarun.samplers.within_superclass import WithinSuperclass
from metarun.testing.fixed_episodes import fixed_episodes


def images(seed, classes, channels, size=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{'xy'[c % 2]}/{c}": torch.randint(
            256, (6 + c, channels, size, size), generator=generator
        ).byte()
        for c in range(classes)
    }


def grey(superclasses=True):
    x = images(0, 5, 1)
    return stack_classes(
        "images", x, {n: n[0] for n in x} if superclasses else None, (0.5,), (0.25,)
    )


def coloured():
    return stack_classes("images", images(1, 4, 3), None, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def mixture():
    return Mixture({"grey": grey(), "coloured": coloured()}, (3, 4, 4), "images")


def test_examples_are_those_of_the_sources():
    """A grey one three times over, each normalised by its own source's statistics."""
    split, alone = mixture(), [grey(), coloured()]
    count = len(alone[0].x)
    rows = torch.tensor([[0, count], [count + 3, 7], [count - 1, count + 1]])
    x = split.take(rows)
    assert x.shape == (3, 2, 3, 4, 4)
    for place, row in ((p, int(rows[p])) for p in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]):
        own = alone[0].take(torch.tensor([row])) if row < count else None
        wanted = (
            own.expand(1, 3, 4, 4)
            if own is not None
            else alone[1].take(torch.tensor([row - count]))
        )
        assert torch.equal(x[place], wanted[0])


def test_classes_rows_and_superclasses_stand_one_source_after_the_other():
    split = mixture()
    assert split.classes[:2] == ("grey/x/0", "grey/y/1")
    assert split.classes[-1] == "coloured/y/3"
    assert split.first_row.diff().tolist() == [6, 7, 8, 9, 10, 6, 7, 8, 9]
    assert split.source.tolist() == [0] * 5 + [1] * 4
    assert split.superclasses == ("grey/x", "grey/y", "coloured")  # which has none of its own
    assert split.superclass.tolist() == [0, 1, 0, 1, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", [Uniform, WithinSuperclass])
def test_each_task_comes_from_one_source(kind):
    """Both as often as each other, though one has more classes."""
    split, sampler = mixture(), kind(way=3, shot=1, query=2, tasks=2000)
    sampler.check(split)
    rows = sampler.rows(split, torch.Generator().manual_seed(0))
    classes = torch.searchsorted(split.first_row, rows[:, :3].contiguous(), right=True) - 1
    sources = split.source[classes]
    assert (sources == sources[:, :1]).all()
    assert 900 < int(sources[:, 0].sum()) < 1100
    if kind is WithinSuperclass:
        groups = split.superclass[classes]
        assert (groups == groups[:, :1]).all()
        assert set(groups[:, 0].tolist()) == {0, 2}  # grey/y has two classes


def test_a_source_with_too_few_classes_takes_no_part():
    split, sampler = mixture(), Uniform(way=5, shot=1, query=2, tasks=50)
    sampler.check(split)
    assert int(sampler.rows(split, torch.Generator().manual_seed(0)).max()) < len(grey().x)
    with pytest.raises(UserError, match="way=6, but the split has only 5 classes: lower way to 5"):
        Uniform(way=6, shot=1, query=2, tasks=1).check(split)


@pytest.mark.parametrize("kind", [Uniform, WithinSuperclass])
def test_test_episodes_of_a_source_are_those_it_has_alone(kind):
    sampler = kind(way=2, shot=1, query=2, tasks=1)
    for name, alone in {"grey": grey(), "coloured": coloured()}.items():
        if kind is WithinSuperclass and name == "coloured":
            continue
        split = mixture().each()[name]
        assert split.source is None
        drawn = {"name": "test", "seed": 0, "episodes": 30}
        wanted, got = (fixed_episodes(s, sampler, **drawn) for s in (alone, split))
        assert got.sha256 == wanted.sha256
        x, y = got.batch(slice(3)), wanted.batch(slice(3))
        assert torch.equal(x.support_x, y.support_x.expand(-1, -1, 3, -1, -1))


def test_other_samplers_draw_from_it_too():
    pairs = PairSampler(tasks=8)(mixture(), torch.Generator().manual_seed(0))
    assert pairs.a.shape == (8, 3, 4, 4)
    rows = Uniform(way=3, shot=1, query=2, tasks=4).draw(
        mixture(), torch.Generator().manual_seed(0)
    )
    assert gather(mixture(), rows).query_x.shape == (4, 6, 3, 4, 4)


def data(name, train, test, channels, size=4) -> DataSet:
    """A prepared data set of so many classes."""
    splits = {"train": train, "val": 3, "test": test}
    stacked = {
        split: stack_classes(
            "images",
            {f"{split}{n}": x for n, x in images(seed, classes, channels, size).items()}
            or {"none": torch.empty(0, channels, size, size).byte()},
        )
        for seed, (split, classes) in enumerate(splits.items())
    }
    if not train:
        none = stacked["train"]
        stacked["train"] = as_split("images", none.x, torch.zeros(1, dtype=torch.int64), ())
    return prepare(name, json.dumps([train, test, channels, size]), lambda: stacked)


def test_data_of_a_mixture(tmp_path, monkeypatch):
    """A source without classes for training is there in tests; what is sealed stays so."""
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    sources = {"a": data("a", 4, 3, 1), "b": data("b", 0, 3, 3)}
    both = load(sources, size=4)
    assert list(both.outlines["train"].parts) == ["a"]
    assert list(both.outlines["test"].parts) == ["a", "b"]
    assert both.open("train").take(torch.tensor([0])).shape == (1, 3, 4, 4)
    assert both.checksum not in [s.checksum for s in sources.values()]
    assert both.facts()["sources"]["b"]["classes"] == {"train": 0, "val": 3, "test": 3}
    with both.sealed("test"), pytest.raises(AssertionError, match="sealed"):
        both.open("test")
    assert len(both.open("test").classes) == 6
    trainval = both.open("train").joined(both.open("val"))
    assert [len(part.classes) for part in trainval.parts.values()] == [7, 3]
    assert trainval.classes[-1] == "b/valx/2"


@pytest.mark.parametrize(("a", "b"), [((8,), (1,)), ((4,), (5,)), ((3, 4, 4), (4, 4, 4))])
def test_only_a_grey_image_is_made_like_another(a, b):
    """One feature is not eight, and three channels are not four."""
    assert same_but_for_grey(a, a)
    assert not same_but_for_grey(a, b)
    assert not same_but_for_grey(b, a)
    assert same_but_for_grey((1, 4, 4), (3, 4, 4))


def test_sources_must_have_one_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    sources = {"a": data("a", 4, 3, 1), "b": data("b", 4, 3, 3, size=5)}
    with pytest.raises(UserError, match=r"a has examples of shape \[1, 4, 4\], b of \[3, 5, 5\]"):
        load(sources, size=4)
    alike = {"grey": data("a", 4, 3, 1), "a": data("b", 4, 3, 3), "b": data("c", 4, 3, 4)}
    with pytest.raises(UserError, match=r"\[3, 4, 4\], b of \[4, 4, 4\]: one network cannot take"):
        load(alike, size=4)
    with pytest.raises(UserError, match=r"say of what, as in data=\[omniglot,glyphs\]"):
        load({}, size=4)


def tokens(seed, length, sizes=(5,)):
    x = torch.randint(1, 5, (2, 4, length), generator=torch.Generator().manual_seed(seed))
    return stack_classes("tokens", {f"{seed}/{c}": x[c].byte() for c in range(2)}, sizes=sizes)


def test_sequences_of_unlike_lengths():
    """The shorter source's are filled up, and all go to the end of the longest that is taken."""
    short, long = tokens(0, 3), tokens(1, 6)
    split = Mixture({"short": short, "long": long}, (6,), "tokens", (5,))
    taken = split.take(torch.tensor([[2, 9], [1, 0]]))
    assert (taken.shape, taken.dtype) == ((2, 2, 6), torch.int64)
    assert taken[0, 0].tolist() == [*short.x[2].tolist(), 0, 0, 0]
    assert taken[0, 1].tolist() == long.x[1].tolist()
    assert split.take(torch.tensor([2, 1])).shape == (2, 3)
    assert split.each()["short"].kind == "tokens"


def test_stored_examples_of_all_the_sources():
    """The same number for the same example of a source, and another for every other."""
    x, first_row = torch.arange(3.0)[:, None], torch.tensor([0, 2, 4])
    a, b = (
        as_split("vectors", x, first_row, ["c", "d"], index=torch.tensor(index))
        for index in ([0, 2, 2, 1], [1, 1, 0, 2])
    )
    split = Mixture({"a": a, "b": b}, (1,), "vectors")
    assert split.stored(torch.arange(8)).tolist() == [0, 2, 2, 1, 4, 4, 3, 5]
    assert split.stored(torch.tensor([[7, 1], [2, 6]])).tolist() == [[5, 2], [2, 3]]
    assert split.each()["b"].stored(torch.arange(4)).tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (grey(), "data: a has token sequences, b images: one network cannot take both"),
        (tokens(1, 4, sizes=(9,)), r"\[5\] values in the token sequences of a, but \[9\] in those"),
    ],
)
def test_sources_that_one_network_cannot_read(tmp_path, monkeypatch, split, said):
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))

    def prepared(name, split):
        splits = {
            s: replace(split, classes=tuple(f"{s}/{c}" for c in split.classes))
            for s in ("train", "val", "test")
        }
        return prepare(name, "key", lambda: splits)

    with pytest.raises(UserError, match=said):
        load({"a": prepared("a", tokens(0, 3)), "b": prepared("b", split)}, size=28)
    joined = load({"a": prepared("a", tokens(0, 3)), "c": prepared("c", tokens(2, 7))}, size=28)
    assert (joined.kind, joined.sizes, joined.input_shape) == ("tokens", (5,), (7,))
