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

from omegaconf import DictConfig, OmegaConf

from metarun import experiment
from metarun.configs.composing import plain
from metarun.errors import Interrupted, UserError
from metarun.experiment import Parts
from metarun.runs import folder as runfolder
from metarun.runs import report
from metarun.signals import StopSignals
from metarun.tables.statistics import over_seeds
from metarun.tracking import jsonlines
from metarun.tracking.console import Console, aligned, shown
from metarun.tracking.jsonlines import JsonLines, Record
from metarun.tracking.trackers import Trackers
from metarun.training.loop import Course, Plan
from metarun.training.stacked import Stacked, meta_batches


@dataclass
class Run:
    """One seed's run, with what its results.json and its metrics.jsonl say."""

    parts: Parts
    folder: Path
    results: dict[str, Any]
    lines: JsonLines
    began: float  # as `experiment.kept` has it

    @property
    def seed(self) -> int:
        return self.parts.config.seed

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


def run(
    config: DictConfig, folder: Path, names: dict[str, str], texts: dict[str, str]
) -> list[dict[str, Any]]:
    """Train and test `seeds` seeds from `seed` on, in `folder`/seedN each; their results.json.

    The arguments are as in `experiment.run`. Seeds that are done already are left alone. Raises
    UserError at the end if a seed failed, as by a loss that is not finite; the others go on.
    """
    with StopSignals() as stop, runfolder.claimed(folder), ExitStack() as opened:
        refuse_other_files(folder)
        done, runs = opened_runs(config, folder, names, texts, opened)
        console = Console(config.train.steps, min((run.step for run in runs), default=0))
        opened.callback(console.close)
        if runs:
            console.header(header(runs, folder, names))
            runs[0].parts.device.watch_memory()
        trained = any(run.step < config.train.steps for run in runs)
        failed: dict[int, str] = {}
        by_step = groupby(sorted(runs, key=lambda run: run.step), key=lambda run: run.step)
        for _, group in by_step:  # one group, but after a kill in the midst of saving them
            failed |= train(list(group), console, stop)
        peak_memory = runs[0].parts.device.peak_memory() / 2**20 if trained else None
        names = {**names, "sweep": names["sweep"] or folder.name}  # their W&B group
        for run in runs:
            if run.seed not in failed:
                conclude(run, names, peak_memory)
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
    config: DictConfig,
    folder: Path,
    names: dict[str, str],
    texts: dict[str, str],
    opened: ExitStack,
) -> tuple[dict[int, dict[str, Any]], list[Run]]:
    """The results of the seeds that are done, and the runs of the others, which all begin when it
    is known that they can."""
    started = time.time()
    done, begun, parts = {}, [], None
    for seed in range(config.seed, config.seed + config.seeds):
        own, home = of_seed(config, seed), folder / f"seed{seed}"
        opened.enter_context(runfolder.claimed(home))
        earlier = runfolder.earlier(home, own.resume, own.mode)
        if earlier and experiment.is_done(earlier, own):
            done[seed] = earlier
            continue
        content = experiment.saved_state(own, home, going_on=earlier is not None)
        if parts is None:
            parts = experiment.build_parts(own)
        else:
            training, _ = experiment.build_training(own, parts.data, parts.device)
            parts = parts._replace(config=own, training=training)
        experiment.restore(parts, content)
        begun.append((parts, home, earlier, content))
    if begun:
        rehearse([parts for parts, *_ in begun])
    runs = []
    for parts, home, earlier, content in begun:
        results = experiment.first_results(parts, names, earlier, content)
        results["seeds_at_once"] = len(begun)
        began = opened.enter_context(
            experiment.kept(results, home, earlier or {}, started, runs=len(begun))
        )
        for name, text in texts_of_seed(texts, parts.config).items():
            runfolder.write_text(home / name, text)
        step = parts.training.progress.step if earlier else None
        lines = JsonLines(home / "metrics.jsonl", step)
        opened.callback(lines.close)
        runs.append(Run(parts, home, results, lines, began))
    return done, runs


def of_seed(config: DictConfig, seed: int) -> DictConfig:
    """The config of the seed's single run."""
    own = config.copy()
    own.seed, own.seeds = seed, 1
    return own


