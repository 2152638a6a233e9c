"""The curves of growth."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "growth.py"
spec = importlib.util.spec_from_file_location("growth", SCRIPT)
growth = importlib.util.module_from_spec(spec)
spec.loader.exec_module(growth)


def test_exponents_of_powers():
    """Of a v², whatever a; and only the upper half counts."""
    values = [1, 2, 4, 8, 16]
    assert growth.exponent(values, [3 * v**2 for v in values]) == pytest.approx(2)
    assert growth.exponent(values, [100, 50, 4, 8, 16]) == pytest.approx(1)
    assert growth.exponent([5, 10], [7, 7]) == pytest.approx(0)


def test_a_quick_look(tmp_path):
    """Files with every factor of either algorithm; what another call measured is kept."""
    file = tmp_path / "growth.json"
    old = {
        "values": [1, 2],
        "seconds": [1, 2],
        "mib": [1, 2],
        "exponents": {"seconds": 1, "mib": 1},
    }
    file.write_text(json.dumps({"fomaml/way": old}))
    command = [sys.executable, SCRIPT, "--quick", "--device", "cpu", "--json", file]
    curves = ["protonet", "maml"]
    done = subprocess.run([*command, *curves], capture_output=True, text=True, check=True)
    found = json.loads(file.read_text())
    factors = ["tasks", "way", "shot", "pixels"]
    expected = [f"protonet/{f}" for f in factors] + [f"maml/{f}" for f in [*factors, "inner_steps"]]
    assert list(found) == ["fomaml/way", *expected]
    assert found["fomaml/way"] == old
    for name in expected:
        curve = found[name]
        assert len(curve["values"]) == len(curve["seconds"]) == len(curve["mib"]) == 2
        assert min(curve["seconds"]) > 0
        assert min(curve["mib"]) >= 0
        assert f"| {name} |" in done.stdout
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_an_unknown_curve_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "maml/ways"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such curve: maml/ways; choose of protonet/tasks" in done.stderr
