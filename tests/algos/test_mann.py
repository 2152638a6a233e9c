import copy
import math

import pytest
import torch

from metarun.algos.mann import MANN, in_turn, late
from metarun.backbones.conv4 import Conv4
from metarun.backbones.pixels import Pixels
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.orders import fixed_order_keys
from metarun.samplers.sequences import Sequences

FEATURES = 4
KINDS = [("onehot", False), ("onehot", True), ("string", False)]  # labels, feedback


def some_mann(backbone=None, seed=0, spread=3.0, **settings):
    """A tiny one in float64, of weights so large that every part matters."""
    torch.manual_seed(seed)
    defaults = {"way": 3, "labels": "onehot", "units": 5, "rows": 5, "width": 3, "reads": 2}
    defaults |= {"decay": 0.9, "strength": 4.0, "feedback": False}
    algorithm = MANN(backbone or Pixels((FEATURES,)), **(defaults | settings)).double()
    with torch.no_grad():
        for name, p in algorithm.named_parameters():
            if not name.startswith("backbone"):
                p.mul_(spread)
        algorithm.standardise.mean.uniform_(-0.5, 0.5)
        algorithm.standardise.variance.uniform_(0.5, 2)
        algorithm.standardise.batches.fill_(1)
    return algorithm


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def some_sequences(tasks=2, way=3, presentations=2, seed=0):
    keys = torch.rand(tasks, way * presentations, generator=torch.Generator().manual_seed(seed))
    return Sequences(normal(*keys.shape, FEATURES, seed=seed), keys.argsort(dim=1) % way, way)


def some_episodes(tasks=2, way=3, shot=2, query=2, shape=(FEATURES,), seed=0):
    """Random examples whose labels are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    x = normal(tasks, way * (shot + query), *shape, seed=seed)
    return Episodes(x[:, : way * shot], labels(shot), x[:, way * shot :], labels(query), way)


def one_task(batch, task):
    return batch._make(t[task : task + 1] if isinstance(t, torch.Tensor) else t for t in batch)


def linear(layer, inputs, name="weight", bias="bias"):
    """W x + b of lists of numbers."""
    weight, b = getattr(layer, name).tolist(), getattr(layer, bias).tolist()
    return [
        sum(w * x for w, x in zip(row, inputs, strict=True)) + offset
        for row, offset in zip(weight, b, strict=True)
    ]


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def cosine(a, b):
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def softmax(row):
    return [math.exp(a) / sum(map(math.exp, row)) for a in row]


def standardised(rows, means, variances):
    """Lists of features, each by its own mean and variance, four long in all if none is far out."""
    return [
        [
            4
            / math.sqrt(len(row))
            * max(-10.0, min(10.0, (x - m) / math.sqrt(v + (1e-5 * m) ** 2)))
            for x, m, v in zip(row, means, variances, strict=True)
        ]
        for row in rows
    ]


def by_their_own(rows):
    """Lists of features standardised by their own statistics, as in training."""
    columns = list(zip(*rows, strict=True))
    means = [sum(column) / len(column) for column in columns]
    pairs = zip(columns, means, strict=True)
    return standardised(rows, means, [sum((x - m) ** 2 for x in c) / len(c) for c, m in pairs])


class ByLoops:
    """The paper's network on one sequence, a number at a time."""

    def __init__(self, algorithm):
        self.algorithm = algorithm
        units, (self.count, self.width) = algorithm.controller.hidden_size, algorithm.shape
        self.h, self.cell = [0.0] * units, [0.0] * units
        self.memory = [[1e-6] * self.width for _ in range(self.count)]
        self.read = [0.0] * (algorithm.reads * self.width)
        self.read_weights = [[0.0] * self.count for _ in range(algorithm.reads)]
        self.usage = [0.0] * self.count

    def step(self, x, label):
        """The logarithms of the outputs' probabilities, [K]."""
        algorithm, rows = self.algorithm, range(self.count)
        self.control([*x, *label, *(self.read if algorithm.feedback else [])])
        heads = linear(algorithm.heads, self.h)
        each = self.width + 1
        heads = [heads[i : i + each] for i in range(0, len(heads), each)]
        keys = [[math.tanh(a) for a in head[:-1]] for head in heads]
        gates = [sigmoid(head[-1]) for head in heads]

        by_usage = sorted(rows, key=lambda i: self.usage[i])
        least_used = [float(i in by_usage[: len(heads)]) for i in rows]
        write_weights = [
            [g * r + (1 - g) * lu for r, lu in zip(weights, least_used, strict=True)]
            for g, weights in zip(gates, self.read_weights, strict=True)
        ]
        self.memory[by_usage[0]] = [0.0] * self.width
        for key, weights in zip(keys, write_weights, strict=True):
            for i in rows:
                self.memory[i] = [
                    m + weights[i] * k for m, k in zip(self.memory[i], key, strict=True)
                ]

        self.read_weights = [
            softmax([algorithm.strength * cosine(key, row) for row in self.memory]) for key in keys
        ]
        self.read = [
            sum(weights[i] * self.memory[i][j] for i in rows)
            for weights in self.read_weights
            for j in range(self.width)
        ]
        self.usage = [
            algorithm.decay * self.usage[i]
            + sum(weights[i] for weights in self.read_weights + write_weights)
            for i in rows
        ]
        logits = linear(algorithm.classifier, self.h + self.read)
        each = algorithm.groups[1]
        groups = [logits[i : i + each] for i in range(0, len(logits), each)]
        return [math.log(p) for group in groups for p in softmax(group)]

    def control(self, inputs):
        """The LSTM's step; torch has its gates in the order input, forget, cell, output."""
        lstm = self.algorithm.controller
        new = linear(lstm, inputs, "weight_ih_l0", "bias_ih_l0")
        old = linear(lstm, self.h, "weight_hh_l0", "bias_hh_l0")
        sums = [a + b for a, b in zip(new, old, strict=True)]
        units = len(self.h)
        i, f, u, o = (sums[k * units : (k + 1) * units] for k in range(4))
        self.cell = [
            sigmoid(f[k]) * self.cell[k] + sigmoid(i[k]) * math.tanh(u[k]) for k in range(units)
        ]
        self.h = [sigmoid(o[k]) * math.tanh(self.cell[k]) for k in range(units)]


