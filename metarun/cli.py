"""The command line: compose the config, check it, run it, and tell user errors in one line."""

import argparse
import atexit
import gc
import math
import os
import re
import shlex
import sys
import traceback
import warnings
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
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
from metarun import launchers, ranks, rerun, runfolder
from metarun.errors import DataChanged, Interrupted, InUse, UserError
from metarun.help import choice_files, help_text
from metarun.signals import StopSignals
from metarun.tables import cells
from metarun.tables.asked import Asked, asked, folder_of, record
from metarun.tracking import console

BUILT = ("data", "augment", "sampler", "backbone", "algo", "optim", "schedule")  # with a _target_
SOURCE = ("+data@data.sources.", "+data.sources.")  # what gives a mixture one more
MANY = 20  # values of a swept key that are tried before the sweep starts
# Hydra's own settings that could run or load something, or change what a run does.
FIXED = ["callbacks", "job.env_set", "job.env_copy", "job.chdir", "job_logging", "hydra_logging"]
FIXED += ["mode", "sweeper.custom_search_space"]
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")


def run_name(part: str = "", *, _root_: DictConfig) -> str:
    """What `${run_name:}` in a sweep's job stands for: the run's folder within the sweep's.

    `${run_name:table}` does not tell apart what only changes how a run computes.
    """
    keys = [str(key) for key in _root_ if key != "hydra"]
    choices = _root_.hydra.runtime.choices
    except_for = schema.UNSEEN if part == "table" else cells.UNNAMED
    return cells.run_name(plain(OmegaConf.masked_copy(_root_, keys)), choices, except_for)


# Here, where a launcher's worker finds it too, since it imports `job`.
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
# Our launchers bear the names of the plugins' own, by which Hydra 1.3 checks their values too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against")


def conf_folder() -> Path:
    """The committed configs: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def job(config: DictConfig) -> float | None:
    """One run; its `objective`, for sweepers that look for the best."""
    load_torch()  # when work starts, not before
    from metarun import embed, experiment, many_seeds

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
    folder = from_here(Path(hydra_config.runtime.output_dir))
    before = results_written(folder)
    if config.resume == "auto" or not before:
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    try:
        if ranks.size() > 1 and config.mode not in ("train", "test"):
            runfolder.remove_empty(folder)
            raise UserError(f"mode={config.mode} is for one process: leave out torchrun")
        if ranks.size() > 1 and config.seeds > 1:
            raise UserError(f"seeds={config.seeds} is for one process: leave out torchrun")
        if config.mode in ("prepare", "verify"):
            runfolder.remove_empty(folder)  # Hydra made it
            print(experiment.prepare(config, names["data"]))
            return None
        names["sweep"] = sweep
        if config.seeds > 1:
            found = map(objective, many_seeds.run(config, folder, names, texts))
            values = [value for value in found if value is not None]
            return mean(values) if values else None
        run = embed.run if config.mode == "embed" else experiment.run
        results = run(config, folder, names, texts)
    except Interrupted as stopped:
        if in_sweep:
            raise  # with which the sweep stops, and tells how to go on with it
        command = shlex.join(go_on(hydra_config, config.name, folder))
        raise Interrupted(f"{stopped}; go on with: {command}") from None
    except Exception as error:
        if in_sweep and isinstance(error, InUse) and config.resume == "auto":
            print(f"metarun: job {hydra_config.job.num}: {folder} is being run by another process")
            return None
        if in_sweep:
            tell_failure(error, folder, before, hydra_config.job.num)
        elif isinstance(error, UserError):
            leave(str(error))
        raise  # of a sweep the other jobs go on
    return objective(results)


def objective(results: dict[str, Any]) -> float | None:
    """What a search maximises: the best validation accuracy, or minus the lowest validation error.

    Never a figure of the test, which would then be chosen by. None for a run without validation.
    """
    val = results.get("val") or {}
    sign = {"accuracy": 1.0, "mse": -1.0}
    return next((sign[m] * val[m] for m in sign if val.get(m) is not None), None)


def from_here(folder: Path) -> Path:
    """The absolute path `folder`, as it is called from the current folder if it is below that."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def repeat(arguments: argparse.Namespace) -> int:
    """rerun=FOLDER: that run once more, in a new folder; 0 if it came to the same, else 1."""
    if arguments.multirun or arguments.cfg:
        raise UserError("rerun= repeats one run: leave out -m and --cfg")
    words = [o.removeprefix("rerun=") for o in arguments.overrides if o.startswith("rerun=")]
    if not words[-1]:
        raise UserError("rerun=: say which run, rerun=RUN_FOLDER")
    folder = Path(words[-1]).expanduser().resolve()
    others = [o for o in arguments.overrides if not o.startswith("rerun=")]
    parsed = OverridesParser.create().parse_overrides(others)
    if any(override.is_sweep_override() for override in parsed):
        raise UserError("rerun= repeats one run: give each key one value")
    typed = schema.flat({override.get_key_element(): override.value() for override in parsed})
    then = rerun.finished(folder)
    typed = {"name": rerun.new_folder(folder).name, **typed}
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        defaults = plain(hydra.compose("config"))
    config = rerun.config_again(then["config"], defaults, typed, BUILT)
    to = from_here(folder.with_name(str(config["name"])))
    load_torch()
    import torch

    from metarun import experiment
    from metarun.tracking.console import aligned

    torch.set_num_threads(then["provenance"]["threads"])  # in which order a CPU adds depends on it

    texts = {
        ".hydra/config.yaml": OmegaConf.to_yaml(OmegaConf.create(config)),
        ".hydra/overrides.yaml": OmegaConf.to_yaml(arguments.overrides),
    }
    experiment.run(OmegaConf.create(config), to, {**then["names"], "sweep": ""}, texts)
    equal, rows = rerun.comparison(folder, to)
    summary = {"rerun of": str(from_here(folder)), "equal": equal, "differences": rows}
    runfolder.write_json(to / "rerun.json", summary)
    verdict = "equal within rounding" if equal else "another result"
    print(aligned({**rows, "rerun": f"{verdict}: {to} repeats {from_here(folder)}"}))
    return 0 if equal else 1


