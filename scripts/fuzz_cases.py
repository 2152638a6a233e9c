"""What scripts/fuzz.py types: command lines with something wrong in them, and config files."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import hydra
import numpy as np
import yaml
from omegaconf import OmegaConf
from PIL import Image

from metarun.cli.command_line import mixture_spelled_out
from metarun.configs.composing import composed, plain
from metarun.configs.rules import conf_folder, flat

TINY = (
    "train.steps=1 train.val_every=1 eval.episodes=4 eval.val_episodes=2 sampler.tasks=2 "
    "way=3 query=2 tracker=none device=cpu"
).split()
SMALL = "backbone.width=8"
ALGOS = (
    "anil boil cnp fomaml maml mamlpp mann matching meta_lstm meta_sgd proto_maml relation "
    "reptile siamese snail"
).split()
# What the other cases begin with, each for the keys that it has: nothing that would be downloaded.
BASES = [
    [SMALL],
    *([f"algo={algo}", "backbone=conv4", SMALL] for algo in ALGOS),
    *(["backbone=" + name] for name in ("mlp", "identity", "pixels", "r2d2", "vit_small")),
    *(["sampler=" + name, SMALL] for name in ("within_superclass", "variable", "binary")),
    *(["eval=" + name, SMALL] for name in ("within_superclass", "variable", "binary")),
    *(["augment=" + name, SMALL] for name in ("metaoptnet", "omniglot_affine", "rotation")),
    *(["augment=" + name, SMALL] for name in ("omniglot_elastic", "crop_flip", "closer_look")),
    *(["optim=" + name, SMALL] for name in ("sgd", "adamw", "rmsprop")),
    *(["schedule=" + name, SMALL] for name in ("cosine", "linear", "halving")),
    ["data=csv", "data.file=table.csv", "backbone=mlp"],
    ["data=npz", "data.file=arrays.npz", "backbone=mlp"],
    ["data=image_folder", "data.root=pictures", "data.size=16", "backbone=mlp"],
    ["data=[glyphs,mine:image_folder]", "data.sources.mine.root=pictures", "data.size=16", SMALL],
    ["data=sinusoid", "algo=maml"],
    ["data=harmonics", "algo=cnp"],
    ["data=features", "data.root=features"],
    ["mode=test", "checkpoint=trained/checkpoints/best.pt", SMALL],
    ["mode=embed", "checkpoint=trained/checkpoints/best.pt", SMALL],
    ["mode=prepare"],
    ["mode=verify"],
    ["seeds=2", SMALL],
    ["tracker=wandb", "tracker.mode=disabled", SMALL],
    ["train.split=trainval", SMALL],
]
OWN = (  # keys of Hydra's
    "run.dir sweep.dir sweep.subdir output_subdir job.name job.num job.id job.chdir job.env_set "
    "job.config verbose mode launcher sweeper callbacks job_logging hydra_logging searchpath "
    "runtime runtime.cwd runtime.output_dir runtime.choices help.template env overrides"
).split()
GROUPS = (
    "data sampler algo backbone device optim schedule augment eval tracker experiment table "
    "hydra/launcher hydra/sweeper hydra/job_logging hydra/output hydra hydra/nothing nothing"
).split()
LONG, DIGITS = 100_000 * "a", 5_000 * "7"
# As one types them.
VALUES = [
    *("null", "true", "false", "True", "", "''", '""', "' '", "x", "?", "???", "None", "nothing"),
    *("0", "1", "2", "-1", "-3", "1.5", "-0.5", "1e30", "1e-30", "1e300", "1e999", "-1e999"),
    *("nan", "inf", "-inf", "NaN", "1_0", "0x10", "+5", "1e400", "2**3", "1:30", "2026-01-01"),
    *("100000000000", "-100000000000", "9223372036854775807", "9223372036854775808", 30 * "9"),
    *(DIGITS, f"-{DIGITS}", f"0.{DIGITS}", f"[{DIGITS}]", f"1e{DIGITS}"),
    *(LONG, f"'{LONG}'", f"[{LONG}]", 2_000 * "数", f"{{{LONG}:1}}"),
    *("[]", "[1,2]", "[null]", "[[]]", "[true,1,x]", "['']", "[1.5,-1]", "[nan]", "[{}]", "[x,y]"),
    *("{}", "{a:1}", "{a:{b:[1,{c:null}]}}", "{1:2}", "{_target_:os.getcwd}", "{'':1}", "{a:null}"),
    *(18 * "[" + 18 * "]", 3_000 * "[", 500 * "[" + 500 * "]", 15 * "{a:" + "1" + 15 * "}"),
    *("a\nb", "\n", "'a\nb'", "\t", "a\tb", "a\rb", "\x1b[31m", "\x7f", "\u2028", "\udcff\udcfe"),
    *("数据", "🙂", "e\u0301", "Ω=1", "\u202e", "ﬁ", "٣", "１２"),
    *("${way}", "${nope}", "${oc.env:HOME}", "${now:%Y}", "${", "$", "${way}${shot}", "\\${way}"),
    *("${oc.decode:x}", "${.}", "${..way}", "${oc.create:{a:1}}", "${oc.select:nope,3}", "%s", "%"),
    *(
        "a=b",
        "=",
        "==",
        ",",
        "1,2",
        "a b",
        "'",
        '"',
        "\\",
        "[",
        "]",
        "{",
        "}",
        "(",
        "@",
        "#",
        "a#b",
    ),
    *("range(3)", "choice(1,2)", "glob(*)", "sort(1,2)", "interval(0,1)", "tag(x,1)", "int(x)"),
    *("str(1)", "float(nan)", "json_str('{')", "extend_list(1)", "shuffle(1,2)", "cast(1)", "a:b"),
    *("os.system", "metarun.algos.maml.MAML", "torch.nn.Linear", "metarun.cli.main.main", "a.b.c"),
    *(".", "-", "--", "-x", "*", "a/b", "/proc/x", "/dev/null", "/dev/null/x", "con|x", "!x", "&x"),
]
CONTENTS: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, 1e300, float("nan"), float("inf"), 10**30, "", "x", "1"),
    *([], [None], [1, 2], [[]], ["x"], {}, {"a": 1}, {"a": None}, {1: 2}, {None: 1}, {True: 1}),
    *({"": 1}, {"a.b": 1}, {"a": {"b": {"c": []}}}, {"_target_": "os.getcwd"}, {"_target_": 5}),
    *({"_target_": None}, {"_target_": ["x"]}, {"_target_": "x"}, {"_args_": [1]}, {5: {6: 7}}),
    *("${nope}", "${way}", "${oc.env:HOME}", "???", "${", "a\nb", "数", 2_000 * "x", "${.}"),
    *({"_convert_": "x"}, {"_recursive_": 1}, {"_partial_": "x"}, {"defaults": ["x"]}),
]
LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 12))]
)
TEXTS = [  # of whole files
    *(
        b"",
        b"\n",
        b"#",
        b"x",
        b"5",
        b"null",
        b"[]",
        b"[1, 2]",
        b"{}",
        b"--- \n---\n",
        b"{",
        b"a: [",
        b"]",
    ),
    *(
        b"a: 1\na: 2",
        b"\ta: 1",
        b"a: \x00",
        b"\xff\xfe\xff",
        "a: 数".encode("utf-16"),
        b"\xef\xbb\xbfa: 1",
    ),
    *(b"a: &x [*x]", b"a: &x {b: *x}", b"&x [*x]", b"a: *nope", LAUGHS.encode(), b"a: !!binary x"),
    *(b"a: !!python/object/apply:os.system [touch PWNED]", b"!!python/name:os.system", b"a: !x y"),
    *(
        b"a: " + 3_000 * b"[",
        3_000 * b"{a: ",
        b"? [a]\n: 1",
        b"<<: 1",
        b"a: 2026-01-01",
        b"a: 1:30",
    ),
    *(b"a" * 100_000, b"a: " + DIGITS.encode(), b"defaults: 5", b"defaults: [x]", b"defaults: [5]"),
    *(b"defaults: [{override /algo: 5}]", b"defaults: [{x: [y]}]", b"defaults: [_self_, mine]"),
    *(b"defaults: [/algo: maml]", b"defaults: [{optional /algo: null}]", b"# @package x.y\na: 1"),
    *(b"# @package _global_\n5", b"# @package _global_\nhydra: 5", b"# @package ${x}\na: 1"),
    *(b"# @package _global_\ntrain: null", b"# @package _global_\nway: ${shot}\nshot: ${way}"),
]
EXPERIMENT = b"# @package _global_\ntrain: {steps: 1}\n"
OF_TABLE = """
title: Mine
source: a paper
data: glyphs
metric: accuracy
seeds: [0]
cells:
  - {experiment: mine, paper: 50.0, ci95: null, read_in: Table 1}
