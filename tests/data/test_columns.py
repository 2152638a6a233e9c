"""What columns are taken to be, and how a person is asked about them."""

import csv
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.errors import UserError
from tests.data.tables import load, rows_of, written


@pytest.mark.parametrize(
    "name",
    [
        "n",
        "Blattbreite (mm)",
        "größe",
        "a[1],b",
        "it's",
        'the "n"',
        "null",
        "1e3",
        "a\\b$HOME",
        "=x",
    ],
)
def test_the_printed_way_out_can_be_typed(tmp_path, name):
    """Through the shell and Hydra the column that is asked about is left out."""
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        ids = [(7 * i + i % 3, x, label) for i, (label, x) in enumerate(rows_of())]
        csv.writer(file).writerows([(name, "f", "label"), *ids])
    with pytest.raises(UserError) as refused:
        load(tmp_path / "t.csv")
    said = str(refused.value)
    (typed,) = shlex.split(said[: said.index(" leaves it out")].partition("has: ")[2])
    (read,) = OverridesParser.create().parse_overrides([typed])
    exclude = [str(one) for one in read.value()]
    assert load(tmp_path / "t.csv", exclude=exclude).facts()["left_out"] == {name: "data.exclude"}


@pytest.mark.parametrize(
    ("separator", "numbers", "named"),
    [
        (";", ["16.514,12", "1.200,5", "99,5", "1.000,1"], "16.514,12"),
        (";", ["514,12", "99,5", "1.200,5", "3"], "1.200,5"),
        (",", ["16,514.12", "1,200.5", "99.5", "2.5"], "16,514.12"),
        (",", ["1,234", "5,678", "9,012", "7"], "1,234"),
        ("\t", ["1'234", "12 345.5", "", "1\u202f234"], "1'234"),
        (",", ["16,5", "3,25", "4,5", "7,1"], "16,5"),
        (";", ["1.234.567", "7.234.567", "2", "4"], "1.234.567"),
    ],
)
def test_marks_of_thousands(tmp_path, separator, numbers, named):
    """They are asked about, never left out in silence; the printed way out leaves them out."""
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(x, i, label) for x, i, label in zip(numbers, "2358", "abca", strict=True)]
        csv.writer(file, delimiter=separator).writerows([("mass", "f", "label"), *rows])
    with pytest.raises(UserError) as refused:
        load(tmp_path / "t.csv")
    said = str(refused.value)
    assert f"column 'mass' has {named!r}: write its numbers without marks of thousands" in said
    assert said.endswith("such as 16514.12, or leave it out: data.exclude=[mass]")
    assert load(tmp_path / "t.csv", exclude=["mass"]).facts()["features"] == ["f"]


@pytest.mark.parametrize("text", ["31.12.2024", "1.2.3", "10.0.0.1", "A 100 200", "1,200 m", ""])
def test_what_is_no_number_with_marks(tmp_path, text):
    lines = [f"{text};{x};{label}" for label, x in rows_of()]
    facts = load(written(tmp_path / "t.csv", "note;f;label", *lines)).facts()
    assert facts["left_out"] == {"note": "no numbers" if text else "empty"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", lambda i: 45000 + i * i % 91),
        ("weight", lambda i: 45000 + i * i % 91),
        ("time", lambda i: 25000 + i * i % 91),
        ("time_ms", lambda i: 45000 + i * i % 91 + 0.5),
        ("reaction_time", lambda i: 300 + i * i % 91),
    ],
)
def test_what_only_looks_like_dates(tmp_path, name, value):
    lines = [f"{value(i)},{x},{label}" for i, (label, x) in enumerate(rows_of())]
    facts = load(written(tmp_path / "t.csv", f"{name},f,label", *lines)).facts()
    assert facts["features"] == [name, "f"]
