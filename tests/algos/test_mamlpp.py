import io
from functools import partial

import pytest
import torch

from metarun.backbones.mlp import MLP
from metarun.errors import UserError
from metarun.runs.report import batch_norm
from tests.algos import tasks

K = 3  # inner steps
KINDS = [("mlp", "none"), ("mlp", "batch"), ("conv4", "batch"), ("strided", "batch")]
# Where the scales and shifts of batch norm are.
CONV4_NORMS = tuple(f"learner.body.{i}.1." for i in range(4))
NORMS = {
    "mlp": ("learner.body.2.", "learner.body.5."),
    "conv4": CONV4_NORMS,
    "strided": CONV4_NORMS,
}


def normalised(x, weight, bias, statistics, given=None):
    """As tasks.normalised, noting mean and variance; or with those that are `given`."""
    others = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x, others, correction=0)
    if given is not None:
        mean, var = given[len(statistics)]
    statistics.append((mean.detach(), var.detach()))
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    mean, var, weight, bias = (v.view(shape) for v in (mean, var, weight, bias))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def plain(leaves, task, kind, mode="batch", first_order=False, running=None):
    """One task's query scores [Q, way] after 1 … K steps, and what each step's batch norm saw:
    (mean, variance) of each layer on the support set, then on the query set.

    `running`: for each step the (mean, variance) of each layer to be used instead.
    """
    support_x, support_y, query_x = task.support_x[0], task.support_y[0], task.query_x[0]
    learner = {name: p for name, p in leaves.items() if name.startswith("learner.")}
    norms = NORMS[kind] if mode == "batch" else ()
    adapting = [name for name in learner if not name.startswith(norms)]
    alphas = [p for name, p in leaves.items() if name.startswith("rates.")]
    rates = dict(zip(adapting, alphas, strict=True))

    def scores(params, x, step):
        of_step = {name: p if name in rates else p[step] for name, p in params.items()}
        seen = []
        given = running[step] if running else None
        normalise = partial(normalised, statistics=seen, given=given)
        return tasks.forward(of_step, x, kind, normalise), seen

    outputs, statistics, params = [], [], learner
    for step in range(K):
        at = {name: p.clone() for name, p in params.items()}
        z, of_support = scores(at, support_x, step)
        loss = tasks.loss_of(z, support_y)
        grads = torch.autograd.grad(loss, [at[name] for name in adapting], create_graph=True)
        grads = [g.detach() for g in grads] if first_order else grads
        params = params | {
            name: params[name] - rates[name][step] * g
            for name, g in zip(adapting, grads, strict=True)
        }
        z, of_query = scores(params, query_x, step)
        outputs.append(z)
        statistics.append((of_support, of_query))
    return outputs, statistics


def plain_loss(leaves, episodes, weights, kind, mode="batch", first_order=False):
    """Mean over tasks of the weighted sum of each step's query loss (eq. 4)."""
    total = 0
    for task in range(len(episodes.query_x)):
        of_task = tasks.one_task(episodes, task)
        outputs, _ = plain(leaves, of_task, kind, mode, first_order)
        for weight, scores in zip(weights, outputs, strict=True):
            total = total + weight * tasks.loss_of(scores, of_task.query_y[0])
    return total / len(episodes.query_x)


def loss_at(algorithm, episodes, outer_step):
    """The loss of that outer step."""
    algorithm.outer_step = outer_step
    return algorithm.loss(episodes)[0]


# Of ten outer steps: at the first the weights are equal; at the sixth a half of each early one has
# gone to the last; after the tenth only the last counts.
WEIGHTS = {0: [1 / 3, 1 / 3, 1 / 3], 5: [1 / 6, 1 / 6, 2 / 3], 10: [0, 0, 1], 99: [0, 0, 1]}


@pytest.mark.parametrize("outer_step", WEIGHTS)
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_it_equals_the_plain_loop(kind, mode, outer_step):
    """Scores, loss, and the gradient of every parameter: rates, scales and shifts of each step."""
    algorithm, episodes = tasks.algorithm("mamlpp", kind, mode), tasks.some_episodes()
    leaves = tasks.copies(algorithm)
    wanted = plain_loss(leaves, episodes, WEIGHTS[outer_step], kind, mode)
    got = loss_at(algorithm, episodes, outer_step)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    gradient = tasks.meta_gradient(algorithm, lambda: loss_at(algorithm, episodes, outer_step))
    tasks.assert_equal_gradients(gradient, tasks.gradients(wanted, leaves))
    for task, scores in enumerate(algorithm.eval().predict(episodes)):
        *_, last = plain(leaves, tasks.one_task(episodes, task), kind, mode)[0]
        torch.testing.assert_close(scores, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "mode"), [("mlp", "none"), ("conv4", "batch")])
