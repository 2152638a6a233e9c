import pytest
import torch

from metarun.backbones.mlp import MLP
from metarun.errors import UserError
from tests.algos import tasks


def parameters_and_rates(leaves):
    """The learner's parameters by name, and the rate of each by the same names."""
    params = {name: p for name, p in leaves.items() if name.startswith("learner.")}
    alphas = [p for name, p in leaves.items() if name.startswith("alpha.")]
    rates = dict(zip(params, alphas, strict=True))
    assert all(rates[name].shape == p.shape for name, p in params.items())
    return params, rates


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_it_equals_the_plain_loop(kind, mode, steps):
    """Scores, loss and the gradient of every parameter and of every number of the rates."""
    algorithm = tasks.algorithm("meta_sgd", kind, mode, inner_steps=steps)
    leaves, episodes = tasks.copies(algorithm), tasks.some_episodes()
    outputs = tasks.outputs_of(*parameters_and_rates(leaves), episodes, steps, kind, mode)
    tasks.assert_equals_reference(algorithm, episodes, outputs, leaves)


@pytest.mark.parametrize(("kind", "mode"), [("mlp", "none"), ("conv4", "batch")])
def test_meta_gradients_equal_central_differences(kind, mode):
    """Of the rates too."""
    algorithm, episodes = tasks.algorithm("meta_sgd", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: algorithm.loss(episodes)[0])


def test_a_rate_s_gradient_by_hand():
    """After one step it is minus the product of the two gradients, number by number (eq. 3)."""
    algorithm, episodes = tasks.algorithm("meta_sgd"), tasks.some_episodes(tasks=1)
    params, rates = parameters_and_rates(tasks.copies(algorithm))
    support_x, support_y, query_x, query_y = (tensor[0] for tensor in episodes[:4])
    inner = tasks.gradients(tasks.loss_of(tasks.forward(params, support_x), support_y), params)
    last = {
        name: (p - rates[name] * inner[name]).detach().requires_grad_()
        for name, p in params.items()
    }
    outer = tasks.gradients(tasks.loss_of(tasks.forward(last, query_x), query_y), last)
    got = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    for i, name in enumerate(params):
        wanted = -inner[name] * outer[name]
        torch.testing.assert_close(got[f"alpha.{i}"], wanted, rtol=0, atol=1e-10)


def test_first_order():
    """Rates still learn: the constants that they multiply are not zero."""
    algorithm = tasks.algorithm("meta_sgd", inner_steps=3, first_order=True)
    leaves, episodes = tasks.copies(algorithm), tasks.some_episodes()
    arguments = *parameters_and_rates(leaves), episodes, 3, "conv4", "batch"
    outputs = tasks.outputs_of(*arguments, first_order=True)
    tasks.assert_equals_reference(algorithm, episodes, outputs, leaves)
    first = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    loss = tasks.loss_of(tasks.outputs_of(*arguments), episodes.query_y)
    second = tasks.gradients(loss, leaves)
    assert max((second[name] - g).abs().max() for name, g in first.items()) > 1e-2
    assert max(g.abs().max() for name, g in first.items() if name.startswith("alpha.")) > 1e-3


def test_rates_start_at_one_value_drawn_between_the_bounds():
    torch.manual_seed(0)
    made, settings = tasks.FAMILY["meta_sgd"]
    settings = settings | {"lowest_lr": 0.005, "highest_lr": 0.1}
    starts = []
    for _ in range(100):
        algorithm = made(MLP((4,), [3], "none"), **settings)
        values = torch.cat([alpha.detach().flatten() for alpha in algorithm.alpha])
        assert len(values) == sum(p.numel() for p in algorithm.learner.parameters())
        assert len(values.unique()) == 1
        starts.append(values[0].item())
    assert 0.005 <= min(starts) < 0.015
    assert 0.09 < max(starts) <= 0.1


@pytest.mark.parametrize(("lowest", "highest"), [(-0.1, 0.1), (0.2, 0.1)])
def test_bounds_that_are_none_are_refused(lowest, highest):
    with pytest.raises(UserError, match=rf"^algo.lowest_lr={lowest}: .* algo.highest_lr={highest}"):
        tasks.algorithm("meta_sgd", lowest_lr=lowest, highest_lr=highest)


def test_a_regression_equals_the_plain_loop():
    algorithm = tasks.algorithm("meta_sgd", backbone=MLP((1,), [6, 4], "none"), way=1)
    leaves, episodes = tasks.copies(algorithm), tasks.some_functions()
    outputs = tasks.outputs_of(*parameters_and_rates(leaves), episodes, 1, "mlp", "none")
    tasks.assert_equals_reference(algorithm, episodes, outputs, leaves)
