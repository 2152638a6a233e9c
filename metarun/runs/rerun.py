"""rerun=RUN_FOLDER: a finished run once more, in a new folder, and whether it came to the same.

Works on plain dicts: what results.json said of the run then, and what it says now.
"""

import csv
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from metarun.configs import rules as schema
from metarun.errors import UserError
from metarun.runs import folder as runfolder

# What may be said beside rerun=: no result depends on it, or the comparison tells.
ALLOWED = (
    *("name", "checkpoint", "data.root", "data.file", "plugins.allow"),
    *("device.name", "device.compile"),
    *("tracker.mode", "tracker.project", "tracker.group", "tracker.tags"),
)
# Where a repeated run's config may be another without a word.
INCIDENTAL = [*ALLOWED, "resume", "rerun"]
# What explains a difference, but is none.
PROVENANCE = (
    *("metarun", "revision", "python", "packages", "system", "processor", "threads"),
    *("kernels", "gpu"),
)
# Of numbers: what another order of additions may change, and no answer of a test.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def finished(folder: Path) -> dict[str, Any]:
    """What results.json says of the run; UserError unless it finished there, with a test."""
    try:
        then = runfolder.results(folder)
    except OSError as error:
        raise UserError(f"rerun={folder}: it cannot be read: {error}") from None
    if then is None:
        raise UserError(f"rerun={folder}: there is no results.json, a run's folder is needed")
    if then["status"] != "finished":
        raise UserError(f"rerun={folder}: the run is {then['status']}: nothing to compare with")
    if "test" not in then:
        raise UserError(f"rerun={folder}: mode={then['mode']} had no test: nothing to compare with")
    return then


def new_folder(folder: Path) -> Path:
    """Where the run is repeated unless told: beside its folder, with the first number not taken."""
    names = (folder.with_name(f"{folder.name}-rerun{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def config_again(
    config: dict[str, Any], defaults: dict[str, Any], typed: dict[str, Any], built: tuple[str, ...]
) -> dict[str, Any]:
    """The `config` of a run, to be run again with what was `typed` beside rerun=.

    What the run did not know yet is as in `defaults`, but in the groups `built`, which are as they
    were. No class of the user's own runs unless typed, whatever the run's folder says. Raises
    UserError for keys that are not there any more, and for what cannot be typed here.
    """
    for key in typed:
        if key not in ALLOWED:
            raise UserError(
                f"{key}: rerun= repeats a run as it was; what can be said beside it: "
                f"{', '.join(ALLOWED)}"
            )
    own = {key: config[key] for key in built} | {"plugins": {"allow": []}, "resume": "none"}
    reference = defaults | {key: config[key] for key in built}
    reference["eval"] = defaults["eval"] | {"sampler": config["eval"]["sampler"]}
    again = merged(merged(reference, config), own)
    for key, value in typed.items():
        group, _, name = key.rpartition(".")
        (again[group] if group else again)[name] = value
    schema.check(again, reference, again["plugins"]["allow"])
    return again


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both dicts as one, and so the dicts in them; `above` wins."""
    result = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            result[key] = merged(below[key], above[key])
    return result


def comparison(then: Path, now: Path) -> tuple[bool, dict[str, str]]:
    """Whether two run folders hold equal results, within rounding; and what differs, row by row.

    Code, versions and machine are told, but they make no difference.
    """
    before, after = (runfolder.results(folder) or {} for folder in (then, now))
    causes = {
        **changes(before["provenance"], after["provenance"], only=PROVENANCE),
        **changes(before["config"], after["config"], except_for=INCIDENTAL),
    }
    effects = {
        **changes(before, after, only=("data.checksum", "trained_on", "parameters")),
        **changes(before, after, only=("train.steps", "train.episodes", "val", "test")),
        **changed_episodes(then / "episodes.csv", now / "episodes.csv"),
    }
    return not effects, causes | effects


def changes(
    then: dict[str, Any],
    now: dict[str, Any],
    only: tuple[str, ...] = (),
    except_for: list[str] | None = None,
) -> dict[str, str]:
    """The values at or below the keys that are not the same, as `key: "3 then, 4 now"`.

    A key that only one side has is a difference, unless it is the later side and knows more.
    """
    ours, theirs = schema.flat(then), schema.flat(now)
    wanted, unwanted = (tuple(f"{key}." for key in keys or ()) for keys in (only, except_for))
    return {
        key: f"{schema.shown(ours[key])} then, {schema.shown(theirs.get(key))} now"
        for key in ours
        if (not only or f"{key}.".startswith(wanted))
        and not f"{key}.".startswith(unwanted)
        and not same(ours[key], theirs.get(key))
    }


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; numbers but for rounding."""
    if isinstance(a, float) and isinstance(b, int | float):
        close = math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return close or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def changed_episodes(then: Path, now: Path) -> dict[str, str]:
    """How many of the test's episodes had another figure, for each column of the two files."""
    if not then.exists():
        return {"episodes.csv": "not there then"}
    before, after = columns(then), columns(now)
    if lengths(before) != lengths(after):
        return {"episodes.csv": f"{lengths(before)} then, {lengths(after)} now"}
    found = {}
    for name, values in before.items():
        pairs = list(zip(values, after[name], strict=True))
        apart = [(a, b) for a, b in pairs if not same(a, b)]
        if apart:
            gaps = [abs(a - b) for a, b in apart if isinstance(a, float) and isinstance(b, float)]
            most = f", by up to {max(gaps):.4g}" if gaps else ""
            found[f"episodes' {name}"] = f"{len(apart)} of {len(pairs)} differ{most}"
    return found


def lengths(table: dict[str, list]) -> str:
    """What a table has, in words."""
    rows = len(next(iter(table.values()), []))
    return f"{rows} rows of {', '.join(table)}"


def columns(path: Path) -> dict[str, list]:
    """The columns of a CSV file, their values as numbers where they are."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {name: list(numbers(row[i] for row in rows)) for i, name in enumerate(header)}


def numbers(texts: Iterator[str]) -> Iterator[float | str]:
    """Each text as the number that it spells, if it does."""
    for text in texts:
        try:
            yield float(text)
        except ValueError:
            yield text
