"""Mean and deviation of images, against NumPy in float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from metarun.data.statistics import channel_statistics


def test_equals_numpy_over_all_images():
    """Whatever the images are divided into."""
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7), dtype=np.uint8)
    parts = [torch.from_numpy(images[:4]), torch.from_numpy(images[4:])]
    mean, std = channel_statistics(parts)
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-9)


def test_a_channel_without_contrast_is_left_as_it_is():
    """Its deviation counts as one: nothing is divided by zero."""
    images = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    assert channel_statistics([images]) == ((0.2,), (1.0,))


@pytest.mark.parametrize("width", [256, 257, 1000])
def test_exact_for_any_width(width):
    """Of the brightest images and of random ones, against sums of Python's whole numbers."""
    x = torch.full((3, 1, 5, width), 255, dtype=torch.uint8)
    x[2] = torch.randint(256, (5, width), generator=torch.Generator().manual_seed(0))
    values = x.flatten().tolist()
    (mean,), (std,) = channel_statistics([x[:2], x[2:]])
    assert mean == sum(values) / len(values) / 255
    square = Fraction(sum(v * v for v in values), len(values))
    variance = square - Fraction(sum(values), len(values)) ** 2
    assert std == pytest.approx(math.sqrt(variance) / 255, rel=1e-9)
