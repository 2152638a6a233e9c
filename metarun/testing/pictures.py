"""Pictures of test episodes, with what the model says of them."""

from pathlib import Path

import torch

from metarun.device import Device
from metarun.episodes import PADDING
from metarun.interfaces import Algorithm
from metarun.testing.fixed_episodes import FixedEpisodes, RowEpisodes
from metarun.tracking import pictures


@torch.no_grad()
def draw(algorithm: Algorithm, episodes: FixedEpisodes, device: Device, path: Path) -> None:
    """The first of the episodes, or the first functions, with the model's predictions."""
    algorithm.eval()
    with device.autocast():
        if isinstance(episodes, RowEpisodes):
            draw_first(algorithm, episodes, path)
        else:
            draw_functions(algorithm, episodes, path)


def draw_first(algorithm: Algorithm, episodes: RowEpisodes, path: Path) -> None:
    """A picture of the first episode with the model's predictions."""
    split, batch = episodes.split, episodes.batch(slice(1))
    scores = algorithm.predict(batch)[0].float().cpu()
    rows, labels = episodes.rows.support[0], episodes.rows.support_y[0]
    firsts = torch.stack([rows[labels == k][0] for k in labels[labels != PADDING].unique()])
    classes = torch.searchsorted(split.first_row, firsts, right=True) - 1
    support_x, support_y, query_x, query_y = (tensor[0].cpu() for tensor in batch[:4])
    names = [split.classes[c] for c in classes]
    pictures.episode(support_x, support_y, query_x, query_y, scores, names, path)


def draw_functions(algorithm: Algorithm, episodes: FixedEpisodes, path: Path) -> None:
    """A picture of the first functions and the model's curves, after some of its inner steps."""
    batch = episodes.batch(slice(4))
    if hasattr(algorithm, "stages"):
        curves = {f"after {n} steps": y for n, y in algorithm.stages(batch).items()}
    else:
        curves = {"prediction": algorithm.predict(batch)}
    support_x, support_y, query_x, query_y = (tensor.cpu() for tensor in batch[:4])
    on_cpu = {name: y.float().cpu() for name, y in curves.items()}
    pictures.functions((support_x, support_y), (query_x, query_y), on_cpu, path)
