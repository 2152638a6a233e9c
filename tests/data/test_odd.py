"""What looks odd is told; ordinary examples are not."""

import pytest
import torch

from metarun.data.odd import look, look_at_names, refuse_one_colour
from metarun.data.split import as_split
from metarun.data.told import listening
from metarun.errors import UserError


def split_of(kind, x):
    return as_split(kind, x, torch.tensor([0, len(x)]), ["a"])


def doubts(**splits):
    with listening() as told:
        look(splits)
    return told.get("doubts", [])


def numbers(seed, count=50):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_ordinary_examples_are_not_doubted():
    x = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    assert not doubts(train=split_of("images", x), test=split_of("images", 255 - x))
    heavy = numbers(0).exp() * torch.tensor([1, 10, 100])
    assert not doubts(train=split_of("vectors", heavy), test=split_of("vectors", numbers(1)))
    bits = (numbers(2) > 1).float()
    assert not doubts(train=split_of("vectors", bits))
    assert not doubts(train=split_of("vectors", torch.zeros(0, 3)))


def test_examples_that_are_all_alike():
    x = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8).repeat(5, 1, 1, 1)
    assert doubts(val=split_of("images", x)) == ["all 5 examples of the val split are alike"]
    x[2, 0, 0, 0] = 7
    assert not doubts(val=split_of("images", x))


def test_one_value_and_one_column_that_dwarf_the_others():
    x = numbers(0)
    x[7, 1] = -9999
    (said,) = doubts(train=split_of("vectors", x[:20]), test=split_of("vectors", x[20:]))
    assert said.startswith("number 1 is -9999 in one example, but within ")
    (said,) = doubts(train=split_of("vectors", numbers(0) * torch.tensor([1, 1e5, 2])))
    assert said.startswith("number 1 dwarfs the other numbers: it spreads over ")


def test_a_number_that_is_none():
    x = numbers(0)
    x[4, 2] = torch.nan
    with pytest.raises(UserError, match="example 4 has a number that is not finite"):
        doubts(train=split_of("vectors", x))


def test_pictures_of_one_colour():
    x = torch.full((4, 3, 8, 8), 9, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"all 8 pictures are one colour, \[9, 9, 9\] of 255"):
        refuse_one_colour({"train": split_of("images", x), "test": split_of("images", x)})
    refuse_one_colour({"train": split_of("images", x), "test": split_of("images", x + 1)})
    refuse_one_colour({"train": split_of("images", x[:1])})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["klee", "moos", "Klee"], "'klee' and 'Klee' differ in capitals alone: they are read as"),
        (["rot klee", "rot  klee"], "'rot klee' and 'rot  klee' differ in blanks alone: "),
        (["a b", "AB", "ab"], "'a b' and 'AB', 'a b' and 'ab' differ in capitals or blanks alone"),
        ([f"{k}{i}" for i in range(5) for k in ("n", "N")], "'n2' and 'N2' and 2 more pairs"),
    ],
)
def test_two_spellings_of_one_class(names, said):
    with listening() as told:
        look_at_names(names)
    (doubted,) = told["doubts"]
    assert said in doubted


def test_other_names_are_not_doubted():
    with listening() as told:
        look_at_names(["klee", "kleee", "a", "A", "Latin/b", "Latin/B", "dog/1", "cat/1", "klee"])
    assert not told
