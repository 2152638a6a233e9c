"""Which classes are for training, for validation and for the test: as listed, or by chance."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from metarun.data.one_form import names_in_one_form, one_form
from metarun.data.split_names import split_named
from metarun.data.store import SPLITS, refuse_shared_classes
from metarun.data.table import LABELS, columns_named, lines_of
from metarun.data.told import doubt, few, tell
from metarun.errors import UserError

T = TypeVar("T", bound=Collection[Any])  # what stands for a class: its pictures, its rows


class SplitList(NamedTuple):
    """The class names of each split, as the user's file lists them."""

    file: str
    classes: dict[str, list[str]]


def split_classes(
    classes: Mapping[str, T],
    listed: SplitList | None,
    fractions: Sequence[float],
    seed: int,
    min_examples: int = 0,
    column: np.ndarray | None = None,
    column_name: str = "",
) -> dict[str, dict[str, T]]:
    """The classes as `listed` if that is given, else as the data's `column` of splits [N] has it if
    there is one, else at random; and tells which. Those with fewer examples are left out."""
    if listed is not None:
        tell("split", f"by data.split_file={listed.file}")
        splits = by_list(classes, listed.classes)
        return {split: large_enough(inside, min_examples) for split, inside in splits.items()}
    classes = large_enough(classes, min_examples)
    if column is not None:
        tell("split", f"by {column_name}")
        return by_column(classes, column)
    tell("split", f"at random by data.split_seed={seed}")
    return by_chance(classes, fractions, seed)


def large_enough(classes: Mapping[str, T], min_examples: int) -> dict[str, T]:
    """The classes with so many examples; how many others are left out is told."""
    small = [name for name, examples in classes.items() if len(examples) < min_examples]
    if small and len(small) == len(classes):
        raise UserError(
            f"data.min_examples={min_examples} leaves out all {len(classes)} classes: the largest "
            f"has {max(map(len, classes.values()))} examples"
        )
    if small:
        doubt(
            f"left out {len(small)} of {len(classes)} classes, which have fewer than "
            f"data.min_examples={min_examples} examples: {few(small)}"
        )
    return {name: classes[name] for name in classes if name not in set(small)}


def by_list(classes: Mapping[str, T], listed: dict[str, list[str]]) -> dict[str, dict[str, T]]:
    """The classes as the split file lists them; those it does not name are left out."""
    for name in (name for names in listed.values() for name in names):
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0)[0]
            raise UserError(
                f"the data has no class {name!r}, which data.split_file names; is {near!r} meant?"
            )
    splits = {split: {name: classes[name] for name in listed[split]} for split in SPLITS}
    refuse_shared_classes(splits)
    return splits


def by_chance(
    classes: Mapping[str, T], fractions: Sequence[float], seed: int
) -> dict[str, dict[str, T]]:
    """The classes split at random, each split getting one at least."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"data.fractions={list(fractions)} must be three positive shares that add up to 1, "
            "such as [0.64, 0.16, 0.2]"
        )
    if len(classes) < 3:
        raise UserError(
            f"{len(classes)} classes cannot be split in three: train, val and test share "
            "no class, so at least 3 are needed"
        )
    generator = torch.Generator().manual_seed(seed)
    names = list(classes)
    order = torch.rand(len(names), generator=generator).argsort().tolist()
    val = max(1, round(fractions[1] * len(names)))
    test = max(1, min(round(fractions[2] * len(names)), len(names) - val - 1))
    val = min(val, len(names) - test - 1)
    parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    return {split: {names[i]: classes[names[i]] for i in sorted(parts[split])} for split in SPLITS}


def by_column(classes: Mapping[str, T], column: np.ndarray) -> dict[str, dict[str, T]]:
    """The classes as a column [N] of the data has it, in which each of their rows has its split."""
    splits: dict[str, dict[str, T]] = {split: {} for split in SPLITS}
    for name, given in one_each(classes, column, "split").items():
        split = split_named(given)
        if split is None:
            raise UserError(
                f"class {name!r} is in the split {given!r}: the splits are train, val and test"
            )
        splits[split][name] = classes[name]
    refuse_incomplete(splits, "the data's column of splits")
    return splits


def refuse_incomplete(splits: Mapping[str, Collection[Any]], where: str) -> None:
    """Raise UserError unless each split has classes, or the test alone."""
    lacking = [split for split in SPLITS if not splits[split]]
    if lacking and lacking != ["train", "val"]:
        raise UserError(
            f"{where} gives no class to {' and '.join(lacking)}: train, val and test need some "
            "each (test alone will do for mode=test and mode=embed)"
        )


def read_split_file(folder: Path, split_file: str | None) -> SplitList | None:
    """Class names of each split, from a CSV or JSON file; a relative path may start at `folder`."""
    if split_file is None:
        return None
    path = Path(split_file).expanduser()
    if not path.is_file():
        path = folder / path
    if not path.is_file():
        raise UserError(f"data.split_file={split_file} is neither a file here nor in {folder}")
    try:
        pairs = json_pairs(path) if path.suffix.lower() == ".json" else csv_pairs(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read {path}: it must be a CSV file with the columns label (or class) and "
            'split, or a JSON file {"train": [classes], "val": [...], "test": [...]}'
        ) from None
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, given in dict.fromkeys((one_form(name), given) for name, given in pairs):
        split = split_named(given)
        if split is None:
            raise UserError(f"{path} has the split {given!r}: use train, val and test")
        listed[split].append(name)
    refuse_incomplete(listed, str(path))
    return SplitList(split_file, listed)


def csv_pairs(path: Path) -> list[tuple[str, str]]:
    """(class, split) of every row, whether it stands for a class or for a picture."""
    header, *rows = [cells for _, cells in lines_of(path)] or [[]]
    label, split = (columns_named(header, names) for names in (LABELS, ("split",)))
    if len(label) != 1 or len(split) != 1:
        raise KeyError("label")
    return [(row[label[0]], row[split[0]]) for row in rows]


def json_pairs(path: Path) -> list[tuple[str, str]]:
    """(class, split) of a JSON object {split: [classes]}."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))  # spreadsheets put a mark first
    return [(str(name), split) for split, names in content.items() for name in names]


def rows_of_classes(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each class, in order, from each row's label [N]; the classes are sorted."""
    values, place = np.unique(labels, return_inverse=True)
    rows = np.split(place.argsort(kind="stable"), np.bincount(place).cumsum()[:-1])
    return dict(zip(names_in_one_form(map(str, values.tolist())), rows, strict=True))


def one_each(classes: Mapping[str, Any], column: np.ndarray, what: str) -> dict[str, str]:
    """What the column [N] says of each class; UserError when its rows do not agree."""
    said = {}
    for name, rows in classes.items():
        found = sorted({one_form(str(value)) for value in np.unique(column[rows]).tolist()})
        if len(found) > 1:
            raise UserError(
                f"class {name!r} has the {what} {found[0]!r} in some rows and {found[1]!r} in "
                "others: give all its rows one"
            )
        said[name] = found[0]
    return said
