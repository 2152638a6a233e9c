"""Which episodes a run validates and tests on."""

import torch

from metarun.data.split import stack_classes
from metarun.functional.metrics import ACCURACY
from metarun.samplers.uniform import Uniform
from metarun.testing.fixed_episodes import fixed_episodes
from metarun.testing.protocol import Protocol

CPU = torch.device("cpu")


class Letters:
    """The same eight classes in every split, so that the episodes alone can differ."""

    name = "letters"

    def open(self, split):
        return stack_classes("images", {str(c): images(seed=c) for c in range(8)})


def images(seed):
    """Nine of noise, 4×4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (9, 1, 4, 4), generator=generator).byte()


def drawn(split, seed=3):
    sampler = Uniform(way=3, shot=1, query=2, tasks=4)
    protocol = Protocol(sampler, 3, 1, 2, 50, 20, seed=seed, tasks=4, metric=ACCURACY)
    (episodes,) = protocol.episodes_of(Letters(), split, 50, CPU).values()
    return episodes


def test_they_are_those_of_the_protocols_seed_in_a_stream_called_as_the_split():
    for split in ("val", "test"):
        sampler = Uniform(way=3, shot=1, query=2, tasks=4)
        letters = Letters().open(split)
        wanted = fixed_episodes(letters, sampler, name=split, seed=3, episodes=50)
        assert drawn(split).sha256 == wanted.sha256
    assert len({drawn(*given).sha256 for given in [("val",), ("test",), ("test", 4)]}) == 3


def test_their_images_are_those_of_the_split_and_nothing_else():
    """Not augmented, whatever training does: pixels of 0 to 1 where no statistics are known."""
    split, episodes = Letters().open("test"), drawn("test")
    batch = episodes.batch(slice(0, 7))
    stored = split.x[episodes.rows.query[:7]].float() / 255
    torch.testing.assert_close(batch.query_x, stored)
    assert batch.support_x.shape == (7, 3, 1, 4, 4)
