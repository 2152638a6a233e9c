import math
import subprocess
import sys

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

from metarun.errors import UserError
from metarun.functional.metrics import (
    ACCURACY,
    AUROC,
    AVERAGE_PRECISION,
    DELTA_AUPRC,
    ECE,
    MACRO_F1,
    METRICS,
    MSE,
    NLL,
    RETURN,
    SUCCESS,
    kind_of,
    measures_for,
    named,
    suiting,
)

OF_CLASSES = [ACCURACY, MACRO_F1, NLL, ECE]
OF_TWO = [AUROC, AVERAGE_PRECISION, DELTA_AUPRC]


def tasks(way, *, queries=23, levels=5, count=60, seed=0):
    """Scores [T, Q, way] of few levels, so that many are equal, and classes [T, Q].

    Tasks have 1 to `queries` real queries and, from the second on, 1 to `way` classes; the padding
    has scores too, which tell nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (count, queries, way), generator=generator) / 2
    sizes = torch.randint(1, queries + 1, (count, 1), generator=generator)
    ways = torch.randint(1, way + 1, (count, 1), generator=generator)
    ways[0] = way
    classes = (torch.rand(count, queries, generator=generator) * ways).long()
    scores[(torch.arange(way) >= ways)[:, None].expand_as(scores)] = -torch.inf
    classes[torch.arange(queries) >= sizes] = -1
    return scores, classes


def one_by_one(scores, classes):
    """Each task's scores [Q, way] and classes [Q] without the padding, as float64 arrays."""
    for of_task, labels in zip(scores.double(), classes, strict=True):
        kept = labels >= 0
        yield of_task[kept], labels[kept].numpy()


def two_classes(**how):
    """As `tasks`, but every task has both."""
    scores, classes = tasks(2, **how)
    scores = scores.nan_to_num(neginf=1.0)
    classes = torch.where(classes < 0, -1, scores.new_ones(classes.shape).bernoulli_(0.4).long())
    classes[:, 0], classes[:, 1] = 0, 1
    return scores, classes


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", [2, 3, 7])
def test_macro_f1_is_that_of_scikit_learn(way, seed):
    scores, classes = tasks(way, seed=seed)
    wanted = [
        f1_score(y, s.argmax(-1).numpy(), average="macro", zero_division=0)
        for s, y in one_by_one(scores, classes)
    ]
    figures = MACRO_F1.of_tasks(scores, classes)
    assert figures.dtype == torch.float64
    assert figures.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", [2, 7])
def test_the_log_likelihood_is_that_of_scikit_learn(way, seed):
    """Whose probabilities are of the classes that the task has."""
    scores, classes = tasks(way, seed=seed)
    wanted = []
    for s, y in one_by_one(scores, classes):
        had = torch.isfinite(s[0]).sum()
        p = s[:, :had].softmax(-1).numpy()
        wanted.append(0 if had == 1 else log_loss(y, p, labels=range(had)))
    figures = NLL.of_tasks(scores, classes)
    assert figures.dtype == torch.float64
    assert figures.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_ranking_is_that_of_scikit_learn(seed):
    """Ties are averaged, or one threshold; a query set of one class has no figure."""
    scores, classes = tasks(2, seed=seed, levels=2 + seed % 6)
    figures = {metric: metric.of_tasks(scores, classes) for metric in OF_TWO}
    skipped = 0
    for task, (s, y) in enumerate(one_by_one(scores, classes)):
        found = [figures[metric][task].item() for metric in OF_TWO]
        if len(set(y)) == 1:
            skipped += 1
            assert all(map(math.isnan, found))
            continue
        score = (s[:, 1] - s[:, 0]).numpy()
        precision = average_precision_score(y, score)
        wanted = [roc_auc_score(y, score), precision, precision - y.mean()]
        assert found == pytest.approx(wanted, abs=1e-12)
    assert 0 < skipped < len(scores)
    assert all(of_tasks.dtype == torch.float64 for of_tasks in figures.values())
    assert all(metric.may_skip for metric in OF_TWO)
    assert not any(metric.may_skip for metric in OF_CLASSES)


