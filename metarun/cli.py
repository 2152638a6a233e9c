"""The command line: compose the config, check it, run it, and tell user errors in one line."""

import argparse
import atexit
import gc
import os
import re
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metarun import config as schema
from metarun import launchers
from metarun.errors import Interrupted, UserError
from metarun.help import choice_files, help_text
from metarun.signals import StopSignals

BUILT = ("data", "augment", "sampler", "backbone", "algo", "optim", "schedule")  # with a _target_
SOURCE = ("+data@data.sources.", "+data.sources.")  # what gives a mixture one more
MANY = 20  # values of a swept key that are tried before the sweep starts
# Hydra's own settings that could run or load something, or change what a run does.
FIXED = ["callbacks", "job.env_set", "job.env_copy", "job.chdir", "job_logging", "hydra_logging"]
# Our launchers bear the names of the plugins' own, by which Hydra 1.3 checks their values too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against")


def conf_folder() -> Path:
    """The committed configs: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def job(config: DictConfig) -> float | None:
    """One run; its test accuracy (or error), for sweepers that look for the best."""
    load_torch()  # when work starts, not before
    from metarun import embed, experiment, runfolder

    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    names = {group: str(choices[group]) for group in ("data", "augment", "algo", "backbone")}
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # this very job, queued again
        config.resume = "auto"
    sweep = Path(hydra_config.sweep.dir).absolute().name if in_sweep else ""
    texts = {
        ".hydra/config.yaml": OmegaConf.to_yaml(config),
        ".hydra/hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_config})),
        ".hydra/overrides.yaml": OmegaConf.to_yaml(hydra_config.overrides.task),
    }
    folder = Path(hydra_config.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    try:
        if config.mode in ("prepare", "verify"):
            runfolder.remove_empty(folder)  # Hydra made it
            print(experiment.prepare(config, names["data"]))
            return None
        run = embed.run if config.mode == "embed" else experiment.run
        results = run(config, folder, {**names, "sweep": sweep}, texts)
    except Interrupted as stopped:
        command = shlex.join(go_on(hydra_config, config.name, folder))
        raise Interrupted(f"{stopped}; go on with: {command}") from None
    except UserError as error:
        if not in_sweep:
            leave(str(error))
        print(f"metarun: job {hydra_config.job.num}: {error}", file=sys.stderr)
        raise  # the other jobs go on
    except Exception:
        if in_sweep:  # from another process, a launcher brings home the error without its traceback
            traceback.print_exc()
        raise
    return results["test"][results["test"]["metric"]] if "test" in results else 0.0


def load_torch() -> None:
    """Import torch without the garbage collector looking through its million objects."""
    if "torch" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        import torch._dynamo  # noqa: F401  # which the first optimiser would import, more slowly

        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    atexit.register(gc.unfreeze)  # triton takes what is frozen at exit for leaks, and tells them


def go_on(hydra_config: HydraConf, name: str, folder: Path) -> list[str]:
    """The command that goes on with the interrupted run in `folder`."""
    sources = hydra_config.runtime.config_sources
    mine = [source.path for source in sources if source.provider == "command-line"]
    config_dir = [word for path in mine for word in ("--config-dir", path)]
    again = [o for o in hydra_config.overrides.task if not o.startswith(("name=", "resume="))]
    command = ["metarun", *config_dir, *again, f"name={name}", "resume=auto"]
    own_folder = any(o.startswith("hydra.run.dir=") for o in hydra_config.overrides.hydra)
    if own_folder or hydra_config.mode == RunMode.MULTIRUN:
        command.append(f"hydra.run.dir={folder}")
    return command


def main() -> None:
    """The console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out whole, to be told here
    try:
        arguments = parsed_arguments()
        if arguments.help:
            folders = [conf_folder(), *map(Path, filter(None, [arguments.config_dir]))]
            print(help_text(folders, choices_of(arguments.overrides)))
            return
        if not (arguments.shell_completion or arguments.hydra_help or arguments.info):
            check(arguments.overrides, arguments.config_dir, arguments.multirun)
        with StopSignals():  # a launcher ends its processes when it is interrupted, not by SIGTERM
            job()
    except UserError as error:
        leave(str(error))
    except MissingConfigException as error:
        leave(missing_choice(error))
    except OverrideParseException as error:
        leave(f"{error.override}: cannot be read: write key=value ({one_line(error)})")
    except (HydraException, OmegaConfBaseException) as error:
        leave(one_line(error))
    except KeyboardInterrupt as stopped:
        leave(str(stopped) or "stopped", code=130)
    except Exception as error:
        if complaint := launchers.complaint(error):
            leave(complaint, code=1)
        raise


def parsed_arguments() -> argparse.Namespace:
    """The options and overrides of sys.argv, which is put in an order that Hydra can read too."""
    arguments, later = get_args_parser().parse_known_args()
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
    folders = [conf_folder(), *map(Path, filter(None, [arguments.config_dir]))]
    arguments.overrides = [o for word in given for o in mixture_spelled_out(word, folders)]
    sys.argv[1:] = [*options, *arguments.overrides]
    return arguments


def mixture_spelled_out(override: str, folders: list[Path]) -> list[str]:
    """`data=[omniglot,mine:image_folder]` as Hydra knows it: a mixture with these sources.

    A source is called as its choice of `data`, or as told before a colon.
    """
    found = re.fullmatch(r"data=\[(.*)\]", override)
    if found is None:
        return [override]
    choices, spelled = choice_files(folders, "data"), ["data=mixture"]
    for item in filter(None, (item.strip() for item in found[1].split(","))):
        name, _, choice = item.rpartition(":")
        name = name or choice
        if choice not in choices:
            raise UserError(missing_choice_of("data", choice, list(choices)))
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


