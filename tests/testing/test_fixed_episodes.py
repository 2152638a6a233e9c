from functools import partial

import pytest
import torch
from torch import nn

from metarun.algos.matching import MatchingNet
from metarun.algos.protonet import ProtoNet
from metarun.algos.siamese import Siamese
from metarun.backbones.mlp import MLP
from metarun.data.functions import sinusoid
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.episodes import Rows, labelled
from metarun.samplers.functions import Functions
from metarun.samplers.uniform import Uniform
from metarun.samplers.within_superclass import WithinSuperclass
from metarun.testing.answers import answers, features_suffice
from metarun.testing.fixed_episodes import RowEpisodes, fixed_episodes, fixed_functions, room

CPU = Device(torch.device("cpu"), "fp32")
SIZES = [5, 7, 4, 6, 8, 5, 6]
SUPERCLASS = "aabbbaa"
TASK = {"way": 3, "shot": 1, "query": 2}


def some_split():
    """Seven clouds of points that overlap, of two superclasses."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(7, 4, generator=generator)
    classes = {
        f"{SUPERCLASS[c]}/{c}": centres[c] + torch.randn(size, 4, generator=generator)
        for c, size in enumerate(SIZES)
    }
    return stack_classes("vectors", classes, {name: name[0] for name in classes})


def some_episodes(episodes=40, split=None, **changes):
    arguments = {"name": "test", "seed": 0, "within": False, **TASK} | changes
    stream = {key: arguments.pop(key) for key in ("name", "seed")}
    sampler = (WithinSuperclass if arguments.pop("within") else Uniform)(**arguments, tasks=1)
    return fixed_episodes(split or some_split(), sampler, episodes=episodes, **stream)


def classwise(rows, way=3):
    """Rows [E, way · n] with the classes apart: [E, way, n]."""
    return rows.unflatten(1, (way, -1))


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("count", [1, 30, 100, 101])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(count, within):
    long, short = some_episodes(250, within=within), some_episodes(count, within=within)
    assert (len(long), len(short)) == (250, count)
    assert torch.equal(short.rows.support, long.rows.support[:count])
    assert torch.equal(short.rows.query, long.rows.query[:count])
    assert len(long.rows.support.unique(dim=0)) > 150


def test_episodes_do_not_depend_on_what_ran_before():
    torch.manual_seed(1)
    first = some_episodes()
    torch.manual_seed(2)
    torch.rand(10)
    assert some_episodes().sha256 == first.sha256


def test_episodes_do_not_depend_on_the_examples_themselves():
    split = some_split()
    other = stack_classes(
        "vectors",
        {name: torch.zeros(size, 9) for name, size in zip(split.classes, SIZES, strict=True)},
    )
    assert some_episodes(split=other).sha256 == some_episodes(split=split).sha256


def test_golden_episodes():
    """The first task and the 101st; other rows here mean other test episodes for every run."""
    episodes = some_episodes(101)
    support, query = classwise(episodes.rows.support), classwise(episodes.rows.query)
    assert support[[0, 100], :, 0].tolist() == [[24, 38, 12], [27, 14, 1]]
    assert query[[0, 100], :, 1].tolist() == [[22, 39, 14], [24, 13, 0]]


@pytest.mark.parametrize(
    "changes", [{"name": "val"}, {"seed": 1}, {"within": True}, {"shot": 2}, {"episodes": 39}]
)
def test_other_episodes_have_another_sha256(changes):
    assert some_episodes(**changes).sha256 != some_episodes().sha256


def test_sha256_tells_support_from_query():
    rows = torch.arange(12).view(2, 6)
    first, swapped, reshaped = (
        RowEpisodes(some_split(), labelled(r, way, shot=1)).sha256
        for r, way in ((rows, 3), (rows.roll(3, dims=1), 3), (rows.view(1, 12), 6))
    )
    assert len({first, swapped, reshaped}) == 3


def test_sha256_tells_labels():
    rows = labelled(torch.arange(12).view(2, 6), way=3, shot=1)
    other = rows._replace(query_y=rows.query_y.flip(1))
    assert RowEpisodes(some_split(), rows).sha256 != RowEpisodes(some_split(), other).sha256


def test_within_superclass():
    split = some_split()
    first_examples = some_episodes(within=True).rows.support  # one of each class
    classes = torch.searchsorted(split.first_row, first_examples, right=True) - 1
    superclasses = split.superclass[classes]
    assert (superclasses == superclasses[:, :1]).all()
    assert len(superclasses.unique()) == 2


def test_accuracies_equal_a_loop():
    """The nearest class mean of each query, an episode and a number at a time."""
    split, episodes = some_split(), some_episodes(shot=2)
    wanted = []
    rows = (classwise(episodes.rows.support), classwise(episodes.rows.query))
    for support, query in zip(*(r.tolist() for r in rows), strict=True):
        means = [split.x[rows].double().mean(dim=0) for rows in support]
        hits = []
        for label, rows in enumerate(query):
            for row in rows:
                distances = [(split.x[row] - mean).square().sum().item() for mean in means]
                hits.append(distances.index(min(distances)) == label)
        wanted.append(sum(hits) / len(hits))
    got = answers(ProtoNet(nn.Identity()), episodes, tasks=7, device=CPU)["accuracy"]
    assert got.dtype == torch.float64
    assert got.tolist() == wanted
    assert len(set(wanted)) > 3


@pytest.mark.parametrize("tasks", [1, 7, 100])
def test_how_many_at_once_does_not_matter(tasks):
    torch.manual_seed(0)
    evaluate = partial(answers, ProtoNet(MLP((4,), [6], "running")), some_episodes(), device=CPU)
    assert torch.equal(evaluate(tasks=tasks)["accuracy"], evaluate(tasks=40)["accuracy"])


def matching(backbone):
    return MatchingNet(backbone, fce=True, processing_steps=2, temperature=0.2)


def siamese(backbone):
    return Siamese(backbone, distortions=False)


@pytest.mark.parametrize("algorithm", [ProtoNet, matching, siamese])
@pytest.mark.parametrize("mode", ["running", "none", "support", "batch"])
def test_each_example_is_embedded_once_where_that_is_exact(algorithm, mode):
    """The answers are those of embedding it again for every episode; the backbone says how often
    it was asked. With a task's own statistics a feature belongs to a task."""
    torch.manual_seed(0)
    algorithm, episodes = algorithm(MLP((4,), [6, 5], mode)), some_episodes(60)
    with torch.no_grad():  # statistics that are not those of the start
        algorithm.train().backbone(some_split().x)
    asked = []
    algorithm.backbone.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
    got = answers(algorithm, episodes, tasks=7, device=CPU, measures=True)
    rows = torch.cat([episodes.rows.support.flatten(), episodes.rows.query.flatten()])
    once = mode in ("running", "none")
    if once:
        assert sum(asked) == len(rows.unique()) < len(rows)
        assert max(asked) <= 7 * 9  # no more at once than seven tasks have
    type(algorithm).features_suffice, before = False, asked.copy()
    try:
        wanted = answers(algorithm, episodes, tasks=7, device=CPU, measures=True)
    finally:
        type(algorithm).features_suffice = True
    assert (asked[len(before) :] == before) is not once
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        exact = {} if name in ("nll", "ece") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(got[name].float(), values.float(), **exact)
    assert 0.4 < wanted["accuracy"].mean() < 1


