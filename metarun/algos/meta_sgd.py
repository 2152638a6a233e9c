"""Meta-SGD: the inner step's direction and length are learnt, one rate for every parameter.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
arXiv:1707.09835.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metarun.algos.maml import MAML
from metarun.errors import UserError


class MetaSGD(MAML):
    """`backbone` and a linear head of `way` outputs, and α, as many learning rates as parameters.

    θ' = θ − α ∘ ∇L (eq. 2), with both θ and α meta-learnt; α starts at one value for all, drawn
    from [`lowest_lr`, `highest_lr`], and may become negative, as in the paper. It takes a single
    inner step; more `inner_steps` share α.
    """

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        lowest_lr: float,
        highest_lr: float,
        inner_steps: int,
        first_order: bool,
        measured_steps: list[int],
        checkpoint_steps: bool = False,
    ):
        if not 0 <= lowest_lr <= highest_lr:
            raise UserError(
                f"algo.lowest_lr={lowest_lr}: it must be from 0 to algo.highest_lr={highest_lr}"
            )
        steps = (inner_steps, inner_steps)
        super().__init__(
            backbone, way, lowest_lr, *steps, first_order, measured_steps, checkpoint_steps
        )
        rate = lowest_lr + (highest_lr - lowest_lr) * torch.rand(())
        self.alpha = nn.ParameterList(rate * torch.ones_like(p) for p in self.learner.parameters())

    def rates(self) -> Mapping[str, Tensor]:
        """α, of the shape of each parameter."""
        names = [name for name, _ in self.learner.named_parameters()]
        return dict(zip(names, self.alpha, strict=True))
