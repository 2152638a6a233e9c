"""Rows drawn ahead, a block of meta-batches at a time; for a GPU while it computes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.interfaces import RowSampler

Block = tuple[Tensor, list[Tensor]]  # rows [steps, ...], and the generator's state after each
STEPS = {"cpu": 16, "cuda": 64}  # in a block


def can_draw_ahead(sampler: Any, split: Any) -> TypeGuard[RowSampler]:
    """Whether rows decide the batch, and the examples lie where it is wanted."""
    return (
        isinstance(sampler, RowSampler)
        and isinstance(split, Split)
        and split.x.device == split.device
    )


def rows_ahead(
    sampler: RowSampler, split: Split, generator: torch.Generator, steps: int | None = None
) -> Iterator[Tensor]:
    """One meta-batch's rows after another, on the split's device, copied there `steps` at a time.

    They are those that `sampler.rows(split, generator)` would draw, and with each one `generator`
    is left as if it had just been drawn: what a checkpoint saves knows of the steps taken alone.
    """
    steps = steps or STEPS[split.device.type]
    drawn = blocks(sampler, split, generator.clone_state(), steps)
    if split.device.type == "cuda":
        drawn = copied(one_ahead(drawn), split.device)
    for rows, states in drawn:
        for of_step, state in zip(rows, states, strict=True):
            generator.set_state(state)
            yield of_step


def blocks(
    sampler: RowSampler, split: Split, generator: torch.Generator, steps: int
) -> Iterator[Block]:
    """One block after another. Together a block's draws take a fraction of the time that they take
    between one step and the next, which leaves nothing of them in the caches."""
    while True:
        rows, states = [], []
        for _ in range(steps):
            rows.append(sampler.rows(split, generator))
            states.append(generator.get_state())
        yield torch.stack(rows), states


def one_ahead(drawn: Iterator[Block]) -> Iterator[Block]:
    """The same, but a thread draws the next block meanwhile."""
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        coming = thread.submit(next, drawn)
        while True:
            block = coming.result()
            coming = thread.submit(next, drawn)
            yield block
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def copied(drawn: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """The same, the rows copied to the GPU without waiting for it."""
    for rows, states in drawn:
        yield rows.pin_memory().to(device, non_blocking=True), states
