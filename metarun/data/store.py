"""The prepared form of a data set: one memory-mapped, checksummed file a split.

Preparing happens once, into the cache folder. A file appears whole or not at all, two processes
that start on an empty cache take turns, and a file that does not match its checksum is made again.
A file is hashed when it is made, when it has changed since it was last hashed, when the machine has
booted since or DAYS have gone by (a rotten disk changes no time stamp), and when asked for
(mode=prepare and mode=verify): hashing a gigabyte at every start would take longer than the start.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metarun import files
from metarun.data.odd import look, look_at_names
from metarun.data.split import Split
from metarun.data.told import listening
from metarun.errors import UserError
from metarun.functional.metrics import ACCURACY

FORMAT = "1"  # of the prepared files; part of the folder's name
SPLITS = ("train", "val", "test")
OF_SOME = ("lengths", "index")  # tensors that but some splits have
TICK = 0.02  # seconds, longer than a file system's clock stands still
DAYS = 7  # for which a file that was found sound is taken to be so, until the next boot
MACHINES = 100  # that a stamp remembers, of those that share the cache

# What is asked for: "run" takes prepared data as it was last found sound, and makes it if need be;
# "prepare" hashes it first; "verify" hashes it, and neither makes nor fetches anything.
task: ContextVar[str] = ContextVar("task", default="run")


def data_folder() -> Path:
    """Where data is looked for and kept by default: $METARUN_DATA, else the user's cache folder."""
    folder = Path(os.environ.get("METARUN_DATA") or platformdirs.user_cache_dir("metarun"))
    return folder.expanduser()


class DataSet:
    """The prepared splits of one data set. Images are read when a split is opened, not before."""

    metric = ACCURACY

    def __init__(self, name: str, files: dict[str, Path]):
        self.name = name
        self.files = files
        self._sealed: set[str] = set()
        # Sizes and names of every split are known at once: they decide what can be asked for.
        self.outlines: Mapping[str, Split] = {
            split: read(path, images=False) for split, path in files.items()
        }
        self.told: dict[str, Any] = json.loads(metadata(files["train"]).get("told", "{}"))
        self.checksum = sha256(*(metadata(path)["checksum"].encode() for path in files.values()))
        refuse_shared_classes({split: o.classes for split, o in self.outlines.items()})

    def open(self, split: str) -> Split:
        """The split with its examples, memory-mapped."""
        assert split not in self._sealed, f"the {split} split was opened while it was sealed"
        return read(self.files[split])

    @contextmanager
    def sealed(self, split: str) -> Iterator[None]:
        """Within this block the split cannot be opened: nothing is chosen by looking at it."""
        self._sealed.add(split)
        try:
            yield
        finally:
            self._sealed.remove(split)

    def facts(self) -> dict[str, Any]:
        """Which data this was, exactly."""
        return {
            "name": self.name,
            "checksum": self.checksum,
            "kind": self.outlines["test"].kind,
            "classes": {split: len(outline.classes) for split, outline in self.outlines.items()},
            "examples": {split: int(o.first_row[-1]) for split, o in self.outlines.items()},
        } | {"doubts": [], **self.told, **self.origin()}

    def origin(self) -> dict[str, Any]:
        """What the data was made from, if that was stored with it."""
        stored = metadata(self.files["train"])
        return {"made_from": json.loads(stored["made_from"])} if "made_from" in stored else {}

    def bytes(self) -> int:
        """What the prepared files take on the disk."""
        return sum(path.stat().st_size for path in self.files.values())

    def summary(self) -> str:
        """One line for the console."""
        classes = " / ".join(str(len(outline.classes)) for outline in self.outlines.values())
        split = f"split {self.told['split']}: " if "split" in self.told else ""
        return f"{split}{classes} classes (train / val / test)"


