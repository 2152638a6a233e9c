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

from metarun.backbones.batch_norm import mode_of, statistics_from
from metarun.backbones.layer_norm import is_wrong_in_inner_loops
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.embedding import real_examples
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
    initial: Callable[[Episodes], Params] | None = None,
    checkpoint_steps: bool = False,
) -> dict[int, Tensor]:
    """The learner's query outputs [T, Q, way] after so many inner steps on each support set.

    `initial(task)` gives one task's first parameters; by default they are the learner's own. With
    `checkpoint_steps` the backward pass computes each inner step again, so that a step keeps its
    parameters and not its activations. Always in full precision: bfloat16 spoils the gradient of a
    gradient.
    """

    def of_task(task: Episodes) -> dict[int, Tensor]:
        own: Params = dict(learner.named_parameters())
        first = initial(task) if initial else own
        loss = partial(support_loss, learner, task)
        path = descent(loss, first, rates, max(steps, default=0), first_order)
        return {
            step: query_outputs(learner, params, task)
            for step, params in enumerate(path)
            if step in steps
        }

    with torch.autocast(episodes.query_x.device.type, enabled=False):
        if checkpoint_steps and not first_order and torch.is_grad_enabled():
            return checkpointed_outputs_after(learner, episodes, rates, steps, initial)
        return torch.vmap(of_task, episodes.over_tasks(), randomness="different")(episodes)


def checkpointed_outputs_after(
    learner: nn.Module,
    episodes: Episodes,
    rates: Rates,
    steps: Sequence[int],
    initial: Callable[[Episodes], Params] | None,
) -> dict[int, Tensor]:
    """What `outputs_after` gives, to second order, by steps of all tasks that are checkpointed."""
    tasks, over_tasks = len(episodes.query_x), episodes.over_tasks()
    if initial:
        params = torch.vmap(initial, over_tasks, randomness="different")(episodes)
    else:
        params = {name: p.expand(tasks, *p.shape) for name, p in learner.named_parameters()}

    def step_of_task(task: Episodes, params: Params, rates: Rates) -> Params:
        loss = partial(support_loss, learner, task)
        *_, last = descent(loss, params, rates, 1, first_order=False)
        return {name: last[name] for name in rates}

    # All that is learnt goes in as an argument of its own: only there does checkpoint see it. So do
    # the inputs, which may be learnt features.
    def step(support_x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        own = dict(zip(params, values, strict=False))
        of_step = dict(zip(rates, values[len(params) :], strict=True))
        seen = episodes._replace(support_x=support_x)
        moved = torch.vmap(step_of_task, (*over_tasks, 0, None), randomness="different")(
            seen, own, of_step
        )
        return tuple(moved.values())

    def outputs() -> Tensor:
        of_task = partial(query_outputs, learner)
        return torch.vmap(of_task, (0, *over_tasks), randomness="different")(params, episodes)

    result = {0: outputs()} if 0 in steps else {}
    for n in range(1, max(steps, default=0) + 1):
        # Reentrant, because torch.func.grad cannot be within the hooks of the other kind.
        values = (*params.values(), *rates.values())
        moved = checkpoint(step, episodes.support_x, *values, use_reentrant=True)
        params = params | dict(zip(rates, moved, strict=True))
        if n in steps:
            result[n] = outputs()
    return result


def support_loss(learner: nn.Module, task: Episodes, params: Params) -> Tensor:
    """The loss of one task's support set under `params`."""
    with statistics_from(learner, real=task.real_support):
        outputs = functional_call(learner, params, task.support_x)
    return task_loss(task.known(outputs), task.support_y)


def query_outputs(learner: nn.Module, params: Params, task: Episodes) -> Tensor:
    """One task's query outputs [Q, way] under `params`.

    Batch norm takes the query set's statistics, or in mode "support" the support set's.
    """
    if mode_of(learner) != "support":
        with statistics_from(learner, real=task.real_query):
            return task.known(functional_call(learner, params, task.query_x))
    support = len(task.support_x)
    with statistics_from(learner, support=support, real=real_examples(task)):
        both = functional_call(learner, params, torch.cat([task.support_x, task.query_x]))
    return task.known(both[support:])


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
