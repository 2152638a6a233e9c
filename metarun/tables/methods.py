"""Finished runs of several methods on the same tasks, as one table.

A row is an algorithm with its options, a column a test task. A cell is the mean over test episodes
with its 95 % half-width; of several seeds it is their mean, with the half-width over the seeds
(Student's t) and their number. Under it stand the steps and the CPU seconds of a whole run:
training, validation and test.
"""

import math
from collections import defaultdict
from statistics import mean

from metarun.errors import UserError
from metarun.functional.metrics import ACCURACY, MSE, VALUES, named
from metarun.tables.render import half, rank, shown
from metarun.tables.statistics import over_seeds

Run = dict  # the content of a results.json


def table(runs: list[Run]) -> str:
    """Markdown: one row an algorithm, the best in the first column first."""
    names = row_names(runs)
    cells: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, name in zip(runs, names, strict=True):
        cells[name, task(run)].append(run)
    columns = sorted({column for _, column in cells})
    lines = [
        "| algorithm | batch norm | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name in sorted(set(names), key=lambda name: (place(cells, name, columns), name)):
        row = [cells.get((name, column), []) for column in columns]
        modes = sorted({run["test"]["batch_norm"] for runs in row for run in runs})
        lines.append(f"| {name} | {', '.join(modes)} | " + " | ".join(map(cell, row)) + " |")
    return "\n".join(lines)


def row_names(runs: list[Run]) -> list[str]:
    """Each run's algorithm, with those of its options that other runs of it have otherwise."""
    names = []
    for run in runs:
        algo, options = run["names"]["algo"], run["config"]["algo"]
        others = [r["config"]["algo"] for r in runs if r["names"]["algo"] == algo]
        telling = [
            f"{key}={value}"
            for key, value in options.items()
            if key not in ("way", "shot", "measured_steps")
            and any(other.get(key) != value for other in others)
        ]
        names.append(f"{algo} ({', '.join(telling)})" if telling else algo)
    return names


def place(cells: dict[tuple[str, str], list[Run]], name: str, columns: list[str]) -> float:
    """Less for what is better in the first column that the row has."""
    runs = next(cells[name, column] for column in columns if (name, column) in cells)
    return rank(mean(map(figure, runs)), runs[0]["test"]["metric"])


def task(run: Run) -> str:
    """The test task, as the head of its column."""
    test, metric = run["test"], named(run["test"]["metric"])
    way = "" if metric.of == VALUES else f"{test['way']}-way "
    support = test.get("sampler", {}).get("support")
    shot = f"{support} in the support set" if support else f"{test['shot']}-shot"
    asked = "" if metric in (ACCURACY, MSE) else f", {metric.label}"
    return f"{run['names']['data']}, {way}{shot}{asked}"


def figure(run: Run) -> float:
    """The test's figure as it is shown; nan if it was not finite."""
    value = run["test"][run["test"]["metric"]]
    return math.nan if value is None else scale(run) * value


def scale(run: Run) -> int:
    """What the test's figure and its half-width are multiplied by to be shown."""
    return named(run["test"]["metric"]).scale


def cell(runs: list[Run]) -> str:
    """The figure, its half-width, and what it cost; nothing for no runs."""
    if not runs:
        return ""
    seeds = [run["config"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        name = f"{runs[0]['names']['algo']}, {task(runs[0])}"
        raise UserError(f"{name}: runs of seeds {seeds}: one run a seed makes a cell")
    values = [figure(run) for run in runs]
    text = shown(mean(values))
    if len(runs) > 1:
        text += f"{half(over_seeds(values))} ({len(runs)} seeds)"
    elif (ci95 := runs[0]["test"]["ci95"]) is not None:
        text += half(scale(runs[0]) * ci95)
    steps = sorted({run["train"]["steps"] for run in runs})
    seconds = mean(run["cpu_seconds"] for run in runs)
    return f"{text}<br>{', '.join(map(str, steps))} steps, {seconds:.0f} s"