@pytest.mark.parametrize("strength", [1.0, 4.0])
@pytest.mark.parametrize(("labels", "feedback"), KINDS)
def test_loss_equals_the_equations(labels, feedback, strength):
    """Twelve writes to five rows; mean over steps of minus log p of the label or its letters."""
    algorithm = some_mann(labels=labels, feedback=feedback, strength=strength)
    sequences = some_sequences()
    torch.manual_seed(3)
    codes = algorithm.codes(2, 3).tolist()  # those that the loss will draw
    losses, hits, features = [], [], by_their_own(sequences.x.flatten(0, 1).tolist())
    for task in range(2):
        network, seen = ByLoops(algorithm), []
        last = [0.0] * len(codes[0][0])
        of_task = features[6 * task : 6 * task + 6]
        for x, y in zip(of_task, sequences.y[task].tolist(), strict=True):
            log_p, label = network.step(x, last), codes[task][y]
            losses.append(-sum(p for p, one in zip(log_p, label, strict=True) if one))
            each = algorithm.groups[1]
            right = all(
                max(log_p[i : i + each]) == log_p[i : i + each][label[i : i + each].index(1)]
                for i in range(0, len(label), each)
            )
            hits.append((seen.count(y), right))
            seen.append(y)
            last = label
    torch.manual_seed(3)
    loss, metrics = algorithm.loss(sequences)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert list(metrics) == ["accuracy", "accuracy_presentation_1", "accuracy_presentation_2"]
    for name, count in {"accuracy_presentation_1": 0, "accuracy_presentation_2": 1}.items():
        wanted = [right for times, right in hits if times == count]
        assert metrics[name].item() == pytest.approx(sum(wanted) / len(wanted))
    assert metrics["accuracy"].item() == pytest.approx(sum(right for _, right in hits) / len(hits))
    if labels == "onehot":
        assert 0 < metrics["accuracy"] < 1