def leave(text: str, code: int = 2) -> NoReturn:
    """Say why in one line, and exit."""
    print(f"metarun: {text}", file=sys.stderr)
    sys.exit(code)


def check(overrides: list[str], config_dir: str | None, multirun: bool = False) -> None:
    """Raise an error if a job of this command line would be refused, without loading torch.

    Of a sweep, the values of each key are tried once, beside the first values of the others.
    """
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(overrides)
        spelled = [spelled_values(override) for override in parsed]
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


def check_launcher(
    overrides: list[str], first: list[str], config_dir: str | None, multirun: bool
) -> None:
    """Raise UserError if the sweep's jobs could not be launched as asked.

    `overrides` are those that all its jobs share, by which Hydra chooses the launcher, and `first`
    those of its first job.
    """
    added = search_path(config_dir)
    composed, of_job = (
        hydra.compose("config", [*given, *added], return_hydra_config=True).hydra
        for given in (overrides, first)
    )
    choice, meant = (own.runtime.choices["hydra/launcher"] for own in (composed, of_job))
    if meant != choice:
        raise UserError(f"hydra/launcher={meant}: nothing that is swept can choose the launcher")
    if choice != "basic" and not multirun and composed.mode != RunMode.MULTIRUN:
        raise UserError(f"hydra/launcher={choice}: it launches the jobs of a sweep: add -m")
    kind = launchers.kind(composed.launcher._target_, conf_folder() / "hydra" / "launcher")
    if kind:
        typed = [o for o in overrides if o.lstrip("+").startswith(launchers.TYPED)]
        committed = hydra.compose(
            "config", [f"hydra/launcher={kind}", *typed], return_hydra_config=True
        )
        reference = plain(committed.hydra.launcher)
        launchers.check(plain(composed.launcher), reference, kind, overrides)


def search_path(config_dir: str | None) -> list[str]:
    """The override by which the user's own configs are found, if there are any."""
    return [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []


def check_job(overrides: list[str], config_dir: str | None, shipped: DictConfig) -> None:
    """Raise an error if the job with these overrides would be refused.

    `shipped` is the committed config without any override, Hydra's own settings included.
    """
    added = search_path(config_dir)
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    for override in overrides:
        group, _, choice = override.partition("=")
        if choice in ("", "null") and group != "experiment" and (conf_folder() / group).is_dir():
            raise UserError(f"{override}: a run needs one: see metarun --help")
    composed = hydra.compose("config", [*overrides, *added], return_hydra_config=True)
    choices = dict(composed.hydra.runtime.choices)
    own = [f"{group}={choice}" for group, choice in choices.items() if is_ours(group)]
    sources = [override for override in overrides if override.startswith(SOURCE)]
    committed = hydra.compose("config", [*own, *sources, *added])
    refuse_foreign_code(composed.hydra, shipped.hydra)
    HydraConfig.instance().set_config(composed)
    refuse_unwritable(Path(composed.hydra.run.dir))
    refuse_unwritable(Path(composed.hydra.sweep.dir))
    with open_dict(composed):
        del composed["hydra"]
    typed = [o.lstrip("+") for o in overrides if o.lstrip("+").startswith("plugins.allow=")]
    allowed = OmegaConf.from_dotlist(["plugins.allow=[]", *typed]).plugins.allow
    if not isinstance(allowed, ListConfig):
        raise UserError(f"{typed[-1]}: a list is needed, as in plugins.allow=[my_package]")
    if OmegaConf.select(composed, "plugins.allow") != allowed:
        raise UserError("plugins.allow: it can be given on the command line only")
    # A group's own keys are those of its file; no file adds keys elsewhere.
    grouped = plain(committed)
    elsewhere = plain(
        OmegaConf.masked_copy(shipped, [str(key) for key in shipped if key != "hydra"])
    )
    reference = elsewhere | {key: grouped[key] for key in BUILT}
    reference["eval"] = elsewhere["eval"] | {"sampler": grouped["eval"]["sampler"]}
    schema.check(plain(composed), reference, list(allowed))


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, with nothing left to resolve."""
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return container


def is_ours(group: str) -> bool:
    """Whether the config group is one of metarun's, whose YAML is the schema of what it holds."""
    return not group.startswith(("hydra/", "experiment", "data@"))


def spelled_values(override: Override) -> list[str]:
    """The overrides of one value that a sweeping override stands for; an ordinary one is itself."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        options = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
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


def refuse_foreign_code(own: DictConfig, shipped: DictConfig) -> None:
    """Raise UserError if Hydra's own settings were changed where they could run something."""
    for key in FIXED:
        if OmegaConf.select(own, key) != OmegaConf.select(shipped, key):
            raise UserError(f"hydra.{key}: it cannot be changed in metarun")
    for key, target in schema.targets(OmegaConf.to_container(own)):
        if not target.startswith(("hydra._internal.core_plugins.", "hydra_plugins.")):
            raise UserError(f"hydra.{key}={target}: not allowed to run")


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


def choices_of(overrides: list[str]) -> dict[str, str]:
    """The group=choice pairs among the overrides."""
    return dict(override.split("=", 1) for override in overrides if "=" in override)
