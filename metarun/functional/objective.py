"""What is minimised and what is reported, by the kind of the targets.

Whole-number targets are classes, and outputs [..., way] their scores; real targets are values, and
outputs of the same shape the predictions. T tasks, Q query examples of a task. Examples that only
fill up a task count for nothing.
"""

from torch import Tensor
from torch.nn import functional as F

from metarun.episodes import PADDING, Episodes
from metarun.functional.metrics import ACCURACY, MSE, Metric


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of scores [..., way] for classes [...], or mean squared error."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=PADDING)


def query_loss(outputs: Tensor, episodes: Episodes) -> Tensor:
    """The mean over tasks of the loss of query outputs [T, Q, way]."""
    if episodes.ways is None:  # every task has as many queries
        return task_loss(outputs, episodes.query_y)
    return class_loss(outputs.log_softmax(dim=-1), episodes)


def class_loss(log_p: Tensor, episodes: Episodes) -> Tensor:
    """The mean over tasks of that over their queries of -log p, of log p [T, Q, way]; in nats."""
    surprise = F.nll_loss(log_p.mT, episodes.query_y, ignore_index=PADDING, reduction="none")
    return (surprise.sum(dim=1) / (episodes.query_y != PADDING).sum(dim=1)).mean()


def merit(targets: Tensor) -> Metric:
    """What training watches: accuracy of classes, mean squared error of values."""
    return MSE if targets.is_floating_point() else ACCURACY


def measured(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What the log shows of a batch of tasks: its mean accuracy, or its mean squared error."""
    metric = merit(targets)
    return {metric.name: metric.of_tasks(outputs.detach(), targets).mean()}


def after_each(outputs: dict[int, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Each task's figure [T] after so many inner steps, as "accuracy_after_3" or "mse_after_3"."""
    metric = merit(targets)
    return {
        f"{metric.name}_after_{steps}": metric.of_tasks(values, targets)
        for steps, values in outputs.items()
    }
