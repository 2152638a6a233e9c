"""What the person at the terminal sees: what runs, how far it is, and the result at the end.

On a terminal there is a live bar; elsewhere (a pipe, a file, a cluster's log) plain lines, without
control codes and never wrapped.
"""

import errno
import math
import os
import sys
import time

from metarun.functional.metrics import ACCURACY, METRICS, Metric, kind_of, named
from metarun.tracking.jsonlines import Record

PLAIN_SECONDS = 60  # between two training lines of a plain log, unless a tenth of the steps passed


class Console:
    """Shows a run of `total_steps` steps that starts (or was resumed) at `first_step`."""

    def __init__(self, total_steps: int, first_step: int = 0):
        self.total_steps = total_steps
        self.first_step = first_step
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.began = time.monotonic()
        self.last_line = (first_step, self.began)  # step and time of the last plain training line
        self.best = math.nan
        self.bar: Bar | None = None

    def header(self, rows: dict[str, str]) -> None:
        """Shows what will run, one row a key."""
        if self.terminal:
            from rich.panel import Panel

            print_rich(Panel(grid(rows), title="metarun", title_align="left", expand=False))
        else:
            plain(aligned(rows))
        self.began = time.monotonic()
        self.last_line = (self.first_step, self.began)

    def log(self, record: Record) -> None:
        """Moves the bar on a training record, writes a line on a validation record."""
        if "train/loss" in record:
            self.train(record)
        elif metric := metric_of(record, "val/"):
            self.message(self.validation(record, metric))

    def message(self, text: str) -> None:
        """Writes a line, above the bar if there is one."""
        if self.bar:
            self.bar.print(text)
        else:
            plain(text)

    def finish(self, results: dict) -> None:
        """Shows the results: the test's figure with its interval first, the run folder last."""
        self.close()
        rows = result_rows(results)
        if self.terminal:
            from rich.panel import Panel

            print_rich(Panel(grid(rows), title="result", title_align="left", expand=False))
        else:
            plain(aligned(rows))

    def close(self) -> None:
        """Takes the bar off the terminal and gives the cursor back."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def train(self, record: Record) -> None:
        step, now = int(record["step"]), time.monotonic()
        numbers = train_numbers(record)
        if self.terminal:
            self.bar = self.bar or Bar(self.total_steps, self.first_step)
            self.bar.move(step, "  ".join([*numbers, self.time_left(step, now)]))
            return
        last_step, last_time = self.last_line
        tenth = (step - last_step) * 10 >= self.total_steps
        if tenth or step >= self.total_steps or now - last_time >= PLAIN_SECONDS:
            self.last_line = (step, now)
            plain("  ".join([self.step(step), *numbers, self.time_left(step, now)]).rstrip())

    def validation(self, record: Record, metric: Metric) -> str:
        """One line, as in: step 200  val 87.31 ± 0.84 %  best."""
        value = record[f"val/{metric.name}"]
        best = value == record.get("val/best", value) and value != self.best
        self.best = record.get("val/best", value)
        text = (
            f"{self.step(int(record['step']))}  val {metric.shown(value, record.get('val/ci95'))}"
        )
        return text + ("  best" if best else "")

    def step(self, step: int) -> str:
        """The step, as wide as the last one will be, so that lines stand below one another."""
        return f"step {step:>{len(str(self.total_steps))}}"

    def time_left(self, step: int, now: float) -> str:
        """Time to the last step at the pace so far, validation included; "" at the start."""
        done = step - self.first_step
        if done <= 0 or step >= self.total_steps:
            return ""
        return f"{duration((now - self.began) / done * (self.total_steps - step))} left"


class Bar:
    """The live bar of a terminal."""

    def __init__(self, total_steps: int, first_step: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        numbers = TextColumn("{task.fields[numbers]}", markup=False)
        # Redrawing takes the interpreter away from the loop, so it is done rarely.
        self.progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            numbers,
            refresh_per_second=2,
            transient=True,
        )
        self.task = self.progress.add_task(
            "train", total=total_steps, completed=first_step, numbers=""
        )
        self.progress.start()

    def move(self, step: int, numbers: str) -> None:
        self.progress.update(self.task, completed=step, numbers=numbers)

    def print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self.progress.stop()


def train_numbers(record: Record) -> list[str]:
    numbers = [f"loss {record['train/loss']:.4f}"]
    for name in (*METRICS, "verification_accuracy"):
        if f"train/{name}" in record:
            numbers.append(f"{words(name)} {kind_of(name).brief(record[f'train/{name}'])}")
    if "train/episodes_per_second" in record:
        numbers.append(f"{record['train/episodes_per_second']:.0f} episodes/s")
    return numbers


def result_rows(results: dict) -> dict[str, str]:
    """The rows of the final table, those that the results have something for."""
    test, val, train = (results.get(part) or {} for part in ("test", "val", "train"))
    rows = {}
    if test:
        metric = named(test["metric"])
        rows[f"test {words(metric.name)}"] = metric.shown(test[metric.name], test.get("ci95"))
        if "errors" in test:
            rows["test error"] = ACCURACY.shown(test["error"])
            each = " ".join(f"{100 * error:.4g}" for error in test["errors"].values())
            rows["of each task"] = f"{each} %"
        for source, of_source in test.get("sources", {}).items():
            rows[f"  {source}"] = metric.shown(of_source[metric.name], of_source["ci95"])
        for name, measure in (test.get("measures") or {}).items():
            rows[words(name)] = kind_of(name).shown(measure["mean"], measure["ci95"])
        over = test.get("over_tasks")
        if over and test["by_task"].keys() != test.get("sources", {}).keys():
            figure = metric.shown(over[metric.name], over["ci95"])
            rows["mean of tasks"] = f"{figure}, interval over {over['tasks']} tasks"
        if skipped := test.get("skipped"):
            rows["skipped"] = f"{skipped} episodes, whose queries are of one class"
        each = " of each source" if "sources" in test else ""
        rows["test episodes"] = f"{test['episodes']}{each}, interval of 95 %"
    if validated := metric_of(val):
        value = val[validated.name]
        rows[f"val {words(validated.name)}"] = validated.shown(value, val.get("ci95"))
    if "steps" in train:
        rows["trained for"] = f"{train['steps']} steps"
    if train.get("peak_memory_mib"):
        rows["peak memory"] = f"{train['peak_memory_mib']:.0f} MiB"
    if "seconds" in results:
        rows["wall time"] = duration(results["seconds"])
    if "folder" in results:
        rows["folder"] = str(results["folder"])
    return rows


def metric_of(values: dict, prefix: str = "") -> Metric | None:
    """Which of the metrics the values have, if any."""
    return next((m for name, m in METRICS.items() if f"{prefix}{name}" in values), None)


def words(name: str) -> str:
    """The name of a measure, to be read."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """As m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def aligned(rows: dict[str, str]) -> str:
    """One line a row, or as many as the value has, the values below one another."""
    width = max(map(len, rows), default=0)
    below = "\n" + " " * (width + 2)
    return "\n".join(
        f"{key:<{width}}  {value.replace(chr(10), below)}" for key, value in rows.items()
    )


def grid(rows: dict[str, str]):  # type: ignore[no-untyped-def]  # a rich.table.Table
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for key, value in rows.items():
        table.add_row(Text(key, style="dim"), Text(value, overflow="fold"))
    return table


def print_rich(shown) -> None:  # type: ignore[no-untyped-def]  # anything that rich can show
    from rich.console import Console as RichConsole

    RichConsole().print(shown)


def plain(text: str) -> None:
    """Writes the text at once; a letter that the output's encoding lacks (±) becomes "?"."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except OSError as error:  # nobody reads on, as after `| head`, or on a terminal that is closed
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        to_nobody()


def to_nobody() -> None:
    """What is still written to the output goes nowhere, since nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
