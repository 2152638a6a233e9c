"""Body only in the inner loop: the representation adapts to a task, the head does not.

Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning", 2021,
arXiv:2008.08882, sec. 3. Shapes: T tasks, Q query examples of a task.
"""

from collections.abc import Mapping

from torch import Tensor

from metarun.algos.maml import MAML


class BOIL(MAML):
    """MAML with an inner rate of zero for the head, which is meta-learnt like the rest."""

    def rates(self) -> Mapping[str, float | Tensor]:
        """`inner_lr` for each parameter of the body; the head stays."""
        return {name: rate for name, rate in super().rates().items() if name.startswith("body.")}
