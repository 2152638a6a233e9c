import pytest
import torch
from torch.nn import functional as F

from metarun.augment.elastic import Elastic, moved


def coordinates(height=40, wide=60):
    """A picture of its own coordinates, right and down, from -1 to 1 between its borders."""
    right = (2 * torch.arange(wide, dtype=torch.float64) + 1) / wide - 1
    down = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    return torch.stack([right.expand(height, wide), down[:, None].expand(height, wide)])[None]


def test_points_come_from_where_the_field_says():
    """A constant field shifts, by as much along each axis as it has for that axis."""
    x = coordinates()
    field = torch.tensor([0.2, -0.1], dtype=torch.float64)[None, :, None, None].expand(1, 2, 3, 3)
    change = (moved(x, field) - x)[..., 10:-10, 15:-15]
    torch.testing.assert_close(change, field[..., :1, :1].expand_as(change))


def test_between_the_points_the_field_is_smooth():
    """It takes its values at the points, the outermost of which are at the border."""
    torch.manual_seed(0)
    x, field = coordinates(49, 49), 0.05 * torch.randn(1, 2, 5, 5, dtype=torch.float64)
    change = moved(x, field) - x
    torch.testing.assert_close(change[..., 12:-12:12, 12:-12:12], field[..., 1:-1, 1:-1])
    slope = change[..., 8:-8, 8:-8].diff(dim=3).abs().max()
    assert slope < 2 * field.diff(dim=3).abs().max() / 12, "no jumps from pixel to pixel"


def test_strength_is_the_deviation():
    torch.manual_seed(0)
    x = coordinates(41, 41).expand(4000, 2, 41, 41)
    change = (Elastic(strength=0.02, points=5)(x) - x)[..., 20, 20]  # a point of the field
    assert change.mean(dim=0).abs().max() < 0.002
    assert (change.std(dim=0) / 2).tolist() == pytest.approx([0.02, 0.02], rel=0.05)
    assert change.T.corrcoef()[0, 1].abs() < 0.06


def test_images_have_fields_of_their_own_and_none_changes_nothing():
    x = torch.rand(1, 1, 12, 12).expand(3, 1, 12, 12)
    first, second, third = Elastic(strength=0.05, points=4)(x)
    assert not first.equal(second)
    assert not second.equal(third)
    torch.testing.assert_close(Elastic(strength=0.0, points=4)(x), x)


def test_under_autocast():
    """Coordinates keep their precision."""
    x = torch.rand(2, 1, 28, 28)
    field = 0.1 * torch.randn(2, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(moved(x, field), moved(x, field), rtol=0, atol=0)
        assert moved(x, field).dtype == torch.float32
    assert F.mse_loss(moved(x, field), x) > 0
