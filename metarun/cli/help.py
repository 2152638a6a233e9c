"""`metarun --help`: the keys and groups, with the comments that stand beside them in the YAML."""

import re
from pathlib import Path

USAGE = """\
metarun: a config in, a number with its confidence interval out

  metarun                                     prototypical networks on the embedded data
  metarun algo=protonet data=omniglot way=20 shot=5
  metarun data=image_folder data.root=DIR     your own pictures, a folder a class
  metarun -m seed=0,1,2                       a sweep
  metarun -m hydra/sweeper=search 'optim.lr=tag(log,interval(1e-4,1e-2))'    a search
  metarun rerun=RUN_FOLDER                    the same run once more, and whether it comes out equal
  metarun -m hydra/launcher=slurm seed=0,1,2  its jobs on a cluster
  metarun mode=test checkpoint=RUN_FOLDER/checkpoints/best.pt
  metarun mode=embed checkpoint=RUN_FOLDER/checkpoints/best.pt to=DIR
  metarun data=features data.root=DIR         any head on the features so stored
  metarun mode=prepare data=omniglot          fetch, check and prepare data; mode=verify checks it
  metarun table=snell2017_omniglot            a paper's table, beside its numbers; again to go on
  metarun name=NAME resume=auto               go on with an interrupted run
  metarun algo=NAME --help                    the keys of that choice

Options: --cfg job shows the whole config and runs nothing; --config-dir DIR adds your own configs;
-m, --multirun sweeps; --info defaults-tree tells where values come from; --hydra-help more.
"""

KEY = re.compile(r"( *)([A-Za-z_]+):(?: ([^#]*))?(?:# (.*))?")


def help_text(folders: list[Path], chosen: dict[str, str]) -> str:
    """The whole help on the committed configs, the first of `folders`, and the user's own.

    `chosen` are choices of groups whose keys are shown instead of the default's.
    """
    lines = (folders[0] / "config.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("defaults:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    defaults = dict(re.findall(r"^  - (\w+): (\w+)", "\n".join(lines[start:end]), re.M))
    plain = lines[end : lines.index("hydra:")]
    sections = [USAGE, "Keys", *described(plain), "", "Groups (group=choice), and the keys of one"]
    for group in [*defaults, "hydra/launcher", "hydra/sweeper"]:
        choice = chosen.get(group, defaults.get(group))
        sections += ["", f"{group}="]
        files = choice_files(folders, group)
        for name, path in files.items():
            mark = " (default)" if name == defaults.get(group) else ""
            sections.append(f"  {f'{name}  ':<24}{title(path)}{mark}")
        if choice in files and group != "table":  # which holds no keys, but a paper's numbers
            lines = files[choice].read_text(encoding="utf-8").splitlines()
            everywhere = lines[0] == "# @package _global_"  # it spells whole keys itself
            sections += described(lines, prefix="" if everywhere else f"{group.replace('/', '.')}.")
    return "\n".join(sections)


def choice_files(folders: list[Path], group: str) -> dict[str, Path]:
    """The file of each choice of the group, by the name that one types."""
    return {
        path.relative_to(conf / group).with_suffix("").as_posix(): path
        for conf in folders
        for path in sorted((conf / group).rglob("*.yaml"))
    }


def title(path: Path) -> str:
    """The first sentence of the file's first comment that is not an instruction to Hydra."""
    comment = re.search(r"(^# (?!@).*\n?)+", path.read_text(encoding="utf-8"), re.M)
    lines = comment[0].splitlines() if comment else []
    return re.split(r"(?<=\.) (?=[A-Z])", " ".join(line[2:] for line in lines))[0]


def described(lines: list[str], prefix: str = "") -> list[str]:
    """One line a key: its full name, its default and its comment."""
    shown: list[str] = []
    parents = [prefix]
    for line in lines:
        found = KEY.fullmatch(line)
        if found is None:
            comment = line.strip()
            if comment.startswith("# ") and shown:
                shown[-1] += f" {comment[2:]}"
            continue
        indent, key, value, comment = found.groups()
        parents = [*parents[: len(indent) // 2 + 1], f"{key}."]
        default = (value or "").strip()
        if default and not key.startswith("_"):
            name = "".join(parents)[:-1]
            shown.append(f"  {f'{name}={default}  ':<40}{comment or ''}".rstrip())
    return shown
