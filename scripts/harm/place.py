"""Where harm is done: a scratch folder, its cache and its clocks; and what a run came to."""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from forked import Outcome, run, shown

from metarun.errors import UserError
from metarun.runs import checkpoint
from metarun.tracking import jsonlines

SHORT = (
    "way=3 query=2 sampler.tasks=2 backbone.width=16 train.steps=8 train.val_every=2 "
    "train.log_every=1 eval.episodes=20 eval.val_episodes=6 tracker=none device=cpu name=a"
).split()
GO_ON = "resume=auto"
SECONDS = 60  # for a run that takes two

# What became of one try: None if it was survived, else what was wrong.
Tries = Iterator[str | None]


class Place:
    """A scratch folder, beside a `cache` of prepared data; `tries` is how often each family tries,
    and `chance` decides where."""

    def __init__(self, scratch: Path, cache: Path, tries: int, seed: int):
        self.scratch, self.cache, self.tries = scratch, cache, tries
        self.chance = random.Random(seed)
        self.environment = {"METARUN_DATA": str(cache), "WANDB_MODE": "disabled"}
        self._made = 0

    def new(self) -> Path:
        """An empty folder."""
        self._made += 1
        folder = self.scratch / f"{self._made:04}"
        folder.mkdir(parents=True)
        return folder

    def run(self, words: Sequence[str], folder: Path, **options: Any) -> Outcome:
        """How `metarun` ends with these words."""
        environment = {**self.environment, **options.pop("environment", {})}
        return run(words, folder, SECONDS, environment=environment, **options)

    def finished(self, words: Sequence[str], folder: Path, **options: Any) -> Outcome:
        """The same of what must end well."""
        outcome = self.run(words, folder, **options)
        assert outcome.code == 0, f"{shown(words)}: {outcome.told()}"
        return outcome


def numbers(folder: Path) -> dict[str, Any]:
    """What the runs below the folder came to: of each the test's figures and its episodes."""
    found = {}
    for path in sorted(folder.rglob("results.json")):
        try:
            results = json.loads(path.read_bytes())
            test = results.get("test") or {}
        except (OSError, ValueError, RecursionError, AttributeError):
            found[str(path.parent.relative_to(folder))] = ["unreadable"]
            continue
        csv = path.with_name("episodes.csv")
        found[str(path.parent.relative_to(folder))] = [
            results.get("status"),
            *(test.get(key) for key in ("accuracy", "ci95", "episodes", "measures")),
            (results.get("features") or {}).get("checksum"),
            hashlib.sha256(csv.read_bytes()).hexdigest() if csv.is_file() else None,
        ]
    return found


def half_written(folder: Path) -> str | None:
    """What is there under the name of a whole file, and is none; None if all are whole."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        try:
            if path.suffix == ".pt":
                checkpoint.load(path)
            elif path.suffix == ".json":
                json.loads(content)
            elif path.name == "metrics.jsonl":
                lines = content.count(b"\n")  # what follows the last is torn, and will be cut off
                if len(jsonlines.read(path)) != lines:
                    return f"{path}: a torn line that is not the last"
            elif path.name == "episodes.csv" and not content.endswith(b"\n"):
                return f"{path}: a torn line"
        except (UserError, ValueError, OSError) as error:
            return f"{path}: {error}"
    return None


def left_over(*folders: Path) -> str | None:
    """A temporary file that nobody will remove; None if there is none."""
    found = [p for folder in folders for p in folder.rglob("*") if p.name.endswith(".tmp")]
    return f"{found[0].name} stays" if found else None


def refused_or(outcome: Outcome, right: bool, told: str) -> str | None:
    """A try that is survived by one line of refusal, or by coming to what is `right`."""
    if outcome.refused is not None:
        return None
    if outcome.code is None or "Traceback" in outcome.err or outcome.code not in (0, 1):
        return f"{told}: {outcome.told()}"
    return None if right else f"{told}: another number: {outcome.told()}"


def flip(path: Path, chance: random.Random) -> str:
    """Turn one bit of the file round, and put its time back, as a rotten disk does; which one."""
    content, about = bytearray(path.read_bytes()), path.stat()
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return f"{path.name}, bit {bit} of byte {place}"
