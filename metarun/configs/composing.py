"""The committed configs, as Hydra composes them, and overrides, as it reads them."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metarun.errors import UserError

# What Hydra raises, in other words than its own, for files and choices that it cannot put together.
UNFORESEEN = (AssertionError, ValueError, TypeError, AttributeError, KeyError, OSError)


def composed(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The config of a job with these overrides, Hydra's own settings included.

    Raises an error of Hydra's or OmegaConf's, or UserError, if there is none.
    """
    added = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    try:
        return hydra.compose("config", [*overrides, *added], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, UserError):
        raise
    except RecursionError:
        raise UserError(
            "the config cannot be composed: a file or a value is within itself"
        ) from None
    except UNFORESEEN as error:
        reason = " ".join(str(error).split()) or "a group's choice is no text, or no file's name"
        raise UserError(f"the config cannot be composed: {reason}") from error


@cache
def committed(overrides: tuple[str, ...], folder: Path) -> DictConfig:
    """The config of `folder`, which is the committed one, with these overrides; to be read only.

    Composed once in a process.
    """
    return composed([*overrides], None)


def content_of(path: Path) -> Any:
    """What the YAML file at `path` holds, as plain dicts and lists.

    Raises UserError if it cannot be read.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: it cannot be read: {' '.join(str(error).split())}") from None


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, with nothing left to resolve."""
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return container


def spelled(key: str, text: object) -> str:
    """`key=text` for the command line, the text in quotes if it is not read as itself without."""
    bare = f"{key}={text}"
    if reads(bare) == str(text):
        return bare
    # Backslashes count as such but before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + m[2].replace('"', r"\""), str(text))
    return f'{key}="{escaped}"'


def reads(override: str) -> Any:
    """The value that Hydra reads in the override; None for what it cannot read."""
    try:
        (read,) = OverridesParser.create().parse_overrides([override])
    except OverrideParseException:
        return None
    return None if read.is_sweep_override() else read.value()
