"""metrics.jsonl: every record of a run, one JSON object a line."""

import json
import math
import os
from pathlib import Path

Record = dict[str, float | int]


class JsonLines:
    """Appends records to `path`, each whole or not at all, so the file can be read at any moment.

    On resume, `resume_step` is the last step that the checkpoint knows: later records are dropped,
    since those steps are taken again, and so is a test record. None keeps every record.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        keep_until_step(path, resume_step)
        self.file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def log(self, record: Record) -> None:
        """The record is in the file when this returns: one system call, no buffer to lose."""
        assert self.file is not None, "log after close"
        os.write(self.file, line(record))

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
    """The records of the file, without a last line torn by a kill. [] where there is no file."""
    if not path.exists():
        return []
    return [json.loads(text) for text in whole_lines(path.read_bytes())]


def whole_lines(content: bytes) -> list[bytes]:
    """The lines that were written to their end."""
    return content.split(b"\n")[:-1]


def keep_until_step(path: Path, step: int | None) -> None:
    """Leaves in the file only whole records, and with `step` only those up to it, test left out."""
    if not path.exists():
        return
    content = path.read_bytes()
    lines = whole_lines(content)
    if step is not None:
        records = [json.loads(text) for text in lines]
        lines = [
            text
            for text, record in zip(lines, records, strict=True)
            if record["step"] <= step and "test/episodes" not in record
        ]
    kept = b"".join(text + b"\n" for text in lines)
    if kept != content:
        written = path.with_name(path.name + ".tmp")
        written.write_bytes(kept)
        os.replace(written, path)
