"""What holds of MAML and of all that is built upon its inner loop."""

import gc

import pytest
import torch

from metarun.device import Device
from metarun.errors import UserError
from metarun.runs.report import batch_norm
from metarun.testing.answers import answers
from tests.algos import tasks

NAMES = list(tasks.FAMILY)
REFUSING = [name for name in NAMES if name != "mamlpp"]  # which has running statistics
CPU = Device(torch.device("cpu"), "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_many_tasks_at_once_equal_one_at_a_time(name):
    """Scores, the loss and its gradient."""
    algorithm, episodes = tasks.algorithm(name), tasks.some_episodes(tasks=3)
    alone = [tasks.one_task(episodes, task) for task in range(3)]
    scores = torch.cat([algorithm.predict(task) for task in alone])
    torch.testing.assert_close(algorithm.predict(episodes), scores, rtol=0, atol=1e-11)

    def loss_of(episodes):
        algorithm.outer_step = 4  # of MAML++
        return algorithm.loss(episodes)[0]

    losses = torch.stack([loss_of(task) for task in alone])
    torch.testing.assert_close(loss_of(episodes), losses.mean(), rtol=0, atol=1e-11)
    gradient = tasks.meta_gradient(algorithm, lambda: loss_of(episodes))
    of_tasks = [tasks.meta_gradient(algorithm, lambda t=task: loss_of(t)) for task in alone]
    mean = {key: sum(g[key] for g in of_tasks) / 3 for key in gradient}
    tasks.assert_equal_gradients(gradient, mean)
    assert losses.std() > 1e-3


@pytest.mark.parametrize("name", ["maml", "boil", "meta_sgd", "proto_maml"])
def test_checkpointed_steps_give_the_same_gradient(name):
    """Of all that is learnt: Meta-SGD's rates and the way through the prototypes too."""
    episodes = tasks.some_episodes()
    plain, checkpointed = (
        tasks.algorithm(name, inner_steps=3, checkpoint_steps=checkpointed)
        for checkpointed in (False, True)
    )
    wanted, got = (
        tasks.meta_gradient(algorithm, lambda a=algorithm: a.loss(episodes)[0])
        for algorithm in (plain, checkpointed)
    )
    tasks.assert_equal_gradients(got, wanted)
    with torch.no_grad():
        assert torch.equal(checkpointed.predict(episodes), plain.predict(episodes))


@pytest.mark.parametrize("name", NAMES)
def test_a_permuted_support_gives_the_same_scores(name):
    algorithm, episodes = tasks.algorithm(name), tasks.some_episodes()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = episodes._replace(
        support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order]
    )
    scores = algorithm.predict(episodes)
    torch.testing.assert_close(algorithm.predict(permuted), scores, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_relabelling_the_classes_permutes_the_scores(name):
    """A learnt head's rows are permuted along; Proto-MAML has none, and its scores just follow."""
    algorithm, episodes = tasks.algorithm(name), tasks.some_episodes()
    order = torch.tensor([2, 0, 1])  # class k is now called order[k]
    relabelled = episodes._replace(
        support_y=order[episodes.support_y], query_y=order[episodes.query_y]
    )
    scores, stale = algorithm.predict(episodes), algorithm.predict(relabelled)
    with torch.no_grad():
        # Meta-SGD's rates of the head belong to its rows too.
        rows = [p for key, p in algorithm.named_parameters() if "head" in key]
        if name == "meta_sgd":
            rows += list(algorithm.alpha)[-2:]
        for p in rows:
            if len(p):
                p[order] = p.clone()
    permuted = algorithm.predict(relabelled)
    torch.testing.assert_close(permuted[..., order], scores, rtol=0, atol=1e-10)
    assert not torch.allclose(permuted, scores, atol=0.01)
    assert torch.allclose(stale, permuted, rtol=0, atol=1e-10) == (name == "proto_maml")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_but_what_training_moves(name):
    """Neither loss, predict, stages nor measures touch a parameter; a training step can."""
    algorithm, episodes = tasks.algorithm(name), tasks.some_episodes()
    before = tasks.copies(algorithm)
    algorithm.loss(episodes)[0].backward()
    for answer in (algorithm.predict, algorithm.stages, algorithm.predict_and_measure):
        answer(episodes)
    for key, p in algorithm.named_parameters():
        assert torch.equal(p, before[key])
    assert {p.grad is not None for p in algorithm.parameters() if len(p)} == {True}


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_is_kept_without_gradients(name):
    algorithm, episodes = tasks.algorithm(name).eval(), tasks.some_episodes()
    assert algorithm.predict(episodes).requires_grad
    with torch.no_grad():
        outputs = [algorithm.predict(episodes), *algorithm.stages(episodes).values()]
        outputs += algorithm.predict_and_measure(episodes)[1].values()
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in outputs)


