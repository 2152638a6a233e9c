"""A table of finished runs: `python scripts/table.py FOLDER…` prints it as Markdown.

A row is an algorithm with its options, a column a test task. A cell is the mean over test episodes
with its 95 % half-width; of several seeds it is their mean, with the half-width over the seeds
(Student's t) and their number. Under it stand the steps and the CPU seconds of a whole run:
training, validation and test.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom.
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
Run = dict


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="searched for results.json")
    found = [path for f in parser.parse_args().folders for path in sorted(f.rglob("results.json"))]
    runs = [json.loads(path.read_text()) for path in found]
    finished = [run for run in runs if run["status"] == "finished"]
    if not finished:
        sys.exit("no finished run there")
    print(table(finished))
    if len(finished) < len(runs):
        print(f"\n{len(runs) - len(finished)} runs are not finished.", file=sys.stderr)


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
    for name in sorted(set(names), key=lambda name: rank(cells, name, columns)):
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


def rank(cells: dict[tuple[str, str], list[Run]], name: str, columns: list[str]) -> float:
    """Less for what is better in the first column that the row has."""
    runs = next(cells[name, column] for column in columns if (name, column) in cells)
    sign = 1 if runs[0]["test"]["metric"] == "mse" else -1
    return sign * mean(map(figure, runs))


def task(run: Run) -> str:
    """The test task, as the head of its column."""
    test = run["test"]
    way = "" if test["metric"] == "mse" else f"{test['way']}-way "
    return f"{run['names']['data']}, {way}{test['shot']}-shot"


def figure(run: Run) -> float:
    """Accuracy in percent, or the mean squared error."""
    test = run["test"]
    return 100 * test["accuracy"] if test["metric"] == "accuracy" else test["mse"]


def cell(runs: list[Run]) -> str:
    """The figure, its half-width, and what it cost; nothing for no runs."""
    if not runs:
        return ""
    seeds = [run["config"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds) or len(seeds) > len(STUDENT) + 1:
        name = f"{runs[0]['names']['algo']}, {task(runs[0])}"
        sys.exit(f"{name}: runs of seeds {seeds}: one run a seed, and 20 at most, make a cell")
    values = [figure(run) for run in runs]
    if len(runs) > 1:
        half = STUDENT[len(runs) - 2] * stdev(values) / len(runs) ** 0.5
        text = f"{mean(values):.2f} ± {half:.2f} ({len(runs)} seeds)"
    else:
        scale = 100 if runs[0]["test"]["metric"] == "accuracy" else 1
        text = f"{values[0]:.2f} ± {scale * runs[0]['test']['ci95']:.2f}"
    steps = sorted({run["train"]["steps"] for run in runs})
    seconds = mean(run["cpu_seconds"] for run in runs)
    return f"{text}<br>{', '.join(map(str, steps))} steps, {seconds:.0f} s"


if __name__ == "__main__":
    main()
