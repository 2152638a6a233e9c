"""A table of finished runs: `python scripts/table.py FOLDER…` prints it as Markdown.

A row is an algorithm, a column a test task. A cell is the mean over test episodes with its 95 %
half-width; of several seeds it is their mean, with the half-width over the seeds (Student's t) and
their number. Under it stand the steps and the CPU seconds of a whole run: training, validation
and test.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}


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


def table(runs: list[dict]) -> str:
    """Markdown: one row an algorithm, in the order of its first column's figures."""
    cells: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for run in runs:
        cells[run["names"]["algo"], task(run)].append(run)
    columns = sorted({column for _, column in cells})
    algorithms = sorted({algo for algo, _ in cells}, key=lambda algo: -best(cells, algo, columns))
    lines = [
        "| algorithm | batch norm | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for algo in algorithms:
        modes = {run["test"]["batch_norm"] for c in columns for run in cells.get((algo, c), [])}
        shown = [cell(cells[algo, column]) if (algo, column) in cells else "" for column in columns]
        lines.append(f"| {algo} | {', '.join(sorted(modes))} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def best(cells: dict, algo: str, columns: list[str]) -> float:
    """The figure of the algorithm's first filled column."""
    runs = next(cells[algo, column] for column in columns if (algo, column) in cells)
    return mean(value(run) for run in runs)


def task(run: dict) -> str:
    """The test task, as the head of its column."""
    test = run["test"]
    way = "" if test["metric"] == "mse" else f"{test['way']}-way "
    return f"{run['names']['data']}, {way}{test['shot']}-shot"


def value(run: dict) -> float:
    """Accuracy in percent, or the mean squared error."""
    test = run["test"]
    return 100 * test["accuracy"] if test["metric"] == "accuracy" else test["mse"]


def cell(runs: list[dict]) -> str:
    """The figure, its half-width, and what it cost."""
    values = [value(run) for run in runs]
    if len(runs) > 1:
        half = STUDENT.get(len(runs), 1.96) * stdev(values) / len(runs) ** 0.5
        figure = f"{mean(values):.2f} ± {half:.2f} ({len(runs)} seeds)"
    else:
        scale = 100 if runs[0]["test"]["metric"] == "accuracy" else 1
        figure = f"{values[0]:.2f} ± {scale * runs[0]['test']['ci95']:.2f}"
    steps = sorted({run["train"]["steps"] for run in runs})
    seconds = mean(run["cpu_seconds"] for run in runs)
    return f"{figure}<br>{', '.join(map(str, steps))} steps, {seconds:.0f} s"


if __name__ == "__main__":
    main()
