"""Features that a backbone gave of another data set's examples: what mode=embed stores."""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from metarun.data.odd import look
from metarun.data.split import Split
from metarun.data.store import DataSet, files_in, is_sound, write
from metarun.data.told import listening
from metarun.errors import UserError
from metarun.files import writing
from metarun.folders import none_left_empty

LEFT = 24 * 3600  # seconds after which a half-written folder is nobody's


def load(root: str | None) -> DataSet:
    """The stored features, float32 [N, D] or maps [N, C, H, W], with the classes that they had.

    Raises UserError when they are not there, or damaged.
    """
    if root is None:
        raise UserError("data=features needs data.root=FOLDER, which mode=embed wrote")
    files = files_in(Path(root).expanduser())
    for path in files.values():
        if not path.is_file():
            raise UserError(
                f"data.root={root}: there is no {path.name}: make the features with mode=embed "
                "to=DIR, an empty or new folder, and give data.root=DIR"
            )
        if not is_sound(path):
            raise UserError(f"{path} is damaged: remove {path.parent}, and embed the data again")
    return DataSet("features", files)


def store(
    folder: Path,
    splits: dict[str, Split],
    made_from: dict[str, Any],
    told: Mapping[str, Any] | None = None,
) -> DataSet:
    """Write the features to `folder`, which is there whole or not at all.

    What they are made from stands beside them. So does what was `told` of the embedded data, as far
    as it is `carried` along, and what looks odd about the features themselves.
    """
    with listening(told) as everything:
        look(splits)
    sweep(folder)
    temporary = folder.with_name(f".{folder.name}.{this_machine()}.{os.getpid()}.tmp")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
        for split, path in files_in(temporary).items():
            write(path, splits[split], made_from, everything)
        with writing(folder):
            os.rename(temporary, folder)  # refused by the system if the folder is not empty
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(folder))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return DataSet("features", files_in(folder))


def carried(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """How the data of this name was split, and the doubts about it; what was told of its columns
    or pictures is not so of their features."""
    kept: dict[str, Any] = {}
    if "split" in told:
        kept["split"] = f"{told['split']} (data={name})"
    if told.get("doubts"):
        kept["doubts"] = [f"of the embedded data={name}: {doubt}" for doubt in told["doubts"]]
    return kept


def stored_before(folder: Path, made_from: dict[str, Any]) -> DataSet | None:
    """The features in the folder, if they are whole and made from just that; None if not."""
    try:
        data = load(str(folder))
    except UserError:
        return None
    wanted = json.loads(json.dumps(made_from))
    return data if data.origin().get("made_from") == wanted else None


def sweep(folder: Path) -> None:
    """Remove what `store` has left beside the folder in processes that were killed."""
    for left in folder.parent.glob(f".{escape(folder.name)}.*.tmp"):
        ours = re.fullmatch(rf"\.{re.escape(folder.name)}\.([^.]+)\.(\d+)\.tmp", left.name)
        if not ours:
            continue
        machine, number = ours.groups()
        with suppress(FileNotFoundError):  # its own process has just moved it
            old = time.time() - left.stat().st_mtime > LEFT  # whatever machine it was on
            if old or (machine == this_machine() and not is_alive(int(number))):
                shutil.rmtree(left, ignore_errors=True)


def this_machine() -> str:
    """Its name, as part of a file's."""
    return platform.node().replace(".", "-")


def is_alive(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def refuse_taken(folder: Path) -> None:
    """Raise UserError unless features can be written to this folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{folder} holds other files: choose another to=FOLDER")
    existing = next(path for path in folder.absolute().parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write in {existing}: choose another to=FOLDER")
    try:
        with none_left_empty(folder):
            folder.mkdir(parents=True)
    except OSError as error:
        told = f"cannot write {folder} ({error.strerror}): choose another to=FOLDER"
        raise UserError(told) from None
