"""LSTM meta-learner: an LSTM whose cell state is the network that it trains.

Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017. Shapes: T tasks, S
support and Q query examples of a task, P parameters of the learner, H units of the first layer.

Where the text is silent or the authors' code (twitter-research/meta-learning-lstm) differs:
* the gates given back to the next step are i and f themselves, as in the text, and 0 before the
  first step; their code gives back what goes into the sigmoids;
* the gradient is that of the mean support loss, as in the text; their code divides it once more by
  the number of examples;
* every step sees the whole support set, as their minibatches of way · shot examples do;
* batch norm: their running statistics start anew in each task, follow the support set with momentum
  0.9 and serve the queries of tests only; in meta-training the queries have their own batch's. So
  do ours with backbone.batch_norm=support, whose statistics are the support set's alone.
Until the backward pass each inner step keeps some 10 · H numbers for every parameter of every task:
1 GB a task with conv4 of 64 filters, 12 steps and 20 units; the paper's learner has 32 filters.
"""

from collections import OrderedDict
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from metarun.backbones.batch_norm import statistics_from
from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import out_dim
from metarun.functional.flattening import flattened, unflattened
from metarun.functional.inner_loop import query_outputs, refuse_running_statistics, support_loss
from metarun.functional.objective import measured, query_loss

LOG_RANGE = 10.0  # the p of appendix A: below exp(-p) a number counts as it is, above by its log


class State(NamedTuple):
    """What the optimiser remembers: first layer's h and c [T · P, H], gates i and f [T, P]."""

    h: Tensor
    c: Tensor
    i: Tensor
    f: Tensor


class MetaLSTM(nn.Module):
    """`backbone` and a linear head of `way` outputs, trained on each task by `optimizer`.

    Their parameters are the learnt initial cell state c_0; the support set is gone through
    `inner_steps` times; `hidden` is the first layer's number of units.
    """

    regression = True

    def __init__(self, backbone: nn.Module, way: int, inner_steps: int, hidden: int):
        super().__init__()
        refuse_running_statistics(backbone)
        for key, count in {"inner_steps": inner_steps, "hidden": hidden}.items():
            if count < 1:
                raise UserError(f"algo.{key}={count}: it must be at least 1")
        head = nn.Linear(out_dim(backbone), way)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=head))
        self.optimizer = CoordinatewiseOptimizer(hidden)
        self.way, self.inner_steps = way, inner_steps

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query sets under the final parameters (Algorithm 1)."""
        refuse_other_way(episodes, self.way)

        def of_task(weights: Tensor, task: Episodes) -> Tensor:
            with statistics_from(self.learner, real=task.real_query):
                params = unflattened(weights, self.learner)
                return task.known(functional_call(self.learner, params, task.query_x))

        with torch.autocast(episodes.query_x.device.type, enabled=False):
            weights = self.trained(episodes)
            in_dims = (0, *episodes.over_tasks())
            outputs = torch.vmap(of_task, in_dims, randomness="different")(weights, episodes)
        return query_loss(outputs, episodes), measured(outputs, episodes.query_y)

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the parameters trained on each support set."""
        refuse_other_way(episodes, self.way)

        def of_task(weights: Tensor, task: Episodes) -> Tensor:
            return query_outputs(self.learner, unflattened(weights, self.learner), task)

        with torch.autocast(episodes.query_x.device.type, enabled=False):
            weights = self.trained(episodes)
            return torch.vmap(of_task, (0, *episodes.over_tasks()))(weights, episodes)

    def trained(self, episodes: Episodes) -> Tensor:
        """Every task's final parameters [T, P] (Algorithm 1)."""
        weights = flattened(self.learner.parameters()).expand(len(episodes.support_x), -1)
        state = self.optimizer.first_state(weights)
        for _ in range(self.inner_steps):
            # Constants to the meta-learner, the paper's "gradient independence assumption".
            slope, loss = self.support_slope(weights.detach(), episodes)
            weights, state = self.optimizer(weights, slope, loss, state)
        return weights

    def support_slope(self, weights: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Gradient [T, P] and value [T] of each task's support loss at `weights` [T, P]."""

        def loss(weights: Tensor, task: Episodes) -> Tensor:
            return support_loss(self.learner, task, unflattened(weights, self.learner))

        in_dims = (0, *episodes.over_tasks())
        return torch.vmap(grad_and_value(loss), in_dims, randomness="different")(weights, episodes)


class CoordinatewiseOptimizer(nn.Module):
    """The two-layer LSTM, the same for all parameters of the learner; each has its own state."""

    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = nn.LSTMCell(4, hidden)
        self.input_gate = nn.Linear(hidden + 2, 1)  # W_I and b_I
        self.forget_gate = nn.Linear(hidden + 2, 1)  # W_F and b_F
        # As in the authors' code: the biases make it start as gradient descent at a small rate.
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.01, 0.01)
        nn.init.uniform_(self.input_gate.bias, -5, -4)
        nn.init.uniform_(self.forget_gate.bias, 4, 6)

    def first_state(self, weights: Tensor) -> State:
        """The state before the first step on parameters `weights` [T, P]: zeros."""
        units = weights.new_zeros(weights.numel(), self.lstm.hidden_size)
        gates = torch.zeros_like(weights)
        return State(units, units, gates, gates)

    def forward(
        self, weights: Tensor, slope: Tensor, loss: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """The next parameters [T, P] and state, from the gradient [T, P] and the loss [T]."""
        inputs = [preprocessed(slope), preprocessed(loss[:, None].expand_as(slope))]
        h, c = self.lstm(torch.cat(inputs, dim=-1).flatten(0, 1), (state.h, state.c))
        x = torch.cat([h.unflatten(0, weights.shape), weights[..., None]], dim=-1)  # [T, P, H + 1]
        i = self.input_gate(torch.cat([x, state.i[..., None]], dim=-1)).sigmoid().squeeze(-1)
        f = self.forget_gate(torch.cat([x, state.f[..., None]], dim=-1)).sigmoid().squeeze(-1)
        return f * weights - i * slope, State(h, c, i, f)  # its eq. 2


def preprocessed(x: Tensor) -> Tensor:
    """Size and sign of numbers of any magnitude, within [-1, 1] or near it: [...] -> [..., 2].

    (log |x| / p, sign x) where |x| is at least exp(-p), else (-1, exp(p) x) (Andrychowicz et al.
    2016, appendix A).
    """
    size = x.abs().clamp(min=exp(-LOG_RANGE)).log() / LOG_RANGE
    return torch.stack([size, (x * exp(LOG_RANGE)).clamp(-1, 1)], dim=-1)
