"""What a sweep leaves and tells."""

import pytest

from metarun.errors import UserError
from metarun.tables import summary
from tests.conftest import QUICK


def test_why_runs_failed_is_told_though_the_summary_cannot_be_written(metarun, monkeypatch):
    """As on a full disk."""

    def full(folder):
        raise UserError(f"cannot write {folder}/summary.md: No space left on device")

    monkeypatch.setattr(summary, "write", full)
    sweep = ("-m", *metarun.data, *QUICK, "hydra.sweep.dir=outputs")
    metarun.capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*sweep, "algo.distance=manhattan,cosine")
    assert leaving.value.code == 2
    said = metarun.capsys.readouterr().err.splitlines()
    assert said[-1].startswith("metarun: algo.distance=manhattan: choose one of")
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*sweep, "algo.distance=cosine,euclidean", "resume=auto")
    assert leaving.value.code == 2
    assert "cannot write outputs/summary.md" in metarun.capsys.readouterr().err
