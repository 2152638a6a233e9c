import pytest

from metarun.backbones.mlp import MLP
from tests.algos import tasks

RATE = tasks.INNER["inner_lr"]


def body_rates(params):
    """A rate for each parameter of the body, and none for the head."""
    return {name: RATE for name in params if ".head." not in name}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_it_equals_the_plain_loop_over_the_body(kind, mode, steps):
    """Scores, loss and the gradient of every parameter, those of the head through both losses."""
    algorithm = tasks.algorithm("boil", kind, mode, inner_steps=steps, test_steps=steps)
    params, episodes = tasks.copies(algorithm), tasks.some_episodes()
    rates = body_rates(params)
    assert len(rates) == len(params) - 2
    outputs = tasks.outputs_of(params, rates, episodes, steps, kind, mode)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)


def test_first_order():
    """Inner gradients are constants to the head too."""
    settings = {"inner_steps": 3, "test_steps": 3, "first_order": True}
    algorithm, episodes = tasks.algorithm("boil", **settings), tasks.some_episodes()
    params = tasks.copies(algorithm)
    arguments = params, body_rates(params), episodes, 3, "conv4", "batch"
    outputs = tasks.outputs_of(*arguments, first_order=True)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
    loss = tasks.loss_of(tasks.outputs_of(*arguments), episodes.query_y)
    second = tasks.gradients(loss, params)
    first = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    assert max((second[name] - g).abs().max() for name, g in first.items()) > 1e-2


@pytest.mark.parametrize(("kind", "mode"), [("mlp", "none"), ("conv4", "batch")])
def test_meta_gradients_equal_central_differences(kind, mode):
    algorithm, episodes = tasks.algorithm("boil", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: algorithm.loss(episodes)[0])


def test_a_regression_equals_the_plain_loop():
    algorithm = tasks.algorithm("boil", backbone=MLP((1,), [6, 4], "none"), way=1, test_steps=1)
    params, episodes = tasks.copies(algorithm), tasks.some_functions()
    outputs = tasks.outputs_of(params, body_rates(params), episodes, 1, "mlp", "none")
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
