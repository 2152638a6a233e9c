"""Your own table: one example a row, as the path of a picture or as numbers in columns."""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch

from metarun.data.pictures import decode, picture_splits, shown
from metarun.data.split import Split, as_split
from metarun.data.split_by_class import (
    one_each,
    read_split_file,
    rows_of_classes,
    split_rows,
)
from metarun.data.store import DataSet, file_sha256, fingerprint, prepare
from metarun.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "1"  # of what is prepared below; a change to it needs a new number
NAMED = ("path", "label", "split", "superclass")  # columns that are no features


class Table(NamedTuple):
    """The rows of the file: where they end, and what is in which column."""

    lines: list[int]  # [N]
    texts: dict[str, np.ndarray]  # [N], of those columns of NAMED that there are
    features: np.ndarray | None  # float32 [N, columns]; None if there are paths


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
        raise UserError(
            "data=csv needs data.file=FILE.csv, with a column label and one path, or columns of "
            "numbers"
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"data.file={file}: there is no such file")
    listed = None if split_file is None else read_split_file(path.parent, split_file)

    def split(table: Table) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str] | None]:
        """The rows of each class of each split, and each class's superclass."""
        classes = rows_of_classes(table.texts["label"])
        above = table.texts.get("superclass")
        return (
            split_rows(classes, listed, table.texts.get("split"), fractions, split_seed),
            None if above is None else one_each(classes, above, "superclass"),
        )

    def vectors() -> dict[str, Split]:
        table = read(path)
        return stacked(table, *split(table))

    if "path" not in header_of(path):
        key = f"format {FORMAT}, {listed}, {list(fractions)}, {split_seed}, {file_sha256(path)}"
        return prepare("csv", key, vectors)
    table = read(path)
    splits, superclass_of = split(table)
    folder = path.parent if root is None else Path(root).expanduser()
    paths = located(path, folder, table)
    pictures = {
        split: {name: [paths[row] for row in rows] for name, rows in classes.items()}
        for split, classes in splits.items()
    }
    key = f"format {FORMAT}, size {size}, grey {grey}, Pillow {PIL.__version__}, "
    key += f"{superclass_of}, {fingerprint(folder, pictures)}"
    return prepare(
        "csv",
        key,
        lambda: picture_splits(
            pictures,
            lambda picture: decode(picture, size, grey),
            lambda classes: superclass_of and {name: superclass_of[name] for name in classes},
        ),
    )


def lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row of the file, the names of the columns first, with the line it ends on.

    Raises UserError when it is no table.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark first
            reader, columns = csv.reader(file, strict=True), 0
            for row in reader:
                columns = columns or len(row)
                if len(row) != columns:
                    raise UserError(
                        f"{path}, line {reader.line_num}: it has {len(row)} columns, but the first "
                        f"line has {columns}"
                    )
                yield reader.line_num, [text.strip() for text in row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}: save it as CSV in UTF-8") from None


def header_of(path: Path) -> list[str]:
    """The names of the columns. Raises UserError when there is none of labels."""
    _, header = next(lines_of(path), (0, []))
    if "label" not in header:
        raise UserError(
            f"{path} has no column label, only {', '.join(header) or 'nothing'}: name the column "
            "of the classes so in the first line"
        )
    return header


def read(path: Path) -> Table:
    """What is in the file. Raises UserError naming the first line that cannot be used."""
    header = header_of(path)
    named = {name: header.index(name) for name in NAMED if name in header}
    lines: list[int] = []
    texts: dict[str, list[str]] = {name: [] for name in named}
    features: list[np.ndarray] = []
    columns: list[int] = []  # of numbers
    rows = lines_of(path)
    next(rows)
    for line, row in rows:
        for name, i in named.items():
            if not row[i]:
                raise UserError(f"{path}, line {line}: its {name} is empty")
            texts[name].append(row[i])
        lines.append(line)
        if "path" not in named:
            columns = columns or number_columns(path, header, row)
            features.append(numbers(path, line, header, row, columns))
    if not lines:
        raise UserError(f"{path} has no rows below the names of its columns")
    return Table(
        lines,
        {name: np.array(column) for name, column in texts.items()},
        np.stack(features) if features else None,
    )


def number_columns(path: Path, header: list[str], row: list[str]) -> list[int]:
    """Places of the columns that have a number in the first row; others are told of."""
    others = [i for i, name in enumerate(header) if name not in NAMED]
    found = [i for i in others if number(row[i]) is not None]
    if not found:
        raise UserError(f"{path} has neither a column path nor columns of numbers: add one")
    if left := [header[i] for i in others if i not in found]:
        log.warning("left out %s", shown(left, "column without numbers"))
    return found


def numbers(
    path: Path, line: int, header: list[str], row: list[str], columns: list[int]
) -> np.ndarray:
    """The row's numbers in these columns, float32; UserError naming the first that is none."""
    try:
        with np.errstate(over="ignore"):
            values = np.array([row[i] for i in columns], dtype=np.float32)
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        wrong = next(i for i in columns if number(row[i]) is None)
        raise UserError(
            f"{path}, line {line}: {row[wrong]!r} in column {header[wrong]} is not a finite "
            "number, as the first row has there"
        )
    return values


def located(path: Path, folder: Path, table: Table) -> list[Path]:
    """Each row's picture; UserError when one is not there."""
    found = [folder / name for name in table.texts["path"].tolist()]
    for line, picture in zip(table.lines, found, strict=True):
        if not picture.is_file():
            raise UserError(
                f"{path}, line {line}: there is no file {picture}: data.root=FOLDER says where "
                "paths start"
            )
    return found


def stacked(
    table: Table,
    splits: dict[str, dict[str, np.ndarray]],
    superclass_of: dict[str, str] | None,
) -> dict[str, Split]:
    """The splits of examples that are the numbers in their rows, float32 [N, columns]."""
    assert table.features is not None
    return {
        split: as_split(
            "vectors",
            torch.from_numpy(table.features[np.concatenate(list(classes.values()))]),
            torch.tensor([0, *map(len, classes.values())]).cumsum(0),
            classes,
            superclass_of,
        )
        for split, classes in splits.items()
    }


def number(text: str) -> float | None:
    """The number that the text spells, if it is one that float32 holds."""
    try:
        with np.errstate(over="ignore"):
            value = np.float32(text)
    except ValueError:
        return None
    return float(value) if np.isfinite(value) else None
