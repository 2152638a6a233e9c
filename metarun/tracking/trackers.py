"""Several trackers as one."""

from typing import Protocol

from metarun.tracking.jsonlines import Record


class Tracker(Protocol):
    """Something that is told what happens in a run: every record, the end, and that it is over."""

    def log(self, record: Record) -> None: ...

    def finish(self, results: dict) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Passes everything on to each tracker, in order."""

    def __init__(self, *trackers: Tracker):
        self.trackers = trackers

    def log(self, record: Record) -> None:
        """One line of the log."""
        for tracker in self.trackers:
            tracker.log(record)

    def finish(self, results: dict) -> None:
        """The run has ended well, with these results."""
        for tracker in self.trackers:
            tracker.finish(results)

    def close(self) -> None:
        """Nothing more comes, for whatever reason."""
        for tracker in self.trackers:
            tracker.close()
