"""The command line: compose the config, check it, run it, and tell user errors in one line."""

import argparse
import atexit
import gc
import os
import shlex
import sys
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metarun import ranks
from metarun.cli import launchers
from metarun.cli.check import BUILT, check
from metarun.cli.command_line import choices_of, parsed_arguments
from metarun.cli.complaints import missing_choice, of_machine, one_line, shortened, unreadable
from metarun.cli.help import help_text
from metarun.cli.sweep import run_sweep
from metarun.configs import environment
from metarun.configs import rules as schema
from metarun.configs.composing import composed, plain, spelled
from metarun.configs.rules import conf_folder, conf_folders
from metarun.errors import DataChanged, Interrupted, InUse, UserError
from metarun.folders import none_left_empty
from metarun.functional.metrics import METRICS
from metarun.runs import folder as runfolder
from metarun.runs import rerun
from metarun.runs.job import Job
from metarun.signals import StopSignals, ends_with_launcher
from metarun.tables import cells
from metarun.tracking import console


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
environment.guard()
# Our launchers bear the names of the plugins' own, by which Hydra 1.3 checks their values too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against")

# By sweep and reason, the first job of this process that failed.
told: dict[tuple[Path, str], int] = {}


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def job(config: DictConfig) -> float | None:
    """One run; its `objective`, for sweepers that look for the best."""
    with ends_with_launcher():
        return run_of(config)


def run_of(config: DictConfig) -> float | None:
    """The run that Hydra composed, in the process that is to do it; its `objective`."""
    load_torch()  # when work starts, not before
    ranks.gathered(None)  # Hydra has made the folder for each: now it is the first rank's alone
    from metarun import experiment, many_seeds
    from metarun.modes import embed, prepare

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # this very job, queued again
        config.resume = "auto"
    folder = from_here(Path(hydra_config.runtime.output_dir))
    asked = asked_for(config, folder, hydra_config)
    mode, seeds, resume = (asked.config[key] for key in ("mode", "seeds", "resume"))
    ours = resume == "auto" or not holds_run(folder)
    if ours and not ranks.rank():
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    try:
        if ranks.size() > 1 and mode not in ("train", "test"):
            raise UserError(f"mode={mode} is for one process: leave out torchrun")
        if ranks.size() > 1 and seeds > 1:
            raise UserError(f"seeds={seeds} is for one process: leave out torchrun")
        if mode in ("prepare", "verify"):
            runfolder.remove_empty(folder)  # Hydra made it
            console.plain(prepare.run(asked.config, asked.names["data"]))
            return None
        if seeds > 1:
            several = [of_seed(config, folder, hydra_config, n) for n in range(seeds)]
            found = map(objective, many_seeds.run(several, folder))
            values = [value for value in found if value is not None]
            return mean(values) if values else None
        if mode == "embed":
            results = embed.run(asked)
        else:
            sharing = in_sweep and resume == "auto"
            others = from_here(Path(hydra_config.sweep.dir).absolute()) if sharing else None
            results = experiment.run(asked, others)
    except Interrupted as stopped:
        if in_sweep:
            raise  # with which the sweep stops, and tells how to go on with it
        command = shlex.join(go_on(hydra_config, config.name, folder))
        raise Interrupted(f"{stopped}; go on with: {command}") from None
    except Exception as error:
        if in_sweep and isinstance(error, InUse) and resume == "auto":
            print(f"metarun: job {hydra_config.job.num}: {folder} is being run by another process")
            return None
        if in_sweep:
            tell_failure(error, folder, ours, hydra_config)
        elif isinstance(error, UserError) or of_machine(error):
            if not ranks.rank():
                runfolder.remove_empty(folder)  # Hydra made it
            leave(of_machine(error) or str(error))
        raise  # of a sweep the other jobs go on
    return objective(results)


def asked_for(config: DictConfig, folder: Path, hydra_config: HydraConf) -> Job:
    """The run that Hydra composed, in plain values."""
    choices = hydra_config.runtime.choices
    names = {group: str(choices[group]) for group in ("data", "augment", "algo", "backbone")}
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    names["sweep"] = Path(hydra_config.sweep.dir).absolute().name if in_sweep else ""
    texts = {
        ".hydra/config.yaml": OmegaConf.to_yaml(config),
        ".hydra/hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_config})),
        ".hydra/overrides.yaml": OmegaConf.to_yaml(hydra_config.overrides.task),
    }
    return Job(plain(config), folder, names, texts)


def of_seed(config: DictConfig, folder: Path, hydra_config: HydraConf, number: int) -> Job:
    """The single run of one of the seeds of `seeds=`, by its number."""
    own = config.copy()
    own.seed, own.seeds = config.seed + number, 1
    asked = asked_for(own, folder / f"seed{own.seed}", hydra_config)
    given = map(str, hydra_config.overrides.task)
    others = [word for word in given if not word.startswith(("seed=", "seeds="))]
    overrides = {".hydra/overrides.yaml": OmegaConf.to_yaml([*others, f"seed={own.seed}"])}
    return asked._replace(texts=asked.texts | overrides)


