"""Your own arrays: one .npz or .safetensors file with examples and their labels."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from metarun.data.split import Split, as_split
from metarun.data.split_by_class import (
    one_each,
    read_split_file,
    rows_of_classes,
    split_rows,
)
from metarun.data.statistics import channel_statistics
from metarun.data.store import SPLITS, DataSet, prepare, refuse_shared_classes
from metarun.errors import UserError

FORMAT = "1"  # of what is prepared below; a change to it needs a new number
EXAMPLES, LABELS = ("x", "images", "features"), ("y", "labels")  # names of arrays

Arrays = Mapping[str, np.ndarray]


def load(
    file: str | None,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The examples of an .npz or .safetensors `file`.

    It has x (or images, features) [N, ...] and y (or labels) [N], or those of each split apart:
    x_train, y_train, x_val and so on. Bytes of three or four dimensions are images, [N, H, W], with
    channels first or last; everything else becomes float32. Classes that are not split so are split
    by `split_file` if given, else by an array split [N] (train, val, test or 0, 1, 2), else at
    random by `fractions` and `split_seed`; an array superclass [N] groups them. Nothing in the file
    is executed. Raises UserError when it holds something else.
    """
    if file is None:
        raise UserError("data.file=FILE is needed, an .npz or .safetensors file with x and y")
    path = Path(file).expanduser()
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"data.file={file}: it must end in .npz or .safetensors")
    if not path.is_file():
        raise UserError(f"data.file={file}: there is no such file")
    listed = None if split_file is None else read_split_file(path.parent, split_file)
    about = path.stat()
    key = f"format {FORMAT}, {path.resolve()}, {about.st_size}, {about.st_mtime_ns}, "
    key += f"{listed}, {list(fractions)}, {split_seed}"
    return prepare(path.suffix[1:], key, lambda: build(path, listed, fractions, split_seed))


def build(
    path: Path,
    listed: dict[str, list[str]] | None,
    fractions: Sequence[float],
    split_seed: int,
) -> dict[str, Split]:
    """The three splits."""
    arrays = read(path)
    endings = [f"_{split}" for split in SPLITS if first_of(arrays, EXAMPLES, f"_{split}")]
    if endings and len(endings) < len(SPLITS):
        raise UserError(
            f"{path} has examples that end in {' and '.join(endings)}: give all of "
            f"{', '.join(f'_{split}' for split in SPLITS)}, with classes of their own"
        )
    if endings:
        parts = {split: labelled(path, arrays, f"_{split}") for split in SPLITS}
        splits = {split: classes for split, (_, classes) in parts.items()}
        refuse_shared_classes(splits)
        examples = {split: x for split, (x, _) in parts.items()}
        above = {s: superclasses(path, arrays, f"_{s}", splits[s]) for s in SPLITS}
    else:
        x, classes = labelled(path, arrays, "")
        names = split_names(path, arrays["split"], len(x)) if "split" in arrays else None
        splits = split_rows(classes, listed, names, fractions, split_seed)
        examples = dict.fromkeys(SPLITS, x)
        above = dict.fromkeys(SPLITS, superclasses(path, arrays, "", classes))
    chosen = {s: examples[s][np.concatenate(list(splits[s].values()))] for s in SPLITS}
    lengths = {s: [len(rows) for rows in splits[s].values()] for s in SPLITS}
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = (0.0,), (1.0,)
    kind = "images" if chosen["train"].dtype == torch.uint8 else "vectors"  # of `as_examples`
    if kind == "images":
        statistics = channel_statistics(chosen["train"].split(lengths["train"]))
    return {
        s: as_split(
            *(kind, chosen[s], torch.tensor([0, *lengths[s]]).cumsum(0), splits[s], above[s]),
            *statistics,
        )
        for s in SPLITS
    }


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays in the file, by name; UserError when it cannot be read without executing it."""
    try:
        if path.suffix == ".safetensors":
            return {name: as_array(tensor) for name, tensor in load_file(path).items()}
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        hint = ""
        if "allow_pickle" in str(error):
            hint = ": save labels as numbers or text, np.array(labels, dtype=str)"
        reason = "it holds Python objects" if hint else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}{hint}") from None


def as_array(x: Tensor) -> np.ndarray:
    """The numbers of the tensor; NumPy has no bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def first_of(arrays: Arrays, names: Sequence[str], ending: str) -> str | None:
    """The first of the names, with this ending, that there is an array of."""
    return next((name + ending for name in names if name + ending in arrays), None)


def labelled(path: Path, arrays: Arrays, ending: str) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The examples, and the rows of each class."""
    x_name, y_name = first_of(arrays, EXAMPLES, ending), first_of(arrays, LABELS, ending)
    if x_name is None or y_name is None:
        raise UserError(
            f"{path} has {', '.join(arrays) or 'no arrays'}: examples must be named x{ending} (or "
            f"images, features) and labels y{ending} (or labels)"
        )
    x = as_examples(path, arrays[x_name], x_name)
    return x, rows_of_classes(column(path, arrays[y_name], y_name, len(x)))


def column(path: Path, values: np.ndarray, name: str, rows: int) -> np.ndarray:
    """One whole number or text for each row, [rows]; UserError when it is something else."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (rows,):
        raise UserError(f"{path}: {name} has shape {list(values.shape)}, but there are {rows} rows")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "iuU":
        raise UserError(f"{path}: {name} is {values.dtype}: give whole numbers or text")
    return values


def split_names(path: Path, values: np.ndarray, rows: int) -> np.ndarray:
    """The name [rows] of each row's split, which may stand as 0, 1 or 2."""
    values = column(path, values, "split", rows)
    if values.dtype.kind == "U":
        return values
    if values.min() < 0 or values.max() >= len(SPLITS):
        wrong = values.min() if values.min() < 0 else values.max()
        raise UserError(f"{path}: split has {wrong}: give 0 (train), 1 (val) and 2 (test)")
    return np.array(SPLITS)[values]


def superclasses(
    path: Path, arrays: Arrays, ending: str, classes: Mapping[str, np.ndarray]
) -> dict[str, str] | None:
    """The superclass of each class, if the file tells."""
    name = f"superclass{ending}"
    if name not in arrays:
        return None
    rows = sum(map(len, classes.values()))
    return one_each(classes, column(path, arrays[name], name, rows), "superclass")


def as_examples(path: Path, x: np.ndarray, name: str) -> Tensor:
    """Images as uint8 [N, C, H, W], other examples as float32; UserError when they are neither."""
    if x.ndim < 2 or not len(x) or x.dtype.kind not in "buif":
        raise UserError(
            f"{path}: {name} is {x.dtype} {list(x.shape)}: examples are numbers [N, ...]"
        )
    if x.dtype == np.uint8 and x.ndim == 3:
        return torch.from_numpy(x)[:, None]
    if x.dtype == np.uint8 and x.ndim == 4:
        channels_last = x.shape[1] not in (1, 3) and x.shape[3] in (1, 3)
        return torch.from_numpy(x.transpose(0, 3, 1, 2) if channels_last else x)
    numbers = torch.from_numpy(x.astype(np.float32))
    if not (finite := numbers.flatten(1).isfinite().all(dim=1)).all():
        row = int((~finite).nonzero()[0])
        raise UserError(
            f"{path}: row {row} of {name} has a number that is not finite: leave it out"
        )
    return numbers
