import pytest
import torch

from metarun.data.functions import Functions as Family
from metarun.data.functions import sinusoid
from metarun.data.split import stack_classes
from metarun.errors import UserError
from metarun.samplers.functions import Functions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def family(name="train"):
    return sinusoid(amplitude=[0.1, 5.0], phase=[0.0, 3.0], x=[-5.0, 5.0]).open(name)


def test_support_and_query_are_points_of_one_function():
    """Which is found from three support points, A sin(x − φ) = a sin x − b cos x, for the rest."""
    episodes = Functions(shot=3, query=6, tasks=4)(family(), generator())
    assert episodes.way == 1
    assert episodes.support_x.shape == episodes.support_y.shape == (4, 3, 1)
    assert episodes.query_x.shape == episodes.query_y.shape == (4, 6, 1)

    def columns(x):
        return torch.cat([x.sin(), -x.cos()], dim=2)

    support_x, support_y, query_x, query_y = (tensor.double() for tensor in episodes[:4])
    found = torch.linalg.lstsq(columns(support_x), support_y).solution
    torch.testing.assert_close(columns(query_x) @ found, query_y, rtol=0, atol=1e-4)
    assert not torch.allclose(columns(query_x) @ found.flip(0), query_y, atol=0.1)


def test_no_point_is_both_support_and_query():
    episodes = Functions(shot=5, query=5, tasks=20)(family(), generator())
    assert not (episodes.support_x == episodes.query_x.mT).any()


def test_every_drawn_point_is_used():
    """In the order in which they are drawn."""
    episodes = Functions(shot=2, query=3, tasks=4)(family(), generator(1))
    x, y = family().draw(4, 5, generator(1))
    assert torch.equal(torch.cat([episodes.support_x, episodes.query_x], dim=1), x)
    assert torch.equal(torch.cat([episodes.support_y, episodes.query_y], dim=1), y)


def test_the_generator_decides_the_tasks():
    sampler = Functions(shot=2, query=3, tasks=4)
    torch.manual_seed(1)
    first = sampler(family(), generator(3))
    torch.manual_seed(2)
    again, other = sampler(family(), generator(3)), sampler(family(), generator(4))
    assert torch.equal(again.query_y, first.query_y)
    assert not torch.equal(other.query_y, first.query_y)
    of_seed = generator(3)
    assert torch.equal(sampler(family(), of_seed).query_y, first.query_y)
    assert not torch.equal(sampler(family(), of_seed).query_y, first.query_y)


def test_tasks_are_on_the_split_s_device():
    """The draw itself is on the CPU, so that every device sees the same functions."""
    episodes = Functions(shot=2, query=3, tasks=4)(family().to(torch.device("meta")), generator())
    assert {tensor.device.type for tensor in episodes[:4]} == {"meta"}


def test_classes_are_refused():
    classes = stack_classes("vectors", {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)})
    sampler = Functions(shot=1, query=1, tasks=1)
    with pytest.raises(UserError, match=r"sampler=functions: .* use sampler=uniform"):
        sampler.check(classes)
    sampler.check(family())
    sampler.check(Family(draw=family().draw))
