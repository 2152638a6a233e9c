import math

import pytest
import torch
from torch import nn

from metarun.algos.siamese import Siamese
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.data.split import stack_classes
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.samplers.pairs import Pairs, PairSampler
from metarun.samplers.uniform import Uniform
from metarun.testing.fixed_episodes import fixed_episodes


class AsItIs(nn.Module):
    """The example's numbers are its features; remembers what it was shown."""

    def __init__(self, out_dim):
        super().__init__()
        self.out_dim = out_dim

    def forward(self, x):
        self.seen = x
        return x.flatten(1)


def some_episodes(tasks=3, way=3, shot=2, query=4, shape=(5,), seed=0):
    """Random episodes whose support and query are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        orders = torch.rand(tasks, way * each, generator=generator).argsort(dim=1)
        return orders % way

    def normal(count):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=torch.float64)

    return Episodes(normal(way * shot), labels(shot), normal(way * query), labels(query), way=way)


def some_pairs(count=9, shape=(5,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, count, *shape, generator=generator, dtype=torch.float64)
    return Pairs(a, b, torch.rand(count, generator=generator) < 0.5)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def some_siamese(backbone=None, distortions=False, seed=0):
    torch.manual_seed(seed)
    return Siamese(backbone or AsItIs(5), distortions).double()


def similarity(algorithm, a, b):
    """Bias plus the sum of alpha_j |a_j - b_j|, of lists of numbers."""
    alpha, bias = algorithm.alpha.weight[0].tolist(), algorithm.alpha.bias.item()
    return bias + sum(w * abs(p - q) for w, p, q in zip(alpha, a, b, strict=True))


def test_loss_worked_by_hand():
    """Distances (1, 3) and (0, 0) weigh -1 and 1 after a bias of 1: p is sigmoid(3), sigmoid(1)."""
    algorithm = some_siamese(AsItIs(2))
    with torch.no_grad():
        algorithm.alpha.weight.copy_(torch.tensor([[-1.0, 1.0]]))
        algorithm.alpha.bias.fill_(1.0)
    a = torch.tensor([[2.0, 1.0], [4.0, 4.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    loss, metrics = algorithm.loss(Pairs(a, b, torch.tensor([True, False])))
    wanted = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert metrics["verification_accuracy"].item() == 0.5


def test_loss_equals_the_cross_entropy():
    """A number at a time: -log p for pairs of the same class, -log(1 - p) for others."""
    algorithm, pairs = some_siamese(), some_pairs(40)
    losses, hits = [], []
    for a, b, same in zip(*(tensor.tolist() for tensor in pairs), strict=True):
        p = 1 / (1 + math.exp(-similarity(algorithm, a, b)))
        losses.append(-math.log(p if same else 1 - p))
        hits.append((p > 0.5) == same)
    loss, metrics = algorithm.loss(pairs)
    assert loss.item() == pytest.approx(sum(losses) / 40, rel=1e-12)
    assert metrics["verification_accuracy"].item() == pytest.approx(sum(hits) / 40)
    assert 0.1 < sum(hits) / 40 < 0.9


def test_scores_are_the_mean_similarity_to_a_class():
    """With unordered support and unequal shots, of a way that was never heard of."""
    algorithm, episodes = some_siamese(), some_episodes(way=4)
    support_y = episodes.support_y.clone()
    support_y[:, 0] = (support_y[:, 0] + 1) % 4
    episodes = episodes._replace(support_y=support_y)
    got = algorithm.predict(episodes)
    assert got.shape == (3, 16, 4)
    for task in range(3):
        support_x, labels, queries, _ = (tensor[task].tolist() for tensor in episodes[:4])
        for q, query in enumerate(queries):
            for k in range(4):
                members = [x for x, y in zip(support_x, labels, strict=True) if y == k]
                values = [similarity(algorithm, query, x) for x in members]
                wanted = sum(values) / len(values)
                assert got[task, q, k].item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_one_shot_takes_the_largest_probability():
    algorithm, episodes = some_siamese(), some_episodes(shot=1, way=5)
    chosen = algorithm.predict(episodes).argmax(-1)
    for task in range(3):
        support_x, labels, queries, _ = (tensor[task].tolist() for tensor in episodes[:4])
        for q, query in enumerate(queries):
            p = [1 / (1 + math.exp(-similarity(algorithm, query, x))) for x in support_x]
            assert chosen[task, q].item() == labels[p.index(max(p))]


def test_twins_may_change_places():
    algorithm, pairs = some_siamese(), some_pairs()
    swapped = Pairs(pairs.b, pairs.a, pairs.same)
    torch.testing.assert_close(algorithm.loss(swapped)[0], algorithm.loss(pairs)[0])


def test_verification_accuracy_weighs_both_kinds_of_pairs_the_same():
    """Counted a pair at a time, of queries with support examples."""
    algorithm, episodes = some_siamese(), some_episodes(tasks=5)
    got = algorithm.predict_and_measure(episodes)[1]["verification_accuracy"]
    assert got.shape == (5,)
    for task in range(5):
        support_x, support_y, queries, query_y = (tensor[task].tolist() for tensor in episodes[:4])
        right = {True: [], False: []}
        for query, label in zip(queries, query_y, strict=True):
            for x, y in zip(support_x, support_y, strict=True):
                said_same = similarity(algorithm, query, x) > 0
                right[label == y].append(said_same == (label == y))
        assert len(right[True]) != len(right[False])
        rates = [sum(of_kind) / len(of_kind) for of_kind in right.values()]
        assert got[task].item() == pytest.approx(sum(rates) / 2, abs=1e-6)
    assert got.std() > 0.01


def test_relabelling_the_classes_permutes_the_scores():
    episodes = some_episodes(way=4)
    order = torch.tensor([2, 0, 3, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    algorithm = some_siamese()
    scores, permuted = algorithm.predict(episodes), algorithm.predict(relabelled)
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)
    measured = [
        algorithm.predict_and_measure(e)[1]["verification_accuracy"] for e in (episodes, relabelled)
    ]
    torch.testing.assert_close(*measured)


@pytest.mark.parametrize("batch_norm", ["running", "support", "batch"])
def test_many_tasks_at_once_equal_one_at_a_time(batch_norm):
    algorithm = some_siamese(MLP((5,), [7, 4], batch_norm)).eval()
    episodes = some_episodes(tasks=4)
    alone = [one_task(episodes, task) for task in range(4)]
    torch.testing.assert_close(
        algorithm.predict(episodes), torch.cat([algorithm.predict(task) for task in alone])
    )
    together = algorithm.predict_and_measure(episodes)[1]["verification_accuracy"]
    assert together.tolist() == [
        algorithm.predict_and_measure(task)[1]["verification_accuracy"].item() for task in alone
    ]


def test_the_loss_is_the_mean_over_pairs():
    algorithm, pairs = some_siamese(), some_pairs(4)
    alone = [algorithm.loss(Pairs(*(t[i : i + 1] for t in pairs)))[0] for i in range(4)]
    torch.testing.assert_close(algorithm.loss(pairs)[0], torch.stack(alone).mean())


def test_twins_share_the_statistics_of_batch_norm():
    """As one network that both pass at once: a batch of 2 T examples."""
    algorithm = some_siamese(MLP((5,), [7, 4], "running")).train()
    pairs = some_pairs()
    loss = algorithm.loss(pairs)[0]
    z = algorithm.backbone(torch.cat([pairs.a, pairs.b]))
    logits = algorithm.alpha((z[:9] - z[9:]).abs())[:, 0]
    wanted = nn.functional.softplus(torch.where(pairs.same, -logits, logits)).mean()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(
    ("batch_norm", "inductive"), [("running", True), ("support", True), ("batch", False)]
)
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive):
    """With running statistics or the support set's it does not; with the batch's own it does."""
    torch.manual_seed(0)
    algorithm = some_siamese(Conv4((1, 16, 16), width=8, batch_norm=batch_norm)).eval()
    episodes = some_episodes(tasks=1, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    with torch.no_grad():
        before = algorithm.predict(episodes)
        after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-6, atol=1e-9) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-2)


@pytest.mark.parametrize("distortions", [False, True])
def test_the_loss_teaches_every_layer(distortions):
    algorithm = some_siamese(Conv4((1, 16, 16), width=8, batch_norm="running"), distortions)
    algorithm.loss(some_pairs(shape=(1, 16, 16)))[0].backward()
    for name, parameter in algorithm.named_parameters():
        # Batch norm takes away what a bias before it adds.
        if not name.endswith("0.bias") or "alpha" in name:
            assert parameter.grad.abs().max() > 1e-5, name


def test_images_are_distorted_in_training_each_in_its_own_way():
    """The same picture as both twins of every pair comes out different every time."""
    algorithm = some_siamese(AsItIs(64), distortions=True)
    picture = some_pairs(1, shape=(1, 8, 8)).a.expand(50, 1, 8, 8)
    pairs = Pairs(picture, picture, torch.ones(50).bool())
    torch.manual_seed(1)
    loss = algorithm.loss(pairs)[0]
    seen = algorithm.backbone.seen
    assert seen.shape == (100, 1, 8, 8)
    # One in 2⁷ has all of its map's numbers zero.
    assert (seen - picture[0]).abs().amax(dim=(1, 2, 3)).gt(1e-6).sum() >= 95
    assert len(seen.flatten(1).unique(dim=0)) >= 95
    torch.manual_seed(1)
    assert torch.equal(algorithm.loss(pairs)[0], loss)
    assert not torch.equal(algorithm.loss(pairs)[0], loss)


@pytest.mark.parametrize(
    ("distortions", "training", "shape"),
    [(False, True, (1, 8, 8)), (True, False, (1, 8, 8)), (True, True, (64,)), (True, True, (8, 8))],
    ids=["switched off", "not in training", "vectors", "sequences"],
)
def test_what_is_not_distorted(distortions, training, shape):
    algorithm = some_siamese(AsItIs(64), distortions).train(training)
    pairs = some_pairs(shape=shape)
    algorithm.loss(pairs)
    assert torch.equal(algorithm.backbone.seen, torch.cat([pairs.a, pairs.b]))


def test_predictions_are_of_pictures_as_they_are():
    algorithm, episodes = some_siamese(AsItIs(64), True), some_episodes(shape=(1, 8, 8))
    assert torch.equal(algorithm.train().predict(episodes), algorithm.eval().predict(episodes))


@pytest.mark.parametrize("kind", ["loss", "predict", "predict_and_measure"])
def test_bfloat16_stops_at_the_features(kind):
    """Under autocast, distances of float32 features, and maps of pictures, are those without it."""
    torch.manual_seed(0)
    algorithm = Siamese(AsItIs(64), distortions=True)
    episodes, pairs = some_episodes(tasks=6, shape=(1, 8, 8)), some_pairs(shape=(1, 8, 8))
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    batch = Pairs(pairs.a.float(), pairs.b.float(), pairs.same) if kind == "loss" else episodes
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = getattr(algorithm, kind)(batch)
        if isinstance(result, tuple):
            result = result[kind == "predict_and_measure"]
        if isinstance(result, dict):
            result = result["verification_accuracy"]
        results.append(result)
    assert results[0].dtype == results[1].dtype == torch.float32
    assert torch.equal(*results)


def test_a_backbone_must_tell_how_many_features_it_has():
    with pytest.raises(UserError, match="out_dim"):
        Siamese(nn.Identity(), distortions=False)


def test_it_learns_which_differences_matter():
    """Classes differ in six of twelve numbers; the others are louder and mean nothing."""
    generator = torch.Generator().manual_seed(0)

    def split(classes):
        centres = 2 * torch.randn(classes, 1, 6, generator=generator)
        signal = centres + 0.2 * torch.randn(classes, 10, 6, generator=generator)
        noise = 6 * torch.randn(classes, 10, 6, generator=generator)
        x = torch.cat([signal, noise], dim=2)
        return stack_classes("vectors", {f"class {c}": x[c] for c in range(classes)})

    train, test = split(40), split(40)
    of_test = Uniform(way=5, shot=1, query=5, tasks=1)
    episodes = fixed_episodes(test, of_test, name="test", seed=0, episodes=60).batch(slice(60))
    torch.manual_seed(0)
    algorithm, sampler = Siamese(AsItIs(12), distortions=True), PairSampler(tasks=64)

    def tested():
        accuracy = (algorithm.predict(episodes).argmax(-1) == episodes.query_y).float().mean()
        return accuracy, algorithm.predict_and_measure(episodes)[1]["verification_accuracy"].mean()

    untaught = tested()
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        algorithm.loss(sampler(train, generator))[0].backward()
        optimizer.step()
    taught = tested()
    assert untaught[0] < 0.5
    assert taught[0] > 0.85
    assert untaught[1] < 0.65
    assert taught[1] > 0.85


def test_from_the_command_line(metarun):
    results = metarun.run("algo=siamese", "sampler.tasks=8", "name=twins")
    assert results["status"] == "finished"
    verification = results["test"]["measures"]["verification_accuracy"]
    assert 0 < verification["mean"] < 1
    lines = (metarun.folder / "outputs/twins/metrics.jsonl").read_text()
    assert "train/verification_accuracy" in lines
