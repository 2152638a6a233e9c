"""A run as it is asked for."""

from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What to run, and where.

    config   plain values, as they stand in results.json
    folder   the run's own
    names    what the command line calls the data, augment, algo, backbone and sweep
    texts    files to keep in the folder, by their paths in it
    """

    config: dict[str, Any]
    folder: Path
    names: dict[str, str]
    texts: dict[str, str]
