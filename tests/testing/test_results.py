"""What the figures of a test come to, against numbers worked by hand."""

import math

import pytest
import torch

from metarun.algos.protonet import ProtoNet
from metarun.backbones.identity import Identity
from metarun.data.mixture import Mixture
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.episodes import NamedTasks
from metarun.functional.metrics import AUROC
from metarun.samplers.binary import Binary
from metarun.samplers.uniform import Uniform
from metarun.samplers.variable import Variable
from metarun.samplers.within_superclass import WithinSuperclass
from metarun.testing.answers import answers
from metarun.testing.confidence import mean_and_ci95, student
from metarun.testing.fixed_episodes import fixed_episodes
from metarun.testing.results import columns, of_test, overall, record, task_names

CPU = Device(torch.device("cpu"), "fp32")
ALPHABETS = {"greek": 4, "latin": 3, "runic": 5}
VARIABLE = {"least_way": 2, "shot": 1, "query": 1, "most_query": 1, "most_support": 9}
VARIABLE |= {"most_of_class": 9, "least_weight": 0.5, "most_weight": 2.0, "tasks": 1}


class Named:
    """Two episodes of each of two tasks."""

    def __init__(self, names=("a", "b", "b", "a"), sha256="x"):
        self.task_names, self.sha256, self.disjoint = names, sha256, 3

    def __len__(self):
        return 4


def letters(alphabets=ALPHABETS):
    """Clouds of points, a few classes to an alphabet."""
    generator = torch.Generator().manual_seed(0)
    above = {f"{a}/{c}": a for a, count in alphabets.items() for c in range(count)}
    centres = torch.randn(len(above), 4, generator=generator)
    classes = {
        name: centres[i] + torch.randn(6, 4, generator=generator) for i, name in enumerate(above)
    }
    return stack_classes("vectors", classes, above)


def test_tasks_with_names():
    """Means 1.5 and 3.5 of two episodes each; over the two tasks 2.5, whose s is sqrt(2)."""
    figures = {"letters": {"mse": torch.tensor([1.0, 3, 4, 2]).double()}}
    found = of_test(figures, {"letters": Named()}, None)
    s = math.sqrt(0.5)
    assert found["by_task"] == {
        "a": {"mse": 1.5, "ci95": pytest.approx(1.96 * s / math.sqrt(2), rel=1e-4), "episodes": 2},
        "b": {"mse": 3.5, "ci95": pytest.approx(1.96 * s / math.sqrt(2), rel=1e-4), "episodes": 2},
    }
    half = student(1) * math.sqrt(2) / math.sqrt(2)
    assert found["over_tasks"] == {"mse": 2.5, "ci95": pytest.approx(half), "tasks": 2}
    assert found["mse"] == 2.5
    assert found["ci95"] == pytest.approx(
        1.96 * torch.tensor([1.0, 3, 4, 2]).std().item() / 2, 1e-4
    )


def test_a_task_whose_figure_is_not_finite_leaves_the_interval_open():
    figures = {"letters": {"nll": torch.tensor([math.inf, 1, 1, 1]).double()}}
    found = of_test(figures, {"letters": Named()}, None)["over_tasks"]
    assert found["nll"] == math.inf
    assert math.isnan(found["ci95"])


def test_a_source_without_any_figure_counts_for_nothing():
    nothing, some = torch.tensor([math.nan] * 2), torch.tensor([0.5, 0.7])
    figures = {"a": {"auroc": nothing.double()}, "b": {"auroc": some.double()}}
    value, half = overall(figures, "auroc")
    assert value == pytest.approx(0.6)
    assert half == pytest.approx(mean_and_ci95(some)[1])


def test_one_task_has_no_interval_over_tasks():
    figures = {"letters": {"mse": torch.ones(4).double()}}
    for names in (None, ("a",) * 4):
        found = of_test(figures, {"letters": Named(names)}, None)
        assert "over_tasks" not in found


