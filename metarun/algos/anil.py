"""Almost no inner loop: features are reused, and only the head adapts to a task.

Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML", 2020, arXiv:1909.09157, sec. 4. Shapes: T tasks, S support and Q query
examples of a task, D features.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from metarun.episodes import Episodes, refuse_other_way
from metarun.functional.embedding import at_least_float32, embed_apart, out_dim
from metarun.functional.inner_loop import outputs_after, refuse_running_statistics
from metarun.functional.objective import after_each, measured, task_loss


class ANIL(nn.Module):
    """MAML on the linear head over the features of `backbone`, which stay as they are meta-learnt.

    `inner_steps` steps at rate `inner_lr` in training, `test_steps` in tests. `first_order` takes
    the inner gradients for constants. `measured_steps`: how many steps are also reported.
    """

    regression = True

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        inner_lr: float,
        inner_steps: int,
        test_steps: int,
        first_order: bool,
        measured_steps: list[int],
    ):
        super().__init__()
        refuse_running_statistics(backbone)
        self.backbone = backbone
        self.head = nn.Linear(out_dim(backbone), way)
        self.way, self.inner_lr, self.first_order = way, inner_lr, first_order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.measured_steps = measured_steps

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query outputs [T, Q, way] after each of `steps` numbers of inner steps of the head."""
        refuse_other_way(episodes, self.way)
        support_z, query_z = embed_apart(self.backbone, episodes.support_x, episodes.query_x)
        features = episodes._replace(
            support_x=at_least_float32(support_z), query_x=at_least_float32(query_z)
        )  # [T, S, D], [T, Q, D]
        rates = {name: self.inner_lr for name, _ in self.head.named_parameters()}
        return outputs_after(self.head, features, rates, steps, first_order=self.first_order)

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the head adapted to each support set."""
        return self.outputs_after(episodes, [self.test_steps])[self.test_steps]

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query sets under the adapted heads."""
        outputs = self.outputs_after(episodes, [self.inner_steps])[self.inner_steps]
        return task_loss(outputs, episodes.query_y), measured(outputs, episodes.query_y)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query outputs after each of `measured_steps` numbers of inner steps."""
        return self.outputs_after(episodes, self.measured_steps)

    def measures(self, episodes: Episodes) -> dict[str, Tensor]:
        """The figure of merit [T] after each of `measured_steps` numbers of inner steps."""
        return after_each(self.stages(episodes), episodes.query_y)
