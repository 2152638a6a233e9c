"""How two configs differ, as one would type it."""

from typing import Any

from omegaconf import OmegaConf

from metarun.configs.rules import conf_folder, flat, shown, targets


def differences(config: dict[str, Any], other: dict[str, Any], except_for: list[str]) -> list[str]:
    """What to type for `config` to become `other`, but for keys at or below `except_for`:
    `group=choice` where a committed choice has the other's classes, and `key=value`.

    Empty for two configs that are alike, and for no others.
    """
    incidental = tuple(f"{key}." for key in except_for)
    choices, replaced = [], []
    for group, content in other.items():
        wanted, ours = {group: content}, {group: config.get(group)}
        of_one_class = classes(ours) == classes(wanted)
        if f"{group}.".startswith(incidental) or (
            of_one_class and keys(ours, incidental) == keys(wanted, incidental)
        ):
            continue
        if alike := committed_choices(config, group, content, all_keys=of_one_class):
            name = min(alike, key=lambda n: len(unlike({group: alike[n][group]}, wanted)))
            choices.append(f"{group}={name}")
            replaced.append(f"{group}.")  # keys that this one does not have need no word
            config = alike[name]
    theirs = flat(other)
    return choices + [
        f"{key}={shown(theirs.get(key))}"
        for key in unlike(config, other)
        if not f"{key}.".startswith(incidental)
        and (key in theirs or not key.startswith(tuple(replaced)))
    ]


def unlike(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys, as they are typed, of which the two configs say different things."""
    ours, theirs = flat(config), flat(other)
    return [key for key in ours | theirs if ours.get(key) != theirs.get(key)]


def keys(config: dict[str, Any], except_for: tuple[str, ...] = ()) -> set[str]:
    """The keys as they are typed, but for those at or below one of `except_for`."""
    return {key for key in flat(config) if not f"{key}.".startswith(except_for)}


def classes(config: Any) -> dict[str, str]:
    """What stands for `_target_` anywhere in the config."""
    return dict(targets(config))


def committed_choices(
    config: dict[str, Any], group: str, content: Any, all_keys: bool
) -> dict[str, dict]:
    """By their names the committed choices of the group that have the classes of `content`, and
    with `all_keys` its keys and no others: what `config` would be with each."""
    found = {}
    for path in sorted((conf_folder() / group).glob("*.yaml")):
        file: Any = OmegaConf.to_container(OmegaConf.load(path))
        file.pop("defaults", None)
        chosen = file if group in file else {group: file}  # one that sets other groups too
        if all_keys and keys({group: chosen[group]}) != keys({group: content}):
            continue
        if classes(chosen[group]) == classes(content):
            merged = OmegaConf.merge(config, chosen)
            whole: Any = OmegaConf.to_container(merged, resolve=True)
            found[path.stem] = whole
    return found
