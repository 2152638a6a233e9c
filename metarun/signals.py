"""Leaving when asked to: Ctrl-C, SIGTERM, and the signals of a job's launcher."""

import signal
import threading
from types import FrameType

from metarun.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAUNCHERS = (signal.SIGUSR1, signal.SIGUSR2)  # taken where someone listens to them already


class StopSignals:
    """Within this block the signals to stop raise Interrupted; at once, or when it suits.

    While `wait` is true, which is when a training step must not be cut in two, a signal only
    makes calling this object return True. A second one raises all the same.

    A launcher such as submitit's listens to a signal by which SLURM tells that a job's time is
    nearly up; it then puts the job back in the queue and leaves at once. Such a signal stops the
    run too, and the launcher gets it on leaving the block, when the run has been saved.
    """

    def __init__(self) -> None:
        self.wait = False
        self._asked = False
        self._for_launcher: signal.Signals | None = None

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            taken = [*SIGNALS, *(s for s in LAUNCHERS if callable(signal.getsignal(s)))]
            self._before = {s: signal.signal(s, self._handle) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._for_launcher:
            handler = self._before[self._for_launcher]
            assert callable(handler)
            handler(self._for_launcher, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self._asked
        if number in LAUNCHERS:  # it often comes right after SIGTERM, and is no second request
            first, self._for_launcher = True, signal.Signals(number)
        if self.wait and first:
            self._asked = True
        else:
            raise Interrupted("stopped")
