"""Names that differ only in how Unicode writes their letters."""

import pytest

from metarun.data.one_form import names_in_one_form, path_in_one_form
from metarun.errors import UserError

COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def test_names_are_composed():
    assert names_in_one_form([APART, "plain"]) == [COMPOSED, "plain"]
    assert names_in_one_form([COMPOSED]) == [COMPOSED]
    with pytest.raises(
        UserError, match=f"there are two classes '{COMPOSED}', which differ only in"
    ):
        names_in_one_form([COMPOSED, "plain", APART])


def test_paths_are_composed():
    seen = {}
    assert path_in_one_form(f"{APART}/1.png", seen) == f"{COMPOSED}/1.png"
    assert path_in_one_form(f"{APART}/2.png", seen) == f"{COMPOSED}/2.png"
    assert path_in_one_form(f"{APART}/2.png", seen) == f"{COMPOSED}/2.png", "as a tar may have it"
    assert path_in_one_form(f"in/{COMPOSED}/1.png", seen) == f"in/{COMPOSED}/1.png"
    with pytest.raises(UserError, match=f"there are two of '{COMPOSED}', which differ only in how"):
        path_in_one_form(f"{COMPOSED}/3.png", seen)
