"""What was understood of the data, and what looks odd about it, as whoever reads it tells.

It is stored beside the prepared splits. So the header and results.json say it of data from the
cache too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

from metarun.tracking.console import plain

SHOWN = 5  # names in one sentence

_told: ContextVar[dict[str, Any] | None] = ContextVar("told", default=None)


@contextmanager
def listening(earlier: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """What is told within this block, by its keys, in addition to what was told `earlier`."""
    told = deepcopy(dict(earlier or {}))
    token = _told.set(told)
    try:
        yield told
    finally:
        _told.reset(token)


def tell(key: str, value: Any) -> None:
    """One thing that was understood, under the key that it has in results.json."""
    if (told := _told.get()) is not None:
        told[key] = value


def doubt(sentence: str) -> None:
    """One thing that looks odd; on the console at once if nobody listens."""
    if (told := _told.get()) is None:
        plain(sentence)
    else:
        told.setdefault("doubts", []).append(sentence)


def told_so_far() -> dict[str, Any]:
    """What was told within the block that listens, if there is one."""
    return _told.get() or {}


def shown(names: list[str], what: str) -> str:
    """How many names there are, and the first few of them."""
    plural = "es" if what.endswith("s") else "s"
    count = f"{len(names)} {what}{plural if len(names) > 1 else ''}"
    return f"{count}: {few(names)}"


def few(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
