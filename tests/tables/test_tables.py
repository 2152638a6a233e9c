"""Every committed table."""

import itertools
import re

import pytest
from omegaconf import OmegaConf

from metarun.configs.rules import conf_folder

CONF = conf_folder()
FILES = sorted((CONF / "table").glob("*.yaml"))
TABLES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in FILES}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_cells(name):
    """They are experiments that exist, with numbers, and it is said where those were read."""
    table = TABLES[name]
    keys = {"title", "source", "data", "metric", "seeds", "cells"}
    assert keys <= set(table) <= keys | {"notes"}
    assert table["metric"] in ("accuracy", "mse")
    assert len(set(table["seeds"])) >= 3
    labels = [cell.get("label") or cell["experiment"] for cell in table["cells"]]
    assert len(set(labels)) == len(labels)
    for cell in table["cells"]:
        needed = {"experiment", "paper", "ci95", "read_in"}
        assert needed <= set(cell) <= needed | {"label", "measure"}
        assert (CONF / "experiment" / f"{cell['experiment']}.yaml").is_file()
        assert isinstance(cell["paper"], float)
        assert cell["paper"] <= 100
        assert cell["ci95"] is None or 0 < cell["ci95"] < 3
        assert cell["read_in"] in ("paper", "repository", "quoted", "memory")


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_experiment_says_the_same_number(name):
    """The head of its file, where one looks first; and so it says of numbers from memory."""
    for cell in TABLES[name]["cells"]:
        if cell["experiment"].startswith("finn2017") and name == "raghu2020":
            continue  # the same run has another number there
        head = head_of(cell["experiment"])
        number = "|".join(re.escape(f"{cell['paper']:{form}}") for form in ("g", ".1f", ".2f"))
        if TABLES[name]["metric"] == "mse":
            assert re.search(rf"MSE ([\d.]+ / )*({number})(?!\d)", head), cell
        else:
            assert re.search(rf"(?<![\d.])({number})((,| ±) [\d.]+)* %", head), cell
        others = [c for c in TABLES[name]["cells"] if c["experiment"] == cell["experiment"]]
        from_memory = any(other["read_in"] == "memory" for other in others)
        assert ("from memory" in head) == from_memory, cell


def head_of(experiment):
    """The comment that an experiment's file begins with, as one line."""
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("# ") for line in head)


def test_papers():
    """Those that every comparison begins with."""
    assert {name.partition("_")[0] for name in TABLES} >= set(
        "koch2015 vinyals2016 snell2017 santoro2016 finn2017 ravi2017 nichol2018 antoniou2019 "
        "raghu2020 sung2018 mishra2018".split()
    )
