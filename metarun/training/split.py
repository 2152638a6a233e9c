"""What is trained on."""

from collections.abc import Callable
from typing import Any

import torch

from metarun.augment.sequence import Augment
from metarun.interfaces import Data
from metarun.training.loop import Plan


def training_split(data: Data, plan: Plan, augment: Augment | None, device: torch.device) -> Any:
    """The training split on the device, its images augmented whenever they are taken."""
    split = classes_to_train_on(plan, data.open).to(device)
    return split.augmented(augment) if augment else split


def classes_to_train_on(plan: Plan, of_split: Callable[[str], Any]) -> Any:
    """The split to train on, of what `of_split` gives for a split's name."""
    train = of_split("train")
    return train.joined(of_split("val")) if plan.split == "trainval" else train
