"""Several seeds of one config trained at once, each a run of its own: `seeds=8`.

The run folder then has a folder for each, seed0, seed1, …, with all that a single run would leave
there. Their steps are taken together (stacked.py); what follows a step, and the test, is the single
path's, for one seed after another.
"""

import math
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from metarun import experiment
from metarun.errors import Interrupted, UserError
from metarun.functional.metrics import named
from metarun.parts import Parts, build, build_optimizer, build_training
from metarun.runs import checkpoint, report
from metarun.runs import folder as runfolder
from metarun.runs.job import Job
from metarun.runs.results import first_results, kept
from metarun.runs.trackers import weights_and_biases
from metarun.signals import StopSignals
from metarun.tables.statistics import over_seeds
from metarun.testing.results import overall
from metarun.tracking import jsonlines
from metarun.tracking.console import Console, aligned
from metarun.tracking.jsonlines import JsonLines, Record
from metarun.tracking.trackers import Trackers
from metarun.training.loop import Course, Due
from metarun.training.stacked import Stacked, meta_batches


@dataclass
class Run:
    """One seed's run, with what its results.json and its metrics.jsonl say."""

    parts: Parts
    job: Job
    results: dict[str, Any]
    lines: JsonLines
    began: float  # as `kept` has it

    @property
    def seed(self) -> int:
        return int(self.parts.config["seed"])

    @property
    def step(self) -> int:
        return self.parts.training.progress.step


class SeedConsole(Console):
    """What is told of one seed among several: its messages."""

    def __init__(self, seed: int):
        super().__init__(total_steps=0)
        self.seed = seed

    def log(self, record: Record) -> None:
        """Nothing: means over the seeds are told instead."""

    def message(self, text: str) -> None:
        super().message(f"seed {self.seed}: {text}")

    def finish(self, results: dict) -> None:
        """Nothing: the results of all the seeds are told together."""


