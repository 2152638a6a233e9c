"""How good answers are: each task's figure, which way is better, and how it is shown.

A metric is one function and one entry of METRICS. T tasks, Q query examples of a task, K agents of
a world. Classes are 0 .. way - 1, their scores [T, Q, way]; a query whose class is negative only
fills up its task and counts for nothing, and a class that a task lacks has score minus infinity.

Nothing here loads torch until a figure is computed: the command line reads this file first.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metarun.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CLASSES, TWO_CLASSES, VALUES = "classes", "two classes", "values"
RETURNS, SUCCESSES = "returns", "successes"
BINS = 15  # of the confidences, as Guo et al. 2017


@dataclass(frozen=True)
class Metric:
    """What is reported of a test.

    `of_tasks(outputs, targets)` gives the figure of each task [T], float64. Outputs and targets are
    by `of`:

    * "classes": scores [T, Q, way], classes [T, Q].
    * "two classes": the same with way=2; class 1 is the positive one. Not a number where a query
      set has one class: the task is skipped, and counted as skipped.
    * "values": predictions and targets of one shape, [T, Q, ...].
    * "returns", "successes": what agents reached, [T, K, ...]; targets are not looked at.
    """

    name: str  # its key in the results
    of_tasks: "Callable[[Tensor, Tensor], Tensor]"
    of: str
    label: str  # of an axis
    higher_is_better: bool = True
    percent: bool = True  # a share in [0, 1], shown in percent
    places: int = 2  # decimals shown
    needs_log_p: bool = False  # softmax of the scores has to be what the algorithm believes

    @property
    def scale(self) -> int:
        """What a figure is multiplied by to be shown."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """What follows a figure that is shown."""
        return " %" if self.percent else ""

    @property
    def may_skip(self) -> bool:
        """Whether a task can have no figure, which is then left out of the mean."""
        return self.of == TWO_CLASSES

    def better(self, value: float, best: float) -> bool:
        """Whether `value` beats the best so far; what is not a number is beaten by all that is."""
        if math.isnan(best):
            return not math.isnan(value)
        return self.gain(value) > self.gain(best)

    def gain(self, figure: float) -> float:
        """The figure, or a difference of two, with the sign by which more is better."""
        return figure if self.higher_is_better else -figure

    def shown(self, value: float | None, ci95: float | None = None) -> str:
        """As 87.31 ± 0.84 %: with the half-width of its interval if it has one."""
        if value is None or not math.isfinite(value):  # None: as results.json has it
            return "not a number"
        half = "" if ci95 is None else f" ± {self.scale * ci95:.{self.places}f}"
        return f"{self.scale * value:.{self.places}f}{half}{self.unit}"

    def brief(self, value: float) -> str:
        """As 87.3 %, for a figure that changes every step."""
        return f"{100 * value:.1f} %" if self.percent else self.shown(value)


def accuracy(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Share of the queries whose class has the highest score: [T, Q, way], [T, Q] -> [T]."""
    right = (outputs.argmax(-1) == targets).double().sum(dim=1)
    return right / real(targets).sum(dim=1)


