import math

import pytest
import torch
from torch import nn

from metarun.algos.relation import RelationNet
from metarun.backbones.batch_norm import BatchNorm
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError

SHAPE = (2, 4, 5)  # of the made maps


class Same(nn.Identity):
    """A backbone whose maps are the examples."""

    def __init__(self, out_shape=SHAPE):
        super().__init__()
        self.out_shape = out_shape


def some_episodes(tasks=2, way=3, shot=2, query=2, shape=SHAPE, seed=0):
    """Random float64 episodes whose support and query are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    def normal(count):
        return torch.randn(tasks, count, *shape, generator=generator, dtype=torch.float64)

    return Episodes(normal(way * shot), labels(shot), normal(way * query), labels(query), way=way)


def relation(backbone=None, width=3, hidden=4, batch_norm="running", seed=0):
    """A network in float64 whose scores differ, with other statistics than it starts with."""
    torch.manual_seed(seed)
    backbone = Same() if backbone is None else backbone
    algorithm = RelationNet(backbone, width, hidden, batch_norm).double()
    for module in algorithm.relation.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.2, 0.6)
            if module.batch_norm_mode == "running":
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return algorithm


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


# The paper's network, a number at a time. Maps are lists of channels, of rows, of numbers.


def convolution(maps, weight, bias):
    """3×3, with a border of zeros."""
    high, wide = len(maps[0]), len(maps[0][0])

    def at(channel, i, j):
        return maps[channel][i][j] if 0 <= i < high and 0 <= j < wide else 0.0

    return [
        [
            [
                offset
                + sum(
                    kernel[channel][a][b] * at(channel, i + a - 1, j + b - 1)
                    for channel in range(len(maps))
                    for a in range(3)
                    for b in range(3)
                )
                for j in range(wide)
            ]
            for i in range(high)
        ]
        for kernel, offset in zip(weight, bias, strict=True)
    ]


def normalised(rows, norm, of):
    """Each of `rows`, whose channels have the statistics of `of`, other rows, or running ones."""
    eps, scale, shift = norm.eps, norm.weight.tolist(), norm.bias.tolist()
    for channel in range(len(scale)):
        if of is None:
            mean, variance = norm.running_mean[channel].item(), norm.running_var[channel].item()
        else:
            values = [v for maps in of for line in maps[channel] for v in line]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
        by = scale[channel] / math.sqrt(variance + eps)
        for maps in rows:
            maps[channel] = [
                [(v - mean) * by + shift[channel] for v in line] for line in maps[channel]
            ]
    return rows


def pooled_relu(maps):
    """ReLU, then the largest of each 2×2 square; an odd last row or column is left out."""
    return [
        [
            [
                max(max(0.0, channel[i + a][j + b]) for a in (0, 1) for b in (0, 1))
                for j in range(0, len(channel[0]) - 1, 2)
            ]
            for i in range(0, len(channel) - 1, 2)
        ]
        for channel in maps
    ]


def linear(x, layer):
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in rows]


def scores_by_loops(algorithm, support, y, queries, way):
    """Fig. 2 on the concatenation of each query's map and each class's sum: rows of way scores.

    In mode "support" the support examples are compared with the classes too, and batch norm has
    the statistics of those pairs; in mode "batch" of the queries' pairs.
    """
    classes = []
    for label in range(way):
        members = [maps for maps, of in zip(support, y, strict=True) if of == label]
        classes.append(torch.tensor(members, dtype=torch.float64).sum(dim=0).tolist())
    # The first convolution, of the concatenation of class and query.
    weight = torch.cat([algorithm.of_class.weight, algorithm.of_query.weight], dim=1).tolist()
    norm, _, _, second, _, hidden, _, last, _ = algorithm.relation
    compared = support + queries if algorithm.mode == "support" else queries
    rows = [
        convolution(of_class + query, weight, algorithm.of_class.bias.tolist())
        for query in compared
        for of_class in classes
    ]
    first = len(support) * way if algorithm.mode == "support" else len(rows)

    def normal(rows, norm):
        inductive = algorithm.mode == "running" and not algorithm.training
        of = None if inductive else [list(maps) for maps in rows[:first]]
        return rows if algorithm.mode == "none" else normalised(rows, norm, of)

    rows = [pooled_relu(maps) for maps in normal(rows, norm)]
    weight, bias = second[0].weight.tolist(), second[0].bias.tolist()
    rows = [convolution(maps, weight, bias) for maps in rows]
    rows = [pooled_relu(maps) for maps in normal(rows, second[1])]
    scores = []
    for maps in rows[-len(queries) * way :]:
        flat = [v for channel in maps for line in channel for v in line]
        (logit,) = linear([max(0.0, v) for v in linear(flat, hidden)], last)
        scores.append(1 / (1 + math.exp(-logit)))
    return [scores[q * way : (q + 1) * way] for q in range(len(queries))]


@pytest.mark.parametrize("batch_norm", ["running", "support", "batch", "none"])
def test_scores_and_loss_equal_the_equations(batch_norm):
    """Eqs. 1 and 2; running statistics as in a test, the others as always."""
    episodes, algorithm = some_episodes(), relation(batch_norm=batch_norm).eval()
    got = algorithm.predict(episodes)
    errors, hits = [], []
    for task in range(2):
        support, y, queries, labels = (tensor[task].tolist() for tensor in episodes[:4])
        wanted = scores_by_loops(algorithm, support, y, queries, 3)
        torch.testing.assert_close(got[task], torch.tensor(wanted, dtype=torch.float64))
        for scores, label in zip(wanted, labels, strict=True):
            errors += [(score - (k == label)) ** 2 for k, score in enumerate(scores)]
            hits.append(scores[label] == max(scores))
    assert got.std(dim=-1).mean() > 0.01  # the classes' scores do differ
    loss, metrics = algorithm.loss(episodes)
    assert loss.item() == pytest.approx(sum(errors) / len(errors))
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))


def test_training_normalises_by_the_pairs_at_hand():
    episodes, algorithm = some_episodes(tasks=1), relation().train()
    support, y, queries, _ = (tensor[0].tolist() for tensor in episodes[:4])
    wanted = torch.tensor(scores_by_loops(algorithm, support, y, queries, 3), dtype=torch.float64)
    torch.testing.assert_close(algorithm.predict(episodes)[0], wanted)
    assert not torch.allclose(algorithm.eval().predict(episodes)[0], wanted, rtol=1e-3)


def test_support_and_query_have_statistics_of_their_own():
    """The backbone's in mode "batch", as in the authors' code."""
    backbone = Conv4((1, 16, 16), 4, "batch", pools=2, flatten=False)
    algorithm, episodes = relation(backbone, batch_norm="none"), some_episodes(1, shape=(1, 16, 16))
    support, queries = (backbone(x[0]).tolist() for x in (episodes.support_x, episodes.query_x))
    wanted = scores_by_loops(algorithm, support, episodes.support_y[0].tolist(), queries, 3)
    torch.testing.assert_close(
        algorithm.predict(episodes)[0], torch.tensor(wanted, dtype=torch.float64)
    )


@pytest.mark.parametrize("batch_norm", ["running", "support", "batch"])
def test_many_tasks_at_once_equal_one_at_a_time(batch_norm):
    backbone = Conv4((1, 16, 16), 4, batch_norm, pools=2, flatten=False)
    algorithm = relation(backbone, batch_norm=batch_norm).eval()
    episodes = some_episodes(tasks=3, shape=(1, 16, 16))
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(3)]
    torch.testing.assert_close(algorithm.predict(episodes), torch.cat(alone))
    losses = [algorithm.loss(one_task(episodes, task))[0] for task in range(3)]
    torch.testing.assert_close(algorithm.loss(episodes)[0], torch.stack(losses).mean())


def test_relabelling_the_classes_permutes_the_scores():
    episodes, algorithm = some_episodes(way=4), relation().eval()
    order = torch.tensor([2, 0, 3, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    scores, permuted = algorithm.predict(episodes), algorithm.predict(relabelled)
    torch.testing.assert_close(permuted[..., order], scores)
    assert not torch.allclose(permuted, scores)
    torch.testing.assert_close(algorithm.loss(relabelled)[0], algorithm.loss(episodes)[0])


def test_way_and_shot_are_free():
    algorithm = relation()
    for way, shot in [(2, 1), (5, 3)]:
        scores = algorithm.predict(some_episodes(way=way, shot=shot))
        assert scores.shape == (2, 2 * way, way)
        assert ((scores > 0) & (scores < 1)).all()


def test_flat_features_are_the_maps_they_came_from():
    """backbone.flatten changes nothing."""
    episodes = some_episodes(shape=(1, 16, 16))
    scores = []
    for flatten in (False, True):
        torch.manual_seed(0)
        backbone = Conv4((1, 16, 16), 4, "running", pools=2, flatten=flatten)
        scores.append(relation(backbone).predict(episodes))
    assert torch.equal(*scores)


@pytest.mark.parametrize(
    ("batch_norm", "inductive"),
    [("running", True), ("support", True), ("batch", False), ("none", True)],
)
@pytest.mark.parametrize("of", ["both", "module"])
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive, of):
    backbone_mode = batch_norm if of == "both" else "running"
    backbone = Conv4((1, 16, 16), 8, backbone_mode, pools=2, flatten=False)
    algorithm = relation(backbone, batch_norm=batch_norm).eval()
    episodes = some_episodes(shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    with torch.no_grad():
        before = algorithm.predict(episodes)
        after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=1e-9) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-5)


@pytest.mark.parametrize("batch_norm", ["running", "support", "batch", "none"])
def test_the_loss_teaches_every_parameter(batch_norm):
    backbone = Conv4((1, 16, 16), 4, batch_norm, pools=2, flatten=False)
    algorithm = relation(backbone, batch_norm=batch_norm)
    algorithm.loss(some_episodes(shape=(1, 16, 16)))[0].backward()
    for name, parameter in algorithm.named_parameters():
        # Batch norm takes away the bias of the convolution before it.
        if parameter.ndim > 1 or "conv" not in name:
            assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 1e-7, name


def test_a_backbone_without_maps_is_refused():
    with pytest.raises(UserError, match=r"algo=relation compares maps .* use backbone=conv4"):
        RelationNet(MLP((SHAPE), [8], "running"), 3, 4, "running")


@pytest.mark.parametrize("shape", [(64, 1, 1), (64, 3, 4), (64, 4, 3)])
def test_maps_too_small_are_refused(shape):
    with pytest.raises(
        UserError, match=rf"{shape[1]}×{shape[2]} is too small: lower backbone.pool"
    ):
        relation(Same(shape))


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"algo.batch_norm=bach: choose one of running, batch"):
        relation(batch_norm="bach")


@pytest.mark.parametrize(("width", "hidden"), [(0, 4), (3, 0)])
def test_layers_without_units_are_refused(width, hidden):
    with pytest.raises(
        UserError, match=rf"algo.width={width}, algo.hidden={hidden}: .* at least 1"
    ):
        relation(width=width, hidden=hidden)


def test_bfloat16_stops_at_the_features():
    """Under autocast, float32 maps are compared as without it."""
    episodes = some_episodes()
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    algorithm = relation().float().eval()
    wanted = algorithm.predict(episodes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), wanted)


def test_the_relation_module_starts_as_the_authors_have_it():
    torch.manual_seed(0)
    algorithm = RelationNet(Same((32, 8, 8)), 64, 32, "running")
    convolutions = [algorithm.of_class, algorithm.of_query, algorithm.relation[3][0]]
    for layer in convolutions:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert not convolutions[0].bias.any()
    hidden, last = algorithm.relation[5], algorithm.relation[7]
    assert hidden.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert last.weight.abs().max() < 0.05
    assert (hidden.bias == 1).all()
    assert (last.bias == 1).all()


def test_it_learns():
    """Classes are waves of any direction; that direction tells them apart is learnt."""
    torch.manual_seed(0)
    grid = torch.arange(8.0) * 0.8

    def tasks(count, way=3, query=4):
        angle = 3.14 * (torch.rand(count, 1) + torch.arange(way) / way)[..., None]

        def draw(each):
            a = angle.expand(-1, -1, each).flatten(1)[..., None, None]  # [T, N, 1, 1]
            phase = 6.28 * torch.rand(a.shape)
            x = (a.cos() * grid[:, None] + a.sin() * grid + phase).sin()
            y = torch.arange(way).repeat_interleave(each).expand(count, -1)
            return x[:, :, None] + 0.1 * torch.randn(x.shape)[:, :, None], y

        return Episodes(*draw(1), *draw(query), way=way)

    algorithm = RelationNet(Conv4((1, 8, 8), 8, "running", pools=1, flatten=False), 8, 8, "running")
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        algorithm.loss(tasks(16))[0].backward()
        optimizer.step()
    unseen = tasks(60)
    with torch.no_grad():
        scores = algorithm.eval().predict(unseen)
    assert (scores.argmax(-1) == unseen.query_y).double().mean() > 0.7


def test_a_run(metarun):
    """Trained on 3 classes and 1 shot, tested on 4 and 2; the module follows the backbone."""
    results = metarun.run(
        *("algo=relation", "backbone.batch_norm=support", "eval.way=4", "eval.shot=2", "name=x")
    )
    assert results["status"] == "finished"
    assert results["test"]["way"] == 4
    assert results["test"]["batch_norm"] == "support"


def test_a_run_on_too_small_images(metarun):
    said = metarun.error("algo=relation", *metarun.data, "data.size=8", "name=x")
    assert said.startswith("algo=relation pools the backbone's maps twice, so 2×2 is too small")
