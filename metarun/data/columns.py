"""What the columns of a person's table are: label, path, split, superclass, and measurements.

It depends on the names of the columns and on what all rows have there, never on the rows' order.
"""

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.data.one_form import one_form
from metarun.data.split_names import folded, split_named
from metarun.data.table import LABELS, columns_named, lines_of, separator_at
from metarun.data.told import doubt, few, tell
from metarun.errors import UserError

ROLES = {  # of columns that are no measurements, and what those are called
    "label": LABELS,
    "path": ("path", "filepath", "filename", "file", "imagepath"),
    "split": ("split",),
    "superclass": ("superclass",),
}
NEAR = 0.8  # likeness of a name to one of these, from which it may be a slip
MANY = 10  # rows in which a measurement in whole numbers is not always another one
ID = re.compile(r"(?i:(^|[-_ .])(id|idx|index|uid|uuid|nr|no|#)$)|[a-z]I[dD]$")
FOLDS = ("fold", "folds", "kfold", "cv", "cvfold")
DATES = re.compile(
    r"(date|datum|fecha)([/+]?(time|uhrzeit|zeit|hora))?|timestamp|zeitstempel"
    r"|(created|updated|modified|recorded)(at|on)"
)
OF_DATES = {"date", "datum", "fecha", "time", "datetime"}  # words in names of Excel's days
EXCELS = (30000, 60000)  # its days from 1982 to 2064
NO_TEXTS = ("null", "true", "false", "nan", "inf")  # to Hydra
# 16.514,12 and 16,514.12 and 16'514; or 16,5.
MARKED = r"[-+]?(\d{1,3}([.,'’ \u00a0\u202f]\d{3})+([.,]\d+)?|\d+,\d+)"
SECONDS = (9.4e8, 2.2e9)  # Unix time from 1999 to 2039


class Asked(NamedTuple):
    """What the person says of the columns, by data.label, data.columns and data.exclude; the last
    two may have * for any text."""

    label: str | None
    columns: Sequence[str] | None
    exclude: Sequence[str]


class Table(NamedTuple):
    """The rows of the file: where they end, and what is in which column."""

    lines: list[int]  # [N]
    names: dict[str, str]  # of the columns that have a role
    texts: dict[str, np.ndarray]  # [N], of those roles
    features: np.ndarray | None  # float32 [N, columns]; None if there are paths


def places_of(path: Path, header: Sequence[str], asked: Asked) -> dict[str, int]:
    """The column of each role that has one; UserError when that cannot be told."""
    excluded = matching(path, header, asked.exclude, "data.exclude")
    chosen = matching(path, header, asked.columns or (), "data.columns")
    places: dict[str, int] = {}
    for role, names in ROLES.items():
        named = asked.label if role == "label" else None
        found = [i for i in columns_named(header, names) if i not in excluded]
        if named is not None:
            found = list(matching(path, header, [named], "data.label"))[:1]
        elif role == "path" and asked.columns is not None:
            found = [i for i in found if i in chosen]
        if len(found) > 1:
            both = " and ".join(repr(header[i]) for i in found)
            likely = header[min(found, key=lambda i: names.index(folded(header[i])))]
            key = naming("data.label", likely) if role == "label" else "data.exclude=[NAME]"
            raise UserError(f"{path}: {both} can both be the {role}: {key} says which is which")
        if found:
            places[role] = found[0]
    if "label" not in places:
        near = nearest(header, LABELS)
        raise UserError(
            f"{path} has no column label, only {few(list(header)) or 'nothing'}: "
            + (f"is {near!r} meant? " if near else "")
            + f"{naming('data.label', near or 'NAME')} says which column has the classes"
        )
    return places


def read(path: Path, asked: Asked) -> Table:
    """What is in the file. Raises UserError naming the first line that cannot be used, or the
    column that may be no measurement."""
    (_, header), *rows = [*lines_of(path)] or [(0, [])]
    places = places_of(path, header, asked)
    if not rows:
        raise UserError(f"{path} has no rows below the names of its columns")
    lines = [line for line, _ in rows]
    columns = list(zip(*(cells for _, cells in rows), strict=True))
    names = {role: header[place] for role, place in places.items()}
    texts: dict[str, np.ndarray] = {}
    for role, place in places.items():
        if "" in columns[place]:
            line = lines[columns[place].index("")]
            raise UserError(f"{path}, line {line}: its {header[place]} is empty")
        texts[role] = np.array(columns[place])
    others = [i for i in range(len(header)) if i not in places.values()]
    finding = Measurements(path, header, asked, lines, separator_at(path) != ",")
    if "path" in places and (asked.columns or folded(header[places["path"]]) == "path"):
        finding.leave_out(columns, others)
        return Table(lines, names, texts, None)
    measured = finding.among(columns, others, texts["label"])
    if "path" in places:
        if not measured:
            return Table(lines, names, texts, None)
        name = header[places["path"]]
        raise UserError(
            f"{path}: column {name!r} may have paths of pictures, but there are columns of numbers "
            f"beside: {naming_one('data.columns', name)} takes the pictures, "
            f"{naming_one('data.exclude', name)} the numbers"
        )
    if not measured:
        raise UserError(
            f"{path} has neither a column path nor columns of numbers that are measurements: add "
            "one, or say with data.columns=[NAME,...] which they are"
        )
    tell("features", [header[i] for i in measured])
    features = np.stack(list(measured.values()), axis=1).astype(np.float32)
    return Table(lines, names, texts, features)


