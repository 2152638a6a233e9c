"""Reading pickles that others made: arrays, lists, dicts, texts and numbers come out, nothing runs.

A pickle is a program that may call whatever it names. Here a name gives one of the few harmless
stand-ins below or is refused. NumPy itself is not called while the program runs, because its own
`__setstate__` methods trust what they are given; the stand-ins become arrays afterwards.
"""

import pickle
import re
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from metarun.errors import UserError

CODE = re.compile(r"[biufSU]\d+")  # of the types an array may have: no objects, no records


def load(source: Path | IO[bytes]) -> Any:
    """What this file's pickle holds, made of arrays (which cannot be written to), lists, tuples,
    dicts, texts, bytes, numbers, True, False and None; its dicts' keys are texts, not bytes.

    Files of Python 2 may be read too; texts of theirs are bytes, but for keys. Raises UserError
    when the file asks for anything else, is damaged or cannot be read.
    """
    name = getattr(source, "name", "the pickle") if not isinstance(source, Path) else str(source)
    try:
        with open(source, "rb") if isinstance(source, Path) else nullcontext(source) as file:
            return plain(Restricted(file, name).load())
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be read as a pickle of arrays ({reason})") from None


class Restricted(pickle.Unpickler):
    """Builds stand-ins of NumPy's objects, and refuses to look anything else up."""

    def __init__(self, file: IO[bytes], name: str):
        super().__init__(file, encoding="bytes")
        self.name = name

    def find_class(self, module: str, name: str) -> type:
        full = re.sub(r"^numpy\._core\.", "numpy.core.", f"{module}.{name}")  # NumPy 2's name
        if full not in STAND_INS:
            raise UserError(
                f"{self.name} is refused: it asks for {module}.{name}, and nothing but arrays, "
                "lists, dicts, texts and numbers is read from a pickle"
            )
        return STAND_INS[full]


class StandIn:
    """What a name in a pickle gives. Its state can be set in the one way that it says."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"{type(self).__name__} has no state")


class ArrayType(StandIn):
    """numpy.ndarray, named only to be handed to `_reconstruct`."""

    __slots__ = ()

    def __init__(self) -> None:
        raise ValueError("an array is not made by calling its type")


class Type(StandIn):
    """numpy.dtype of numbers, truth values or texts."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = text(code), "|"
        if not CODE.fullmatch(self.code):
            raise ValueError(f"arrays of type {self.code!r} are not read")

    def __setstate__(self, state: Any) -> None:
        self.order = text(state[1])
        if self.order not in ("<", ">", "|", "="):
            raise ValueError(f"{self.order!r} is no order of bytes")

    def plain(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array(StandIn):
    """numpy.core.multiarray._reconstruct: an array whose content comes as its state."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def plain(self) -> np.ndarray:
        _, shape, kind, fortran, content = self.state
        return as_array(content, kind, shape, "F" if fortran else "C")


class Buffer(StandIn):
    """numpy.core.numeric._frombuffer: an array as protocol 5 stores it."""

    __slots__ = ("parts",)

    def __init__(self, content: Any, kind: Any, shape: Any, order: Any, axes: Any = None):
        self.parts = content, kind, shape, order, axes

    def plain(self) -> np.ndarray:
        content, kind, shape, order, axes = self.parts
        if axes is None:
            return as_array(content, kind, shape, order)
        return as_array(content, kind, shape, "C").transpose(axes)


class Scalar(StandIn):
    """numpy.core.multiarray.scalar: one number."""

    __slots__ = ("content", "kind")

    def __init__(self, kind: Any, content: Any):
        self.content, self.kind = content, kind

    def plain(self) -> Any:
        return as_array(self.content, self.kind, (), "C").item()


class Latin1(StandIn):
    """_codecs.encode: how Python 3 writes bytes for Python 2, but for empty ones, `bytes()`."""

    __slots__ = ()

    def __new__(cls, content: Any = "", encoding: Any = "latin1") -> Any:
        if not isinstance(content, str) or encoding != "latin1":
            raise ValueError("only texts are encoded, in latin1")
        return content.encode("latin1")


STAND_INS: dict[str, type] = {
    "numpy.ndarray": ArrayType,
    "numpy.dtype": Type,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy.core.multiarray.scalar": Scalar,
    "numpy.core.numeric._frombuffer": Buffer,
    "_codecs.encode": Latin1,
    "__builtin__.bytes": Latin1,
}


def as_array(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """The array with these bytes; what is not one is a ValueError."""
    if not isinstance(content, bytes | bytearray) or not isinstance(kind, Type):
        raise ValueError("an array needs bytes and a type")
    if order not in ("C", "F") or not isinstance(shape, tuple) or min(shape, default=0) < 0:
        raise ValueError("an array needs an order and a shape")
    flat = np.frombuffer(content, kind.plain())
    flat.flags.writeable = False
    return flat.reshape(shape, order=order)


def plain(content: Any) -> Any:
    """The same with arrays in the stand-ins' places, and texts for keys."""
    if isinstance(content, dict):
        return {text(plain(key)): plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain(item) for item in content]
    if isinstance(content, tuple):
        return tuple(plain(item) for item in content)
    if isinstance(content, StandIn | type):
        return content.plain()  # type: ignore[union-attr]  # a type has none: not an array
    return content


def text(content: Any) -> Any:
    """Bytes as the text they were in Python 2; anything else as it is."""
    return content.decode("latin1") if isinstance(content, bytes) else content
