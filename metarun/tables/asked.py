"""What `table=NAME` stands for: a sweep over the table's experiments and seeds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from metarun.configs.composing import content_of
from metarun.configs.differences import differences
from metarun.configs.rules import FLOATS, UNSEEN, nearest, shown
from metarun.errors import UserError
from metarun.functional.metrics import named
from metarun.runs import folder as runfolder
from metarun.tables.cells import run_name

# What changes how a run computes, and not what: no departure from a paper's conditions.
HOW = [*UNSEEN, "device", "seed"]
# What a table and each of its cells must say.
TEXT, LIST, NUMBER = (str, "a text"), (list, "a list"), (int | float | None, "a number or null")
TABLE = {"title": TEXT, "source": TEXT, "data": TEXT, "metric": TEXT, "seeds": LIST, "cells": LIST}
CELL = {"experiment": TEXT, "paper": NUMBER, "ci95": NUMBER, "read_in": TEXT}
RUN = {"experiment": str, "seed": int, "folder": str}
# A run's config and what its groups are chosen to be, of some overrides.
Compose = Callable[[list[str]], tuple[dict[str, Any], dict[str, Any]]]


class Asked(NamedTuple):
    """A table as the command line asks for it."""

    name: str
    definition: dict[str, Any]  # the content of conf/table/NAME.yaml
    overrides: list[str]  # the sweep, spelled out, but for its folder

    def runs(self, compose: Compose, seeds: list[int]) -> list[dict[str, Any]]:
        """The runs of all cells: each one's experiment, seed and precision, its folder in the
        table's, and how it departs from the experiment.

        Raises UserError for several seeds at once, which would not be runs of the table.
        """
        common = [o for o in self.overrides if not o.startswith(("experiment=", "seed=", "hydra"))]
        found = []
        for experiment in experiments_of(self.definition):
            committed, _ = compose([f"experiment={experiment}"])
            config, choices = compose([*common, f"experiment={experiment}"])
            if config["seeds"] != 1:
                raise UserError(
                    f"seeds={config['seeds']}: a table has seeds of its own, "
                    "and seed=0,1,2 chooses among them"
                )
            shared = {
                "experiment": experiment,
                "precision": config["device"]["precision"],
                "departures": differences(committed, config, except_for=HOW),
            }
            for seed in seeds:
                folder = run_name({**config, "seed": seed}, choices, UNSEEN)
                found.append({**shared, "seed": seed, "folder": folder})
        return found


def experiments_of(definition: dict[str, Any]) -> list[str]:
    """The experiments that the cells of a table are about, each once."""
    return list(dict.fromkeys(cell["experiment"] for cell in definition["cells"]))


def read(path: Path) -> dict[str, Any]:
    """The table in the file at `path`. Raises UserError if it is none."""
    content: dict[str, Any] = content_of(path)
    try:
        check("table", content, TABLE, optional=("notes",))
        for cell in content["cells"]:
            check("table.cells", cell, CELL, optional=("label", "measure"))
            for key in ("paper", "ci95"):
                value = cell[key] or 0
                if not abs(value) <= FLOATS or (key == "ci95" and value < 0):
                    raise UserError(
                        f"table.cells.{key} of {cell['experiment']}: it must be finite, at most "
                        f"{FLOATS:g}, and ci95 at least 0"
                    )
        named(content["metric"], key="table.metric")
        if not all(isinstance(seed, int) for seed in content["seeds"]):
            raise UserError(f"table.seeds={shown(content['seeds'])}: whole numbers are needed")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return content


def check(
    name: str, content: Any, needed: dict[str, tuple[Any, str]], optional: tuple[str, ...]
) -> None:
    """Raise UserError unless `content` has the needed keys, of the kinds told, and no others but
    the optional ones."""
    if not isinstance(content, dict):
        raise UserError(f"{name}: a group of keys is needed, {', '.join(needed)}")
    for key in content:
        if key not in (*needed, *optional):
            raise UserError(f"{name}.{key}: there is no such key{nearest(str(key), needed)}")
    for key, (kind, words) in needed.items():
        if key not in content:
            raise UserError(f"{name}.{key}: it cannot be left out")
        value = content[key]
        if not isinstance(value, kind) or value == []:
            raise UserError(f"{name}.{key}={shown(value)}: {words} is needed")


def asked(name: str, path: Path, overrides: list[str]) -> Asked:
    """The table in the file at `path`, with the `overrides` typed beside table=NAME.

    Raises UserError for one that does not go with a table.
    """
    definition = read(path)
    typed = dict(override.split("=", 1) for override in overrides if "=" in override)
    if typed.get("mode", "train") != "train":
        raise UserError(f"mode={typed['mode']}: table= trains and tests: leave mode= out")
    if "hydra.sweep.subdir" in typed:
        raise UserError("hydra.sweep.subdir: table= names its runs' folders itself: leave it out")
    swept = {
        "experiment": ",".join(experiments_of(definition)),
        "seed": ",".join(map(str, definition["seeds"])),
        "resume": "auto",
        "hydra.sweep.subdir": "${run_name:table}",
    }
    spelled = [f"{key}={value}" for key, value in swept.items() if key not in typed]
    return Asked(name, definition, [*overrides, *spelled])


def folder_of(asked: Asked, runs: list[dict[str, Any]]) -> str:
    """The folder of the table with these runs: tables that depart from the experiments otherwise,
    or are computed in another precision, do not take each other's place."""
    departures = {run["experiment"]: run["departures"] for run in runs}
    digits = hashlib.sha256(json.dumps(departures, sort_keys=True).encode()).hexdigest()[:8]
    told = [digits] if any(departures.values()) else []
    told += sorted({run["precision"] for run in runs} - {"fp32"})
    return "-".join([f"outputs/table/{asked.name}", *told])


def recorded(path: Path) -> list[dict[str, Any]]:
    """The runs that the table_of.json at `path` names; none of a damaged one, which is then made
    again of those that are asked for now."""
    try:
        runs = runfolder.read_json(path)["runs"]
        return [run for run in runs if all(isinstance(run[k], kind) for k, kind in RUN.items())]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return []


def record(asked: Asked, folder: Path, runs: list[dict[str, Any]]) -> None:
    """Keep in the table's folder, as table_of.json, what it is a table of.

    Runs asked for earlier stay, unless one of the same experiment and seed is asked for now.
    """
    path = folder / "table_of.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        kept = {(run["experiment"], run["seed"]): run for run in [*recorded(path), *runs]}
        content = {"name": asked.name, **asked.definition, "runs": list(kept.values())}
        runfolder.write_json(path, content)
