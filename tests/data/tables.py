"""Small tables of one's own, and how they are read."""

import numpy as np

from metarun.data import csv_file

OPTIONS = {
    "root": None,
    "size": 8,
    "grey": False,
    "range": None,
    "label": None,
    "columns": None,
    "exclude": [],
    "min_examples": 0,
    "split_file": None,
    "fractions": [0.6, 0.2, 0.2],
    "split_seed": 0,
}


def load(path, **changes):
    return csv_file.load(str(path), **{**OPTIONS, **changes})


def written(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows_of(noise=8, classes=5):
    """(class, number): numbers as measured, with fractions."""
    draw = np.random.default_rng(0)
    return [(f"c{i // noise}", f"{draw.normal():.3f}") for i in range(noise * classes)]
