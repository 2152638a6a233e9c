"""Augmentations one after another."""

from collections.abc import Callable

from torch import Tensor

from metarun.errors import UserError

Augment = Callable[[Tensor], Tensor]  # images [N, C, H, W], floats in [0, 1] -> the same


class Sequence:
    """The augmentations `steps`, in the order given: each takes what the one before has made.

    Raises UserError for a step that is none.
    """

    def __init__(self, **steps: Augment):
        for name, step in steps.items():
            if not callable(step):
                raise UserError(f"augment.{name}: an augmentation is needed, with its _target_")
        self.steps = list(steps.values())

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], each changed by chance of its own."""
        for step in self.steps:
            x = step(x)
        return x
