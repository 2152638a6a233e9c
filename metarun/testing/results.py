"""What the figures of a test come to."""

from collections.abc import Iterable
from typing import Any

import torch

from metarun.episodes import NamedTasks
from metarun.testing.confidence import mean_and_ci95, mean_of_means
from metarun.testing.fixed_episodes import FixedEpisodes, digest_of
from metarun.testing.protocol import Figures


def overall(figures: Figures, name: str) -> tuple[float, float]:
    """A figure's mean and half-width: over episodes, and then over sources if there are several."""
    return mean_of_means([mean_and_ci95(of_source[name]) for of_source in figures.values()])


def test_results(
    figures: Figures, episodes: dict[str, FixedEpisodes], own: NamedTasks | None, metric: str
) -> dict[str, Any]:
    """The `test` part of results.json, as far as episodes and figures tell it."""
    value, ci95 = overall(figures, metric)
    sources = of_sources(episodes, figures, metric)
    return {
        "metric": metric,
        metric: value,
        "ci95": ci95,
        "measures": measures_of(figures, metric),
        **(errors(own, next(iter(figures.values()))[metric]) if own else {}),
        **({"sources": sources} if sources else {}),
        "disjoint_episodes": sum(of_source.disjoint for of_source in episodes.values()),
        "episodes_sha256": digest_of(episodes.values()),
    }


def record(tested: dict[str, Any], count: int) -> dict[str, Any]:
    """The test's line of the log, of what `test_results` gives for `count` episodes."""
    metric = tested["metric"]
    named = {metric: tested[metric], "ci95": tested["ci95"], "episodes": count}
    named |= {name: measure["mean"] for name, measure in tested["measures"].items()}
    sources = tested.get("sources", {})
    named |= {f"{name}/{metric}": of_source[metric] for name, of_source in sources.items()}
    return {f"test/{name}": value for name, value in named.items()}


def measures_of(figures: Figures, metric: str) -> dict[str, dict[str, float]]:
    """Mean and half-width of each figure but the `metric`'s own."""
    names: Iterable[str] = next(iter(figures.values()))
    return {
        name: dict(zip(("mean", "ci95"), overall(figures, name), strict=True))
        for name in names
        if name != metric
    }


def errors(own: NamedTasks, accuracies: torch.Tensor) -> dict[str, Any]:
    """The error rate of each of the data's own tasks, whose accuracies are [T], and their mean."""
    each = (1 - accuracies).tolist()
    return {"error": sum(each) / len(each), "errors": dict(zip(own.names, each, strict=True))}


def of_sources(
    episodes: dict[str, FixedEpisodes], figures: Figures, metric: str
) -> dict[str, dict[str, Any]]:
    """Each source's result, if there are several."""
    if len(episodes) == 1:
        return {}
    results = {}
    for name, of_source in figures.items():
        value, ci95 = mean_and_ci95(of_source[metric])
        sha256 = episodes[name].sha256
        results[name] = {metric: value, "ci95": ci95, "episodes_sha256": sha256}
    return results


def columns(figures: Figures, own: NamedTasks | None) -> dict[str, list]:
    """Every episode's figures, as columns of one table; with their source, if there are several, or
    their task, if they are the data's own."""
    table: dict[str, list] = {"task": list(own.names)} if own else {}
    for source, of_source in figures.items():
        count = len(next(iter(of_source.values())))
        begin = {"source": [source] * count} if len(figures) > 1 else {}
        values = {name: tensor.tolist() for name, tensor in of_source.items()}
        for name, column in (begin | {"episode": list(range(count))} | values).items():
            table.setdefault(name, []).extend(column)
    return table
