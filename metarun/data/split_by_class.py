"""Which classes are for training, for validation and for the test: as listed, or by chance."""

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from metarun.data.store import SPLITS, refuse_shared_classes
from metarun.errors import UserError

OTHER_NAMES = {"valid": "val", "validation": "val"}  # of splits

T = TypeVar("T")  # what stands for a class: its pictures, its rows


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


def read_split_file(folder: Path, split_file: str) -> dict[str, list[str]]:
    """Class names of each split, from a CSV or JSON file; a relative path may start at `folder`."""
    path = Path(split_file).expanduser()
    if not path.is_file():
        path = folder / path
    if not path.is_file():
        raise UserError(f"data.split_file={split_file} is neither a file here nor in {folder}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark at the start
        pairs = json_pairs(text) if path.suffix.lower() == ".json" else csv_pairs(text)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f"cannot read {path}: it must be a CSV file with the columns label (or class) and "
            'split, or a JSON file {"train": [classes], "val": [...], "test": [...]}'
        ) from None
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, given in dict.fromkeys(pairs):
        split = OTHER_NAMES.get(given, given)
        if split not in listed:
            raise UserError(f"{path} has the split {given!r}: use train, val and test")
        listed[split].append(name)
    for split, names in listed.items():
        if not names:
            raise UserError(f"{path} gives no class to {split}: train, val and test need some each")
    return listed


def csv_pairs(text: str) -> list[tuple[str, str]]:
    """(class, split) of every row, whether it stands for a class or for a picture."""
    rows = csv.DictReader(text.splitlines())
    column = next(name for name in ("label", "class") if name in (rows.fieldnames or ()))
    return [(row[column].strip(), row["split"].strip()) for row in rows]


def json_pairs(text: str) -> list[tuple[str, str]]:
    """(class, split) of a JSON object {split: [classes]}."""
    return [(str(name), split) for split, names in json.loads(text).items() for name in names]


def split_rows(
    classes: Mapping[str, np.ndarray],
    listed: dict[str, list[str]] | None,
    column: np.ndarray | None,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """The classes, known by their rows, as `listed` if that is given, else as the data's `column`
    of splits [N] has it if there is one, else at random."""
    if listed is not None:
        return by_list(classes, listed)
    if column is not None:
        return by_column(classes, column)
    return by_chance(classes, fractions, seed)


def rows_of_classes(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each class, in order, from each row's label [N]; the classes are sorted."""
    names, place = np.unique(labels, return_inverse=True)
    rows = np.split(place.argsort(kind="stable"), np.bincount(place).cumsum()[:-1])
    return dict(zip(map(str, names.tolist()), rows, strict=True))


def by_column(
    classes: Mapping[str, np.ndarray], column: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """The classes as a column [N] of the data has it, in which each of their rows has its split."""
    splits: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for name, given in one_each(classes, column, "split").items():
        split = OTHER_NAMES.get(given, given)
        if split not in splits:
            raise UserError(
                f"class {name!r} is in the split {given!r}: the splits are train, val and test"
            )
        splits[split][name] = classes[name]
    for split, inside in splits.items():
        if not inside:
            raise UserError(
                f"no class is in the split {split}: train, val and test need some each; without "
                "the splits in the data, data.fractions make them"
            )
    return splits


def one_each(classes: Mapping[str, np.ndarray], column: np.ndarray, what: str) -> dict[str, str]:
    """What the column [N] says of each class; UserError when its rows do not agree."""
    said = {}
    for name, rows in classes.items():
        found = np.unique(column[rows]).tolist()
        if len(found) > 1:
            raise UserError(
                f"class {name!r} has the {what} {found[0]!r} in some rows and {found[1]!r} in "
                "others: give all its rows one"
            )
        said[name] = str(found[0])
    return said
