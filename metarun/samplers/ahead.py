"""Rows drawn ahead: while a device computes, a thread draws the next block of meta-batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.interfaces import RowSampler

STEPS = 64  # meta-batches in a block


def can_draw_ahead(sampler: Any, split: Any) -> TypeGuard[RowSampler]:
    """Whether rows decide the batch, and the examples lie on the GPU, which need not wait."""
    return isinstance(sampler, RowSampler) and isinstance(split, Split) and split.x.is_cuda


def rows_ahead(
    sampler: RowSampler, split: Split, generator: torch.Generator, steps: int = STEPS
) -> Iterator[Tensor]:
    """One meta-batch's rows after another, on the split's device, copied there `steps` at a time.

    They are those that `sampler.rows(split, generator)` would draw, and with each one `generator`
    is left as if it had just been drawn: what a checkpoint saves knows of the steps taken alone.
    """
    drawing = generator.clone_state()

    def block() -> tuple[Tensor, list[Tensor]]:
        """Rows [steps, ...] and the generator's state after each."""
        rows, states = [], []
        for _ in range(steps):
            rows.append(sampler.rows(split, drawing))
            states.append(drawing.get_state())
        return torch.stack(rows), states

    thread = ThreadPoolExecutor(max_workers=1)
    try:
        coming = thread.submit(block)
        while True:
            rows, states = coming.result()
            coming = thread.submit(block)
            if split.device.type == "cuda":
                rows = rows.pin_memory().to(split.device, non_blocking=True)
            for of_step, state in zip(rows, states, strict=True):
                generator.set_state(state)
                yield of_step
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
