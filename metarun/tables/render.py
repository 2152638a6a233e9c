"""A paper's table and ours, from the run folders: Markdown, CSV, LaTeX, JSON and a picture."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from filelock import FileLock

from metarun import files
from metarun.configs.rules import nearest
from metarun.functional.metrics import named
from metarun.runs import folder as runfolder
from metarun.tables import statistics
from metarun.tables.cells import Run, checked, read
from metarun.tables.figures import Figure, figure, pairs
from metarun.tracking.console import duration

Row = dict[str, Any]

MARKS = {"quoted": "¹", "memory": "²"}  # of numbers not read in the paper or its repository
HALVES = {"seeds": "over_seeds", "closed": "closed", "open": "open"}
FOOTNOTES = {
    "quoted": "¹ as quoted by other papers.",
    "memory": "² from memory, not yet checked against the paper.",
}
LEGEND = (
    "Half-widths: 95 %. *Seeds*: Student's t over trainings. *Closed*: over test episodes drawn "
    "from the same examples, 1.96 s/√E, as papers report. *Open*: for other examples, t s/√T of as "
    "many episodes as they make without a common one (Lafargue et al. 2024). *Spread*: standard "
    "deviation over episodes, of one task (Dhillon et al. 2020)."
)
VERDICTS = (
    "The verdict compares the difference with the paper's interval, if it gives one, and ours over "
    "seeds and over episodes (closed), taken together."
)


def write(folder: Path) -> str:
    """Render the table whose runs are in `folder` into table.md, .csv, .tex, .json and .png there;
    the Markdown, and where it is."""
    with FileLock(folder / ".lock"):  # another process may have begun some of the runs
        files.sweep(folder)
        about = runfolder.read_json(folder / "table_of.json")
        rows, figures = read_rows(about, folder)
        differences = pairs(figures)
        text = markdown(about, rows, differences)
        runfolder.write_text(folder / "table.md", text)
        runfolder.write_text(folder / "table.csv", as_csv(rows))
        runfolder.write_text(folder / "table.tex", latex(about, rows))
        runfolder.write_json(
            folder / "table.json",
            {
                **{k: v for k, v in about.items() if k not in ("cells", "runs")},
                "conditions": departing(rows),
                "rows": rows,
                "pairs": differences,
            },
        )
        picture(about, rows, folder / "table.png")
    return f"{text}\n{folder}/table.md, .csv, .tex, .json, .png"


def read_rows(about: dict[str, Any], folder: Path) -> tuple[list[Row], dict[str, Figure]]:
    """The rows, one a cell of the paper's table, and the figure of each that has one."""
    rows, figures = [], {}
    for cell in about["cells"]:
        mine = [run for run in about["runs"] if run["experiment"] == cell["experiment"]]
        runs = {run["seed"]: checked(read(folder / run["folder"])) for run in mine}
        departures = sorted({departure for run in mine for departure in run["departures"]})
        row = row_of(cell, runs, departures)
        finished = [run for run in runs.values() if run.state == "finished"]
        measure = cell.get("measure")
        row["missing"] = missing(finished, measure) if finished and measure else ""
        if finished and not row["missing"]:
            found = figure(finished, measure)
            figures[row["cell"]] = found
            row |= ours(found, cell, about["metric"], comparable=not departures)
        rows.append(row)
    return rows, figures


def missing(finished: list[Run], measure: str) -> str:
    """Why the measure has no figure though runs are finished; "" if it has one."""
    had = set.intersection(*(set(run.results["test"]["measures"]) for run in finished))
    return "" if measure in had else f"its test has no measure {measure}{nearest(measure, had)}"


