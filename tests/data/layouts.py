"""Small data sets in the layouts of the published ones, as files by their name in the archive."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from metarun.data.class_lists import read_list
from metarun.data.store import SPLITS

Files = dict[str, bytes]


def colour(c: int, i: int) -> tuple[int, int, int]:
    """That of picture i of class c."""
    return (c % 16 * 16, c // 16 * 16, 50 * i)


def picture(c: int, i: int, size=(20, 20), kind="png") -> bytes:
    """A plain picture of class c's colour; named .jpg it is a PNG all the same, so exact."""
    file = io.BytesIO()
    Image.new("RGB", size, colour(c, i)).save(file, kind)
    return file.getvalue()


def as_folder(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def as_tar(files: Files, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def as_zip(files: Files, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def dtd(pictures=2) -> Files:
    """dtd-r1.0.1.tar.gz: a class's place is that in alphabetical order."""
    names = sorted(name for names in read_list("dtd").values() for name in names)
    files = {"dtd/labels/train1.txt": b"banded/banded_0002.jpg\n"}
    files["dtd/images/waffled/.directory"] = b"[Dolphin]"  # so in the published archive
    for c, name in enumerate(names):
        for i in range(pictures):
            files[f"dtd/images/{name}/{name}_{i:04}.jpg"] = picture(c, i)
    return files


def cub(pictures=2, size=(30, 20)) -> Files:
    """CUB_200_2011.tgz; the bird stands in the right third."""
    folders = [f"{n:03}.Bird_{n}" for n in range(1, 201)]
    folders[0] = "001.Black_footed_Albatross"
    files, names, boxes = {}, [], []
    for c, folder in enumerate(folders):
        for i in range(pictures):
            image = Image.new("RGB", size, colour(c, i))
            image.paste((255, 255, 255), (20, 5, 30, 20))
            file = io.BytesIO()
            image.save(file, "png")
            name = f"{folder}/Bird_{i:04}_{c}.jpg"
            files[f"CUB_200_2011/images/{name}"] = file.getvalue()
            names.append(f"{len(names) + 1} {name}")
            boxes.append(f"{len(names)} 20.0 5.0 10.0 15.0")
    files["CUB_200_2011/images.txt"] = "\n".join(names).encode()
    files["CUB_200_2011/bounding_boxes.txt"] = ("\n".join(boxes) + "\n").encode()
    return files


def aircraft(pictures=2) -> Files:
    """fgvc-aircraft-2013b.tar.gz: a red banner below, the aircraft white and wide in the middle."""
    variants = sorted(name for names in read_list("aircraft").values() for name in names)
    data = "fgvc-aircraft-2013b/data"
    files: Files = {}
    tables: dict[str, str] = {}

    def write(table: str, line: str) -> None:
        tables[table] = tables.get(table, "") + line + "\n"

    for c, variant in enumerate(variants):
        for i in range(pictures):
            number = f"{1000 * c + i:07}"
            image = Image.new("RGB", (60, 50), colour(c, i))
            image.paste((255, 0, 0), (0, 30, 60, 50))
            image.paste((255, 255, 255), (10, 12, 50, 18))
            file = io.BytesIO()
            image.save(file, "png")
            files[f"{data}/images/{number}.jpg"] = file.getvalue()
            part = "test" if i else "trainval"
            maker = "Boeing" if variant[0] == "7" else "Tupolev & Co"
            write(f"images_variant_{part}.txt", f"{number} {variant}")
            write(f"images_manufacturer_{part}.txt", f"{number} {maker}")
            write("images_box.txt", f"{number} 10 12 50 18")
    return files | {f"{data}/{name}": text.encode() for name, text in tables.items()}


def vgg_flower(pictures=2) -> tuple[Files, bytes]:
    """102flowers.tgz and imagelabels.mat; the flowers are numbered from the last class down."""
    files, labels = {}, []
    for c in range(102, 0, -1):
        for i in range(pictures):
            labels.append(c)
            files[f"jpg/image_{len(labels):05}.jpg"] = picture(c - 1, i)
    return files, matlab(labels)


def matlab(labels: list[int]) -> bytes:
    """A MATLAB 5 file with the compressed array `labels`, one row of bytes, as published."""
    file = io.BytesIO()
    savemat(file, {"labels": np.array([labels], np.uint8)}, do_compression=True)
    return file.getvalue()


def gtsrb(pictures=2, folder="GTSRB/Final_Training/Images") -> Files:
    """GTSRB_Final_Training_Images.zip, or torchvision's archive with its folder."""
    files = {"GTSRB/Readme-Images.txt": b"about"}
    for c in range(43):
        for i in range(pictures):
            files[f"{folder}/{c:05}/00000_{i:05}.ppm"] = picture(c, i, kind="ppm")
        files[f"{folder}/{c:05}/GT-{c:05}.csv"] = b"Filename;Width"
    return files


def cifar_classes() -> list[str]:
    """CIFAR-100's fine classes in its own order, which is alphabetical."""
    splits = read_list("fc100").values()
    return sorted(name for split in splits for group in split.values() for name in group)


def cifar_picture(c: int, i: int) -> np.ndarray:
    """Picture i of class c, uint8 [3, 32, 32]: no two rows or columns alike."""
    random = np.random.default_rng((c, i))
    return random.integers(0, 256, (3, 32, 32), dtype=np.uint8)


def cifar_100(pictures: int = 2, protocol: int = 2) -> Files:
    """CIFAR-100's own archive, shuffled: its training part holds each class's first picture."""
    names = cifar_classes()
    files = {}
    for part, numbers in (("train", range(pictures - 1)), ("test", [pictures - 1])):
        order = np.random.default_rng(0).permutation([(c, i) for c in range(100) for i in numbers])
        content = {
            b"data": np.stack([cifar_picture(c, i).reshape(-1) for c, i in order]),
            b"fine_labels": [int(c) for c, _ in order],
            b"coarse_labels": [0 for _ in order],
            b"filenames": [b"x.png" for _ in order],
        }
        files[f"cifar-100-python/{part}"] = pickle.dumps(content, protocol)
    meta = {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": []}
    return files | {"cifar-100-python/meta": pickle.dumps(meta, protocol)}


def png(x: np.ndarray) -> bytes:
    """A picture [3, H, W] as a file."""
    file = io.BytesIO()
    Image.fromarray(x.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


def class_splits(name: str) -> dict[str, list[str]]:
    """The classes of each split of CIFAR-FS or FC100."""
    listed = read_list(name)
    return {split: [c for group in listed[split].values() for c in group] for split in SPLITS}


def published(root: Path, pictures: int) -> Path:
    """The archives of all these sets, in one folder, as one would keep them."""
    as_tar(cifar_100(pictures), root / "cifar-100-python.tar.gz")
    as_tar(cub(pictures), root / "CUB_200_2011.tgz")
    as_tar(aircraft(pictures), root / "fgvc-aircraft-2013b.tar.gz")
    as_tar(dtd(pictures), root / "dtd-r1.0.1.tar.gz")
    flowers, labels = vgg_flower(pictures)
    as_tar(flowers, root / "102flowers.tgz")
    (root / "imagelabels.mat").write_bytes(labels)
    as_zip(gtsrb(pictures), root / "GTSRB_Final_Training_Images.zip")
    return root