@pytest.mark.parametrize(("labels", "feedback"), KINDS)
def test_scores_equal_the_equations(labels, feedback):
    """Each query alone follows the support set, which comes in one fixed order."""
    algorithm, episodes = some_mann(labels=labels, feedback=feedback).eval(), some_episodes()
    running = algorithm.standardise
    statistics = running.mean.tolist(), running.variance.tolist()
    codes = algorithm.fixed_codes(3).tolist()
    order = fixed_order_keys(6).argsort().tolist()
    assert order != sorted(order)
    scores = algorithm.predict(episodes)
    for task in range(2):
        network, last = ByLoops(algorithm), [0.0] * len(codes[0])
        support = standardised(episodes.support_x[task].tolist(), *statistics)
        for i in order:
            network.step(support[i], last)
            last = codes[episodes.support_y[task, i]]
        queries = standardised(episodes.query_x[task].tolist(), *statistics)
        for q, query in enumerate(queries):
            log_p = copy.deepcopy(network).step(query, last)
            wanted = [sum(p for p, one in zip(log_p, code, strict=True) if one) for code in codes]
            assert scores[task, q].tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("feedback", [False, True])
def test_the_gradient_is_the_slope(feedback):
    """Of every parameter, by central differences: which rows are least used has no slope."""
    algorithm, sequences = some_mann(feedback=feedback), some_sequences()
    algorithm.loss(sequences)[0].backward()
    for seed, (name, p) in enumerate(algorithm.named_parameters()):
        direction, start, values = normal(*p.shape, seed=seed), p.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                p.copy_(start + sign * 1e-6 * direction)
                values.append(algorithm.loss(sequences)[0].item())
        with torch.no_grad():
            p.copy_(start)
        slope = (values[0] - values[1]) / 2e-6
        assert abs(slope) > 1e-4, name
        assert (p.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4), name


@pytest.mark.parametrize(("labels", "feedback"), KINDS)
def test_many_tasks_at_once_equal_one_at_a_time(labels, feedback):
    """So nothing is left in the memory for the next task, nor shared with another."""
    algorithm = some_mann(labels=labels, feedback=feedback).eval()
    episodes = some_episodes(tasks=3)
    scores = algorithm.predict(episodes)
    alone = [algorithm.predict(one_task(episodes, task)) for task in range(3)]
    torch.testing.assert_close(scores, torch.cat(alone))
    if labels == "onehot":
        sequences = some_sequences(tasks=3)
        losses = [algorithm.loss(one_task(sequences, task))[0] for task in range(3)]
        torch.testing.assert_close(algorithm.loss(sequences)[0], torch.stack(losses).mean())
    assert torch.equal(algorithm.predict(episodes), scores)


def test_a_sequence_has_no_part_in_the_loss_of_another():
    algorithm, (x, y, way) = some_mann(), some_sequences(tasks=3)
    x.requires_grad_()
    labels = late(algorithm.codes(3, way).double()[0][y])
    log_p, _ = algorithm.present(x, labels, algorithm.blank(x))
    (slope,) = torch.autograd.grad(log_p[1, :, 0].sum(), x)
    assert (slope.abs().amax(dim=2) > 0).tolist() == [[False] * 6, [True] * 6, [False] * 6]


def test_an_answer_depends_on_what_came_before_alone():
    """On examples up to its own, and on labels up to that of the example before."""
    algorithm, x = some_mann(), normal(1, 6, FEATURES).requires_grad_()
    labels = normal(1, 6, 3, seed=1).requires_grad_()
    log_p, _ = algorithm.present(x, late(labels), algorithm.blank(x))
    for slope, last in zip(torch.autograd.grad(log_p[0, 3, 0], (x, labels)), (3, 2), strict=True):
        depends = slope[0].abs().amax(dim=1) > 0
        assert depends.tolist() == [step <= last for step in range(6)]


