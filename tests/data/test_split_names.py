import pytest

from metarun.data.split_names import split_named, splits_named
from metarun.errors import UserError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", " TRAINING ", "tr", "trn", "meta-train", "Meta_Train"]),
        ("val", ["val", "VALID", "Validation", "dev", "validate", "meta_val"]),
        ("test", ["test", "Testing", "tst", "meta test"]),
        (None, ["background", "evaluation", "eval", "images", "contest", "", "trains", "fold"]),
    ],
)
def test_names_that_mean_a_split(split, names):
    assert {split_named(name) for name in names} == {split}


def test_each_split_has_one_name():
    named = splits_named(["Test", "dev", "TRAIN"])
    assert list(named.items()) == [("train", "TRAIN"), ("val", "dev"), ("test", "Test")]
    with pytest.raises(UserError, match="'dev' and 'val' both mean the split val: put them toge"):
        splits_named(["val", "train", "dev"])
