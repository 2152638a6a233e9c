"""MAML++: MAML made stable, with rates, batch norm and a loss of every inner step's own.

Antoniou, Edwards and Storkey, "How to train your MAML", 2019, arXiv:1810.09502; section numbers are
that paper's. Shapes: T tasks, Q query examples of a task, C channels, K inner steps.

Choices. Scales and shifts of batch norm do not adapt in the inner loop, as in the authors' code.
The text tests with each step's running statistics, the code, which the published numbers come from,
with those of the batch: `running_statistics` chooses. The inner loop trains on the batch's, so that
it adapts worse by the running ones. The loss's weights move as in the code, which keeps a small
share for the early steps until the end of the annealing. The paper's test with an ensemble of five
checkpoints is left out: one model is tested, like everybody's.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from metarun.backbones.batch_norm import BatchNorm, counted_mean, mode_of
from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import out_dim
from metarun.functional.inner_loop import Params, refuse_torchs_batch_norm
from metarun.functional.objective import (
    after_each,
    measured,
    query_loss,
    task_loss,
)

KEPT_SHARE = 0.03  # of an early step's first weight in the loss, while the weights move
Statistics = list[tuple[Tensor, Tensor]]  # mean and variance [C] of each normalised layer


class MAMLPlusPlus(nn.Module):
    """`backbone` and a linear head of `way` outputs, which adapt in `inner_steps` steps.

    Every parameter tensor has a learnt rate for each step (LSLR), which starts at `inner_lr`. Every
    step's batch norm has its own scale, shift and running statistics (BNWB, BNRS). The loss moves
    from all the steps' to the last step's over `multi_step_loss_steps` outer steps (MSL); for the
    first `first_order_steps` of them the inner gradients are constants (DA).
    """

    regression = True
    averages = True

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        inner_lr: float,
        inner_steps: int,
        multi_step_loss_steps: int,
        first_order_steps: int,
        running_statistics: bool,
        measured_steps: list[int],
    ):
        super().__init__()
        if inner_steps < 1:
            raise UserError(f"algo.inner_steps={inner_steps}: it must be at least 1")
        if max(measured_steps, default=0) > inner_steps:
            raise UserError(
                f"algo.measured_steps={measured_steps}: rates are learnt for the first "
                f"{inner_steps} steps (algo.inner_steps) only"
            )
        refuse_torchs_batch_norm(backbone)
        if mode_of(backbone) == "support":
            raise UserError(
                "backbone.batch_norm=support: each inner step has statistics of its own here: "
                "leave it at batch, and choose by algo.running_statistics"
            )
        give_each_step_its_own(backbone, inner_steps, running_statistics)
        head = nn.Linear(out_dim(backbone), way)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=head))
        self.layers = [m for m in backbone.modules() if isinstance(m, StepBatchNorm)]
        normalising = {id(p) for layer in self.layers for p in layer.parameters()}
        self.adapting = [n for n, p in self.learner.named_parameters() if id(p) not in normalising]
        self.rates = nn.ParameterList(torch.full((inner_steps,), inner_lr) for _ in self.adapting)
        self.way, self.inner_steps, self.measured_steps = way, inner_steps, measured_steps
        self.multi_step_loss_steps = multi_step_loss_steps
        self.first_order_steps = first_order_steps
        self.outer_step = 0

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way] after all the inner steps."""
        return self.adapted(episodes, [self.inner_steps])[0][self.inner_steps]

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted mean of the query losses after each inner step (eq. 4)."""
        weights = self.loss_weights()
        steps = [step for step, weight in enumerate(weights, start=1) if weight]
        first_order = self.outer_step < self.first_order_steps
        outputs, statistics = self.adapted(episodes, steps, first_order)
        self.remember(statistics)
        self.outer_step += 1
        losses = [weights[step - 1] * query_loss(outputs[step], episodes) for step in steps]
        return torch.stack(losses).sum(), measured(outputs[self.inner_steps], episodes.query_y)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query scores after each of `measured_steps` numbers of inner steps."""
        return self.adapted(episodes, self.measured_steps)[0]

    def predict_and_measure(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction, and the figure [T] after each of `measured_steps` numbers of inner steps,
        which are on the way to it."""
        outputs, _ = self.adapted(episodes, [*self.measured_steps, self.inner_steps])
        stages = {step: outputs[step] for step in self.measured_steps}
        return outputs[self.inner_steps], after_each(stages, episodes.query_y)

    def loss_weights(self) -> list[float]:
        """The weight of each inner step in this outer step's loss; they sum to one (sec. 4)."""
        steps, share = self.inner_steps, 1 / self.inner_steps
        if self.outer_step >= self.multi_step_loss_steps:
            return [0.0] * (steps - 1) + [1.0]
        moved = share * self.outer_step / self.multi_step_loss_steps
        early = max(share - moved, KEPT_SHARE * share)
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def adapted(
        self, episodes: Episodes, steps: Sequence[int], first_order: bool = False
    ) -> tuple[dict[int, Tensor], list[Statistics]]:
        """Query scores [T, Q, way] after each of `steps` numbers of inner steps, and for each inner
        step the statistics [T, C] that batch norm saw; the steps that were not asked for saw less.
        """
        refuse_other_way(episodes, self.way)
        own: Params = dict(self.learner.named_parameters())

        def scores(
            params: Params, x: Tensor, real: Tensor | None, step: int
        ) -> tuple[Tensor, Statistics]:
            for layer in self.layers:
                layer.step, layer.real = min(step, self.inner_steps - 1), real
            z = functional_call(self.learner, own | params, x)
            for layer in self.layers:
                layer.real = None
            return z, [layer.seen.pop() for layer in self.layers]

        def of_task(task: Episodes) -> tuple[dict[int, Tensor], list[Statistics]]:
            def support_loss(params: Params, step: int) -> tuple[Tensor, Statistics]:
                z, statistics = scores(params, task.support_x, task.real_support, step)
                return task_loss(task.known(z), task.support_y), statistics

            def query_scores(params: Params, step: int) -> tuple[Tensor, Statistics]:
                z, statistics = scores(params, task.query_x, task.real_query, step)
                return task.known(z), statistics

            params: Params = {name: own[name] for name in self.adapting}
            outputs, seen = {}, []
            if 0 in steps:
                outputs[0], _ = query_scores(params, 0)
            for step in range(max(steps, default=0)):
                with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
                    grads, statistics = grad(support_loss, has_aux=True)(params, step)
                rates = {n: r[step] for n, r in zip(self.adapting, self.rates, strict=True)}
                params = {n: p - rates[n] * grads[n] for n, p in params.items()}
                if step + 1 in steps:
                    outputs[step + 1], of_query = query_scores(params, step)
                    statistics = averages([statistics, of_query])
                seen.append(statistics)
            return outputs, seen

        with torch.autocast(episodes.query_x.device.type, enabled=False):
            return torch.vmap(of_task, episodes.over_tasks(), randomness="different")(episodes)

    @torch.no_grad()
    def remember(self, statistics: list[Statistics]) -> None:
        """Move each step's running statistics towards the tasks' mean."""
        for step, of_layers in enumerate(statistics):
            for layer, (mean, var) in zip(self.layers, of_layers, strict=True):
                layer.running_mean[step].lerp_(mean.mean(dim=0), layer.momentum)
                layer.running_var[step].lerp_(var.mean(dim=0), layer.momentum)

    def get_extra_state(self) -> dict[str, int]:
        """How far the annealing has come, for checkpoints."""
        return {"outer_step": self.outer_step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.outer_step = state["outer_step"]


class StepBatchNorm(nn.Module):
    """Batch norm with a scale, a shift and running statistics [K, C] of each inner step.

    In training it uses the batch's statistics, in tests the running ones of its `step`, or with
    `running` false the batch's again. Those it used are left in `seen`, to be taken away.
    """

    def __init__(self, channels: int, steps: int, running: bool, momentum: float, eps: float):
        super().__init__()
        self.batch_norm_mode = "running" if running else "batch"
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(steps, channels))
        self.register_buffer("running_var", torch.ones(steps, channels))
        self.step = 0
        self.real: Tensor | None = None  # which rows [N] count in the batch's statistics; None: all
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...], normalised."""
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        if self.training or self.batch_norm_mode == "batch":
            counted = len(x) if self.real is None else self.real
            mean = counted_mean(x, counted).flatten()
            var = counted_mean((x - mean.view(shape)).square(), counted).flatten()
        else:
            mean, var = self.running_mean[self.step], self.running_var[self.step]
        self.seen.append((mean, var))
        scale = self.weight[self.step] * (var + self.eps).rsqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.bias[self.step].view(shape)


def give_each_step_its_own(module: nn.Module, steps: int, running: bool) -> None:
    """Put a StepBatchNorm in the place of each batch norm within `module`."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            own = StepBatchNorm(len(child.weight), steps, running, child.momentum, child.eps)
            setattr(module, name, own)
        else:
            give_each_step_its_own(child, steps, running)


def averages(several: list[Statistics]) -> Statistics:
    """The mean of the statistics of several batches, layer by layer."""
    return [
        (torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0))
        for means, variances in (
            zip(*of_layer, strict=True) for of_layer in zip(*several, strict=True)
        )
    ]
