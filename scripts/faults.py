"""Kills runs, fills their disk, damages their files and lies to them; each must be survived.

    python scripts/faults.py                        all families, in three quarters of an hour
    python scripts/faults.py --only kill,rot --tries 5   those whose names begin so, five times each
    python scripts/faults.py --list                 what families there are

Survived means: the run, or the same command again, comes to the number of a run that nothing was
done to; or one line on stderr with exit code 2 says what is wrong, and what was there before is
whole. Each family says how often it was tried and survived, and tells what was not. The first tries
come first: --tries 5 tries what --tries 50 tries too. Exit code 0 says that all was survived.
Runs are forks of one process that has loaded metarun (scripts/forked.py); only W&B's are processes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from forked import warm
from harm import damaged, disk, hostile, kills, rot, server
from harm.place import Place

FAMILIES = {
    name: family
    for module in (kills, disk, rot, damaged, hostile, server)
    for name, family in module.FAMILIES.items()
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="FAMILY", help="how the wanted begin: A,B")
    parser.add_argument("--tries", type=int, default=50, help="of each family, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only the names of the families")
    arguments = parser.parse_args()
    wanted = [name for name in FAMILIES if name.startswith(tuple(arguments.only.split(",")))]
    if not wanted:
        parser.error(f"no such family: {arguments.only}; choose of {', '.join(FAMILIES)}")
    if arguments.list:
        for name in wanted:
            told = getattr(FAMILIES[name], "func", FAMILIES[name]).__doc__ or ""
            print(f"{name:<24}{told.splitlines()[0]}")
        return
    warm()
    survived_all, cache = True, tempfile.TemporaryDirectory(prefix="faults-")
    for name in wanted:
        began = time.monotonic()
        tried = survived = 0
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
            place = Place(Path(scratch), Path(cache.name), arguments.tries, arguments.seed)
            for wrong in FAMILIES[name](place):
                tried, survived = tried + 1, survived + (wrong is None)
                if wrong:
                    print(f"    {name}, try {tried}: {wrong}", flush=True)
        seconds = time.monotonic() - began
        print(f"{name:<24}tried {tried:3}, survived {survived:3}; {seconds:.0f} s", flush=True)
        survived_all = survived_all and tried == survived
    sys.exit(not survived_all)


if __name__ == "__main__":
    main()