def test_features_that_take_too_much_memory_are_not_kept(monkeypatch):
    """Nor does a subclass that predicts otherwise inherit that features suffice."""
    torch.manual_seed(0)
    algorithm, episodes = ProtoNet(MLP((4,), [6, 5], "running")), some_episodes(60)
    distinct = torch.cat([episodes.rows.support, episodes.rows.query], dim=1).unique()
    wanted = answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"]
    asked = []
    algorithm.backbone.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
    for most, once in ((20 * len(distinct), True), (20 * len(distinct) - 1, False)):
        monkeypatch.setattr("metarun.testing.fixed_episodes.MOST_FEATURES", most)
        asked.clear()
        assert torch.equal(answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"], wanted)
        assert (sum(asked) == len(distinct)) is once
    assert features_suffice(algorithm)
    assert not features_suffice(LooksItself(algorithm.backbone))


@pytest.mark.parametrize(("most", "batches"), [(10**6, 1), (9 * 5 * 20, 3), (1, 9)])
def test_of_features_as_many_are_answered_at_once_as_the_caches_hold(monkeypatch, most, batches):
    """Never fewer than are asked; a task here has nine examples, of five features each."""
    torch.manual_seed(0)
    algorithm, episodes = ProtoNet(MLP((4,), [6, 5], "running")), some_episodes(60)
    asked, predict = [], algorithm.predict
    wanted = answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"]
    monkeypatch.setattr("metarun.testing.answers.FEATURES_AT_ONCE", most)
    monkeypatch.setattr(algorithm, "predict", lambda e: asked.append(len(e[0])) or predict(e))
    assert torch.equal(answers(algorithm, episodes, tasks=7, device=CPU)["accuracy"], wanted)
    assert (sum(asked), len(asked)) == (60, batches)


class LooksItself(ProtoNet):
    def predict(self, episodes):
        return super().predict(episodes._replace(query_x=2 * episodes.query_x))


@pytest.mark.parametrize("training", [True, False])
def test_the_algorithm_is_as_it_was(training):
    """Its running statistics and its mode; it is in evaluation mode meanwhile."""
    torch.manual_seed(0)
    algorithm = ProtoNet(MLP((4,), [6], "running")).train(training)
    seen = []
    algorithm.backbone.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    answers(algorithm, some_episodes(), tasks=4, device=CPU)
    assert set(seen) == {False}
    assert {module.training for module in algorithm.modules()} == {training}
    for name, tensor in algorithm.state_dict().items():
        assert torch.equal(tensor, before[name])
    if training:  # the same forward pass in training does move them
        algorithm.backbone(some_split().x)
        assert not torch.equal(
            algorithm.backbone[2].running_mean, before["backbone.2.running_mean"]
        )


def sines(**changes):
    arguments = {"name": "test", "seed": 0, "episodes": 40, "shot": 3, "query": 5} | changes
    family = sinusoid([0.1, 5.0], [0.0, 3.0], [-5.0, 5.0]).open("test")
    sampler = Functions(arguments.pop("shot"), arguments.pop("query"), tasks=1)
    return fixed_functions(family, sampler, **arguments)


class Guess(nn.Module):
    """Answers every query point with the mean of the support's values."""

    def predict(self, episodes):
        return episodes.support_y.mean(dim=1, keepdim=True).expand_as(episodes.query_y)

    def predict_and_measure(self, episodes):
        size = torch.full((len(episodes.query_y),), episodes.support_x.shape[1])
        return self.predict(episodes), {"support_size": size}


def test_functions_are_fixed_by_name_and_seed():
    """A shorter list begins a longer one, other names and seeds have other functions."""
    long, short = sines(episodes=130), sines(episodes=7)
    assert (len(long), len(short)) == (130, 7)
    for tensor, beginning in zip(long.tensors, short.tensors, strict=True):
        assert torch.equal(tensor[:7], beginning)
    assert sines().sha256 == sines().sha256
    others = [sines(**c).sha256 for c in ({}, {"name": "val"}, {"seed": 1}, {"shot": 4})]
    assert len(set(others)) == 4


def test_errors_of_functions_equal_a_loop():
    """The mean squared error of a constant guess, a number at a time; the own measure beside."""
    episodes = sines()
    figures = answers(Guess(), episodes, tasks=7, device=CPU, measures=True)
    assert list(figures) == ["mse", "support_size"]
    for task in range(40):
        _, support_y, _, query_y = (t[task].flatten().tolist() for t in episodes.tensors)
        guess = sum(support_y) / 3
        wanted = sum((y - guess) ** 2 for y in query_y) / 5
        assert figures["mse"][task].item() == pytest.approx(wanted, rel=1e-5)
    assert figures["support_size"].tolist() == [3] * 40
    assert "support_size" not in answers(Guess(), episodes, tasks=7, device=CPU)


def test_what_is_measured_is_not_predicted_again():
    """The prediction that comes with the measures stands for that of `predict`."""

    class Both(Guess):
        def predict(self, episodes):
            raise AssertionError

        def predict_and_measure(self, episodes):
            place = torch.arange(float(len(episodes.query_y)))
            return episodes.query_y + 2, {"mse_after_0": place}

    figures = answers(Both(), sines(), tasks=4, device=CPU, measures=True)
    assert list(figures) == ["mse", "mse_after_0"]
    assert figures["mse"][:6].tolist() == pytest.approx([4] * 6, rel=1e-5)
    assert figures["mse_after_0"][:6].tolist() == [0, 1, 2, 3, 0, 1]


def test_tasks_that_the_examples_have_room_for():
    """Classes of 5, 7, 4, 6, 8, 5, 6 examples hold 1, 2, 1, 2, 2, 1, 2 tasks of 3: 11, 3 a task."""
    assert some_episodes(300).disjoint == 3
    assert some_episodes(2).disjoint <= 2
    assert some_episodes(300, shot=2, query=2).disjoint == 8 // 3  # 1, 1, 1, 1, 2, 1, 1
    assert sines(episodes=7).disjoint == 7, "each function is drawn anew"


def test_room_for_tasks_of_unlike_sizes():
    """Padding is no example: two tasks of 2 and 1 classes, 2 examples each, of classes of 4."""
    support = torch.tensor([[0, 4], [8, 0]])
    support_y = torch.tensor([[0, 1], [0, -1]])
    query, ways = torch.tensor([[1, 5], [9, 0]]), torch.tensor([2, 1])
    rows = Rows(support, support_y, query, support_y, way=2, ways=ways)
    assert room(rows, torch.tensor([0, 4, 8, 12])) == 2
