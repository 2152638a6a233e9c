"""What `table=NAME` stands for: a sweep over the table's experiments and seeds."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metarun import runfolder
from metarun.config import UNSEEN, differences
from metarun.errors import UserError
from metarun.tables.cells import run_name

# What changes how a run computes, and not what: no departure from a paper's conditions.
HOW = [*UNSEEN, "device", "seed"]
# A run's config and what its groups are chosen to be, of some overrides.
Compose = Callable[[list[str]], tuple[dict[str, Any], dict[str, Any]]]


class Asked(NamedTuple):
    """A table as the command line asks for it."""

    name: str
    definition: dict[str, Any]  # the content of conf/table/NAME.yaml
    conditions: list[str]  # overrides that the runs of all cells get, sorted
    overrides: list[str]  # the sweep, spelled out
    folder: Path

    def runs(self, compose: Compose, experiments: list[str], seeds: list[int]) -> list[dict]:
        """Each run: its experiment and seed, its folder, and how it departs from the experiment."""
        common = [o for o in self.overrides if not o.startswith(("experiment=", "seed=", "hydra"))]
        found = []
        for experiment in experiments:
            committed, _ = compose([f"experiment={experiment}"])
            config, choices = compose([*common, f"experiment={experiment}"])
            departures = differences(committed, config, except_for=HOW)
            for seed in seeds:
                folder = self.folder / run_name({**config, "seed": seed}, choices, UNSEEN)
                found.append(
                    {
                        "experiment": experiment,
                        "seed": seed,
                        "folder": str(folder.relative_to(self.folder)),
                        "departures": departures,
                    }
                )
        return found


def asked(name: str, path: Path, overrides: list[str]) -> Asked:
    """The table in the file at `path`, with the `overrides` typed beside table=NAME.

    Raises UserError for one that does not go with a table.
    """
    definition: Any = OmegaConf.to_container(OmegaConf.load(path))
    typed = dict(override.split("=", 1) for override in overrides if "=" in override)
    if typed.get("mode", "train") != "train":
        raise UserError(f"mode={typed['mode']}: table= trains and tests: leave mode= out")
    conditions = sorted(o for o in overrides if is_condition(o.lstrip("+~").partition("=")[0]))
    swept = {
        "experiment": ",".join(dict.fromkeys(cell["experiment"] for cell in definition["cells"])),
        "seed": ",".join(map(str, definition["seeds"])),
        "resume": "auto",
        # A table under other conditions is another table: neither takes the other's place.
        "hydra.sweep.dir": f"outputs/table/{name}{digits(conditions)}",
        "hydra.sweep.subdir": "${run_name:table}",
    }
    spelled = [f"{key}={value}" for key, value in swept.items() if key not in typed]
    folder = Path(typed.get("hydra.sweep.dir", swept["hydra.sweep.dir"]))
    return Asked(name, definition, conditions, [*overrides, *spelled], folder)


def is_condition(key: str) -> bool:
    """Whether the override of this key may change what comes out of every cell."""
    if key in ("experiment", "seed", "device") or key.startswith("hydra"):
        return False
    return not f"{key}.".startswith(tuple(f"{unseen}." for unseen in UNSEEN))


def digits(conditions: list[str]) -> str:
    """What tells these conditions from others in a folder's name; nothing for none."""
    if not conditions:
        return ""
    return "-" + hashlib.sha256("\n".join(conditions).encode()).hexdigest()[:8]


def record(asked: Asked, runs: list[dict]) -> None:
    """Keep in the table's folder, as table_of.json, what it is a table of.

    Runs asked for earlier stay, unless one of the same experiment and seed is asked for now.
    """
    path = asked.folder / "table_of.json"
    earlier = runfolder.read_json(path) if path.exists() else {"runs": []}
    kept = {(run["experiment"], run["seed"]): run for run in [*earlier["runs"], *runs]}
    runfolder.write_json(
        path,
        {
            "name": asked.name,
            **asked.definition,
            "conditions": asked.conditions,
            "runs": list(kept.values()),
        },
    )
