"""The time to the first training step."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "startup.py"


def test_the_stages_of_one_start(tmp_path):
    run = ["data=sinusoid", "algo=maml", "algo.inner_lr=0.01", "tracker=none", "device=cpu"]
    command = [sys.executable, SCRIPT, "--rounds", "1", *run]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    words = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in words] == ["read", "import", "import", "until"]
    moments = [float(line[-1]) for line in words]
    assert 0 < moments[0] < moments[1] < moments[2] < moments[3]
    assert not list(tmp_path.iterdir())
