"""What was typed, put so that Hydra can read it: options, tables, mixtures of data."""

import argparse
import re
import sys
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

import metarun
from metarun import ranks
from metarun.cli.complaints import missing_choice_of
from metarun.cli.help import choice_files
from metarun.configs import rules as schema
from metarun.configs.composing import reads, spelled
from metarun.configs.own_files import refuse_absurd_files
from metarun.configs.rules import conf_folder, conf_folders
from metarun.errors import UserError
from metarun.tables.asked import Asked, asked

DIGITS = 400  # of a number, and letters of a key, at most
DEEPEST = 20  # brackets within brackets


class Parser(argparse.ArgumentParser):
    """Tells what it refuses in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see metarun --help")


def parsed_arguments() -> argparse.Namespace:
    """The options and overrides of sys.argv, which is put in an order that Hydra can read too."""
    parser = Parser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    version = f"metarun {metarun.__version__} (Hydra {hydra.__version__})"
    parser.add_argument("--version", action="version", version=version)
    arguments, later = parser.parse_known_args()
    arguments.typed = sys.argv[1:]
    for word in later:
        if word.startswith("-"):
            raise UserError(f"{word}: there is no such option: see metarun --help")
    for option in ("config_name", "config_path", "experimental_rerun"):
        if getattr(arguments, option):
            spelled = f"--{option.replace('_', '-')}"
            raise UserError(f"{spelled}: not in metarun: use --config-dir DIR and experiment=NAME")
    if arguments.multirun and arguments.cfg:
        raise UserError("--cfg shows one run's config: leave out -m")
    given = arguments.overrides + later  # argparse takes no more once an option followed some
    options = [word for word in sys.argv[1:] if word not in given]
    folders = conf_folders(arguments.config_dir)
    if arguments.config_dir:
        refuse_absurd_files(Path(arguments.config_dir), given)
    for word in given:
        refuse_absurd(word)
    sweep = arguments.multirun
    typed = [path_as_typed(word, sweep) for word in given]
    arguments.overrides = [o for word in typed for o in mixture_spelled_out(word, folders)]
    arguments.table = table_spelled_out(arguments, folders)
    if arguments.table:
        arguments.overrides, arguments.multirun = arguments.table.overrides, True
        options = [word for word in options if word not in ("-m", "--multirun")] + ["-m"]
    if arguments.multirun and ranks.size() > 1:
        kind = "table=" if arguments.table else "-m"
        raise UserError(f"{kind} is for one process: leave out torchrun, or start it for each run")
    if arguments.multirun and not any(o.startswith("name=") for o in arguments.overrides):
        # One name for all jobs, which is known before they run.
        arguments.overrides.append(f"name={datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    if arguments.multirun:
        searching = "hydra/sweeper=search" in arguments.overrides
        if searching and not any(o.startswith("resume=") for o in arguments.overrides):
            arguments.overrides.append("resume=auto")  # values tried again have their result
        arguments.overrides = beside_swept_groups(arguments.overrides)
    sys.argv[1:] = [*options, *arguments.overrides]
    return arguments


def refuse_absurd(word: str) -> None:
    """Raise UserError for an override that would only keep Hydra busy."""
    key = word.partition("=")[0]
    if not key.strip(" +~"):
        raise UserError(f"{word[:40]}: cannot be read: write key=value")
    if len(key) > DIGITS or key.count(".") > DEEPEST:
        raise UserError(f"{key[:40]}…: there is no such key")
    if found := re.search(rf"\d{{{DIGITS},}}", word):
        raise UserError(f"{key}: a number of {len(found[0])} digits is too long")
    deep = list(accumulate((c in "[{(") - (c in "]})") for c in word))
    if max(deep, default=0) > DEEPEST:
        raise UserError(f"{key}: brackets within brackets, {max(deep)} deep: at most {DEEPEST}")


def path_as_typed(word: str, sweep: bool) -> str:
    """The override in quotes if it is a path that Hydra would not read as it is typed: with blanks,
    brackets, letters of any script, or all digits."""
    key, _, value = word.partition("=")
    bare = key.lstrip("+")
    if bare == "rerun" or not schema.is_path(bare) or value in ("", "null") or "${" in value:
        return word
    read = reads(word)
    if read == value or (value[0] in "'\"" and isinstance(read, str)):
        return word
    if read is None and is_sweep(word) and (sweep or "," in value) and not Path(value).exists():
        return word
    return spelled(key, value)


def is_sweep(override: str) -> bool:
    """Whether Hydra reads several values in the override."""
    try:
        (read,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return False
    return bool(read.is_sweep_override())


def beside_swept_groups(overrides: list[str]) -> list[str]:
    """The same with keys given to the jobs alone, as a sweep over one value, if a group is swept.

    Hydra also composes a config without what is swept, where data=a,b has no keys of a or b.
    """
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    if not any(key.partition("/")[0].partition("@")[0] in groups for key in swept):
        return overrides
    spelled = []
    for override, text in zip(parsed, overrides, strict=True):
        key, _, value = text.partition("=")
        fixed = "." not in key or key.startswith(("hydra", "~")) or override.is_sweep_override()
        spelled.append(text if fixed or not value else f"{key}=choice({value})")
    return spelled


def table_spelled_out(arguments: argparse.Namespace, folders: list[Path]) -> Asked | None:
    """The table that the overrides ask for, if any, as the sweep that it is."""
    names = [o.removeprefix("table=") for o in arguments.overrides if o.startswith("table=")]
    others = [o for o in arguments.overrides if not o.startswith("table=")]
    if not names or names[-1] in ("", "null") or arguments.help:
        return None
    if arguments.cfg or arguments.info:
        raise UserError("table= is many runs: experiment=NAME shows the config of one")
    tables = choice_files(folders, "table")
    if names[-1] not in tables:
        raise UserError(missing_choice_of("table", names[-1], list(tables)))
    return asked(names[-1], tables[names[-1]], others)


def mixture_spelled_out(override: str, folders: list[Path]) -> list[str]:
    """`data=[omniglot,mine:image_folder]` as Hydra knows it: a mixture with these sources.

    A source is called as its choice of `data`, or as told before a colon.
    """
    found = re.fullmatch(r"data=\[(.*)\]", override)
    if found is None:
        return [override]
    choices, spelled = choice_files(folders, "data"), ["data=mixture"]
    names: set[str] = set()
    for item in filter(None, (item.strip() for item in found[1].split(","))):
        name, _, choice = item.rpartition(":")
        name = name or choice
        if choice not in choices:
            raise UserError(missing_choice_of("data", choice, list(choices)))
        if not re.fullmatch(r"[\w-]+", name) or name in names:
            twice = "stands there twice" if name in names else "is no name for a source"
            raise UserError(f"{override}: {name} {twice}: give it one, as in mine:{choice}")
        names.add(name)
        content = OmegaConf.to_container(OmegaConf.load(choices[choice]))
        assert isinstance(content, dict)
        key = f"data.sources.{name}"
        if "data" in content:  # a file that sets other keys too, which are not wanted here
            content = content["data"]
            spelled.append(f"+{key}={schema.shown(content)}")
        else:
            spelled.append(f"+data@{key}={choice}")
        if "size" in content:
            spelled.append(f"{key}.size=${{data.size}}")
    return spelled


def choices_of(overrides: list[str]) -> dict[str, str]:
    """The group=choice pairs among the overrides."""
    return dict(override.split("=", 1) for override in overrides if "=" in override)
