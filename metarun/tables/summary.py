"""The runs of any sweep in a few lines: one for each config, over its seeds."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from metarun.configs.rules import flat, shown
from metarun.functional.metrics import named
from metarun.runs import folder as runfolder
from metarun.tables.cells import UNNAMED, Run, below, checked
from metarun.tables.figures import Figure, figure, pairs
from metarun.tables.render import rank, signed, table_line
from metarun.tables.render import shown as number

MOST_PAIRS = 10


def write(folder: Path) -> str:
    """Keep the summary of the sweep in `folder` there, as summary.md and summary.json; the text."""
    runs = [checked(run) if run.results.get("test") else run for run in below(folder)]
    groups = by_config([run for run in runs if run.state == "finished" and run.results.get("test")])
    figures = {name: figure(of_config) for name, of_config in groups.items()}
    text = markdown(folder, runs, groups, figures)
    runfolder.write_text(folder / "summary.md", text)
    rows = [
        {"config": name, **found._replace(episodes=None)._asdict()}  # type: ignore[arg-type]
        for name, found in figures.items()
    ]
    runfolder.write_json(folder / "summary.json", {"rows": rows, "pairs": pairs(figures)})
    return text


def by_config(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs that differ in the seed alone, under what tells their config from the others'."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run, name in zip(runs, told_apart(runs), strict=True):
        groups[name or run.results["names"]["algo"]].append(run)
    return groups


def told_apart(runs: list[Run]) -> list[str]:
    """What tells each run's config from the others', but for the seed: few keys, short ones first.

    A key that only follows another one, such as sampler.way behind way, tells nothing more.
    """
    configs = [deciding(run) for run in runs]
    told: list[str] = []
    keys = dict.fromkeys(key for config in configs for key in config)
    for key in sorted(keys, key=lambda key: (key.count("."), len(key))):
        if len(classes(configs, [*told, key])) > len(classes(configs, told)):
            told.append(key)
    return [" ".join(f"{key}={shown(config.get(key))}" for key in told) for config in configs]


def classes(configs: list[dict[str, Any]], keys: list[str]) -> set[str]:
    """The configs as far as the keys tell them apart."""
    return {json.dumps([config.get(key) for key in keys]) for config in configs}


def deciding(run: Run) -> dict[str, Any]:
    """The run's choices and the keys of its config, but for the seed."""
    left_out = tuple(f"{key}." for key in [*UNNAMED, "seed"])
    config = flat(run.results.get("config", {}))
    names = {k: v for k, v in run.results.get("names", {}).items() if k != "sweep"}
    return names | {k: v for k, v in config.items() if not f"{k}.".startswith(left_out)}


def markdown(
    folder: Path, runs: list[Run], groups: dict[str, list[Run]], figures: dict[str, Figure]
) -> str:
    """The table, best first, and the runs that are not in it."""
    head = ["config", "test", "± seeds", "± closed", "± open", "seeds"]
    lines = [table_line(head), table_line(["---"] * len(head))]
    metric = {name: runs[0].results["test"]["metric"] for name, runs in groups.items()}
    for name in sorted(figures, key=lambda name: rank(figures[name].mean, metric[name])):
        found = figures[name]
        unit = named(metric[name]).unit
        halves = [number(h) for h in (found.over_seeds, found.closed, found.open)]
        seeds = sorted(run.results["config"]["seed"] for run in groups[name])
        mean = f"{number(found.mean)}{unit}"
        lines.append(table_line([name, mean, *halves, ", ".join(map(str, seeds))]))
    lines.append("")
    unfinished: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.state != "finished":
            how = f"{run.state} {run.error}".rstrip()
            unfinished[how].append(str(run.folder.relative_to(folder)))
    lines += [f"{', '.join(folders)}: {how}" for how, folders in unfinished.items()]
    for pair in pairs(figures)[:MOST_PAIRS]:
        difference = signed(pair["difference"], pair["closed"])
        lines.append(f"{pair['first']} less {pair['second']}, same episodes: {difference}")
    return "\n".join(lines).rstrip() + "\n"