def test_ranking_worked_by_hand():
    """Scores 3+, 2-, 2+, 1-: pairs 3>2, 3>1, 2=2, 2>1; precisions 1 at recall 1/2, 2/3 at 1."""
    score = torch.tensor([[3.0, 2, 2, 1]])
    scores, classes = torch.stack([-score / 2, score / 2], dim=2), torch.tensor([[1, 0, 1, 0]])
    assert AUROC.of_tasks(scores, classes).tolist() == [3.5 / 4]
    precision = 1 / 2 * 1 + 1 / 2 * 2 / 3
    assert AVERAGE_PRECISION.of_tasks(scores, classes).tolist() == pytest.approx([precision])
    assert DELTA_AUPRC.of_tasks(scores, classes).tolist() == pytest.approx([precision - 1 / 2])


def test_constant_scores_are_chance_exactly():
    scores, classes = two_classes(count=500, queries=37)
    scores = scores[:, :1].expand_as(scores)
    share = (classes == 1).sum(1).double() / (classes >= 0).sum(1)
    assert (AUROC.of_tasks(scores, classes) == 0.5).all()
    assert (AVERAGE_PRECISION.of_tasks(scores, classes) == share).all()
    assert (DELTA_AUPRC.of_tasks(scores, classes) == 0).all()


def test_large_scores_make_no_ties():
    """1 - 2^25 is not a number of float32."""
    scores = torch.tensor([[[2.0**25, 0], [2.0**25, 1]]])
    assert AUROC.of_tasks(scores, torch.tensor([[0, 1]])).tolist() == [1]
    assert AUROC.of_tasks(scores, torch.tensor([[1, 0]])).tolist() == [0]


def test_a_query_set_of_one_class_is_skipped():
    scores = torch.tensor([[[0.0, 1], [1, 0]]]).expand(3, 2, 2)
    classes = torch.tensor([[1, 1], [0, 0], [1, -1]])
    for metric in OF_TWO:
        assert metric.of_tasks(scores, classes).isnan().all()


def test_a_score_that_is_no_number_ranks_last_and_skips_nothing():
    scores = torch.tensor([[[0.0, math.nan], [0, -5], [0, 1]], [[math.nan, 0]] * 3])
    classes = torch.tensor([[1, 0, 0], [1, 0, 0]])
    assert AUROC.of_tasks(scores, classes).tolist() == [0, 0.5]
    assert AVERAGE_PRECISION.of_tasks(scores, classes).tolist() == pytest.approx([1 / 3, 1 / 3])
    assert NLL.of_tasks(scores, classes).isnan().all()
    assert ECE.of_tasks(scores, classes).isnan().all()


def test_ranking_needs_a_positive_class():
    with pytest.raises(AssertionError, match="3 classes have no positive one"):
        AUROC.of_tasks(torch.zeros(1, 4, 3), torch.zeros(1, 4).long())


@pytest.mark.parametrize("metric", OF_TWO)
def test_monotone_transforms_leave_ranking_alone(metric):
    scores, classes = two_classes()
    score = (scores[..., 1] - scores[..., 0]).double()
    bent = torch.stack([torch.zeros_like(score), score.exp() - 7], dim=2)
    assert torch.equal(metric.of_tasks(bent, classes), metric.of_tasks(scores, classes))


def test_auroc_of_flipped_classes_and_scores_is_itself():
    scores, classes = two_classes()
    wanted = AUROC.of_tasks(scores, classes)
    flipped = torch.where(classes < 0, -1, 1 - classes)
    torch.testing.assert_close(AUROC.of_tasks(scores.flip(2), flipped), wanted)
    torch.testing.assert_close(AUROC.of_tasks(scores.flip(2), classes), 1 - wanted)


@pytest.mark.parametrize("metric", [*OF_CLASSES, *OF_TWO], ids=lambda metric: metric.name)
def test_the_order_of_the_queries_does_not_matter(metric):
    scores, classes = tasks(2, levels=4)
    order = torch.rand(classes.shape).argsort(dim=1)
    shuffled = scores.gather(1, order[..., None].expand_as(scores)), classes.gather(1, order)
    wanted = metric.of_tasks(scores, classes)
    torch.testing.assert_close(metric.of_tasks(*shuffled), wanted, equal_nan=True)


@pytest.mark.parametrize("metric", [*OF_CLASSES, *OF_TWO], ids=lambda metric: metric.name)
def test_padding_counts_for_nothing(metric):
    """Whatever its scores, and as if each task were alone."""
    scores, classes = tasks(2, levels=4)
    wanted = metric.of_tasks(scores, classes)
    for filler in (7.0, -torch.inf, torch.inf, torch.nan):
        filled = torch.where((classes < 0)[..., None], filler, scores)
        torch.testing.assert_close(metric.of_tasks(filled, classes), wanted, equal_nan=True)
    for task, (s, y) in enumerate(one_by_one(scores, classes)):
        alone = metric.of_tasks(s[None], torch.tensor(y)[None])
        torch.testing.assert_close(alone, wanted[task : task + 1], equal_nan=True)


