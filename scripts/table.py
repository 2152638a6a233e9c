"""Tables from run folders: `python scripts/table.py FOLDER…` prints them as Markdown.

The folder of a paper's table (`metarun table=NAME`), or one with such folders, is rendered anew, as
it stands; of other folders all finished runs, but for those of rerun=, become one table of methods
and tasks.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.runs import folder as runfolder
from metarun.tables import methods, render


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="searched for runs and tables")
    folders = parser.parse_args().folders
    papers = [path.parent for folder in folders for path in sorted(folder.rglob("table_of.json"))]
    for folder in papers:
        print(render.write(folder))
    found = [path for folder in folders for path in sorted(folder.rglob("results.json"))]
    others = [path for path in found if not any(path.is_relative_to(paper) for paper in papers)]
    first = [path.parent for path in others if not path.with_name("rerun.json").exists()]
    runs = [run for folder in first if (run := read(folder))]
    finished = [run for run in runs if run["status"] == "finished"]
    tested = [run for run in finished if "test" in run]  # mode=embed has none
    if tested:
        try:
            print(methods.table(tested))
        except UserError as error:
            sys.exit(str(error))
    elif not papers:
        sys.exit("no finished run with a test there")
    if len(finished) < len(runs):
        print(f"\n{len(runs) - len(finished)} runs are not finished.", file=sys.stderr)


def read(folder: Path) -> dict[str, Any] | None:
    """What results.json says of the run in the folder; None, which is told, for a damaged one."""
    try:
        return runfolder.results(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
