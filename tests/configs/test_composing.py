"""Texts on the command line."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.configs.composing import spelled


@pytest.mark.parametrize(
    "text",
    [
        "run",
        "/a/b-1.5_c",
        "two words",
        "é",
        "(x)",
        "a=b",
        "a'b",
        'a"b',
        "a,b",
        "[a]",
        "#&~",
        "a\\",
        'a\\"b',
        "null",
        "true",
        "1e3",
        " x",
        "range(3)",
        "",
    ],
)
def test_a_text_is_spelled_as_it_is_read(text):
    (read,) = OverridesParser.create().parse_overrides([spelled("name", text)])
    assert (read.key_or_group, read.value()) == ("name", text)
