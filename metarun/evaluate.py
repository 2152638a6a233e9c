"""The test protocol: every run on the same data answers the same episodes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.device import Device
from metarun.episodes import gather
from metarun.interfaces import Algorithm
from metarun.samplers import uniform, within_superclass
from metarun.seeds import stream

DRAWN_AT_ONCE = 100  # changing it changes every test episode


@dataclass(frozen=True)
class FixedEpisodes:
    """A list of test tasks, fixed by a seed: support rows [E, way, shot], query [E, way, query]."""

    split: Split
    support: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.support)

    @property
    def sha256(self) -> str:
        """Identifies the episodes: results with equal values can be paired episode by episode."""
        digest = hashlib.sha256(repr([self.support.shape, self.query.shape]).encode())
        digest.update(self.support.contiguous().numpy().tobytes())
        digest.update(self.query.contiguous().numpy().tobytes())
        return digest.hexdigest()


def fixed_episodes(
    split: Split,
    *,
    name: str,
    seed: int,
    episodes: int,
    way: int,
    shot: int,
    query: int,
    within: bool,
) -> FixedEpisodes:
    """The first `episodes` tasks of the stream `name` ("val", "test") of `seed`.

    They depend on these arguments and the split's class sizes alone, and a shorter list is the
    beginning of a longer one. With `within`, each task's classes share a superclass.
    """
    generator = stream(seed, name)
    drawn = []
    for _ in range(0, episodes, DRAWN_AT_ONCE):
        sizes = {"tasks": DRAWN_AT_ONCE, "way": way, "shot": shot, "query": query}
        if within:
            rows = within_superclass.draw_tasks(
                split.first_row, split.superclass, generator=generator, **sizes
            )
        else:
            rows = uniform.draw_tasks(split.first_row, generator=generator, **sizes)
        drawn.append(rows)
    support, query_rows = (torch.cat(rows)[:episodes] for rows in zip(*drawn, strict=True))
    return FixedEpisodes(split, support, query_rows)


@torch.inference_mode()
def accuracies(
    algorithm: Algorithm,
    episodes: FixedEpisodes,
    *,
    tasks: int,
    device: Device,
) -> Tensor:
    """Accuracy on each episode [E], float64, `tasks` episodes at once.

    The algorithm is in evaluation mode meanwhile.
    """
    was_training = algorithm.training
    algorithm.eval()
    results = []
    for start in range(0, len(episodes), tasks):
        rows = slice(start, start + tasks)
        batch = gather(episodes.split, episodes.support[rows], episodes.query[rows])
        with device.autocast():
            scores = algorithm.predict(batch)
        results.append((scores.argmax(-1) == batch.query_y).double().mean(dim=1))
    algorithm.train(was_training)
    return torch.cat(results).cpu()
