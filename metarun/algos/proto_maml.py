"""Proto-MAML: the inner loop starts from a head that is the prototypical network of the task.

Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
2020, arXiv:1903.03096, sec. 3 (Proto-MAML). Shapes: T tasks, S support and Q query examples of a
task, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algos.maml import MAML
from metarun.backbones.batch_norm import statistics_from
from metarun.episodes import Episodes
from metarun.functional.embedding import out_dim
from metarun.functional.inner_loop import Params, outputs_after
from metarun.functional.prototypes import class_means


class ProtoMAML(MAML):
    """`backbone` and a head with a weight 2 c_k and a bias −‖c_k‖² for each prototype c_k.

    That head's scores are minus the squared distances to the prototypes, but for a term that all
    classes share; from there every parameter adapts as in MAML. The meta-gradient flows through the
    prototypes too. A test may have another way and shot than training.
    """

    regression = False

    def __init__(
        self,
        backbone: nn.Module,
        inner_lr: float,
        inner_steps: int,
        test_steps: int,
        first_order: bool,
        measured_steps: list[int],
        checkpoint_steps: bool = False,
    ):
        steps = (inner_steps, test_steps)
        super().__init__(
            backbone, 1, inner_lr, *steps, first_order, measured_steps, checkpoint_steps
        )
        self.learner.head = Head(out_dim(backbone))

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query scores [T, Q, way] after each of `steps` numbers of inner steps."""

        def initial(task: Episodes) -> Params:
            params: Params = dict(self.learner.named_parameters())
            with statistics_from(self.learner, real=task.real_support):
                z = self.learner.get_submodule("body")(task.support_x)  # [S, D]
            prototypes = class_means(z[None], task.support_y[None], task.way)[0]  # [way, D]
            bias = -prototypes.square().sum(dim=1)
            return params | {"head.weight": 2 * prototypes, "head.bias": bias}

        return outputs_after(
            self.learner,
            episodes,
            self.rates(),
            steps,
            first_order=self.first_order,
            initial=initial,
            checkpoint_steps=self.checkpoint_steps,
        )


class Head(nn.Module):
    """A linear layer [N, D] -> [N, way] whose parameters are given with each call."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, features))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight, self.bias)
