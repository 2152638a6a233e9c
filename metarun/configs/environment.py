"""`${oc.env:NAME}` in a config: only what the person typed, since a value of the environment, as a
key of an account, would stand in results, checkpoints and W&B."""

import re
from collections.abc import Iterable

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from metarun.errors import UserError

COMMITTED = {"USER"}  # Ray's launcher asks for it
typed: set[str] = set()  # names of variables that the command line asks for


def names(overrides: Iterable[str]) -> set[str]:
    """The variables that the overrides name."""
    return {name for text in overrides for name in re.findall(r"oc\.env:\s*([A-Za-z_]\w*)", text)}


def variable(name: str, *default: str | None) -> str | None:
    """What `${oc.env:name}` stands for. Raises UserError unless the command line has it."""
    # As they were typed: resolved, they would ask here again.
    given = OmegaConf.to_container(HydraConfig.get().overrides) if HydraConfig.initialized() else {}
    of_job = given["task"] if isinstance(given, dict) and given else []
    if name not in COMMITTED | typed | names(of_job):
        raise UserError(
            f"${{oc.env:{name}}}: a file cannot read the environment: type it, as in key=${name}"
        )
    value: str | None = oc.env(name, *default)
    return value


def guard() -> None:
    """From now on configs are resolved so."""
    OmegaConf.register_new_resolver("oc.env", variable, replace=True)
