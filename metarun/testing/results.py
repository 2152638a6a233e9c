"""What the figures of a test come to."""

from typing import Any

import torch
from torch import Tensor

from metarun.episodes import NamedTasks
from metarun.functional.metrics import kind_of
from metarun.testing.confidence import mean_and_ci95, mean_of_means, of_few
from metarun.testing.fixed_episodes import FixedEpisodes, digest_of
from metarun.testing.protocol import Figures

Names = dict[str, tuple[str, ...] | None]  # each episode's task's, by source; None: it has none


def overall(figures: Figures, name: str) -> tuple[float, float]:
    """A figure's mean and half-width: over episodes, and then over the sources that have any."""
    of_each = [there_are(of_source[name], name) for of_source in figures.values()]
    with_any = [values for values in of_each if len(values)] or of_each
    return mean_of_means([mean_and_ci95(values) for values in with_any])


def there_are(values: Tensor, name: str) -> Tensor:
    """Those of the episodes' figures [E] that exist: a query set of one class has no AUROC."""
    return values[~values.isnan()] if kind_of(name).may_skip else values


def of_test(
    figures: Figures, episodes: dict[str, FixedEpisodes], own: NamedTasks | None
) -> dict[str, Any]:
    """The `test` part of results.json, as far as episodes, tasks that are the data's `own`, and the
    figures tell it; the first figure is the metric's."""
    metric, *others = first = next(iter(figures.values()))
    main, tasks = summary(figures, metric), of_tasks(figures, task_names(episodes, own), metric)
    return {
        "metric": metric,
        metric: main.pop("mean"),
        **main,
        "measures": {name: summary(figures, name) for name in others},
        **(errors(own, first["accuracy"]) if own else {}),
        **({"sources": of_sources(episodes, figures, metric)} if len(episodes) > 1 else {}),
        **({"by_task": tasks, "over_tasks": over_tasks(tasks, metric)} if len(tasks) > 1 else {}),
        "disjoint_episodes": sum(of_source.disjoint for of_source in episodes.values()),
        "episodes_sha256": digest_of(episodes.values()),
    }


def record(test: dict[str, Any], count: int) -> dict[str, Any]:
    """The test's line of the log, of what `of_test` gives for `count` episodes."""
    metric = test["metric"]
    named = {metric: test[metric], "ci95": test["ci95"], "episodes": count}
    named |= {name: measure["mean"] for name, measure in test["measures"].items()}
    sources = test.get("sources", {})
    named |= {f"{name}/{metric}": of_source[metric] for name, of_source in sources.items()}
    return {f"test/{name}": value for name, value in named.items()}


def summary(figures: Figures, name: str) -> dict[str, float]:
    """A figure's mean and half-width, and how many episodes have none, if any."""
    mean, ci95 = overall(figures, name)
    skipped = sum(len(f[name]) - len(there_are(f[name], name)) for f in figures.values())
    return {"mean": mean, "ci95": ci95, **({"skipped": skipped} if skipped else {})}


def errors(own: NamedTasks, accuracies: Tensor) -> dict[str, Any]:
    """The error rate of each of the data's own tasks, whose accuracies are [T], and their mean."""
    each = (1 - accuracies).tolist()
    return {"error": sum(each) / len(each), "errors": dict(zip(own.names, each, strict=True))}


def of_sources(
    episodes: dict[str, FixedEpisodes], figures: Figures, name: str
) -> dict[str, dict[str, Any]]:
    """Each source's result."""
    results = {}
    for source, of_source in figures.items():
        value, ci95 = mean_and_ci95(there_are(of_source[name], name))
        sha256 = episodes[source].sha256
        results[source] = {name: value, "ci95": ci95, "episodes_sha256": sha256}
    return results


def task_names(episodes: dict[str, FixedEpisodes], own: NamedTasks | None) -> Names:
    """As the data calls its own tasks, or by their superclass (an alphabet, an assay), or else by
    their source if there are several."""
    names: Names = {}
    for source, of_source in episodes.items():
        unnamed = (source,) * len(of_source) if len(episodes) > 1 else None
        names[source] = own.names if own else of_source.task_names or unnamed
    return names


def of_tasks(figures: Figures, names: Names, name: str) -> dict[str, dict[str, Any]]:
    """The result of each task that has a name, over its episodes."""
    values: dict[str, list[float]] = {}
    for source, of_source in figures.items():
        if tasks := names[source]:
            for task, value in zip(tasks, of_source[name].tolist(), strict=True):
                values.setdefault(task, []).append(value)
    results = {}
    for task in sorted(values):
        mean, ci95 = mean_and_ci95(there_are(torch.tensor(values[task], dtype=torch.float64), name))
        results[task] = {name: mean, "ci95": ci95, "episodes": len(values[task])}
    return results


def over_tasks(tasks: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The mean over tasks, each counting the same, with its half-width for other tasks."""
    means = there_are(
        torch.tensor([task[name] for task in tasks.values()], dtype=torch.float64), name
    )
    half = of_few(means.tolist())
    return {name: means.mean().item(), "ci95": half, "tasks": len(means)}


def columns(figures: Figures, names: Names) -> dict[str, list]:
    """Every episode's figures, as columns of one table; with its source, if there are several, and
    its task, if it has a name of its own."""
    table: dict[str, list] = {}
    told = any(set(of_source or ()) - {source} for source, of_source in names.items())
    for source, of_source in figures.items():
        count = len(next(iter(of_source.values())))
        begin = {"source": [source] * count} if len(figures) > 1 else {}
        if told:
            begin["task"] = list(names[source] or ())
        values = {name: tensor.tolist() for name, tensor in of_source.items()}
        for name, column in (begin | {"episode": list(range(count))} | values).items():
            table.setdefault(name, []).extend(column)
    return table