def test_meta_gradients_equal_central_differences(kind, mode):
    algorithm, episodes = tasks.algorithm("mamlpp", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: loss_at(algorithm, episodes, 5))


@pytest.mark.parametrize(("outer_step", "first_order"), [(5, True), (6, False)])
def test_the_first_outer_steps_are_of_first_order(outer_step, first_order):
    """Inner gradients are constants to rates, scales and shifts too."""
    algorithm = tasks.algorithm("mamlpp", first_order_steps=6, multi_step_loss_steps=0)
    leaves, episodes = tasks.copies(algorithm), tasks.some_episodes()
    wanted, other = (
        tasks.gradients(plain_loss(leaves, episodes, [0, 0, 1], "conv4", first_order=order), leaves)
        for order in (first_order, not first_order)
    )
    got = tasks.meta_gradient(algorithm, lambda: loss_at(algorithm, episodes, outer_step))
    tasks.assert_equal_gradients(got, wanted)
    assert max((other[name] - g).abs().max() for name, g in got.items()) > 1e-2


def test_the_accuracy_is_that_of_the_last_step():
    algorithm, episodes = tasks.algorithm("mamlpp"), tasks.some_episodes(tasks=8, query=4)
    scores = algorithm.predict(episodes)
    right = (scores.argmax(dim=-1) == episodes.query_y).double().mean()
    _, metrics = algorithm.loss(episodes)
    assert metrics["accuracy"].item() == pytest.approx(right.item())


@pytest.mark.parametrize("inner_steps", [1, 2, 5])
@pytest.mark.parametrize("annealing", [0, 1, 7, 100])
def test_loss_weights(inner_steps, annealing):
    """They sum to one; early ones sink from equal shares, never below a small share until the
    annealing ends; then the last one is all."""
    settings = {"inner_steps": inner_steps, "measured_steps": []}
    algorithm = tasks.algorithm("mamlpp", multi_step_loss_steps=annealing, **settings)
    before = [1.0] * inner_steps
    for outer_step in range(annealing + 2):
        algorithm.outer_step = outer_step
        weights = algorithm.loss_weights()
        assert sum(weights) == pytest.approx(1)
        assert len(weights) == inner_steps
        if outer_step >= annealing:
            assert weights == [0] * (inner_steps - 1) + [1]
        elif outer_step == 0:
            assert weights == pytest.approx([1 / inner_steps] * inner_steps)
        else:
            early = max(1 - outer_step / annealing, 0.03) / inner_steps
            assert weights[:-1] == pytest.approx([early] * (inner_steps - 1))
            assert all(w <= b for w, b in zip(weights[:-1], before[:-1], strict=True))
        before = weights


def test_each_training_step_is_an_outer_step():
    algorithm, episodes = tasks.algorithm("mamlpp", "mlp", "none"), tasks.some_episodes()
    for step in range(3):
        assert algorithm.outer_step == step
        algorithm.predict(episodes)
        algorithm.predict_and_measure(episodes)[1]
        algorithm.loss(episodes)


def test_the_outer_step_survives_a_checkpoint():
    """Which is loaded as weights only."""
    algorithm, episodes = tasks.algorithm("mamlpp"), tasks.some_episodes()
    for _ in range(4):
        algorithm.loss(episodes)
    file = io.BytesIO()
    torch.save(algorithm.state_dict(), file)
    file.seek(0)
    fresh = tasks.algorithm("mamlpp")
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.outer_step == 4
    assert (
        fresh.loss_weights() == algorithm.loss_weights() != tasks.algorithm("mamlpp").loss_weights()
    )
    torch.testing.assert_close(fresh.loss(episodes), algorithm.loss(episodes), rtol=0, atol=0)
    mine, its = fresh.state_dict(), algorithm.state_dict()
    assert list(mine) == list(its)
    assert all(torch.equal(mine[k], its[k]) for k in mine if torch.is_tensor(mine[k]))


