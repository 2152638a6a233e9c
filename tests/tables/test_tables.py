"""Every committed table."""

import pytest
from omegaconf import OmegaConf

from metarun.cli import conf_folder

CONF = conf_folder()
TABLES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in CONF.glob("table/*")}


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
    """The head of its file, where one looks first."""
    for cell in TABLES[name]["cells"]:
        if cell["experiment"].startswith("finn2017") and name == "raghu2020":
            continue  # the same run has another number there
        text = (CONF / "experiment" / f"{cell['experiment']}.yaml").read_text()
        assert f"{cell['paper']:g}" in text or f"{cell['paper']:.2f}" in text, cell


def test_papers():
    """Those that every comparison begins with."""
    assert {name.partition("_")[0] for name in TABLES} >= set(
        "koch2015 vinyals2016 snell2017 santoro2016 finn2017 ravi2017 nichol2018 antoniou2019 "
        "raghu2020 sung2018 mishra2018".split()
    )
