"""What is odd about a run's own figures, in words: a number can be neat and mean nothing."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from metarun.functional.metrics import ACCURACY
from metarun.testing.protocol import Figures
from metarun.tracking import jsonlines
from metarun.tracking.jsonlines import Record

CLOSE = 0.01  # of ln(way), for a loss to be one at chance
LAST = 5  # lines of the log, over which that loss is a mean


def told(sentences: list[str], tell: Callable[[str], None]) -> list[str]:
    """The same sentences, each told."""
    for sentence in sentences:
        tell(f"doubt: {sentence}")
    return sentences


def doubts_of_test(
    config: dict[str, Any], figures: Figures, test: dict[str, Any], classes: int | None = None
) -> list[str]:
    """Sentences about the `figures` of the test's episodes and what they come to, the `test` part
    of results.json: episodes of all the `classes` that the test split has, scores that are all
    equal, a result that guessing would have given."""
    way = fixed_way(config["eval"])
    few = [
        f"every test episode is of the same {way} classes, all that the test split has: the "
        "interval tells nothing of other classes"
    ] * (way is not None and way == classes)
    return few + doubts_of_scores(way, figures, test)


def doubts_of_scores(way: int | None, figures: Figures, test: dict[str, Any]) -> list[str]:
    """The same about scores that are all equal, or no better than guessing among `way` classes."""
    accuracies = [a for of in figures.values() for a in of.get(ACCURACY.name, ())]
    if not way or test["metric"] != ACCURACY.name or not len(accuracies):
        return []
    chance, value, half = 1 / way, test[ACCURACY.name], test["ci95"]
    if all(math.isclose(float(a), chance, abs_tol=1e-6) for a in accuracies):
        return [
            f"the accuracy of every test episode is exactly {100 * chance:.4g} %, one class of "
            f"{way}: the scores do not depend on the query"
        ]
    if abs(value - chance) <= half:
        return [
            f"the test accuracy cannot be told from guessing, which is {100 * chance:.4g} % "
            f"for {way} classes"
        ]
    return []


def doubts_of_training(config: dict[str, Any], folder: Path) -> list[str]:
    """Sentences about the training whose log is in the run's `folder`, if there was one."""
    with suppress(OSError, ValueError):  # a damaged log is no reason to lose the test
        return doubts_of_log(config, jsonlines.read(folder / "metrics.jsonl"))
    return []


def doubts_of_log(config: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Validations that are all the same, and a loss that is still that of guessing."""
    found = []
    name = f"val/{ACCURACY.name}"
    vals = [record[name] for record in records if record.get(name) is not None]
    if len(vals) > 1 and len(set(vals)) == 1 and vals[0] < 1:
        found.append(
            f"the validation never moved: {100 * vals[0]:.2f} % at each of the {len(vals)} times"
        )
    way = fixed_way(config["sampler"] | {"query": 1})  # of the loss, any queries are alike
    losses = [r["train/loss"] for r in records if r.get("train/loss") is not None][-LAST:]
    guessing = math.log(way) if way else 0.0
    if losses and guessing and abs(mean(losses) - guessing) <= CLOSE * guessing:
        found.append(
            f"the training loss ends at {mean(losses):.3f}, which is that of guessing among {way} "
            f"classes, ln({way})"
        )
    return found


def fixed_way(task: dict[str, Any]) -> int | None:
    """How many classes, equally frequent among the queries, every task has, if that is so."""
    sampler = task.get("sampler", task)
    least = sampler.get("least_way", task.get("way"))
    if not task.get("way") or least != task["way"] or not task.get("query"):
        return None
    return int(task["way"])
