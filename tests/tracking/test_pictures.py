import math

import pytest
import torch
from PIL import Image

from metarun.functional.metrics import ACCURACY, MSE
from metarun.tracking import pictures


def train(step: int) -> dict:
    loss = math.exp(-step / 100)
    return {"step": step, "episodes": 4 * step, "train/loss": loss, "train/accuracy": 1 - loss}


def val(step: int) -> dict:
    return {"step": step, "episodes": 4 * step, "val/accuracy": 0.5, "val/ci95": 0.1}


TEST = {"step": 300, "episodes": 1200, "test/accuracy": 0.61, "test/ci95": 0.01}


@pytest.mark.parametrize(
    "records",
    [
        [train(100), val(100), train(200), val(200), TEST],
        [train(100), {**val(100), "val/loss": 0.4}],
        [train(100)],
        [val(100), TEST],
        [{"step": 1, "train/loss": None}, train(2)],  # what metrics.jsonl has for nan
        [{"step": 1, "val/accuracy": 0.4, "val/ci95": None}],
    ],
)
def test_curves_of_what_there_is(tmp_path, records):
    path = tmp_path / "curves.png"
    assert pictures.curves(records, path)
    with Image.open(path) as image:
        image.load()
        assert image.width > 800
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_no_curves_of_a_run_that_was_only_tested(tmp_path):
    assert not pictures.curves([TEST], tmp_path / "curves.png")
    assert not any(tmp_path.iterdir())


def an_episode(way: int, channels: int, generator: torch.Generator) -> list[torch.Tensor]:
    support_y = torch.arange(way).repeat(2)
    query_y = torch.arange(way).repeat_interleave(3)
    support_x = torch.randn(2 * way, channels, 14, 14, generator=generator)
    query_x = torch.randn(3 * way, channels, 14, 14, generator=generator)
    return [support_x, support_y, query_x, query_y]


@pytest.mark.parametrize(("way", "channels"), [(5, 1), (2, 3), (12, 2)])
def test_a_picture_of_an_episode(tmp_path, way, channels):
    episode = an_episode(way, channels, torch.Generator().manual_seed(0))
    scores = torch.eye(way)[episode[3]]
    names = [f"a $ class_{k} 日本 with a long name" for k in range(way)]
    path = tmp_path / "episode.png"
    assert pictures.episode(*episode, scores, names, path)
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0x2E, 0x8B, 0x57) in colours  # all answers are right
    assert (0xC8, 0x40, 0x2F) not in colours

    assert pictures.episode(*episode, scores.roll(1, dims=1), names, path)
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0x2E, 0x8B, 0x57) not in colours
    assert (0xC8, 0x40, 0x2F) in colours


def test_what_is_no_image_gets_no_picture(tmp_path):
    vectors, labels = torch.randn(5, 20), torch.arange(5)
    names = list("abcde")
    path = tmp_path / "episode.png"
    assert not pictures.episode(vectors, labels, vectors, labels, torch.eye(5), names, path)
    assert not path.exists()


def test_the_shown_range_undoes_normalising_and_survives_a_flat_channel():
    x = torch.stack([torch.linspace(-3, 5, 16).reshape(4, 4), torch.full((4, 4), 7.0)])[None]
    low, high = pictures.grey_range(x, x - 1)
    assert low.flatten().tolist() == [-4, 6]
    assert high.flatten().tolist() == [5, 7]
    low, high = pictures.grey_range(x)
    assert (high > low).all()


def test_curves_of_a_regression(tmp_path):
    logged = [{"step": 1, "train/loss": 3.0, "train/mse": 3.0}, {"step": 1, "val/mse": 2.5}]
    path = tmp_path / "curves.png"
    assert pictures.curves([*logged, {"step": 1, "test/mse": 2.0, "test/ci95": 0.1}], path, MSE)
    assert not pictures.curves(logged[1:], tmp_path / "none.png", ACCURACY)
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_functions_with_their_predictions(tmp_path):
    """One panel a task; a prediction that is the truth hides it."""
    x = torch.rand(3, 20, 1, generator=torch.Generator().manual_seed(0))
    y = x.sin()
    path = tmp_path / "episode.png"
    widths = []
    for tasks in (1, 3):
        given = (x[:tasks, :4], y[:tasks, :4])
        predictions = {"after 0 steps": 0 * y[:tasks], "after 1 steps": y[:tasks]}
        pictures.functions(given, (x[:tasks], y[:tasks]), predictions, path)
        with Image.open(path) as image:
            widths.append(image.width)
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.02)
