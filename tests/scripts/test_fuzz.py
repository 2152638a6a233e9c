"""The fuzz of the command line: its cases, its verdict, and a few dozen of them."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the forks of a run need what Linux alone has", allow_module_level=True)

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import fuzz  # noqa: E402
import fuzz_cases  # noqa: E402
from forked import Outcome  # noqa: E402


def test_a_case_depends_on_its_number_and_the_seed_alone():
    keys = [fuzz_cases.Key([], f"k{i}") for i in range(7)]
    first = [fuzz_cases.case(number, 3, keys) for number in range(40)]
    assert first == [fuzz_cases.case(number, 3, keys) for number in range(40)]
    assert first != [fuzz_cases.case(number, 4, keys) for number in range(40)]


def test_each_key_has_its_turn(monkeypatch):
    keys = [fuzz_cases.Key([], f"k{i}") for i in range(7)]
    for kind in ("two", "form", "group", "own_file"):
        monkeypatch.setattr(fuzz_cases, kind, fuzz_cases.one)
    typed = [fuzz_cases.case(number, 0, keys).words[-1].partition("=")[0] for number in range(14)]
    assert sorted(typed[:7]) == sorted(typed[7:]) == [key.name for key in keys]


@pytest.mark.parametrize(
    ("code", "err", "said"),
    [
        (0, "", None),
        (2, "metarun: way=0: no\n", None),
        (2, "Drawing letters (9) ...\nDrawing letters: done in 1.0 s\nmetarun: no\n", None),
        (2, "metarun: job 0: no\nmetarun: job 1: no\nmetarun: no\n", None),
        (1, "metarun: job 0: no\n", None),
        (1, "metarun: no\n", "1 lines"),
        (2, "", "0 lines"),
        (2, "metarun: no\nand more\n", "2 lines"),
        (2, "usage: metarun\n", "1 lines"),
        (2, f"metarun: {9_000 * 'x'}\n", "a line of 9009 letters"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "traceback"),
        (0, "Exception ignored in x\nTraceback (most recent call last):\n", "traceback"),
        (-11, "", "0 lines: exit code -11"),
        (None, "", "no end after"),
    ],
)
def test_verdicts(tmp_path, code, err, said):
    found = fuzz.fault_of(Outcome(code, "", err, 1.0, 100.0), tmp_path)
    assert found is None if said is None else found.startswith(said)


def test_what_a_config_file_ran_is_a_fault(tmp_path):
    (tmp_path / "PWNED").touch()
    assert "was run" in fuzz.fault_of(Outcome(2, "", "metarun: no\n", 1.0, 100.0), tmp_path)


def test_a_few_dozen():
    command = [sys.executable, SCRIPTS / "fuzz.py", "--cases", "20", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tried 20 (1 of them as processes too): " in done.stdout
    assert " 0 faults" in done.stdout
