import io
import re

import pytest

from metarun.tracking.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_without_a_terminal(capsys):
    assert list(track(iter("abc"), "Reading", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    start, done = err.splitlines()
    assert start == "Reading (3) ..."
    assert re.fullmatch(r"Reading: done in \d+\.\d s", done)


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(5), "Reading", 5)) == [0, 1, 2, 3, 4]
    assert "Reading" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_not_done_when_it_broke(capsys):
    def broken():
        yield 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(track(broken(), "Reading", 2))
    assert "done" not in capsys.readouterr().err
