"""How often an interval holds the truth: simulated tests of models whose true figure is known.

Each test repeats a whole experiment some thousand times and counts. Of R repetitions an interval
that holds the truth with chance c does so in c R of them, give or take √(c (1 - c) R); `held` lets
pass what is within three of those.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import stdtr

from metarun.functional.metrics import ACCURACY, MSE
from metarun.many_seeds import rows
from metarun.tables import statistics
from metarun.tables.figures import figure, pairs
from metarun.testing.confidence import Z95, mean_and_ci95, student
from metarun.testing.results import over_tasks, overall

REPETITIONS = 4000


def held(found, truth, chance=0.95):
    """Assert that intervals (value, half-width) hold the truth as often as they should."""
    values, halves = np.array(found).T
    often = (np.abs(values - truth) <= halves).mean()
    assert often == pytest.approx(chance, abs=3 * math.sqrt(chance * (1 - chance) / len(found)))


def accuracies(generator, shape, a, b, queries=5):
    """Accuracies of episodes whose tasks are of unlike difficulty, Beta(a, b): the mean of all is
    a / (a + b). Each is the product's figure of that many scored queries."""
    episodes = math.prod(shape)
    gammas = torch.distributions.Gamma(torch.tensor([a, b]), 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        p = gammas.sample((episodes,))
    p = p[:, :1] / p.sum(dim=1, keepdim=True)
    right = (torch.rand(episodes, queries, generator=generator) < p).float()
    scores, targets = torch.stack([right, 1 - right], dim=-1), torch.zeros_like(right).long()
    return ACCURACY.of_tasks(scores, targets).view(shape)


def test_accuracy_over_episodes():
    """Of one run: 100 episodes, true accuracy 0.8."""
    each = accuracies(torch.Generator().manual_seed(0), (REPETITIONS, 100), 4.0, 1.0)
    held([overall({"data": {"accuracy": of_run}}, "accuracy") for of_run in each], 0.8)


def test_a_loss_over_episodes():
    """Of one regression: tasks' errors have variances of their own, 1 in the mean.

    Such figures lean far to one side: of 100 episodes it would hold 93 times in 100.
    """
    generator = torch.Generator().manual_seed(1)
    repetitions, episodes = REPETITIONS // 2, 600
    variance = -torch.rand(repetitions * episodes, 1, generator=generator).log()
    errors = variance.sqrt() * torch.randn(len(variance), 5, generator=generator)
    each = MSE.of_tasks(errors[..., None], torch.zeros_like(errors)[..., None])
    each = each.view(repetitions, episodes)
    held([overall({"data": {"mse": of_run}}, "mse") for of_run in each], 1.0)


def test_accuracy_over_a_mixture():
    """The mean of three sources, of unlike accuracy (0.8, 0.5, 0.25) and spread."""
    sources = {"a": (4.0, 1.0), "b": (20.0, 20.0), "c": (0.5, 1.5)}
    each = {
        name: accuracies(torch.Generator().manual_seed(i), (REPETITIONS, 100), a, b)
        for i, (name, (a, b)) in enumerate(sources.items(), start=2)
    }
    found = [
        overall({name: {"accuracy": each[name][i]} for name in each}, "accuracy")
        for i in range(REPETITIONS)
    ]
    held(found, (0.8 + 0.5 + 0.25) / 3)


@pytest.mark.parametrize("episodes", [3, 5, 10, 20])
def test_few_episodes_are_held_less_often(episodes):
    """1.96 standard errors hold what Student's distribution says: of ten values 92 in 100.

    outputs/README.md tells such numbers.
    """
    each = torch.randn(REPETITIONS, episodes, generator=torch.Generator().manual_seed(5)).double()
    chance = 2 * stdtr(episodes - 1, Z95) - 1
    held([mean_and_ci95(of_run) for of_run in each], 0.0, chance)
    in_tables = each.numpy()
    held([(of_run.mean(), statistics.closed(of_run)) for of_run in in_tables], 0.0, chance)


def test_over_tasks_with_names():
    """Five alphabets, each with an accuracy of its own about 0.6, for alphabets to come."""
    generator = torch.Generator().manual_seed(6)
    of_tasks = (0.6 + 0.1 * torch.randn(REPETITIONS, 5, generator=generator)).tolist()
    found = [
        over_tasks({str(i): {"accuracy": a} for i, a in enumerate(tasks)}, "accuracy")
        for tasks in of_tasks
    ]
    held([(test["accuracy"], test["ci95"]) for test in found], 0.6)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_over_seeds(seeds):
    """Trainings whose accuracies are normal about 0.7."""
    random = np.random.default_rng(7)
    values = random.normal(0.7, 0.02, size=(REPETITIONS, seeds))
    held([(of_run.mean(), statistics.over_seeds(of_run.tolist())) for of_run in values], 0.7)


def test_what_several_seeds_at_once_are_said_to_come_to():
    """The last line of seeds=3, in percent with two decimals."""
    random = np.random.default_rng(8)
    found = []
    for accuracies_of_run in random.normal(0.7, 0.05, size=(REPETITIONS, 3)).tolist():
        tests = {
            seed: {"test": {"metric": "accuracy", "accuracy": accuracy, "ci95": 0.01}}
            for seed, accuracy in enumerate(accuracies_of_run)
        }
        said = rows(tests)["mean"].removesuffix(" %").split(" ± ")
        found.append([float(number) for number in said])
    held(found, 70)


def runs_of(values, name):
    """Finished runs, one a seed, with these figures [seeds, E] on the same episodes."""
    return [
        SimpleNamespace(
            folder=f"{name}{seed}",
            results={"test": {"metric": "accuracy", "accuracy": v.mean(), "episodes_sha256": "x"}},
            episodes=lambda measure, v=v: v,
        )
        for seed, v in enumerate(values)
    ]


def two_methods(random, *, seeds, of_seeds=(0.0, 0.0)):
    """The figures of a table with two methods on 60 common episodes: true accuracies 0.7 and 0.6.

    What makes an episode hard is hard for both; `of_seeds` is the deviation between trainings.
    """
    hard = random.normal(0, 0.2, size=60)
    found = {}
    for name, mean, deviation in zip("ab", (0.7, 0.6), of_seeds, strict=True):
        trained = random.normal(mean, deviation, size=(seeds, 1))
        values = trained + hard + random.normal(0, 0.05, size=(seeds, 60))
        found[name] = figure(runs_of(values, name))
    return found


def test_paired_differences_over_episodes():
    """They hold the difference, 10 %, and are far narrower than what the two figures have apart."""
    random = np.random.default_rng(9)
    tables = [two_methods(random, seeds=1) for _ in range(REPETITIONS // 2)]
    found = [pairs(table)[0] for table in tables]
    held([(pair["difference"], pair["closed"]) for pair in found], 10)
    held([(table["a"].mean, table["a"].closed) for table in tables], 70)
    apart = [statistics.together(table["a"].closed, table["b"].closed) for table in tables]
    assert np.mean([pair["closed"] for pair in found]) < 0.3 * np.mean(apart)


@pytest.mark.parametrize(("of_seeds", "freedom"), [((0.1, 0.0), 2), ((0.1, 0.1), 4)])
def test_differences_between_trainings(of_seeds, freedom):
    """Of three seeds each, √(t² s₁² / 3 + t² s₂² / 3), with t of two degrees of freedom.

    Where one method varies alone this is right. Where both vary alike the difference follows
    Student's t of four, and the interval errs on the safe side: 98.7.
    """
    random = np.random.default_rng(10)
    values = [0.7 + of_seeds[0] * random.normal(size=(REPETITIONS, 3))]
    values += [0.6 + of_seeds[1] * random.normal(size=(REPETITIONS, 3))]
    found = []
    for a, b in zip(*values, strict=True):
        tables = [figure(runs_of(np.tile(v[:, None], 2), name)) for v, name in ((a, "a"), (b, "b"))]
        (pair,) = pairs(dict(zip("ab", tables, strict=True)))
        found.append((pair["difference"], pair["over_seeds"]))
    held(found, 10, chance=2 * stdtr(freedom, student(2)) - 1)


def test_independent_figures_together():
    """A difference from a paper's number, which has an interval of its own."""
    random = np.random.default_rng(11)
    ours, paper = random.normal(0.7, 0.1, (REPETITIONS, 200)), random.normal(0.6, 0.01, REPETITIONS)
    found = [
        (mine.mean() - its, statistics.together(statistics.closed(mine), Z95 * 0.01, math.nan))
        for mine, its in zip(ours, paper, strict=True)
    ]
    held(found, 0.1)


def test_examples_in_no_other_episode():
    """Open: six episodes without a common example, for other examples."""
    random = np.random.default_rng(12)
    each = random.normal(0.7, 0.1, (REPETITIONS, 6))
    held([(episodes.mean(), statistics.open_(episodes, 6)) for episodes in each], 0.7)
