"""Which classes are in which split, as the papers have it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from metarun.data.one_form import names_in_one_form
from metarun.data.store import SPLITS
from metarun.errors import UserError


def read_list(name: str) -> dict[str, Any]:
    """The committed class list of a data set."""
    path = Path(__file__).parent / "class_splits" / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


Picture = TypeVar("Picture", str, int)  # its path or its row in `source`


def by_class(
    listed: Mapping[str, Iterable[str]], class_of: Mapping[Picture, str], source: Path
) -> dict[str, dict[str, list[Picture]]]:
    """The pictures of each listed class of each split, sorted, from each picture's class.

    Raises UserError when a class has none, or two differ only in how Unicode writes them.
    """
    classes = list(dict.fromkeys(class_of.values()))
    names = dict(zip(classes, names_in_one_form(classes), strict=True))
    pictures: dict[str, list[Picture]] = {}
    for picture in sorted(class_of):
        pictures.setdefault(names[class_of[picture]], []).append(picture)
    for name in (name for split in SPLITS for name in listed[split]):
        if name not in pictures:
            raise UserError(f"{source} has no picture of class {name!r}: it is not complete")
    return {split: {name: pictures[name] for name in listed[split]} for split in SPLITS}