@pytest.mark.parametrize("metric", OF_CLASSES, ids=lambda metric: metric.name)
def test_an_absent_class_counts_for_nothing(metric):
    scores, classes = tasks(3)
    wider = torch.cat([scores, torch.full_like(scores, -torch.inf)], dim=2)
    torch.testing.assert_close(metric.of_tasks(wider, classes), metric.of_tasks(scores, classes))


@pytest.mark.parametrize("way", [2, 5])
def test_the_calibration_error_equals_a_loop(way):
    """Over bins and their queries, in float64 (Guo et al. 2017, eq. 3)."""
    scores, classes = tasks(way, queries=80)
    scores = scores + 2 * torch.randn(scores.shape)
    figures = ECE.of_tasks(scores, classes)
    assert figures.dtype == torch.float64
    for task, (s, y) in enumerate(one_by_one(scores, classes)):
        confidence, predicted = s.softmax(-1).max(-1)
        error = 0.0
        for b in range(15):
            members = [q for q in range(len(y)) if b / 15 < confidence[q] <= (b + 1) / 15]
            right = sum(float(predicted[q] == y[q]) for q in members)
            error += abs(right - sum(confidence[q].item() for q in members)) / len(y)
        assert figures[task].item() == pytest.approx(error, abs=1e-12)


def test_the_calibration_error_worked_by_hand():
    """Certain and right: 0. Certain and wrong: 1. Held 3/4 likely and right in one of two: 1/4."""
    likely = [math.log(3), 0.0]
    scores = torch.tensor([[[1e9, 0], [1e9, 0]], [[1e9, 0], [1e9, 0]], [likely, likely]])
    classes = torch.tensor([[0, 0], [1, 1], [0, 1]])
    assert ECE.of_tasks(scores, classes).tolist() == pytest.approx([0, 1, 1 / 4])


def test_a_confidence_between_two_bins_belongs_to_the_lower():
    """Held 1/5 likely and right, 0.15 likely and wrong: both are in (2/15, 3/15]."""
    of_five = torch.full((10,), -torch.inf)
    of_five[:5] = 0
    of_ten = torch.tensor([0.15] + 9 * [0.85 / 9]).log()
    scores, classes = torch.stack([of_five, of_ten])[None], torch.tensor([[0, 1]])
    assert ECE.of_tasks(scores, classes).item() == pytest.approx((0.8 - 0.15) / 2)


def test_the_log_likelihood_worked_by_hand():
    """Scores (ln 3, 0) give 3/4 and 1/4; what was held impossible is infinitely surprising."""
    scores = torch.tensor([[[math.log(3), 0.0]] * 2, [[0.0, -torch.inf]] * 2])
    figures = NLL.of_tasks(scores, torch.tensor([[0, 1], [0, 1]])).tolist()
    assert figures == pytest.approx([-(math.log(3 / 4) + math.log(1 / 4)) / 2, torch.inf])
    confident = torch.tensor([[[2000.0, 0.0]]])
    assert NLL.of_tasks(confident, torch.tensor([[1]])).tolist() == [2000]


def test_macro_f1_worked_by_hand():
    """True 0 0 1, taken for 0 1 1: 2/3 of each. True 0 0, taken for 0 1: 2/3 and 0."""
    scores = torch.eye(3)[torch.tensor([[0, 1, 1], [0, 1, 2]])]
    classes = torch.tensor([[0, 0, 1], [0, 0, -1]])
    assert MACRO_F1.of_tasks(scores, classes).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_accuracy_and_squared_error_worked_by_hand():
    scores, classes = torch.eye(3)[torch.tensor([[0, 1, 1, 2]])], torch.tensor([[0, 1, 0, -1]])
    assert ACCURACY.of_tasks(scores, classes).tolist() == pytest.approx([2 / 3])
    assert MSE.of_tasks(torch.tensor([[[1.0], [2]]]), torch.tensor([[[0.0], [4]]])).item() == 5 / 2


def test_return_and_success_are_means_over_the_agents():
    returns = torch.tensor([[[1.0, 2], [3, 6]], [[0, 0], [0, -4]]])
    assert RETURN.of_tasks(returns, torch.empty(0)).tolist() == [3, -1]
    reached = torch.tensor([[True, False, True, True]])
    assert SUCCESS.of_tasks(reached, torch.empty(0)).tolist() == [3 / 4]


