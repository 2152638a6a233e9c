"""Your own arrays: one .npz or .safetensors file with examples and their labels."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from metarun.data.odd import refuse_one_colour
from metarun.data.split import Split, as_split
from metarun.data.split_by_class import (
    SplitList,
    large_enough,
    one_each,
    read_split_file,
    rows_of_classes,
    split_classes,
)
from metarun.data.split_names import folded, split_named
from metarun.data.statistics import channel_statistics
from metarun.data.store import SPLITS, DataSet, prepare, refuse_shared_classes
from metarun.data.told import doubt, tell
from metarun.errors import UserError

FORMAT = "3"  # of what is prepared below; a change to it needs a new number
# What arrays are called, however that is written.
EXAMPLES = ("x", "images", "features", "data", "image", "inputs", "embeddings")
LABELS = ("y", "labels", "label", "target", "targets", "classes", "class")
CHANNELS = (1, 3, 4)  # of pictures

Arrays = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """The arrays of one split, or of the whole, by what they are; as they are called."""

    arrays: Mapping[str, np.ndarray]  # x, y, and split and superclass if they are there
    names: Mapping[str, str]


def load(
    file: str | None,
    min_examples: int,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The examples of an .npz or .safetensors `file`.

    It has x (or images, features, data) [N, ...] and y (or labels, target) [N], or those of each
    split apart: x_train, y_train, x_val and so on. Bytes in the shape of pictures are images, and
    so are other numbers that are the same as bytes; everything else becomes float32, in pictures'
    shape with the channels first. Classes with fewer than `min_examples` are left out. Classes that
    are not split so are split by `split_file` if given, else by an array split [N] (train, val,
    test or 0, 1, 2), else at random by `fractions` and `split_seed`; an array superclass [N] groups
    them. Nothing in the file is executed. Raises UserError when it holds something else.
    """
    if file is None:
        raise UserError("data.file=FILE is needed, an .npz or .safetensors file with x and y")
    path = Path(str(file)).expanduser()
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"data.file={file}: it must end in .npz or .safetensors")
    if not path.is_file():
        raise UserError(f"data.file={file}: there is no such file")
    listed = read_split_file(path.parent, split_file)
    about = path.stat()
    key = f"format {FORMAT}, {path.resolve()}, {about.st_size}, {about.st_mtime_ns}, "
    key += f"{min_examples}, {listed}, {list(fractions)}, {split_seed}"
    return prepare(
        path.suffix[1:],
        key,
        lambda: build(path, min_examples, listed, fractions, split_seed),
    )


def build(
    path: Path,
    min_examples: int,
    listed: SplitList | None,
    fractions: Sequence[float],
    split_seed: int,
) -> dict[str, Split]:
    """The three splits."""
    parts = parts_of(path, read(path))
    kind, each = as_examples(path, parts)
    if "" in parts:
        whole, x = parts[""], each[""]
        classes = rows_of_classes(column(path, whole, "y", len(x)))
        names = split_names(path, whole, len(x)) if "split" in whole.arrays else None
        splits = split_classes(
            *(classes, listed, fractions, split_seed, min_examples, names),
            f"array {whole.names.get('split')!r}",
        )
        examples = dict.fromkeys(SPLITS, x)
        above = dict.fromkeys(SPLITS, superclasses(path, whole, classes))
    else:
        tell("split", f"by arrays {', '.join(part.names['x'] for part in parts.values())}")
        every = {s: rows_of_classes(column(path, p, "y", len(each[s]))) for s, p in parts.items()}
        refuse_shared_classes(every)
        above = {s: superclasses(path, parts[s], every[s]) if s in parts else None for s in SPLITS}
        splits = {s: large_enough(every[s], min_examples) if s in every else {} for s in SPLITS}
        examples = {s: each[s] if s in each else each["test"][:0] for s in SPLITS}
    none = [np.empty(0, np.int64)]  # rows of a split without classes
    chosen = {s: examples[s][np.concatenate([*none, *splits[s].values()])] for s in SPLITS}
    lengths = {s: [len(rows) for rows in splits[s].values()] for s in SPLITS}
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = (0.0,), (1.0,)
    if kind == "images":
        normal = "train" if splits["train"] else "test"
        statistics = channel_statistics(chosen[normal].split(lengths[normal]))
        if normal == "test":
            doubt("there are no training images: all are normalised by the mean of the test's own")
    made = {
        s: as_split(
            *(kind, chosen[s], torch.tensor([0, *lengths[s]]).cumsum(0), splits[s], above[s]),
            *statistics,
        )
        for s in SPLITS
    }
    refuse_one_colour(made)
    return made


