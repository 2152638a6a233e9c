"""Pictures of a run: its learning curves, and test episodes with what was predicted.

Drawn with matplotlib's objects and not with pyplot: no window system, no state between two runs.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metarun import files
from metarun.functional.metrics import ACCURACY, VALUES, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, PALE, GOOD, BAD, GREY = "#1f5fa8", "#a9c4e4", "#2e8b57", "#c8402f", "#666666"
ROWS, SUPPORT, QUERIES = 10, 5, 6  # classes, and examples of each, shown at most
LABEL, ANSWER = 10, 8  # sizes of a class's name, and of that which was answered, in points


def curves(records: list[dict], path: Path, metric: Metric = ACCURACY) -> bool:
    """Draws loss and `metric` against the step; False, and no file, if there is nothing to draw."""
    scale, unit, name = metric.scale, metric.unit, metric.name
    train = column(records, "train/loss")
    val = column(records, f"val/{name}")
    if not train[0] and not val[0]:
        return False
    figure = new_figure(9, 3.4)
    loss, merit = figure.subplots(1, 2)

    loss.plot(*train, color=PALE if val[0] else LINE, linewidth=1, label="train")
    if any("val/loss" in record for record in records):
        loss.plot(*column(records, "val/loss"), color=LINE, marker=dots(val[0]), label="validation")
    loss.set_ylabel("loss")

    steps, values = column(records, f"train/{name}")
    if steps:
        merit.plot(steps, [scale * v for v in values], color=PALE, linewidth=1, label="train")
    steps, values = val
    if steps:
        merit.plot(
            *(steps, [scale * v for v in values]),
            color=LINE,
            marker=dots(steps),
            label="validation",
        )
        bounds = [r for r in records if r.get(f"val/{name}") is not None and "val/ci95" in r]
        merit.fill_between(
            [r["step"] for r in bounds],
            [scale * (r[f"val/{name}"] - (r["val/ci95"] or 0)) for r in bounds],
            [scale * (r[f"val/{name}"] + (r["val/ci95"] or 0)) for r in bounds],
            color=LINE,
            alpha=0.15,
            linewidth=0,
        )
    test = next((r for r in reversed(records) if r.get(f"test/{name}") is not None), None)
    if test:
        text = f"test {scale * test[f'test/{name}']:.2f}"
        if test.get("test/ci95") is not None:
            text += f" ± {scale * test['test/ci95']:.2f}"
        merit.axhline(
            scale * test[f"test/{name}"],
            color=GOOD,
            linestyle=(0, (4, 3)),
            label=f"{text}{unit}",
        )
    merit.set_ylabel(metric.label)
    if metric.of == VALUES:
        merit.set_yscale("log")

    for axes in (loss, merit):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    save(figure, path)
    return True


def episode(
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    scores: Tensor,
    class_names: list[str],
    path: Path,
) -> bool:
    """Draws one task: a row a class, its support left, queries right with what was predicted.

    support_x [S, C, H, W], query_x [Q, C, H, W], scores [Q, way]. False, and no file, when the
    examples are not images.
    """
    if support_x.ndim != 4 or query_x.ndim != 4 or support_x.shape[1] not in (1, 2, 3, 4):
        return False
    way = min(len(class_names), ROWS)
    support = [(support_y == k).nonzero().flatten()[:SUPPORT].tolist() for k in range(way)]
    queries = [(query_y == k).nonzero().flatten()[:QUERIES].tolist() for k in range(way)]
    shots, shown = max(map(len, support)), max(map(len, queries))
    predicted = scores.argmax(dim=-1)
    low, high = grey_range(support_x, query_x)

    labels = [shortened(class_names[k]) for k in range(way)]
    answers = [shortened(class_names[k], 14) for k in predicted.unique().tolist()]
    figure = new_figure(1, 1, layout=None)
    left = widest(figure, labels, LABEL) + 0.25
    column = max(1.1, widest(figure, answers, ANSWER) + 0.1)
    row_height, top = 1.35, 0.35
    # A narrow empty column parts what was learnt from and what was asked.
    asked = left + shots * column + 0.25
    width, height = asked + shown * column, top + row_height * way
    figure.set_size_inches(width, height)
    # One axes for all, in inches from the top left: one for each image takes a second to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for k in range(way):
        y = top + row_height * k
        name = axes.text(left - 0.12, y + 0.5, labels[k], ha="right", va="center")
        name.set(fontsize=LABEL, parse_math=False)
        for place, row in enumerate(support[k]):
            show(axes, support_x[row], left + place * column, y, low, high, frame=None)
        for place, row in enumerate(queries[k]):
            x, answer = asked + place * column, int(predicted[row])
            colour = GOOD if answer == k else BAD
            _, bottom = show(axes, query_x[row], x, y, low, high, frame=colour)
            answered = shortened(class_names[answer], 14)
            name = axes.text(x + 0.5, bottom + 0.06, answered, ha="center", va="top", color=colour)
            name.set(fontsize=ANSWER, parse_math=False)
    right = 100 * (predicted == query_y).double().mean().item()
    for x, text in ((left, "support"), (asked, f"queries, {right:.0f} % right")):
        axes.text(x, top - 0.1, text, color=GREY, fontsize=10, va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0))
    save(figure, path)
    return True


def functions(
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    predictions: dict[str, Tensor],
    path: Path,
) -> None:
    """Draws regressions side by side: the truth, the support points, and each prediction by name.

    Inputs and values of the support [T, S, 1], of the query [T, Q, 1], like each prediction.
    """
    (support_x, support_y), (query_x, query_y) = support, query
    from matplotlib import colormaps

    tasks = len(query_x)
    figure = new_figure(3.4 * tasks, 3.2)
    shades = colormaps["viridis"].resampled(len(predictions) + 1)
    for task, axes in enumerate(figure.subplots(1, tasks, squeeze=False)[0]):
        order = query_x[task, :, 0].argsort()
        x = query_x[task, order, 0].numpy()
        axes.plot(x, query_y[task, order, 0].numpy(), color="black", linewidth=2, label="truth")
        for i, (name, y) in enumerate(predictions.items()):
            axes.plot(x, y[task, order, 0].numpy(), color=shades(i), linewidth=1.2, label=name)
        points = support_x[task, :, 0].numpy(), support_y[task, :, 0].numpy()
        axes.plot(*points, "^", color=BAD, markersize=6, label="support")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"test function {task + 1}", loc="left", color=GREY, fontsize=10)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(predictions) + 2,
        frameon=False,
        fontsize=9,
    )
    save(figure, path)


def widest(figure: "Figure", words: list[str], size: float) -> float:
    """Width in inches of the longest of the words, in letters of this size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with boxes_for_letters():
        drawn = [figure.text(0, 0, word, fontsize=size, parse_math=False) for word in words]
        found = max(text.get_window_extent().width for text in drawn) / figure.dpi
    for text in drawn:
        text.remove()
    return found


