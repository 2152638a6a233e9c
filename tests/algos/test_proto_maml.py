import pytest
import torch

from metarun.algos.protonet import ProtoNet
from tests.algos import tasks

RATE = tasks.INNER["inner_lr"]


def with_prototypes(way, kind):
    """Makes a task's first parameters: the head of weights 2 c and biases −‖c‖² by a loop."""

    def initial(params, support_x, support_y):
        body = {name: p for name, p in params.items() if ".head." not in name}
        features = next(p for name, p in params.items() if name.endswith("head.weight")).shape[1]
        no_head = {"weight": torch.eye(features).double(), "bias": torch.zeros(features).double()}
        z = tasks.forward(body | no_head, support_x, kind)
        prototypes = []
        for label in range(way):
            members = [z[i] for i in range(len(z)) if support_y[i] == label]
            prototypes.append(sum(members) / len(members))
        weight = torch.stack([2 * c for c in prototypes])
        bias = torch.stack([-sum(number**2 for number in c) for c in prototypes])
        return body | {"learner.head.weight": weight, "learner.head.bias": bias}

    return initial


def plain_outputs(params, episodes, steps, kind, mode, first_order=False):
    rates = dict.fromkeys(params, RATE)
    initial = with_prototypes(episodes.way, kind)
    return tasks.outputs_of(
        params, rates, episodes, steps, kind, mode, first_order=first_order, initial=initial
    )


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "mode"), tasks.KINDS)
def test_it_equals_the_plain_loop(kind, mode, steps):
    """Scores, loss and the gradient of every parameter, through the prototypes too."""
    algorithm = tasks.algorithm("proto_maml", kind, mode, inner_steps=steps, test_steps=steps)
    params, episodes = tasks.copies(algorithm), tasks.some_episodes()
    outputs = plain_outputs(params, episodes, steps, kind, mode)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)


@pytest.mark.parametrize(("kind", "mode"), [("mlp", "none"), ("conv4", "batch")])
def test_meta_gradients_equal_central_differences(kind, mode):
    algorithm, episodes = tasks.algorithm("proto_maml", kind, mode), tasks.some_episodes()
    tasks.assert_slopes(algorithm, lambda: algorithm.loss(episodes)[0])


def test_first_order():
    """Inner gradients are constants; the prototypes still are not."""
    settings = {"inner_steps": 3, "test_steps": 3, "first_order": True}
    algorithm, episodes = tasks.algorithm("proto_maml", **settings), tasks.some_episodes()
    params = tasks.copies(algorithm)
    outputs = plain_outputs(params, episodes, 3, "conv4", "batch", first_order=True)
    tasks.assert_equals_reference(algorithm, episodes, outputs, params)
    loss = tasks.loss_of(plain_outputs(params, episodes, 3, "conv4", "batch"), episodes.query_y)
    second = tasks.gradients(loss, params)
    first = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    assert max((second[n] - g).abs().max() for n, g in first.items() if g.numel()) > 1e-2


def test_without_steps_it_is_a_prototypical_network():
    """Scores are minus the squared distances but for a term that the classes share; softmax is the
    same, and with it the loss and its gradient."""
    algorithm = tasks.algorithm("proto_maml", mode="none", inner_steps=0, test_steps=0)
    episodes = tasks.some_episodes()
    network = ProtoNet(algorithm.learner.body)
    scores, distances = algorithm.predict(episodes), network.predict(episodes)
    shared = scores - distances
    torch.testing.assert_close(shared, shared[..., :1].expand_as(shared), rtol=0, atol=1e-11)
    assert shared.abs().min() > 1e-4
    torch.testing.assert_close(scores.softmax(dim=-1), distances.softmax(dim=-1))
    torch.testing.assert_close(algorithm.loss(episodes)[0], network.loss(episodes)[0])
    got = tasks.meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    wanted = tasks.meta_gradient(network, lambda: network.loss(episodes)[0])
    bodies = (
        {name.split("body.")[-1].split("backbone.")[-1]: g for name, g in of.items()}
        for of in (got, wanted)
    )
    got, wanted = ({n: g for n, g in b.items() if n[0].isdigit()} for b in bodies)
    tasks.assert_equal_gradients(got, wanted)


@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 3), (3, 4)])
def test_another_way_and_shot_in_tests(way, shot):
    algorithm = tasks.algorithm("proto_maml")
    algorithm.loss(tasks.some_episodes(way=3, shot=2))
    episodes = tasks.some_episodes(way=way, shot=shot)
    scores = algorithm.predict(episodes)
    assert scores.shape == (2, 2 * way, way)
    wanted = plain_outputs(tasks.copies(algorithm), episodes, 2, "conv4", "batch")
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-10)


def test_unequal_shots():
    """Prototypes are means of as many examples as there are."""
    algorithm, episodes = tasks.algorithm("proto_maml"), tasks.some_episodes()
    episodes = episodes._replace(support_y=torch.tensor([[0, 0, 0, 1, 2, 2], [2, 1, 1, 1, 1, 0]]))
    wanted = plain_outputs(tasks.copies(algorithm), episodes, 2, "conv4", "batch")
    torch.testing.assert_close(algorithm.predict(episodes), wanted, rtol=0, atol=1e-10)


def test_the_head_is_no_learnt_parameter():
    algorithm = tasks.algorithm("proto_maml")
    learnt = sum(p.numel() for p in algorithm.parameters())
    assert learnt == sum(p.numel() for p in algorithm.learner.body.parameters())
    fresh = tasks.algorithm("proto_maml", inner_steps=2)
    fresh.load_state_dict(algorithm.state_dict())