def parts_of(path: Path, arrays: Arrays) -> dict[str, Part]:
    """What is in the file, by split; one part, called "", if it does not keep them apart.

    Which arrays are not used is told. Raises UserError when some are lacking.
    """
    roles = {"x": EXAMPLES, "y": LABELS, "split": ("split",), "superclass": ("superclass",)}
    found: dict[str, dict[str, str]] = {}
    for role, names in roles.items():
        for wanted in names:
            for name in sorted(arrays, reverse=True):  # small letters first
                base, split = base_and_split(name)
                if folded(base) == wanted:
                    found.setdefault(split, {}).setdefault(role, name)
    splits = [split for split in SPLITS if "x" in found.get(split, {})]
    if splits and "x" in found.get("", {}):
        raise UserError(
            f"{path} has {found['']['x']}, and {found[splits[0]]['x']} beside: give either all "
            "examples together or those of each split apart"
        )
    if splits and splits not in (list(SPLITS), ["test"]):
        raise UserError(
            f"{path} has {' and '.join(found[split]['x'] for split in splits)}: give those of all "
            "of train, val and test, with classes of their own (test alone will do for mode=test "
            "and mode=embed)"
        )
    parts = {}
    for split in splits or [""]:
        names_of, ending = found.get(split, {}), f"_{split}" if split else ""
        if not {"x", "y"} <= names_of.keys():
            raise UserError(
                f"{path} has {', '.join(arrays) or 'no arrays'}: examples must be named x{ending} "
                f"(or {', '.join(EXAMPLES[1:4])}) and labels y{ending} (or "
                f"{', '.join(LABELS[1:4])})"
            )
        parts[split] = Part({role: arrays[name] for role, name in names_of.items()}, names_of)
    used = {name for part in parts.values() for name in part.names.values()}
    if unused := [name for name in arrays if name not in used]:
        tell("left_out", dict.fromkeys(unused, "not read"))
    return parts


def base_and_split(name: str) -> tuple[str, str]:
    """What an array is and of which split, "" if of none: X_train is x of train."""
    words = re.split(r"[_\-. ]+", name)
    if len(words) > 1:
        for base, split in ((words[:-1], words[-1]), (words[1:], words[0])):
            if named := split_named(split):
                return "_".join(base), named
    elif name[:1] in tuple("xyXY") and (named := split_named(name[1:])):  # Xtrain
        return name[0], named
    return name, ""


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
    except MemoryError as error:  # its header may say anything
        raise UserError(
            f"{path} cannot be read: {str(error).rstrip('.') or 'no memory'}: it is damaged, "
            "or larger than the memory"
        ) from None


def as_array(x: Tensor) -> np.ndarray:
    """The numbers of the tensor; NumPy has no bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def column(path: Path, part: Part, role: str, rows: int) -> np.ndarray:
    """One whole number or text for each row, [rows]; UserError when it is something else."""
    values, name = part.arrays[role], part.names[role]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (rows,):
        raise UserError(f"{path}: {name} has shape {list(values.shape)}, but there are {rows} rows")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "iuU":
        raise UserError(f"{path}: {name} is {values.dtype}: give whole numbers or text")
    return values


def split_names(path: Path, part: Part, rows: int) -> np.ndarray:
    """The name [rows] of each row's split, which may stand as 0, 1 or 2."""
    values = column(path, part, "split", rows)
    if values.dtype.kind == "U":
        return values
    if values.min() < 0 or values.max() >= len(SPLITS):
        wrong = values.min() if values.min() < 0 else values.max()
        raise UserError(f"{path}: split has {wrong}: give 0 (train), 1 (val) and 2 (test)")
    return np.array(SPLITS)[values]


