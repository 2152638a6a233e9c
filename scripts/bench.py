"""How fast metarun trains and tests here, and how near that comes to what the machine can do.

    python scripts/bench.py                        every case, on the GPU if there is one
    python scripts/bench.py proto-mini-5w --precision bf16 --rounds 5 --json bench.json
    python scripts/bench.py maml-omni --vs HEAD~3  this checkout beside an earlier revision
    python scripts/bench.py maml-omni --ranks 2    each meta-batch shared by two processes

A case is a command line of metarun on made-up images: its parts are built as for any run and work
in `metarun.training.loop.fit`, or in the test's `metarun.testing.answers.answers`. Each is a
process of its own; they take turns, in an order that turns by one each round, so that a slow minute
of the machine falls on all of them. After a turn a process gives back what memory it can, and a
step or two that are not timed begin the next; still, each keeps about half a gigabyte.

With --ranks a case is as many processes, as torchrun starts them, and what is told of its memory
and of its time outside is the first one's.

tasks/s   tasks (episodes; sequences of mann) per second: the median of the rounds, and the extremes
GFLOP/s   of useful arithmetic: that of the network's convolutions, avoided or not, and nothing else
ceiling   those as a share of what the fastest of the network's convolutions reaches on its own,
          measured by turns with the cases: forward, channels last, in the precision asked for, on
          the images of one task or of one batch of tasks, whichever is faster
outside   share of the time that is spent neither in the forward pass, nor in the backward pass, nor
          in the optimiser; in a test, neither in `predict` nor in the network
MiB       peak memory: of the GPU, or what building and running the case added to its process
first s   seconds from torch loaded, but not yet metarun, to the end of the first step
REV       tasks/s of the revision given by --vs; ratio: this checkout's to it, median of the rounds

`--worker CASE` is one such process, for other programs to measure: it prints {"ready": true, ...};
then for each line `run SECONDS` on stdin it works for about that long and prints {"units": tasks,
"seconds": ..., "data_seconds": ..., ...}; it ends at the end of file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from bench_cases import CASES
from bench_worker import serve

ROOT = Path(__file__).resolve().parents[1]
TOLD = "bench.py: "  # begins the line that says why a process ends
COLUMNS = {  # figure: heading, digits
    "tasks_per_second": ("tasks/s", 2),
    "slowest": ("slowest", 2),
    "fastest": ("fastest", 2),
    "gflops": ("GFLOP/s", 0),
    "of_ceiling": ("ceiling", 2),
    "outside": ("outside", 3),
    "peak_mib": ("MiB", 0),
    "first_step_seconds": ("first s", 1),
    "vs_tasks_per_second": ("REV", 2),
    "ratio": ("ratio", 2),  # of this checkout's rate to that of --vs
}


class Worker:
    """A worker's process, and what it answered."""

    def __init__(self, name: str, tree: Path):
        # A revision is measured by its own worker, which knows where its modules are.
        worker = str(tree / "scripts" / "bench.py")
        command = [sys.executable, worker, *sys.argv[1:], "--worker", name, "--tree", str(tree)]
        pipe, self.errors = subprocess.PIPE, tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True
        )
        self.failure, self.rounds = "", []
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; without one, `failure` says why."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().splitlines() or [f"its process ended with code {code}"]
        ours = [line for line in said if line.startswith(TOLD)]  # and not torchrun's own
        self.failure = (ours or said)[-1].removeprefix(TOLD)
        return {}

    def run(self, seconds: float) -> None:
        """One round, if it has not failed."""
        if not self.failure:
            with suppress(BrokenPipeError):
                print("run", seconds, file=self.process.stdin, flush=True)
            if done := self.answer():
                self.rounds.append(done)

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def rates(self) -> list[float]:
        """Tasks per second, round by round."""
        return [done["units"] / done["seconds"] for done in self.rounds]


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with that revision of the project, for a while."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "metarun"
        add = [*git, "add", "--quiet", "--detach", str(tree), revision]
        done = subprocess.run(add, capture_output=True, text=True)
        if done.returncode:
            leave(f"--vs {revision}: {' '.join(done.stderr.split())}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of the cases, which take turns."""
    with ExitStack() as stack:
        trees = [ROOT, *([stack.enter_context(checkout(arguments.vs))] if arguments.vs else [])]

        def start(name: str, tree: Path = ROOT) -> Worker:
            worker = Worker(name, tree)
            stack.callback(worker.close)
            return worker

        ceiling = start("ceiling")
        if ceiling.failure:
            leave(ceiling.failure)
        workers = {case: [start(case, tree) for tree in trees] for case in arguments.cases}
        turns = [ceiling, *chain(*workers.values())]
        for turn in range(arguments.rounds):
            first = turn % len(turns)
            # Backwards every other time, so that of two revisions each is the first in turn.
            for worker in (turns[first:] + turns[:first])[:: -1 if turn % 2 else 1]:
                worker.run(arguments.seconds)
    if not ceiling.rounds:
        leave(ceiling.failure)
    rates = {name: median(done[name] for done in ceiling.rounds) for name in ceiling.rounds[0]}
    cases = {case: figures(rates, *pair) for case, pair in workers.items()}
    settings = ("precision", "set", "rounds", "seconds", "ranks", "vs")
    asked = {key: vars(arguments)[key] for key in settings}
    return {"machine": ceiling.facts, "asked": asked, "ceiling": rates, "cases": cases}


def figures(ceiling: dict[str, float], worker: Worker, other: Worker | None = None) -> dict:
    """A case's figures, beside the `other` revision's; `failure` where one could not work."""
    if worker.failure:
        return {"failure": worker.failure}
    rates, facts = worker.rates(), worker.facts
    gflops = median(rates) * facts["gflop_per_unit"]
    fastest = max((ceiling[name] for name in facts["convolutions"]), default=0)
    row = {
        "tasks_per_second": median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "gflops": gflops or None,
        "of_ceiling": gflops / fastest if fastest else None,
        "outside": median(done["outside_seconds"] / done["seconds"] for done in worker.rounds),
        "peak_mib": worker.rounds[-1]["peak_mib"],
        "first_step_seconds": facts["first_step_seconds"],
        "rounds": rates,
    }
    if other and other.failure:
        row["failure"] = other.failure
    elif other:
        row["vs_tasks_per_second"], row["vs_rounds"] = median(other.rates()), other.rates()
        row["ratio"] = median(a / b for a, b in zip(rates, other.rates(), strict=True))
    return row


def show(report: dict[str, Any]) -> None:
    """Print the header and the table."""
    print("torch {torch} on {device}; {processor}, {threads} threads".format(**report["machine"]))
    rates = dict(report["ceiling"])
    for name in ("matrix product fp32", "matrix product bf16"):
        print(f"{name}: {rates.pop(name):.0f} GFLOP/s")
    if rates:
        low, high = min(rates.values()), max(rates.values())
        print(f"convolutions of the cases: {low:.0f} to {high:.0f} GFLOP/s")
    revision = report["asked"]["vs"]
    columns = dict(list(COLUMNS.items())[: None if revision else -2])
    print("\n" + " " * 14 + "".join(f"{heading:>10}" for heading, _ in columns.values()))
    for case, row in report["cases"].items():
        values = [(row.get(key), digits) for key, (_, digits) in columns.items()]
        cells = ["" if value is None else f"{value:.{digits}f}" for value, digits in values]
        text = "".join(f"{cell:>10}" for cell in cells).rstrip()
        if "failure" in row:
            text += f"  {revision if 'rounds' in row else ''} not run: {row['failure'][:100]}"
        print(f"{case:<14}{text}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = leave  # type: ignore[method-assign]
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(CASES)}")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    add("--rounds", type=int, default=3, help="over all cases (default: 3)")
    add("--seconds", type=float, default=5, help="of each turn (default: 5)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for every case's config")
    add("--ranks", type=int, default=1, metavar="N", help="processes of each case (default: 1)")
    add("--vs", metavar="REV", help="a revision to measure beside this checkout")
    add("--json", metavar="FILE", help="where to write the figures")
    add("--worker", metavar="CASE", help="be the process of that case, or of the ceiling")
    add("--tree", default=str(ROOT), metavar="DIR", help="the checkout that the worker measures")
    arguments = parser.parse_intermixed_args()
    arguments.cases = list(dict.fromkeys(arguments.cases)) or list(CASES)
    worker = [arguments.worker] if arguments.worker not in (None, "ceiling") else []
    for case in [*arguments.cases, *worker]:
        if case not in CASES:
            leave(f"{case}: there is no such case; there are {', '.join(CASES)}")
    if min(arguments.rounds, arguments.ranks) < 1 or not arguments.seconds >= 0:
        leave("--rounds, --ranks: 1 or more are needed; --seconds: 0 or more")
    if arguments.json and not Path(arguments.json).parent.is_dir():
        leave(f"--json {arguments.json}: there is no such folder")
    if arguments.worker:
        work(arguments)
        return
    report = measure(arguments)
    show(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def work(arguments: argparse.Namespace) -> None:
    """Be one of the processes that are measured, or become those that are its ranks."""
    if arguments.ranks > 1 and arguments.worker != "ceiling" and "RANK" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // arguments.ranks)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        each = f"--nproc-per-node={arguments.ranks}"
        os.execv(sys.executable, [sys.executable, *torchrun, each, *sys.argv])
    sys.path.insert(0, arguments.tree)
    device = [f"device.name={arguments.device}", f"device.precision={arguments.precision}"]
    try:
        serve(arguments.worker, arguments.cases, [*device, *arguments.set])
    except Exception as error:
        traceback.print_exc()
        leave(" ".join(str(error).split()) or repr(error))  # the line that the parent shows


def leave(text: str) -> NoReturn:
    """Say why in one line, and exit."""
    print(f"{TOLD}{text}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
