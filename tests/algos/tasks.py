"""Made-up tasks, tiny networks, and inner loops written plainly: one task, one step at a time.

All in float64. The reference knows nothing of torch.func, of vmap or of the networks' own forward
passes: it is what the vectorised algorithms are compared with.
"""

from functools import partial

import torch
from torch.nn import functional as F

from metarun.algos.anil import ANIL
from metarun.algos.boil import BOIL
from metarun.algos.maml import MAML
from metarun.algos.mamlpp import MAMLPlusPlus
from metarun.algos.meta_sgd import MetaSGD
from metarun.algos.proto_maml import ProtoMAML
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes

WAY, SHAPE = 3, (1, 16, 16)
NETWORKS = {
    "mlp": partial(MLP, SHAPE, [6, 4]),
    "conv4": partial(Conv4, SHAPE, 3),
    "strided": partial(Conv4, SHAPE, 3, strides=True),
}
# Kinds of network and modes of batch norm that an inner loop meets.
KINDS = [
    *(("mlp", "none"), ("mlp", "batch"), ("conv4", "batch")),
    *(("conv4", "support"), ("strided", "batch")),
]

INNER = {"inner_lr": 0.3, "inner_steps": 1, "test_steps": 2, "first_order": False}
MEASURED = {"measured_steps": [0, 1, 3]}
FAMILY = {
    "maml": (MAML, {"way": WAY, **INNER, **MEASURED}),
    "anil": (ANIL, {"way": WAY, **INNER, **MEASURED}),
    "boil": (BOIL, {"way": WAY, **INNER, **MEASURED}),
    "meta_sgd": (
        MetaSGD,
        {"way": WAY, "lowest_lr": 0.1, "highest_lr": 0.5, "inner_steps": 1}
        | {"first_order": False, **MEASURED},
    ),
    "proto_maml": (ProtoMAML, {**INNER, **MEASURED}),
    "mamlpp": (
        MAMLPlusPlus,
        {"way": WAY, "inner_lr": 0.3, "inner_steps": 3, "multi_step_loss_steps": 10}
        | {"first_order_steps": 0, "running_statistics": False, **MEASURED},
    ),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_episodes(tasks=2, way=WAY, shot=2, query=2, shape=SHAPE, seed=0):
    """Random examples whose labels are in no order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(each):
        return torch.rand(tasks, way * each, generator=generator).argsort(dim=1) % way

    x = normal(tasks, way * (shot + query), *shape, seed=seed)
    x = x * torch.linspace(0.5, 2, tasks).double().view(-1, *[1] * (x.ndim - 1))
    support = way * shot
    return Episodes(x[:, :support], labels(shot), x[:, support:], labels(query), way)


def some_functions(tasks=2, shot=4, query=5, seed=0):
    """Parabolas, as regressions."""
    x, bends = normal(tasks, shot + query, 1, seed=seed), normal(tasks, 1, 1, seed=seed + 1)
    y = bends * x.square() + 0.5
    return Episodes(x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:], way=1)


def one_task(episodes, task):
    return Episodes(*(tensor[task : task + 1] for tensor in episodes[:4]), way=episodes.way)


def generic(module):
    """The module in float64, its scales and shifts no longer ones and zeros."""
    module.double()
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=100 + seed))
    return module


def algorithm(name, kind="conv4", mode="batch", backbone=None, **settings):
    """One of the FAMILY on a network of one of the KINDS; `settings` in place of its own."""
    made, defaults = FAMILY[name]
    torch.manual_seed(1)
    backbone = backbone or NETWORKS[kind](batch_norm=mode)
    return generic(made(backbone, **{**defaults, **settings}))


def copies(module):
    """Its parameters by name, as leaves of their own."""
    return {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}


def normalised(x, weight, bias, rows=None):
    """x with the mean and variance of its first `rows` rows taken out."""
    others = [d for d in range(x.ndim) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    var, mean = torch.var_mean(x[:rows], others, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def forward(params, x, kind="conv4", normalise=normalised):
    """What the network of this kind with a linear head gives; `params` in order of the layers."""
    *body, head = zip(*[iter(params.values())] * 2, strict=True)
    x = x if body and body[0][0].ndim == 4 else x.flatten(1)
    for i, (weight, bias) in enumerate(body):
        if weight.ndim == 1:
            x = normalise(x, weight, bias)
        elif weight.ndim == 2:
            x = F.linear(x, weight, bias)
        else:
            x = F.conv2d(x, weight, bias, stride=2 if kind == "strided" else 1, padding=1)
        if weight.ndim == 1 or i + 1 == len(body) or body[i + 1][0].ndim > 1:
            x = x.relu()
            x = F.max_pool2d(x, 2) if kind == "conv4" else x
    x = x.mean(dim=(2, 3)) if kind == "strided" else x.flatten(1)
    return F.linear(x, *head)


def loss_of(outputs, targets):
    """Mean over examples of minus the logarithm of softmax, or of the squared error."""
    if targets.is_floating_point():
        return (outputs - targets).square().mean()
    outputs, targets = outputs.flatten(0, -2), targets.flatten()
    chosen = outputs[torch.arange(len(targets)), targets]
    return (outputs.exp().sum(dim=1).log() - chosen).mean()


def adapted(params, rates, x, y, steps, kind, first_order=False):
    """`params` after so many steps down the loss of one support set, at a rate for each name."""
    for _ in range(steps):
        # Clones: where one parameter was made from another, the slope along each alone counts.
        at = {name: p.clone() for name, p in params.items()}
        moving = [at[name] for name in rates]
        loss = loss_of(forward(at, x, kind), y)
        grads = torch.autograd.grad(loss, moving, create_graph=True)
        grads = [g.detach() for g in grads] if first_order else grads
        moved = {name: p - rates[name] * g for name, p, g in zip(rates, moving, grads, strict=True)}
        params = params | moved
    return params


def answers(params, support_x, query_x, kind, mode):
    """Query outputs of one task; in mode "support" with the support set's statistics."""
    if mode != "support":
        return forward(params, query_x, kind)
    rows = len(support_x)
    both = torch.cat([support_x, query_x])
    return forward(params, both, kind, partial(normalised, rows=rows))[rows:]


def outputs_of(params, rates, episodes, steps, kind, mode, first_order=False, initial=None):
    """Query outputs [T, Q, way] after the inner loop of each task in turn.

    `initial(params, support_x, support_y)` makes a task's first parameters.
    """
    outputs = []
    for support_x, support_y, query_x, _ in zip(*episodes[:4], strict=True):
        first = initial(params, support_x, support_y) if initial else params
        last = adapted(first, rates, support_x, support_y, steps, kind, first_order)
        outputs.append(answers(last, support_x, query_x, kind, mode))
    return torch.stack(outputs)


def gradients(loss, leaves):
    """d loss / d leaf by name, zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def meta_gradient(algorithm, loss):
    """What a training step gets: loss().backward(), the parameters' gradients by name."""
    algorithm.zero_grad(set_to_none=True)
    loss().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in algorithm.named_parameters()
    }