def show(
    axes: "Axes", image: Tensor, x: float, y: float, low: Tensor, high: Tensor, frame: str | None
) -> tuple[float, float]:
    """One image [C, H, W], its values from low to high, in the inch right of x and below y, in a
    frame of this colour; its right and lower edge."""
    from matplotlib.patches import Rectangle

    levels = ((image.double() - low) / (high - low)).clamp(0, 1)
    height, width = (side / max(image.shape[1:]) for side in image.shape[1:])
    x, y = x + (1 - width) / 2, y + (1 - height) / 2
    extent = (x, x + width, y + height, y)
    if len(levels) == 3:
        axes.imshow(levels.permute(1, 2, 0).numpy(), interpolation="nearest", extent=extent)
    else:  # grey, or channels that no colour stands for: the first one
        grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
        axes.imshow(levels[0].numpy(), interpolation="nearest", extent=extent, **grey)
    line: dict[str, Any] = {"edgecolor": frame or "#cccccc", "linewidth": 2.5 if frame else 0.8}
    axes.add_patch(Rectangle((x, y), width, height, fill=False, **line))
    return x + width, y + height


def grey_range(*batches: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, [C, 1, 1]: it undoes any normalising."""
    flat = [x.double().transpose(0, 1).flatten(1) for x in batches]
    low = min_of([x.amin(dim=1) for x in flat])
    high = -min_of([-x.amax(dim=1) for x in flat])
    return low[:, None, None], (high + (high == low))[:, None, None]


def min_of(values: list[Tensor]) -> Tensor:
    first, *others = values
    for other in others:
        first = first.minimum(other)
    return first


def column(records: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have this key."""
    having = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in having], [record[key] for record in having]


def dots(steps: list[float]) -> str | None:
    """A marker while the points are few enough to be told apart."""
    return "." if len(steps) <= 40 else None


def shortened(name: str, letters: int = 18) -> str:
    """The name's end where it is long, since that is what tells Greek/alpha from Greek/beta."""
    return name if len(name) <= letters else "…" + name[1 - letters :]


def new_figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """A figure of this size in inches."""
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # its font cache is no news
    return Figure(figsize=(width, height), dpi=120, layout=layout)


@contextmanager
def boxes_for_letters() -> Iterator[None]:
    """Nothing is said of a class name's letters that the font lacks; it shows boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def save(figure: Any, path: Path) -> None:
    """Writes the PNG whole or not at all. Raises UserError if it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    drawn = BytesIO()
    with boxes_for_letters():
        figure.savefig(drawn, format="png")
    with files.whole(path) as file:
        file.write(drawn.getvalue())
