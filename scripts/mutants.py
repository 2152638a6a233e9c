"""Do the tests notice when a formula is wrong? One mutation after another, each with its own tests.

    python scripts/mutants.py                        all of scripts/mutations/
    python scripts/mutants.py --only confidence      those with this word in their file or words
    python scripts/mutants.py --list                 what there is

Each mutation is a piece of text of one file, what stands in its place, and the tests that should
fail then. They run on a copy of the checkout in a temporary folder, up to the first failure.

Printed is whether the mutation was caught, and by which test, or survived. At the end the tests
that have caught something run without any mutation, and have to pass.

The exit code is 1 if a mutation survived. A text that is not in its file just once ends the script
before anything runs, with code 2.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("metarun", "conf", "scripts", "tests", "outputs", "README.md", "pyproject.toml")
PATIENCE = 300  # seconds for the tests of one mutation: a loop without end is noticed too
TIMES = count(1)  # in seconds since 1970, of files as they are changed
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?\.py(?:::\w+)*(?:\[.*?\])?)(?: - |$)", re.M)


class Mutation(NamedTuple):
    """What is changed, and who should notice: the keys of an entry in scripts/mutations/."""

    what: str  # in words
    file: str
    text: str
    new: str
    tests: str  # files, and what else pytest is told


class Outcome(NamedTuple):
    """What came of a mutation: the test that failed, "" for none, and the seconds it took."""

    caught_by: str
    seconds: float
    said: str  # by pytest


def mutations() -> list[Mutation]:
    """All that are listed, file by file."""
    found = []
    for path in sorted((ROOT / "scripts" / "mutations").glob("*.toml")):
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
        found += [Mutation(**entry) for entry in entries]
    return found


def rotten(mutation: Mutation) -> str:
    """Why the mutation cannot be made, in one line; "" if it can."""
    path = ROOT / mutation.file
    if not path.is_file():
        return f"{mutation.what}: there is no {mutation.file}"
    times = path.read_text(encoding="utf-8").count(mutation.text)
    if times != 1:
        return f"{mutation.what}: {mutation.file} has its text {times} times: {mutation.text!r}"
    try:
        compile(changed(mutation, ROOT), mutation.file, "exec")
    except SyntaxError as error:  # which any test would notice
        return f"{mutation.what}: {mutation.file} is no Python then: {error}"
    files = [word for word in shlex.split(mutation.tests) if word.startswith("tests/")]
    missing = [file for file in files if not (ROOT / file.partition("::")[0]).is_file()]
    return f"{mutation.what}: there is no {missing or 'test file'}" if missing or not files else ""


def changed(mutation: Mutation, root: Path) -> str:
    """What the file says with the mutation."""
    whole = (root / mutation.file).read_text(encoding="utf-8")
    return whole.replace(mutation.text, mutation.new)


def copied(folder: Path) -> Path:
    """A copy of the checkout in the folder, without what runs and Python have left in it."""
    left = shutil.ignore_patterns("__pycache__", "wandb", "*.pyc")
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = left if name != "outputs" else shutil.ignore_patterns("*[!mg]")  # its page
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def pytest(arguments: list[str], root: Path) -> Outcome:
    """What pytest says of these tests of the copy at `root`, up to the first failure."""
    began = time.monotonic()
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return Outcome(f"more than {PATIENCE} s", time.monotonic() - began, "")
    failed = FAILED.search(done.stdout)
    caught_by = failed[1] if failed else {0: "", 1: "?"}.get(done.returncode, "?")
    if done.returncode not in (0, 1, 2) or (done.returncode == 2 and not failed):
        sys.exit(f"pytest {shlex.join(arguments)}: exit code {done.returncode}\n{done.stdout}")
    return Outcome(caught_by, time.monotonic() - began, done.stdout + done.stderr)


def tried(mutation: Mutation, root: Path) -> Outcome:
    """What its tests say of the mutation, made in the copy at `root` and undone again."""
    path = root / mutation.file
    whole, time_of_whole = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
    path.write_text(changed(mutation, root), encoding="utf-8")
    # A time of its own: Python takes a compiled file for that of a source of its time and size.
    os.utime(path, (next(TIMES),) * 2)
    try:
        return pytest(shlex.split(mutation.tests), root)
    finally:
        path.write_text(whole, encoding="utf-8")
        os.utime(path, ns=(time_of_whole,) * 2)


def outcomes(chosen: list[Mutation], roots: list[Path]) -> Iterator[tuple[Mutation, Outcome]]:
    """Each mutation with its outcome, in order; as many at once as there are copies."""
    free: SimpleQueue[Path] = SimpleQueue()
    for root in roots:
        free.put(root)

    def one(mutation: Mutation) -> Outcome:
        root = free.get()
        try:
            return tried(mutation, root)
        finally:
            free.put(root)

    with ThreadPoolExecutor(len(roots)) as pool:
        yield from zip(chosen, pool.map(one, chosen), strict=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="WORD", help="in a mutation's file or words")
    parser.add_argument("--jobs", type=int, default=1, help="mutations tried at once")
    parser.add_argument("--list", action="store_true", help="tell them, and try none")
    arguments = parser.parse_args()
    chosen = [m for m in mutations() if arguments.only in f"{m.file}: {m.what}"]
    if told := [why for m in chosen if (why := rotten(m))] or ([] if chosen else ["there is none"]):
        print("\n".join(told), file=sys.stderr)
        sys.exit(2)
    if arguments.list:
        print("\n".join(f"{m.file}: {m.what}" for m in chosen))
        return
    with ExitStack() as stack:
        roots = [
            copied(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            for _ in range(arguments.jobs)
        ]
        survived, caught_by, seconds = [], set(), 0.0
        for mutation, outcome in outcomes(chosen, roots):
            word = "caught" if outcome.caught_by else "survived"
            line = f"{word:<9}{outcome.seconds:6.1f} s  {mutation.file}: {mutation.what}"
            print(f"{line}  {outcome.caught_by}".rstrip(), flush=True)
            seconds += outcome.seconds
            if outcome.caught_by:
                caught_by.add(outcome.caught_by)
            else:
                survived.append(mutation)
        tests = sorted(test for test in caught_by if test.startswith("tests/"))
        sound = pytest(tests, roots[0]) if tests else Outcome("", 0.0, "")
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} caught, {seconds / len(chosen):.1f} s each"
    )
    if sound.caught_by:
        sys.exit(f"without any mutation {sound.caught_by} fails too:\n{sound.said}")
    if survived:
        sys.exit(1)


if __name__ == "__main__":
    main()
