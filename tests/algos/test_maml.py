import pytest
import torch

from metarun.algos.maml import MAML
from metarun.backbones.mlp import MLP
from metarun.data.functions import sinusoid
from metarun.samplers.functions import Functions
from tests.algos import tasks

RATE = tasks.INNER["inner_lr"]


def regression(**settings):
    """MAML of one real value."""
    return tasks.algorithm("maml", backbone=MLP((1,), [6, 4], "none"), way=1, **settings)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_it_equals_the_plain_loop(kind, mode, steps):
    """Scores, loss and the gradient of every parameter; all of them adapt."""
    algorithm = tasks.algorithm("maml", kind, mode, inner_steps=steps, test_steps=steps)
    params, episodes = tasks.copies(algorithm), tasks.some_episodes()
    rates = dict.fromkeys(params, RATE)
    outputs = tasks.outputs_of(params, rates, episodes, steps, kind, mode)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)


@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_meta_gradients_equal_central_differences(kind, mode):
    algorithm, episodes = tasks.algorithm("maml", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: algorithm.loss(episodes)[0])


def test_first_order():
    """Gradients of the query loss at the adapted parameters, which the second order's are not."""
    algorithm = tasks.algorithm("maml", inner_steps=3, test_steps=3, first_order=True)
    params, episodes = tasks.copies(algorithm), tasks.some_episodes()
    rates = dict.fromkeys(params, RATE)
    outputs = tasks.outputs_of(params, rates, episodes, 3, "conv4", "batch", first_order=True)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
    second = tasks.outputs_of(params, rates, episodes, 3, "conv4", "batch")
    assert torch.equal(second, outputs)
    loss = tasks.loss_of(second, episodes.query_y)
    with pytest.raises(AssertionError):
        tasks.assert_equal_gradients(
            tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0]),
            tasks.gradients(loss, params),
        )


def test_no_inner_steps_are_joint_training():
    """One network on all the queries at once, without batch norm, which is a task's own."""
    algorithm = tasks.algorithm("maml", mode="none", inner_steps=0)
    episodes = tasks.some_episodes()
    scores = algorithm.learner(episodes.query_x.flatten(0, 1))
    wanted = torch.nn.functional.cross_entropy(scores, episodes.query_y.flatten())
    wanted = tasks.gradients(wanted, dict(algorithm.named_parameters()))
    got = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    tasks.assert_equal_gradients(got, wanted)


def test_training_and_test_have_steps_of_their_own():
    episodes = tasks.some_episodes()
    algorithm = tasks.algorithm("maml", inner_steps=1, test_steps=3)
    stages = algorithm.stages(episodes)
    assert torch.equal(algorithm.predict(episodes), stages[3])
    loss, _ = algorithm.loss(episodes)
    torch.testing.assert_close(loss, tasks.loss_of(stages[1], episodes.query_y))
    assert not torch.allclose(loss, tasks.loss_of(stages[3], episodes.query_y))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_regression_equals_the_plain_loop(steps, first_order):
    """Mean squared errors, inside and outside."""
    algorithm = regression(inner_steps=steps, test_steps=steps, first_order=first_order)
    params, episodes = tasks.copies(algorithm), tasks.some_functions()
    rates = dict.fromkeys(params, RATE)
    outputs = tasks.outputs_of(params, rates, episodes, steps, "mlp", "none", first_order)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)


def test_stages_of_a_regression():
    algorithm, episodes = regression(), tasks.some_functions(tasks=3)
    stages, (outputs, measures) = (
        algorithm.stages(episodes),
        algorithm.predict_and_measure(episodes),
    )
    assert torch.equal(outputs, algorithm.predict(episodes))
    assert list(measures) == [f"mse_after_{n}" for n in (0, 1, 3)]
    for steps, values in stages.items():
        assert values.shape == episodes.query_y.shape
        wanted = (values - episodes.query_y).square().mean(dim=(1, 2))
        torch.testing.assert_close(measures[f"mse_after_{steps}"], wanted)


def test_it_learns_to_adapt_to_sine_curves():
    """A step on ten points helps after training, by far more than before it."""
    torch.manual_seed(0)
    data = sinusoid([0.1, 5.0], [0.0, 3.14159], [-5.0, 5.0]).open("train")
    algorithm = MAML(MLP((1,), [40, 40], "none"), 1, 0.01, 1, 1, False, [0, 1, 5])
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
    assert after["mse_after_1"] < 0.5 * before["mse_after_1"]
    assert after["mse_after_5"] < after["mse_after_1"] < 0.7 * after["mse_after_0"]


@pytest.mark.drawing
@pytest.mark.parametrize("name", ["maml", "anil"])
def test_a_regression_from_the_command_line(metarun, name):
    metarun.main(
        *("data=sinusoid", f"algo={name}", "algo.inner_lr=0.01", "sampler.tasks=2"),
        *("tracker=none", "device=cpu", "train.steps=4", "train.val_every=2"),
        *("eval.episodes=6", "eval.val_episodes=4", "hydra.run.dir=outputs/x"),
    )
    results = metarun.results("x")
    test, folder = results["test"], metarun.folder / "outputs" / "x"
    assert results["status"] == "finished"
    assert test["metric"] == "mse"
    assert test["mse"] > 0
    assert results["val"]["mse"] > 0
    assert list(test["measures"]) == [f"mse_after_{n}" for n in (0, 1, 3, 5, 10)]
    assert test["measures"]["mse_after_3"]["mean"] == pytest.approx(test["mse"])
    assert (folder / "episode.png").stat().st_size > 1000
    assert (folder / "curves.png").stat().st_size > 1000
    assert len((folder / "episodes.csv").read_text().splitlines()) == 7
