import copy

import pytest
import torch

from metarun.algos.cnp import CNP
from metarun.algos.snail import SNAIL
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.pixels import Pixels
from metarun.backbones.standardise import AsTheyAre, Standardise, if_raw
from metarun.episodes import PADDING, Episodes

FEATURES = 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_a_batch_and_the_running_statistics():
    """Mean 0 and deviation 1 of every feature; the running ones are the batches' mean, then their
    moving mean; and before any batch features stay, however large."""
    layer, mean, variance = Standardise(FEATURES).double(), torch.zeros(4), torch.ones(4)
    far = 1e3 * normal(1, 1, FEATURES)
    assert torch.equal(layer.eval()(far), far)
    layer.train()
    for seed in range(15):
        z = 3 * normal(5, 7, FEATURES, seed=seed) + torch.arange(4)
        flat = layer(z).flatten(0, 1)
        torch.testing.assert_close(flat.mean(dim=0), torch.zeros(4).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(flat.std(dim=0, correction=0), torch.ones(4).double())
        share = max(0.1, 1 / (seed + 1))
        mean = (1 - share) * mean + share * z.flatten(0, 1).mean(dim=0)
        variance = (1 - share) * variance + share * z.flatten(0, 1).var(dim=0, correction=0)
    z = normal(1, 1, FEATURES)
    torch.testing.assert_close(layer.eval()(z)[0, 0], (z[0, 0] - mean) / variance.sqrt())


def test_padding_counts_for_nothing():
    layer, other = Standardise(FEATURES).double(), Standardise(FEATURES).double()
    z, real = normal(2, 5, FEATURES), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padded = torch.where(real[..., None], z, 1e3)
    wanted = other(torch.cat([z[0], z[1, :3]])[None])[0]
    torch.testing.assert_close(layer(padded, real)[real], wanted)
    torch.testing.assert_close(layer.mean, other.mean)
    torch.testing.assert_close(layer.variance, other.variance)


def test_constants_and_outliers():
    """What never varies is 0, whatever rounding makes of it; and nothing is farther than ten."""
    layer = Standardise(2, scale=0.5)
    z = torch.stack([torch.full((1, 999), 0.1), torch.randn(1, 999)], dim=2)
    for _ in range(99):
        assert layer(z)[..., 0].abs().max() < 0.01
    layer.eval()
    assert layer(torch.tensor([[[0.1, 1e9]]])).tolist() == [[[pytest.approx(0, abs=0.1), 5.0]]]


def some_episodes(change, ragged=False):
    """Two tasks of three classes; of ragged ones the second has a query less."""
    support_y = torch.arange(3).repeat_interleave(2).expand(2, -1)
    query_y, ways = support_y.clone(), None
    if ragged:
        query_y[1, -1], ways = PADDING, torch.tensor([3, 3])
    x = change(normal(2, 12, FEATURES))
    return Episodes(x[:, :6], support_y, x[:, 6:], query_y, 3, ways)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", ["snail", "cnp"])
def test_how_data_is_scaled_does_not_matter(kind, ragged):
    """Each feature times a number and plus another: the same loss, and the same scores after it."""
    torch.manual_seed(0)
    backbone = Pixels((FEATURES,))
    network = SNAIL(backbone, 3, 2) if kind == "snail" else CNP(backbone, 3, 16)
    network = network.double()
    factor, summand = torch.tensor([1e-3, 1.0, 255.0, 1e4]), torch.tensor([0.0, -3.0, 1e3, 1e5])

    def outcome(change):
        episodes, algorithm = some_episodes(change, ragged), copy.deepcopy(network)
        losses = []
        for seed in range(3):
            torch.manual_seed(seed)
            losses.append(algorithm.loss(episodes)[0].detach())
        scores = algorithm.eval().predict(episodes)[episodes.query_y != PADDING]
        return torch.cat([torch.stack(losses), scores.flatten()])

    with torch.no_grad():
        plain, changed = outcome(lambda x: x), outcome(lambda x: factor * x + summand)
    torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-3)
    assert plain[-1] != plain[-2]


def test_what_a_network_made_stays():
    for network in (Conv4((1, 16, 16), width=4, batch_norm="none"), MLP((4,), [8], "batch")):
        assert isinstance(if_raw(network), AsTheyAre)
    assert isinstance(if_raw(Pixels((4,))), Standardise)
    z = normal(1, 2, 3)
    assert AsTheyAre()(z) is z
