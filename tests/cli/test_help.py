import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import metarun
from metarun.cli.help import described, help_text, title
from metarun.configs.rules import flat

CHECKOUT = Path(metarun.__file__).parents[1] / "conf"
CONF = CHECKOUT if CHECKOUT.is_dir() else Path(metarun.__file__).parent / "conf"
FOLDERS = [path for path in (*CONF.iterdir(), *CONF.glob("hydra/*")) if path.is_dir()]
GROUPS = sorted(path.relative_to(CONF).as_posix() for path in FOLDERS if path.name != "hydra")
CHOICES = [
    (group, path.relative_to(CONF / group).with_suffix("").as_posix())
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
]
NO_KEYS = (
    "experiment",
    "table",
)  # an experiment sets others' keys, a table holds a paper's numbers
PLAIN = [CONF / "config.yaml"] + [
    CONF / group / f"{choice}.yaml" for group, choice in CHOICES if group not in NO_KEYS
]


def keys_of(path):
    """The keys that the file gives a value, by their full names, but for Hydra's own."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    kept = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    everywhere = path.parent == CONF or "@package _global_" in path.read_text()
    prefix = "" if everywhere else f"{'.'.join(path.parent.relative_to(CONF).parts)}."
    return [f"{prefix}{key}" for key in flat(kept) if not key.rpartition(".")[2].startswith("_")]


def lines_of(text, key):
    return [line for line in text.splitlines() if line.startswith(f"  {key}=")]


def test_there_is_something_to_describe():
    assert {"algo", "backbone", "data", "sampler", "optim"} <= set(GROUPS)
    assert "train.steps" in keys_of(CONF / "config.yaml")
    assert "optim.lr" in keys_of(CONF / "optim" / "adam.yaml")


def test_every_key_of_the_config_is_described():
    text = help_text([CONF], {})
    for key in keys_of(CONF / "config.yaml"):
        (line,) = lines_of(text.split("Groups (", 1)[0], key)
        assert re.fullmatch(rf"  {re.escape(key)}=\S.*?  +\S.*", line), line


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_is_named(group, choice):
    section = help_text([CONF], {}).split(f"\n{group}=\n", 1)[1].split("\n\n", 1)[0]
    (line,) = [line for line in section.splitlines() if line.split()[0] == choice]
    assert len(line.replace(" (default)", "").split()) >= 2, "no title"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# Curves (Finn et al. 2017): rates of\n# 0.01 suit it\na: 1\n", "rates of 0.01 suit it"),
        (
            "# @package _global_\n# Table 1: 48.7 %. Their\n# code clips.\na: 1\n",
            "Table 1: 48.7 %.",
        ),
        ("a: 1  # one\n# Mine\n", "Mine"),
        ("a: 1\n", ""),
    ],
)
def test_a_title_is_a_whole_sentence(tmp_path, text, wanted):
    (tmp_path / "mine.yaml").write_text(text)
    assert title(tmp_path / "mine.yaml").endswith(wanted)
    assert bool(title(tmp_path / "mine.yaml")) == bool(wanted)


def test_no_title_of_a_choice_is_cut():
    """It ends where a sentence does: with a full stop, or as the comment does."""
    for group, choice in CHOICES:
        path = CONF / group / f"{choice}.yaml"
        told = title(path)
        assert told.endswith(".") or f" {told.split()[-1]}\n#" not in path.read_text(), told


def test_the_default_choices_are_marked():
    """One of each group that has a default."""
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    text = help_text([CONF], {})
    for entry in defaults:
        if entry == "_self_" or " " in next(iter(entry)):
            continue
        ((group, choice),) = entry.items()
        section = text.split(f"\n{group}=\n", 1)[1].split("\n\n", 1)[0]
        marked = [line.split()[0] for line in section.splitlines() if "(default)" in line]
        assert marked == ([str(choice)] if choice else [])


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] not in NO_KEYS])
def test_every_key_of_a_choice_is_described_when_chosen(group, choice):
    text = help_text([CONF], {group: choice}).split(f"\n{group}=\n", 1)[1].split("\n\n", 1)[0]
    for key in keys_of(CONF / group / f"{choice}.yaml"):
        assert len(lines_of(text, key)) == 1, key


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_has_a_comment(path):
    text = path.read_text().split("\nhydra:", 1)[0]
    lines = [re.fullmatch(r" *(\w+): *([^#\s][^#]*?)? *(?:# *(.*))?", t) for t in text.splitlines()]
    commented = {line[1]: line[3] for line in lines if line and line[2]}
    for key in keys_of(path):
        assert commented[key.rpartition(".")[2]], f"{path.name}: {key} has no comment"


def test_comments_that_go_on_are_joined():
    lines = [
        "a:",
        "  b: 1  # one",
        "       # two",
        "  _target_: x",
        "  c: null",
        "d: [1, 2]  # three",
    ]
    shown = [" ".join(line.split()) for line in described(lines, prefix="g.")]
    assert shown == ["g.a.b=1 one two", "g.a.c=null", "g.d=[1, 2] three"]


@pytest.mark.parametrize("asked", ["--help", "--cfg=job"])
def test_nobody_reads_on(tmp_path, asked):
    """As after `| head`: no word, and no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "metarun", asked]
    ended = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, text=True, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")
