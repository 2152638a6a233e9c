from types import SimpleNamespace

from metarun.tracking.console import Console
from metarun.tracking.jsonlines import JsonLines, read
from metarun.tracking.trackers import Trackers


class Pretended(SimpleNamespace):
    """A W&B run that only keeps what it is told."""

    url = None

    def log(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True


def test_wandb_starts_with_the_first_record(tmp_path, capsys):
    """Once, and it misses none; a run without any record leaves nothing there."""
    started = []

    def start():
        started.append(Pretended(mode="offline", records=[], closed=False))
        return started[-1]

    def trackers():
        return Trackers(Console(9), JsonLines(tmp_path / "metrics.jsonl"), start)

    trackers().close()
    assert not started
    records = [{"step": step, "train/loss": 0.5} for step in (1, 2)]
    told = trackers()
    for record in records:
        told.log(record)
    told.close()
    (wandb,) = started
    assert wandb.records == records == read(tmp_path / "metrics.jsonl")
    assert wandb.closed
    assert capsys.readouterr().out.count("W&B: offline") == 1


def test_a_disabled_wandb_is_not_spoken_of(tmp_path, capsys):
    told = Trackers(
        *(Console(9), JsonLines(tmp_path / "metrics.jsonl")),
        lambda: Pretended(mode="disabled", records=[]),
    )
    told.log({"step": 1, "train/loss": 0.5})
    assert "W&B" not in capsys.readouterr().out