@pytest.mark.parametrize("outer_step", [0, 10])
def test_running_statistics_are_averages_moved_with_momentum(outer_step):
    """Of each step and layer: over tasks, and over the support and query set where both were seen,
    which is after the last step alone once the other steps' losses do not count."""
    algorithm = tasks.algorithm("mamlpp", running_statistics=True)
    leaves = tasks.copies(algorithm)
    wanted = {}
    for turn in range(2):
        episodes = tasks.some_episodes(tasks=3, seed=turn)
        seen = [plain(leaves, tasks.one_task(episodes, task), "conv4")[1] for task in range(3)]
        for step in range(K):
            both = outer_step == 0 or step == K - 1
            for layer in range(4):
                for i, (start, name) in enumerate([(0.0, "mean"), (1.0, "var")]):
                    values = [
                        of_set[layer][i] for task in seen for of_set in task[step][: 1 + both]
                    ]
                    key = step, layer, name
                    old = wanted.get(key, torch.full((3,), start).double())
                    wanted[key] = 0.9 * old + 0.1 * sum(values) / len(values)
        loss_at(algorithm, episodes, outer_step)
    for (step, layer, name), values in wanted.items():
        norm = algorithm.learner.body[layer][1]
        got = getattr(norm, f"running_{name}")[step]
        torch.testing.assert_close(got, values, rtol=0, atol=1e-12)
    assert len({round(values[0].item(), 6) for values in wanted.values()}) == 2 * 4 * K


def trained(running):
    """With running statistics of its own for each step."""
    algorithm = tasks.algorithm("mamlpp", running_statistics=running, multi_step_loss_steps=100)
    for seed in range(5):
        algorithm.loss(tasks.some_episodes(tasks=3, seed=10 + seed))
    return algorithm.eval()


def test_a_test_uses_each_step_s_running_statistics():
    """In the inner loop and for the queries."""
    algorithm, episodes = trained(running=True), tasks.some_episodes()
    norms = [algorithm.learner.body[layer][1] for layer in range(4)]
    running = [[(norm.running_mean[k], norm.running_var[k]) for norm in norms] for k in range(K)]
    leaves, scores = tasks.copies(algorithm), algorithm.predict(episodes)
    stages = algorithm.stages(episodes)
    for task in range(2):
        outputs, _ = plain(leaves, tasks.one_task(episodes, task), "conv4", running=running)
        torch.testing.assert_close(scores[task], outputs[-1], rtol=0, atol=1e-10)
        torch.testing.assert_close(stages[1][task], outputs[0], rtol=0, atol=1e-10)
    assert not torch.allclose(algorithm.train().predict(episodes), scores, atol=1e-2)


@pytest.mark.parametrize(("running", "mode"), [(True, "running"), (False, "batch")])
def test_whether_other_queries_move_a_score(running, mode):
    algorithm, episodes = trained(running), tasks.some_episodes()
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before, after = (algorithm.predict(e) for e in (episodes, episodes._replace(query_x=others)))
    same = torch.allclose(before[:, 0], after[:, 0], rtol=0, atol=1e-12)
    assert same == running
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=0, atol=1e-2)
    assert batch_norm(algorithm) == mode


def test_tests_move_no_statistics():
    algorithm, episodes = trained(running=True), tasks.some_episodes()
    before = {key: b.clone() for key, b in algorithm.named_buffers()}
    with torch.no_grad():
        algorithm.predict(episodes)
        algorithm.predict_and_measure(episodes)[1]
    assert all(torch.equal(b, before[key]) for key, b in algorithm.named_buffers())
    assert algorithm.outer_step == 5


def test_rates_start_at_the_inner_rate():
    """One for each parameter tensor and step, batch norm's apart."""
    made, settings = tasks.FAMILY["mamlpp"]
    algorithm = made(MLP(tasks.SHAPE, [6, 4], "batch"), **{**settings, "inner_lr": 0.25})
    assert [alpha.tolist() for alpha in algorithm.rates] == [[0.25] * K] * 6
    assert len(list(algorithm.learner.parameters())) == 6 + 4


def test_no_inner_step_is_refused():
    with pytest.raises(UserError, match=r"^algo.inner_steps=0: it must be at least 1$"):
        tasks.algorithm("mamlpp", inner_steps=0)


def test_more_measured_steps_than_rates_are_refused():
    with pytest.raises(UserError, match=r"^algo.measured_steps=\[0, 5\]: .* first 3 steps"):
        tasks.algorithm("mamlpp", measured_steps=[0, 5])
    with pytest.raises(UserError, match=r"algo.measured_steps=.* first 2 steps"):
        tasks.algorithm("mamlpp", inner_steps=2)
