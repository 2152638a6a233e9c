"""The few lines that a sweep ends with."""

import json
import math

import pytest

from metarun.tables import summary
from tests.tables.test_render import write_run


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_figure_that_is_not_finite_comes_last(tmp_path):
    """Whatever it is compared with; the others keep theirs."""
    for name, episodes in {"a": [math.inf, math.inf], "b": [0.2, 0.4], "c": [0.6, 0.8]}.items():
        write_run(tmp_path / name / "seed0", episodes)
        results = json.loads((tmp_path / name / "seed0/results.json").read_text())
        results["names"]["algo"] = name
        if name == "a":
            results["test"] |= {"accuracy": None, "ci95": None}
        (tmp_path / name / "seed0/results.json").write_text(json.dumps(results))
    lines = summary.write(tmp_path).splitlines()
    assert [line[:20] for line in lines[2:5]] == [
        "| algo=c | 70.00 % |",
        "| algo=b | 30.00 % |",
        "| algo=a | – % | – |",
    ]
    assert "algo=a less algo=b, same episodes: –" in lines


def test_a_run_repeated_beside_its_own_is_no_other_seed(tmp_path):
    """rerun= puts it there, with a rerun.json."""
    for name in ("seed0", "seed1", "seed0-rerun1"):
        write_run(tmp_path / "a" / name, [0.2, 0.4], seed=int(name[4]))
    (tmp_path / "a/seed0-rerun1/rerun.json").write_text("{}")
    assert "| 0, 1 |" in summary.write(tmp_path)
