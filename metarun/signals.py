"""Leaving when asked to: Ctrl-C and SIGTERM."""

import signal
import threading
from types import FrameType

from metarun.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within this block the signals to stop raise Interrupted; at once, or when it suits.

    While `wait` is true, which is when a training step must not be cut in two, a signal only
    makes calling this object return True. A second one raises all the same.
    """

    def __init__(self) -> None:
        self.wait = False
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wait and not self._asked:
            self._asked = True
        else:
            raise Interrupted("stopped")
