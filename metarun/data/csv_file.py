"""Your own table: one example a row, as the path of a picture or as numbers in columns."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import torch

from metarun.data import own_pictures
from metarun.data.columns import Asked, Table, places_of, read
from metarun.data.split import Split, as_split
from metarun.data.split_by_class import (
    one_each,
    read_split_file,
    rows_of_classes,
    split_classes,
)
from metarun.data.store import DataSet, fingerprint, prepare
from metarun.data.table import header_of
from metarun.data.told import listening
from metarun.errors import UserError
from metarun.files import sha256_of

FORMAT = "3"  # of what is prepared below; a change to it needs a new number


def load(
    file: str | None,
    root: str | None,
    size: int,
    grey: bool,
    range: Sequence[float] | None,
    label: str | None,
    columns: Sequence[str] | None,
    exclude: Sequence[str],
    min_examples: int,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The examples of the table `file`, which has a column of labels.

    With a column of paths, they are pictures, uint8 [N, 3 or 1, size, size], whose paths start at
    `root` or, without one, at the file's folder. Without, they are the numbers in those columns
    that are measurements, float32 [N, columns]. `label`, `columns` and `exclude` say which columns
    are what. Classes with fewer than `min_examples` are left out. The others are split by
    `split_file` if given, else by a column of splits if there is one, else at random by `fractions`
    and `split_seed`; a column of superclasses groups them. Raises UserError when there is something
    else in the file, or a column that may be no measurement.
    """
    if file is None:
        raise UserError(
            "data=csv needs data.file=FILE.csv, with a column label and one path, or columns of "
            "numbers"
        )
    path = Path(str(file)).expanduser()
    if not path.is_file():
        raise UserError(f"data.file={file}: there is no such file")
    columns = [columns] if isinstance(columns, str) else columns  # data.columns=f0
    exclude = [exclude] if isinstance(exclude, str) else exclude
    asked = Asked(None if label is None else str(label), columns, exclude or [])
    listed = read_split_file(path.parent, split_file)

    def split(table: Table) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str] | None]:
        """The rows of each class of each split, and each class's superclass."""
        classes = rows_of_classes(table.texts["label"])
        above = table.texts.get("superclass")
        return (
            split_classes(
                *(classes, listed, fractions, split_seed, min_examples),
                *(table.texts.get("split"), f"column {table.names.get('split')!r}"),
            ),
            None if above is None else one_each(classes, above, "superclass"),
        )

    def vectors() -> dict[str, Split]:
        table = read(path, asked)
        return stacked(table, *split(table))

    if "path" not in places_of(path, header_of(path), asked):
        key = f"format {FORMAT}, {asked}, {min_examples}, {listed}, {list(fractions)}, "
        return prepare("csv", f"{key}{split_seed}, {sha256_of(path)}", vectors)
    with listening() as told:
        table = read(path, asked)
        splits, superclass_of = split(table)
    folder = path.parent if root is None else Path(str(root)).expanduser()
    paths = located(path, folder, table)
    pictures = {
        split: {name: [paths[row] for row in rows] for name, rows in classes.items()}
        for split, classes in splits.items()
    }
    key = f"format {FORMAT}, size {size}, grey {grey}, range {range}, Pillow {PIL.__version__}, "
    key += f"{superclass_of}, {fingerprint(folder, pictures)}"
    return prepare(
        "csv",
        key,
        lambda: own_pictures.build(
            *(pictures, size, grey, range),
            lambda classes: superclass_of and {name: superclass_of[name] for name in classes},
        ),
        told,
    )


def located(path: Path, folder: Path, table: Table) -> list[Path]:
    """Each row's picture; UserError when one is not there."""
    found = []
    for line, name in zip(table.lines, table.texts["path"].tolist(), strict=True):
        # As it stands; as Windows writes it; with accents as other systems write them.
        spelled = [name, name.replace("\\", "/")]
        spelled += [unicodedata.normalize(form, s) for form in ("NFC", "NFD") for s in spelled]
        picture = next((folder / one for one in spelled if (folder / one).is_file()), None)
        if picture is None:
            raise UserError(
                f"{path}, line {line}: there is no file {folder / name}: data.root=FOLDER says "
                "where paths start"
            )
        found.append(picture)
    return found


def stacked(
    table: Table,
    splits: dict[str, dict[str, np.ndarray]],
    superclass_of: dict[str, str] | None,
) -> dict[str, Split]:
    """The splits of examples that are the numbers in their rows, float32 [N, columns]."""
    assert table.features is not None
    none = [np.empty(0, np.int64)]  # rows of a split without classes
    return {
        split: as_split(
            "vectors",
            torch.from_numpy(table.features[np.concatenate([*none, *classes.values()])]),
            torch.tensor([0, *map(len, classes.values())]).cumsum(0),
            classes,
            superclass_of,
        )
        for split, classes in splits.items()
    }
