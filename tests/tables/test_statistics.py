"""Intervals against tables, closed forms and simulation."""

import math

import numpy as np
import pytest

from metarun.tables import statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # of printed tables
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)],
)
def test_student(freedom, quantile):
    assert statistics.student(freedom) == pytest.approx(quantile, abs=1e-4)


def test_over_seeds_by_hand():
    """Values 1, 2, 3: s is 1, so the half-width is 4.3027 / sqrt(3)."""
    assert statistics.over_seeds([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert math.isnan(statistics.over_seeds([1.0]))


def test_closed_is_what_papers_report():
    episodes = np.array([0.0, 1.0] * 50)
    s = math.sqrt(25 / 99)  # of 100 values, each 1/2 from their mean
    assert statistics.closed(episodes) == pytest.approx(1.959964 * s / 10)
    assert statistics.spread(episodes) == pytest.approx(s)


def test_open_is_of_the_episodes_that_share_nothing():
    """All of them: Student's t in place of the normal; a quarter of them: at least twice that."""
    episodes = np.random.default_rng(0).normal(size=400)
    alone = statistics.open_(episodes, 400)
    assert alone == pytest.approx(statistics.closed(episodes), rel=0.01)
    assert statistics.open_(episodes, 100) > 2 * alone
    assert math.isnan(statistics.open_(episodes, None))


def test_open_covers_other_examples_and_closed_does_not():
    """Classes of random difficulty, few of them and many episodes: the mean over episodes is far
    from what new classes give, which is 0, more often than one time in twenty."""
    random = np.random.default_rng(1)
    inside = {"closed": 0, "open": 0}
    for _ in range(300):
        difficulty = random.normal(size=30)
        drawn = np.array([random.permutation(30)[:5] for _ in range(300)])
        episodes = difficulty[drawn].mean(axis=1)
        inside["closed"] += abs(episodes.mean()) <= statistics.closed(episodes)
        inside["open"] += abs(episodes.mean()) <= statistics.open_(episodes, 6)
    assert inside["closed"] < 0.6 * 300
    assert inside["open"] >= 0.93 * 300


def test_unknown_halves_do_not_count():
    assert statistics.together(3.0, math.nan, 4.0) == 5.0
