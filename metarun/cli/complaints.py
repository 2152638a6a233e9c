"""What Hydra and OmegaConf refuse, told in one line."""

import errno
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from metarun.cli.help import choice_files
from metarun.configs import rules as schema
from metarun.configs.composing import composed, content_of, spelled
from metarun.configs.rules import conf_folder, conf_folders
from metarun.errors import out_of_memory

# What the system refuses, and no mistake of the program.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
REFUSED |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.EIO}
MANY = 40  # choices that are still named one by one
LONGEST = 3_000  # letters of what is said
MEMORY = (
    "there is not enough memory: lower sampler.tasks (or set sampler.chunk=1), eval.tasks, way, "
    "shot, query, data.size or the width of algo and backbone, whichever is large"
)

UNRESOLVED = re.compile(r"UserError raised while resolving interpolation: (.*)")  # environment.py
UNKNOWN = re.compile(r"Could not override '([^']+)'")


def of_machine(error: BaseException) -> str | None:
    """One line for what the machine refuses or does not have: room on the disk, rights, memory;
    None for other errors."""
    if out_of_memory(error):
        return MEMORY
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: lower seeds=, or raise what `ulimit -n` shows"
    if error.errno in REFUSED and (error.filename or error.errno != errno.ENOENT):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return None


def shortened(line: str) -> str:
    """The line; of a very long one its beginning and its end, which say what and why."""
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} … ({len(line) - 2 * half:,} letters) … {line[-half:]}"


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
    nearest = schema.nearest(choice, options)
    if len(options) > MANY:  # of papers' experiments: the folders of other papers
        paper = choice.partition("/")[0]
        places = [o.partition("/") for o in options]
        options = [
            o + slash + (name if o == paper else "…" * bool(slash)) for o, slash, name in places
        ]
    able = f"; {group} can be {', '.join(dict.fromkeys(options))}" if options else ""
    return f"{group}={choice}: there is no such choice{nearest}{able}"


def unreadable(error: OverrideParseException) -> str:
    """One line for an override that Hydra cannot read, which says how it can, if in quotes."""
    key, _, value = error.override.partition("=")
    quoted = spelled(key, value)
    if quoted != f"{key}={value}" and not set(value) & set(",()[]{}"):  # of several values
        return f"{error.override}: cannot be read: quote the value: {shlex.quote(quoted)}"
    return f"{error.override}: cannot be read: write key=value ({one_line(error)})"


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says, cut to its first line."""
    text = " ".join(str(error).splitlines()[:1])
    if unknown := UNKNOWN.search(text):
        return f"{unknown[1]}: there is no such key"
    if refused := UNRESOLVED.search(f"{error} {error.__cause__}"):
        return refused[1]
    if "Ambiguous value" in text:
        return f"{text.split(' ')[-1]}: several values are a sweep: add -m"
    if error.__cause__:
        text = f"{text} {str(error.__cause__).splitlines()[0]}"
    return text


def unknown_key(error: Exception, overrides: list[str], config_dir: str | None) -> str | None:
    """One line for a key that a job with these overrides does not have, and the nearest that it
    has; None for other errors. Hydra must be initialised."""
    found = UNKNOWN.search(str(error))
    if found is None:
        return None
    key = found[1]
    if "/" in key and key in groups(config_dir):
        return f"{key}: it is no group of every run: write +{key}=CHOICE"
    if "/" in key:
        return missing_group(key, config_dir)
    config = known_part(overrides, config_dir)
    words = [group for group in groups(config_dir) if "/" not in group]
    words += schema.flat({name: config[name] for name in config if name != "hydra"})
    near, group = schema.nearest(key, words), key.partition(".")[0]
    having = having_key(key, conf_folders(config_dir))
    chosen = config.get("hydra", {}).get("runtime", {}).get("choices", {}).get(group)
    if having and chosen and f" {group}." not in near:
        return f"{key}: {group}={chosen} has no such key, {group}={', '.join(having)} would"
    return f"{key}: there is no such key{near}"


def having_key(key: str, folders: list[Path]) -> list[str]:
    """The choices of the dotted key's group that have it."""
    group, _, name = key.partition(".")
    contents = {choice: content_of(p) for choice, p in choice_files(folders, group).items()}
    return [choice for choice, content in contents.items() if name in content]


def missing_group(group: str, config_dir: str | None) -> str:
    """One line for a group of choices that does not exist."""
    near = schema.nearest(group, groups(config_dir))
    return f"{group}: there is no such group of choices{near}"


def known_part(overrides: list[str], config_dir: str | None) -> dict[str, Any]:
    """The job's config, composed without those overrides whose keys are unknown."""
    try:
        config = composed(overrides, config_dir)
    except ConfigCompositionException as error:
        found = UNKNOWN.search(str(error))
        known = [o for o in overrides if found and o.lstrip("+").partition("=")[0] != found[1]]
        return known_part(known, config_dir) if len(known) < len(overrides) else {}
    keys: Any = OmegaConf.to_container(config)
    return keys


def groups(config_dir: str | None) -> list[str]:
    """The groups of choices, such as algo and experiment/ladder, committed and the user's own."""
    return [
        path.relative_to(conf).as_posix()
        for conf in conf_folders(config_dir)
        for path in sorted(conf.rglob("*"))
        if path.is_dir()
    ]
