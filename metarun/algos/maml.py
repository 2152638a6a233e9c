"""Model-agnostic meta-learning: an initialisation from which a few gradient steps suffice.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400. Shapes: T tasks, Q query examples of a task.

All the parameters adapt, the scales and shifts of batch norm included, as the text has it; the
authors' code leaves those out of the inner loop. Batch norm uses the statistics of the batch it
sees, in training and in tests, as their code does: support and query each its own.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from metarun.episodes import Episodes, refuse_other_way
from metarun.functional.embedding import out_dim
from metarun.functional.inner_loop import outputs_after, refuse_running_statistics
from metarun.functional.objective import after_each, measured, query_loss


class MAML(nn.Module):
    """`backbone` and a linear head of `way` outputs, adapted by gradient descent.

    `inner_steps` steps at rate `inner_lr` in training, `test_steps` in tests. `first_order` takes
    the inner gradients for constants (sec. 5.2). With no inner steps, training is that of one
    network on all tasks, the paper's "pretrained" baseline. `measured_steps` are numbers of inner
    steps whose result is reported too. With `checkpoint_steps` the backward pass computes each
    inner step again: more time, less memory.
    """

    regression = True
    tasks_apart = True

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        inner_lr: float,
        inner_steps: int,
        test_steps: int,
        first_order: bool,
        measured_steps: list[int],
        checkpoint_steps: bool = False,
    ):
        super().__init__()
        refuse_running_statistics(backbone)
        head = nn.Linear(out_dim(backbone), way)
        self.learner = nn.Sequential(OrderedDict(body=backbone, head=head))
        self.way, self.inner_lr, self.first_order = way, inner_lr, first_order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.measured_steps, self.checkpoint_steps = measured_steps, checkpoint_steps

    def rates(self) -> Mapping[str, float | Tensor]:
        """The inner learning rate of each parameter that adapts."""
        return {name: self.inner_lr for name, _ in self.learner.named_parameters()}

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query outputs [T, Q, way] after each of `steps` numbers of inner steps (sec. 2.2)."""
        refuse_other_way(episodes, self.way)
        return outputs_after(
            self.learner,
            episodes,
            self.rates(),
            steps,
            first_order=self.first_order,
            checkpoint_steps=self.checkpoint_steps,
        )

    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs [T, Q, way] of the parameters adapted to each support set."""
        return self.outputs_after(episodes, [self.test_steps])[self.test_steps]

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query sets under the adapted parameters (Algorithm 2, line 10)."""
        outputs = self.outputs_after(episodes, [self.inner_steps])[self.inner_steps]
        return query_loss(outputs, episodes), measured(outputs, episodes.query_y)

    def stages(self, episodes: Episodes) -> dict[int, Tensor]:
        """Query outputs after each of `measured_steps` numbers of inner steps."""
        return self.outputs_after(episodes, self.measured_steps)

    def predict_and_measure(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction, and the figure [T] after each of `measured_steps` numbers of inner steps,
        which are on the way to it."""
        outputs = self.outputs_after(episodes, [*self.measured_steps, self.test_steps])
        stages = {step: outputs[step] for step in self.measured_steps}
        return outputs[self.test_steps], after_each(stages, episodes.query_y)
