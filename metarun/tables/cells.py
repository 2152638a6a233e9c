"""A sweep's runs on disk: which folder is whose, and how each of them stands."""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

import metarun
from metarun.configs.rules import flat
from metarun.errors import UserError
from metarun.runs import folder as runfolder
from metarun.runs.folder import NUMBER

# What the name of a run's folder does not tell in a sweep, which may compare even incidental keys.
UNNAMED = ["name", "resume", "plugins", "tracker", "train.save_minutes", "short_steps"]


def run_name(config: dict[str, Any], choices: dict[str, Any], except_for: list[str]) -> str:
    """A folder for the run of a sweep: the same for the same config, for another one another.

    As in snell2017-omniglot_5way_1shot/seed0-1f3a5c7e. The digits are a hash of all keys but
    `except_for`, and of metarun's version; `choices` are what the groups are chosen to be.
    """
    incidental = tuple(f"{key}." for key in except_for)
    deciding = {k: v for k, v in flat(config).items() if not f"{k}.".startswith(incidental)}
    text = json.dumps([metarun.__version__, deciding], sort_keys=True, default=str)
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    what = choices.get("experiment") or f"{choices['data']}_{choices['algo']}"
    return f"{str(what).replace('/', '-')}/seed{config['seed']}-{digits}"


MISSING = object()
# What tables and summaries read of a finished run with a test, by dotted key.
TOLD: dict[str, Any] = {
    **{"config.seed": int, "config.sampler": dict, "config.backbone": dict},
    **{"config.device.precision": str, "names.algo": str, "names.backbone": str},
    **{"data.checksum": str, "train.steps": int, "train.seconds": NUMBER, "seconds": NUMBER},
    **{f"test.{key}": int for key in ("way", "shot", "query", "episodes")},
    **{"test.measures": dict, "test.ci95": NUMBER, "test.episodes_sha256": str},
    "test.batch_norm": str,
}


class Run(NamedTuple):
    """A run's folder as it is now."""

    folder: Path
    state: str  # waiting, running, interrupted, failed, finished
    results: dict[str, Any]  # of results.json; empty before the run began
    error: str  # why it failed, in one line

    @property
    def value(self) -> float | None:
        """The test figure, once there is one."""
        test = self.results.get("test") or {}
        return test.get(test.get("metric"))

    def episodes(self, measure: str | None = None) -> list[float]:
        """The figure of each test episode, or of `measure`, of a run that is finished; nan where it
        is not finite."""
        path = self.folder / "episodes.csv"
        name = measure or self.results["test"]["metric"]
        with open(path, newline="", encoding="utf-8") as file:
            values = [float(row[name]) for row in csv.DictReader(file)]
        return [value if math.isfinite(value) else math.nan for value in values]


def read(folder: Path) -> Run:
    """The run in `folder`, whatever has become of it."""
    try:
        results, error = runfolder.results(folder), runfolder.error(folder)
    except UserError as damaged:
        return Run(folder, "failed", {}, str(damaged))
    if results is None:
        if error:
            return Run(folder, "failed", {}, error)
        return Run(folder, "running" if in_use(folder) else "waiting", {}, "")
    state = results["status"]
    if state != "finished" and in_use(folder):
        return Run(folder, "running", results, "")
    if error:  # of the last attempt, even if an earlier one finished, on other data
        return Run(folder, "failed", results, error)
    state = "interrupted" if state == "running" else state  # killed: it could not say so
    return Run(folder, state, results, str(results.get("error", "")))


def checked(run: Run) -> Run:
    """The run; as one that failed, with the reason, if it has finished and what its folder holds of
    its test is damaged."""
    if run.state != "finished":
        return run
    try:
        for key, kind in TOLD.items():
            if not isinstance(standing_at(run.results, key), kind):
                raise UserError(
                    f"{run.folder / 'results.json'} is damaged: {key} is not what it should be"
                )
        runfolder.refuse_damaged_episodes(run.folder, run.results)
        measures = [run.results["test"]["metric"], *run.results["test"]["measures"]]
        try:
            for measure in measures:
                if not run.episodes(measure):
                    raise ValueError("no episodes")
        except (KeyError, TypeError, ValueError) as error:
            path = run.folder / "episodes.csv"
            raise UserError(f"{path} is damaged: {measure} cannot be read") from error
    except UserError as damaged:
        return Run(run.folder, "failed", {}, str(damaged))
    return run


def standing_at(results: dict[str, Any], key: str) -> Any:
    """What stands at the dotted key; MISSING for nothing."""
    found: Any = results
    for name in key.split("."):
        found = found.get(name, MISSING) if isinstance(found, dict) else MISSING
    return found


def in_use(folder: Path) -> bool:
    """Whether a process has the folder for its own."""
    path = folder / ".lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def below(sweep: Path) -> list[Run]:
    """The runs of a sweep, those of several seeds at once too, in the order of their names, but for
    what rerun= has repeated there."""
    depths, files = ("*", "*/*", "*/*/seed*"), ("results.json", "error.txt")
    found = {path.parent for d in depths for name in files for path in sweep.glob(f"{d}/{name}")}
    return [read(folder) for folder in sorted(found) if not (folder / "rerun.json").exists()]
