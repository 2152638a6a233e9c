import math

import torch

from metarun.functional.prototypes import class_means, cosine_distances, squared_distances


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_class_means_worked_by_hand():
    """Class 0 has (0, 2) and (4, 0), class 1 has (1, 1) alone."""
    z = torch.tensor([[[0.0, 2], [1, 1], [4, 0]]])
    assert class_means(z, torch.tensor([[0, 1, 0]]), way=2).tolist() == [[[2, 1], [1, 1]]]


def test_class_means_equal_a_loop():
    """Equation 1, with classes in no order and of unequal shots."""
    z = normal(3, 7, 4)
    y = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [2, 2, 2, 2, 1, 0, 1], [1, 0, 0, 0, 0, 0, 2]])
    means = class_means(z, y, way=3)
    for task in range(3):
        for label in range(3):
            members = [z[task, i] for i in range(7) if y[task, i] == label]
            wanted = sum(members) / len(members)
            torch.testing.assert_close(means[task, label], wanted, rtol=0, atol=1e-14)


def test_squared_distances_equal_a_loop():
    a, b = normal(2, 4, 3), normal(2, 5, 3, seed=1)
    distances = squared_distances(a, b)
    assert distances.shape == (2, 4, 5)
    for t in range(2):
        for i in range(4):
            for j in range(5):
                wanted = sum((a[t, i, d] - b[t, j, d]).item() ** 2 for d in range(3))
                assert abs(distances[t, i, j].item() - wanted) < 1e-12


def test_small_distances_far_from_the_origin_are_not_rounded_away():
    """(64 + k/1024 - 64)² in float32, exactly; |a|² - 2ab + |b|² would give 0."""
    k = torch.arange(32.0)
    a = 64 + k[None, :, None] / 1024
    distances = squared_distances(a, torch.full((1, 1, 1), 64.0))
    assert distances[0, :, 0].tolist() == ((k / 1024) ** 2).tolist()


def test_cosine_distances_worked_by_hand():
    """Of (2, 0): the same direction 0, a right angle 1, the opposite 2, 60 degrees 1/2."""
    b = torch.tensor([[[7.0, 0], [0, 0.1], [-3, 0], [1, math.sqrt(3)]]], dtype=torch.float64)
    a = torch.tensor([[[2.0, 0]]], dtype=torch.float64)
    wanted = torch.tensor([[[0, 1, 2, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(cosine_distances(a, b), wanted, rtol=0, atol=1e-12)


def test_cosine_distances_equal_a_loop():
    a, b = normal(2, 4, 3), normal(2, 5, 3, seed=1)
    distances = cosine_distances(a, b)
    for t in range(2):
        for i in range(4):
            for j in range(5):
                u, v = a[t, i].tolist(), b[t, j].tolist()
                dot = sum(p * q for p, q in zip(u, v, strict=True))
                wanted = 1 - dot / (math.hypot(*u) * math.hypot(*v))
                assert abs(distances[t, i, j].item() - wanted) < 1e-12
