"""Several processes for one run, as torchrun starts them: which this is, and what they exchange.

In a run of one process nothing here does anything, and torch is not loaded for it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from metarun.errors import Interrupted, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TOLD = (UserError, Interrupted)  # what ends all the ranks when one of them raises it
LONGEST_WAIT = timedelta(days=2)  # for a rank that prepares data meanwhile
LAST_WAIT = timedelta(seconds=20)  # for the first rank to say why all of them end
LEFT = "the first rank has nothing more to say"

store: Any = None  # what the ranks met in; None before, and in a run of one process


def expected() -> int:
    """How many processes the run was started with."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def join() -> None:
    """Meet the other processes of the run; from then on only the first one writes to stdout."""
    global store
    import torch
    import torch.distributed as dist

    store, own, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=LONGEST_WAIT)
    if own:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def part() -> None:
    """The run has ended well, for all."""
    if dist := group():
        dist.destroy_process_group()


def group() -> Any:
    """torch.distributed, once the ranks have met; None in a run of one process."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if (dist := group()) else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if (dist := group()) else 1


def share(count: int) -> slice:
    """Those of `count` things that are this rank's: as many as any other's, give or take one."""
    first, ranks = rank(), size()
    return slice(count * first // ranks, count * (first + 1) // ranks)


def gathered(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if (dist := group()) is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    with peers_needed():
        dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make()` gives, or raises, on the first rank, which alone calls it."""
    if (dist := group()) is None:
        return make()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except TOLD as error:
            told[1] = error
    with peers_needed():
        dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


@contextmanager
def agreed() -> Iterator[None]:
    """At the end of this block, in which they exchange nothing, what one rank raised all raise."""
    error: BaseException | None = None
    try:
        yield
    except TOLD as raised:
        if group() is None:
            raise
        error = raised
    for told in gathered(error):
        if told is not None:
            raise told


def on_any(flag: bool) -> bool:
    """Whether the flag is up on any rank."""
    if (dist := group()) is None:
        return flag
    import torch

    flags = torch.tensor([int(flag)])
    with peers_needed():
        dist.all_reduce(flags)
    return bool(flags)


def add_up(tensors: Sequence["Tensor"], weight: float) -> None:
    """Put in the place of each tensor the sum over the ranks of it times the rank's weight."""
    import torch

    flat = weight * torch.cat([tensor.flatten() for tensor in tensors])
    with peers_needed():
        group().all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@contextmanager
def peers_needed() -> Iterator[None]:
    """Within this block, a rank that is gone interrupts the run on this one too."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise Interrupted(f"another rank has ended ({reason})") from error


def let_first_speak() -> None:
    """Wait for the first rank's last words: torchrun ends it as soon as another has failed."""
    if store is None:
        return
    with suppress(Exception):  # it may be gone
        if rank() == 0:
            store.set(LEFT, "")
        else:
            store.wait([LEFT], LAST_WAIT)