def results_written(folder: Path) -> dict[Path, int]:
    """When each results.json was written in a run's folder, which has several with seeds=."""
    paths = [*folder.glob("results.json"), *folder.glob("seed*/results.json")]
    return {path: path.stat().st_mtime_ns for path in paths}


def tell_failure(error: Exception, folder: Path, before: dict[Path, int], number: int) -> None:
    """Say why a job of a sweep failed, at once and in the run's folder if it got to be the job's.

    `before` is what `results_written` gave when the job began.
    """
    if isinstance(error, UserError):
        text = reason = str(error)
    else:
        reason = f"{type(error).__name__}: {one_line(error)}"
        text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    began = not before or results_written(folder) != before
    unfinished = cells.read(folder).state not in ("finished", "running")
    # The folder is of this run, and what it holds, if anything, is not what was asked for.
    if isinstance(error, DataChanged) or (began and unfinished):
        runfolder.write_text(folder / "error.txt", f"{text}\n")
    print(f"metarun: job {number}: {reason}", file=sys.stderr)


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
    local = os.environ.get("LOCAL_WORLD_SIZE", ranks.size())
    torchrun = ["torchrun", f"--nproc-per-node={local}", "-m"] if ranks.size() > 1 else []
    command = [*torchrun, "metarun", *config_dir, *again, f"name={name}", "resume=auto"]
    if any(o.startswith("hydra.run.dir=") for o in hydra_config.overrides.hydra):
        command.append(f"hydra.run.dir={folder}")
    return command


