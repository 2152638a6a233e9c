"""Whether the jobs of a command line can run, found out before torch is loaded."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from metarun.cli import launchers
from metarun.cli.complaints import missing_group, unknown_key
from metarun.configs import environment
from metarun.configs import rules as schema
from metarun.configs.composing import composed, plain
from metarun.configs.rooms import is_below, refuse_foreign_names
from metarun.configs.rules import conf_folder
from metarun.errors import UserError

BUILT = ("data", "augment", "sampler", "backbone", "algo", "optim", "schedule")  # with a _target_
SOURCE = ("+data@data.sources.", "+data.sources.")  # what gives a mixture one more
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
        spelled = [spelled_values(override, config_dir) for override in parsed]
        first = [values[0] for values in spelled]
        shipped = hydra.compose("config", return_hydra_config=True)
        check_job(first, config_dir, shipped)
        for i, values in enumerate(spelled):
            for value in values[1:MANY]:
                check_job([*first[:i], value, *first[i + 1 :]], config_dir, shipped)
        alike = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        launcher = HydraConfig.get().runtime.choices["hydra/launcher"]  # of one run, if it is one
        if alike != first or launcher != "basic":
            check_launcher(alike, first, config_dir, multirun)
    return spelled


def check_launcher(
    overrides: list[str], first: list[str], config_dir: str | None, multirun: bool
) -> None:
    """Raise UserError if the sweep's jobs could not be launched as asked.

    `overrides` are those that all its jobs share, by which Hydra chooses the launcher, and `first`
    those of its first job.
    """
    own, of_job = (composed(given, config_dir).hydra for given in (overrides, first))
    choice, meant = (each.runtime.choices["hydra/launcher"] for each in (own, of_job))
    if meant != choice:
        raise UserError(f"hydra/launcher={meant}: nothing that is swept can choose the launcher")
    if choice != "basic" and not multirun:
        raise UserError(f"hydra/launcher={choice}: it launches the jobs of a sweep: add -m")
    kind = launchers.kind(own.launcher._target_, conf_folder() / "hydra" / "launcher")
    if kind:
        typed = [o for o in overrides if o.lstrip("+").startswith(launchers.TYPED)]
        reference = plain(composed([f"hydra/launcher={kind}", *typed], None).hydra.launcher)
        launchers.check(plain(own.launcher), reference, kind, overrides)


def check_job(overrides: list[str], config_dir: str | None, shipped: DictConfig) -> None:
    """Raise an error if the job with these overrides would be refused.

    `shipped` is the committed config without any override, Hydra's own settings included.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    for override in overrides:
        group, _, choice = override.partition("=")
        optional = group in ("experiment", "table")
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
    committed = composed([*own, *sources], config_dir)
    if choices["hydra/sweeper"] == "search" and whole.train.split == "trainval":
        raise UserError(
            "train.split=trainval: a search is for what validates best: set train.split=train"
        )
    typed = [o.lstrip("+") for o in overrides if o.lstrip("+").startswith("plugins.allow=")]
    allowed = OmegaConf.from_dotlist(["plugins.allow=[]", *typed]).plugins.allow
    if not isinstance(allowed, ListConfig):
        raise UserError(f"{typed[-1]}: a list is needed, as in plugins.allow=[my_package]")
    if OmegaConf.select(whole, "plugins.allow") != allowed:
        raise UserError("plugins.allow: it can be given on the command line only")
    refuse_foreign_code(whole.hydra, shipped.hydra, list(allowed))
    HydraConfig.instance().set_config(whole)
    refuse_unwritable(Path(whole.hydra.run.dir))
    refuse_unwritable(Path(whole.hydra.sweep.dir))
    for config in (whole, committed):
        with open_dict(config):
            del config["hydra"]
    # A group's own keys are those of its file; no file adds keys elsewhere.
    grouped = plain(committed)
    elsewhere = plain(
        OmegaConf.masked_copy(shipped, [str(key) for key in shipped if key != "hydra"])
    )
    reference = elsewhere | {key: grouped[key] for key in BUILT}
    reference["eval"] = elsewhere["eval"] | {"sampler": grouped["eval"]["sampler"]}
    checked = plain(whole)
    schema.check(checked, reference)
    refuse_foreign_names(checked, list(allowed))
    for key, tied in grouped["eval"]["sampler"].items():
        value = checked["eval"]["sampler"][key]
        if grouped["eval"].get(key) == tied and checked["eval"].get(key) != value:
            told = f"{key}={schema.shown(value)}"
            raise UserError(f"eval.sampler.{told}: it is set as eval.{told}")


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
