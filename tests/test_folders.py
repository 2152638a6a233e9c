"""What is left of folders that were made for nothing."""

from metarun.folders import none_left_empty


def test_only_new_and_empty_folders_are_removed(tmp_path):
    (tmp_path / "before").mkdir()
    with none_left_empty(tmp_path / "before/a/b"):
        (tmp_path / "before/a/b").mkdir(parents=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["before"]
    with none_left_empty(tmp_path / "before/a/never made"):
        (tmp_path / "before/a").mkdir()
    assert not (tmp_path / "before/a").exists()
    with none_left_empty(tmp_path / "c/d/e"):
        (tmp_path / "c/d/e").mkdir(parents=True)
        (tmp_path / "c/thesis.tex").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.tex"]
