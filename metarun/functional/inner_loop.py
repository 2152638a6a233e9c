"""Gradient descent on every task's support set, for all tasks at once and differentiable.

Shapes: T tasks, S support and Q query examples of a task. Nothing here changes a module's own
parameters, and under torch.no_grad nothing keeps a graph.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from metarun.backbones.batch_norm import mode_of, statistics_of_first
from metarun.backbones.layer_norm import is_wrong_in_inner_loops
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.objective import task_loss

Params = dict[str, Tensor]
Rates = Mapping[str, float | Tensor]


def descent(
    loss: Callable[[Params], Tensor], params: Params, rates: Rates, steps: int, first_order: bool
) -> Iterator[Params]:
    """`params` after 0, 1, …, `steps` steps down the gradient of `loss`.

    Only the parameters that `rates` names move. With `first_order` each gradient is a constant to
    whoever differentiates the result (Finn et al. 2017, sec. 5.2).
    """
    yield params
    for _ in range(steps):
        moving = {name: params[name] for name in rates}
        # Not by detaching `params`: the loss may be made of more, such as learnt features.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            grads = grad(lambda moving, params=params: loss({**params, **moving}))(moving)
        params = params | {name: params[name] - rates[name] * grads[name] for name in rates}
        yield params


def outputs_after(
    learner: nn.Module,
    episodes: Episodes,
    rates: Rates,
    steps: Sequence[int],
    *,
    first_order: bool,
    initial: Callable[[Tensor, Tensor], Params] | None = None,
    checkpoint_steps: bool = False,
) -> dict[int, Tensor]:
    """The learner's query outputs [T, Q, way] after so many inner steps on each support set.

    `initial(support_x, support_y)` gives one task's first parameters; by default they are the
    learner's own. With `checkpoint_steps` the backward pass computes each inner step again, so that
    a step keeps its parameters and not its activations. Always in full precision: bfloat16 spoils
    the gradient of a gradient.
    """

    def of_task(support_x: Tensor, support_y: Tensor, query_x: Tensor) -> dict[int, Tensor]:
        own: Params = dict(learner.named_parameters())
        first = initial(support_x, support_y) if initial else own

        def support_loss(params: Params) -> Tensor:
            return task_loss(functional_call(learner, params, support_x), support_y)

        path = descent(support_loss, first, rates, max(steps, default=0), first_order)
        return {
            step: query_outputs(learner, params, support_x, query_x)
            for step, params in enumerate(path)
            if step in steps
        }

    with torch.autocast(episodes.query_x.device.type, enabled=False):
        if checkpoint_steps and not first_order and torch.is_grad_enabled():
            return checkpointed_outputs_after(learner, episodes, rates, steps, initial)
        return torch.vmap(of_task, randomness="different")(
            episodes.support_x, episodes.support_y, episodes.query_x
        )


def checkpointed_outputs_after(
    learner: nn.Module,
    episodes: Episodes,
    rates: Rates,
    steps: Sequence[int],
    initial: Callable[[Tensor, Tensor], Params] | None,
) -> dict[int, Tensor]:
    """What `outputs_after` gives, to second order, by steps of all tasks that are checkpointed."""
    support_x, support_y, query_x = episodes.support_x, episodes.support_y, episodes.query_x
    if initial:
        params = torch.vmap(initial, randomness="different")(support_x, support_y)
    else:
        own = learner.named_parameters()
        params = {name: p.expand(len(query_x), *p.shape) for name, p in own}

    def step_of_task(x: Tensor, y: Tensor, params: Params, rates: Rates) -> Params:
        def support_loss(params: Params) -> Tensor:
            return task_loss(functional_call(learner, params, x), y)

        *_, last = descent(support_loss, params, rates, 1, first_order=False)
        return {name: last[name] for name in rates}

    # All that is learnt goes in as an argument of its own: only there does checkpoint see it.
    def step(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        own = dict(zip(params, values, strict=False))
        of_step = dict(zip(rates, values[len(params) :], strict=True))
        moved = torch.vmap(step_of_task, in_dims=(0, 0, 0, None), randomness="different")(
            x, y, own, of_step
        )
        return tuple(moved.values())

    def outputs() -> Tensor:
        query = partial(query_outputs, learner)
        return torch.vmap(query, randomness="different")(params, support_x, query_x)

    result = {0: outputs()} if 0 in steps else {}
    for n in range(1, max(steps, default=0) + 1):
        # Reentrant, because torch.func.grad cannot be within the hooks of the other kind.
        values = (*params.values(), *rates.values())
        moved = checkpoint(step, support_x, support_y, *values, use_reentrant=True)
        params = params | dict(zip(rates, moved, strict=True))
        if n in steps:
            result[n] = outputs()
    return result


def query_outputs(learner: nn.Module, params: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
    """One task's query outputs [Q, way] under `params`.

    Batch norm takes the query set's statistics, or in mode "support" the support set's.
    """
    if mode_of(learner) != "support":
        return functional_call(learner, params, query_x)
    support = len(support_x)
    with statistics_of_first(learner, support):
        return functional_call(learner, params, torch.cat([support_x, query_x]))[support:]


def refuse_running_statistics(backbone: nn.Module) -> None:
    """Raise UserError for batch norm that remembers, since each task adapts to statistics of its
    own, and for torch's, whose second derivatives are wrong under vmap."""
    refuse_torchs_batch_norm(backbone)
    if mode_of(backbone) == "running":
        raise UserError(
            "backbone.batch_norm=running: an inner loop has no running statistics: "
            "choose batch (the papers'), support (inductive) or none"
        )


def refuse_torchs_batch_norm(backbone: nn.Module) -> None:
    """Raise UserError for a norm of torch's: its second derivatives are wrong under vmap."""
    if any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        raise UserError(
            "backbone: torch's batch norm gives wrong gradients in an inner loop: "
            "use metarun.backbones.batch_norm.BatchNorm, or a network without any"
        )
    if any(is_wrong_in_inner_loops(module) for module in backbone.modules()):
        raise UserError(
            "backbone: torch's layer norm gives wrong gradients in an inner loop: "
            "use metarun.backbones.layer_norm.LayerNorm"
        )
