"""A pretended GPU: tensors that say they are on one, and whose numbers lie on the CPU.

Python is told "cuda". To torch's own C++ they are on the device "meta", which asks for no driver:
so autograd, torch.func and torch.vmap go through them as through any others. It shows what a GPU
would refuse, tensors of two devices in one operation, and where the host would wait for the GPU;
not how the GPU computes, and nothing of cuDNN, of autocast or of CUDA graphs.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import metarun
from metarun.data.split import scale_and_shift
from metarun.episodes import labels

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
DEVICE = Tensor.device  # as torch's C++ has it
PACKAGE = Path(metarun.__file__).parent
aten = torch.ops.aten

# What they give, or how much of it, the host must know before it can go on.
READ_BY_HOST = {
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.histc),
    *(aten.repeat_interleave, aten._linalg_check_errors),
}
COPIES = {aten._to_copy, aten.copy_}
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
PACKED = {aten._pack_padded_sequence, aten._pack_padded_sequence_backward}  # lengths on the host
NUMBERED = {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_}  # by one, from anywhere


class Mixed(RuntimeError):
    """Tensors of two devices met in one operation."""


class Wait(NamedTuple):
    """The host waited for the GPU: in which line, metarun's innermost, and for which operation."""

    file: str
    function: str
    line: int
    operation: str


class OnGPU(Tensor):
    """A tensor of the pretended GPU; `numbers` is the one on the CPU that it stands for."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGPU":
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=META,
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} after the pretended GPU was taken away")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnGPU({self.numbers})"


class PretendedGPU(TorchDispatchMode):
    """Has every operation done on the CPU. Raises Mixed, and writes down the `waits`."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        if packet is aten.is_pinned:
            return False
        if packet is aten._pin_memory:
            return args[0].clone()
        if packet in INDEXED:
            args = (args[0], [of_python(x) for x in args[1]], *args[2:])
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(map(came_past, tensors)):
            raise NotImplementedError(f"{func} of a tensor that came past the pretended GPU")
        inputs = [x for x in tensors if isinstance(x, OnGPU)]
        wanted_there = bool(inputs)
        if kwargs.get("device") is not None:
            wanted_there = torch.device(kwargs["device"]).type != "cpu"
            kwargs["device"] = CPU
        if not (inputs or wanted_there):
            return func(*args, **kwargs)
        refuse_mixed(func, args, tensors)
        if waits(packet, args, kwargs, inputs, wanted_there):
            self.waits.append(Wait(*line_of_metarun(), packet.__name__))
        args, kwargs = tree_map_only(OnGPU, lambda x: x.numbers, (args, kwargs))
        given = {id(x.numbers): x for x in inputs}  # what is changed in place comes back as it was
        out = func(*args, **kwargs)
        if packet is aten._pack_padded_sequence:
            return OnGPU(out[0]), out[1]
        if not wanted_there:
            return out
        return tree_map_only(Tensor, lambda x: given[id(x)] if id(x) in given else OnGPU(x), out)


def of_python(index: Tensor | None) -> Tensor | None:
    """The index; zeros, on the host, in the place of one that was a list in Python, whose numbers
    torch gives to no device that has none."""
    if index is None or not came_past(index):
        return index
    return torch.zeros(index.shape, dtype=index.dtype)


def came_past(tensor: Tensor) -> bool:
    """Whether it is on the device that has no numbers, and not by way of the pretended GPU."""
    return DEVICE.__get__(tensor) == META and not isinstance(tensor, OnGPU)


def refuse_mixed(func: Any, args: tuple, tensors: list[Tensor]) -> None:
    """Raise Mixed if tensors of both devices meet where torch has them on one.

    Single numbers may come from the host to an operation that goes number by number, and indices
    and lengths of sequences may always.
    """
    packet = func.overloadpacket
    if packet in COPIES or packet in PACKED or len({isinstance(x, OnGPU) for x in tensors}) < 2:
        return
    if packet in INDEXED:
        indices = [] if isinstance(args[0], OnGPU) else [x for x in args[1] if x is not None]
        tensors = [args[0], *indices, *(x for x in args[2:3] if x.ndim)]
    elif torch.Tag.pointwise in func.tags or packet in NUMBERED:
        tensors = [x for x in tensors if isinstance(x, OnGPU) or x.ndim]
    if len({isinstance(x, OnGPU) for x in tensors}) > 1:
        shapes = [("GPU" if isinstance(x, OnGPU) else "host", list(x.shape)) for x in tensors]
        raise Mixed(f"{func} of {shapes}")


def waits(packet: Any, args: tuple, kwargs: dict, inputs: list[OnGPU], to_gpu: bool) -> bool:
    """Whether the host waits for the GPU in this operation.

    A copy to the GPU does not that is asked not to; one from there always does, before it is read.
    """
    if packet in COPIES:
        if packet is aten.copy_:
            to_gpu, from_gpu = (isinstance(x, OnGPU) for x in args[:2])
            goes_on = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            from_gpu, goes_on = bool(inputs), kwargs.get("non_blocking", False)
        return from_gpu != to_gpu and not (to_gpu and goes_on)
    if packet in INDEXED:
        indices, values = [x for x in args[1] if x is not None], args[2:3]
        masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
        if masks and len(indices) == 1 and values and not values[0].ndim:
            return False  # as masked_fill
        return bool(masks) or not all(isinstance(x, OnGPU) for x in (*indices, *values))
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return packet in READ_BY_HOST


def line_of_metarun() -> tuple[str, str, int]:
    """File, function and line of the innermost frame of metarun, or else of a test's."""
    frame, others = sys._getframe(), []
    while frame := frame.f_back:
        path, code = Path(frame.f_code.co_filename), frame.f_code
        where = re.sub(r"\.<\w+>", "", code.co_qualname), frame.f_lineno
        if path.is_relative_to(PACKAGE):
            return str(path.relative_to(PACKAGE)), *where
        others.append((path.name, *where))
    return next((place for place in others if place[0].startswith("test_")), others[-1])


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """A GPU within this block: what is asked for on "cuda" is there."""
    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()

    def device(tensor: Tensor) -> torch.device:
        found = DEVICE.__get__(tensor)
        return CUDA if found == META else found

    torch._C._ensureCUDADeviceGuardSet()  # that of no device, where there is none
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch, PretendedGPU() as gpu:
            patch.setattr(Tensor, "device", property(device))
            patch.setattr(Tensor, "is_cuda", property(lambda tensor: tensor.device == CUDA))
            patch.setattr(Tensor, "is_meta", property(lambda tensor: False))
            patch.setattr(torch.cuda, "_lazy_init", lambda: None)
            patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**30))
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        for kept in (labels, scale_and_shift):
            kept.cache_clear()
