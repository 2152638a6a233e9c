"""Runs of metarun as forks of one process that has loaded it, so that a thousand take minutes.

A fork begins where a process of its own would be after three seconds of imports, and does from
there what that would do: its own folder, environment, limits, output and exit code. `as_process`
is the other way, to see that they agree.
"""

import io
import math
import os
import pkgutil
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process with threads has none of them

import metarun
from metarun.cli.main import load_torch, main

POLL = 0.005  # seconds between two looks at a fork
WARM = "matplotlib.figure"  # which nothing loads before a picture is drawn
PIPE = 2**20  # bytes that a run may say: no file, which a limit or a full disk would meet
# What long preparations say beside the one line of an error.
PROGRESS = re.compile(r".+ \(\d+\) \.\.\.|.+: done in [\d.]+ s")


class Outcome(NamedTuple):
    """How a run ended."""

    code: int | None  # minus the signal that ended it; None: it had not ended in time
    out: str
    err: str
    seconds: float
    mib: float  # the most memory that it held at once

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr, but for progress."""
        return [line for line in self.err.split("\n") if line and not PROGRESS.fullmatch(line)]

    @property
    def refused(self) -> str | None:
        """What the one line says by which metarun refuses; None if it did not refuse so."""
        lines = self.complaints
        right = self.code == 2 and len(lines) == 1 and lines[0].startswith("metarun: ")
        return lines[0].removeprefix("metarun: ") if right else None

    def told(self) -> str:
        """The end of it, in a line."""
        last = (self.complaints or self.out.splitlines() or [""])[-1]
        ended = "no end" if self.code is None else f"exit code {self.code}"
        return f"{ended} after {self.seconds:.0f} s: {last[:200]}"


class Run:
    """A run that has been started."""

    def __init__(self, pid: int, out: int, err: int):
        self.pid, self.pipes = pid, (out, err)
        self.started = time.monotonic()

    def wait(self, seconds: float, at: Callable[[float], bool] = lambda passed: False) -> Outcome:
        """Its end; it is killed after so many seconds, or as soon as it is `at` something, of which
        the seconds passed are told."""
        late = stopped = False
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            passed = time.monotonic() - self.started
            if pid:
                code = None if late else os.waitstatus_to_exitcode(status)
                return Outcome(code, *map(drained, self.pipes), passed, used.ru_maxrss / 1024)
            late = late or passed > seconds
            if not stopped and (late or at(passed)):
                stopped = True
                self.stop()
            time.sleep(POLL)

    def stop(self) -> None:
        """End it at once, with what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def drained(pipe: int) -> str:
    """What has been written to the pipe, which is closed."""
    found = b""
    with suppress(BlockingIOError):  # somebody has it still open
        while part := os.read(pipe, PIPE):
            found += part
    os.close(pipe)
    return found.decode("utf-8", "replace")


def start(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str | None] | None = None,
    largest_file: int | None = None,
    gib: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> Run:
    """Start `metarun` with these words in `folder`.

    A variable that is None is taken out of the environment. `largest_file` is in bytes; `gib` is
    how much memory it may take beyond what it begins with. `before` is called in the fork.
    """
    warm()
    pipes = [os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if pid := os.fork():
        for reading, writing in pipes:
            fcntl(reading, F_SETPIPE_SZ, PIPE)
            os.close(writing)
        with suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(pid, pid)
        return Run(pid, pipes[0][0], pipes[1][0])
    code = 1
    try:
        become(words, folder, environment or {}, [writing for _, writing in pipes])
        limit(largest_file, gib)
        before()
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End this fork, with nothing of what the process that it is a fork of would do at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)


def become(
    words: Sequence[str], folder: Path, environment: Mapping[str, str | None], pipes: list[int]
) -> None:
    """Make this fork what a process of its own would be."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, pipe in enumerate(pipes, start=1):
        os.set_blocking(pipe, True)
        os.dup2(pipe, number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        errors = "strict" if number == 1 else "backslashreplace"  # as Python has them
        buffer = io.FileIO(number, "w", closefd=False)
        text = io.TextIOWrapper(io.BufferedWriter(buffer), "utf-8", errors, line_buffering=True)
        setattr(sys, name, text)
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["metarun", *words]


def limit(largest_file: int | None, gib: float | None) -> None:
    """Bound this process. A file that would be too large is an error, and no signal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does by itself
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if gib is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        most = pages * resource.getpagesize() + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def warm() -> None:
    """Load what any run loads, and have Hydra read what it reads first, once."""
    if WARM in sys.modules:
        return
    load_torch()
    for name in (WARM, "torch._dynamo", "sympy", "PIL.Image", "matplotlib.backends.backend_agg"):
        import_module(name)
    for module in pkgutil.walk_packages(metarun.__path__, "metarun."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    import hydra

    from metarun.configs.composing import committed, reads
    from metarun.configs.rules import conf_folder

    reads("a.b=[1,{c:'d'}]")
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        committed((), conf_folder())


def run(words: Sequence[str], folder: Path, seconds: float = 60, **options) -> Outcome:
    """The end of `metarun` with these words; `options` as in `start`."""
    return start(words, folder, **options).wait(seconds)


def as_process(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float = 120
) -> Outcome:
    """The same as a process of its own."""
    started = time.monotonic()
    command = [sys.executable, "-m", "metarun", *words]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, "", "", seconds, math.nan)
    text = [part.decode("utf-8", "replace") for part in (done.stdout, done.stderr)]
    return Outcome(done.returncode, *text, time.monotonic() - started, math.nan)


def shown(words: Sequence[str], longest: int = 120) -> str:
    """The command line, with what is very long cut."""
    cut = [w if len(w) <= longest else f"{w[:longest]}…({len(w)} letters)" for w in words]
    return shlex.join(["metarun", *cut])
