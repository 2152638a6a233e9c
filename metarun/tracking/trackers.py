"""The three that are told what happens in a run, as one."""

from collections.abc import Callable
from pathlib import Path

from metarun.tracking.console import Console
from metarun.tracking.jsonlines import JsonLines, Record
from metarun.tracking.weights_and_biases import WeightsAndBiases


class Trackers:
    """The console, the run's metrics.jsonl, and Weights & Biases.

    W&B takes seconds to start, so it starts with the first record: training need not wait to begin,
    and a run that never came so far leaves none there.
    """

    def __init__(
        self, console: Console, lines: JsonLines, start_wandb: Callable[[], WeightsAndBiases]
    ):
        self.console, self.lines, self.start_wandb = console, lines, start_wandb
        self.wandb: WeightsAndBiases | None = None

    def log(self, record: Record) -> None:
        """One line of the log."""
        self.console.log(record)
        self.lines.log(record)
        if self.wandb is None:
            self.wandb = self.start_wandb()
            if self.wandb.mode != "disabled":
                self.console.message(f"W&B: {self.wandb.url or self.wandb.mode}")
        self.wandb.log(record)

    def pictures(self, paths: dict[str, Path]) -> None:
        """Pictures of the run, by name."""
        if self.wandb:
            self.wandb.pictures(paths)

    def finish(self, results: dict) -> None:
        """The run has ended well, with these results."""
        self.console.finish(results)
        self.lines.finish(results)
        if self.wandb:
            self.wandb.finish(results)

    def close(self) -> None:
        """Nothing more comes, for whatever reason."""
        self.console.close()
        self.lines.close()
        if self.wandb:
            self.wandb.close()
