"""The test protocol: which episodes there are, and what a model's figures on them are."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun import ranks
from metarun.data.mixture import Mixture
from metarun.device import Device
from metarun.functional.metrics import Metric
from metarun.interfaces import Algorithm, Data, TestSampler
from metarun.samplers.functions import Functions
from metarun.testing.answers import answers
from metarun.testing.fixed_episodes import (
    FixedEpisodes,
    RowEpisodes,
    fixed_episodes,
    fixed_functions,
    own_tasks,
)

Figures = dict[str, dict[str, Tensor]]  # each episode's [E], by source and name


@dataclass(frozen=True)
class Protocol:
    """The keys of `eval` in the config."""

    sampler: TestSampler | Functions
    way: int
    shot: int
    query: int
    episodes: int
    val_episodes: int
    seed: int
    tasks: int  # answered at once
    metric: Metric

    def episodes_of(
        self, data: Data, split: str, count: int, device: torch.device
    ) -> dict[str, FixedEpisodes]:
        """The first `count` fixed episodes of the split, its examples on the device; of each
        source."""
        examples = data.open(split).to(device)
        if own := own_tasks(data, split):
            return {data.name: RowEpisodes(examples, own.rows.of_tasks(slice(count)))}
        if isinstance(self.sampler, Functions):
            drawn = fixed_functions(
                examples, self.sampler, name=split, seed=self.seed, episodes=count
            )
            return {data.name: drawn}
        several = examples.each() if isinstance(examples, Mixture) else {data.name: examples}
        return {
            source: fixed_episodes(
                of_source, self.sampler, name=split, seed=self.seed, episodes=count
            )
            for source, of_source in several.items()
        }

    def score(
        self,
        algorithm: Algorithm,
        episodes: dict[str, FixedEpisodes],
        device: Device,
        measures: bool = False,
    ) -> Figures:
        """Each episode's figures: the metric's, and with `measures` those that stand beside it.
        Every rank computes its share of them."""
        with ranks.agreed():
            own = {
                source: of_source.part(ranks.share(len(of_source)))
                for source, of_source in episodes.items()
            }
            figures = self.own_figures(algorithm, own, device, measures)
        all_figures = ranks.gathered(figures)
        return {
            source: {
                name: torch.cat([figures[source][name] for figures in all_figures])
                for name in of_source
            }
            for source, of_source in figures.items()
        }

    def own_figures(
        self,
        algorithm: Algorithm,
        episodes: dict[str, FixedEpisodes],
        device: Device,
        measures: bool = False,
    ) -> Figures:
        """As `score`, of all the episodes by this process alone."""
        return {
            source: answers(
                algorithm,
                of_source,
                tasks=self.tasks,
                device=device,
                metric=self.metric,
                measures=measures,
            )
            for source, of_source in episodes.items()
        }

    def rehearse(self, data: Data, algorithm: Algorithm, device: Device, split: str) -> None:
        """Answer one episode of the split, so that what does not fit together is known before
        training starts."""
        with nullcontext() if split == "test" else data.sealed("test"):
            one = self.episodes_of(data, split, 1, device.torch_device)
            self.own_figures(algorithm, one, device)
