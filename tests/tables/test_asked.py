"""What a table's folder says it is a table of."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from metarun.runs import folder as runfolder
from metarun.tables.asked import Asked, record


def test_two_that_ask_for_other_seeds_at_once(tmp_path, monkeypatch):
    """The table has the runs of both."""
    read_json = runfolder.read_json

    def slowly(path):
        content = read_json(path)
        time.sleep(0.05)
        return content

    monkeypatch.setattr(runfolder, "read_json", slowly)
    table = Asked("nobody", {"title": "Two distances"}, [])
    runs = [{"experiment": "nobody/near", "seed": seed, "folder": f"{seed}"} for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda run: record(table, tmp_path / "table", [run]), runs))
    kept = read_json(tmp_path / "table/table_of.json")
    assert sorted(run["seed"] for run in kept["runs"]) == [0, 1, 2, 3]
    assert kept["title"] == "Two distances"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"runs": 3}', '{"runs": [{}]}', '{"runs": ['])
def test_a_damaged_one_is_made_again(tmp_path, content):
    """Of the runs that are asked for now."""
    path = tmp_path / "table_of.json"
    path.write_text(content)
    runs = [{"experiment": "nobody/near", "seed": 0, "folder": "0"}]
    record(Asked("nobody", {"title": "Two distances"}, []), tmp_path, runs)
    assert runfolder.read_json(path) == {"name": "nobody", "title": "Two distances", "runs": runs}
