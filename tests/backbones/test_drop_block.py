import pytest
import torch

from metarun.backbones.drop_block import drop_block


@pytest.mark.parametrize(("height", "wide", "size"), [(6, 6, 1), (7, 5, 3), (5, 5, 5), (3, 4, 7)])
def test_squares_are_lost_about_as_often_as_asked(height, wide, size):
    """Counted by hand: a pixel is lost if any of the corners that reach it is drawn, each with
    eq. 1's probability. Seven is more than a map of 3×4 has: there the squares are of 3×3."""
    torch.manual_seed(0)
    rate, side = 0.2, min(size, height, wide)
    kept = (drop_block(torch.ones(200, 50, height, wide), rate, size) != 0).float()
    rows, columns = height - side + 1, wide - side + 1
    gamma = rate / side**2 * height * wide / (rows * columns)

    def reach(at, places):
        return min(at, places - 1) - max(at - side + 1, 0) + 1

    for i in range(height):
        for j in range(wide):
            wanted = (1 - gamma) ** (reach(i, rows) * reach(j, columns))
            assert kept[:, :, i, j].mean().item() == pytest.approx(wanted, abs=0.02)
    # With squares that do not overlap much, that is about the rate.
    assert 1 - kept.mean().item() == pytest.approx(rate, abs=0.05)


def test_what_is_lost_is_squares():
    """Each lost pixel lies in a lost square of 3×3."""
    torch.manual_seed(0)
    lost = drop_block(torch.ones(20, 4, 8, 9), 0.1, 3) == 0
    assert lost.any()
    assert not lost.all()
    squares = lost.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).all(dim=4)  # by their corners
    covered = torch.zeros_like(lost)
    for n, c, i, j in squares.nonzero().tolist():
        covered[n, c, i : i + 3, j : j + 3] = True
    assert torch.equal(covered, lost)


def test_the_rest_makes_good():
    """The sum of all stays what it was (Algorithm 1, the last step), in bfloat16 about so."""
    torch.manual_seed(0)
    for dtype, within in ((torch.float64, 1e-6), (torch.bfloat16, 0.01)):
        z = drop_block(torch.ones(8, 16, 10, 10, dtype=dtype), 0.3, 3)
        assert z.dtype == dtype
        assert z.double().mean().item() == pytest.approx(1, rel=within)


def test_all_can_be_lost():
    """Then everything is zero, and not NaN."""
    assert drop_block(torch.ones(1, 1, 2, 2), 1.0, 2).tolist() == [[[[0, 0], [0, 0]]]]
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(drop_block(x, 0.0, 3), x)
