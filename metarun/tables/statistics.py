"""How sure a figure is: over seeds, over test episodes, and over data that the episodes share.

Half-widths are those of 95 % intervals; nan where there is too little to tell.

"Closed" and "open" are the words of Lafargue et al. 2024 (arXiv:2409.02850). Episodes drawn with
replacement see the same examples again and again, so the usual interval, 1.96 s / sqrt(E), is
closed: it says how the mean would vary if other episodes were drawn from these very examples, as in
nearly all papers. The open one says how it would vary with other examples, and no number of
episodes makes it as narrow as one likes: it is that of as many episodes as the examples make
without replacement. (Where a class has examples for many of them, the classes are still the same.)

Neither says how far apart two episodes are, which Dhillon et al. 2020 (arXiv:1909.02729, fig. 1)
show to be far more than most claims of progress: for that there is the spread.
"""

import math

import numpy as np

from metarun.testing.confidence import Z95, of_few, student


def over_seeds(values: list[float]) -> float:
    """Half-width of the mean of independent trainings, by Student's t; nan for one."""
    return of_few(values)


def closed(episodes: np.ndarray) -> float:
    """Half-width of the mean over episodes [E] for other episodes of the same examples."""
    if len(episodes) < 2:
        return math.nan
    return Z95 * float(np.std(episodes, ddof=1)) / math.sqrt(len(episodes))


def open_(episodes: np.ndarray, disjoint: int | None) -> float:
    """Half-width of the mean over episodes [E] for other examples, which are enough for `disjoint`
    episodes without a common one: that of so many (Student's t), whose spread all E tell."""
    if disjoint is None or disjoint < 2 or len(episodes) < 2:
        return math.nan
    return student(disjoint - 1) * float(np.std(episodes, ddof=1)) / math.sqrt(disjoint)


def spread(episodes: np.ndarray) -> float:
    """Standard deviation over episodes [E]: what to expect of one task, not of their mean."""
    return float(np.std(episodes, ddof=1)) if len(episodes) > 1 else math.nan


def together(*halves: float) -> float:
    """Half-width of a sum or difference of independent figures; one not known counts as 0."""
    return math.hypot(*(half for half in halves if not math.isnan(half)))