def assert_equal_gradients(got, wanted):
    """The same to rounding, by name, and not all zero."""
    assert list(got) == list(wanted)
    for name, g in wanted.items():
        difference = (got[name] - g).abs().max().item() if g.numel() else 0.0
        assert difference <= 1e-9, f"{name}: {got[name]}, not {g}"
    assert max(g.abs().max() for g in wanted.values() if g.numel()) > 1e-2


def assert_equals_reference(algorithm, episodes, outputs, leaves):
    """Predictions, loss and every meta-gradient are those of the reference's query `outputs`, which
    depend on `leaves`, copies of the algorithm's parameters."""
    loss = loss_of(outputs, episodes.query_y)
    torch.testing.assert_close(algorithm.predict(episodes), outputs, rtol=0, atol=1e-10)
    got, metrics = algorithm.loss(episodes)
    torch.testing.assert_close(got, loss, rtol=0, atol=1e-11)
    (figure,) = metrics.values()
    if list(metrics) == ["mse"]:
        assert abs(figure - loss) <= 1e-11
    else:
        right = (outputs.argmax(dim=-1) == episodes.query_y).double().mean()
        assert abs(figure - right) <= 1e-6
    gradient = meta_gradient(algorithm, lambda: algorithm.loss(episodes)[0])
    assert_equal_gradients(gradient, gradients(loss, leaves))


def assert_slopes(algorithm, loss, step=1e-7):
    """The meta-gradient of every parameter tensor equals the central difference of the loss along
    a random direction."""
    gradient, largest = meta_gradient(algorithm, loss), 0.0
    for seed, (name, p) in enumerate(algorithm.named_parameters()):
        direction, start, values = normal(*p.shape, seed=seed), p.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                p.copy_(start + sign * step * direction)
            values.append(loss().item())
        with torch.no_grad():
            p.copy_(start)
        slope = (values[0] - values[1]) / (2 * step)
        got = (gradient[name] * direction).sum().item()
        assert abs(got - slope) <= 1e-6 + 1e-5 * abs(slope), f"{name}: {got}, not {slope}"
        largest = max(largest, abs(slope))
    assert largest > 1e-2
