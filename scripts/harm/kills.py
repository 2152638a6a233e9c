"""SIGKILL at a random moment, once or several times: the same command then comes to the same."""

import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from forked import Outcome, start
from harm.place import GO_ON, SECONDS, SHORT, Place, Tries, half_written, left_over, numbers
from PIL import Image

EXPERIMENT = "# @package _global_\nalgo: {distance: %s}\n"
TABLE = """
title: Two cells
source: nowhere
data: glyphs
metric: accuracy
seeds: [0]
cells:
  - {experiment: a, paper: 50.0, ci95: null, read_in: Table 1}
  - {experiment: b, paper: null, ci95: null, read_in: Table 1}
"""
AGAIN = [word for word in SHORT if word != "name=a"]
MOST_KILLS = 3  # of one run, one after another


def training(place: Place) -> Tries:
    """A training and its test."""
    return killed(place, [*SHORT, GO_ON])


def resume(place: Place) -> Tries:
    """A finished run that goes on: more steps, more test episodes."""
    before = place.new()
    place.finished(SHORT, before)
    more = [w for w in SHORT if not w.startswith(("train.steps", "eval.episodes"))]
    words = [*more, "train.steps=14", "eval.episodes=30", GO_ON]
    return killed(place, words, partial(shutil.copytree, before, dirs_exist_ok=True))


def table(place: Place) -> Tries:
    """A paper's table of two cells."""
    return killed(place, ["--config-dir", "conf", "table=two", *AGAIN], own_table)


def sweep(place: Place) -> Tries:
    """A sweep of two jobs."""
    return killed(place, ["-m", "seed=0,1", *SHORT, GO_ON])


def embed(place: Place) -> Tries:
    """Features of a trained backbone."""
    before = place.new()
    place.finished(SHORT, before)
    best = next(before.rglob("best.pt"))
    words = ["mode=embed", f"checkpoint={best}", "backbone.width=16", "to=features", "device=cpu"]
    return killed(place, [*words, "tracker=none", "name=e", GO_ON])


def preparing(place: Place) -> Tries:
    """Data that is prepared for the first time, each time in a cache of its own."""
    pictures = place.new() / "pictures"
    own_pictures(pictures)
    words = ["mode=prepare", "data=image_folder", f"data.root={pictures}", "data.size=16"]
    wanted, seconds = None, 0.0
    for number in range(place.tries + 1):
        folder = place.new()
        environment = {**place.environment, "METARUN_DATA": str(folder / "data")}
        if number:
            kill(place, words, folder, seconds, environment)
        outcome = place.finished(words, folder, environment=environment)
        checksum = [line for line in outcome.out.splitlines() if line.startswith("checksum")]
        sound = place.run(["mode=verify", *words[1:]], folder, environment=environment)
        wanted, seconds = wanted or checksum, seconds or outcome.seconds
        if number:
            odd = left_over(folder) or (None if sound.code == 0 else sound.told())
            yield odd or (None if checksum == wanted else "another checksum")
        shutil.rmtree(folder)


def killed(
    place: Place, words: Sequence[str], begin: Callable[[Path], object] = lambda folder: None
) -> Tries:
    """Runs of the words, killed and begun again, beside one that never was; `begin` puts into a
    folder what is there before."""
    folder = place.new()
    begin(folder)
    seconds = place.finished(words, folder).seconds
    wanted = numbers(folder)
    for _ in range(place.tries):
        folder = place.new()
        begin(folder)
        odd = None
        for _ in range(place.chance.randint(1, MOST_KILLS)):
            kill(place, words, folder, seconds, place.environment)
            odd = odd or half_written(folder)
        outcome = place.run(words, folder)
        if outcome.code != 0:
            yield f"does not go on: {outcome.told()}"
        elif numbers(folder) != wanted:
            yield f"another number: {numbers(folder)} instead of {wanted}"
        else:
            yield odd or half_written(folder) or left_over(folder)
        shutil.rmtree(folder)


def kill(
    place: Place, words: Sequence[str], folder: Path, seconds: float, environment: dict[str, str]
) -> Outcome:
    """The run, killed at a random moment of so many seconds."""
    moment = place.chance.uniform(0, seconds)
    run = start(words, folder, environment)
    outcome = run.wait(SECONDS, at=lambda passed: passed > moment)
    assert outcome.code in (0, -signal.SIGKILL), outcome.told()
    return outcome


def own_table(folder: Path) -> None:
    """Config files of a table with two experiments."""
    files = {"experiment/a": EXPERIMENT % "euclidean", "experiment/b": EXPERIMENT % "cosine"}
    for name, text in {**files, "table/two": TABLE}.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def own_pictures(folder: Path) -> None:
    """Twelve classes of eight noisy pictures."""
    chance = np.random.default_rng(0)
    for number in range(96):
        path = folder / f"c{number % 12:02}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


FAMILIES = {
    "kill-training": training,
    "kill-resume": resume,
    "kill-preparing": preparing,
    "kill-table": table,
    "kill-sweep": sweep,
    "kill-embed": embed,
}