def prepare(
    name: str,
    key: str,
    build: Callable[[], dict[str, Split]],
    told: Mapping[str, Any] | None = None,
) -> DataSet:
    """The data set of `build()`, taken from the cache folder when it is there, whole and sound.

    `key` spells everything that decides the content: the options and the source's fingerprint.
    What was `told` of the data before, and what is while it is built, is stored with it.
    """
    if told:
        key += f", {json.dumps(told)}"
    folder = data_folder() / "prepared" / f"{name}-{sha256(FORMAT.encode(), key.encode())[:16]}"
    paths = files_in(folder)
    if task.get() == "verify":
        refuse_unsound(name, paths.values())
    if all(is_sound(path) for path in paths.values()):  # a folder that is only read will do
        return DataSet(name, paths)
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): "
            "set METARUN_DATA to a folder that can be written"
        ) from None
    try:
        # Another process may have been at it.
        if not all(is_sound(path) for path in paths.values()):
            for left in folder.glob("*.tmp"):  # of a process that was killed
                left.unlink()
            with listening(told) as everything:
                splits = build()
                look(splits)
                look_at_names(name for split in splits.values() for name in split.classes)
            for split, content in splits.items():
                write(paths[split], content, told=everything)
                stamp(paths[split], state(paths[split]))
    finally:
        lock.release()
    return DataSet(name, paths)


def files_in(folder: Path) -> dict[str, Path]:
    """Where each prepared split is."""
    return {split: folder / f"{split}.safetensors" for split in SPLITS}


