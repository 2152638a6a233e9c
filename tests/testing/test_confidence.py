import math

import pytest
import torch

from metarun.testing.confidence import Z95, mean_and_ci95, mean_of_means


def test_z95_is_the_normal_quantile():
    """95 % of the normal distribution lies within it: erf(z / √2) = 0.95."""
    assert math.erf(Z95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([0, 1], 0.5, 1.959964 * 0.5),  # s = 1 / √2, and s / √2 = 1 / 2
        ([1, 2, 3, 4], 2.5, 1.959964 * math.sqrt(5 / 12)),  # s² = 5 / 3, over 4
        ([0.25, 0.25, 0.25], 0.25, 0.0),
    ],
)
def test_worked_by_hand(values, mean, half_width):
    assert mean_and_ci95(torch.tensor(values)) == pytest.approx((mean, half_width), rel=1e-12)


def test_float32_values_are_added_in_float64():
    """A million times float32's 0.1 has that mean to sixteen digits, and no deviation."""
    value = torch.tensor(0.1)
    mean, half_width = mean_and_ci95(value.expand(1_000_000))
    assert mean == pytest.approx(value.double().item(), rel=1e-12)
    assert half_width < 1e-15


@pytest.mark.filterwarnings("ignore:std")
def test_one_value_alone_has_no_interval():
    mean, half_width = mean_and_ci95(torch.tensor([0.75]))
    assert mean == 0.75
    assert math.isnan(half_width)


def test_the_interval_holds_the_true_mean_95_times_in_100():
    """Accuracies as of 200 episodes of 15 queries, 3000 times over."""
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(3000, 200, 15, generator=generator) < 0.8
    held = 0
    for accuracies in hits.double().mean(dim=2):
        mean, half_width = mean_and_ci95(accuracies)
        held += abs(mean - 0.8) <= half_width
    assert 0.935 < held / 3000 < 0.965


def test_means_of_several_sources():
    """Of independent ones the half-widths add up as their squares do: of 3 and 4, 5, over two."""
    assert mean_of_means([(0.8, 0.03), (0.6, 0.04)]) == pytest.approx((0.7, 0.025))
    assert mean_of_means([(0.8, 0.03)]) == (0.8, 0.03)