class Listed:
    """Fixed episodes, made anew each time: what an evaluation holds is its own."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, rows):
        return tasks.some_episodes(tasks=len(range(self.count)[rows]), seed=rows.start)


@pytest.fixture
def live_bytes():
    """Counts those of all the tensors made since."""
    gc.collect()
    gc.freeze()  # what there is by now is not looked at: it takes long

    def count():
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    yield count
    gc.unfreeze()


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_an_evaluation_does_not_grow_with_the_episodes(name, live_bytes):
    """Before the last of eight batches there is no more than before the second, but for figures."""
    algorithm = tasks.algorithm(name, kind="mlp", mode="none")
    seen, predict = [], algorithm.predict

    def counting(episodes):
        seen.append(live_bytes())
        outputs = predict(episodes)
        assert not outputs.requires_grad  # a graph's tensors cannot be seen
        return outputs

    algorithm.predict = counting
    figures = answers(algorithm, Listed(16), tasks=2, device=CPU)
    assert len(seen) == 8
    assert {len(values) for values in figures.values()} == {16}
    an_example = 256 * 8  # of which a task has twelve
    assert seen[1] > 24 * an_example  # so it sees the tensors
    assert seen[7] - seen[1] < an_example


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_the_predictions_at_that_number_of_steps(name):
    """`predict_and_measure` counts them."""
    algorithm = tasks.algorithm(name, inner_steps=3)
    episodes = tasks.some_episodes(tasks=4, query=5)
    stages, (outputs, measures) = (
        algorithm.stages(episodes),
        algorithm.predict_and_measure(episodes),
    )
    assert torch.equal(outputs, algorithm.predict(episodes))
    assert sorted(stages) == [0, 1, 3]
    assert list(measures) == [f"accuracy_after_{n}" for n in (0, 1, 3)]
    for steps, scores in stages.items():
        right = (scores.argmax(dim=-1) == episodes.query_y).double().mean(dim=1)
        assert torch.equal(measures[f"accuracy_after_{steps}"], right)
        algorithm.test_steps = algorithm.inner_steps = steps
        if steps or name != "mamlpp":  # which has one step at least
            torch.testing.assert_close(algorithm.predict(episodes), scores, rtol=0, atol=1e-11)
    assert not torch.allclose(stages[0], stages[1], atol=1e-2)
    assert not torch.allclose(stages[1], stages[3], atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_no_steps_need_be_measured(name):
    algorithm, episodes = tasks.algorithm(name, measured_steps=[]), tasks.some_episodes()
    assert algorithm.stages(episodes) == {}
    outputs, measures = algorithm.predict_and_measure(episodes)
    assert measures == {}
    assert torch.equal(outputs, algorithm.predict(episodes))


@pytest.mark.parametrize("mode", ["batch", "support", "none"])
@pytest.mark.parametrize("name", REFUSING)
def test_whether_other_queries_move_a_score(name, mode):
    """With the batch's statistics they do, and with those of the support set they do not."""
    algorithm, episodes = tasks.algorithm(name, mode=mode).eval(), tasks.some_episodes()
    others = episodes.query_x.clone()
    others[:, 1:] = 3 * others[:, 1:] + 1
    before, after = (algorithm.predict(e) for e in (episodes, episodes._replace(query_x=others)))
    same = torch.allclose(before[:, 0], after[:, 0], rtol=0, atol=1e-12)
    assert same == (mode != "batch")
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=0, atol=1e-2)
    assert batch_norm(algorithm) == mode


@pytest.mark.parametrize("name", REFUSING)
def test_running_statistics_are_refused(name):
    with pytest.raises(UserError, match=r"^backbone.batch_norm=running: .* support .* none$"):
        tasks.algorithm(name, mode="running")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "proto_maml"])
def test_another_way_is_refused(name):
    algorithm = tasks.algorithm(name)
    for call in (algorithm.predict, algorithm.loss, algorithm.stages):
        with pytest.raises(UserError, match=r"algo.way=3 .* way=4: set way=4, or sampler.way"):
            call(tasks.some_episodes(way=4))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "anil"])
def test_bfloat16_has_no_influence(name):
    """Under autocast scores and gradients are what they are without, bit for bit. (ANIL's
    features may be coarse.)"""
    algorithm, episodes = tasks.algorithm(name).float(), in_float32(tasks.some_episodes())

    def loss():
        algorithm.outer_step = 4  # of MAML++
        return algorithm.loss(episodes)[0]

    def under_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return loss()

    scores, gradient = algorithm.predict(episodes), tasks.meta_gradient(algorithm, loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(algorithm.predict(episodes), scores)
    assert scores.dtype == torch.float32
    got = tasks.meta_gradient(algorithm, under_autocast)
    assert all(torch.equal(got[key], g) for key, g in gradient.items())


def in_float32(episodes):
    return episodes._replace(support_x=episodes.support_x.float(), query_x=episodes.query_x.float())


@pytest.mark.parametrize(
    "name", ["maml", "fomaml", "anil", "boil", "meta_sgd", "proto_maml", "mamlpp"]
)
def test_from_the_command_line(metarun, name):
    results = metarun.run(f"algo={name}", f"name={name}", "sampler.tasks=2")
    assert results["status"] == "finished"
    test = results["test"]
    assert test["batch_norm"] == ("support" if name == "proto_maml" else "batch")
    assert 0 <= test["accuracy"] <= 1
    steps = [0, 1, 3, 5] if name == "mamlpp" else [0, 1, 3, 5, 10]
    assert list(test["measures"])[: len(steps)] == [f"accuracy_after_{n}" for n in steps]
    if name not in ("mamlpp", "meta_sgd"):  # which test with 5 steps, and with one
        assert test["measures"]["accuracy_after_3"]["mean"] == pytest.approx(test["accuracy"])