def test_episodes_without_a_figure_are_skipped_and_counted():
    nan = math.nan
    auroc, nll = torch.tensor([nan, 0.5, 1.0, nan]), torch.tensor([1.0, nan, 1, 1])
    found = of_test({"d": {"auroc": auroc.double(), "nll": nll.double()}}, {"d": Named()}, None)
    assert (found["auroc"], found["skipped"]) == (0.75, 2)
    assert found["ci95"] == pytest.approx(1.96 * math.sqrt(0.125) / math.sqrt(2), rel=1e-4)
    assert found["by_task"]["a"]["episodes"] == 2, "drawn, though none of them has a figure"
    assert math.isnan(found["by_task"]["a"]["auroc"])
    assert found["over_tasks"]["tasks"] == 1
    assert math.isnan(found["measures"]["nll"]["mean"]), "a model that diverged is no skipped task"
    assert "skipped" not in found["measures"]["nll"]
    assert record(found, 4) == {
        "test/auroc": 0.75,
        "test/ci95": found["ci95"],
        "test/episodes": 4,
        "test/nll": pytest.approx(nan, nan_ok=True),
    }


@pytest.mark.parametrize(
    "sampler",
    [
        WithinSuperclass(way=3, shot=1, query=2, tasks=1),
        Variable(way=4, classes="superclass", **VARIABLE),
        Binary(way=2, shot=1, support=0, query=0, queries=0, tasks=1),
    ],
)
def test_a_task_is_called_by_its_superclass(sampler):
    split = letters(ALPHABETS if sampler.way > 2 else dict.fromkeys(ALPHABETS, 2))
    episodes = fixed_episodes(split, sampler, name="test", seed=0, episodes=50)
    names = episodes.task_names
    assert set(names) == set(ALPHABETS)
    for task, name in enumerate(names):
        real = episodes.rows.support_y[task] >= 0
        rows = episodes.rows.support[task][real]
        classes = [split.classes[row // 6] for row in rows.tolist()]
        assert {c.partition("/")[0] for c in classes} == {name}


def test_drawn_across_superclasses_a_task_has_no_name():
    uniform = Uniform(way=2, shot=1, query=1, tasks=1)
    for sampler in (uniform, Variable(way=4, classes="any", **VARIABLE)):
        episodes = fixed_episodes(letters(), sampler, name="test", seed=0, episodes=5)
        assert episodes.task_names is None


def test_names_of_several_sources():
    """A source's superclasses stand after its name; without any a task is called as its source."""
    mixture = Mixture({"script": letters(), "runes": letters({"runic": 4})}, (4,), "vectors")
    within, uniform = (
        kind(way=3, shot=1, query=1, tasks=1) for kind in (WithinSuperclass, Uniform)
    )
    drawn = {
        name: fixed_episodes(part, sampler, name="test", seed=0, episodes=20)
        for (name, part), sampler in zip(mixture.each().items(), (within, uniform), strict=True)
    }
    names = task_names(drawn, None)
    assert set(names["script"]) == {f"script/{a}" for a in ALPHABETS}
    assert names["runes"] == ("runes",) * 20
    figures = {name: {"accuracy": torch.zeros(20).double()} for name in drawn}
    table = columns(figures, names)
    assert table["task"] == [*names["script"], *names["runes"]]
    assert table["source"] == ["script"] * 20 + ["runes"] * 20
    assert of_test(figures, drawn, None)["over_tasks"]["tasks"] == 4


def test_tasks_of_the_datas_own():
    own = NamedTasks(("run01", "run02", "run03", "run04"), None)
    accuracies = torch.tensor([1.0, 0.5, 0.5, 0]).double()
    figures = {"d": {"nll": 3 + accuracies, "accuracy": accuracies}}
    found = of_test(figures, {"d": Named(None)}, own)
    assert found["error"] == 0.5
    assert found["errors"] == {"run01": 0, "run02": 0.5, "run03": 0.5, "run04": 1}
    assert found["over_tasks"]["tasks"] == 4


def test_figures_of_a_two_way_test():
    """The metric asked for comes first; the rest that makes sense stands beside it."""
    split = letters()
    sampler = Uniform(way=2, shot=1, query=3, tasks=1)
    episodes = fixed_episodes(split, sampler, name="test", seed=0, episodes=12)
    algorithm = ProtoNet(Identity((4,), flatten=True))
    found = answers(algorithm, episodes, tasks=5, device=CPU, metric=AUROC, measures=True)
    others = ["accuracy", "macro_f1", "average_precision", "delta_auprc", "nll", "ece"]
    assert list(found) == ["auroc", *others]
    alone = answers(algorithm, episodes, tasks=5, device=CPU, metric=AUROC)
    assert list(alone) == ["auroc"]
    assert torch.equal(alone["auroc"], found["auroc"])
    algorithm.scores_are_log_p = False
    found = answers(algorithm, episodes, tasks=5, device=CPU, measures=True)
    assert list(found) == ["accuracy", "macro_f1", "auroc", "average_precision", "delta_auprc"]
