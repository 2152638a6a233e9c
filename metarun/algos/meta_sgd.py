"""Meta-SGD: the inner step's direction and length are learnt, one rate for every parameter.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
arXiv:1707.09835. Shapes: T tasks, Q query examples of a task.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import out_dim
from metarun.functional.inner_loop import outputs_after, refuse_running_statistics
from metarun.functional.objective import after_each, measured, task_loss


class MetaSGD(nn.Module):
    """`backbone` and a linear head of `way` outputs, and α, as many learning rates as parameters.

    θ' = θ − α ∘ ∇L (eq. 2), with both θ and α meta-learnt; α starts at one value for all, drawn
    from [`lowest_lr`, `highest_lr`], and may become negative, as in the paper. It takes a single
    inner step; more `inner_steps` share α.
    """

    regression = True

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        lowest_lr: float,
        highest_lr: float,
        inner_steps: int,
        first_order: bool,
        measured_steps: list[int],
    ):
        super().__init__()
        if not 0 <= lowest_lr <= highest_lr:
            raise UserError(
                f"algo.lowest_lr={lowest_lr}: it must be from 0 to algo.highest_lr={highest_lr}"
            )
        refuse_running_statistics(backbone)
        head = nn.Linear(out_dim(backbone), way)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=head))
        rate = lowest_lr + (highest_lr - lowest_lr) * torch.rand(())
        self.rates = nn.ParameterList(rate * torch.ones_like(p) for p in self.learner.parameters())
        self.way, self.inner_steps, self.first_order = way, inner_steps, first_order
        self.measured_steps = measured_steps

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query outputs [T, Q, way] after each of `steps` numbers of inner steps."""
        refuse_other_way(episodes, self.way)
        names = [name for name, _ in self.learner.named_parameters()]
        rates = dict(zip(names, self.rates, strict=True))
        return outputs_after(self.learner, episodes, rates, steps, first_order=self.first_order)

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the parameters adapted to each support set."""
        return self.outputs_after(episodes, [self.inner_steps])[self.inner_steps]

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query sets under the adapted parameters (eq. 3)."""
        outputs = self.predict(episodes)
        return task_loss(outputs, episodes.query_y), measured(outputs, episodes.query_y)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query outputs after each of `measured_steps` numbers of inner steps."""
        return self.outputs_after(episodes, self.measured_steps)

    def measures(self, episodes: Episodes) -> dict[str, Tensor]:
        """The figure of merit [T] after each of `measured_steps` numbers of inner steps."""
        return after_each(self.stages(episodes), episodes.query_y)