def objective(results: dict[str, Any]) -> float | None:
    """What a search maximises: the best validation, or minus it where less is better.

    Never a figure of the test, which would then be chosen by. None for a run without validation.
    """
    val = results.get("val") or {}
    known = (m.gain(val[m.name]) for m in METRICS.values() if val.get(m.name) is not None)
    return next(known, None)


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
    try:
        config = rerun.config_again(then["config"], defaults, typed, BUILT)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"rerun={folder}: the config in its results.json is damaged") from error
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
    experiment.run(Job(config, to, {**then["names"], "sweep": ""}, texts))
    equal, rows = rerun.comparison(folder, to)
    summary = {"rerun of": str(from_here(folder)), "equal": equal, "differences": rows}
    runfolder.write_json(to / "rerun.json", summary)
    verdict = "equal within rounding" if equal else "another result"
    print(aligned({**rows, "rerun": f"{verdict}: {to} repeats {from_here(folder)}"}))
    return 0 if equal else 1


def holds_run(folder: Path) -> bool:
    """Whether a run, or the several of seeds=, has begun in the folder."""
    return any([*folder.glob("results.json"), *folder.glob("seed*/results.json")])


def tell_failure(error: Exception, folder: Path, ours: bool, hydra_config: HydraConf) -> None:
    """Say why a job of a sweep failed, at once, and in the run's folder if it is the job's."""
    sweep, number = Path(hydra_config.sweep.dir).absolute(), hydra_config.job.num
    if isinstance(error, UserError) or of_machine(error):
        text = reason = of_machine(error) or str(error)
    else:
        reason = f"{type(error).__name__}: {one_line(error)}"
        text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    unfinished = cells.read(folder).state not in ("finished", "running")
    # What the folder holds, if anything, is not what was asked for.
    if ours and (unfinished or isinstance(error, DataChanged)):
        runfolder.write_text(folder / "error.txt", f"{text}\n")
    first = told.setdefault((sweep, reason), number)
    why = reason if first == number else f"the same as job {first}"
    print(f"metarun: job {number}: {why}", file=sys.stderr)


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
    named = spelled("name", name)
    command = [*torchrun, "metarun", *config_dir, *again, named, "resume=auto"]
    if any(o.startswith("hydra.run.dir=") for o in hydra_config.overrides.hydra):
        command.append(spelled("hydra.run.dir", folder))
    return command


def main() -> None:
    """The console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out whole, to be told here
    printing = False
    try:
        refuse_lost_folder()
        if ranks.expected() > 1:
            load_torch()
            ranks.join()
        arguments = parsed_arguments()
        printing = bool(arguments.help or arguments.cfg or arguments.info or arguments.hydra_help)
        if arguments.help:
            folders = conf_folders(arguments.config_dir)
            console.plain(help_text(folders, choices_of(arguments.overrides)))
            return
        if any(override.startswith("rerun=") for override in arguments.overrides):
            sys.exit(repeat(arguments))
        if arguments.shell_completion or arguments.hydra_help or arguments.info:
            try:
                job()
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(
                    f"{' '.join(sys.argv[1:])}: Hydra cannot do this: {error}"
                ) from None
            return
        with ranks.agreed():
            jobs = check(arguments.overrides, arguments.config_dir, arguments.multirun)
        refuse_no_package(arguments)
        with StopSignals():  # a launcher ends its processes when it is interrupted, not by SIGTERM
            if arguments.multirun:
                run_sweep(arguments, jobs, job)
            else:
                folder = Path(HydraConfig.get().run.dir)
                with nullcontext() if ranks.rank() else none_left_empty(folder):
                    ranks.gathered(None)  # what is new is known before any of them makes it
                    job()
        ranks.part()
    except UserError as error:
        leave(str(error))
    except MissingConfigException as error:
        leave(missing_choice(error))
    except OverrideParseException as error:
        leave(unreadable(error))
    except (HydraException, OmegaConfBaseException) as error:
        leave(one_line(error))
    except YAMLError as error:  # in a config of the user's own
        leave(" ".join(str(error).split()))
    except KeyboardInterrupt as stopped:
        leave(str(stopped) or "stopped", code=130)
    except BrokenPipeError:  # when nobody reads what is printed, as after `| head`
        if not printing:
            raise
        console.to_nobody()
    except Exception as error:
        if complaint := launchers.complaint(error):
            leave(complaint, code=1)
        if refused := of_machine(error):
            leave(refused)
        raise


def refuse_no_package(arguments: argparse.Namespace) -> None:
    """Raise UserError where --package asks --cfg for a part that the config does not have."""
    package = arguments.package
    if not arguments.cfg or package in (None, "_global_"):
        return
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        whole = composed(arguments.overrides, arguments.config_dir)
    if OmegaConf.select(whole, package) is not None:
        return
    if OmegaConf.select(whole, package, default="") is None:
        raise UserError(f"--package {package}: this is no group, but a key that is null")
    raise UserError(f"--package {package}: the config has no such part")


def refuse_lost_folder() -> None:
    """Raise UserError where the current folder has been removed."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the current folder is not there any more: change to another") from None


def leave(text: str, code: int = 2) -> NoReturn:
    """Say why in one line, which is the first rank's to say, and exit."""
    if ranks.rank() == 0:
        line = shortened(r"\n".join(text.splitlines()))
        print(f"metarun: {line}", file=sys.stderr, flush=True)
    ranks.let_first_speak()
    sys.exit(code)
