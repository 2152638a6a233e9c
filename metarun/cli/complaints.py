"""What Hydra and OmegaConf refuse, told in one line."""

import re

import hydra
from hydra.errors import MissingConfigException

from metarun import config as schema
from metarun.cli.help import choice_files
from metarun.composing import conf_folder, plain


def missing_choice(error: MissingConfigException) -> str:
    """One line for a group's choice that does not exist."""
    missing = error.missing_cfg_file or str(error)
    own = re.match(r"hydra/\w+", missing)  # a group of Hydra's own
    group = own[0] if own else missing.partition("/")[0]
    choice = missing.removeprefix(f"{group}/")
    options = list(dict.fromkeys([*choice_files([conf_folder()], group), *(error.options or [])]))
    return missing_choice_of(group, choice, options)


def missing_choice_of(group: str, choice: str, options: list[str]) -> str:
    """One line for a choice that does not exist, and those that do."""
    return (
        f"{group}={choice}: there is no such choice{schema.nearest(choice, options)}"
        f"; {group} can be {', '.join(options)}"
    )


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says, cut to its first line, with the nearest key that exists."""
    text = " ".join(str(error).splitlines()[:1])
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        return f"{key}: there is no such key{schema.nearest(key, known_keys())}"
    if "Ambiguous value" in text:
        return f"{text.split(' ')[-1]}: several values are a sweep: add -m"
    if error.__cause__:
        text = f"{text} {str(error.__cause__).splitlines()[0]}"
    return text


def known_keys() -> list[str]:
    """Every key and group of the default config."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = hydra.compose("config")
    groups = [path.name for path in conf_folder().iterdir() if path.is_dir()]
    return [*groups, *schema.flat(plain(composed))]
