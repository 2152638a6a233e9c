"""Five classes of a few examples each, for samplers to draw from, and whether draws are uniform."""

import torch

from metarun.data.split import stack_classes

SIZES = [7, 4, 9, 5, 6]
FIRST_ROW = torch.tensor([0, *SIZES]).cumsum(0)
CLASS_OF_ROW = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def some_split():
    """A split of SIZES examples, each the number of its row."""
    rows = torch.arange(float(sum(SIZES)))[:, None]
    names = ["seven", "four", "nine", "five", "six"]
    return stack_classes("vectors", dict(zip(names, rows.split(SIZES), strict=True)))


def assert_uniform(counts):
    """The chi-square statistic is at most six standard deviations above its mean."""
    expected = counts.double().sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    assert chi_square <= freedom + 6 * (2 * freedom) ** 0.5, counts
