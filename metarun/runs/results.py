"""results.json: what it says of a run that begins, goes on, and ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from metarun.backbones.size import count_parameters
from metarun.errors import Interrupted, UserError
from metarun.parts import Parts
from metarun.runs import folder as runfolder
from metarun.runs.job import Job
from metarun.runs.provenance import provenance


def first_results(
    parts: Parts, job: Job, earlier: dict[str, Any] | None, content: dict[str, Any] | None
) -> dict[str, Any]:
    """Of a run that begins, or goes on from `content`, a saved state."""
    steps_left = not content or content["progress"]["step"] < parts.plan.steps
    return {
        "status": "running",
        "mode": parts.config["mode"],
        "names": job.names,
        "wandb_id": (earlier or {}).get("wandb_id") or token_hex(4),
        "parameters": count_parameters(parts.training.algorithm),
        "backbone": parts.network,
        "data": parts.data.facts(),
        "trained_on": content["data_checksum"] if content else parts.data.checksum,
        "trained_in": earlier.get("trained_in") if earlier and not steps_left else None,
        "provenance": provenance(parts.device.torch_device),
        "config": parts.config,
    }


@contextmanager
def kept(
    results: dict[str, Any], folder: Path, earlier: dict[str, Any], started: float, runs: int = 1
) -> Iterator[float]:
    """Keeps the folder's results.json telling how the run stands, however it ends, and what time it
    took, that of its `earlier` part too, unless it was killed; of the CPU's its share, as one of so
    many `runs` of this process.

    If the earlier part had finished, its results are put by.
    Gives the time at which the run, whose last part was `started`, would have begun in one piece.
    """
    path = folder / "results.json"
    failure: BaseException | None = None
    if earlier.get("status") == "finished":
        runfolder.put_by(folder)
    results["seconds"] = earlier.get("seconds", 0.0)
    began, cpu_began = started - results["seconds"], time.process_time()
    runfolder.write_results(path, results)
    try:
        yield began
    except BaseException as error:
        failure = error
        if results["status"] == "running":
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            results |= {"status": "interrupted" if stopped else "failed", "error": str(error)}
        raise
    finally:
        if results["status"] != "finished":
            results["seconds"] = round(time.time() - began, 1)
        share = (time.process_time() - cpu_began) / runs
        results["cpu_seconds"] = round(earlier.get("cpu_seconds", 0.0) + share, 1)
        try:
            runfolder.write_results(path, results)
        except UserError:  # no room, and then that is why the run fails
            runfolder.mark_failed(path)
            if failure is None:
                raise
