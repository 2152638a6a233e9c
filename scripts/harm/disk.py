"""No room, at every size: one line, what was there before whole, and with room the same number."""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from forked import Outcome
from harm.kills import AGAIN, own_pictures, own_table
from harm.place import GO_ON, SHORT, Place, Tries, half_written, left_over, numbers

MS_NOTHING, DETACH = 0, 2
PAGE = 4096
HYDRAS = "Error executing job with overrides: "  # it says so once in a sweep


def quota_run(place: Place) -> Tries:
    """A training whose files may have so many bytes and no more."""
    return too_large(place, [*SHORT, GO_ON])


def quota_table(place: Place) -> Tries:
    """A table of two cells, the same."""
    return too_large(place, ["--config-dir", "conf", "table=two", *AGAIN], own_table)


def quota_embed(place: Place) -> Tries:
    """Features, the same."""
    before = place.new()
    place.finished(SHORT, before)
    words = ["mode=embed", f"checkpoint={next(before.rglob('best.pt'))}", "backbone.width=16"]
    return too_large(place, [*words, "to=features", "device=cpu", "tracker=none", "name=e", GO_ON])


def quota_cache(place: Place) -> Tries:
    """Data that is prepared, the same."""
    yield from preparing(place, lambda cache, size: None, lambda size: {"largest_file": size})


def full_run(place: Place) -> Tries:
    """A training on a disk (tmpfs) of so many bytes; nothing where none can be mounted."""
    if not mounts(place):
        return
    words, whole = [*SHORT, GO_ON], place.new()
    place.finished(words, whole)
    wanted = numbers(whole)
    for size in steps(place, [sum(p.stat().st_size + PAGE for p in whole.rglob("*"))]):
        folder = place.new()
        (folder / "outputs").mkdir()
        with disk_of(folder / "outputs", size):
            first = place.run(words, folder)
            odd = half_written(folder) or untold(first)
            grown(folder / "outputs", 2**26)
            yield odd or ended(place, words, folder, wanted, first)
        shutil.rmtree(folder)


def full_cache(place: Place) -> Tries:
    """Data that is prepared on such a disk."""
    if mounts(place):
        yield from preparing(place, lambda cache, size: disk_of(cache, size), lambda size: {})


def too_large(
    place: Place, words: Sequence[str], begin: Callable[[Path], object] = lambda folder: None
) -> Tries:
    """Runs of the words with a limit to the size of a file, then without."""
    whole = place.new()
    begin(whole)
    place.finished(words, whole)
    wanted = numbers(whole)
    for size in steps(place, [p.stat().st_size for p in whole.rglob("*") if p.is_file()]):
        folder = place.new()
        begin(folder)
        first = place.run(words, folder, largest_file=size)
        odd = half_written(folder) or untold(first)
        yield odd or ended(place, words, folder, wanted, first)
        shutil.rmtree(folder)


def preparing(
    place: Place, mounted: Callable, limits: Callable[[int], dict[str, int]]
) -> Iterator[str | None]:
    """Data prepared in caches that are too small, then in the same with room."""
    pictures = place.new() / "pictures"
    own_pictures(pictures)
    words = ["mode=prepare", "data=image_folder", f"data.root={pictures}", "data.size=16"]
    whole = place.new()
    environment = {"METARUN_DATA": str(whole)}
    wanted = checksum(place.finished(words, whole, environment=environment))
    for size in steps(place, [p.stat().st_size for p in whole.rglob("*") if p.is_file()]):
        folder = place.new()
        cache = folder / "data"
        cache.mkdir()
        environment = {"METARUN_DATA": str(cache)}
        with mounted(cache, size) or nullcontext():
            first = place.run(words, folder, environment=environment, **limits(size))
            odd = untold(first)
            with suppress(OSError):
                grown(cache, 2**26)
            second = place.run(words, folder, environment=environment)
            if second.code != 0:
                odd = odd or f"does not go on: {second.told()}"
            elif checksum(second) != wanted:
                odd = odd or "another checksum"
            yield odd or left_over(folder)
        shutil.rmtree(folder)


def steps(place: Place, sizes: list[int]) -> list[int]:
    """Sizes from nothing to a little more than the largest: around those that there are, and
    between."""
    largest = max(sizes) + PAGE
    near = [size + by for size in sizes for by in (-1, 0)]
    between = [largest * i // 20 for i in range(21)]
    every = sorted({size for size in [*near, *between, 1, 100] if 0 <= size <= largest})
    return place.chance.sample(every, min(place.tries, len(every)))


def untold(outcome: Outcome) -> str | None:
    """What is wrong with how a run without room ended; None if it is one line, or its end."""
    if outcome.code == 0 or outcome.refused is not None:
        return None
    ours = all(line.startswith(("metarun: ", HYDRAS)) for line in outcome.complaints)
    if outcome.code in (1, 2) and outcome.complaints and ours and "Traceback" not in outcome.err:
        return None  # a sweep tells of each job
    return f"{len(outcome.complaints)} lines: {outcome.told()}"


def ended(
    place: Place, words: Sequence[str], folder: Path, wanted: dict, first: Outcome
) -> str | None:
    """What is wrong once there is room: None if the same words come to what is wanted."""
    if first.code == 0 and numbers(folder) != wanted:
        return f"another number without room: {numbers(folder)}"
    second = place.run(words, folder)
    if second.code != 0:
        return f"does not go on after {first.told()}: {second.told()}"
    if numbers(folder) != wanted:
        return f"another number: {numbers(folder)} instead of {wanted}"
    return half_written(folder) or left_over(folder)


def checksum(outcome: Outcome) -> list[str]:
    """The line that says which data it is."""
    return [line for line in outcome.out.splitlines() if line.startswith("checksum")]


@contextmanager
def disk_of(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at the folder. Raises OSError if none can be mounted."""
    mount(folder, MS_NOTHING, size)
    try:
        yield
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(folder), DETACH)


def grown(folder: Path, size: int) -> None:
    """Make the disk at the folder one of so many bytes."""
    remount = 32
    mount(folder, remount, size)


def mount(folder: Path, flags: int, size: int) -> None:
    """mount(2) of a tmpfs; raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    about = f"size={max(size, PAGE)}".encode()
    if library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), about):
        raise OSError(ctypes.get_errno(), f"cannot mount at {folder}")


def mounts(place: Place) -> bool:
    """Whether a disk can be mounted here."""
    try:
        with disk_of(place.new(), PAGE):
            return True
    except OSError:
        return False


FAMILIES = {
    "disk-run": quota_run,
    "disk-table": quota_table,
    "disk-embed": quota_embed,
    "disk-cache": quota_cache,
    "disk-full-run": full_run,
    "disk-full-cache": full_cache,
}
