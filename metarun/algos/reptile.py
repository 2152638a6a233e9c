"""Reptile: train on a task for a few steps, then move the initialisation towards where that led.

Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv:1803.02999.
Shapes: T tasks, N examples of a task, S of them its support set, Q query examples, P parameters.

Where the text is silent, this follows the authors' code (openai/supervised-reptile):
* a task's minibatches go through its shuffled examples again and again, one pass running into the
  next; a minibatch may be larger than the task, and then holds examples more than once;
* the inner optimiser is Adam without its first moment. Its second moment goes on from task to task,
  and each test task starts from the one that training left. In their code it passes through the
  tasks of a meta-batch in turn; ours are trained at once, and the mean of their last ones goes on;
* batch norm always uses the statistics of the batch it sees. A query is classified in a batch with
  the support set, alone but for it; if `transductive`, all queries are in one batch of their own.
Their loss is a minibatch's sum, ours its mean: to Adam the same, but that its second moment need
not get used to the other batch size of tests.
"""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from metarun.backbones.batch_norm import mode_of, statistics_from
from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import out_dim
from metarun.functional.flattening import flattened, unflattened
from metarun.functional.inner_loop import query_outputs, refuse_running_statistics
from metarun.functional.objective import measured, task_loss
from metarun.functional.orders import fixed_order_keys

DECAY, EPS = 0.999, 1e-8  # of Adam's second moment; what keeps its root from zero
ONE_QUERY = "support and one query"
ROWS_AT_ONCE = 1000  # examples in one pass when each query has a batch of its own: bounds memory


