import pytest
import torch

from metarun.augment.flip import Flip, QuarterTurns, flipped, turned
from metarun.errors import UserError


def images(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)


def test_those_mirrored_and_no_others():
    x, mirrored = images(3, 2, 2, 3), torch.tensor([True, False, True])
    got = flipped(x, mirrored)
    assert got[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(got[1], x[1])
    assert torch.equal(flipped(got, mirrored), x), "twice is not at all"


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_as_often_as_asked_for(probability):
    torch.manual_seed(0)
    x = torch.tensor([[[[0.0, 1.0]]]]).expand(10_000, 1, 1, 2)
    assert Flip(probability)(x)[:, 0, 0, 0].mean().item() == pytest.approx(probability, abs=0.02)


def test_each_image_is_turned_by_its_own_angle():
    x = images(4, 2, 3, 3)
    got = turned(x, torch.tensor([0, 1, 2, 3]))
    for turn in range(4):
        assert torch.equal(got[turn], x[turn].rot90(turn, dims=(1, 2)))
    assert torch.equal(turned(got, torch.tensor([0, 3, 2, 1])), x), "and back"


def test_every_turn_is_as_likely():
    torch.manual_seed(0)
    x = torch.tensor([[[[0.0, 1.0], [3.0, 2.0]]]]).expand(8000, 1, 2, 2)
    corner = QuarterTurns()(x)[:, 0, 0, 0].long()
    assert (corner.bincount() - 2000).abs().max() < 200


def test_a_quarter_turn_needs_a_square():
    with pytest.raises(UserError, match="square images, not 2×3"):
        QuarterTurns()(images(1, 1, 2, 3))
