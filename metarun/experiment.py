"""The one path from a config to a number: parts, training, test, results. Read this first."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metarun import files, ranks, suitability
from metarun import parts as parts_of
from metarun.configs.differences import differences
from metarun.configs.rules import UNSEEN
from metarun.parts import Config, Parts
from metarun.runs import checkpoint, report
from metarun.runs import folder as runfolder
from metarun.runs.job import Job
from metarun.runs.results import first_results, kept
from metarun.runs.trackers import draw_pictures, start_trackers
from metarun.seeds import stream_seed
from metarun.signals import StopSignals
from metarun.tables.shared_training import shared_training
from metarun.testing import results as figures_of
from metarun.testing.doubts import doubts_of_test, doubts_of_training, told
from metarun.testing.fixed_episodes import own_tasks
from metarun.tracking.console import Console
from metarun.tracking.jsonlines import Record
from metarun.tracking.trackers import Trackers
from metarun.training.loop import fit


def run(job: Job, sweep: Path | None = None) -> dict[str, Any]:
    """Train and test as the job says; returns the content of its results.json.

    Of the runs in `sweep` one may have done the training already. What the user can put right
    raises UserError, before long work starts wherever it can be known by then. Of several ranks the
    first alone uses the folder, and returns something.
    """
    started, (config, folder, *_) = time.time(), job
    with StopSignals() as stop, runfolder.claimed_by_first(folder):
        earlier = ranks.from_first(
            lambda: runfolder.earlier(folder, config["resume"], config["mode"])
        )
        if earlier and is_done(earlier, config):
            Console(config["train"]["steps"]).finish({**earlier, "folder": str(folder)})
            return earlier
        content = ranks.from_first(lambda: checkpoint.to_start_from(config, folder, earlier))
        with ranks.agreed():
            parts, shared = parts_of.build(config), None
            if sweep and not earlier:
                shared = shared_training(sweep, config, parts.data.checksum)
            if shared:
                earlier, content = shared.results, shared.state
            restore(parts, content)
        suitability.refuse_other_data(parts.data)
        if ranks.rank():
            assist(parts, folder, stop)
            return {}
        results = first_results(parts, job, earlier, content)
        with kept(results, folder, earlier or {}, started) as began:
            for name, text in job.texts.items():
                runfolder.write_text(folder / name, text)
            if shared:
                runfolder.write_text(folder / "metrics.jsonl", shared.records)
                save(parts, folder, best=True)
            trackers = start_trackers(parts, job, results, going_on=earlier is not None)
            try:
                peak_memory = (earlier or {}).get("train", {}).get("peak_memory_mib")
                if config["mode"] == "train":
                    peak_memory = train(parts, folder, trackers.log, stop) or peak_memory
                conclude(parts, folder, trackers, results, peak_memory, began, stop)
            finally:
                trackers.close()
        return results


def is_done(earlier: dict[str, Any], config: Config) -> bool:
    """Whether the earlier run has done all that is asked for now.

    Raises DataChanged when it has done so on other data.
    """
    has_test = bool(earlier.get("test")) or config["mode"] == "embed"
    if earlier["status"] != "finished" or not has_test:
        return False
    if differences(config, earlier.get("config", {}), except_for=UNSEEN):
        return False
    with ranks.agreed():
        data = parts_of.instance(config, "data")
        then = earlier.get("data", {}).get("checksum", "")
        checkpoint.refuse_changed_data(then, data.checksum)
    return True


def restore(parts: Parts, content: dict[str, Any] | None) -> None:
    """Put the parts into the saved state, if there is one; each rank has noise of its own."""
    training = parts.training
    if content and parts.config["mode"] == "test":
        checkpoint.restore_for_test(training, content)
        suitability.doubt_other_pictures(parts.data, content["config"], parts.config)
    elif content:
        checkpoint.restore(training, content, parts.data.checksum)
    if rank := ranks.rank():
        noise = f"noise/{rank}/{training.progress.step}"
        torch.manual_seed(stream_seed(parts.config["seed"], noise))


def assist(parts: Parts, folder: Path, stop: StopSignals) -> None:
    """Do this rank's share of the training and of the test, which the first rank tells about."""
    if parts.config["mode"] == "train":
        train(parts, folder, lambda record: None, stop)
    parts.score(parts.episodes_of("test", parts.protocol.episodes), measures=True)


