"""Whether the jobs of a command line can run, found out before torch is loaded."""

import math
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    RangeSweep,
)
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from metarun.cli import launchers
from metarun.cli.complaints import missing_choice_of, missing_group, unknown_key
from metarun.cli.help import choice_files
from metarun.configs import environment
from metarun.configs import rules as schema
from metarun.configs.committed import with_committed_types
from metarun.configs.composing import committed, composed, plain
from metarun.configs.rooms import is_below, refuse_foreign_names
from metarun.configs.rules import conf_folder, conf_folders
from metarun.errors import UserError

BUILT = ("data", "augment", "sampler", "backbone", "algo", "optim", "schedule")  # with a _target_
SOURCE = ("+data@data.sources.", "+data.sources.")  # what gives a mixture one more
OPTIONAL = ("experiment", "table")  # groups of which a run needs none
MOST_JOBS = 10_000  # of a sweep
FILES, SPARE = 2, 40  # that each of several seeds keeps open, and the process beside them
MANY = 20  # values of a swept key that are tried before the sweep starts
# Hydra's own settings that could run or load something, or change what a run does.
FIXED = ["callbacks", "job.env_set", "job.env_copy", "job.chdir", "job_logging", "hydra_logging"]
FIXED += ["mode", "sweeper.custom_search_space"]
THEIRS = ("callbacks", "job_logging")  # of these, what is of a package of plugins.allow may run
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
HARMLESS = ("logging.StreamHandler", "logging.NullHandler")
# By key what may be named; of the first two Hydra makes only what is installed as its plugin.
PLUGINS = {
    "launcher._target_": r"(hydra\._internal\.core_plugins|hydra_plugins)\..+",
    "sweeper._target_": r"(hydra\._internal\.core_plugins|hydra_plugins)\..+",
    "sweeper.sampler._target_": r"optuna\.samplers\.[A-Z]\w*",
}


def check(overrides: list[str], config_dir: str | None, multirun: bool = False) -> list[list[str]]:
    """The values of each override, several in a sweep.

    Raises an error if a job would be refused, without loading torch. Of a sweep, the values of each
    key are tried once, beside the first values of the others.
    """
    environment.typed.update(environment.names(overrides))
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(overrides)
        refuse_too_many_jobs(parsed)
        spelled = [spelled_values(override, config_dir) for override in parsed]
        first = [values[0] for values in spelled]
        for override, values in zip(parsed, spelled, strict=True):
            refuse_no_choice(override, values[:MANY], config_dir)
        launcher = check_job(first, config_dir)
        for i, values in enumerate(spelled):
            for value in values[1:MANY]:
                check_job([*first[:i], value, *first[i + 1 :]], config_dir)
        alike = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        if alike != first or launcher != "basic":
            check_launcher(alike, launcher, config_dir, multirun)
    return spelled


def check_launcher(
    overrides: list[str], meant: str, config_dir: str | None, multirun: bool
) -> None:
    """Raise UserError if the sweep's jobs could not be launched as asked.

    `overrides` are those that all its jobs share, by which Hydra chooses the launcher, and `meant`
    is the launcher that its first job chooses.
    """
    own = composed(overrides, config_dir).hydra
    choice = own.runtime.choices["hydra/launcher"]
    if meant != choice:
        raise UserError(f"hydra/launcher={meant}: nothing that is swept can choose the launcher")
    if choice != "basic" and not multirun:
        raise UserError(f"hydra/launcher={choice}: it launches the jobs of a sweep: add -m")
    target = own.launcher._target_
    kind = launchers.kind(target, conf_folder() / "hydra" / "launcher")
    if not kind and choice != "basic" and target not in Plugins.instance().class_name_to_class:
        raise UserError(f"hydra/launcher={choice}: there is no launcher {target}")
    if kind:
        typed = [o for o in overrides if o.lstrip("+").startswith(launchers.TYPED)]
        reference = plain(composed([f"hydra/launcher={kind}", *typed], None).hydra.launcher)
        launchers.check(plain(own.launcher), reference, kind, overrides)


