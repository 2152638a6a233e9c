"""When `metarun` takes its first training step, and what the time before it goes to.

    python scripts/startup.py                        the default run, five times
    python scripts/startup.py --rounds 9 algo=maml tracker=none

Each round is a process of its own, in a temporary run folder, that is ended after its first step.
On a new machine run it twice, because the first run prepares the data. Printed are medians in
seconds, with the fastest and the slowest round beside them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.abc import MetaPathFinder

STAGES = (
    "read and check the command line",
    "import torch",
    "import torch._dynamo, as optimisers do",
    "until the first step is done",
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what metarun is told")
    parser.add_argument("--rounds", type=int, default=5, help="processes to take the median of")
    arguments = parser.parse_args()
    rounds = [one_start(arguments.overrides) for _ in range(arguments.rounds)]
    before = [0.0] * arguments.rounds
    for name, moments in zip(STAGES, zip(*rounds, strict=True), strict=True):
        seconds = [now - then for now, then in zip(moments, before, strict=True)]
        spread = f"[{min(seconds):.2f} .. {max(seconds):.2f}]"
        at = f"at {statistics.median(moments):.2f}"
        print(f"{name:<38}{statistics.median(seconds):>6.2f}  {spread:<16}{at}")
        before = list(moments)


def one_start(overrides: list[str]) -> list[float]:
    """Seconds from the start of a process to the end of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--watched", *overrides, f"hydra.run.dir={folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


class Watch(MetaPathFinder):
    """Notes when torch and then torch._dynamo, which no optimiser of torch's can do without, have
    been imported, and ends the process after the first training step."""

    AWAITED = ("torch", "torch._dynamo", "metarun.experiment")  # what begins where a stage ends

    def __init__(self) -> None:
        self.began, self.moments = time.perf_counter(), list[float]()

    def note(self) -> None:
        self.moments.append(time.perf_counter() - self.began)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Nothing is found here."""
        if name not in self.AWAITED[len(self.moments) :]:
            return
        self.note()
        if name == "metarun.experiment":
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(self.leave)

    def leave(self, *_: object) -> None:
        self.note()
        print(json.dumps(self.moments), flush=True)
        os._exit(0)


def watched() -> None:
    """`metarun` with the arguments after --watched."""
    sys.meta_path.insert(0, Watch())
    from metarun.cli.main import main as metarun

    sys.argv = ["metarun", *sys.argv[2:]]
    metarun()


if __name__ == "__main__":
    watched() if sys.argv[1:2] == ["--watched"] else main()
