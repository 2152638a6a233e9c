import pytest
import torch

from metarun.algos.anil import ANIL
from metarun.backbones.mlp import MLP
from metarun.data.functions import sinusoid
from metarun.samplers.functions import Functions
from tests.algos import tasks

RATE = tasks.INNER["inner_lr"]


def head_rates(params):
    """A rate for the head, and none for the body."""
    return {name: RATE for name in params if ".head." in name}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_it_equals_the_plain_loop_over_the_head(kind, mode, steps):
    """Scores, loss and the gradient of every parameter, those of the body through both losses."""
    algorithm = tasks.algorithm("anil", kind, mode, inner_steps=steps, test_steps=steps)
    params, episodes = tasks.copies(algorithm), tasks.some_episodes()
    rates = head_rates(params)
    assert len(rates) == 2
    outputs = tasks.outputs_of(params, rates, episodes, steps, kind, mode)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order(steps):
    """Inner gradients are constants to the body too."""
    settings = {"inner_steps": steps, "test_steps": steps, "first_order": True}
    algorithm, episodes = tasks.algorithm("anil", **settings), tasks.some_episodes()
    params = tasks.copies(algorithm)
    arguments = params, head_rates(params), episodes, steps, "conv4", "batch"
    outputs = tasks.outputs_of(*arguments, first_order=True)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
    loss = tasks.loss_of(tasks.outputs_of(*arguments), episodes.query_y)
    second = tasks.gradients(loss, params)
    first = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    assert max((second[name] - g).abs().max() for name, g in first.items()) > 1e-2


@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_meta_gradients_equal_central_differences(kind, mode):
    algorithm, episodes = tasks.algorithm("anil", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: algorithm.loss(episodes)[0])


def test_a_regression_equals_the_plain_loop():
    algorithm = tasks.algorithm("anil", backbone=MLP((1,), [6, 4], "none"), way=1, test_steps=1)
    params, episodes = tasks.copies(algorithm), tasks.some_functions()
    outputs = tasks.outputs_of(params, head_rates(params), episodes, 1, "mlp", "none")
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
    _, measures = algorithm.predict_and_measure(episodes)
    assert list(measures) == [f"mse_after_{n}" for n in (0, 1, 3)]


def test_bfloat16_stops_at_the_features():
    """Under autocast the scores are those of a head on coarse features, adapted in float32."""
    algorithm, episodes = tasks.algorithm("anil", "mlp", "none").float(), tasks.some_episodes()
    episodes = episodes._replace(
        support_x=episodes.support_x.float(), query_x=episodes.query_x.float()
    )
    with torch.autocast("cpu", torch.bfloat16):
        scores = algorithm.predict(episodes)
        coarse = [algorithm.learner.body(x.flatten(0, 1)) for x in (episodes[0], episodes[2])]
    assert coarse[0].dtype == torch.bfloat16
    assert scores.dtype == torch.float32
    params = {
        name: p.detach().requires_grad_() for name, p in algorithm.learner.head.named_parameters()
    }
    support, query = (z.float().unflatten(0, (2, -1)) for z in coarse)
    for task in range(2):
        head = tasks.adapted(
            params, dict.fromkeys(params, RATE), support[task], episodes.support_y[task], 2, "mlp"
        )
        wanted = tasks.forward(head, query[task], "mlp")
        torch.testing.assert_close(scores[task], wanted, rtol=0, atol=1e-5)


def test_it_learns_features_of_sine_curves():
    """A few steps of the head on ten points help after training, by far more than before it."""
    torch.manual_seed(0)
    data = sinusoid([0.1, 5.0], [0.0, 3.14159], [-5.0, 5.0]).open("train")
    algorithm = ANIL(MLP((1,), [40, 40], "none"), 1, 0.05, 3, 3, False, [0, 3])
    draw, generator = Functions(10, 10, 25), torch.Generator().manual_seed(0)
    test = Functions(10, 20, 200)(data, torch.Generator().manual_seed(1))

    def errors():
        with torch.no_grad():
            return {
                name: v.mean().item() for name, v in algorithm.predict_and_measure(test)[1].items()
            }

    before, optimizer = errors(), torch.optim.Adam(algorithm.parameters(), 0.003)
    for _ in range(300):
        optimizer.zero_grad()
        algorithm.loss(draw(data, generator))[0].backward()
        optimizer.step()
    after = errors()
    assert after["mse_after_3"] < 0.5 * before["mse_after_3"]
    assert after["mse_after_3"] < 0.7 * after["mse_after_0"]
