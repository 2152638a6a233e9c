"""Types thousands of command lines with something wrong in them, and looks at how metarun ends.

    python scripts/fuzz.py                       2,000 of them, in half an hour on one core
    python scripts/fuzz.py --cases 200 --seed 7  others, and fewer
    python scripts/fuzz.py --case 1234           one of them, and what it says
    python scripts/fuzz.py --processes 40        of these so many as processes of their own too

Each must end in a result, or in exactly one line on stderr with exit code 2; within a minute, and
with at most 4 GiB more than the program takes itself. Anything else is a fault, and told. The cases
(scripts/fuzz_cases.py) set keys to values of every type, groups to choices that there are not, and
come with config files of the person's own that lack parts or have others in their place. A case is
told by its number and the seed, whatever else is tried.

Exit code 0 says that there was no fault. Each is a fork of one process that has loaded metarun;
`--processes` says of how many it is looked at whether a process of its own ends alike.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from forked import Outcome, as_process, run, shown, warm
from fuzz_cases import SMALL, TINY, Case, case, keys_of_bases, make_data

SECONDS, GIB = 60, 4
LONGEST = 5_000  # letters of the one line
DATA = ("table.csv", "arrays.npz", "pictures", "features", "trained")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only that one, with all that it says")
    parser.add_argument("--processes", type=int, default=0, help="so many as processes too")
    arguments = parser.parse_args()
    alone = arguments.case is not None
    first = arguments.case if alone else arguments.first
    numbers = range(first, first + (1 if alone else arguments.cases))

    warm()
    keys, began = keys_of_bases(), time.monotonic()
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        shelf = prepared(Path(scratch))
        every = max(1, len(numbers) // max(1, arguments.processes))
        beside = set(numbers[::every][: arguments.processes])
        for number in numbers:
            tried = case(number, arguments.seed, keys)
            outcome, fault = ended(tried, shelf)
            if arguments.processes and number in beside:
                count["as processes"] += 1
                other, its_fault = ended(tried, shelf, own_process=True)
                if (outcome.code, outcome.refused) != (other.code, other.refused) and not fault:
                    fault = its_fault or f"a process of its own says otherwise: {other.told()}"
            count["refused" if outcome.refused else "results"] += not fault
            count["faults"] += bool(fault)
            if fault:
                print(f"--case {number}: {fault}\n    {shown(tried.words)}", flush=True)
                for path, content in tried.files.items():
                    print(f"    conf/{path}: {content if content is None else content[:300]!r}")
            if alone:
                print(outcome.out, outcome.err, sep="\n")
    told = ", ".join(f"{count[name]} {name}" for name in ("results", "refused", "faults"))
    processes = f" ({count['as processes']} of them as processes too)" * bool(arguments.processes)
    seconds = time.monotonic() - began
    print(f"seed {arguments.seed}: tried {len(numbers)}{processes}: {told}; {seconds:.0f} s")
    sys.exit(bool(count["faults"]))


def prepared(scratch: Path) -> Path:
    """A folder with the data, the trained model and the features that cases name."""
    shelf = scratch / "shelf"
    shelf.mkdir()
    make_data(shelf)
    environment = surroundings(scratch)
    for typed in (
        [*TINY, SMALL, "hydra.run.dir=trained"],
        [*TINY, SMALL, "mode=embed", "to=features", "hydra.run.dir=embedded"],
    ):
        done = run(typed, shelf, environment=environment)
        assert done.code == 0, done.told()
    return shelf


def surroundings(scratch: Path) -> dict[str, str]:
    """The environment of the cases."""
    return {
        "METARUN_DATA": str(scratch / "data"),
        "WANDB_MODE": "disabled",
        "HOME": str(scratch / "home"),
        "XDG_CACHE_HOME": str(Path.home() / ".cache"),  # the kernels are compiled once
    }


def ended(tried: Case, shelf: Path, own_process: bool = False) -> tuple[Outcome, str | None]:
    """How the case ends, and what is wrong with that."""
    folder = shelf.parent / "case" / "work"
    folder.mkdir(parents=True)
    try:
        for name in DATA:
            (folder / name).symlink_to(shelf / name)
        for name, content in tried.files.items():
            path = folder / "conf" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if content is None else path.write_bytes(content)
        if own_process:
            outcome = as_process(tried.words, folder, surroundings(shelf.parent))
        else:
            options = {"environment": surroundings(shelf.parent), "gib": GIB}
            outcome = run(tried.words, folder, SECONDS, **options)
        return outcome, fault_of(outcome, folder)
    finally:
        shutil.rmtree(folder.parent)


def fault_of(outcome: Outcome, folder: Path) -> str | None:
    """What is wrong with how the case ended; None if nothing is."""
    if any(folder.rglob("PWNED*")):
        return "code of a config file was run"
    if outcome.code is None:
        return f"no end after {SECONDS} s"
    if "Traceback" in outcome.err:
        return f"traceback: {outcome.told()}"
    if outcome.code == 0:
        return None
    lines = outcome.complaints
    # A sweep tells of each job that failed, and a table of its cells ends with 1.
    jobs = [line for line in lines if line.startswith("metarun: job ")]
    if not (outcome.refused or (jobs and outcome.code in (1, 2) and len(lines) <= len(jobs) + 1)):
        return f"{len(lines)} lines: {outcome.told()}"
    longest = max(lines, key=len)
    return f"a line of {len(longest)} letters: {longest[:100]}…" if len(longest) > LONGEST else None


if __name__ == "__main__":
    main()
