"""How the runs of a sweep stand, while they run: a live table, or a line at each change.

It is read off the run folders, so it does not matter which launcher runs the jobs, and where.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from metarun.functional.metrics import ACCURACY, named
from metarun.tables import cells
from metarun.tables.cells import Run
from metarun.tables.summary import told_apart
from metarun.tracking.console import metric_of, plain
from metarun.tracking.jsonlines import record_of

SECONDS = 2.0  # between two looks at the folders
LINES = 30  # runs that the live table shows at most
LETTERS = 80  # of why a run failed, which its job has told in full, and the folder keeps


class Watch:
    """Within this block, tells how the `total` runs in the folder of a sweep stand; if it is known
    which folders are theirs, `own`, then of no others.

    In a terminal that is a table, and what the runs themselves have to say is left out; elsewhere a
    line when a run has ended, beside what the runs say.
    """

    def __init__(self, folder: Path, total: int, own: Collection[Path] = ()):
        self.folder, self.total, self.own = folder, total, own
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.ended = threading.Event()
        self.told = {run.folder: run.state for run in self.runs()}

    def __enter__(self) -> "Watch":
        self.quiet = contextlib.ExitStack()
        if self.terminal:
            from rich.console import Console
            from rich.live import Live

            terminal = Console(file=sys.stdout)
            self.live = Live(
                self.table(), console=terminal, refresh_per_second=1, redirect_stdout=False
            )
            self.quiet.enter_context(self.live)
            silence = self.quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            self.quiet.enter_context(contextlib.redirect_stdout(silence))
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.look()
        self.quiet.close()

    def runs(self) -> list[Run]:
        """Those that have begun."""
        return [r for r in cells.below(self.folder) if not self.own or r.folder in self.own]

    def watch(self) -> None:
        """Look again and again, until the block ends."""
        while not self.ended.wait(SECONDS):
            with contextlib.suppress(OSError, ValueError):  # a file that is being written elsewhere
                self.look()

    def look(self) -> None:
        """Tell what is new."""
        if self.terminal:
            self.live.update(self.table())
            return
        runs = self.runs()
        for run in runs:
            if run.state in ("finished", "failed") and self.told.get(run.folder) != run.state:
                done = sum(other.state in ("finished", "failed") for other in runs)
                plain(f"[{done} of {max(self.total, len(runs))}] {self.name(run)}: {standing(run)}")
            self.told[run.folder] = run.state

    def table(self) -> Any:
        """What a terminal shows, as rich has it."""
        from rich.table import Table

        runs = self.runs()
        states = [run.state for run in runs]
        counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
        waiting = self.total - len(runs)
        caption = ", ".join(counts + ([f"{waiting} waiting"] if waiting > 0 else []))
        table = Table(title=str(self.folder), title_justify="left", caption=caption)
        for column in ("run", "config", "state", "step", "best so far"):
            table.add_column(column, no_wrap=True)
        begun = [run for run in runs if run.results]
        told = dict(zip([run.folder for run in begun], told_apart(begun), strict=True))
        first = [run for run in runs if run.state == "running"]
        for run in [*first, *(run for run in runs if run.state != "running")][:LINES]:
            table.add_row(self.name(run), told.get(run.folder, ""), run.state, *progress(run))
        return table

    def name(self, run: Run) -> str:
        """The run's folder within the sweep's."""
        return str(run.folder.relative_to(self.folder))


def standing(run: Run) -> str:
    """The test's figure, or why there is none, cut short."""
    if run.state == "failed":
        return f"failed: {run.error[:LETTERS]}{'…' if run.error[LETTERS:] else ''}"
    test = run.results.get("test")
    if not test:
        return run.state
    if not (isinstance(test.get("metric"), str) and "ci95" in test):
        return f"{run.state}, but its results.json is damaged"
    return f"test {test['metric']} {named(test['metric']).shown(run.value, test['ci95'])}"


def progress(run: Run) -> tuple[str, str]:
    """How many steps were taken, and the test's figure or else the best of the validations."""
    training = run.results.get("config", {}).get("train", {})
    steps = training.get("steps", 0) if isinstance(training, dict) else 0
    if run.state in ("finished", "failed"):
        return str(run.results.get("train", {}).get("steps", "")), standing(run)
    last = last_records(run.folder / "metrics.jsonl")
    best = next((f"val {record_shown(r)}" for r in reversed(last) if "val/best" in r), "")
    return f"{last[-1]['step']} of {steps}" if last else f"0 of {steps}", best


def record_shown(record: dict[str, Any]) -> str:
    """The best validation so far."""
    return (metric_of(record, "val/") or ACCURACY).shown(record["val/best"])


def last_records(path: Path, kilobytes: int = 64) -> list[dict[str, Any]]:
    """The records at the end of the file, whole ones."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 1024 * kilobytes))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [record for line in lines if (record := record_of(line)) is not None]
