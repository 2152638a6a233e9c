"""What a config may name, and where."""

import pytest
from hydra.utils import get_object

from metarun.configs.rooms import ROOMS, may_stand, refuse_foreign_names, room_of
from metarun.configs.rules import conf_folder, targets
from metarun.errors import UserError
from metarun.parts import refuse_foreign_targets


def told(config, allow=()):
    """What is said of the config; None if nothing is wrong."""
    try:
        refuse_foreign_names(config, list(allow))
    except UserError as error:
        return str(error)
    return None


PROTONET = {"_target_": "metarun.algos.protonet.ProtoNet"}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("algo", "metarun.algos.protonet.ProtoNet"),
        ("algo.head", "torch.nn.Linear"),
        ("backbone", "metarun.backbones.conv4.Conv4"),
        ("backbone", "metarun.backbones.pretrained.from_torchvision"),
        ("backbone.stem", "torchvision.ops.Conv2dNormActivation"),
        ("data", "metarun.data.images.glyphs.load"),
        ("data.sources.mine", "metarun.data.arrays.load"),
        ("sampler", "metarun.samplers.uniform.Uniform"),
        ("eval.sampler", "metarun.samplers.uniform.Uniform"),
        ("augment", "metarun.augment.sequence.Sequence"),
        ("augment.flip", "torchvision.transforms.RandomGrayscale"),
        ("optim", "torch.optim.NAdam"),
        ("schedule", "torch.optim.lr_scheduler.StepLR"),
    ],
)
def test_what_may_stand(place, name):
    assert may_stand(f"{place}._target_", name, [])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("algo", "metarun.runs.folder.write_text"),
        ("algo", "metarun.backbones.conv4.Conv4"),
        ("algo", "torch.nn.Linear"),  # which may stand inside
        ("algo.distance", "metarun.runs.folder.write_text"),
        ("algo.distance", "metarun.parts.instance"),
        ("algo.distance.path", "metarun.data.archives.data_root"),
        ("backbone", "torchvision.models.resnet18"),
        ("backbone", "torch.hub.load"),
        ("backbone", "metarun.runs.checkpoint.save"),
        ("data", "metarun.data.download.download"),
        ("data", "metarun.data.store.prepare"),
        ("data.root", "metarun.data.archives.data_root"),
        ("data.sources.mine.root", "metarun.data.arrays.load"),
        ("sampler", "metarun.data.images.glyphs.load"),
        ("sampler.way", "torch.nn.Linear"),
        ("optim.lr", "torch.nn.Linear"),
        ("schedule", "torch.optim.Adam"),
        ("tracker", "metarun.algos.protonet.ProtoNet"),
        ("eval.tasks", "metarun.samplers.uniform.Uniform"),
        ("algorithm", "metarun.algos.protonet.ProtoNet"),
        ("algo.x", "hydra.utils.instantiate"),
        ("algo.x", "hydra.utils.get_method"),
    ],
)
def test_what_may_not(place, name):
    assert not may_stand(f"{place}._target_", name, [])
    assert may_stand(f"{place}._target_", name, [name.split(".")[0]]), "unless the person says so"


def test_an_allowed_package_is_not_all_that_begin_like_it():
    assert may_stand("algo._target_", "mine.Net", ["mine"])
    assert not may_stand("algo._target_", "mineral.Net", ["mine"])
    assert not may_stand("algo._target_", "metarun.algos_of_mine.Net", [])


def committed():
    """Every `_target_` of the committed groups, with its place."""
    import yaml

    for room in ROOMS:
        group, _, inside = room.partition(".")
        for path in sorted((conf_folder() / group).glob("*.yaml")):
            content = yaml.safe_load(path.read_text())
            content = content.get(group, content) if not inside else content
            yield from targets(content or {}, f"{group}.")


def test_what_is_committed_may_stand():
    """And is what its group is for, once imported: algo a module, a sampler a dataclass …"""
    found = sorted(set(committed()))
    assert len(found) > 50
    for place, target in found:
        assert may_stand(place, target, []), (place, target)
        if not target.startswith("metarun.data"):
            get_object(target)
    assert room_of("eval.sampler._target_")[0] is ROOMS["eval.sampler"]


@pytest.mark.parametrize(
    ("group", "target", "said"),
    [
        ("algo", "metarun.algos.protonet.squared_distances", "this is metarun.functional"),
        ("algo", "metarun.algos.protonet.ProtoNet.load_state_dict", "not allowed"),
        ("algo", "metarun.algos.protonet.ProtoNet.__class__", "this is builtins.type"),
        ("algo", "metarun.algos.protonet.nn.Sequential", "this is torch.nn"),
        ("backbone", "metarun.backbones.pretrained.read", "not allowed"),
        ("backbone", "metarun.backbones.convolution.initialise", "not allowed"),
        ("sampler", "metarun.samplers.uniform.draw_tasks", "not allowed"),
        ("sampler", "metarun.samplers.pairs.Pairs", "not allowed"),
        ("augment", "metarun.augment.flip.flipped", "not allowed"),
        ("optim", "torch.optim.swa_utils.AveragedModel", "not allowed"),
        ("optim", "torch.optim.adam.adam", "not allowed"),
        ("schedule", "torch.optim.lr_scheduler.warnings.warn", "not allowed"),
    ],
)
def test_names_are_looked_behind(group, target, said):
    """Functions, and what was only imported there, are not what the group is for."""
    config = {group: {"_target_": target}, "plugins": {"allow": []}}
    assert told(config) is None, "the name alone would do"
    with pytest.raises(UserError, match="not allowed to run") as refused:
        refuse_foreign_targets(config, group)
    assert said in str(refused.value)


def test_nested_functions_are_not_called():
    config = {
        "algo": PROTONET | {"distance": {"_target_": "torch.nn.utils.parameters_to_vector"}},
        "plugins": {"allow": []},
    }
    assert told(config) is None
    with pytest.raises(UserError, match=r"algo\.distance\._target_=.*not allowed"):
        refuse_foreign_targets(config, "algo")
    config["algo"]["distance"] = {"_target_": "torch.nn.ReLU"}
    refuse_foreign_targets(config, "algo")


@pytest.mark.parametrize("key", ["_args_", "_convert_", "_recursive_", "_partial_"])
def test_instructions_to_hydra(key):
    """They call otherwise than is told; what needs an argument later is an optimiser's alone."""
    assert told({"algo": PROTONET | {key: 1}}) == f"algo.{key}: it cannot be set in metarun"
    nested = {"algo": PROTONET | {"x": {"_target_": "torch.nn.ReLU", key: 1}}}
    assert told(nested) == f"algo.x.{key}: it cannot be set in metarun"
    assert told({"algo": {"_target_": "mine.Net", key: 1}}, allow=["mine"]) is None
    adam = {"_target_": "torch.optim.Adam", key: True}
    assert (told({"optim": adam}) is None) == (key == "_partial_")


def test_nothing_is_resolved_twice():
    assert "cannot hold ${" in told({"algo": PROTONET | {"x": ["${oc.env:HOME}"]}})