def row_of(cell: dict[str, Any], runs: dict[int, Run], departures: list[str]) -> Row:
    """What a row says whatever came out: the cell, how its runs stand and how they were made."""
    row: Row = {
        "cell": cell.get("label") or cell["experiment"],
        **{key: cell.get(key) for key in ("experiment", "measure", "paper", "ci95", "read_in")},
        "conditions": departures,
        "states": {seed: run.state for seed, run in sorted(runs.items())},
        "errors": {seed: run.error for seed, run in sorted(runs.items()) if run.state == "failed"},
    }
    finished = [run for _, run in sorted(runs.items()) if run.state == "finished"]
    row["seeds"] = [seed for seed, run in sorted(runs.items()) if run.state == "finished"]
    if not finished:
        return row
    results = [run.results for run in finished]
    config, test = results[0]["config"], results[0]["test"]
    sampler = config["sampler"]
    memory = [r["train"].get("peak_memory_mib") for r in results]
    return row | {
        "metric": test["metric"],
        "test": {key: test[key] for key in ("way", "shot", "query", "episodes")},
        "train": {key: sampler.get(key) for key in ("way", "shot", "query", "tasks")},
        "batch_norm": test["batch_norm"],
        "backbone": backbone(results[0]),
        "precision": config["device"]["precision"],
        "steps": sorted({r["train"]["steps"] for r in results}),
        "shared_training": any(r.get("trained_in") for r in results),
        "train_seconds": sum(r["train"]["seconds"] for r in results) / len(results),
        "wall_seconds": sum(r["seconds"] for r in results) / len(results),
        "peak_memory_mib": max((m for m in memory if m), default=None),
        "data_checksum": sorted({r["data"]["checksum"] for r in results}),
        "episodes_sha256": test["episodes_sha256"],
    }


def ours(found: Figure, cell: dict[str, Any], metric: str, comparable: bool) -> Row:
    """Our number with its intervals, beside the paper's."""
    row: Row = {
        "ours": found.mean,
        **{k: getattr(found, k) for k in ("over_seeds", "closed", "open", "spread", "disjoint")},
        "difference": None,
        "difference_ci95": None,
        "verdict": None,
    }
    if comparable and cell["paper"] is not None:
        difference = found.mean - cell["paper"]
        half = statistics.together(found.over_seeds, found.closed, cell["ci95"] or math.nan)
        row |= {"difference": difference, "difference_ci95": half}
        row["verdict"] = verdict(named(metric).gain(difference), half)
    return row


def verdict(gain: float, half: float) -> str:
    """In a word, whether we reach the paper's number."""
    if math.isnan(gain):
        return "not a number"
    if abs(gain) <= half:
        return "equal within the intervals"
    return "better" if gain > 0 else "worse"


def backbone(results: dict[str, Any]) -> str:
    """The network's name and width, as in conv4 64."""
    options = results["config"]["backbone"]
    width = options.get("width", options.get("widths", options.get("features", "")))
    return f"{results['names']['backbone']} {width}".strip()


def markdown(about: dict[str, Any], rows: list[Row], differences: list[dict[str, Any]]) -> str:
    """The table with its title, its conditions and its notes."""
    finished = [row for row in rows if "ours" in row]
    lines = [f"## {title(about, rows)}", "", f"{about['source']}. {about['data']}.", ""]
    lines += [*lined([numbers(row) for row in rows]), ""]
    marks = [text for key, text in FOOTNOTES.items() if any(r["read_in"] == key for r in rows)]
    judged = [VERDICTS] if any(row.get("verdict") for row in rows) else []
    lines += [" ".join([*marks, LEGEND, *judged]), ""]
    if finished:
        lines += [*lined([conditions(row) for row in finished]), ""]
    lines += failures(rows)
    lines += [f"* {row['cell']}: {row['missing']}" for row in rows if row["missing"]]
    lines += [f"* {told}" for told in mixed_data(rows)]
    lines += [f"* {' '.join(note.split())}" for note in about.get("notes") or []]
    if differences:
        lines += ["", "On the same test episodes, the first less the second:", ""]
        lines += lined(
            [
                {
                    **{key: pair[key] for key in ("first", "second")},
                    "difference": shown(pair["difference"]),
                    **{f"± {name}": shown(pair[key]) for name, key in HALVES.items()},
                }
                for pair in differences
            ]
        )
    return "\n".join(lines).rstrip() + "\n"


