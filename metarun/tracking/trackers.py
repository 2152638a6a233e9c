"""The three that are told what happens in a run, as one."""

from pathlib import Path
from typing import NamedTuple

from metarun.tracking.console import Console
from metarun.tracking.jsonlines import JsonLines, Record
from metarun.tracking.weights_and_biases import WeightsAndBiases


class Trackers(NamedTuple):
    """The console, the run's metrics.jsonl, and Weights & Biases."""

    console: Console
    lines: JsonLines
    wandb: WeightsAndBiases

    def log(self, record: Record) -> None:
        """One line of the log."""
        for tracker in self:
            tracker.log(record)

    def pictures(self, paths: dict[str, Path]) -> None:
        """Pictures of the run, by name."""
        self.wandb.pictures(paths)

    def finish(self, results: dict) -> None:
        """The run has ended well, with these results."""
        for tracker in self:
            tracker.finish(results)

    def close(self) -> None:
        """Nothing more comes, for whatever reason."""
        for tracker in self:
            tracker.close()
