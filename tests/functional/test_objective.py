import math

import pytest
import torch

from metarun.functional.metrics import ACCURACY, MSE
from metarun.functional.objective import after_each, measured, merit, task_loss


def test_the_loss_of_classes_worked_by_hand():
    """Scores (ln 3, 0) give 3/4 and 1/4; (0, 0) one half."""
    scores = torch.tensor([[[math.log(3), 0], [math.log(3), 0]], [[0, 0], [0, 0]]]).double()
    classes = torch.tensor([[0, 1], [1, 1]])
    wanted = -(math.log(3 / 4) + math.log(1 / 4) + 2 * math.log(1 / 2)) / 4
    assert task_loss(scores, classes).item() == pytest.approx(wanted)
    assert task_loss(scores[0], classes[0]).item() == pytest.approx(-math.log(3 / 16) / 2)


def test_the_loss_of_values_worked_by_hand():
    """Errors 1, 2, 0 and 3."""
    values, targets = (
        torch.tensor([[[1.0], [2]], [[5], [7]]]),
        torch.tensor([[[0.0], [4]], [[5], [4]]]),
    )
    assert task_loss(values, targets).item() == pytest.approx((1 + 4 + 0 + 9) / 4)
    assert task_loss(values[1], targets[1]).item() == pytest.approx(9 / 2)


def test_the_accuracy_of_each_task():
    scores = torch.tensor([[[1.0, 2], [3, 1], [0, 5]], [[1, 2], [1, 2], [1, 2]]])
    classes = torch.tensor([[1, 0, 0], [0, 0, 1]])
    accuracy = merit(classes).of_tasks(scores, classes)
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert merit(classes) is ACCURACY
    assert measured(scores, classes)["accuracy"].item() == pytest.approx(1 / 2)
    assert list(measured(scores, classes)) == ["accuracy"]


def test_the_squared_error_of_each_task():
    values = torch.tensor([[[1.0], [2]], [[5], [7]]])
    targets = torch.tensor([[[0.0], [4]], [[5], [4]]])
    error = merit(targets).of_tasks(values, targets)
    assert error.dtype == torch.float64
    assert error.tolist() == [5 / 2, 9 / 2]
    assert merit(targets) is MSE
    assert {name: v.item() for name, v in measured(values, targets).items()} == {"mse": 7 / 2}


def test_what_is_logged_keeps_no_graph():
    values = torch.ones(2, 3, 1, requires_grad=True)
    assert not measured(values, torch.zeros(2, 3, 1))["mse"].requires_grad
    assert task_loss(values, torch.zeros(2, 3, 1)).requires_grad


def test_figures_after_some_steps():
    right, wrong = torch.tensor([[[0.0, 1]]]), torch.tensor([[[1.0, 0]]])
    figures = after_each({0: wrong, 10: right}, torch.tensor([[1]]))
    assert {name: v.tolist() for name, v in figures.items()} == {
        "accuracy_after_0": [0],
        "accuracy_after_10": [1],
    }
    figures = after_each({3: torch.full((1, 2, 1), 2.0)}, torch.zeros(1, 2, 1))
    assert {name: v.tolist() for name, v in figures.items()} == {"mse_after_3": [4]}
