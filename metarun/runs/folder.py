"""A run's folder: whose it is, what state it is in, and files that are never half-written."""

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import FileLock, Timeout

from metarun import ranks
from metarun.errors import InUse, UserError


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; removed again if it stays empty.

    Raises InUse if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0.5)  # a look at who holds it takes less
    except Timeout:
        raise InUse(f"{folder} is in use by another process: choose another name=") from None
    try:
        yield
    finally:
        if not any(path.name != ".lock" for path in folder.iterdir()):
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


@contextmanager
def claimed_by_first(folder: Path) -> Iterator[None]:
    """The folder, claimed by the first rank for all of them; that of another, if empty, is gone."""
    with ExitStack() as stack:
        try:
            ranks.from_first(lambda: stack.enter_context(claimed(folder)))
        finally:
            if ranks.rank():
                remove_empty(folder)  # Hydra made it
        yield


def remove_empty(folder: Path) -> None:
    """Remove the folder if it is empty."""
    with suppress(OSError):  # it is not, or not there
        folder.rmdir()


def results(folder: Path) -> dict[str, Any] | None:
    """What results.json says of the run in this folder; None if no run has started here.

    Raises UserError for a damaged one.
    """
    try:
        return read_json(folder / "results.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{folder / 'results.json'} cannot be read: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The content of the file at `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def error(folder: Path) -> str:
    """The first line of error.txt, which tells why the job of a sweep failed; "" without one."""
    try:
        return (folder / "error.txt").read_text(encoding="utf-8").partition("\n")[0]
    except FileNotFoundError:
        return ""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically; a number that is not finite becomes null."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """The same with None for each number that JSON has no word for."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def put_by(folder: Path) -> None:
    """Copy the results of the finished run in `folder`, and those of its episodes, to files of the
    next free number, results.1.json and so on, before others take their place."""
    number = next(n for n in count(1) if not (folder / f"results.{n}.json").exists())
    for path in [folder / "results.json", folder / "episodes.csv"]:
        if path.exists():
            write_text(
                path.with_suffix(f".{number}{path.suffix}"), path.read_text(encoding="utf-8")
            )


def temporary_name(path: Path) -> Path:
    """A file beside `path` that nobody else writes, whatever the machine."""
    return path.with_name(f"{path.name}.{token_hex(4)}.tmp")


def write_csv(path: Path, columns: dict[str, list]) -> None:
    """Write equally long columns under their names to `path`, atomically."""
    temporary = temporary_name(path)
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    os.replace(temporary, path)


def earlier(folder: Path, resume: str, mode: str) -> dict[str, Any] | None:
    """The results so far of the run that `resume` goes on with; None for a new run.

    Raises UserError when the folder holds something and resume is "none", or a run of another
    mode: nothing is overwritten.
    """
    found = results(folder)
    if found is None:
        # Of a run that was killed before it began, or could not.
        ours = (".lock", "results.json.", "error.txt")
        if not all(path.name.startswith(ours) for path in folder.iterdir()):
            raise UserError(f"{folder} holds other files: choose another name=")
        return None
    if resume != "auto":
        raise UserError(
            f"{folder} already holds a run ({found['status']}): choose another name=, "
            "or resume=auto to go on with it"
        )
    if found["mode"] != mode:
        raise UserError(f"{folder} holds a run with mode={found['mode']}: choose another name=")
    return found
