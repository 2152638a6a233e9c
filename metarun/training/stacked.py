"""Several trainings of one config as one: their weights stacked, their steps taken at once.

They differ in their seeds alone, and each goes as it would by itself, to rounding. Shapes: S seeds,
T tasks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.backbones.batch_norm import BatchNorm
from metarun.data.kinds import filled_up
from metarun.device import Device
from metarun.errors import UserError
from metarun.interfaces import Algorithm, Sampler
from metarun.samplers.ahead import can_draw_ahead, rows_ahead
from metarun.training.loop import Training
from metarun.training.step import Figures, counts_in_python

# They move each number by its own gradients alone, so that one of them does for all the seeds.
ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD)


class Loss(nn.Module):
    """An algorithm's loss as the forward pass that torch.func.functional_call wants."""

    def __init__(self, algorithm: Algorithm):
        super().__init__()
        self.algorithm = algorithm

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the metrics."""
        return self.algorithm.loss(batch)


class Stacked:
    """The weights and buffers [S, ...] of several trainings, and what moves them.

    The trainings themselves stand still between two calls of `hand_out`.
    `new_optimizer` makes an optimiser and its schedule, of parameters.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        device: Device,
        clip_norm: float,
        new_optimizer: Callable[[Iterable[Tensor]], tuple[Optimizer, LRScheduler]],
    ):
        self.trainings, self.device, self.clip_norm = trainings, device, clip_norm
        self.losses = [Loss(training.algorithm).train() for training in trainings]
        self.params, self.buffers = stack_module_state(self.losses)
        self.template = deepcopy(self.losses[0])
        for module in self.template.modules():
            if isinstance(module, BatchNorm):
                module.by_hand = True
        self.optimizer, self.schedule = new_optimizer(self.params.values())
        if type(self.optimizer) not in ELEMENTWISE:
            names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise UserError(
                f"seeds={len(trainings)}: {type(self.optimizer).__name__} may move a seed's "
                f"weights by another's: choose an optim among {names}, or seeds=1"
            )
        self.optimizer.load_state_dict(joined([t.optimizer.state_dict() for t in trainings]))
        self.schedule.load_state_dict(trainings[0].schedule.state_dict())

    def rehearse(self, batch: Any) -> None:
        """Raise UserError if the loss of several seeds cannot be computed at once; nothing is
        changed by it."""
        algorithm, seeds = self.trainings[0].algorithm, len(self.trainings)
        if getattr(batch, "ways", None) is not None:
            raise UserError(f"seeds={seeds}: tasks of unlike sizes cannot be stacked")
        if counts_in_python(algorithm):
            raise UserError(
                f"seeds={seeds}: {type(algorithm).__name__} counts its steps, and cannot do so for "
                "several seeds at once"
            )
        try:
            with torch.no_grad():
                self.loss(batch, {name: buffer.clone() for name, buffer in self.buffers.items()})
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"seeds={seeds}: the loss of {type(algorithm).__name__} cannot be computed for "
                "several seeds at once"
            ) from error

    def loss(self, batch: Any, buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Every seed's loss and metrics [S] on its own meta-batch, [S, T, ...]."""

        def of_seed(params: dict, buffers: dict, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return functional_call(self.template, (params, buffers), (batch,))

        of_batch = batch._make(0 if isinstance(v, Tensor) else None for v in batch)
        with self.device.autocast():
            # Random numbers are an error: one draw for all would be no seed's own.
            return torch.vmap(of_seed, (0, 0, of_batch), randomness="error")(
                self.params, buffers, batch
            )

    def step(self, batch: Any) -> tuple[list[Figures], float]:
        """Take a step with every seed; the figures of each, and the learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, metrics = self.loss(batch, self.buffers)
        losses.sum().backward()  # none depends on another seed's weights
        if self.clip_norm:
            clip([*self.params.values()], self.clip_norm)
        self.optimizer.step()
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        columns = {"loss": losses, **metrics}
        each = zip(*(values.detach().unbind() for values in columns.values()), strict=True)
        return [dict(zip(columns, values, strict=True)) for values in each], rate

    def hand_out(self) -> None:
        """Bring every training to where it would be by itself."""
        optimizer, schedule = self.optimizer.state_dict(), self.schedule.state_dict()
        stacked = self.params | self.buffers
        for s, (training, loss) in enumerate(zip(self.trainings, self.losses, strict=True)):
            with torch.no_grad():
                for name, own in chain(loss.named_parameters(), loss.named_buffers()):
                    own.copy_(stacked[name][s])
            training.optimizer.load_state_dict(of_seed(optimizer, s))
            training.schedule.load_state_dict(schedule)


def clip(params: Sequence[Tensor], largest: float) -> None:
    """Scale every seed's gradient down to the norm `largest`, as torch.nn.utils.clip_grad_norm_
    does that of one."""
    grads = [p.grad for p in params if p.grad is not None]
    norms = torch.stack([grad.reshape(len(grad), -1).norm(dim=1) for grad in grads]).norm(dim=0)
    share = (largest / (norms + 1e-6)).clamp(max=1)  # [S]
    for grad in grads:
        grad.mul_(share.view(-1, *[1] * (grad.ndim - 1)))


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of the one optimiser of all the seeds, from the `states` of one each."""

    def value(number: int, key: str) -> Any:
        first, *_ = values = [state["state"][number][key] for state in states]
        return deepcopy(first) if is_shared(key, first) else torch.stack(values)

    numbers = states[0]["state"].items()
    return states[0] | {"state": {n: {key: value(n, key) for key in of} for n, of in numbers}}


def of_seed(state: dict[str, Any], s: int) -> dict[str, Any]:
    """The state of seed s's optimiser, from that of the one of all."""
    return state | {
        "state": {
            number: {
                key: deepcopy(value) if is_shared(key, value) else value[s].clone()
                for key, value in of_parameter.items()
            }
            for number, of_parameter in state["state"].items()
        }
    }


def is_shared(key: str, value: Any) -> bool:
    """Whether an optimiser keeps this once for a whole parameter, and not for each of its
    numbers."""
    return key == "step" or value is None


def side_by_side(of_seeds: Sequence[Tensor]) -> Tensor:
    """The tensors [T, ...] of all the seeds, [S, T, ...]; token sequences and graphs of which one
    batch has longer ones than another are filled up."""
    longest = tuple(map(max, zip(*(tensor.shape[1:] for tensor in of_seeds), strict=True)))
    return torch.stack([filled_up(tensor, longest) for tensor in of_seeds])


def meta_batches(
    sampler: Sampler, split: Any, generators: Sequence[torch.Generator]
) -> Iterator[Any]:
    """The meta-batches of all the seeds [S, T, ...], one step's after another.

    Each seed's are drawn by its own generator, and are those that it would draw by itself.
    """
    if not can_draw_ahead(sampler, split):
        while True:
            several = [sampler(split, generator) for generator in generators]
            yield several[0]._make(
                side_by_side(values) if isinstance(values[0], Tensor) else values[0]
                for values in zip(*several, strict=True)
            )
    for rows in zip(*(rows_ahead(sampler, split, g) for g in generators), strict=True):
        batch = sampler.batch(split, torch.cat(rows))  # the examples of all the seeds at once
        seeds = (len(generators), -1)
        yield batch._make(v.unflatten(0, seeds) if isinstance(v, Tensor) else v for v in batch)
