import json
import math
import os
import signal
import subprocess
import sys

import pytest

from metarun.errors import UserError
from metarun.tracking.jsonlines import JsonLines, line, read, record_of


def test_a_record_is_in_the_file_before_close(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.log({"step": 1, "train/loss": 0.1})
    assert read(path) == [{"step": 1, "train/loss": 0.1}]
    lines.log({"step": 2, "train/loss": 1 / 3})
    assert read(path)[1]["train/loss"] == 1 / 3  # not rounded
    lines.finish({})
    lines.close()
    lines.close()


def test_not_a_number_is_null_and_every_line_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.log({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 2.0})

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert len(record.pop("crc32")) == 8
    assert record == {"step": 1, "a": None, "b": None, "c": None, "d": 2.0}
    lines.close()


def test_resuming_drops_what_is_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in (100, 200, 300):
        first.log({"step": step, "train/loss": 1.0})
        first.log({"step": step, "val/accuracy": 0.5})
    first.log({"step": 200, "test/accuracy": 0.5, "test/episodes": 600})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 350, "train/lo')

    second = JsonLines(path, resume_step=200)
    second.log({"step": 250, "train/loss": 0.5})
    second.close()
    assert [record["step"] for record in read(path)] == [100, 100, 200, 200, 250]
    assert not any("test/accuracy" in record for record in read(path))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_step_to_resume_from_nothing_whole_is_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    lines = JsonLines(path)
    lines.log({"step": 3})
    lines.close()
    assert [record["step"] for record in read(path)] == [1, 3]


def test_read_of_no_file_and_of_a_torn_one(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"step": 1}\n{"st')
    assert read(torn) == [{"step": 1}]
    torn.write_text('{"st')
    assert read(torn) == []


def test_a_killed_process_leaves_every_record_that_it_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, signal; from pathlib import Path\n"
        "from metarun.tracking.jsonlines import JsonLines\n"
        f"lines = JsonLines(Path({str(path)!r}))\n"
        "for step in range(50): lines.log({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "."})
    assert ended.returncode == -signal.SIGKILL
    assert [record["step"] for record in read(path)] == list(range(50))


@pytest.mark.parametrize("step", [None, 9])
def test_damaged_lines_are_left_out_and_told(tmp_path, capsys, step):
    """The others stay, and the file can be read again."""
    path = tmp_path / "metrics.jsonl"
    damaged = [b"text", b"[1]", b"{}", b'{"step": "x"}', b'{"step": 2, "a": \xff}', 9999 * b"["]
    path.write_bytes(b"\n".join([b'{"step": 1}', *damaged, b'{"step": 3}', b""]))
    assert read(path) == [{"step": 1}, {"step": 3}]
    lines = JsonLines(path, step)
    lines.log({"step": 4})
    lines.close()
    told = "left out lines 2, 3, 4, 5, 6 and 1 more, which are damaged"
    assert capsys.readouterr().err == f"metarun: {path}: {told}\n", "once"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    path, write = tmp_path / "metrics.jsonl", os.write
    lines = JsonLines(path)
    lines.log({"step": 1})
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:5]))
    with pytest.raises(UserError, match=rf"^cannot write {path}: No space left"):
        lines.log({"step": 2})
    monkeypatch.undo()
    lines.log({"step": 3})
    lines.close()
    assert path.read_bytes() == line({"step": 1}) + line({"step": 3})


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        JsonLines(tmp_path / "metrics.jsonl")


def test_no_flipped_bit_goes_unnoticed():
    """Of a figure above all: the line stays right JSON, and only its checksum tells."""
    record = {"step": 120, "train/loss": 1.2345678901234567, "val/accuracy": None}
    text = line(record).rstrip(b"\n")
    assert record_of(text) == record
    for place in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        found = record_of(bytes(flipped))
        assert found is None or found == record, bytes(flipped)  # a 17th digit may not matter


def test_a_damaged_figure_is_left_out_and_its_line_told(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.log({"step": step, "train/loss": 0.5})
    lines.close()
    path.write_bytes(path.read_bytes().replace(b'2, "train/loss": 0.5', b'2, "train/loss": 0.7'))
    assert [record["step"] for record in read(path)] == [1, 3]
    assert read(path) == read(path)
    assert capsys.readouterr().err == f"metarun: {path}: left out line 2, which is damaged\n"


def test_lines_of_earlier_versions_and_of_other_spacing(tmp_path):
    """As jq -c writes them; nobody else's keys, which a damaged checksum would be."""
    assert record_of(b'{"step": 1, "train/loss": 0.5}') == {"step": 1, "train/loss": 0.5}
    own = json.loads(line({"step": 1, "train/loss": 0.5}))
    assert record_of(json.dumps(own, separators=(",", ":")).encode()) is not None
    assert record_of(b'{"step": 1, "crc33": "00000000"}') is None
