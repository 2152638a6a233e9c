"""A training that another run of a sweep has done is not done twice."""

import shutil
from pathlib import Path
from secrets import token_hex
from typing import Any

import metarun
from metarun import checkpoint, runfolder
from metarun.config import UNSEEN
from metarun.differences import differences
from metarun.tables.cells import Run, below

# Keys that decide the test alone; the shorthands way, shot and query decide nothing themselves.
OF_THE_TEST = ["way", "shot", "query", "eval"]


def take_over(folder: Path, config: dict[str, Any], sweep: Path) -> None:
    """Give a new run in `folder` the training of a finished run of the `sweep` that differs in its
    test alone, if there is one: as an interrupted run, which goes on from there.

    With a validation (train.split=train) there is none, for that draws the test's kind of tasks.
    Raises UserError if the folder holds other files, InUse if another process has it.
    """
    if config["mode"] != "train" or config["train"]["split"] != "trainval" or config["seeds"] > 1:
        return
    with runfolder.claimed(folder):
        if runfolder.earlier(folder, "auto", "train") is not None:
            return
        done = next((run for run in below(sweep) if has_done(run, config)), None)
        if done is not None:
            begin_with(done, folder, config, sweep)


def has_done(run: Run, config: dict[str, Any]) -> bool:
    """Whether the run has finished the very training that `config` asks for."""
    return (
        run.state == "finished"
        and run.results["provenance"]["metarun"] == metarun.__version__
        and not differences(config, run.results["config"], except_for=[*UNSEEN, *OF_THE_TEST])
        and (run.folder / "checkpoints" / "last.pt").exists()
    )


def begin_with(done: Run, folder: Path, config: dict[str, Any], sweep: Path) -> None:
    """Leave in `folder` what `done` would have, had it been interrupted before its test."""
    kept = {key: value for key, value in done.results.items() if key not in ("test", "seconds")}
    own = {
        "status": "interrupted",
        "wandb_id": token_hex(4),
        "config": config,
        "cpu_seconds": 0.0,
        "trained_in": str(done.folder.relative_to(sweep)),
    }
    runfolder.write_json(folder / "results.json", kept | own)
    if (done.folder / "metrics.jsonl").exists():
        shutil.copyfile(done.folder / "metrics.jsonl", folder / "metrics.jsonl")
    # The last one last: with it the training is done.
    for name in ("best.pt", "last.pt"):
        content = checkpoint.load(done.folder / "checkpoints" / name)
        checkpoint.save(folder / "checkpoints" / name, {**content, "config": config})