"""
TOP = "defaults data sampler algo backbone optim schedule eval train hydra way plugins x".split()
WHOLE = ("config",)
# Committed files that are changed, and what is typed beside each.
FILES: list[tuple[str, list[str]]] = [
    *((f"algo/{name}", [SMALL]) for name in ("protonet", "maml", "relation", "matching", "cnp")),
    *((f"backbone/{name}", []) for name in ("conv4", "mlp", "identity")),
    *((f"sampler/{name}", [SMALL]) for name in ("uniform", "within_superclass", "variable")),
    *((f"eval/{name}", [SMALL]) for name in ("uniform", "within_superclass", "variable")),
    *((f"augment/{name}", [SMALL]) for name in ("crop_flip", "metaoptnet")),
    *((f"optim/{name}", [SMALL]) for name in ("adam", "sgd")),
    *((f"schedule/{name}", [SMALL]) for name in ("halving", "cosine", "constant")),
    *((f"device/{name}", [SMALL]) for name in ("auto", "cpu")),
    *((f"tracker/{name}", [SMALL]) for name in ("none",)),
    *((f"data/{name}", [SMALL]) for name in ("glyphs", "csv", "image_folder", "sinusoid")),
    *((f"experiment/{name}", [SMALL]) for name in 4 * ["snell2017/omniglot_5way_1shot"]),
    *(("table/mine", [SMALL]) for _ in range(4)),
    ("config", [SMALL]),
]
FORMS: list[Callable[[str, str, str], list[str]]] = [
    *(lambda k, v, w: [f"~{k}"], lambda k, v, w: [f"~{k}={v}"], lambda k, v, w: [f"+{k}={v}"]),
    *(lambda k, v, w: [f"++{k}={v}"], lambda k, v, w: [k], lambda k, v, w: [f"{k}.{k}={v}"]),
    *(lambda k, v, w: [f"{k}[0]={v}"], lambda k, v, w: [f"{k}@x={v}"], lambda k, v, w: [f"={v}"]),
    *(lambda k, v, w: ["-m", f"{k}={v},{w}"], lambda k, v, w: ["-m", f"{k}=glob({v})"]),
    *(
        lambda k, v, w: ["-m", f"{k}=range({v},{w})"],
        lambda k, v, w: ["-m", f"{k}=choice({v},{w})"],
    ),
    *(lambda k, v, w: ["--cfg", v], lambda k, v, w: ["--cfg", "job", f"{k}={v}"]),
    *(lambda k, v, w: ["--cfg", "job", "--package", v], lambda k, v, w: ["--info", v]),
    *(lambda k, v, w: ["--cfg", "job", "--resolve", f"{k}={v}"], lambda k, v, w: ["--package", v]),
    *(lambda k, v, w: ["--help", f"{k}={v}"], lambda k, v, w: [f"--{k}={v}"]),
    *(lambda k, v, w: [f"rerun={v}"], lambda k, v, w: ["rerun=trained", f"{k}={v}"]),
    *(lambda k, v, w: [f"name={v}", "resume=auto"], lambda k, v, w: ["--config-dir", v]),
    *(lambda k, v, w: ["mode=test", f"checkpoint={v}"], lambda k, v, w: ["mode=embed", f"to={v}"]),
    *(lambda k, v, w: [f"table={v}"], lambda k, v, w: [f"data=[{v},{w}]"], lambda k, v, w: [v, w]),
    *(lambda k, v, w: [f"{k}={v}", f"{k}={w}"], lambda k, v, w: ["seeds=2", f"{k}={v}"]),
]


class Key(NamedTuple):
    """A key, and what is typed beside it so that there is one."""

    base: list[str]
    name: str


class Case(NamedTuple):
    """A command line, and the files of a config folder of the person's own, by their paths; None is
    a folder in a file's place."""

    words: list[str]
    files: Mapping[str, bytes | None] = MappingProxyType({})