def train(
    parts: Parts, folder: Path, log: Callable[[Record], None], stop: StopSignals
) -> float | None:
    """Meta-train to the end of the plan; the test split stays closed meanwhile.

    Returns the most memory that was in use, in MiB (`Device.peak_memory`); None if no step was left
    to be taken.
    """
    training, metric = parts.training, parts.protocol.metric
    first_step = training.progress.step
    parts.device.watch_memory()
    with parts.data.sealed("test"):
        val_episodes = parts.episodes_of("val", parts.protocol.val_episodes)
        stop.wait = True
        for record in fit(
            training,
            parts.plan,
            parts.sampler,
            parts.training_split(),
            parts.device,
            metric=metric,
            validate=lambda: figures_of.overall(parts.score(val_episodes), metric.name),
            save=partial(save, parts, folder),
            stop=lambda: ranks.on_any(stop()),
        ):
            log(record)
        stop.wait = False
    peak_memory = parts.device.peak_memory() / 2**20
    checkpoint.take_best(training, parts.plan.split, parts.data.checksum, folder)
    return peak_memory if training.progress.step > first_step else None


def save(parts: Parts, folder: Path, best: bool) -> None:
    """Keep the state of the training, and whether it is the best one, in the run's folder."""
    checkpoint.keep(parts.training, parts.config, parts.data.checksum, folder / "checkpoints", best)


def conclude(
    parts: Parts,
    folder: Path,
    trackers: Trackers,
    results: dict[str, Any],
    peak_memory: float | None,
    began: float,
    stop: StopSignals,
) -> None:
    """Test what was trained; `results` is then complete, and stored. `began`: see `kept`."""
    facts = report.training_facts(parts.training.progress, parts.protocol.metric, peak_memory)
    odd = doubts_of_training(parts.config, folder)
    facts["train"]["doubts"] = told(odd, trackers.console.message)
    results |= runfolder.finite(facts)  # as results.json has them
    results["test"] = runfolder.finite(test(parts, folder, trackers))
    stop.heed()  # of what came while pictures were drawn
    results["episodes_csv_sha256"] = files.sha256_of(folder / "episodes.csv")
    results |= {"seconds": round(time.time() - began, 1), "status": "finished"}
    runfolder.write_results(folder / "results.json", results)
    trackers.finish({**results, "folder": str(folder)})


def test(parts: Parts, folder: Path, trackers: Trackers) -> dict[str, Any]:
    """The figures of the fixed test episodes; leaves a file of each one's, and the pictures."""
    progress, metric = parts.training.progress, parts.protocol.metric
    episodes = parts.episodes_of("test", parts.protocol.episodes)
    count = sum(map(len, episodes.values()))
    trackers.console.message(f"testing on {count} episodes")
    figures = parts.score(episodes, measures=True)
    own = own_tasks(parts.data, "test")
    tested = figures_of.of_test(figures, episodes, own)
    if not math.isfinite(value := tested[metric.name]) and "skipped" not in tested:
        rate = "algo.inner_lr" if "inner_lr" in parts.config["algo"] else "optim.lr in training"
        trackers.console.message(f"the test {metric.name} is {value}: try a smaller {rate}")
    record = figures_of.record(tested, count)
    trackers.log({"step": progress.step, "episodes": progress.episodes, **record})
    table = figures_of.columns(figures, figures_of.task_names(episodes, own))
    runfolder.write_csv(folder / "episodes.csv", table)
    draw_pictures(parts, next(iter(episodes.values())), folder, trackers)
    classes = len(getattr(parts.data.outlines["test"], "classes", ()))
    odd = doubts_of_test(parts.config, figures, tested, classes)
    told(odd, trackers.console.message)
    batch_norm = report.batch_norm(parts.training.algorithm)
    return {**parts.config["eval"], **tested, "batch_norm": batch_norm, "doubts": odd}