def failures(rows: list[Row]) -> list[str]:
    """A line for each reason for which runs failed, and which."""
    runs: dict[str, list[str]] = {}
    for row in rows:
        for why in dict.fromkeys(row["errors"].values()):
            seeds = ", ".join(str(s) for s, error in row["errors"].items() if error == why)
            runs.setdefault(why, []).append(f"{row['cell']}, seed {seeds}")
    return [f"* {'; '.join(failed)}: failed: {why}" for why, failed in runs.items()]


def mixed_data(rows: list[Row]) -> list[str]:
    """A line for each cell whose runs had other data than one another."""
    return [
        f"{row['cell']}: its runs had data of {len(row['data_checksum'])} checksums: "
        + ", ".join(checksum[:12] for checksum in row["data_checksum"])
        for row in rows
        if len(row.get("data_checksum", [])) > 1
    ]


def lined(rows: list[dict[str, str]]) -> list[str]:
    """Markdown lines of equal columns."""
    head = list(rows[0])
    return [
        table_line(head),
        table_line(["---"] * len(head)),
        *(table_line(list(row.values())) for row in rows),
    ]


def departing(rows: list[Row]) -> list[str]:
    """How any of the cells that are asked for departs from the paper's conditions."""
    return sorted({departure for row in rows for departure in row["conditions"]})


def title(about: dict[str, Any], rows: list[Row]) -> str:
    """The table's, with the conditions if they are not the paper's, and the precision, which papers
    do not tell."""
    text = about["title"]
    precisions = sorted({run.get("precision", "fp32") for run in about["runs"]})
    if precisions != ["fp32"]:
        text += f", in {' and '.join(precisions)}"
    if told := departing(rows):
        some = any(row["states"] and not row["conditions"] for row in rows)
        text += f", {'in part ' if some else ''}NOT under the paper's conditions: {' '.join(told)}"
    return text


def numbers(row: Row) -> dict[str, str]:
    """The paper's number and ours, as text under the heads of the columns."""
    paper = "–"
    if row["paper"] is not None:
        paper = f"{row['paper']}{half(row['ci95'])}{MARKS.get(row['read_in'], '')}"
    halves = {f"± {name}": shown(row.get(key)) for name, key in HALVES.items()}
    said = row.get("verdict") or "–"
    if row["conditions"]:
        said = f"none: {' '.join(row['conditions'])}"
    unit = named(row["metric"]).unit if "metric" in row else ""
    return {
        "cell": row["cell"],
        "paper": paper,
        "ours": f"{shown(row['ours'])}{unit}" if "ours" in row else standing(row),
        **halves,
        "difference": signed(row.get("difference"), row.get("difference_ci95")),
        "verdict": said,
    }


def conditions(row: Row) -> dict[str, str]:
    """How the runs of a cell were made, as text under the heads of the columns."""
    test, train, memory = row["test"], row["train"], row["peak_memory_mib"]
    trained = {key: "–" if train[key] is None else str(train[key]) for key in train}
    return {
        "cell": row["cell"],
        "train way": trained["way"],
        "train shot": trained["shot"],
        "train query": trained["query"],
        "meta-batch": trained["tasks"],
        "test": f"{test['way']}-way {test['shot']}-shot, {test['query']} queries",
        "episodes": str(test["episodes"]),
        "spread": shown(row["spread"]),
        "batch norm": row["batch_norm"],
        "backbone": row["backbone"],
        "precision": row["precision"],
        "seeds": ", ".join(map(str, row["seeds"]))
        + ("" if is_whole(row) else f" ({standing(row)})"),
        "steps": ", ".join(map(str, row["steps"])),
        "training time": duration(row["train_seconds"])
        + (" (shared)" if row["shared_training"] else ""),
        "wall time": duration(row["wall_seconds"]),
        "peak memory": "–" if memory is None else f"{memory:.0f} MiB",
    }


