"""What is told of one's own pictures."""

import pytest
import torch
from PIL import Image

from tests.data.images.painted import fill, load


def stack(path, pages, first=0, **options):
    """Save a picture of so many pages, each of another grey."""
    each = [Image.new("L", (8, 8), first + 20 * page) for page in range(pages)]
    path.parent.mkdir(exist_ok=True)
    each[0].save(path, save_all=True, append_images=each[1:], **options)


@pytest.mark.parametrize("ending", ["tif", "gif", "png", "webp"])
def test_pictures_of_several_pages(tmp_path, ending):
    """The first is read, and it is told; not so of one page."""
    fill(tmp_path, ["a", "b", "c"])
    stack(tmp_path / "a" / f"one.{ending}", 1, first=30)
    assert load(tmp_path).facts()["doubts"] == []
    for count, said in ((1, "1 picture has"), (2, "2 pictures have")):
        stack(tmp_path / "b" / f"{count}.{ending}", count + 2, first=100 * count)
        (doubted,) = load(tmp_path).facts()["doubts"]
        first = tmp_path / "b" / f"1.{ending}"
        assert doubted == f"{said} more pages than one, such as {first}: the first is read"
    data = load(tmp_path)
    x = torch.cat([data.open(split).x[:, 0, 4, 4] for split in ("train", "val", "test")]).float()
    for first in (100, 200):
        assert (x - first).abs().min() < 5
    assert not ((x > 210) | ((x > 105) & (x < 195))).any(), "another page"


def test_a_picture_that_a_phone_keeps_beside_another_is_no_page(tmp_path):
    fill(tmp_path, ["a", "b", "c"])
    stack(tmp_path / "a" / "phone.jpg", 2, format="MPO")
    assert load(tmp_path).facts()["doubts"] == []
