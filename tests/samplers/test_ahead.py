import threading

import pytest
import torch

from metarun.data.split import stack_classes
from metarun.samplers.ahead import blocks, one_ahead, rows_ahead
from metarun.samplers.uniform import Uniform
from metarun.samplers.within_superclass import WithinSuperclass

SAMPLERS = [Uniform(2, 1, 2, tasks=3), WithinSuperclass(2, 1, 2, tasks=3)]


def some_split():
    """Four classes of 3, 4, 5 and 6 examples, of two superclasses."""
    classes = {name: torch.rand(size, 2) for name, size in zip("abcd", range(3, 7), strict=True)}
    return stack_classes(
        "vectors", classes, {"a": "vowel", "b": "other", "c": "other", "d": "vowel"}
    )


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("block", [1, 4, 100])
def test_rows_drawn_ahead_are_those_drawn_one_by_one(sampler, block):
    """And after each the generator is where it would be, however many were drawn."""
    split = some_split()
    one_by_one, ahead = (generator(3) for _ in range(2))
    rows = rows_ahead(sampler, split, ahead, steps=block)
    for _ in range(10):
        assert torch.equal(next(rows), sampler.rows(split, one_by_one))
        assert torch.equal(ahead.get_state(), one_by_one.get_state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gone_on_with_in_the_middle_of_a_block(sampler):
    split, drawing = some_split(), generator(3)
    rows = rows_ahead(sampler, split, drawing, steps=4)
    for _ in range(6):
        next(rows)
    saved = drawing.get_state()
    wanted = [next(rows).clone() for _ in range(5)]
    again = torch.Generator()
    again.set_state(saved)
    resumed = rows_ahead(sampler, split, again, steps=4)
    assert all(torch.equal(next(resumed), w) for w in wanted)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_at_its_rows_is_the_sampled_batch(sampler):
    split = some_split()
    sampled = sampler(split, generator(3))
    rows = sampler.rows(split, generator(3))
    at_rows = sampler.batch(split, rows)
    assert rows.shape == (3, 6)
    assert at_rows.way == sampled.way
    assert all(torch.equal(a, b) for a, b in zip(at_rows[:4], sampled[:4], strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawn_by_a_thread(sampler):
    split = some_split()
    here, there = (blocks(sampler, split, generator(3), steps=4) for _ in range(2))
    for block, by_thread in zip(range(5), one_ahead(there), strict=False):
        (rows, states), (its_rows, its_states) = next(here), by_thread
        assert torch.equal(rows, its_rows), block
        assert all(torch.equal(a, b) for a, b in zip(states, its_states, strict=True))


def test_the_thread_is_another():
    seen = []

    class Watched(Uniform):
        def rows(self, split, generator):
            seen.append(threading.get_ident())
            return super().rows(split, generator)

    next(one_ahead(blocks(Watched(2, 1, 2, tasks=3), some_split(), generator(3), steps=4)))
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_what_goes_wrong_in_the_thread_is_told():
    class Broken(Uniform):
        def rows(self, split, generator):
            raise ZeroDivisionError

    drawn = blocks(Broken(2, 1, 2, tasks=3), some_split(), generator(3), steps=4)
    with pytest.raises(ZeroDivisionError):
        next(one_ahead(drawn))
