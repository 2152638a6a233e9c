"""A group of a config that came in a file, a checkpoint or a results.json: which committed choice
it is of. Only its values are taken over; what is called is what the committed file names."""

from typing import Any

from omegaconf import OmegaConf

from metarun.configs.differences import classes, keys
from metarun.configs.rooms import is_below, refuse_foreign_names, refuse_tricks
from metarun.configs.rules import check_values, conf_folder
from metarun.errors import UserError


def matched(group: str, content: Any, rest: dict[str, Any], allow: list[str]) -> Any:
    """The group (`eval.sampler` is one too) as a committed choice has it, with the values that
    `content` has for its keys; what that leaves open is as in the file, with the `rest` of the
    config. A class of the user's own keeps what stands beside it, if it is of a package that they
    `allow`.

    Raises UserError if no committed choice has these classes, at each place, and all these keys.
    """
    if content is None and group == "augment":
        return None
    if not isinstance(content, dict):
        raise UserError(f"{group}: it is no choice of metarun's")
    refuse_tricks(content, allow, group)
    if is_below(str(content.get("_target_")), allow):
        refuse_foreign_names(nested(group, content), allow)
        return content
    sources = content.get("sources") if group == "data" else None
    if sources is not None:
        content = {key: value for key, value in content.items() if key != "sources"}
    alike = [section for section in sections(group) if classes(section) == classes(content)]
    if not alike:
        refuse_foreign_names(nested(group, content), allow)
        named = ", ".join(classes(content).values()) or "nothing"
        raise UserError(f"{group}: no committed choice is made of {named}")
    nearest = min(alike, key=lambda section: len(keys(section) ^ keys(content)))
    beside = {k: v for k, v in added(group).items() if k in content and k not in nearest}
    wanted = resolved(group, nearest | beside, rest)
    whole = merged(wanted, content)
    check_values(nested(group, whole), nested(group, wanted))
    if sources is not None:
        if not isinstance(sources, dict):
            raise UserError(f"{group}.sources: a group is needed")
        whole["sources"] = {
            name: matched(group, source, rest, allow) for name, source in sources.items()
        }
    return whole


def with_committed_types(
    group: str, content: dict[str, Any], rest: dict[str, Any]
) -> dict[str, Any]:
    """The content of a user's own file for the group; at keys that a committed choice of the same
    classes has too, that one's values: what stands there has their types."""
    alike = [section for section in sections(group) if classes(section) == classes(content)]
    if not alike:
        return content
    nearest = min(alike, key=lambda section: len(keys(section) ^ keys(content)))
    return merged(content, common(resolved(group, nearest, rest), content))


def common(section: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """What the section has at keys that the content has too."""
    found = {}
    for key in section.keys() & content.keys():
        both = isinstance(section[key], dict) and isinstance(content[key], dict)
        found[key] = common(section[key], content[key]) if both else section[key]
    return found


def sections(group: str) -> list[dict[str, Any]]:
    """What the committed choices of the group hold of it, nothing resolved."""
    folder, _, inside = group.partition(".")
    found = []
    for path in sorted((conf_folder() / folder).glob("*.yaml")):
        file: Any = OmegaConf.to_container(OmegaConf.load(path))
        file.pop("defaults", None)
        section = file[inside] if inside else file.get(folder, file)
        if section is not None:
            found.append(section)
    return found


def added(group: str) -> dict[str, Any]:
    """Keys that choices of other groups add to this one, as algorithms a backbone's batch norm."""
    found: dict[str, Any] = {}
    for path in sorted(conf_folder().glob("*/*.yaml")):
        if path.parent.name not in (group, "experiment", "table", "hydra"):
            file: Any = OmegaConf.to_container(OmegaConf.load(path))
            section = file.get(group)
            if isinstance(section, dict) and not classes(section):
                found |= section
    return found


def resolved(group: str, section: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The section with what it takes from the rest of the config filled in."""
    name, _, inside = group.partition(".")
    beside = {key: value for key, value in rest.items() if inside or key != name}
    whole = OmegaConf.merge(beside, {"here": section})
    found: Any = OmegaConf.to_container(whole, resolve=True)
    return found["here"]


def nested(group: str, content: Any) -> dict[str, Any]:
    """A config of this group alone."""
    for name in reversed(group.split(".")):
        content = {name: content}
    return content


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both dicts as one, and so the dicts in them; `above` wins."""
    result = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            result[key] = merged(below[key], above[key])
    return result
