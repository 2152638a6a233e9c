"""The committed configs, as Hydra composes them."""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf


def conf_folder() -> Path:
    """The committed configs: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def composed(overrides: list[str], config_dir: str | None) -> DictConfig:
    """The config of a job with these overrides, Hydra's own settings included."""
    added = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    return hydra.compose("config", [*overrides, *added], return_hydra_config=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, with nothing left to resolve."""
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return container
