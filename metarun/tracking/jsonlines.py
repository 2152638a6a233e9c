"""metrics.jsonl: every record of a run, one JSON object a line."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from metarun import files

Record = dict[str, float | int]


class JsonLines:
    """Appends records to `path`, each whole or not at all, so the file can be read at any moment.

    On resume, `resume_step` is the last step that the checkpoint knows: later records are dropped,
    since those steps are taken again, and so is a test record. None keeps every record. Damaged
    lines are left out, and counted on stderr.
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
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def read(path: Path) -> list[dict]:
    """The records of the file, without a last line torn by a kill, and damaged ones. [] where there
    is no file."""
    if not path.is_file():
        return []
    found = map(record_of, whole_lines(path.read_bytes()))
    return [record for record in found if record is not None]


def record_of(text: bytes) -> dict[str, Any] | None:
    """The record that the line holds; None for one that is damaged."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def whole_lines(content: bytes) -> list[bytes]:
    """The lines that were written to their end."""
    return content.split(b"\n")[:-1]


def keep_until_step(path: Path, step: int | None) -> None:
    """Leaves in the file only whole records, and with `step` only those up to it, test left out."""
    if not path.exists():
        return
    content = path.read_bytes()
    found = [(text, record_of(text)) for text in whole_lines(content)]
    sound = [(text, record) for text, record in found if record is not None]
    if damaged := len(found) - len(sound):
        print(f"metarun: {path}: left out {damaged} damaged lines", file=sys.stderr, flush=True)
    kept = b"".join(
        text + b"\n"
        for text, record in sound
        if step is None or (record["step"] <= step and "test/episodes" not in record)
    )
    if kept != content:
        with files.whole(path) as file:
            file.write(kept)
