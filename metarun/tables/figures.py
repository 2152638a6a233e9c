"""What the runs of one config and several seeds say together, and against the runs of another."""

import re
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from metarun.functional.metrics import kind_of
from metarun.tables import statistics
from metarun.tables.cells import Run


class Figure(NamedTuple):
    """A figure of finished runs that differ in the seed alone, with its 95 % half-widths.

    What is shown in percent is in percent; a half-width is nan where there is too little to tell.
    """

    name: str  # of the test's measure
    values: dict[str, float]  # by the run's folder
    mean: float
    over_seeds: float
    closed: float  # over episodes, drawn from the same examples: what papers report
    open: float  # over episodes, for other examples (see statistics)
    spread: float  # standard deviation over episodes
    episodes: np.ndarray  # the figure of each [E], the mean of the seeds
    disjoint: int | None  # episodes without a common example that there are examples for
    sha256: str  # of the episodes


def figure(runs: list[Run], measure: str | None = None) -> Figure:
    """The test's figure of these runs, or another `measure` of the test. They have one data set."""
    name = measure or runs[0].results["test"]["metric"]
    scale = kind_of(name).scale
    values = {str(run.folder): scale * value(run, measure) for run in runs}
    tests = [run.results["test"] for run in runs]
    each = [scale * np.array(run.episodes(measure)) for run in runs]
    alike = len({test["episodes_sha256"] for test in tests}) == 1
    episodes = np.mean(each, axis=0) if alike else np.empty(0)
    disjoint = min((test.get("disjoint_episodes") or 0 for test in tests), default=0) or None
    return Figure(
        name,
        values,
        float(np.mean(list(values.values()))),
        statistics.over_seeds(list(values.values())),
        statistics.closed(there_are(episodes, name)),
        statistics.open_(there_are(episodes, name), disjoint),
        statistics.spread(there_are(episodes, name)),
        episodes,
        disjoint,
        tests[0]["episodes_sha256"] if alike else "",
    )


def value(run: Run, measure: str | None) -> float:
    """The figure of one run."""
    test = run.results["test"]
    found = test["measures"][measure]["mean"] if measure else test[test["metric"]]
    return float("nan") if found is None else found


def pairs(figures: dict[str, Figure]) -> list[dict[str, Any]]:
    """The difference of every two figures of one kind on the same episodes, episode by episode.

    Its interval is much narrower than the two figures' own, since what makes an episode hard is
    hard for both.
    """
    found = []
    for (first, a), (second, b) in combinations(figures.items(), 2):
        alike = a.sha256 == b.sha256 and kind(a.name) == kind(b.name)
        if not alike or not a.sha256 or not len(a.episodes):
            continue
        difference = there_are(a.episodes - b.episodes, a.name)
        found.append(
            {
                "first": first,
                "second": second,
                "difference": float(difference.mean()),
                "closed": statistics.closed(difference),
                "open": statistics.open_(difference, a.disjoint),
                "over_seeds": between_trainings(a, b),
            }
        )
    return found


def there_are(values: np.ndarray, name: str) -> np.ndarray:
    """Those of the episodes' figures [E] that exist: a query set of one class has no AUROC."""
    return values[~np.isnan(values)] if kind_of(name).may_skip else values


def kind(name: str) -> str:
    """What the measure is of: mse for mse_after_5, accuracy for accuracy_presentation_2."""
    return re.sub(r"_(after|presentation)_\d+$", "", name)


def between_trainings(a: Figure, b: Figure) -> float:
    """The half-width of their difference for other trainings; nan unless both have several.

    Two figures of the same runs are compared run by run, and those of others are independent. Of
    few seeds it then errs on the safe side: of three each, that vary alike, it holds 98.7 in 100.
    """
    if a.values.keys() == b.values.keys():
        return statistics.over_seeds([a.values[run] - b.values[run] for run in a.values])
    return float(np.hypot(a.over_seeds, b.over_seeds))
