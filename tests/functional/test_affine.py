import math

import pytest
import torch

from metarun.functional.affine import affine_matrices, transformed


def matrix(angle=0.0, shear=(0.0, 0.0), scale=(1.0, 1.0)):
    """One map [1, 2, 2]."""
    numbers = (torch.tensor([value], dtype=torch.float64) for value in (angle, shear, scale))
    return affine_matrices(*numbers)


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def still(count=1):
    return torch.zeros(count, 2, dtype=torch.float64)


def nearest_inside(x, row, column):
    """The pixel, or that of the border next to it."""
    return x[min(max(row, 0), len(x) - 1)][min(max(column, 0), len(x[0]) - 1)]


def by_loops(x, forward, shift):
    """Numbers x [H][W] under p -> forward p + shift: bilinear interpolation, a pixel at a time."""
    height, width = len(x), len(x[0])
    (a, b), (c, d) = forward
    determinant = a * d - b * c
    result = []
    for row in range(height):
        for column in range(width):
            right = (2 * column + 1) / width - 1 - shift[0]
            down = (2 * row + 1) / height - 1 - shift[1]
            source_x = (d * right - b * down) / determinant
            source_y = (a * down - c * right) / determinant
            # Back in pixels, kept within the border.
            u = min(max((source_x + 1) * width / 2 - 0.5, 0), width - 1)
            v = min(max((source_y + 1) * height / 2 - 0.5, 0), height - 1)
            i, j = math.floor(v), math.floor(u)
            p, q = v - i, u - j
            result.append(
                (1 - p) * (1 - q) * nearest_inside(x, i, j)
                + (1 - p) * q * nearest_inside(x, i, j + 1)
                + p * (1 - q) * nearest_inside(x, i + 1, j)
                + p * q * nearest_inside(x, i + 1, j + 1)
            )
    return result


def test_a_matrix_worked_by_hand():
    """(1, 1) scaled to (2, 3), sheared to (2 + 0.5 · 3, 3 + 0.25 · 2), then turned by 90°."""
    there = matrix(math.pi / 2, shear=(0.5, 0.25), scale=(2.0, 3.0))[0] @ torch.ones(2).double()
    assert there.tolist() == pytest.approx([-3.5, 3.5])


def test_each_image_has_its_own_matrix():
    draws = image(4, 5)
    angle, shear, scale = draws[:, 0], draws[:, 1:3], draws[:, 3:5]
    alone = [affine_matrices(angle[[i]], shear[[i]], scale[[i]]) for i in range(4)]
    torch.testing.assert_close(affine_matrices(angle, shear, scale), torch.cat(alone))


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_equals_loops_over_the_pixels(size):
    x, draws = image(3, 2, *size), image(3, 7, seed=1)
    forward = affine_matrices(draws[:, 0], 0.3 * draws[:, 1:3], 1 + 0.2 * draws[:, 3:5].tanh())
    shift = 0.2 * draws[:, 5:]
    got = transformed(x, forward, shift)
    for i in range(3):
        for channel in range(2):
            wanted = by_loops(x[i, channel].tolist(), forward[i].tolist(), shift[i].tolist())
            assert got[i, channel].flatten().tolist() == pytest.approx(wanted, abs=1e-9)


def test_nothing_is_done_by_the_identity():
    x = image(1, 3, 6, 6)
    torch.testing.assert_close(transformed(x, matrix(), still()), x)


def test_a_shift_moves_right_and_down():
    """By two of eight pixels, and one."""
    x = image(1, 1, 8, 8)
    moved = transformed(x, matrix(), torch.tensor([[2 * 2 / 8, 1 * 2 / 8]], dtype=torch.float64))
    torch.testing.assert_close(moved[..., 1:, 2:], x[..., :-1, :-2])


def test_a_quarter_turn_takes_right_to_down():
    x = image(1, 1, 7, 7)
    turned = transformed(x, matrix(math.pi / 2), still())
    torch.testing.assert_close(turned, x.rot90(-1, dims=(2, 3)))


def test_the_background_goes_on_beyond_the_border():
    """Whatever its value: a picture of one shade stays one, however far it is moved."""
    x = torch.full((1, 1, 6, 6), -3.7, dtype=torch.float64)
    moved = transformed(x, matrix(0.4, (0.3, -0.2), (0.5, 0.6)), still() + 0.8)
    torch.testing.assert_close(moved, x)
