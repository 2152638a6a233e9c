"""Names in the one form in which they are compared: with letters composed (NFC)."""

import unicodedata
from collections.abc import Iterable

from metarun.errors import UserError


def one_form(name: str) -> str:
    """The name as Unicode composes it: a Mac's file system takes accents apart."""
    return unicodedata.normalize("NFC", name)


def names_in_one_form(names: Iterable[str]) -> list[str]:
    """The names as Unicode composes them; UserError when two then are the same."""
    found: dict[str, str] = {}
    for name in names:
        if found.setdefault(one_form(name), name) != name:
            raise UserError(
                f"there are two classes {one_form(name)!r}, which differ only in how Unicode "
                "writes their letters (NFC and NFD): rename one, or put them together"
            )
    return list(found)


def path_in_one_form(path: str, seen: dict[str, str]) -> str:
    """The path, with slashes, as Unicode composes it; UserError when it or a folder of it is
    written in another way in a path `seen` before, to which it is added."""
    if path.isascii():
        return path
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end])
        if seen.setdefault(one_form(part), part) != part:
            raise UserError(
                f"there are two of {one_form(part)!r}, which differ only in how Unicode writes "
                "their letters (NFC and NFD): rename one, or put them together"
            )
    return one_form(path)
