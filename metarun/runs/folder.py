"""A run's folder: whose it is, what state it is in, and files that are never half-written."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metarun import files, ranks
from metarun.errors import InUse, UserError

SEAL = "sha256"  # the last key of results.json: the checksum of all the others
GROUP, NUMBER = (dict, type(None)), (int, float, type(None))
# What results.json says, if it does, and its `test`.
KINDS: dict[str, Any] = {
    **{"status": str, "mode": str, "names": dict, "config": dict, "provenance": dict, "data": dict},
    **{"wandb_id": str, "train": dict, "test": GROUP, "val": GROUP, "trained_in": GROUP},
    **{"seconds": NUMBER, "cpu_seconds": NUMBER, "trained_on": str, "episodes_csv_sha256": str},
}
OF_TEST: dict[str, Any] = {
    **{"metric": str, "ci95": NUMBER, "episodes": int, "measures": dict, "by_task": dict},
    **{"over_tasks": dict, "sources": dict, "episodes_sha256": str, "disjoint_episodes": NUMBER},
}


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; removed again if it stays empty, and as
    it was if no run begins in it. What killed processes left half-written is swept.

    Raises InUse if another process has it, and UserError if it cannot be written.
    """
    path = folder / ".lock"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    known = path.exists()
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)  # a look at who holds it takes less
    except Timeout:
        raise InUse(f"{folder} is in use by another process: choose another name=") from None
    except OSError as error:
        remove_empty(folder)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    files.sweep(folder, folder / ".hydra", folder / "checkpoints")
    try:
        yield
    except UserError:
        if not known and not (folder / "results.json").exists():
            path.unlink(missing_ok=True)
        raise
    finally:
        with suppress(FileNotFoundError):  # somebody has removed it
            if not any(other.name != ".lock" for other in folder.iterdir()):
                path.unlink(missing_ok=True)
                remove_empty(folder)
        lock.release()


@contextmanager
def claimed_by_first(folder: Path) -> Iterator[None]:
    """The folder, claimed by the first rank for all of them; no other makes or removes it."""
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(claimed(folder)))
        yield


def remove_empty(folder: Path) -> None:
    """Remove the folder if it is empty."""
    with suppress(OSError):  # it is not, or not there
        folder.rmdir()


def results(folder: Path) -> dict[str, Any] | None:
    """What results.json says of the run in this folder; None if no run has started here.

    Raises UserError for a damaged one, be it of the right syntax.
    """
    path = folder / "results.json"
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    seal = found.pop(SEAL, None) if isinstance(found, dict) else None
    if seal is not None and seal != digest(found):
        raise UserError(f"{path} is damaged: it is not what was written")
    if odd := misshapen(found):
        raise UserError(f"{path} is damaged: {odd} is not there, or not what it should be")
    return found


def misshapen(found: Any) -> str | None:
    """What in the content of a results.json cannot be; None if all can."""
    if not isinstance(found, dict):
        return "the run"
    test = found.get("test") or {}
    needed = ["status", *(["test"] if not isinstance(test, dict) else [])]
    for key in needed + [key for key in KINDS if key in found]:
        if not isinstance(found.get(key), KINDS[key]):
            return key
    if not test:
        return None
    for key in ["metric", *(key for key in OF_TEST if key in test)]:
        if not isinstance(test.get(key), OF_TEST[key]):
            return f"test.{key}"
    figures = {test["metric"]: test.get(test["metric"], "")}
    for name, measure in test.get("measures", {}).items():
        figures[f"measures.{name}"] = measure.get("mean", "") if isinstance(measure, dict) else ""
    return next((f"test.{k}" for k, v in figures.items() if not isinstance(v, NUMBER)), None)


def read_json(path: Path) -> Any:
    """The content of the file at `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def refuse_damaged_episodes(folder: Path, results: dict[str, Any]) -> None:
    """Raise UserError unless the folder's episodes.csv is as it was when `results` were written."""
    path, wanted = folder / "episodes.csv", results.get("episodes_csv_sha256")
    try:
        found = files.sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if wanted is not None and found != wanted:
        raise UserError(f"{path} is damaged: it is not what the run wrote")


def error(folder: Path) -> str:
    """The first line of error.txt, which tells why the job of a sweep failed; "" without one."""
    try:
        text = (folder / "error.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[0]


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
    with files.whole(path) as file:
        file.write(text.encode())


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write what results.json says to `path`, atomically, with its checksum."""
    plain = json.loads(json.dumps(finite(content)))
    write_json(path, {**plain, SEAL: digest(plain)})


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of what was read from a JSON file, hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mark_failed(path: Path) -> None:
    """Have the results.json at `path` say of a run that it failed, and not that it is running,
    where there is no room to write it anew: it stays as long as it was."""
    with suppress(OSError, ValueError), open(path, "r+b") as file:
        text = file.read().decode()
        content = json.loads(text)
        seal = content.pop(SEAL, "")
        text = text.replace('"status": "running"', '"status": "failed" ', 1)
        text = text.replace(seal, digest(content | {"status": "failed"}), 1) if seal else text
        file.seek(0)
        file.write(text.encode())


def put_by(folder: Path) -> None:
    """Copy the results of the finished run in `folder`, and those of its episodes, to files of the
    next free number, results.1.json and so on, before others take their place; both or neither."""
    number = next(n for n in count(1) if not (folder / f"results.{n}.json").exists())
    made: list[Path] = []
    try:
        for path in [folder / "results.json", folder / "episodes.csv"]:
            if path.exists():
                with files.whole(path.with_suffix(f".{number}{path.suffix}")) as copy:
                    copy.write(path.read_bytes())
                made.append(path.with_suffix(f".{number}{path.suffix}"))
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def write_csv(path: Path, columns: dict[str, list]) -> None:
    """Write equally long columns under their names to `path`, atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def earlier(folder: Path, resume: str, mode: str) -> dict[str, Any] | None:
    """The results so far of the run that `resume` goes on with; None for a new run.

    Raises UserError when the folder holds something and resume is "none", or a run of another
    mode: nothing is overwritten.
    """
    try:
        found = results(folder)
    except UserError as damaged:
        raise UserError(f"{damaged}: choose another name=") from None
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
    if "mode" not in found:
        raise UserError(f"{folder / 'results.json'} is damaged: it has no mode")
    if found["mode"] != mode:
        raise UserError(f"{folder} holds a run with mode={found['mode']}: choose another name=")
    return found