def write(
    path: Path,
    split: Split,
    made_from: dict[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> None:
    """Store `split` at `path`, atomically, and beside it what it was made from and what was told
    of the data, as JSON."""
    tensors = {"x": split.x, "first_row": split.first_row, "superclass": split.superclass}
    of_some = {name: getattr(split, name) for name in OF_SOME}
    tensors |= {name: tensor for name, tensor in of_some.items() if tensor is not None}
    facts = json.dumps([split.classes, split.superclasses, split.mean, split.std])
    about = {"facts": facts, "kind": kind_of(split), "checksum": checksum(split, facts)}
    about |= {"made_from": json.dumps(made_from)} if made_from else {}
    about |= {"told": json.dumps(told)} if told else {}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with files.writing(path):
            save_file(contiguous, temporary, metadata=about)
            temporary.chmod(0o666 & ~umask())  # safetensors lets nobody else read it
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except SafetensorError as error:  # a full disk, among others
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def read(path: Path, images: bool = True) -> Split:
    """The split stored at `path`; without `images`, x is empty but for its shape [0, *input]."""
    about = metadata(path)
    classes, superclasses, mean, std = (tuple(fact) for fact in json.loads(about["facts"]))
    with safe_open(path, "pt") as file:
        x = file.get_tensor("x") if images else file.get_slice("x")[:0]
        first_row, superclass = file.get_tensor("first_row"), file.get_tensor("superclass")
        there = [name for name in OF_SOME if name in set(file.keys())]
        of_some = {name: file.get_tensor(name) for name in there}
    # Files from before kinds had a name hold images, or vectors: their type tells which.
    kind, *sizes = json.loads(about["kind"]) if "kind" in about else [kind_by_type(x)]
    return Split(
        *(x, first_row, classes, superclass, superclasses, mean, std, kind, tuple(sizes)), **of_some
    )


def kind_of(split: Split) -> str:
    """The kind of the examples and their sizes, as they are stored."""
    return json.dumps([split.kind, *split.sizes])


def kind_by_type(x: Tensor) -> str:
    """What examples of this type are unless something else is said of them."""
    return "images" if x.dtype == torch.uint8 else "vectors"


def metadata(path: Path) -> dict[str, str]:
    """The text stored beside the tensors."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def is_sound(path: Path) -> bool:
    """Whether `path` holds a whole split whose content matches its checksum; it is hashed unless
    the task is "run" and the file is as it was when it was last hashed."""
    if task.get() == "run" and is_stamped(path):
        return True
    try:
        seen, stored = state(path), metadata(path)
        sound = checksum(read(path), stored["facts"]) == stored["checksum"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    if sound:
        stamp(path, seen)
    return sound


def stamp(path: Path, seen: str) -> None:
    """Note beside the file the state in which its content was right, when, and since which boot."""
    others = [note for note in notes(path) if note[0] == seen and note[1] != boot()]
    own = (seen, boot(), str(int(time.time())))
    with suppress(OSError, UserError):  # a folder that is only read
        with files.whole(stamp_path(path)) as file:
            lines = [" ".join(note) for note in [*others[1 - MACHINES :], own]]
            file.write("\n".join(lines).encode())
        time.sleep(TICK)  # a change from now on has another time than what is noted


def is_stamped(path: Path) -> bool:
    """Whether the file is as it was when it was last found sound, not long ago.

    In a folder that is only read, where none can note it, however long ago.
    """
    try:
        seen, now = state(path), time.time()
    except OSError:
        return False
    known = [note for note in notes(path) if note[0] == seen]
    if known and not os.access(path.parent, os.W_OK):
        return True
    recent = (now - float(when) for _, since, when in known if since == boot())
    return any(0 <= seconds < DAYS * 24 * 3600 for seconds in recent)


def notes(path: Path) -> list[tuple[str, str, str]]:
    """What has been noted beside the file: its state, the boot and the time, each time."""
    try:
        lines = [line.split() for line in stamp_path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [(line[0], line[1], line[2]) for line in lines if len(line) == 3 and line[2].isdecimal()]


@cache
def boot() -> str:
    """Names the time since this machine was last started; "-" where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip() or "-"
    except OSError:
        return "-"


def stamp_path(path: Path) -> Path:
    """The note beside a prepared file."""
    return path.with_suffix(".sound")


def state(path: Path) -> str:
    """What changes when the file does: its size, and when it and its entry were last changed."""
    about = path.stat()
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}"


def refuse_unsound(name: str, paths: Iterable[Path]) -> None:
    """Raise UserError when the prepared files are not there, or one of them is damaged."""
    again = f"metarun mode=prepare data={name}"
    for path in paths:
        if not path.exists():
            raise UserError(
                f"data={name} is not prepared, or its source or options are not those that it was "
                f"prepared from: {again}, with the same data keys, prepares it"
            )
        if not is_sound(path):
            raise UserError(f"{path} is damaged: {again}, with the same data keys, makes it again")


def checksum(split: Split, facts: str) -> str:
    """SHA-256 of everything in the split, hex."""
    parts: list[bytes | memoryview] = [
        facts.encode(),
        json.dumps([list(split.x.shape), str(split.x.dtype)]).encode(),
    ]
    if split.kind != kind_by_type(split.x):  # others have the checksum that they have always had
        parts.append(kind_of(split).encode())
    for tensor in (split.first_row, split.superclass, split.x, split.lengths, split.index):
        if tensor is not None:
            parts.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256(*parts)


def sha256(*parts: bytes | memoryview) -> str:
    """SHA-256 of the parts joined, hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def fingerprint(folder: Path, splits: Mapping[str, Mapping[str, Sequence[Path]]]) -> str:
    """SHA-256 of what is in which split: name, size and time of change of every picture; names
    are told from `folder`."""
    digest = hashlib.sha256()
    for split, classes in splits.items():
        for name, paths in classes.items():
            for path in paths:
                about = [split, name, os.path.relpath(path, folder)]
                if path.exists():  # not a broken link
                    about += [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
                digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def refuse_shared_classes(splits: Mapping[str, Iterable[str]]) -> None:
    """Raise UserError when a class stands in two splits: a test on it would not be one."""
    seen: dict[str, str] = {}
    for split, classes in splits.items():
        for name in classes:
            if seen.setdefault(name, split) != split:
                raise UserError(
                    f"class {name!r} is in both {seen[name]} and {split}: "
                    "give each class to one split only"
                )