def squared_error(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean squared error, [T, Q, ...] twice -> [T]."""
    return (outputs - targets).square().double().flatten(1).mean(dim=1)


def macro_f1(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean over classes of F1 = 2 hits / (predicted + true): [T, Q, way], [T, Q] -> [T].

    Of the classes that the task's queries have or are taken for; one that is never hit has 0.
    """
    import torch

    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    predicted = (outputs.argmax(-1)[..., None] == classes) & real(targets)[..., None]
    true = targets[..., None] == classes  # [T, Q, way]
    hits = (predicted & true).sum(dim=1).double()
    return (2 * hits / (predicted.sum(dim=1) + true.sum(dim=1))).nanmean(dim=1)


def auroc(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Chance that a positive scores above a negative, a tie counting half: -> [T].

    It is the area under the ROC curve (Mann and Whitney's U over the number of pairs).
    """
    tp, fp = roc(outputs, targets)
    area = (fp.diff() * (tp[:, 1:] + tp[:, :-1])).sum(dim=1)  # twice the trapezoids
    return area / (2 * tp[:, -1] * fp[:, -1])


def average_precision(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Sum over thresholds of the gain in recall times the precision there: -> [T].

    Equal scores are one threshold. No interpolation: trapezoids would flatter.
    """
    tp, fp = roc(outputs, targets)
    precision = tp / (tp + fp).clamp(min=1)
    found = (tp.diff() / tp[:, -1:] * precision[:, 1:]).sum(dim=1)
    return found.masked_fill(fp[:, -1] == 0, math.nan)  # any order of positives alone is perfect


def delta_auprc(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Average precision less the query set's share of positives, which chance reaches: -> [T].

    Stanley et al., "FS-Mol: A Few-Shot Learning Dataset of Molecules", 2021.
    """
    share = (targets == 1).double().sum(dim=1) / real(targets).sum(dim=1)
    return average_precision(outputs, targets) - share


def roc(outputs: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor]":
    """True and false positives as the threshold falls, from none to all: two [T, Q + 1], float64.

    The score is that of class 1 less that of class 0. Within a tie the counts stay as they were
    before it, and rise at its end. A score that is not a number ranks below all others.
    """
    import torch
    from torch.nn import functional as F

    assert outputs.shape[-1] == 2, f"{outputs.shape[-1]} classes have no positive one"
    negative, positive = outputs.double().unbind(dim=-1)
    # Padding is neither positive nor negative, so it does not matter where it ranks.
    score = (positive - negative).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    score, order = score.sort(dim=1, descending=True)
    ends = F.pad(score[:, 1:] != score[:, :-1], (0, 1), value=True)
    labels = targets.gather(1, order)
    counts = torch.stack([labels == 1, labels == 0]).cumsum(dim=2)
    tp, fp = F.pad((counts * ends).cummax(dim=2).values, (1, 0)).double()
    return tp, fp


def negative_log_likelihood(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean over queries of -log p of their class, in nats: [T, Q, way], [T, Q] -> [T].

    p is the softmax of the scores. Infinite where a query's class was held impossible.
    """
    log_p = outputs.double().log_softmax(dim=-1)
    surprise = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)  # [T, Q]
    counts = real(targets)
    return surprise.masked_fill(~counts, 0).sum(dim=1) / counts.sum(dim=1)


def calibration_error(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Expected calibration error in [0, 1] (Guo et al. 2017, arXiv:1706.04599, eq. 3): -> [T].

    The queries of a task are sorted into BINS equal intervals of the highest softmax probability,
    their confidence. The error is the mean over queries of their bin's |accuracy - confidence|.
    Few queries make it larger than the error of many would be.
    """
    counts = real(targets)
    confidence = outputs.double().softmax(dim=-1).amax(dim=-1)  # [T, Q]
    gap = (outputs.argmax(-1) == targets).double() - confidence
    inside = (confidence * BINS).ceil().sub(1).clamp(0, BINS - 1)  # (0, 1/15] is the first
    inside = inside.nan_to_num(0).long()  # the gap is no number either, and stays so
    sums = gap.new_zeros(len(gap), BINS).scatter_add(1, inside, gap.masked_fill(~counts, 0))
    return sums.abs().sum(dim=1) / counts.sum(dim=1)


def mean_of_all(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """The mean over agents, and over the episodes of each: [T, K, ...] -> [T]."""
    return outputs.double().flatten(1).mean(dim=1)


def real(targets: "Tensor") -> "Tensor":
    """Which queries are no padding, [T, Q]."""
    return targets >= 0


ACCURACY = Metric("accuracy", accuracy, CLASSES, "accuracy in %")
MSE = Metric(
    "mse",
    squared_error,
    VALUES,
    "mean squared error",
    higher_is_better=False,
    percent=False,
    places=4,
)
MACRO_F1 = Metric("macro_f1", macro_f1, CLASSES, "macro F1 in %")
AUROC = Metric("auroc", auroc, TWO_CLASSES, "area under the ROC curve in %")
AVERAGE_PRECISION = Metric(
    "average_precision", average_precision, TWO_CLASSES, "average precision in %"
)
DELTA_AUPRC = Metric(
    "delta_auprc",
    delta_auprc,
    TWO_CLASSES,
    "average precision above chance",
    percent=False,  # papers give it as 0.234
    places=4,
)
NLL = Metric(
    "nll",
    negative_log_likelihood,
    CLASSES,
    "negative log-likelihood in nats",
    higher_is_better=False,
    percent=False,
    places=4,
    needs_log_p=True,
)
ECE = Metric(
    "ece",
    calibration_error,
    CLASSES,
    "expected calibration error in %",
    higher_is_better=False,
    needs_log_p=True,
)
RETURN = Metric("return", mean_of_all, RETURNS, "return", percent=False)
SUCCESS = Metric("success", mean_of_all, SUCCESSES, "success rate in %")

METRICS = {
    metric.name: metric
    for metric in (
        *(ACCURACY, MSE, MACRO_F1, AUROC, AVERAGE_PRECISION, DELTA_AUPRC, NLL, ECE),
        *(RETURN, SUCCESS),
    )
}


def named(
    name: str, among: Iterable[Metric] = METRICS.values(), key: str = "eval.metric"
) -> Metric:
    """The metric of that name. Raises UserError, about `key`, when it is not `among` them."""
    known = {metric.name: metric for metric in among}
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{key}={name}: choose one of {', '.join(known)}")
    return known[name]


def kind_of(measure: str) -> Metric:
    """The metric that a measure is a figure of, and is shown as.

    MSE for mse_after_5, ACCURACY for verification_accuracy, and for a name that tells nothing.
    """
    found = (m for m in METRICS.values() if f"_{m.name}_" in f"_{measure}_")
    # Whole words, and the longest name: one may be part of another.
    return max(found, key=lambda metric: len(metric.name), default=ACCURACY)


def suiting(chosen: Metric, way: int) -> list[Metric]:
    """Those that make sense where the data's own choice does, for tasks of `way` classes."""
    of_classes = (CLASSES, TWO_CLASSES) if way == 2 else (CLASSES,)
    kinds = of_classes if chosen.of in (CLASSES, TWO_CLASSES) else (chosen.of,)
    return [metric for metric in METRICS.values() if metric.of in kinds]


def measures_for(main: Metric, way: int, *, log_p: bool) -> list[Metric]:
    """Those that stand beside the main one.

    `log_p`: whether softmax of the algorithm's scores gives its probabilities.
    """
    return [m for m in suiting(main, way) if m is not main and (log_p or not m.needs_log_p)]