def standing(row: Row) -> str:
    """How the runs of a cell stand, in a few words."""
    if not row["states"]:
        return "not asked for"
    states = list(row["states"].values())
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))


def is_whole(row: Row) -> bool:
    """Whether all runs of the cell are finished."""
    return set(row["states"].values()) == {"finished"}


def shown(number: float | None) -> str:
    """With two decimals; a dash for none."""
    return "–" if number is None or math.isnan(number) else f"{number:.2f}"


def signed(number: float | None, width: float | None) -> str:
    """A difference with its sign and its half-width; a dash for none."""
    return "–" if number is None or math.isnan(number) else f"{number:+.2f}{half(width)}"


def rank(figure: float, metric: str) -> float:
    """Less for what is better, most for what is not a number."""
    if math.isnan(figure):
        return math.inf
    return -named(metric).gain(figure)


def half(number: float | None) -> str:
    """As ± 0.78; nothing for none."""
    return "" if number is None or math.isnan(number) else f" ± {number:.2f}"


def table_line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def as_csv(rows: list[Row]) -> str:
    """One line a cell, its nested values as columns of their own."""
    flat_rows = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat_rows for key in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_rows)
    return file.getvalue()


def flat(row: Row) -> Row:
    """Nested values as columns of their own, lists as text."""
    found: Row = {}
    for key, value in row.items():
        if isinstance(value, dict) and key in ("test", "train"):
            found |= {f"{key}_{inner}": item for inner, item in value.items()}
        elif isinstance(value, dict):
            found[key] = "; ".join(f"{inner}: {item}" for inner, item in value.items())
        elif isinstance(value, list):
            found[key] = " ".join(map(str, value))
        else:
            found[key] = value
    return found


def latex(about: dict[str, Any], rows: list[Row]) -> str:
    """A tabular with the numbers: \\input it where a table is to stand."""
    table = [numbers(row) for row in rows]
    head = list(table[0])
    lines = [
        f"% {title(about, rows)}; {about['source']}",
        r"\begin{tabular}{l" + "r" * (len(head) - 2) + "l}",
        r"\hline",
        " & ".join(map(escaped, head)) + r" \\",
        r"\hline",
        *(" & ".join(escaped(row[name]) for name in head) + r" \\" for row in table),
        r"\hline",
        r"\end{tabular}",
    ]
    if told := " ".join(departing(rows)):
        lines.append(rf"\par Not under the paper's conditions: {escaped(told)}")
    return "\n".join(lines) + "\n"


TEX = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$", "–": "--", "$": r"\$"}
TEX |= {"¹": "$^1$", "²": "$^2$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}


def escaped(text: str) -> str:
    """The text as LaTeX sets it."""
    return "".join(TEX.get(letter, letter) for letter in text)


def picture(about: dict[str, Any], rows: list[Row], path: Path) -> None:
    """The paper's numbers and ours, with their intervals, one line a cell."""
    from metarun.tracking.pictures import GREY, LINE, new_figure, save

    figure = new_figure(7.5, 1.2 + 0.4 * len(rows))
    axes = figure.subplots()
    for i, row in enumerate(rows):
        if row["paper"] is not None:
            axes.errorbar(
                row["paper"], i - 0.12, xerr=row["ci95"] or 0, fmt="D", color=GREY, label="paper"
            )
        if "ours" in row:
            width = statistics.together(row["over_seeds"], row["closed"])
            axes.errorbar(row["ours"], i + 0.12, xerr=width, fmt="o", color=LINE, label="ours")
    axes.set_yticks(range(len(rows)), [row["cell"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(named(about["metric"]).label)
    axes.set_title(title(about, rows), fontsize=9, wrap=True)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=8)
    save(figure, path)