class Reptile(nn.Module):
    """`backbone` and a linear head of `way` outputs, from where Adam is soon good at a task.

    In training it takes `inner_steps` minibatches of `inner_batch` examples, support and query
    alike; in tests `test_steps` of `test_batch` support examples. `inner_lr` is Adam's rate.
    """

    regression = True
    averages = True
    second_moment: Tensor  # [P]
    updates: Tensor  # number of inner steps that it has seen

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        inner_lr: float,
        inner_steps: int,
        inner_batch: int,
        test_steps: int,
        test_batch: int,
        transductive: bool,
    ):
        super().__init__()
        refuse_running_statistics(backbone)
        head = nn.Linear(out_dim(backbone), way)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=head))
        self.way, self.inner_lr = way, inner_lr
        self.inner_steps, self.inner_batch = inner_steps, inner_batch
        self.test_steps, self.test_batch = test_steps, test_batch
        for key in ("inner_steps", "inner_batch", "test_steps", "test_batch"):
            if getattr(self, key) < 1:
                raise UserError(f"algo.{key}={getattr(self, key)}: it must be at least 1")
        # Whose statistics a test uses, for the results: it is not the backbone's choice alone.
        mode = mode_of(backbone)
        self.batch_norm_mode = ONE_QUERY if mode == "batch" and not transductive else mode
        zeros = torch.zeros_like(flattened(self.learner.parameters()))
        self.register_buffer("second_moment", zeros)
        self.register_buffer("updates", torch.tensor(0))

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared distance from the parameters to the mean of the tasks' trained ones.

        Its gradient is their difference, so that a step of plain gradient descent at the rate
        epsilon is the paper's update (sec. 3, batched version). The metric is that of each task's
        last minibatch before its step.
        """
        refuse_other_way(episodes, self.way)
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)  # [T, N, *input]
        y = torch.cat([episodes.support_y, episodes.query_y], dim=1)
        real = None
        if episodes.ways is not None:
            support, query, _ = episodes.sizes_on_cpu().unbind(1)
            both = ((support, episodes.support_y), (query, episodes.query_y))
            real = torch.cat([marks(count, y.shape[1]) for count, y in both], dim=1)
        passes = passes_over(y, real, self.inner_steps * self.inner_batch)
        keys = torch.rand(len(y), passes, y.shape[1])
        rows = minibatches(keys, real, steps=self.inner_steps, size=self.inner_batch)
        trained, second_moments, last = self.trained(x, y, rows, episodes)
        if self.training:
            self.second_moment.copy_(second_moments.mean(dim=0))
            self.updates += self.inner_steps
        loss = (flattened(self.learner.parameters()) - trained.mean(dim=0)).square().sum() / 2
        return loss, measured(*last)

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the parameters trained on each support set."""
        return self.outputs_after(episodes, self.test_steps)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query outputs after so many minibatches."""
        return {steps: self.outputs_after(episodes, steps) for steps in (0, 1, 5, self.test_steps)}

    def outputs_after(self, episodes: Episodes, steps: int) -> Tensor:
        """Query outputs [T, Q, way] after `steps` minibatches of each support set."""
        refuse_other_way(episodes, self.way)
        x, y = episodes.support_x, episodes.support_y
        tasks, support = y.shape[:2]
        real = None if episodes.ways is None else marks(episodes.sizes_on_cpu()[:, 0], support)
        # The same order in every task and every time: a test can be repeated.
        passes = passes_over(y, real, steps * self.test_batch)
        keys = torch.stack([fixed_order_keys(support, seed) for seed in range(passes)])
        rows = minibatches(keys.expand(tasks, -1, -1), real, steps=steps, size=self.test_batch)
        weights, *_ = self.trained(x, y, rows, episodes)
        outputs = partial(self.outputs, at_once=max(1, ROWS_AT_ONCE // (tasks * (support + 1))))
        with torch.autocast(weights.device.type, enabled=False):
            return torch.vmap(outputs, (0, *episodes.over_tasks()))(weights, episodes)

    def trained(
        self, x: Tensor, y: Tensor, rows: Tensor, episodes: Episodes
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Every task's parameters and Adam's second moment [T, P] after a step on each minibatch.

        Of the episodes' examples x [T, N, *input] and y [T, N], `rows` [T, steps, size] are the
        minibatches.
        The third value: outputs [T, size, way] for the last one before its step, and its targets.
        Always in full precision: bfloat16 spoils the steps.
        """

        def batch_loss(
            weights: Tensor, x: Tensor, y: Tensor, task: Episodes
        ) -> tuple[Tensor, Tensor]:
            params = unflattened(weights, self.learner)
            outputs = task.known(functional_call(self.learner, params, x))
            return task_loss(outputs, y), outputs

        def of_task(
            x: Tensor, y: Tensor, rows: Tensor, task: Episodes
        ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            weights = flattened(self.learner.parameters()).detach()
            second_moment = self.second_moment
            last: tuple[Tensor, ...] = ()
            for step, row in enumerate(rows, start=1):
                slope, outputs = grad(batch_loss, has_aux=True)(weights, x[row], y[row], task)
                last = (outputs, y[row])
                second_moment = DECAY * second_moment + (1 - DECAY) * slope.square()
                unbiased = second_moment / (1 - DECAY ** (self.updates + step).double())
                weights = weights - self.inner_lr * slope / (unbiased.sqrt() + EPS)
            return weights, second_moment, last

        with torch.autocast(x.device.type, enabled=False):
            in_dims = (0, 0, 0, *episodes.over_tasks())
            return torch.vmap(of_task, in_dims, randomness="different")(
                x, y, rows.to(x.device, non_blocking=True), episodes
            )

    def outputs(self, weights: Tensor, task: Episodes, at_once: int) -> Tensor:
        """One task's query outputs [Q, way] under `weights` [P], `at_once` queries in one pass."""
        params = unflattened(weights, self.learner)
        if self.batch_norm_mode != ONE_QUERY:
            return query_outputs(self.learner, params, task)
        real = task.real_support
        marks = None if real is None else torch.cat([real, real.new_ones(1)])

        def after_support(x: Tensor) -> Tensor:
            both = torch.cat([task.support_x, x[None]])
            with statistics_from(self.learner, real=marks):
                return functional_call(self.learner, params, both)[-1]

        return task.known(torch.vmap(after_support, chunk_size=at_once)(task.query_x))


def marks(count: Tensor, places: int) -> Tensor:
    """The first `count` [T] of so many places, marked: [T, places]."""
    return torch.arange(places) < count[:, None]


def passes_over(y: Tensor, real: Tensor | None, examples: int) -> int:
    """How often the smallest of the tasks with labels y [T, N] is gone through for so many
    examples."""
    smallest = y.shape[1] if real is None else int(real.sum(dim=1).min())
    return max(1, -(-examples // smallest))


def minibatches(keys: Tensor, real: Tensor | None, *, steps: int, size: int) -> Tensor:
    """Rows [T, steps, size] of minibatches, in the order of `keys` [T, passes, N].

    Every real [T, N] example (None: all) comes once before any comes again.
    """
    tasks, place = len(keys), torch.arange(steps * size)
    if real is None:
        return keys.argsort(dim=2).flatten(1)[:, place].view(tasks, steps, size)
    order = keys.masked_fill(~real[:, None], torch.inf).argsort(dim=2)
    turn, nth = place // real.sum(dim=1)[:, None], place % real.sum(dim=1)[:, None]
    return order[torch.arange(tasks)[:, None], turn, nth].view(tasks, steps, size)
