"""Printed letters of six scripts, drawn from the fonts that matplotlib ships.

A class is a letter, an example is the letter in one of the faces that have it, jittered by a small
affine map; its superclass is its script. Whole scripts are held out for meta-test. Nothing is
downloaded: the faces come with the package, and drawing all of it takes seconds.
"""

import hashlib
import math
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont, ImageOps, features
from torch import Tensor

from metarun.data.split import Split, stack_classes
from metarun.data.statistics import channel_statistics
from metarun.data.store import DataSet, prepare
from metarun.errors import UserError
from metarun.tracking.progress import track

FORMAT = "3"  # of the drawing below; a change to the images needs a new number
# Text faces only. cmsy10 and cmex10 are left out: they keep other symbols at the letters' places.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10"),
)
TRAIN_SCRIPTS = ("Latin", "Greek", "Cyrillic")  # meta-val holds out some of their letters
TEST_SCRIPTS = ("Georgian", "Armenian", "Lao")
VAL_SHARE = 0.2
MIN_FACES = 8  # of 22; Lao, the rarest script, stands in eight
EXAMPLES = 20  # of a class, as in Omniglot

SIZE = 28  # of which the numbers in pixels below are
INK = 20  # longest side of an unjittered letter, in pixels
FINE = 2  # images are drawn this many times larger, then reduced: smooth edges
ALIKE = 0.94  # cosine of two letters' images in the same face, above which they look alike
TURN, GROWTH, SHEAR, SHIFT = math.radians(10), 0.15, 0.15, 2.0  # jitter: plus or minus this much


def load(root: str | None, size: int = SIZE) -> DataSet:
    """Printed letters, uint8 [N, 1, size, size], 255 = ink; 20 examples a class.

    Meta-train and meta-val are letters of the Latin, Greek and Cyrillic scripts, meta-test those of
    the Georgian, Armenian and Lao ones. Letters that look alike are one class, so no shape stands
    in two splits. `root` is not used: the fonts come with matplotlib. Raises UserError when they
    are not there.
    """
    fonts = font_files()
    digest = hashlib.sha256()
    for path in fonts.values():
        digest.update(path.read_bytes())
    versions = (PIL.__version__, features.version("freetype2"), unicodedata.unidata_version)
    key = f"format {FORMAT}, size {size}, {versions}, {digest.hexdigest()}"
    return prepare("glyphs", key, lambda: build(fonts, size))


def font_files() -> dict[str, Path]:
    """The font file of each face, from matplotlib's data; matplotlib itself is not imported."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data=glyphs draws with matplotlib's fonts: pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    files = {face: folder / f"{face}.ttf" for face in FACES}
    for path in files.values():
        if not path.is_file():
            raise UserError(f"the font {path} is missing: pip install --force-reinstall matplotlib")
    return files


def build(fonts: dict[str, Path], size: int) -> dict[str, Split]:
    """The three splits, drawn with `fonts`; the same bytes every time."""
    generator = torch.Generator().manual_seed(0)
    letters = distinct(inked_letters(fonts))
    chosen: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for script in (*TRAIN_SCRIPTS, *TEST_SCRIPTS):
        members = [letter for letter in letters if script_of(letter) == script]
        if script in TEST_SCRIPTS:
            chosen["test"] += members
            continue
        order = torch.rand(len(members), generator=generator).argsort().tolist()
        held_out = set(order[: round(VAL_SHARE * len(members))])
        for i, letter in enumerate(members):
            chosen["val" if i in held_out else "train"].append(letter)

    to_draw = [letter for members in chosen.values() for letter in members]
    drawn = {
        letter: examples(list(letters[letter].values()), generator, size)
        for letter in track(to_draw, "Drawing letters", len(to_draw))
    }
    mean, std = channel_statistics(drawn[letter] for letter in chosen["train"])
    return {
        split: stack_classes(
            "images",
            {class_name(letter): drawn[letter] for letter in members},
            {class_name(letter): script_of(letter) for letter in members},
            mean,
            std,
        )
        for split, members in chosen.items()
    }


def inked_letters(fonts: dict[str, Path]) -> dict[str, dict[str, Image.Image]]:
    """Each letter's ink (cropped, grey) in every face that has it, if enough faces do.

    Letters are Unicode's, without accents (no decomposition), script by script, in code order.
    """
    ink: dict[str, dict[str, Image.Image]] = {}
    for face, path in fonts.items():
        with TTFont(path, lazy=True) as tables:
            codes = sorted(tables.getBestCmap())
        # The basic layout draws one glyph a letter, whatever else is installed on the machine.
        font = ImageFont.truetype(path, INK * FINE * 3 // 2, layout_engine=ImageFont.Layout.BASIC)
        for letter in map(chr, codes):
            if is_plain_letter(letter):
                mask = font.getmask(letter, mode="L")
                if mask.getbbox():
                    image = Image.frombytes("L", mask.size, bytes(mask)).crop(mask.getbbox())
                    ink.setdefault(letter, {})[face] = image
    scripts = (*TRAIN_SCRIPTS, *TEST_SCRIPTS)
    order = sorted(ink, key=lambda letter: (scripts.index(script_of(letter)), letter))
    return {letter: ink[letter] for letter in order if len(ink[letter]) >= MIN_FACES}


def is_plain_letter(letter: str) -> bool:
    """Whether this is an unaccented letter of one of our scripts."""
    return (
        unicodedata.category(letter) in ("Lu", "Ll", "Lo")  # no modifiers, which are marks
        and not unicodedata.decomposition(letter)
        and script_of(letter) in (*TRAIN_SCRIPTS, *TEST_SCRIPTS)
    )


def script_of(letter: str) -> str:
    """Unicode's script of a letter, as its name begins: Latin, Greek, ..."""
    return unicodedata.name(letter, "?").split()[0].capitalize()


