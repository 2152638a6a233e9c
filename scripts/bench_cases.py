"""What bench.py measures: cases, their made-up data, and the arithmetic they need."""

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

# torch, Hydra and metarun are loaded when they are needed, not before.

IMAGES = {  # classes, examples of each, shape
    "omniglot": (242, 20, (1, 28, 28)),
    "mini": (64, 100, (3, 84, 84)),
}
MAML_OMNI = "way=5 shot=1 query=15 sampler.query=15 sampler.tasks=32 algo.inner_lr=0.4"
MAML_MINI = (
    "way=5 shot=1 query=15 sampler.query=15 sampler.tasks=4 backbone.width=32 "
    "algo.inner_lr=0.01 algo.inner_steps=5"
)
CASES = {  # images, command line
    "proto-omni-5w": ("omniglot", "algo=protonet way=5 shot=5 query=15"),
    "proto-omni-60w": ("omniglot", "algo=protonet way=60 shot=5 query=5"),
    "proto-mini-5w": ("mini", "algo=protonet way=5 shot=5 query=15"),
    "proto-resnet12": ("mini", "algo=protonet backbone=resnet12 way=5 shot=5 query=15"),
    "maml-omni": ("omniglot", f"algo=maml {MAML_OMNI}"),
    "maml-omni-q1": ("omniglot", f"algo=maml {MAML_OMNI} query=1 sampler.query=1"),
    "maml-mini": ("mini", f"algo=maml {MAML_MINI}"),
    "fomaml-omni": ("omniglot", f"algo=fomaml {MAML_OMNI}"),
    "fomaml-mini": ("mini", f"algo=fomaml {MAML_MINI}"),
    "anil-omni": ("omniglot", f"algo=anil {MAML_OMNI}"),
    "anil-mini": ("mini", f"algo=anil {MAML_MINI}"),
    "eval-proto": ("omniglot", "mode=test algo=protonet way=5 shot=1 query=15 eval.episodes=600"),
    "matching": ("omniglot", "algo=matching way=5 shot=1 query=15"),
    "mann": ("omniglot", "algo=mann backbone=pixels way=5 sampler.presentations=10"),
}


class MadeUp:
    """A data set of random images, the same in every split, kept in memory."""

    name, checksum = "made-up", ""

    def __init__(self, images: str):
        from metarun.functional.metrics import ACCURACY

        self.metric = ACCURACY
        self.outlines = dict.fromkeys(("train", "val", "test"), made_up(images))

    def open(self, split: str) -> Any:
        """The images."""
        return self.outlines[split]

    def sealed(self, split: str) -> Any:
        """Random images give nothing away."""
        return nullcontext()


@cache
def made_up(images: str) -> Any:
    """A Split of random images, uint8 [classes × examples, *shape]."""
    import torch

    from metarun.data.split import Split

    classes, examples, shape = IMAGES[images]
    x = torch.randint(0, 256, (classes * examples, *shape), dtype=torch.uint8)
    first_row, names = torch.arange(classes + 1) * examples, tuple(map(str, range(classes)))
    grey, spread = (0.5,) * shape[0], (0.25,) * shape[0]
    return Split(x, first_row, names, first_row[:0], (), grey, spread, kind="images")


def composed(case: str, settings: list[str]) -> Any:
    """The config of the case's command line and the `settings`, with made-up images for data."""
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    import metarun

    conf = Path(metarun.__file__).parents[1] / "conf"  # of whatever revision is measured
    images, line = CASES[case]
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", [*line.split(), *settings])
    with open_dict(config):
        config.data = {"_target_": f"{__name__}.MadeUp", "images": images}
        config.plugins.allow = [__name__]
    return config


def tasks_of(config: Any) -> Any:
    """The part of the config with the way, shot, query and tasks of what the case does."""
    return config.eval if config.mode == "test" else config.sampler


def convolutions(config: Any) -> list[tuple[int, int, int, int]]:
    """The network's convolutions: channels, filters, their side, height and width of the map."""
    network = config.backbone
    channels, size, _ = IMAGES[config.data.images][2]
    if network._target_.endswith(".Conv4"):
        width = network.width
        return [(width if i else channels, width, 3, size // 2**i) for i in range(4)]
    if network._target_.endswith(".ResNet12"):
        layers = []
        for i, width in enumerate(network.widths):
            before, side = network.widths[i - 1] if i else channels, size // 2**i
            layers += [(before, width, 3, side), (before, width, 1, side)]
            layers += 2 * [(width, width, 3, side)]
        return layers
    return []


def passes(config: Any) -> list[tuple[int, int, int, int, int]]:
    """The convolutions, each before it the images [N] of one task, and of one batch of tasks."""
    task, layers = tasks_of(config), list(dict.fromkeys(convolutions(config)))
    images = layers and task.way * (task.shot + task.query)
    return [(n, *layer) for layer in layers for n in sorted({images, images * task.tasks})]


def label(images: int, channels: int, filters: int, side: int, size: int) -> str:
    """A convolution's name."""
    return f"{images}x{channels}x{size}x{size}->{filters} {side}x{side}"


def flop_of(channels: int, filters: int, side: int, size: int) -> int:
    """Floating-point operations of a convolution of one image."""
    return 2 * channels * filters * side**2 * size**2


def flop_per_task(config: Any) -> int:
    """Useful floating-point operations of the convolutions for one task; 0 without any.

    A forward pass takes F and a backward pass 2F, less the gradient with respect to the images.
    The second derivative of an inner step takes 6F more, four products to differentiate its
    backward pass and two its forward pass, less three of those that see the images.
    """
    layers, image = convolutions(config), IMAGES[config.data.images][2]
    if not layers:
        return 0
    forward, task = sum(flop_of(*layer) for layer in layers), tasks_of(config)
    first = sum(flop_of(*layer) for layer in layers if (layer[0], layer[3]) == image[:2])
    support, query = task.way * task.shot, task.way * task.query
    step = forward if config.mode == "test" else 3 * forward - first
    if config.algo._target_ != "metarun.algos.maml.MAML":
        return (support + query) * step
    inner = step if config.algo.first_order else step + 6 * forward - 3 * first
    return config.algo.inner_steps * support * inner + query * step
