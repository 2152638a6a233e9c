"""Proto-MAML: the inner loop starts from a head that is the prototypical network of the task.

Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
2020, arXiv:1903.03096, sec. 3 (Proto-MAML). Shapes: T tasks, S support and Q query examples of a
task, D features.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.episodes import Episodes
from metarun.functional.embedding import out_dim
from metarun.functional.inner_loop import Params, outputs_after, refuse_running_statistics
from metarun.functional.objective import after_each, measured, task_loss
from metarun.functional.prototypes import class_means


class ProtoMAML(nn.Module):
    """`backbone` and a head with a weight 2 c_k and a bias −‖c_k‖² for each prototype c_k.

    That head's scores are minus the squared distances to the prototypes, but for a term that all
    classes share; from there every parameter adapts as in MAML. The meta-gradient flows through the
    prototypes too. A test may have another way and shot than training.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_lr: float,
        inner_steps: int,
        test_steps: int,
        first_order: bool,
        measured_steps: list[int],
    ):
        super().__init__()
        refuse_running_statistics(backbone)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=Head(out_dim(backbone))))
        self.inner_lr, self.first_order = inner_lr, first_order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.measured_steps = measured_steps

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query scores [T, Q, way] after each of `steps` numbers of inner steps."""

        def initial(support_x: Tensor, support_y: Tensor) -> Params:
            params: Params = dict(self.learner.named_parameters())
            z = self.learner.get_submodule("body")(support_x)  # [S, D]
            prototypes = class_means(z[None], support_y[None], episodes.way)[0]  # [way, D]
            bias = -prototypes.square().sum(dim=1)
            return params | {"head.weight": 2 * prototypes, "head.bias": bias}

        rates = {name: self.inner_lr for name, _ in self.learner.named_parameters()}
        return outputs_after(
            self.learner, episodes, rates, steps, first_order=self.first_order, initial=initial
        )

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way] of the parameters adapted to each support set."""
        return self.outputs_after(episodes, [self.test_steps])[self.test_steps]

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query sets under the adapted parameters."""
        scores = self.outputs_after(episodes, [self.inner_steps])[self.inner_steps]
        return task_loss(scores, episodes.query_y), measured(scores, episodes.query_y)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query scores after each of `measured_steps` numbers of inner steps."""
        return self.outputs_after(episodes, self.measured_steps)

    def measures(self, episodes: Episodes) -> dict[str, Tensor]:
        """The accuracy [T] after each of `measured_steps` numbers of inner steps."""
        return after_each(self.stages(episodes), episodes.query_y)


class Head(nn.Module):
    """A linear layer [N, D] -> [N, way] whose parameters are given with each call."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, features))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight, self.bias)
