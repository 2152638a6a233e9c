"""mode=prepare and mode=verify: the data and nothing else."""

import time

from metarun.data import store
from metarun.parts import Config, instance
from metarun.runs import report


def run(config: Config, name: str) -> str:
    """What the data is, in a few lines, once it is prepared (mode=prepare) or found sound
    (mode=verify); raises UserError when it cannot be had, or is not."""
    before, started = store.task.set(config["mode"]), time.monotonic()
    try:
        data = instance(config, "data")
    finally:
        store.task.reset(before)
    return report.prepared(config["mode"], name, data, time.monotonic() - started)
