import numpy as np
import pytest

from metarun.data.labelled_arrays import Labelled, fill
from metarun.errors import UserError


def content(*names):
    """An image of each class."""
    count = len(names)
    return Labelled(
        [np.zeros((count, 4, 4, 3), np.uint8)], np.arange(count), dict(enumerate(names))
    )


def test_names_are_in_one_form():
    _, _, classes, _ = fill(content("cafe\u0301", "a"), 4, "Reading")
    assert classes == ["caf\u00e9", "a"]
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9', which differ only in"):
        fill(content("cafe\u0301", "caf\u00e9"), 4, "Reading")


def test_names_that_are_the_same_stay():
    """As ImageNet has two cranes, the bird and the machine."""
    _, first_row, classes, _ = fill(content("crane", "crane"), 4, "Reading")
    assert (classes, first_row.tolist()) == (["crane", "crane"], [0, 1, 2])
