"""Pickles of plain data, read without running what they ask for."""

import pickle
from pathlib import Path
from typing import IO, Any

from metarun.errors import UserError

# What numpy's arrays are rebuilt with; numpy 2 moved it from numpy.core to numpy._core.
ARRAYS = {
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")),
    *(("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")),
    ("_codecs", "encode"),  # how Python 3 writes bytes that Python 2 can read
}


class PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays, lists, dicts, texts, bytes and numbers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """numpy's constructors of arrays; UnpicklingError for anything else."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def load(path: Path | IO[bytes]) -> Any:
    """The numpy arrays, lists, dicts, texts, bytes and numbers that are pickled in the file.

    Texts of Python 2 come as bytes. Raises UserError, and runs nothing, if it holds anything else.
    """
    if isinstance(path, Path):
        with open(path, "rb") as file:
            return load(file)
    try:
        return PlainUnpickler(path, encoding="bytes").load()
    except Exception as error:  # garbage can raise anything
        name = getattr(path, "name", "the pickle")
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is not a pickle of plain data ({reason}): replace it") from None
