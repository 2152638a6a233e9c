"""Config files of the person's own, looked at before Hydra reads them: it takes whatever time and
memory a file asks for."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from metarun.configs.rules import conf_folder
from metarun.errors import UserError

LARGEST = 2**20  # bytes of a file
MOST = 100_000  # values in it, those that stand in several places counted at each
GROUP = re.compile(r"[+~]*([^/@=]+)")  # that a word of the command line begins with


def refuse_absurd_files(folder: Path, words: Sequence[str] = ()) -> None:
    """Raise UserError for a file in a group's folder that cannot be read, holds no keys, or holds
    more than anybody writes: an alias within itself, a thousand brackets within each other.

    The groups are metarun's own, and those that the `words` of the command line name.
    """
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    groups |= {found[1] for word in words if (found := GROUP.match(word))}
    inside = (path for path in sorted(folder.glob("*")) if path.name in groups and path.is_dir())
    for path in (file for group in inside for file in sorted(group.rglob("*.yaml"))):
        if path.is_file():
            refuse_absurd_file(path)


def refuse_absurd_file(path: Path) -> None:
    """The same of one file."""
    try:
        size, text = path.stat().st_size, path.read_text(encoding="utf-8")
        tops = list(yaml.compose_all(text, yaml.SafeLoader)) if size <= LARGEST else []
        counted = sum(count(top, {}) for top in tops)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: it cannot be read: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(
            f"{path}: it holds groups or lists that are too deep in each other"
        ) from None
    if size > LARGEST or counted > MOST:
        raise UserError(f"{path}: it holds too much: at most {MOST:,} values, {LARGEST:,} bytes")
    if len(tops) > 1 or not all(isinstance(top, yaml.MappingNode | None) for top in tops):
        raise UserError(f"{path}: a config file holds keys, as in key: value")


def count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values there are at the node and below, those of an alias at each of its places.

    Raises RecursionError for one that holds itself.
    """
    if node is None:
        return 0
    if id(node) not in known:
        known[id(node)] = 1 + sum(count(inside, known) for inside in held(node))
    return known[id(node)]


def held(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes right within this one."""
    for inside in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from inside if isinstance(inside, tuple) else (inside,)
