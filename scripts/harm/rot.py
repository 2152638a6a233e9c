"""One bit of a file turns round: who reads it says so, or comes to the same number."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import platformdirs
from harm.place import GO_ON, SHORT, Place, Tries, flip, numbers, refused_or

COMPILED = 12  # tries of the kernels, which are then compiled anew
MORE = [w for w in SHORT if not w.startswith(("train.steps", "eval.episodes"))]
LONGER = [*MORE, "train.steps=10", "eval.episodes=20", GO_ON]
MORE_TESTS = [*MORE, "train.steps=8", "eval.episodes=30", GO_ON]
# By file, how it is read again.
READERS: dict[str, list[list[str]]] = {
    "checkpoints/best.pt": [["TEST"], MORE_TESTS],
    "checkpoints/last.pt": [LONGER, MORE_TESTS],
    "results.json": [["rerun=RUN"], LONGER, MORE_TESTS],
    "episodes.csv": [["rerun=RUN"], MORE_TESTS],
    "metrics.jsonl": [LONGER, ["rerun=RUN"]],
    ".hydra/config.yaml": [LONGER, ["rerun=RUN"]],
}


def of_a_run(file: str, place: Place) -> Tries:
    """A file of a run's folder."""
    begun = place.new()
    place.finished(SHORT, begun)
    readers = READERS[file]
    wanted = [came_to(place, begun, words) for words in readers]
    for number in range(place.tries):
        folder = place.new()
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        told = flip(run_of(folder) / file, place.chance)
        which = number % len(readers)
        outcome = place.run(spelled(readers[which], folder), folder)
        same = outcome.code == 1 or of_reader(folder) == wanted[which]  # rerun= tells what differs
        yield refused_or(outcome, same, f"{told}, then {readers[which][-1]}")
        shutil.rmtree(folder)


def prepared(place: Place) -> Tries:
    """A prepared split, which is made again."""
    shelf = place.new()
    place.finished(SHORT, shelf)
    wanted = numbers(shelf)
    splits = sorted(place.cache.glob("prepared/glyphs-*/*.safetensors"))
    assert len(splits) == 3
    for number in range(place.tries):
        cache, folder = place.new(), place.new()
        shutil.copytree(place.cache, cache, dirs_exist_ok=True)
        split = cache / splits[number % 3].relative_to(place.cache)
        told = flip(split, place.chance)
        outcome = place.run(SHORT, folder, environment={"METARUN_DATA": str(cache)})
        yield refused_or(outcome, numbers(folder) == wanted, told)
        shutil.rmtree(cache)
        shutil.rmtree(folder)


def kernels(place: Place) -> Tries:
    """The compiled kernels, which are made again; nothing where there are none."""
    shelf = place.new()
    place.finished(SHORT, shelf)
    wanted = numbers(shelf)
    compiled = Path(platformdirs.user_cache_dir("metarun")) / "kernels"
    for _ in range(min(place.tries, COMPILED) if list(compiled.glob("*.so")) else 0):
        cache, folder = place.new(), place.new()
        shutil.copytree(compiled, cache / "metarun" / "kernels")
        files = list(cache.rglob("*.so"))
        told = [flip(path, place.chance) for path in files]
        environment = {"XDG_CACHE_HOME": str(cache)}
        outcome = place.run(SHORT, folder, environment=environment)
        yield refused_or(outcome, numbers(folder) == wanted, told[0])
        shutil.rmtree(cache)
        shutil.rmtree(folder)


def came_to(place: Place, begun: Path, words: Sequence[str]) -> dict:
    """What the reader comes to when nothing is damaged."""
    folder = place.new()
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    place.finished(spelled(words, folder), folder)
    found = of_reader(folder)
    shutil.rmtree(folder)
    return found


def spelled(words: Sequence[str], folder: Path) -> list[str]:
    """The words with what stands for the run's folder, and for a test of its best model."""
    run = os.path.relpath(run_of(folder), folder)
    if words == ["TEST"]:
        others = [w for w in SHORT if not w.startswith(("train.", "name="))]
        return [*others, "mode=test", f"checkpoint={run}/checkpoints/best.pt", "name=test"]
    return [word.replace("RUN", run) for word in words]


def run_of(folder: Path) -> Path:
    """The folder of the run."""
    return next(folder.glob("outputs/*/*/a"))


def of_reader(folder: Path) -> dict:
    """What the run came to, or the one beside it that read it."""
    found = numbers(folder)
    beside = {name: value for name, value in found.items() if not name.endswith("/a")}
    return beside or found


READ: dict[str, Callable[[Place], Tries]] = {
    f"rot-{Path(file).name}": partial(of_a_run, file) for file in READERS
}
FAMILIES = {**READ, "rot-prepared": prepared, "rot-kernels": kernels}