@pytest.mark.parametrize("labels", ["onehot", "string"])
def test_relabelling_with_the_labels_weights_permutes_the_scores(labels):
    """What class k is called is learnt, so the weights of labels move with their classes: those of
    a one-hot label's place, or for strings, whose places are letters, the strings themselves."""
    algorithm, episodes = some_mann(labels=labels), some_episodes()
    order = torch.tensor([2, 0, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    other = copy.deepcopy(algorithm)
    scores = algorithm.predict(episodes)
    assert not torch.allclose(other.predict(relabelled)[..., order], scores)
    if labels == "string":
        other.fixed_codes = lambda way: algorithm.fixed_codes(way)[order.argsort()]
    else:
        with torch.no_grad():
            inputs, old = other.controller.weight_ih_l0, algorithm.controller.weight_ih_l0
            inputs[:, FEATURES + order] = old[:, FEATURES:]
            other.classifier.weight[order] = algorithm.classifier.weight
            other.classifier.bias[order] = algorithm.classifier.bias
    torch.testing.assert_close(other.predict(relabelled)[..., order], scores)


@pytest.mark.parametrize(
    ("batch_norm", "inductive"), [("running", True), ("support", True), ("batch", False)]
)
def test_whether_a_prediction_depends_on_the_other_queries(batch_norm, inductive):
    backbone = Conv4((1, 16, 16), width=4, batch_norm=batch_norm).double()
    algorithm = some_mann(backbone).eval()
    episodes = some_episodes(tasks=2, shape=(1, 16, 16))
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    with torch.no_grad():
        before = algorithm.predict(episodes)
        after = algorithm.predict(episodes._replace(query_x=others))
    assert torch.allclose(before[:, 0], after[:, 0], rtol=0, atol=1e-9) == inductive
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-3)


def test_the_loss_teaches_every_parameter():
    algorithm = some_mann(Conv4((1, 16, 16), width=4, batch_norm="running"))
    sequences = some_sequences()
    algorithm.loss(sequences._replace(x=normal(2, 6, 1, 16, 16)))[0].backward()
    for name, p in algorithm.named_parameters():
        # Batch norm takes out the biases before it, and the standardisation the last scale.
        out = (name.endswith("0.bias") and "backbone" in name) or name == "backbone.3.1.weight"
        assert out or p.grad.abs().max() > 1e-6, name


def test_the_scale_of_the_data_does_not_matter():
    """Each feature times a number and plus another: the same loss, and the same scores after it."""
    algorithm, sequences, episodes = some_mann(), some_sequences(tasks=50), some_episodes()
    algorithm.standardise.batches.zero_()  # as it is at first
    factor, summand = torch.tensor([1e-2, 1.0, 255.0, 1e4]), torch.tensor([0.0, -3.0, 1e3, 1e5])

    def outcome(change):
        copied = copy.deepcopy(algorithm)
        loss = copied.loss(sequences._replace(x=change(sequences.x)))[0]
        x = {"support_x": change(episodes.support_x), "query_x": change(episodes.query_x)}
        return torch.cat([loss[None], copied.eval().predict(episodes._replace(**x)).flatten()])

    with torch.no_grad():
        plain, changed = outcome(lambda x: x), outcome(lambda x: factor * x + summand)
    torch.testing.assert_close(changed, plain, rtol=1e-4, atol=1e-4)
    assert plain.std() > 0.5


def test_strings_of_a_task_differ_and_are_drawn_anew():
    algorithm = some_mann(labels="string")
    torch.manual_seed(0)
    codes, others = algorithm.codes(400, 15), algorithm.codes(400, 15)
    assert not torch.equal(codes, others)
    letters = codes.unflatten(2, (5, 5))
    assert (letters.sum(dim=3) == 1).all()
    numbers = letters.argmax(dim=3) @ 5 ** torch.arange(5)
    assert all(len(set(task.tolist())) == 15 for task in numbers)
    # Each of 25 outputs is on in a fifth of 6000 strings, give or take 31.
    assert (codes.sum(dim=(0, 1)) - 1200).abs().max() < 160


def test_strings_at_test_are_always_the_same():
    """Whatever was drawn before, and without disturbing what is drawn after."""
    algorithm = some_mann(labels="string")
    torch.manual_seed(1)
    first, drawn = algorithm.fixed_codes(15), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(algorithm.fixed_codes(15), first)
    assert len(first.unique(dim=0)) == 15


def test_fewer_classes_than_outputs():
    """The last outputs go unused; more classes than outputs are refused."""
    algorithm = some_mann(way=4)
    assert algorithm.predict(some_episodes(way=3)).shape == (2, 6, 3)
    assert algorithm.loss(some_sequences(way=3))[0].isfinite()
    wanted = r"way=5, but the labels are for 4 classes: lower eval.way, set way to 5"
    for use, batch in [
        (algorithm.predict, some_episodes(way=5)),
        (algorithm.predict_and_measure, some_episodes(way=5)),
        (algorithm.loss, some_sequences(way=5)),
    ]:
        with pytest.raises(UserError, match=wanted):
            use(batch)


def test_strings_have_no_number_of_classes():
    algorithm = some_mann(way=2, labels="string")
    assert algorithm.predict(some_episodes(way=7, tasks=1)).shape == (1, 14, 7)


def test_in_turn_by_hand():
    """Labels 0 1 1 0: right at 0's first and 1's second example."""
    right, y = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[0, 1, 1, 0]])
    assert in_turn(right, y, way=2).tolist() == [[0.5, 0.5]]
    assert in_turn(right, torch.tensor([[0, 1, 0, 1]]), way=2).tolist() == [[0.5, 0.5]]
    assert in_turn(right, torch.tensor([[1, 0, 1, 0]]), way=2).tolist() == [[0.5, 0.5]]
    assert in_turn(torch.tensor([[1.0, 0, 0, 0]]), y, way=2).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(("query", "presentations"), [(3, 5), (20, 10)])
