"""metrics.jsonl: every record of a run, one JSON object a line, the last key its checksum.

A checksum a line, not one of the file: the log grows after the last checkpoint and after a kill,
and one damaged line does not cast doubt on the others. Lines without one are of earlier versions.
"""

import errno
import json
import math
import os
import sys
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from metarun import files

SEAL = "crc32"  # the last key of a line: the checksum of the others
SHOWN = 5  # numbers of damaged lines

Record = dict[str, float | int]


class JsonLines:
    """Appends records to `path`, each whole or not at all, so the file can be read at any moment.

    On resume, `resume_step` is the last step that the checkpoint knows: later records are dropped,
    since those steps are taken again, and so is a test record. None keeps every record. Damaged
    lines are left out, and told on stderr.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        self.path = path
        with files.writing(path):
            keep_until_step(path, resume_step)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self.file: int | None = os.open(path, flags, 0o666)

    def log(self, record: Record) -> None:
        """The record is in the file when this returns: one system call, no buffer to lose."""
        assert self.file is not None, "log after close"
        content = line(record)
        with files.writing(self.path):
            written = os.write(self.file, content)
            if written < len(content):  # no half record stays on a full disk
                os.ftruncate(self.file, os.fstat(self.file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self, results: dict) -> None:
        """Nothing: the last record is already there."""

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def line(record: Record) -> bytes:
    """The record as one line of JSON; what JSON has no number for (nan, inf) becomes null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return (json.dumps({**finite, SEAL: checksum(finite)}, allow_nan=False) + "\n").encode()


def checksum(record: Mapping[str, Any]) -> str:
    """CRC-32 of the record, however its line is spaced, hex."""
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


def read(path: Path) -> list[dict]:
    """The records of the file, without a last line torn by a kill, and damaged ones, of which it is
    told on stderr. [] where there is no file."""
    if not path.is_file():
        return []
    return [record for _, record in sound_lines(path, path.read_bytes())]


def sound_lines(path: Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of the file at `path` and their records, but for damaged ones: told."""
    lines = content.split(b"\n")[:-1]
    found = [(text, record_of(text)) for text in lines]
    damaged = tuple(n for n, (_, record) in enumerate(found, start=1) if record is None)
    if damaged:
        tell_damaged(path, damaged)
    return [(text, record) for text, record in found if record is not None]


@cache  # once, however often the file is read
def tell_damaged(path: Path, numbers: tuple[int, ...]) -> None:
    """Tell of the lines of these numbers, counted from 1."""
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    which = ", ".join(map(str, numbers[:SHOWN])) + more
    lines = f"line {which}, which is" if len(numbers) == 1 else f"lines {which}, which are"
    print(f"metarun: {path}: left out {lines} damaged", file=sys.stderr, flush=True)


def record_of(text: bytes) -> dict[str, Any] | None:
    """The record that the line holds; None for one that is damaged."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    seal = record.pop(SEAL, None)
    if seal is not None and seal != checksum(record):
        return None
    numbers = all(value is None or isinstance(value, int | float) for value in record.values())
    return record if numbers else None


def keep_until_step(path: Path, step: int | None) -> None:
    """Leaves in the file only whole records, and with `step` only those up to it, test left out."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(
        text + b"\n"
        for text, record in sound_lines(path, content)
        if step is None or (record["step"] <= step and "test/episodes" not in record)
    )
    if kept != content:
        with files.whole(path) as file:
            file.write(kept)