def check_job(overrides: list[str], config_dir: str | None) -> str:
    """The launcher that the job with these overrides chooses.

    Raises an error if the job would be refused.
    """
    shipped = committed((), conf_folder())
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    for override in overrides:
        group, _, choice = override.partition("=")
        optional = group in OPTIONAL
        if choice in ("", "null") and not optional and (conf_folder() / group).is_dir():
            raise UserError(f"{override}: a run needs one: see metarun --help")
    try:
        whole = composed(overrides, config_dir)
    except ConfigCompositionException as error:
        if told := unknown_key(error, overrides, config_dir):
            raise UserError(told) from None
        raise
    for key in map(str, whole):
        if "/" in key:  # +GROUP=CHOICE of a group that does not exist is a new key
            raise UserError(missing_group(key, config_dir))
    choices = dict(whole.hydra.runtime.choices)
    own = [f"{group}={choice}" for group, choice in choices.items() if is_ours(group)]
    sources = [override for override in overrides if override.startswith(SOURCE)]
    # What the user's own folder holds may change, what is committed does not.
    chosen = (*own, *sources)
    reference = composed([*chosen], config_dir) if config_dir else committed(chosen, conf_folder())
    if choices["hydra/sweeper"] == "search" and whole.train.split == "trainval":
        raise UserError(
            "train.split=trainval: a search is for what validates best: set train.split=train"
        )
    launcher: str = choices["hydra/launcher"]
    typed = [o.lstrip("+") for o in overrides if o.lstrip("+").startswith("plugins.allow=")]
    allowed = OmegaConf.from_dotlist(["plugins.allow=[]", *typed]).plugins.allow
    if not isinstance(allowed, ListConfig):
        raise UserError(f"{typed[-1]}: a list is needed, as in plugins.allow=[my_package]")
    if OmegaConf.select(whole, "plugins.allow") != allowed:
        raise UserError("plugins.allow: it can be given on the command line only")
    refuse_foreign_code(whole.hydra, shipped.hydra, list(allowed))
    if not isinstance(whole.hydra.verbose, bool | str | ListConfig):
        raise UserError("hydra.verbose: true, false, or names of loggers are needed")
    HydraConfig.instance().set_config(whole)
    refuse_unwritable(Path(whole.hydra.run.dir))
    refuse_unwritable(Path(whole.hydra.sweep.dir))
    with open_dict(whole):
        del whole["hydra"]
    # A group's own keys are those of its file; no file adds keys elsewhere.
    grouped, elsewhere = (
        plain(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        for config in (reference, shipped)
    )
    checked = plain(whole)
    for key in (*BUILT, "eval", "eval.sampler"):
        refuse_nothing_built(grouped, key)
        refuse_nothing_built(checked, key)
    known = elsewhere | {key: grouped[key] for key in BUILT}
    known["eval"] = elsewhere["eval"] | {"sampler": grouped["eval"]["sampler"]}
    for key in (*BUILT, "eval.sampler"):
        group, _, inside = key.partition(".")
        if config_dir and Path(config_dir, group).is_dir():
            own_place = known[group] if inside else known
            own_place[inside or group] = with_committed_types(
                key, own_place[inside or group], checked
            )
    schema.check(checked, known)
    refuse_foreign_names(checked, list(allowed))
    refuse_too_many_files(checked["seeds"])
    for key, tied in grouped["eval"]["sampler"].items():
        value = checked["eval"]["sampler"][key]
        if grouped["eval"].get(key) == tied and checked["eval"].get(key) != value:
            told = f"{key}={schema.shown(value)}"
            raise UserError(f"eval.sampler.{told}: it is set as eval.{told}")
    return launcher


def refuse_nothing_built(config: dict[str, Any], key: str) -> None:
    """Raise UserError if there is nothing at the key that could be built: no `_target_`."""
    group, _, inside = key.partition(".")
    content = config.get(group)
    if inside:
        content = content.get(inside) if isinstance(content, dict) else None
    if content is None and key == "augment" and key in config:
        return
    if not content or not isinstance(content, dict):
        raise UserError(f"{key}: it cannot be left out: a group of keys is needed")
    if key != "eval" and not isinstance(content.get("_target_"), str):
        raise UserError(f"{key}._target_: it cannot be left out: the name of a class is needed")


def refuse_too_many_jobs(overrides: list[Override]) -> None:
    """Raise UserError for a sweep of more jobs than can be made a list of."""
    jobs = 1
    for override in overrides:
        value = override.value() if override.is_sweep_override() else None
        if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
            if not all(map(math.isfinite, (value.start, value.stop, value.step or 1))):
                raise UserError(f"{override.input_line}: it has no end")
            jobs *= max(1, int(-((value.start - value.stop) // (value.step or 1))))
        elif isinstance(value, ChoiceSweep):
            jobs *= max(1, len(value.list))
        if jobs > MOST_JOBS:
            line = override.input_line or ""
            told = line if len(line) < 80 else f"{line[:80]}…"
            raise UserError(f"{told}: a sweep of {jobs:,} jobs: at most {MOST_JOBS:,} at a time")


def refuse_no_choice(override: Override, values: list[str], config_dir: str | None) -> None:
    """Raise UserError for a value of a group that is no text, and so no choice's name."""
    group = override.key_or_group
    folders = conf_folders(config_dir)
    own = group.startswith("hydra/")
    if not own and not any((conf / group).is_dir() for conf in folders):
        return
    for spelled in values:
        (read,) = OverridesParser.create().parse_overrides([spelled])
        value: Any = read.value()
        choices = value if isinstance(value, list) else [value]
        if isinstance(value, dict) or all(isinstance(choice, str) for choice in choices):
            continue
        if value is None and (read.is_delete() or not (own or group in OPTIONAL)):
            continue  # told of elsewhere
        options = list(choice_files(folders, group))
        raise UserError(missing_choice_of(group, spelled.partition("=")[2], options))


def refuse_too_many_files(seeds: int) -> None:
    """Raise UserError for more seeds at once than this process may have files for."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    able = (most - SPARE) // FILES
    if seeds > 1 and most != resource.RLIM_INFINITY and seeds > able:
        raise UserError(
            f"seeds={seeds}: each keeps {FILES} files open, and this process may open {most}: "
            f"at most {max(able, 1)}, or raise what `ulimit -n` shows"
        )


def is_ours(group: str) -> bool:
    """Whether the config group is one of metarun's, whose YAML is the schema of what it holds."""
    return not group.startswith(("hydra/", "experiment", "table", "data@"))


def spelled_values(override: Override, config_dir: str | None) -> list[str]:
    """The overrides of one value that a sweeping override stands for; an ordinary one is itself."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        options = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
        if not options:
            raise UserError(missing_group(override.key_or_group, config_dir))
        if not all(isinstance(p, str) for p in [*value.include, *value.exclude]):
            raise UserError(f"{override.input_line}: patterns are texts, as in glob(a*)")
        found = value.filter(options)
        if not found:
            raise UserError(f"{override.input_line}: it matches none of {', '.join(options)}")
        return [f"{key}={name}" for name in found]
    if override.is_interval_sweep():
        return [f"{key}={value.start}"]  # type: ignore[union-attr]
    return [f"{key}={choice}" for choice in override.sweep_string_iterator()]


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError if the run folder could not be made."""
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write in {existing}: give another folder, hydra.run.dir=DIR")


def refuse_foreign_code(own: DictConfig, shipped: DictConfig, allow: list[str]) -> None:
    """Raise UserError if Hydra's own settings were changed where they could run something that is
    not of a package that the person allowed."""
    for key in FIXED:
        node = OmegaConf.select(own, key)
        if node != OmegaConf.select(shipped, key) and not (
            allow
            and key in THEIRS
            and isinstance(node, DictConfig)
            and is_all_of(OmegaConf.to_container(node), allow)
        ):
            raise UserError(f"hydra.{key}: it cannot be changed in metarun")
    for key, target in schema.targets(OmegaConf.to_container(own)):
        known = re.fullmatch(PLUGINS.get(key, ""), target)
        if not known and not is_below(target, allow):
            raise UserError(f"hydra.{key}={target}: not allowed to run")
    if own.runtime.choices["hydra/sweeper"] == "search" and not find_spec("optuna"):
        raise UserError("hydra/sweeper=search: it must be installed: pip install 'metarun[search]'")


def is_all_of(content: Any, allow: list[str]) -> bool:
    """Whether all that would be called by these settings, of Hydra's callbacks or of logging, is of
    packages that the person allowed, or only writes to the terminal."""
    if isinstance(content, list):
        return all(is_all_of(value, allow) for value in content)
    if not isinstance(content, dict):
        outside = str(content).startswith(("ext://", "cfg://")) or "${" in str(content)
        return not outside or content in STREAMS
    named = [content[key] for key in ("_target_", "class", "()", "factory") if key in content]
    return all(is_below(str(n), allow) or n in HARMLESS for n in named) and all(
        is_all_of(value, allow) for value in content.values()
    )
