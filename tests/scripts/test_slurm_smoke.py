"""Where the script looks for the runs that it waits for."""

import importlib.util
from pathlib import Path

from metarun.tables import cells

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_smoke.py"
spec = importlib.util.spec_from_file_location("slurm_smoke", SCRIPT)
smoke = importlib.util.module_from_spec(spec)
spec.loader.exec_module(smoke)


def test_it_finds_the_runs_of_a_sweep(tmp_path):
    """Where the command line puts them, of a data set and a method or of an experiment."""
    choices = {"data": "glyphs", "algo": "protonet", "experiment": None}
    names = {}
    for seed in (0, 1):
        for experiment in (None, "snell2017/omniglot_5way_1shot"):
            chosen = choices | {"experiment": experiment}
            folder = tmp_path / cells.run_name({"seed": seed}, chosen, [])
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("{}\n" * 21)
            (folder / "results.json").write_text("{}")
            names[seed, experiment] = folder
    assert smoke.begun(tmp_path, "glyphs_protonet", 1) == names[1, None]
    snell = names[0, "snell2017/omniglot_5way_1shot"]
    assert smoke.begun(tmp_path, "snell2017-omniglot_5way_1shot", 0) == snell
    assert smoke.results_below(tmp_path) == set(names.values())
