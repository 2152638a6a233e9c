import math

import pytest
import torch

from metarun.algos.siamese import distorted
from metarun.augment.affine import Affine, mapped


def test_ranges_of_the_paper():
    """±10°, shear ±0.3, scale 0.8 to 1.2, ±2 of 105 pixels; each not used half of the time."""
    torch.manual_seed(0)
    maps = distorted.maps(torch.empty(20_000, 1, 1, 1, dtype=torch.float64))
    largest = [10 * math.pi / 180, 0.3, 0.3, 0.2, 0.2, 2 * 2 / 105, 2 * 2 / 105]
    for column, most in zip(maps.T, largest, strict=True):
        used = column[column != 0]
        assert len(used) / 20_000 == pytest.approx(0.5, abs=0.02)
        # Quarters of a uniform distribution between the bounds.
        assert used.abs().max() <= most
        wanted = [-most / 2, 0, most / 2]
        quarters = used.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        assert quarters.tolist() == pytest.approx(wanted, abs=0.04 * most)
    # Drawn apart: no two of the seven numbers are used, or large, together.
    for numbers in (maps, (maps != 0).double()):
        correlation = numbers.T.corrcoef() - torch.eye(7)
        assert correlation.abs().max() < 0.04


def test_a_point_goes_where_the_map_takes_it():
    """Pictures of their own coordinates: what is found at A p + t is p."""
    axis = (2 * torch.arange(105, dtype=torch.float64) + 1) / 105 - 1
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    x = torch.stack([right, down]).expand(20, 2, 105, 105)
    torch.manual_seed(0)
    maps = distorted.maps(x).tolist()
    torch.manual_seed(0)
    moved = distorted(x)
    for image, (angle, shear_x, shear_y, wider, higher, shift_x, shift_y) in zip(
        moved, maps, strict=True
    ):
        for column, row in ((52, 52), (30, 60), (70, 45)):
            p, q = image[:, row, column].tolist()
            p, q = (1 + wider) * p, (1 + higher) * q
            p, q = p + shear_x * q, q + shear_y * p
            p, q = (
                math.cos(angle) * p - math.sin(angle) * q + shift_x,
                math.sin(angle) * p + math.cos(angle) * q + shift_y,
            )
            assert (p, q) == pytest.approx((axis[column].item(), axis[row].item()), abs=1e-9)


def test_no_range_changes_nothing():
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(Affine(0, 0, 0, 0, probability=1)(x), x)


def test_a_map_that_is_never_used_changes_nothing():
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(Affine(90, 0.5, 0.5, 0.5, probability=0)(x), x)


def test_a_rotation_alone_and_back():
    """A quarter turn of each image, and its opposite."""
    x = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    maps = torch.zeros(2, 7, dtype=torch.float64)
    maps[:, 0] = torch.tensor([math.pi / 2, -math.pi / 2], dtype=torch.float64)
    turned = mapped(x, maps)
    torch.testing.assert_close(turned[0], x[0].rot90(-1, dims=(1, 2)))
    torch.testing.assert_close(turned[1], x[1].rot90(1, dims=(1, 2)))
    torch.testing.assert_close(mapped(turned, -maps), x)