def make_data(folder: Path) -> None:
    """Put what the bases name into the folder: a table, arrays, pictures."""
    chance = np.random.default_rng(0)
    labels = np.arange(12).repeat(8)
    x = chance.normal(size=(96, 4)) + labels[:, None]
    rows = [
        ",".join([*(f"{v:.3f}" for v in row), f"c{c}"]) for row, c in zip(x, labels, strict=True)
    ]
    text = "\n".join(["f0,f1,f2,f3,label", *rows])
    (folder / "table.csv").write_text(text, encoding="utf-8")
    np.savez(folder / "arrays.npz", x=x.astype(np.float32), y=labels)
    for number, c in enumerate(labels):
        path = folder / "pictures" / f"c{c:02}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)


def case(number: int, seed: int, keys: Sequence[Key]) -> Case:
    """The case of that number; each key has its turn before any has a second one."""
    turn, place = divmod(number, len(keys))
    order = random.Random(f"{seed} {turn}").sample(range(len(keys)), len(keys))
    chance = random.Random(f"{seed} case {number}")
    kind = chance.choice(10 * [one] + 4 * [two] + 4 * [form] + 3 * [group] + 6 * [own_file])
    return kind(chance, keys, keys[order[place]])


def keys_of_bases() -> list[Key]:
    """Every key, and every group of them, of the first of the bases that has it."""
    found: dict[str, Key] = {}
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for base in BASES:
            spelled = [o for word in base for o in mixture_spelled_out(word, [conf_folder()])]
            whole = composed(spelled, None)
            config = plain(OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"]))
            inner = {f"{g}.{k}" for g, v in config.items() if isinstance(v, dict) for k in v}
            for name in [*flat(config), *config, *sorted(inner)]:
                found.setdefault(name, Key(base, name))
    return [*found.values(), *(Key(BASES[0], f"hydra.{name}") for name in OWN)]


def words(base: list[str], *others: str) -> list[str]:
    """A short run of the base, and the other words; what these set is not set before them."""
    typed = {word.lstrip("+~").partition("=")[0] for word in others}
    return [*(w for w in [*TINY, *base] if w.partition("=")[0] not in typed), *others]


def one(chance: random.Random, keys: Sequence[Key], key: Key) -> Case:
    """One key with a bad value."""
    return Case(words(key.base, f"{key.name}={chance.choice(VALUES)}"))


def two(chance: random.Random, keys: Sequence[Key], key: Key) -> Case:
    """Two keys."""
    other = chance.choice(keys).name
    typed = [f"{name}={chance.choice(VALUES)}" for name in (key.name, other)]
    return Case(words(key.base, *typed))


def form(chance: random.Random, keys: Sequence[Key], key: Key) -> Case:
    """A key and values in a form of their own."""
    values = chance.choice(VALUES), chance.choice(VALUES)
    name = key.name if chance.random() < 0.7 else chance.choice(GROUPS)
    return Case(words(key.base, *chance.choice(FORMS)(name, *values)))


def group(chance: random.Random, keys: Sequence[Key], key: Key) -> Case:
    """A group's choice."""
    return Case(words(key.base, f"{chance.choice(GROUPS)}={chance.choice(VALUES)}"))


def own_file(chance: random.Random, keys: Sequence[Key], key: Key) -> Case:
    """A config file of the person's own: a committed one with a change, or something else."""
    name, base = chance.choice(FILES)
    place = name if name in WHOLE else f"{name.partition('/')[0]}/mine"
    typed = ["--config-dir", "conf", *([] if name in WHOLE else [place.replace("/", "=")])]
    files: dict[str, bytes | None] = {}
    if place == "table/mine":
        files["experiment/mine.yaml"] = EXPERIMENT
        base = [SMALL]
    another = chance.random() < 0.35
    content = chance.choice([*TEXTS, None]) if another else changed(chance, name)
    return Case(words(base, *typed), files | {f"{place}.yaml": content})


def changed(chance: random.Random, name: str) -> bytes:
    """The committed file of that name with one thing changed, which may be all that a group is."""
    text = (
        OF_TABLE
        if name == "table/mine"
        else (conf_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    )
    content = yaml.safe_load(text)
    if name.startswith("experiment") or chance.random() < 0.2:
        content = {k: v for k, v in content.items() if chance.random() < 0.7}
        content[chance.choice(TOP)] = chance.choice(CONTENTS)
    else:
        places = [*nodes(content)]
        parent, key = chance.choice(places)
        what = chance.choice(["drop", "set", "set", "add"])
        if what == "drop":
            del parent[key]
        elif what == "set":
            parent[key] = chance.choice(CONTENTS)
        elif isinstance(parent, dict):
            parent[
                chance.choice(["nonsense", 5, "a.b", "", "_args_", "_target_", "defaults", "数"])
            ] = chance.choice(CONTENTS)
    first = "# @package _global_\n" if "@package _global_" in text else ""
    return (first + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)).encode()


def nodes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in the content, as what holds it and its key or number there."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from nodes(content[key])
