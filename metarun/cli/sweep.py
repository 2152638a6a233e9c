"""A multirun: its jobs, watched, and what came of them."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from metarun.configs import rules as schema
from metarun.configs.composing import composed, plain, spelled
from metarun.configs.rules import conf_folder
from metarun.errors import Interrupted, UserError
from metarun.tables import cells
from metarun.tables.asked import Asked, experiments_of, folder_of, record
from metarun.tracking import console


def run_sweep(
    arguments: argparse.Namespace, values: list[list[str]], launch: Callable[[], None]
) -> None:
    """The jobs of a multirun, which `launch()` runs, and what came of them.

    `values` are those of each override.
    Exits with code 1 if a run of a table failed, which its table then tells.
    """
    from metarun.tables import render, summary
    from metarun.tables.live import Watch

    table, failure = arguments.table, None
    wanted: list[dict[str, Any]] = []
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        if table:
            every, wanted = runs_of(table, values, arguments.config_dir)
            home = f"hydra.sweep.dir={folder_of(table, every)}"
            if not any(o.startswith("hydra.sweep.dir=") for o in arguments.overrides):
                sys.argv.append(home)
                values = [*values, [home]]
        first = composed([each[0] for each in values], arguments.config_dir)
        HydraConfig.instance().set_config(first)
        folder, name = Path(first.hydra.sweep.dir), first.name
        if table:
            record(table, folder, wanted)
    total = math.prod(map(len, values)) * first.seeds
    with Watch(folder, total, {folder / run["folder"] for run in wanted}):
        try:
            launch()
        except KeyboardInterrupt as stopped:
            again = [o for o in arguments.typed if not o.startswith(("name=", "resume="))]
            command = [*again, *([] if table else [spelled("name", name), "resume=auto"])]
            text = f"{stopped or 'stopped'}; go on with: {shlex.join(['metarun', *command])}"
            raise Interrupted(text) from None
        except Exception as error:  # the first of them; each has been told
            failure = error
    try:
        told = render.write(folder) if table else summary.write(folder)
    except UserError as unwritten:  # a full disk, which has ended the runs before
        raise failure or unwritten from None
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
    known = experiments_of(table.definition)
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
