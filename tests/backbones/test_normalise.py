"""Beside torch's own batch norm, of which only the first derivatives under vmap are right."""

import pytest
import torch
from torch.nn import functional as F

from metarun.backbones.normalise import normalise

EXACT = {"rtol": 0, "atol": 1e-11}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torchs(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)


def second(normalised, *inputs):
    """Gradients by x, weight and bias of a number made of the gradients by them."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    loss = normalised(*inputs).pow(3).sum()
    grads = torch.autograd.grad(loss, inputs, create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in grads), inputs)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2), (3, 3, 2, 4)])
def test_it_and_its_derivatives_are_those_of_torch(shape):
    inputs = normal(*shape), normal(3, seed=1), normal(3, seed=2)

    def ours(x, weight, bias):
        return normalise(x, weight, bias, 1e-5)

    torch.testing.assert_close(ours(*inputs), torchs(*inputs), **EXACT)
    for got, wanted in zip(second(ours, *inputs), second(torchs, *inputs), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (2, 1, None), (None, 0, 1)])
def test_tasks_at_once_equal_one_at_a_time(in_dims):
    """Whichever of the inputs differ between the tasks, and wherever their dimension stands."""
    tasks, inputs = 4, []
    for k, (shape, d) in enumerate(zip([(5, 3, 2), (3,), (3,)], in_dims, strict=True)):
        sizes = list(shape)
        if d is not None:
            sizes.insert(d, tasks)
        inputs.append(normal(*sizes, seed=k))

    def at_once(x, weight, bias):
        return torch.vmap(lambda *task: normalise(*task, 1e-5), in_dims)(x, weight, bias)

    def in_turn(*all_of):
        chosen = [
            [t if d is None else t.select(d, k) for t, d in zip(all_of, in_dims, strict=True)]
            for k in range(tasks)
        ]
        return torch.stack([torchs(*task) for task in chosen])

    torch.testing.assert_close(at_once(*inputs), in_turn(*inputs), **EXACT)
    for got, wanted in zip(second(at_once, *inputs), second(in_turn, *inputs), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)
