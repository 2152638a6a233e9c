"""Convolutions of many tasks, in several ways."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

SCRIPT = Path(__file__).parents[2] / "scripts" / "per_task_convolutions.py"
spec = importlib.util.spec_from_file_location("per_task_convolutions", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.mark.parametrize("way", script.WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_maps_and_gradients(way, channels):
    """Those of every task by itself, in float64."""
    torch.manual_seed(0)
    x = torch.randn(3, 2, channels, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 16, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([F.conv2d(x[t], weight[t], padding=1) for t in range(3)])
    gradients = torch.autograd.grad((expected**2).sum() / 2, (x, weight))
    single = [t.detach().float().requires_grad_() for t in (x, weight)]
    found = script.maps_and_gradients(way, *single)
    for mine, its in zip(found, (expected, *gradients), strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-3)


def test_maps_and_gradients_by_the_kernels(kernels):
    test_maps_and_gradients(script.metarun, 16)


def test_operations_are_counted():
    """A map is as many sums of nine products a channel, and each gradient as many again."""
    layer = script.Layer(tasks=2, images=3, side=4, channels=5, filters=6)
    maps = 2 * 3 * 6 * 4 * 4
    assert layer.flop == 3 * maps * 5 * 9 * 2


def test_the_table(tmp_path, monkeypatch, capsys):
    """A row a layer, and the same figures in the file."""
    monkeypatch.setattr(script, "CASES", {"tiny": script.conv4(2, 1, 8, 1, 16)})
    file = tmp_path / "ways.json"
    arguments = ["--device", "cpu", "--rounds", "1", "--seconds", "0.001", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["per_task_convolutions.py", *arguments])
    script.main()
    _, _, heading, *rows = capsys.readouterr().out.splitlines()
    names = ["metarun", "grouped", "im2col", "apart"]
    assert heading.split() == [*names, "GFLOP/s"]
    figures = json.loads(file.read_text())
    assert len(rows) == len(figures) == 4
    assert rows[1].startswith("tiny          2×1×4²  16 → 16")
    for row, layer in zip(rows, figures, strict=True):
        seconds = [layer["seconds"][name] for name in names]
        assert min(seconds) > 0
        assert row.split()[-5:-1] == [f"{1000 * each:.2f}" for each in seconds]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("maml", "no such case: maml; there are maml-omni, maml-omni-q1, maml-mini"),
        ("--device cpu --precision tf32", "tf32"),
        ("--rounds 0", "--rounds: give at least 1"),
        ("--json nowhere/ways.json", "--json nowhere/ways.json: there is no such folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(typed, said):
    done = subprocess.run([sys.executable, SCRIPT, *typed.split()], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]
