"""Every algorithm, typed alone, learns on the embedded data: `pytest -m slow`."""

import pytest

from tests.test_every_pair import ALGORITHMS

CHANCE = 0.2  # of five classes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_typed_alone_it_learns(metarun, algo):
    """At least twice chance, by the lower end of its interval, and nothing about it is doubted."""
    metarun.main(f"algo={algo}", "tracker=none", "device=cpu", "hydra.run.dir=outputs/alone")
    results = metarun.results("alone")
    assert results["test"]["episodes"] == 600
    assert results["test"]["accuracy"] - results["test"]["ci95"] > 2 * CHANCE
    assert not results["test"]["doubts"]
    assert not results["train"]["doubts"]
