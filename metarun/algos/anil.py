"""Almost no inner loop: features are reused, and only the head adapts to a task.

Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML", 2020, arXiv:1909.09157, sec. 4. Shapes: T tasks, S support and Q query
examples of a task, D features.
"""

from collections.abc import Sequence

from torch import Tensor

from metarun.algos.maml import MAML
from metarun.episodes import Episodes, refuse_other_way
from metarun.functional.embedding import at_least_float32, embed_apart
from metarun.functional.inner_loop import outputs_after


class ANIL(MAML):
    """MAML on the linear head over the body's features, which stay as they are meta-learnt.

    The features are computed once, for all the tasks in one pass where batch norm allows.
    """

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> dict[int, Tensor]:
        """Query outputs [T, Q, way] after each of `steps` numbers of inner steps of the head."""
        refuse_other_way(episodes, self.way)
        body, head = (self.learner.get_submodule(name) for name in ("body", "head"))
        support_z, query_z = embed_apart(body, episodes)
        features = episodes._replace(
            support_x=at_least_float32(support_z), query_x=at_least_float32(query_z)
        )  # [T, S, D], [T, Q, D]
        rates = {name: self.inner_lr for name, _ in head.named_parameters()}
        return outputs_after(head, features, rates, steps, first_order=self.first_order)
