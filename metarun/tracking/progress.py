"""How far a long preparation has come, for the person who waits for it."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items of `iterable`, telling on stderr how many of `total` are done.

    A bar in a terminal; elsewhere (a log file, a batch job) one line at the start and one at the
    end, without control codes.
    """
    if sys.stderr.isatty():
        yield from _with_bar(iterable, description, total)
        return
    print(f"{description} ({total}) ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield from iterable
    seconds = time.monotonic() - start
    print(f"{description}: done in {seconds:.1f} s", file=sys.stderr, flush=True)


def _with_bar(iterable: Iterable[T], description: str, total: int) -> Iterator[T]:
    # Imported here: most runs find their data prepared and show no bar.
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(iterable, description, total, console=Console(stderr=True))