@pytest.mark.parametrize("labels", ["onehot", "string"])
def test_measures_of_one_who_needs_to_be_told_twice(labels, query, presentations, monkeypatch):
    """Right once it was shown two labelled examples of the class: from the third presentation on.

    An example is its class and its own number, so that what is shown can be checked.
    """
    algorithm, way = some_mann(Pixels((2,)), labels=labels), 3
    classes = torch.tensor([2, 0, 1])  # whose label is the place here
    support_y = torch.arange(way).repeat_interleave(2).expand(4, -1)
    query_y = torch.arange(way).repeat_interleave(query).expand(4, -1)
    number = torch.arange(way * (query + 2)) + 100 * torch.arange(4)[:, None]
    x = torch.stack([classes[torch.cat([support_y, query_y], dim=1)], number], dim=2).double()
    episodes = Episodes(x[:, : 2 * way], support_y, x[:, 2 * way :], query_y, way)
    codes, shown = algorithm.fixed_codes(way).double(), []

    def answer(z, labels, state):
        shown.append(z)
        truth = codes[classes.argsort()[z[..., 0].long()]]  # [T, L, K]
        told = (labels[:, :, None] == codes).all(dim=3).cumsum(dim=1)  # [T, L, way]
        times = (told * (truth[:, :, None] == codes).all(dim=3)).sum(dim=2)
        return torch.where(times[..., None] >= 2, truth, 1 - truth), state

    monkeypatch.setattr(algorithm, "present", answer)
    monkeypatch.setattr(algorithm, "standardise", torch.nn.Identity())
    figures = algorithm.by_presentation(episodes)
    names = [f"accuracy_presentation_{k}" for k in range(1, presentations + 1)]
    assert list(figures) == names
    for k, name in enumerate(names, start=1):
        assert figures[name].tolist() == [float(k > 2)] * 4
    (z,) = shown
    for task in z:
        assert len(set(task[:, 1].tolist())) == len(task)  # no example twice
        assert [task[:, 0].tolist().count(c) for c in range(way)] == [presentations] * way
    assert len({tuple(task[:, 0].tolist()) for task in z}) == 4  # each task in its own order
    alone = episodes._replace(**{k: getattr(episodes, k)[2:3] for k in episodes._fields[:4]})
    algorithm.by_presentation(alone)
    assert torch.equal(shown[1], z[2:3])  # whatever else is in the batch


