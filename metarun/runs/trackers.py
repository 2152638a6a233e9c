"""Who is told what happens in a run: the console, its metrics.jsonl, and Weights & Biases."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metarun.parts import Parts
from metarun.runs import report
from metarun.runs.job import Job
from metarun.testing.fixed_episodes import FixedEpisodes
from metarun.testing.pictures import draw
from metarun.tracking import jsonlines, pictures
from metarun.tracking.console import Console
from metarun.tracking.trackers import Trackers
from metarun.tracking.weights_and_biases import WeightsAndBiases


def start_trackers(parts: Parts, job: Job, results: dict[str, Any], going_on: bool) -> Trackers:
    """All three, the console having told what will run, and W&B still to come.

    `results` are those that the run begins with, or goes on from.
    """
    step = parts.training.progress.step
    console = Console(parts.plan.steps, step)
    console.header(report.header(parts, job) | {"run folder": str(job.folder)})
    if trained_in := results["trained_in"]:
        console.message(f"trained in {trained_in['folder']}, which differs in its test alone")
    elif going_on:
        console.message(f"going on after step {step}")
    if results["trained_on"] != parts.data.checksum:
        console.message("the model was trained on other data; it is tested on what data= says")
    path = job.folder / "metrics.jsonl"
    lines = jsonlines.JsonLines(path, step if going_on else None)
    history = jsonlines.read(path) if going_on else []
    return Trackers(console, lines, weights_and_biases(job, results, history))


def weights_and_biases(
    job: Job, results: dict[str, Any], history: list[dict]
) -> Callable[[], WeightsAndBiases]:
    """What starts the run's mirror in W&B, with the `history` that it does not have yet."""
    config, folder, names, _ = job
    tracker = config["tracker"]
    return partial(
        WeightsAndBiases,
        folder,
        {**config, "data_checksum": results["data"]["checksum"], "names": names},
        mode=tracker["mode"],
        project=str(tracker["project"]),
        group=str(tracker["group"] or names["sweep"]) or None,
        tags=[str(tag) for tag in tracker["tags"]],
        name="/".join(folder.parts[-2:]) if names["sweep"] else folder.name,
        run_id=results["wandb_id"],
        history=history,
        artifact=tracker["artifact"],
    )


def draw_pictures(parts: Parts, episodes: FixedEpisodes, folder: Path, trackers: Trackers) -> None:
    """The curves of training, and the first test episodes with the model's predictions."""
    curves, episode = folder / "curves.png", folder / "episode.png"
    try:
        pictures.curves(jsonlines.read(folder / "metrics.jsonl"), curves, parts.protocol.metric)
        draw(parts.training.algorithm, episodes, parts.device, episode)
    except Exception as error:  # the number is worth more than its picture
        trackers.console.message(f"a picture could not be drawn: {error!r}")
    trackers.pictures({path.stem: path for path in (curves, episode) if path.exists()})
