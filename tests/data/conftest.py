"""Every test of the data prepares into a folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The empty folder that $METARUN_DATA names."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("METARUN_DATA", str(folder))
    return folder
