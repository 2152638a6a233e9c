"""Folders of painted pictures, and data=image_folder of them."""

from PIL import Image

from metarun.data.images import image_folder

OPTIONS = {
    "size": 8,
    "grey": False,
    "range": None,
    "depth": None,
    "min_examples": 0,
    "split_file": None,
    "fractions": [0.6, 0.2, 0.2],
    "split_seed": 0,
}


def load(root, **changes):
    return image_folder.load(str(root), **{**OPTIONS, **changes})


def paint(path, colour, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def fill(root, classes, pictures=3):
    """`pictures` plain pictures a class; class c has red value 10 c. No two files are the same: the
    name of the root and of the class is in a comment."""
    for c, name in enumerate(classes):
        for i in range(pictures):
            paint(root / name / f"{i}.png", (10 * c, i, 0))
            with open(root / name / f"{i}.png", "ab") as file:
                file.write(f"{root.name}/{name}".encode())  # after the picture's end


def members(data):
    return {split: set(outline.classes) for split, outline in data.outlines.items()}