def texts_of_seed(texts: dict[str, str], config: DictConfig) -> dict[str, str]:
    """The files that the seed's single run would keep, from those of all the seeds."""
    given = map(str, OmegaConf.create(texts[".hydra/overrides.yaml"]))
    others = [word for word in given if not word.startswith(("seed=", "seeds="))]
    return texts | {
        ".hydra/config.yaml": OmegaConf.to_yaml(config),
        ".hydra/overrides.yaml": OmegaConf.to_yaml([*others, f"seed={config.seed}"]),
    }


def stacked(several: Sequence[Parts]) -> Stacked:
    """The trainings of the parts as one."""
    config, device = several[0].config, several[0].device
    new_optimizer = partial(experiment.build_optimizer, config)
    trainings = [parts.training for parts in several]
    return Stacked(trainings, device, config.train.clip_norm, new_optimizer)


def rehearse(several: Sequence[Parts]) -> None:
    """Compute one loss of all, so that it is known before training starts if this cannot be."""
    parts = several[0]
    split = experiment.training_split(parts)
    generators = [each.training.generator.clone_state() for each in several]
    together, batch = stacked(several), next(meta_batches(parts.sampler, split, generators))
    try:
        together.rehearse(batch)
    except UserError as error:
        seeds = f"range({parts.config.seed},{several[-1].config.seed + 1})"
        raise UserError(
            f"{error}: train them one after another, with -m 'seed={seeds}' and without seeds="
        ) from error


def train(runs: list[Run], console: Console, stop: StopSignals) -> dict[int, str]:
    """Meta-train runs that stand at the same step to the end of the plan; why seeds failed."""
    parts, config = runs[0].parts, runs[0].parts.config
    plan, metric = Plan(**config.train), parts.data.metric
    together = stacked([run.parts for run in runs])
    failed: dict[int, str] = {}
    stopping = False
    with parts.data.sealed("test"):
        episodes = experiment.episodes_of(parts, "val", config.eval.val_episodes)

        def course(run: Run) -> Course:
            return Course(
                run.parts.training,
                plan,
                parts.sampler.tasks,
                metric,
                validate=lambda: experiment.overall(experiment.score(run.parts, episodes), metric),
                save=partial(experiment.save, run.parts, run.folder / "checkpoints"),
                stop=lambda: stopping,  # the same for all the seeds of a step
            )

        courses = {run.seed: course(run) for run in runs}
        split = experiment.training_split(parts)
        generators = [run.parts.training.generator for run in runs]
        batches = meta_batches(parts.sampler, split, generators)
        stop.wait = True
        for step in range(runs[0].step + 1, plan.steps + 1):
            figures, rate = together.step(next(batches))
            stopping = stop()
            if stopping or plan.validates_after(step):
                together.hand_out()
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


def conclude(run: Run, names: dict[str, str], peak_memory: float | None) -> None:
    """Test what was trained, and end the run."""
    experiment.take_best(run.parts, run.folder / "checkpoints")
    history = jsonlines.read(run.folder / "metrics.jsonl")
    start_wandb = experiment.weights_and_biases(run.parts, run.folder, names, run.results, history)
    trackers = Trackers(SeedConsole(run.seed), run.lines, start_wandb)
    try:
        experiment.conclude(run.parts, run.folder, trackers, run.results, peak_memory, run.began)
    finally:
        trackers.close()


def header(runs: list[Run], folder: Path, names: dict[str, str]) -> dict[str, str]:
    """What will run, in a few rows."""
    parts, seeds = runs[0].parts, [run.seed for run in runs]
    about = report.header(
        plain(parts.config),
        names,
        parts.data,
        parts.training.algorithm,
        parts.network,
        parts.device,
    )
    return about | {
        "seed": f"{', '.join(map(str, seeds))}, at once",
        "run folder": f"{folder}/seed{seeds[0]} and so on",
    }


def rows(results: dict[int, dict[str, Any]]) -> dict[str, str]:
    """The tests' figures by seed, and their mean with its interval over seeds."""
    tests = {seed: results[seed]["test"] for seed in sorted(results)}
    metric = next(iter(tests.values()))["metric"]
    of_seeds = {f"seed {s}": shown(metric, test[metric], test["ci95"]) for s, test in tests.items()}
    values = [math.nan if test[metric] is None else test[metric] for test in tests.values()]
    half = over_seeds(values) if len(values) > 1 else None
    return {**of_seeds, "mean": shown(metric, mean(values), half)}