def class_name(letter: str) -> str:
    """Script and name of a letter: `Greek/small_omega`, `Lao/ko`."""
    words = unicodedata.name(letter).lower().split()
    return f"{script_of(letter)}/{'_'.join(word for word in words[1:] if word != 'letter')}"


def distinct(letters: dict[str, dict[str, Image.Image]]) -> dict[str, dict[str, Image.Image]]:
    """The letters less those that look like an earlier one, whatever their size.

    Latin, Greek and Cyrillic share many shapes, and some capitals differ from their small letter
    in size only. Were both kept, an episode could ask for a difference that is not there, and a
    shape could be met in training and in the test. So a capital and its small letter, or letters of
    two scripts, are one letter if they are alike in any face; other letters of a script, which
    its readers tell apart, only if they are alike in the faces' mean.
    """
    names = list(letters)
    zeros = torch.zeros(len(names), len(names), dtype=torch.float64)
    most, total, faces = zeros.clone(), zeros.clone(), zeros.clone()
    for face in FACES:
        rows = [i for i, name in enumerate(names) if face in letters[name]]
        plain = np.stack([draw(letters[names[i]][face], np.eye(2), (0, 0)) for i in rows])
        x = torch.from_numpy(plain).flatten(1).double()
        x = x / x.norm(dim=1, keepdim=True)
        pairs = (torch.tensor(rows)[:, None], torch.tensor(rows))
        cosines = x @ x.T
        most[pairs] = torch.maximum(most[pairs], cosines)
        total[pairs] += cosines
        faces[pairs] += 1
    scripts = np.array([script_of(name) for name in names])
    lower = np.array([name.lower() for name in names])
    kin = (scripts[:, None] == scripts) & (lower[:, None] != lower)
    alike = torch.where(torch.from_numpy(kin), total > ALIKE * faces.clamp(min=1), most > ALIKE)
    # An earlier letter counts even if it was dropped itself: A ~ B ~ C keeps A alone.
    repeats = alike.triu(diagonal=1).any(dim=0).tolist()
    return {n: letters[n] for n, repeat in zip(names, repeats, strict=True) if not repeat}


def examples(ink: list[Image.Image], generator: torch.Generator, size: int) -> Tensor:
    """Jittered drawings of a letter, uint8 [20, 1, size, size]; every face is used as often."""
    faces = torch.rand(len(ink), generator=generator).argsort().tolist()
    amounts = 2 * torch.rand(EXAMPLES, 5, generator=generator, dtype=torch.float64) - 1
    drawings = [
        draw(ink[faces[i % len(faces)]], *jitter(*amount), size)
        for i, amount in enumerate(amounts.tolist())
    ]
    return torch.from_numpy(np.stack(drawings))[:, None]


def jitter(
    turn: float, growth: float, shear: float, right: float, down: float
) -> tuple[np.ndarray, tuple[float, float]]:
    """A linear map [2, 2] and a shift in pixels; each amount in [-1, 1] is a share of its bound."""
    cos, sin = math.cos(TURN * turn), math.sin(TURN * turn)
    scale = 1 + GROWTH * growth
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, SHEAR * shear], [0, 1]])
    return linear, (SHIFT * right, SHIFT * down)


def draw(
    ink: Image.Image, linear: np.ndarray, shift: tuple[float, float], size: int = SIZE
) -> np.ndarray:
    """The letter's ink, its longest side made 20 of 28 pixels, mapped and centred: [size, size]."""
    margin = 2  # without it the interpolation would cut the outermost strokes hard
    padded = ImageOps.expand(ink, margin)
    fine, pixel = size * FINE, FINE * size / SIZE
    # Image.transform wants the map from the drawing back to the ink.
    back = np.linalg.inv(linear) * max(ink.size) / (INK * pixel)
    centre = np.array(padded.size) / 2 - back @ (fine / 2 + pixel * np.array(shift))
    matrix = (*back[0].tolist(), centre[0].item(), *back[1].tolist(), centre[1].item())
    drawing = padded.transform(
        (fine, fine), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(drawing.reduce(FINE))
