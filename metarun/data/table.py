"""Tables of text, as programs and spreadsheets write them: CSV, and what is called so."""

import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from metarun.data.split_names import folded
from metarun.errors import UserError

SEPARATORS = ",;\t|"  # the last three go with decimal commas
SAMPLE = 1 << 16  # characters by which the separator is known
LABELS = ("label", "class", "target", "y")  # what a column of classes is called


def lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row of the file, the names of the columns first, with the line it ends on.

    Rows without any text are left out. Raises UserError when it is no table.
    """
    columns = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark first
            separator = separator_of(file.read(SAMPLE))
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                cells = [text.strip() for text in row]
                if not any(cells) or (not columns and is_excels(separator.join(row))):
                    continue
                columns = columns or len(cells)
                while len(cells) > columns and not cells[-1]:
                    cells.pop()
                if len(cells) != columns:
                    raise UserError(
                        f"{path}, line {reader.line_num}: it has {len(cells)} columns, but the "
                        f"first line has {columns}"
                    )
                yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}: save it as CSV in UTF-8") from None


def separator_of(sample: str) -> str:
    """What stands between the columns: it makes rows of the same length, and the longest."""
    lines = [line for line in sample.splitlines() if line.strip()]
    if lines and is_excels(lines[0]):
        return lines[0][4]
    # The last line may be cut; a hundred tell enough.
    lines = lines[: min(100, max(1, len(lines) - 1))] if len(sample) == SAMPLE else lines[:100]

    def fits(separator: str) -> tuple[bool, int]:
        try:
            lengths = [len(row) for row in csv.reader(lines, delimiter=separator)]
        except csv.Error:
            return False, 0
        return len(set(lengths)) == 1 and lengths[0] > 1, max(lengths[:1], default=0)

    return max(SEPARATORS, key=fits)


def is_excels(line: str) -> bool:
    """Whether this is the first line `sep=;` that Excel understands."""
    return line[:4] == "sep=" and line[4:] in tuple(SEPARATORS)


def separator_at(path: Path) -> str:
    """What stands between the columns of this file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        return separator_of(file.read(SAMPLE))


def header_of(path: Path) -> list[str]:
    """The names of the columns; none if the file is empty."""
    return next(lines_of(path), (0, list[str]()))[1]


def columns_named(header: Sequence[str], names: Collection[str]) -> list[int]:
    """Places of the columns that have one of these names, however it is written."""
    return [i for i, name in enumerate(header) if folded(name) in names]