def test_measures_equal_the_loss_of_the_same_sequence():
    """Eight examples of a class, one task: the mean over presentations is the loss's accuracy."""
    algorithm = some_mann()
    algorithm.standardise = torch.nn.Identity()  # so that examples are known by their features
    episodes = some_episodes(tasks=1, shot=3, query=5)
    shown = []
    present = algorithm.present
    algorithm.present = lambda *given: shown.append(given) or present(*given)
    figures = algorithm.by_presentation(episodes)
    z, labels, _ = shown[0]
    everything = torch.cat([episodes.support_x, episodes.query_x], dim=1)[0]
    all_y = torch.cat([episodes.support_y, episodes.query_y], dim=1)[0]
    places = (z[0][:, None] == everything).all(dim=2).int().argmax(dim=1)
    y = all_y[places][None]
    assert labels[0, 1:].argmax(dim=1).tolist() == y[0, :-1].tolist()
    _, metrics = algorithm.loss(Sequences(z, y, 3))
    mean = torch.stack(list(figures.values())).mean()
    assert mean.item() == pytest.approx(metrics["accuracy"].item())
    assert figures["accuracy_presentation_5"].item() == pytest.approx(
        metrics["accuracy_presentation_5"].item()
    )


@pytest.mark.parametrize("labels", ["onehot", "string"])
def test_bfloat16_stops_at_the_features(labels):
    algorithm = some_mann(labels=labels).float()
    sequences, episodes = some_sequences(), some_episodes()
    sequences = sequences._replace(x=sequences.x.float())
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )

    def outcome():
        torch.manual_seed(0)
        return torch.cat(
            [algorithm.predict(episodes).flatten(), algorithm.loss(sequences)[0][None]]
        )

    wanted = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outcome(), wanted)


class Half(Pixels):
    """Features in bfloat16, as autocast leaves those of a backbone with layers."""

    def forward(self, x):
        return super().forward(x).bfloat16()


def test_features_in_bfloat16():
    """Are used as they are, in float32."""
    sequences = some_sequences()
    loss, _ = some_mann(Half((FEATURES,))).float().loss(sequences)
    assert loss.dtype == torch.float32
    wanted, _ = some_mann().float().loss(sequences._replace(x=sequences.x.bfloat16().float()))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", "strings", "choose one of onehot, string"),
        ("units", 0, "at least 1"),
        ("width", 0, "at least 1"),
        ("reads", 0, "at least 1"),
        ("rows", 1, "each of the 2 reads needs a row"),
        ("decay", 1.5, "from 0 to 1"),
        ("decay", -0.1, "from 0 to 1"),
        ("strength", 0.0, "above 0"),
    ],
)
def test_values_that_cannot_work_are_refused(key, value, message):
    with pytest.raises(UserError, match=rf"algo.{key}={value}: .*{message}"):
        some_mann(**{key: value})


def test_it_learns_to_remember():
    """Two classes that are random points of each sequence's own: nothing but memory can tell them.

    The first example is a guess and the first of the other class can be told by exclusion, so the
    1st presentation's accuracy is 3/4 at best; at the 2nd it can be 1.
    """
    algorithm = some_mann(
        Pixels((8,)), spread=1.0, way=2, units=64, rows=16, width=8, strength=10.0
    ).float()
    optimizer = torch.optim.RMSprop(algorithm.parameters(), lr=3e-3, alpha=0.95, momentum=0.9)
    generator = torch.Generator().manual_seed(0)

    def batch():
        points = torch.randn(64, 2, 8, generator=generator)
        y = torch.rand(64, 6, generator=generator).argsort(dim=1) % 2
        return Sequences(points[torch.arange(64)[:, None], y], y, way=2)

    first = algorithm.loss(batch())[1]
    for _ in range(150):
        loss, metrics = algorithm.loss(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first["accuracy_presentation_2"] < 0.65
    assert metrics["accuracy_presentation_1"] < 0.85
    assert metrics["accuracy_presentation_2"] > 0.9


def test_from_the_command_line(metarun):
    results = metarun.run("algo=mann", "backbone=conv4", "sampler.presentations=3", "name=mann")
    assert results["status"] == "finished"
    names = [f"accuracy_presentation_{k}" for k in range(1, 7)]  # shot=1 query=5
    assert list(results["test"]["measures"])[: len(names)] == names


def test_string_labels_from_the_command_line(metarun):
    options = ["algo.labels=string", "sampler.presentations=2", "eval.way=5", "name=strings"]
    assert metarun.run("algo=mann", "backbone=conv4", *options)["status"] == "finished"