class Measurements(NamedTuple):
    """Finds the columns of a table that are measurements."""

    path: Path
    header: Sequence[str]
    asked: Asked
    lines: list[int]
    decimal_commas: bool  # whether there may be some: what separates columns is no comma

    def leave_out(self, columns: Sequence[Sequence[str]], others: Iterable[int]) -> None:
        """Tell of the columns beside the paths of pictures; UserError if one may have a role."""
        excluded = matching(self.path, self.header, self.asked.exclude, "data.exclude")
        for i in others:
            if i not in excluded:
                self.refuse_misnamed(self.header[i], columns[i])
        if names := [self.header[i] for i in others]:
            tell("left_out", dict.fromkeys(names, "beside the paths"))

    def among(
        self, columns: Sequence[Sequence[str]], others: Iterable[int], labels: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Those of the `others`, with their numbers [N]; which are left out, and why, is told."""
        chosen = matching(self.path, self.header, self.asked.columns or (), "data.columns")
        excluded = matching(self.path, self.header, self.asked.exclude, "data.exclude")
        _, place = np.unique(labels, return_inverse=True)
        left_out: dict[str, str] = {}
        found: dict[int, np.ndarray] = {}
        for i in others:
            name = self.header[i]
            if i in excluded:
                left_out[name] = "data.exclude"
                continue
            if self.asked.columns is not None and i not in chosen:
                left_out[name] = "not in data.columns"
                continue
            values = self.numbers(name, columns[i])
            if values is None:
                if i in chosen and "*" not in "".join(self.asked.columns or ()):
                    raise UserError(f"{self.path}: data.columns has {name!r}, which has no numbers")
                if i not in chosen:
                    self.refuse_misnamed(name, columns[i])
                left_out[name] = "empty" if not any(columns[i]) else "no numbers"
            elif i not in chosen and (reason := no_measurement(name, values, place)):
                left_out[name] = reason
            else:
                if i not in chosen:
                    self.doubt_measurement(name, values, place)
                found[i] = values
        if left_out:
            tell("left_out", left_out)
        return found

    def numbers(self, name: str, texts: Sequence[str]) -> np.ndarray | None:
        """The column's numbers, float64 [N]; None if most of it is something else."""
        if self.decimal_commas and any("," in text for text in texts):
            texts = self.with_points(name, texts)
        values = np.array([number(text) for text in texts])
        wrong = np.flatnonzero(np.isnan(values))
        self.refuse_marks(name, [texts[i] for i in wrong.tolist()], len(values))
        if len(wrong) * 2 >= len(values):
            return None
        if len(wrong):
            raise UserError(
                f"{self.path}, line {self.lines[wrong[0]]}: {texts[wrong[0]]!r} in column {name} "
                f"is not a finite number, as other rows have there: mend it, or leave the column "
                f"out: {naming_one('data.exclude', name)}"
            )
        return values

    def refuse_marks(self, name: str, wrong: Sequence[str], count: int) -> None:
        """Raise UserError when the `wrong` texts, of `count`, hold numbers with marks of thousands,
        or with decimal commas that are none here, and most of the column is numbers."""
        marked = [text for text in wrong if re.fullmatch(MARKED, text)]
        if marked and (count - len(wrong) + len(marked)) * 2 > count:
            comma = " or comma" if self.decimal_commas else ""
            raise UserError(
                f"{self.path}: column {name!r} has {marked[0]!r}: write its numbers without marks "
                f"of thousands and with a decimal point{comma}, such as 16514.12, or leave it out: "
                f"{naming_one('data.exclude', name)}"
            )

    def with_points(self, name: str, texts: Sequence[str]) -> list[str]:
        """The texts with points for decimal commas; UserError when there are both."""
        comma, point = (
            {t for t in texts if re.fullmatch(rf"[-+]?\d*{mark}\d+([eE][-+]?\d+)?", t)}
            for mark in (",", r"\.")
        )
        if comma and point:
            raise UserError(
                f"{self.path}: column {name} has both {min(comma)} and {min(point)}: write all "
                "its numbers with a decimal point, or all with a comma"
            )
        return [text.replace(",", ".") if text in comma else text for text in texts]

    def refuse_misnamed(self, name: str, texts: Sequence[str]) -> None:
        """Raise UserError when a column without numbers may be meant for a role."""
        for role, names in ROLES.items():
            if role == "label" or columns_named(self.header, names):
                continue
            like = difflib.SequenceMatcher(None, folded(name), role).ratio() >= NEAR
            if role == "split":
                like = like or all(map(split_named, texts))
            if like:
                raise UserError(
                    f"{self.path}: is column {name!r} the {role}? Then call it {role}; else leave "
                    f"it out: {naming_one('data.exclude', name)}"
                )

    def doubt_measurement(self, name: str, values: np.ndarray, place: np.ndarray) -> None:
        """Raise UserError when the column may be an id; tell of one that its class decides."""
        count, whole = len(values), (values == values.round()).all()
        if whole and count >= MANY and len(np.unique(values)) == count:
            raise UserError(
                f"{self.path}: column {name!r} has another whole number in each of the {count} "
                f"rows, as an id has: {naming_one('data.exclude', name)} leaves it out, "
                "data.columns=['*'] takes all columns of numbers"
            )
        if len(np.unique(values)) > 1 and decided_by_class(values, place):
            doubt(f"column {name!r} has one value in all rows of a class")


def no_measurement(name: str, values: np.ndarray, place: np.ndarray) -> str | None:
    """Why a column of numbers [N] is no measurement; None if it may be one. `place` [N] is the
    number of each row's class."""
    count, different = len(values), len(np.unique(values))
    whole = (values == values.round()).all()
    if not name or re.fullmatch(r"unnamed:?[\d.]*", folded(name)):
        return "row index"
    if whole and 2 < count == different == values.max() - values.min() + 1:
        return "row index"
    if folded(name) in FOLDS and whole:
        return "folds"
    if DATES.fullmatch(folded(name)) or (whole and different > 1 and are_times(values)):
        return "dates or times"
    if whole and names_dates(name) and EXCELS[0] <= values.min() and values.max() <= EXCELS[1]:
        return "dates or times"
    if ID.search(name) and whole:
        return "an id"
    if decided_by_class(values, place) and different == place.max() + 1 > 1:
        return "a copy of the label"
    return None


def decided_by_class(values: np.ndarray, place: np.ndarray) -> bool:
    """Whether all rows of a class have the same value, and some class has several rows."""
    _, first = np.unique(place, return_index=True)
    return bool(len(first) < len(place) and (values == values[first][place]).all())


def are_times(values: np.ndarray) -> bool:
    """Whether whole numbers can be seconds or milliseconds of Unix time, or dates as 20240131."""
    low, high = values.min(), values.max()
    for unit in (1, 1000):
        if SECONDS[0] * unit <= low and high <= SECONDS[1] * unit:
            return True
    return low >= 19000101 and high <= 21001231 and all(map(is_date, np.unique(values)))


def names_dates(name: str) -> bool:
    """Whether a word of the name says that there are dates, as in sampling_date or Funddatum."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(w.lower() in OF_DATES or w.lower().endswith("datum") for w in words)


def is_date(value: float) -> bool:
    """Whether a number such as 20240131 is a day."""
    try:
        datetime.strptime(str(int(value)), "%Y%m%d")
    except ValueError:
        return False
    return True


def number(text: str) -> float:
    """The number that the text spells, if it is one that float32 holds; else not a number."""
    try:
        value = float(text)
    except ValueError:
        return np.nan
    if "_" in text:  # 1_2 is one to Python alone
        return np.nan
    return value if abs(value) <= float(np.finfo(np.float32).max) else np.nan


def matching(path: Path, header: Sequence[str], patterns: Sequence[str], key: str) -> set[int]:
    """Places of the columns that the patterns mean; UserError when one means none."""
    found: set[int] = set()
    for pattern in map(str, patterns):
        exact = [i for i, name in enumerate(header) if one_form(name) == one_form(pattern)]
        alike = [i for i, name in enumerate(header) if fnmatchcase(name, pattern)]
        places = exact or alike or columns_named(header, (folded(pattern),))
        if not places:
            near = difflib.get_close_matches(pattern, header, n=1, cutoff=0)
            raise UserError(
                f"{path} has no column {pattern!r}, which {key} names"
                + (f"; is {near[0]!r} meant?" if near else "")
            )
        found |= set(places)
    return found


def naming(key: str, name: str, list_of: str = "{}") -> str:
    """`key=name` as a person can type it; in quotes where Hydra or the shell need some."""
    if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name.lower() not in NO_TEXTS:
        return f"{key}={list_of.format(name)}"
    # Backslashes count as such but before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + m[2].replace('"', r"\""), name)
    return shlex.quote(f"{key}={list_of}".format(f'"{escaped}"'))


def naming_one(key: str, name: str) -> str:
    """The same where the key takes a list of names."""
    return naming(key, name, "[{}]")


def nearest(header: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name is most like one of these, if it may be a slip for it."""
    alike = {
        name: max(difflib.SequenceMatcher(None, folded(name), wanted).ratio() for wanted in names)
        for name in header
    }
    best = max(alike, key=alike.__getitem__, default=None)
    return best if best is not None and alike[best] >= NEAR else None
