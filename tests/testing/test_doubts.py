"""What is said in words beside a figure."""

import math

import pytest
import torch

from metarun.algos.protonet import ProtoNet
from metarun.testing.doubts import doubts_of_log, doubts_of_test, doubts_of_training

FIVE = {"way": 5, "query": 15, "sampler": {"way": 5}}


def of_test(accuracies, ci95=0.01, metric="accuracy", task=None, classes=20):
    figures = {"data": {metric: torch.tensor(accuracies, dtype=torch.float64)}}
    test = {"metric": metric, metric: sum(accuracies) / len(accuracies), "ci95": ci95}
    return doubts_of_test({"eval": FIVE if task is None else task}, figures, test, classes)


def test_scores_that_do_not_depend_on_the_query():
    (said,) = of_test([0.2] * 6, ci95=0.0)
    assert said.startswith("the accuracy of every test episode is exactly 20 %")


def test_episodes_that_are_all_of_the_same_classes():
    (said,) = of_test([0.9, 0.8], classes=5)
    assert said.startswith("every test episode is of the same 5 classes")


def test_a_result_at_chance():
    (said,) = of_test([0.19, 0.22, 0.2], ci95=0.02)
    assert said == "the test accuracy cannot be told from guessing, which is 20 % for 5 classes"


@pytest.mark.parametrize("accuracies", [[0.24, 0.26], [0.9, 0.8], [0.1, 0.12], [1.0, 1.0]])
def test_no_doubt(accuracies):
    assert of_test(accuracies) == []


@pytest.mark.parametrize(
    "task",
    [
        {"way": 5, "query": 0, "sampler": {"way": 5}},  # as many queries of a class as there are
        {"way": 5, "query": 15, "sampler": {"way": 5, "least_way": 2}},
    ],
)
def test_where_guessing_is_something_else(task):
    assert of_test([0.2, 0.2], task=task) == []
    assert of_test([0.2, 0.2], metric="mse") == []


def of_training(vals=(), losses=(), **sampler):
    records = [{"step": i, "train/loss": loss} for i, loss in enumerate(losses)]
    records += [{"step": i, "val/accuracy": val} for i, val in enumerate(vals)]
    sampler = {"way": 5, "query": 15, "tasks": 1} | sampler
    return doubts_of_log({"sampler": sampler}, records)


def test_a_validation_that_never_moved():
    (said,) = of_training([0.2, 0.2, 0.2])
    assert said == "the validation never moved: 20.00 % at each of the 3 times"
    assert of_training([0.2]) == of_training([0.2, 0.21]) == of_training([1.0, 1.0]) == []


def test_a_loss_that_is_still_that_of_guessing():
    guessing = math.log(5)
    (said,) = of_training(losses=[3.0] + [guessing + 0.01, guessing - 0.01] * 3)
    assert said.startswith("the training loss ends at 1.607, which is that of guessing among 5")
    assert of_training(losses=[guessing] * 9 + [1.0] * 5) == []
    assert of_training(losses=[guessing] * 9, way=20) == []
    assert of_training(losses=[math.log(2)] * 9, way=None) == []


def test_a_damaged_log_is_no_reason_to_lose_the_test(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"no json\xff\n")
    assert doubts_of_training({"sampler": {"way": 5}}, tmp_path) == []


def test_said_beside_the_number(metarun, monkeypatch):
    """In the results and on the terminal."""

    def equal(self, episodes):
        tasks, queries = episodes.query_y.shape
        return torch.zeros(tasks, queries, episodes.way)

    monkeypatch.setattr(ProtoNet, "predict", equal)
    results = metarun.run("name=a", "train.steps=0")
    (said,) = results["test"]["doubts"]
    assert "exactly 33.33 %" in said
    assert f"doubt: {said}" in metarun.capsys.readouterr().out
