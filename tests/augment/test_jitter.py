import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from metarun.augment.jitter import Jitter, jittered


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchvisions_of_each_image(channels):
    """Brightness, then contrast, then saturation, each with the image's own factor."""
    x = images(5, channels, 6, 7)
    factors = 2 * torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = jittered(x, factors)
    for i, (brightness, contrast, saturation) in enumerate(factors.tolist()):
        wanted = tv.adjust_contrast(tv.adjust_brightness(x[i], brightness), contrast)
        wanted = tv.adjust_saturation(wanted, saturation)
        # Its weight of red is 0.2989, not 0.299.
        torch.testing.assert_close(got[i], wanted, atol=1e-3, rtol=0)


def test_worked_by_hand():
    """Red 0.8 beside black. Half as bright it is 0.4, grey 0.299 · 0.4 = 0.1196 with mean 0.0598;
    at contrast 0.5 the colours go half of the way there; saturation 0 leaves the grey."""
    x = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.8
    red = (0.4 + 0.0598) / 2
    other = 0.0598 / 2
    bright, half, dull = ([0.5, 1, 1], [0.5, 0.5, 1], [0.5, 0.5, 0])
    as_factors = [torch.tensor([f], dtype=torch.float64) for f in (bright, half, dull)]
    pixels = [jittered(x, f)[0, :, 0, 0].tolist() for f in as_factors]
    assert pixels[0] == pytest.approx([0.4, 0, 0])
    assert pixels[1] == pytest.approx([red, other, other])
    assert pixels[2] == pytest.approx([0.299 * red + 0.701 * other] * 3)


def test_colours_stay_within_bounds():
    x = jittered(images(4, 3, 5, 5), torch.full((4, 3), 1.9, dtype=torch.float64))
    assert x.min() >= 0
    assert x.max() <= 1


def test_no_strength_changes_nothing():
    x = images(3, 3, 4, 4)
    assert torch.equal(Jitter(0, 0, 0)(x), x)


def test_each_image_has_its_own_factors():
    torch.manual_seed(0)
    factors = Jitter(0.4, 0.1, 2.0).factors(torch.empty(20_000, 3, 1, 1))
    for column, low, high in zip(factors.T, (0.6, 0.9, 0.0), (1.4, 1.1, 3.0), strict=True):
        assert column.min().item() == pytest.approx(low, abs=0.001 * high)
        assert column.max().item() == pytest.approx(high, rel=0.001)
        assert column.mean().item() == pytest.approx((low + high) / 2, rel=0.02)
    assert (factors.T.corrcoef() - torch.eye(3)).abs().max() < 0.04