@pytest.mark.parametrize("metric", [*OF_CLASSES, *OF_TWO], ids=lambda metric: metric.name)
def test_half_precision_is_enough_for_the_scores(metric):
    """Of few levels, which it holds exactly."""
    scores, classes = tasks(2)
    wanted = metric.of_tasks(scores, classes)
    torch.testing.assert_close(
        metric.of_tasks(scores.bfloat16(), classes), wanted, rtol=0, atol=0, equal_nan=True
    )


def test_how_figures_are_shown():
    assert ACCURACY.shown(0.87314, 0.00838) == "87.31 ± 0.84 %"
    assert ACCURACY.shown(1) == "100.00 %"
    assert ACCURACY.brief(0.8731) == "87.3 %"
    assert MSE.shown(0.12345, 0.01) == "0.1235 ± 0.0100"
    assert MSE.brief(2.5) == "2.5000"
    assert DELTA_AUPRC.shown(-0.0312, 0.009) == "-0.0312 ± 0.0090"
    assert RETURN.shown(-42.519) == "-42.52"
    for metric in METRICS.values():
        for nothing in (None, math.nan, math.inf):
            assert metric.shown(nothing, 0.1) == "not a number"
        assert metric.label.endswith(" in %") == metric.percent


def test_the_better_of_two():
    assert ACCURACY.better(0.6, 0.5)
    assert not ACCURACY.better(0.5, 0.5)
    assert MSE.better(0.5, 0.6)
    assert not MSE.better(0.6, 0.5)
    for metric in METRICS.values():
        assert metric.better(0.5, math.nan)
        assert not metric.better(math.nan, math.nan)
        assert not metric.better(math.nan, 0.5)
        worse, better = (0.2, 0.3) if metric.higher_is_better else (0.3, 0.2)
        assert metric.better(better, worse)
        assert metric.gain(better - worse) > 0
    assert [m for m in METRICS.values() if not m.higher_is_better] == [MSE, NLL, ECE]


def test_metrics_by_name():
    assert list(METRICS) == (
        "accuracy mse macro_f1 auroc average_precision delta_auprc nll ece return success".split()
    )
    assert all(named(name) is metric for name, metric in METRICS.items())
    with pytest.raises(UserError, match=r"^eval\.metric=f1: choose one of accuracy, mse, macro_f1"):
        named("f1")
    with pytest.raises(UserError, match=r"^table\.metric=auroc: choose one of accuracy, mse$"):
        named("auroc", [ACCURACY, MSE], "table.metric")


@pytest.mark.parametrize(
    ("measure", "metric"),
    {
        "accuracy": ACCURACY,
        "accuracy_after_3": ACCURACY,
        "accuracy_presentation_2": ACCURACY,
        "verification_accuracy": ACCURACY,
        "mse_after_5": MSE,
        "delta_auprc_after_1": DELTA_AUPRC,
        "average_precision": AVERAGE_PRECISION,
        "support_nll": NLL,
        "recency": ACCURACY,  # of which "ece" is no word
    }.items(),
)
def test_the_metric_of_a_measure(measure, metric):
    assert kind_of(measure) is metric


def test_what_makes_sense_for_the_tasks():
    assert suiting(ACCURACY, way=5) == [ACCURACY, MACRO_F1, NLL, ECE]
    assert suiting(ACCURACY, way=2) == [ACCURACY, MACRO_F1, *OF_TWO, NLL, ECE]
    assert suiting(DELTA_AUPRC, way=2) == suiting(ACCURACY, way=2)
    assert suiting(MSE, way=1) == suiting(MSE, way=2) == [MSE]
    assert suiting(RETURN, way=1) == [RETURN]


def test_what_stands_beside_the_main_one():
    assert measures_for(ACCURACY, 5, log_p=True) == [MACRO_F1, NLL, ECE]
    assert measures_for(ACCURACY, 5, log_p=False) == [MACRO_F1]
    assert measures_for(AUROC, 2, log_p=False) == [
        *(ACCURACY, MACRO_F1, AVERAGE_PRECISION, DELTA_AUPRC)
    ]
    assert measures_for(MSE, 1, log_p=True) == []


def test_the_command_line_can_read_them_without_torch():
    code = "import sys; import metarun.functional.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
