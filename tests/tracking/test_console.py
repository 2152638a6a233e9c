import os
import pty
import re
import subprocess
import sys

from metarun.functional.metrics import ACCURACY
from metarun.tracking.console import Console, duration, result_rows

RUN = """
import sys
from metarun.tracking.console import Console
console = Console(total_steps=1000, first_step={first_step})
console.header({{"data": "glyphs", "folder": "outputs/" + "long/" * 30}})
for step in range({first_step} + 10, 1001, 10):
    seen = {{"step": step, "episodes": 4 * step}}
    speed = {{"train/lr": 0.001, "train/episodes_per_second": 1234.5}}
    console.log(seen | {{"train/loss": 0.5, "train/accuracy": 0.8125}} | speed)
    if step % 500 == 0:
        best = 0.8731 if step < 1000 else 0.9
        console.log(seen | {{"val/accuracy": 0.8731, "val/ci95": 0.0084, "val/best": best}})
console.message("testing [bold] on 600 episodes")
console.log({{"step": 1000, "test/accuracy": 0.9, "test/ci95": 0.01, "test/episodes": 600}})
test = {{"metric": "accuracy", "accuracy": 0.96021, "ci95": 0.00314, "episodes": 600}}
about = {{"seconds": 3725, "folder": "outputs/" + "x/" * 60}}
console.finish({{"status": "done", "test": test, "val": {{"accuracy": 0.8731}}}} | about)
console.close()
console.close()
"""


def piped(program: str, **environment: str) -> str:
    """What the program writes when its output is no terminal."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": ".", "FORCE_COLOR": "1", **environment},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


def test_a_pipe_gets_plain_lines_in_moderation():
    text = piped(RUN.format(first_step=0), COLUMNS="80")
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[1] == "folder  outputs/" + "long/" * 30  # not wrapped
    trained = [line for line in lines if "loss" in line]
    assert [line[:9] for line in trained] == [f"step {step:>4}" for step in range(100, 1001, 100)]
    assert "loss 0.5000  accuracy 81.2 %  1234 episodes/s" in trained[0]
    assert "left" in trained[0]
    assert "step  500  val 87.31 ± 0.84 %  best" in lines
    assert "step 1000  val 87.31 ± 0.84 %" in lines
    assert "testing [bold] on 600 episodes" in lines
    assert re.search(r"^test accuracy  96.02 ± 0.31 %$", text, flags=re.MULTILINE)
    assert re.search(r"^test episodes  600, interval of 95 %$", text, flags=re.MULTILINE)
    assert re.search(r"^wall time +1:02:05$", text, flags=re.MULTILINE)
    assert lines[-1].split() == ["folder", "outputs/" + "x/" * 60]


def test_a_resumed_run_counts_on_from_its_step():
    lines = piped(RUN.format(first_step=700)).splitlines()
    trained = [line for line in lines if "loss" in line]
    assert [line[:9] for line in trained] == ["step  800", "step  900", "step 1000"]


def test_an_encoding_without_plus_minus_is_no_reason_to_stop():
    text = piped(RUN.format(first_step=0), PYTHONIOENCODING="ascii")
    assert "val 87.31 ? 0.84 %" in text


def test_a_terminal_gets_a_bar_and_its_cursor_back():
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(first_step=0)],
        env=os.environ | {"PYTHONPATH": ".", "TERM": "xterm-256color", "COLUMNS": "150"},
        stdout=writer,
        stderr=writer,
    ) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                part = os.read(reader, 65536)
            except OSError:  # how a pseudo-terminal says that its program has ended
                break
            if not part:
                break
            shown += part
    os.close(reader)
    text = shown.decode()
    assert process.returncode == 0
    assert "1000/1000" in text
    assert "96.02 ± 0.31 %" in text
    assert "val 87.31 ± 0.84 %  best" in text
    assert "testing [bold] on 600 episodes" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown again


def test_a_broken_off_run_closes_without_results(capsys):
    console = Console(total_steps=10)
    console.log({"step": 1, "episodes": 4, "train/loss": 0.5})
    console.close()
    console.close()
    assert "step  1  loss 0.5000" in capsys.readouterr().out


def test_numbers():
    assert ACCURACY.shown(0.5) == "50.00 %"
    assert ACCURACY.shown(0.98765, 0.00123) == "98.77 ± 0.12 %"
    assert [duration(s) for s in (0.2, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]
    assert result_rows({"status": "trained"}) == {}


def test_errors_are_shown_as_they_are(capsys):
    """The mean squared error has no percent sign, and a lower one is the best."""
    console = Console(200)
    console.log({"step": 100, "train/loss": 1.0, "train/mse": 0.25})
    for step, error, best in ((100, 0.5, 0.5), (150, 0.7, 0.5), (200, 0.125, 0.125)):
        console.log({"step": step, "val/mse": error, "val/ci95": 0.01, "val/best": best})
    measure = {"mse_after_3": {"mean": 0.25, "ci95": 0.02}}
    console.finish(
        {
            "test": {"metric": "mse", "mse": 0.5, "ci95": 0.03, "episodes": 6, "measures": measure},
            "val": {"mse": 0.1},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert "mse 0.2500" in lines[0]
    assert lines[1].endswith("val 0.5000 ± 0.0100  best")
    assert lines[2].endswith("val 0.7000 ± 0.0100")
    assert lines[3].endswith("val 0.1250 ± 0.0100  best")
    assert lines[4].split() == ["test", "mse", "0.5000", "±", "0.0300"]
    assert lines[5].split() == ["mse", "after", "3", "0.2500", "±", "0.0200"]
    assert lines[-1].split() == ["val", "mse", "0.1000"]
