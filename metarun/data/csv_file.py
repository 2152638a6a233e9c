"""Your own table: one example a row, as the path of a picture or as numbers in columns."""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch

from metarun.data.pictures import decode, fingerprint, picture_splits, shown
from metarun.data.split import Split, as_split
from metarun.data.split_by_class import (
    one_each,
    read_split_file,
    rows_of_classes,
    split_rows,
)
from metarun.data.store import DataSet, file_sha256, prepare
from metarun.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "1"  # of what is prepared below; a change to it needs a new number
NAMED = ("path", "label", "split", "superclass")  # columns that are no features

Row = tuple[int, dict[str, str]]  # its last line in the file, and its text in each column


class Table(NamedTuple):
    """The rows of the file, and which of them are which class's in which split."""

    rows: list[Row]
    splits: dict[str, dict[str, np.ndarray]]
    superclass_of: dict[str, str] | None


def load(
    file: str | None,
    root: str | None,
    size: int,
    grey: bool,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The examples of the CSV `file`, which has a column `label`.

    With a column `path`, they are pictures, uint8 [N, 3 or 1, size, size], whose paths start at
    `root` or, without one, at the file's folder. Without, they are the numbers in all columns that
    have numbers, float32 [N, columns]. Classes are split by `split_file` if given, else by a column
    `split` if there is one, else at random by `fractions` and `split_seed`; a column `superclass`
    groups them. Raises UserError naming the line when there is something else in it.
    """
    if file is None:
        raise UserError("data=csv needs data.file=FILE.csv, with a column label and one path")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"data.file={file}: there is no such file")
    columns = next(rows_of(path))[1].keys()
    listed = None if split_file is None else read_split_file(path.parent, split_file)
    if "path" not in columns:
        key = f"format {FORMAT}, {listed}, {list(fractions)}, {split_seed}, {file_sha256(path)}"
        return prepare("csv", key, lambda: vectors(path, read(path, listed, fractions, split_seed)))
    table = read(path, listed, fractions, split_seed)
    folder = path.parent if root is None else Path(root).expanduser()
    paths = located(path, folder, table.rows)
    pictures = {
        split: {name: [paths[row] for row in rows] for name, rows in classes.items()}
        for split, classes in table.splits.items()
    }
    key = f"format {FORMAT}, size {size}, grey {grey}, Pillow {PIL.__version__}, "
    key += f"{table.superclass_of}, {fingerprint(folder, pictures)}"

    def build() -> dict[str, Split]:
        of_class = table.superclass_of
        return picture_splits(
            pictures,
            lambda picture: decode(picture, size, grey),
            lambda classes: of_class and {name: of_class[name] for name in classes},
        )

    return prepare("csv", key, build)


def rows_of(path: Path) -> Iterator[Row]:
    """Every row of the file. Raises UserError when it is no table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark first
            reader = csv.DictReader(file, restkey="", strict=True)
            row = None
            for row in reader:
                if "" in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: it has not as many columns as the first "
                        f"line, {len(reader.fieldnames or ())}"
                    )
                yield reader.line_num, {name.strip(): text.strip() for name, text in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}: save it as CSV in UTF-8") from None
    if row is None:
        raise UserError(f"{path} has no rows")


def read(
    path: Path, listed: dict[str, list[str]] | None, fractions: Sequence[float], split_seed: int
) -> Table:
    """The rows of the file, and the splits of their classes."""
    rows = list(rows_of(path))
    if "label" not in rows[0][1]:
        raise UserError(
            f"{path} has no column label, only {', '.join(rows[0][1])}: name the column of the "
            "classes so"
        )
    given = {name: column(path, rows, name) for name in NAMED[1:] if name in rows[0][1]}
    classes = rows_of_classes(given["label"])
    splits = split_rows(classes, listed, given.get("split"), fractions, split_seed)
    above = one_each(classes, given["superclass"], "superclass") if "superclass" in given else None
    return Table(rows, splits, above)


def column(path: Path, rows: list[Row], name: str) -> np.ndarray:
    """The texts [N] of a column; UserError when one is empty."""
    for line, row in rows:
        if not row[name]:
            raise UserError(f"{path}, line {line}: its {name} is empty")
    return np.array([row[name] for _, row in rows])


def located(path: Path, folder: Path, rows: list[Row]) -> list[Path]:
    """Each row's picture; UserError when one is not there."""
    for line, row in rows:
        if not (folder / row["path"]).is_file():
            raise UserError(
                f"{path}, line {line}: there is no file {row['path']!r} in {folder}: "
                "data.root=FOLDER says where paths start"
            )
    return [folder / row["path"] for _, row in rows]


def vectors(path: Path, table: Table) -> dict[str, Split]:
    """The splits of examples that are the numbers in their rows, float32 [N, columns]."""
    names = [name for name in table.rows[0][1] if name not in NAMED]
    features = [name for name in names if number(table.rows[0][1][name]) is not None]
    if not features:
        raise UserError(f"{path} has neither a column path nor columns of numbers: add one")
    if others := [name for name in names if name not in features]:
        log.warning("left out %s", shown(others, "column without numbers"))
    return {
        split: as_split(
            torch.tensor(
                [
                    numbers(path, table.rows[row], features)
                    for rows in classes.values()
                    for row in rows
                ]
            ),
            torch.tensor([0, *map(len, classes.values())]).cumsum(0),
            classes,
            table.superclass_of,
            (0.0,),
            (1.0,),
        )
        for split, classes in table.splits.items()
    }


def numbers(path: Path, row: Row, features: Sequence[str]) -> list[float]:
    """The row's numbers; UserError naming the first that is none."""
    values = [number(row[1][name]) for name in features]
    if None in values:
        name = features[values.index(None)]
        raise UserError(
            f"{path}, line {row[0]}: {row[1][name]!r} in column {name} is not a finite number, as "
            "it is in the first row"
        )
    return [value for value in values if value is not None]


def number(text: str) -> float | None:
    """The finite number that the text spells, if it does."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
