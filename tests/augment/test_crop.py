import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from metarun.augment.crop import PaddedCrop, ResizedCrop, padded_crop, resized_crop
from metarun.errors import UserError

SIZES = [(8, 8), (9, 6)]


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_a_padded_crop_equals_torchvisions_of_each_image(size):
    x, padding = images(5, 3, *size), 3
    corner = torch.tensor([[0, 0], [6, 6], [3, 3], [1, 5], [4, 2]])
    got = padded_crop(x, padding, corner)
    for i, (top, left) in enumerate(corner.tolist()):
        wanted = tv.crop(tv.pad(x[i], [padding]), top, left, *size)
        assert torch.equal(got[i], wanted)
    assert torch.equal(got[2], x[2]), "in the middle the image is what it was"


def test_every_corner_is_as_likely():
    """Of 7 × 7 corners, each image its own; 49,000 draws, about a thousand of each."""
    torch.manual_seed(0)
    corners = PaddedCrop(3).corners(torch.empty(49_000, 1, 1, 1))
    counts = (7 * corners[:, 0] + corners[:, 1]).bincount(minlength=49)
    assert len(counts) == 49
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)


def test_without_padding_nothing_moves():
    x = images(4, 2, 5, 7)
    assert torch.equal(PaddedCrop(0)(x), x)


@pytest.mark.parametrize("size", SIZES)
def test_a_resized_crop_equals_torchvisions_of_each_image(size):
    """Which crops, and then resizes by bilinear interpolation."""
    x, (height, width) = images(6, 3, *size), size
    boxes = [
        [0, 0, height, width],
        [2, 1, 3, 4],
        [height - 2, width - 3, 2, 3],
        [0, 2, height, 1],
        [4, 0, 1, width],
        [3, 2, 1, 1],
    ]
    got = resized_crop(x, torch.tensor(boxes, dtype=torch.float64))
    for i, (top, left, high, wide) in enumerate(boxes):
        wanted = tv.resized_crop(x[i], top, left, high, wide, [height, width], antialias=True)
        torch.testing.assert_close(got[i], wanted)
    torch.testing.assert_close(got[0], x[0])


@pytest.mark.parametrize("size", [(84, 84), (60, 84)])
def test_windows_lie_in_the_image_and_have_the_areas_asked_for(size):
    torch.manual_seed(0)
    x = torch.empty(20_000, 1, 1, 1).expand(-1, -1, *size)
    box = ResizedCrop([0.2, 0.6], [0.75, 4 / 3]).boxes(x)
    top, left, high, wide = box.unbind(1)
    assert torch.equal(box, box.round())
    assert top.min() == left.min() == 0
    assert (top + high).max() == size[0]
    assert (left + wide).max() == size[1]
    share, ratio = high * wide / (size[0] * size[1]), wide / high
    assert share.min() > 0.19
    assert share.max() < 0.62
    assert ratio.min() > 0.72
    assert ratio.max() < 1.38
    # Uniform: the mean area, and the mean logarithm of the ratio; windows that do not fit (only in
    # the second image) are drawn again, which changes both.
    if size[0] == size[1]:
        assert share.mean().item() == pytest.approx(0.4, abs=0.005)
        assert ratio.log().mean().item() == pytest.approx(0, abs=0.005)
        assert share.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.003)


def test_windows_are_drawn_for_each_image_as_torchvision_draws_them():
    """The same distribution as RandomResizedCrop's where many windows do not fit."""
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    scale, ratio = (0.5, 1.0), (0.75, 4 / 3)
    ours = ResizedCrop(scale, ratio).boxes(torch.empty(4000, 1, 1, 1).expand(-1, -1, 20, 20))
    picture = torch.empty(1, 20, 20)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(4000)]
    ).float()
    assert len(ours.unique(dim=0)) > 400
    for of_us, of_them in zip(ours.T, theirs.T, strict=True):
        assert of_us.mean().item() == pytest.approx(of_them.mean().item(), abs=0.2)
        assert of_us.std().item() == pytest.approx(of_them.std().item(), abs=0.2)


def test_a_window_that_cannot_fit_is_the_whole_image():
    """Twice as wide as high with all the area: no such window is in a square."""
    x = images(3, 1, 6, 6)
    torch.testing.assert_close(ResizedCrop([1.0, 1.0], [2.0, 2.0])(x), x)


def test_the_whole_area_changes_nothing():
    x = images(3, 2, 6, 6)
    torch.testing.assert_close(ResizedCrop([1.0, 1.0], [1.0, 1.0])(x), x)


@pytest.mark.parametrize("bounds", [[0.5], [0.0, 1.0], [0.9, 0.1], [0.5, 1.5]])
def test_wrong_bounds(bounds):
    with pytest.raises(UserError, match="scale="):
        ResizedCrop(bounds, [0.75, 1.5])
