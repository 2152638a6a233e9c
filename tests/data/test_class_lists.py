from pathlib import Path

import pytest

from metarun.data.class_lists import by_class, read_list
from metarun.data.store import SPLITS
from metarun.errors import UserError
from tests.data import layouts

SIZES = {
    "aircraft": (70, 15, 15),
    "dtd": (33, 7, 7),
    "vgg_flower": (71, 15, 16),
    "gtsrb": (0, 0, 43),
    "cifar_fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "chen": (100, 50, 50),
    "feat": (100, 50, 50),
    "meta_dataset": (140, 30, 30),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_no_class_twice(name):
    """The sizes that the papers give."""
    if name in ("cifar_fs", "fc100"):
        listed = layouts.class_splits(name)
    else:
        listed = read_list("cub")[name] if name in read_list("cub") else read_list(name)
    assert tuple(len(listed[split]) for split in SPLITS) == SIZES[name]
    assert len({c for split in SPLITS for c in listed[split]}) == sum(SIZES[name])


def test_chen_is_their_rule():
    """Chen et al.'s write_CUB_filelist.py: base i % 2 = 0, val i % 4 = 1, novel i % 4 = 3."""
    remainders = {"train": (0, 2), "val": (1,), "test": (3,)}
    for split, kept in remainders.items():
        expected = [i + 1 for i in range(200) if i % 4 in kept]
        assert read_list("cub")["chen"][split] == expected


def test_fc100_splits_share_no_superclass():
    listed = read_list("fc100")
    groups = [name for split in SPLITS for name in listed[split]]
    assert [len(listed[split]) for split in SPLITS] == [12, 4, 4]
    assert len(groups) == len(set(groups)) == 20


def test_both_have_all_of_cifar_100_and_the_same_superclasses():
    above = []
    for name in ("cifar_fs", "fc100"):
        pairs = [
            (c, group)
            for split in SPLITS
            for group, classes in read_list(name)[split].items()
            for c in classes
        ]
        assert len(pairs) == 100
        above.append(dict(pairs))
    assert above[0] == above[1]


def test_a_class_without_pictures_is_told():
    listed = {"train": ["a"], "val": [], "test": ["b"]}
    pictures = {"2": "a", "1": "a", "3": "b", "4": "unlisted"}
    found = by_class(listed, pictures, Path("set"))
    assert found == {"train": {"a": ["1", "2"]}, "val": {}, "test": {"b": ["3"]}}
    with pytest.raises(UserError, match="set has no picture of class 'c'"):
        by_class({**listed, "val": ["c"]}, pictures, Path("set"))


def test_names_from_a_mac(tmp_path):
    listed = {"train": ["caf\u00e9"], "val": ["a"], "test": ["b"]}
    class_of = {"1": "cafe\u0301", "2": "a", "3": "b", "0": "cafe\u0301"}
    assert by_class(listed, class_of, tmp_path)["train"] == {"caf\u00e9": ["0", "1"]}
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9'"):
        by_class(listed, class_of | {"4": "caf\u00e9"}, tmp_path)