def main() -> None:
    """The console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out whole, to be told here
    try:
        if ranks.expected() > 1:
            load_torch()
            ranks.join()
        arguments = parsed_arguments()
        if arguments.help:
            folders = [conf_folder(), *map(Path, filter(None, [arguments.config_dir]))]
            print(help_text(folders, choices_of(arguments.overrides)))
            return
        if any(override.startswith("rerun=") for override in arguments.overrides):
            sys.exit(repeat(arguments))
        if arguments.shell_completion or arguments.hydra_help or arguments.info:
            job()
            return
        with ranks.agreed():
            jobs = check(arguments.overrides, arguments.config_dir, arguments.multirun)
        with StopSignals():  # a launcher ends its processes when it is interrupted, not by SIGTERM
            if arguments.multirun:
                run_sweep(arguments, jobs)
            else:
                job()
        ranks.part()
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
    folders = [conf_folder(), *map(Path, filter(None, [arguments.config_dir]))]
    arguments.overrides = [o for word in given for o in mixture_spelled_out(word, folders)]
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


def run_sweep(arguments: argparse.Namespace, values: list[list[str]]) -> None:
    """The jobs of a multirun, `values` being those of each override, and what came of them.

    Exits with code 1 if a run of a table failed, which its table then tells.
    """
    from metarun.tables import render, summary
    from metarun.tables.live import Watch

    table, failure = arguments.table, None
    wanted: list[dict[str, Any]] = []
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        if table:
            every, wanted = runs_of(table, values, arguments.config_dir)
            spelled = f"hydra.sweep.dir={folder_of(table, every)}"
            if not any(o.startswith("hydra.sweep.dir=") for o in arguments.overrides):
                sys.argv.append(spelled)
                values = [*values, [spelled]]
        first = composed([each[0] for each in values], arguments.config_dir)
        HydraConfig.instance().set_config(first)
        folder, name = Path(first.hydra.sweep.dir), first.name
        if table:
            record(table, folder, wanted)
    with Watch(folder, math.prod(map(len, values)), {folder / run["folder"] for run in wanted}):
        try:
            job()
        except KeyboardInterrupt as stopped:
            again = [o for o in arguments.typed if not o.startswith(("name=", "resume="))]
            command = [*again, *([] if table else [f"name={name}", "resume=auto"])]
            text = f"{stopped or 'stopped'}; go on with: {shlex.join(['metarun', *command])}"
            raise Interrupted(text) from None
        except Exception as error:  # the first of them; each has been told
            failure = error
    told = render.write(folder) if table else summary.write(folder)
    console.plain(f"\n{told}")
    if failure and table and any(run.state == "failed" for run in cells.below(folder)):
        sys.exit(1)  # each has told why
    if failure:
        raise failure


def runs_of(
    table: Asked, values: list[list[str]], config_dir: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs of all the table's cells, and those of them that are asked for.

    Raises UserError for a sweep over other keys, or an experiment that is not in the table.
    """
    swept: dict[str, list[str]] = {}
    for each in values:
        key = each[0].partition("=")[0]
        swept[key] = [override.partition("=")[2] for override in each]
        if len(each) > 1 and key not in ("experiment", "seed"):
            raise UserError(f"{key}: table= sweeps over experiment= and seed= alone")
    known = [cell["experiment"] for cell in table.definition["cells"]]
    for experiment in swept["experiment"]:
        if experiment not in known:
            near = schema.nearest(experiment, known)
            raise UserError(f"experiment={experiment}: not in table={table.name}{near}")

    def compose(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        config = composed(overrides, config_dir)
        choices = dict(config.hydra.runtime.choices)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return plain(config), choices

    every = table.runs(compose, list(map(int, swept["seed"])))
    return every, [run for run in every if run["experiment"] in swept["experiment"]]


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


def leave(text: str, code: int = 2) -> NoReturn:
    """Say why in one line, which is the first rank's to say, and exit."""
    if ranks.rank() == 0:
        print(f"metarun: {text}", file=sys.stderr, flush=True)
    ranks.let_first_speak()
    sys.exit(code)


def check(overrides: list[str], config_dir: str | None, multirun: bool = False) -> list[list[str]]:
    """The values of each override, several in a sweep.

    Raises an error if a job would be refused, without loading torch. Of a sweep, the values of each
    key are tried once, beside the first values of the others.
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
    whole = composed(overrides, config_dir)
    choices = dict(whole.hydra.runtime.choices)
    own = [f"{group}={choice}" for group, choice in choices.items() if is_ours(group)]
    sources = [override for override in overrides if override.startswith(SOURCE)]
    committed = composed([*own, *sources], config_dir)
    refuse_foreign_code(whole.hydra, shipped.hydra)
    HydraConfig.instance().set_config(whole)
    refuse_unwritable(Path(whole.hydra.run.dir))
    refuse_unwritable(Path(whole.hydra.sweep.dir))
    for config in (whole, committed):
        with open_dict(config):
            del config["hydra"]
    typed = [o.lstrip("+") for o in overrides if o.lstrip("+").startswith("plugins.allow=")]
    allowed = OmegaConf.from_dotlist(["plugins.allow=[]", *typed]).plugins.allow
    if not isinstance(allowed, ListConfig):
        raise UserError(f"{typed[-1]}: a list is needed, as in plugins.allow=[my_package]")
    if OmegaConf.select(whole, "plugins.allow") != allowed:
        raise UserError("plugins.allow: it can be given on the command line only")
    # A group's own keys are those of its file; no file adds keys elsewhere.
    grouped = plain(committed)
    elsewhere = plain(
        OmegaConf.masked_copy(shipped, [str(key) for key in shipped if key != "hydra"])
    )
    reference = elsewhere | {key: grouped[key] for key in BUILT}
    reference["eval"] = elsewhere["eval"] | {"sampler": grouped["eval"]["sampler"]}
    schema.check(plain(whole), reference, list(allowed))


def composed(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The config of a job with these overrides, Hydra's own settings included."""
    added = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    return hydra.compose("config", [*overrides, *added], return_hydra_config=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, with nothing left to resolve."""
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return container


def is_ours(group: str) -> bool:
    """Whether the config group is one of metarun's, whose YAML is the schema of what it holds."""
    return not group.startswith(("hydra/", "experiment", "table", "data@"))


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
        if not target.startswith(PLUGINS):
            raise UserError(f"hydra.{key}={target}: not allowed to run")
    if own.runtime.choices["hydra/sweeper"] == "search" and not find_spec("optuna"):
        raise UserError("hydra/sweeper=search: it must be installed: pip install 'metarun[search]'")


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