def run(jobs: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
    """Train and test the jobs, which differ in their seeds and have folders in `folder`; their
    results.json.

    Seeds that are done already are left alone. Raises UserError at the end if a seed failed, as by
    a loss that is not finite; the others go on.
    """
    total_steps = jobs[0].config["train"]["steps"]
    with StopSignals() as stop, runfolder.claimed(folder), ExitStack() as opened:
        refuse_other_files(folder)
        done, runs = opened_runs(jobs, opened)
        console = Console(total_steps, min((run.step for run in runs), default=0))
        opened.callback(console.close)
        if runs:
            console.header(header(runs, folder))
            runs[0].parts.device.watch_memory()
        trained = any(run.step < total_steps for run in runs)
        failed: dict[int, str] = {}
        by_step = groupby(sorted(runs, key=lambda run: run.step), key=lambda run: run.step)
        for _, group in by_step:  # one group, but after a kill in the midst of saving them
            failed |= train(list(group), console, stop)
        peak_memory = runs[0].parts.device.peak_memory() / 2**20 if trained else None
        for run in runs:
            if run.seed not in failed:
                conclude(run, folder.name, peak_memory, stop)
                done[run.seed] = run.results
        console.close()
        if done:
            console.message(aligned(rows(done) | {"folder": str(folder)}))
        if failed:
            reasons = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
            raise UserError(f"{reasons} ({len(done)} other seeds are done)")
        return [done[seed] for seed in sorted(done)]


def refuse_other_files(folder: Path) -> None:
    """Raise UserError if the folder holds anything but runs of seeds."""
    if not all(re.fullmatch(r"\.lock|seed\d+", path.name) for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files: choose another name=")


def opened_runs(
    jobs: Sequence[Job], opened: ExitStack
) -> tuple[dict[int, dict[str, Any]], list[Run]]:
    """The results of the seeds that are done, and the runs of the others, which all begin when it
    is known that they can."""
    started = time.time()
    done, begun, parts = {}, [], None
    for job in jobs:
        config, folder = job.config, job.folder
        opened.enter_context(runfolder.claimed(folder))
        earlier = runfolder.earlier(folder, config["resume"], config["mode"])
        if earlier and experiment.is_done(earlier, config):
            done[config["seed"]] = earlier
            continue
        content = checkpoint.to_start_from(config, folder, earlier)
        if parts is None:
            parts = build(config)
        else:
            training, _ = build_training(config, parts.data, parts.device)
            parts = parts._replace(config=config, training=training)
        experiment.restore(parts, content)
        begun.append((parts, job, earlier, content))
    if begun:
        rehearse([parts for parts, *_ in begun])
    runs = []
    for parts, job, earlier, content in begun:
        results = first_results(parts, job, earlier, content)
        results["seeds_at_once"] = len(begun)
        kept_results = kept(results, job.folder, earlier or {}, started, runs=len(begun))
        began = opened.enter_context(kept_results)
        for name, text in job.texts.items():
            runfolder.write_text(job.folder / name, text)
        step = parts.training.progress.step if earlier else None
        lines = JsonLines(job.folder / "metrics.jsonl", step)
        opened.callback(lines.close)
        runs.append(Run(parts, job, results, lines, began))
    return done, runs


def stacked(several: Sequence[Parts]) -> Stacked:
    """The trainings of the parts as one."""
    config, device = several[0].config, several[0].device
    new_optimizer = partial(build_optimizer, config)
    trainings = [parts.training for parts in several]
    return Stacked(trainings, device, several[0].plan.clip_norm, new_optimizer)


def rehearse(several: Sequence[Parts]) -> None:
    """Compute one loss of all, so that it is known before training starts if this cannot be."""
    parts = several[0]
    split = parts.training_split()
    generators = [each.training.generator.clone_state() for each in several]
    together, batch = stacked(several), next(meta_batches(parts.sampler, split, generators))
    try:
        together.rehearse(batch)
    except UserError as error:
        seeds = f"range({parts.config['seed']},{several[-1].config['seed'] + 1})"
        raise UserError(
            f"{error}: train them one after another, with -m 'seed={seeds}' and without seeds="
        ) from error


def train(runs: list[Run], console: Console, stop: StopSignals) -> dict[int, str]:
    """Meta-train runs that stand at the same step to the end of the plan; why seeds failed."""
    parts = runs[0].parts
    plan, metric = parts.plan, parts.protocol.metric
    together = stacked([run.parts for run in runs])
    failed: dict[int, str] = {}
    stopping = saving = False
    due = Due(plan.save_minutes)
    with parts.data.sealed("test"):
        episodes = parts.episodes_of("val", parts.protocol.val_episodes)

        def course(run: Run) -> Course:
            return Course(
                run.parts.training,
                plan,
                parts.sampler.tasks,
                metric,
                validate=lambda: overall(run.parts.score(episodes), metric.name),
                save=partial(experiment.save, run.parts, run.job.folder),
                stop=lambda: stopping,  # the same for all the seeds of a step
                due=lambda: saving,
            )

        courses = {run.seed: course(run) for run in runs}
        split = parts.training_split()
        generators = [run.parts.training.generator for run in runs]
        batches = meta_batches(parts.sampler, split, generators)
        stop.wait = True
        for step in range(runs[0].step + 1, plan.steps + 1):
            figures, rate = together.step(next(batches))
            stopping, saving = stop(), due()
            if stopping or saving or plan.validates_after(step):
                together.hand_out()
                due.restart()
            going = [run for run in runs if run.seed not in failed]
            follows = {
                run.seed: courses[run.seed].after_step(own, rate)
                for run, own in zip(runs, figures, strict=True)
            }
            interrupted = None
            # One record of each at a time: all have read their clocks before one validates.
            while going:
                records = {}
                for run in going:
                    try:
                        if record := next(follows[run.seed], None):
                            records[run.seed] = record
                            run.lines.log(record)
                    except Interrupted as error:
                        interrupted = error
                    except UserError as error:
                        failed[run.seed] = str(error)
                        run.results |= {"status": "failed", "error": str(error)}
                        console.message(f"seed {run.seed}: {error}")
                going = [run for run in going if run.seed in records]
                if records:
                    console.log(mean_record(list(records.values())))
            for each in courses.values():
                if not each.window.steps:  # closed, with time gone by since for the others
                    each.window.restart()
            if interrupted:
                raise interrupted
            if len(failed) == len(runs):
                break
        stop.wait = False
    return failed


def mean_record(records: Sequence[Record]) -> Record:
    """The seeds' records of one moment as one: means, and the episodes per second of all."""
    means = {key: mean(record[key] for record in records) for key in records[0]}
    means.pop("val/ci95", None)  # over episodes, and not over seeds
    if "train/episodes_per_second" in means:
        means["train/episodes_per_second"] *= len(records)
    return means


def conclude(run: Run, group: str, peak_memory: float | None, stop: StopSignals) -> None:
    """Test what was trained, and end the run, in W&B one of this group if it is in no sweep."""
    parts, folder = run.parts, run.job.folder
    checkpoint.take_best(parts.training, parts.plan.split, parts.data.checksum, folder)
    history = jsonlines.read(run.job.folder / "metrics.jsonl")
    names = {**run.job.names, "sweep": run.job.names["sweep"] or group}
    job = run.job._replace(names=names)
    start_wandb = weights_and_biases(job, run.results, history)
    trackers = Trackers(SeedConsole(run.seed), run.lines, start_wandb)
    try:
        experiment.conclude(
            run.parts, run.job.folder, trackers, run.results, peak_memory, run.began, stop
        )
    finally:
        trackers.close()


def header(runs: list[Run], folder: Path) -> dict[str, str]:
    """What will run, in a few rows."""
    seeds, about = [run.seed for run in runs], report.header(runs[0].parts, runs[0].job)
    return about | {
        "seed": f"{', '.join(map(str, seeds))}, at once",
        "run folder": f"{folder}/seed{seeds[0]} and so on",
    }


def rows(results: dict[int, dict[str, Any]]) -> dict[str, str]:
    """The tests' figures by seed, and their mean with its interval over seeds."""
    tests = {seed: results[seed]["test"] for seed in sorted(results)}
    metric = named(next(iter(tests.values()))["metric"])
    figures = {seed: test[metric.name] for seed, test in tests.items()}
    of_seeds = {f"seed {s}": metric.shown(figures[s], test["ci95"]) for s, test in tests.items()}
    values = [math.nan if figure is None else figure for figure in figures.values()]
    half = over_seeds(values) if len(values) > 1 else None
    return {**of_seeds, "mean": metric.shown(mean(values), half)}