def superclasses(
    path: Path, part: Part, classes: Mapping[str, np.ndarray]
) -> dict[str, str] | None:
    """The superclass of each class, if the file tells."""
    if "superclass" not in part.arrays:
        return None
    rows = sum(map(len, classes.values()))
    return one_each(classes, column(path, part, "superclass", rows), "superclass")


def as_examples(path: Path, parts: Mapping[str, Part]) -> tuple[str, dict[str, Tensor]]:
    """The kind of the examples, and those of each part: images as uint8 [N, C, H, W], others as
    float32; UserError when they are neither.

    Whether they are images is decided once, for all parts and types of number.
    """
    arrays = {split: part.arrays["x"] for split, part in parts.items()}
    for split, x in arrays.items():
        if x.ndim < 2 or not len(x) or x.dtype.kind not in "buif":
            raise UserError(
                f"{path}: {parts[split].names['x']} is {x.dtype} {list(x.shape)}: examples are "
                "numbers [N, ...]"
            )
    shapes = {x.shape[1:] for x in arrays.values()}
    if len(shapes) > 1:
        both = " and ".join(str(list(shape)) for shape in shapes)
        raise UserError(f"{path} has examples of different shapes: {both}")
    arrays = {split: channels_first(x) for split, x in arrays.items()}
    first = next(iter(arrays.values()))
    if first.ndim == 4 and all(x.dtype == np.uint8 for x in arrays.values()):
        images: dict[str, np.ndarray] | None = arrays
    else:
        images = as_bytes(arrays) if first.ndim == 4 and first.shape[1] in CHANNELS else None
    kind = "images" if images is not None else "vectors"
    if first.ndim > 2:
        tell("read_as", f"{kind} {list(first.shape[1:])}, from {first.dtype} {list(shapes.pop())}")
    if images is not None:
        return kind, {s: torch.from_numpy(np.ascontiguousarray(x)) for s, x in images.items()}
    return kind, {s: as_numbers(path, x, parts[s].names["x"]) for s, x in arrays.items()}


def channels_first(x: np.ndarray) -> np.ndarray:
    """Examples in the shape of pictures as [N, C, H, W], others as they are.

    The channels are last if there are 1, 3 or 4 there, fewer than rows and columns, and not so many
    in the first place.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4 or x.shape[1] in CHANNELS or x.shape[3] not in CHANNELS:
        return x
    return x.transpose(0, 3, 1, 2) if min(x.shape[1:3]) > x.shape[3] else x


def as_bytes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The same numbers as bytes, if nothing is lost: whole ones from 0 to 255, or those from 0 to 1
    that bytes have become by dividing them; None for others."""
    top = max(float(x.max()) for x in arrays.values())
    if not 0 < top <= 255 or min(float(x.min()) for x in arrays.values()) < 0:
        return None
    factor = 255 if top <= 1 else 1
    made = {}
    for split, x in arrays.items():
        scaled = x.astype(np.float32) * factor
        made[split] = scaled.round().astype(np.uint8)
        if not np.allclose(scaled, made[split], rtol=0, atol=1e-3 * (factor > 1)):
            return None
    return made


def as_numbers(path: Path, x: np.ndarray, name: str) -> Tensor:
    """The examples as float32; UserError naming the first row that has a number that is none."""
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        numbers = torch.from_numpy(x.astype(np.float32))
    if not (finite := numbers.flatten(1).isfinite().all(dim=1)).all():
        row = int((~finite).nonzero()[0])
        raise UserError(
            f"{path}: row {row} of {name} has a number that is not finite: leave it out"
        )
    return numbers
