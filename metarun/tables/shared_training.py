"""A training that another run of a sweep has done is not done twice."""

from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import metarun
from metarun.configs.differences import differences
from metarun.errors import UserError
from metarun.runs import checkpoint
from metarun.tables.cells import UNNAMED, Run, below

# Keys that decide the test alone; the shorthands way, shot and query decide nothing themselves.
OF_THE_TEST = ["way", "shot", "query", "eval"]


class Shared(NamedTuple):
    """What a run takes over from the one that trained."""

    results: dict[str, Any]  # what results.json would say of a run with no test yet
    state: dict[str, Any]  # of the training at its end, as in a checkpoint
    records: str  # its metrics.jsonl


def shared_training(sweep: Path, config: dict[str, Any], data_checksum: str) -> Shared | None:
    """The training of a finished run of the `sweep` that differs from this one in its test alone;
    None if there is none.

    With a validation (train.split=train) there is none, for that draws the test's kind of tasks.
    """
    if config["mode"] != "train" or config["train"]["split"] != "trainval":
        return None
    # Who trained before who took over, whose cost counts several tests.
    for run in sorted(below(sweep), key=lambda run: bool(run.results.get("trained_in"))):
        if has_trained(run, config, data_checksum):
            try:
                state = checkpoint.load(run.folder / "checkpoints" / "last.pt")
                records = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
            except (UserError, OSError):  # lost or damaged: another may have it
                continue
            return Shared(taken_over(run, sweep), state, records)
    return None


def has_trained(run: Run, config: dict[str, Any], data_checksum: str) -> bool:
    """Whether the run has finished the very training that `config` asks for, on this data."""
    return (
        run.state == "finished"
        and run.results["mode"] == "train"
        and run.results["provenance"]["metarun"] == metarun.__version__
        and run.results["data"]["checksum"] == data_checksum
        and not differences(config, run.results["config"], except_for=[*UNNAMED, *OF_THE_TEST])
    )


def taken_over(run: Run, sweep: Path) -> dict[str, Any]:
    """What another run takes over of the run's results.json; the times are its whole run's."""
    own = {"folder": str(run.folder.relative_to(sweep)), "provenance": run.results["provenance"]}
    return {
        "wandb_id": token_hex(4),
        "trained_in": run.results.get("trained_in") or own,
        **{key: run.results[key] for key in ("train", "seconds", "cpu_seconds")},
    }
