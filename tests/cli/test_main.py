"""What a user types, and what the answer is when it cannot be."""

import os
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra._internal.core_plugins import basic_launcher
from omegaconf import OmegaConf

from metarun import __version__
from metarun.cli.check import check, refuse_foreign_code
from metarun.cli.main import go_on, objective
from metarun.configs.rules import conf_folder
from metarun.errors import UserError
from metarun.tables import cells
from metarun.tracking.weights_and_biases import flat
from tests.conftest import QUICK
from tests.data import layouts

CONF = conf_folder()
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").rglob("*.yaml")
)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("wya=3", "wya: there is no such key, did you mean way?"),
        ("train.stepz=3", "train.stepz: there is no such key, did you mean train.steps?"),
        ("+stepz=3", "stepz: there is no such key"),
        ("distance=cosine", "did you mean algo.distance?"),
        ("algo=maml algo.inner_step=3", "did you mean algo.inner_steps?"),
        ("algo=maml algo.test_step=3 wya=3", "did you mean algo.test_steps?"),
        ("data=omniglot data.spilts=minimal", "did you mean data.splits?"),
        ("backbone=resnet12 backbone.width=8", "did you mean backbone.widths?"),
        ("-m data=glyphs,sinusoid backbone.width=8", "did you mean backbone.widths?"),
        ("data=[omniglot,glyphs] data.root=DIR", "did you mean data.sources.omniglot.root?"),
        ("augment=crop_flip augment.crop.paddin=2", "did you mean augment.crop.padding?"),
        ("experiment/ladder/one_shot=maml", "write +experiment/ladder/one_shot=CHOICE"),
        ("+experiment/ladder/oneshot=maml", "no such group of choices, did you mean experiment/"),
        ("-m +experiment/ladder/oneshot=glob(p*)", "did you mean experiment/ladder/one_shot?"),
        ("way=five", "way=five: a whole number is needed"),
        ("way=2.5", "way=2.5: a whole number is needed"),
        ("way=true", "way=true: a whole number is needed"),
        ("optim.lr=big", "optim.lr=big: a number is needed"),
        ("algo.learn_temperature=1", "algo.learn_temperature=1: true or false is needed"),
        ("way=1", "sampler.way=1: it must be at least 2"),
        ("shot=0", "shot=0: it must be at least 1"),
        ("eval.episodes=1", "eval.episodes=1: it must be at least 2"),
        ("algo=protnet", "algo=protnet: there is no such choice, did you mean protonet?"),
        (
            "algo=mann backbone.strides=true",
            "backbone.strides: backbone=pixels has no such key, backbone=conv4, conv4_narrow would",
        ),
        ("data=omniglt", "did you mean omniglot?; data can be "),
        ("experiment=snell2017/omniglot_5way", "snell2017/omniglot_5way_1shot"),
        ("device.precision=fp16", "device.precision=fp16: choose one of fp32, tf32, bf16"),
        ("device.name=tpu", "device.name=tpu: choose auto, cpu, cuda or cuda:NUMBER"),
        ("data=cub data.crop=boxed", "data.crop=boxed: choose one of none, box, did you mean box?"),
        ("tracker.mode=offlne", "did you mean offline?"),
        (
            "mode=tset",
            "mode=tset: choose one of train, test, embed, prepare, verify, did you mean test?",
        ),
        ("mode=test", "mode=test: say which model, checkpoint="),
        ("mode=test checkpoint=none.pt", "checkpoint=none.pt: there is no such file"),
        ("checkpoint=some.pt", "checkpoint= goes with mode=test"),
        ("to=folder", "to= goes with mode=embed"),
        ("mode=prepare checkpoint=some.pt", "checkpoint= goes with mode=test"),
        ("name=a/b", "name=a/b: not a folder's name"),
        ("~train", "train.steps: it cannot be left out"),
        ("train", "train: cannot be read: write key=value"),
        ("way=[5", "way=[5: cannot be read: write key=value"),
        ("name=é", """name=é: cannot be read: quote the value: 'name="é"'"""),
        ("name=a=b", """quote the value: 'name="a=b"'"""),
        ("seed=0,1", "several values are a sweep: add -m"),
        ("-m algo=protonet,", "algo=protonet,: cannot be read: write key=value"),
        ("device=null", "device=null: a run needs one"),
        ("optim.lr=nan", "optim.lr=nan: it must be finite"),
        ("schedule.gamma=-1", "schedule.gamma=-1: it must be at least 0"),
        ("schedule=cosine schedule.eta_min=-1", "schedule.eta_min=-1: it must be at least 0"),
        ("name=.", "name=.: not a folder's name"),
        ("plugins.allow=5", "plugins.allow=5: a list is needed"),
        ("eval.sampler.shot=4", "eval.sampler.shot=4: it is set as eval.shot=4"),
        ("eval=variable eval.sampler.way=4", "eval.sampler.way=4: it is set as eval.way=4"),
        ("mode=test checkpoint=5", "checkpoint=5: there is no such file"),
        ("+hydra.job.env_set.PATH=/evil", "hydra.job.env_set: it cannot be changed"),
        ("hydra.mode=MULTIRUN", "hydra.mode: it cannot be changed in metarun"),
        ("+hydra.job_logging.handlers.x.class=logging.FileHandler", "hydra.job_logging: "),
        ("+hydra.callbacks.x._target_=hydra.utils.get_object", "hydra.callbacks: "),
        ("--config-name main", "--config-name: not in metarun"),
        ("--experimental-rerun config.pickle", "--experimental-rerun: not in metarun"),
        ("-m --cfg job", "leave out -m"),
        ("--way 5", "--way: there is no such option"),
        ("--config-dir nowhere", "--config-dir nowhere: there is no such folder"),
        ("backbone._target_=os.system", "os.system: not allowed to run"),
        ("backbone._target_=torch.hub.load", "torch.hub.load: not allowed to run"),
        ("+hydra.callbacks.x._target_=shutil.rmtree", "hydra.callbacks: it cannot be changed"),
        ("-m seed=0,1,two", "seed=two: a whole number is needed"),
        ("-m +experiment/ladder/one_shot=glob(x*)", "it matches none of anil, boil"),
        ("-m algo=protonet,protnet", "algo=protnet: there is no such choice"),
    ],
)
def test_refused_at_once(metarun, typed, said):
    """One line that says what is wrong, exit code 2, and nothing left behind."""
    assert said in metarun.error(*typed.split())
    assert list(metarun.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("algo.distance=manhattan", "algo.distance=manhattan: choose one of euclidean, cosine"),
        ("algo.temperature=0", "algo.temperature=0: it must be above 0"),
        ("backbone.batch_norm=none algo=maml algo.way=4", "algo.way=4 outputs are learnt, but a"),
        ("backbone.batch_norm=own", "backbone.batch_norm=own: choose one of running, batch, supp"),
        (
            "backbone.batch_norm=running algo=maml",
            "choose batch (the papers'), support (inductive)",
        ),
        ("algo=maml eval.way=4", "set way=4, or sampler.way and eval.way to 3"),
        ("eval.way=1", "val split: way=1: a task needs at least 2 classes"),
        ("algo=siamese sampler=uniform", "trains on pairs, but the sampler draws episodes"),
        ("sampler=sequences", "on episodes, but the sampler draws sequences: use sampler=uniform"),
        ("sampler=functions", "sampler=functions: the data has classes: use sampler=uniform"),
        ("data.size=8", "backbone=conv4 takes images of at least 16×16"),
        ("way=65", "train split: way=65, but the split has only 64 classes: lower way to 64"),
        ("eval.way=22", "val split: way=22, but the split has only 21 classes"),
        ("shot=16", "has 20 examples, but shot=16 and query=5 need 21: lower one of them"),
        ("sampler=within_superclass", "the data has no superclasses: use sampler=uniform"),
        ("data.root=nowhere", "nowhere"),
        ("data.root=null", "data.root"),
        ("device.precision=tf32 device=cpu", "device.precision=tf32 needs an NVIDIA GPU"),
        ("device.graph=true device=cpu", "device.graph=true needs an NVIDIA GPU: use device.graph"),
        ("sampler.chunk=-1", "sampler.chunk=-1: it must be at least 0"),
        ("sampler.chunk=2 sampler.tasks=3", "set backbone.batch_norm (and algo.batch_norm, if"),
        (
            "sampler.chunk=1 sampler.tasks=2 algo=reptile backbone.batch_norm=none",
            "Reptile keeps something from one meta-batch for the next",
        ),
        ("optim.betas=[0.9]", "optim: "),
        (
            "backbone._target_=metarun.backbones.pretrained.nn.Flatten",
            "which is not allowed to run",
        ),
        ("backbone._target_=metarun.backbones.pretrained.read", "which is not allowed to run"),
        ("backbone._target_=metarun.backbones.conv5.Conv5", "it cannot be imported"),
    ],
)
def test_refused_before_training(metarun, typed, said):
    """What only the parts themselves can tell is one line too, and leaves no folder."""
    text = metarun.error(*metarun.data, *typed.split(), "hydra.run.dir=outputs/run")
    assert said in text
    assert list(metarun.folder.iterdir()) == []


def test_a_refused_run_leaves_the_folders_that_were_there(metarun):
    (metarun.folder / "outputs").mkdir()
    metarun.error(*metarun.data, "way=65")
    assert [path.name for path in metarun.folder.rglob("*")] == ["outputs"]


def test_no_key_is_suggested_that_is_not_there(metarun):
    """As the very one that was typed, or that of another class: its choices are named."""
    said = metarun.error("backbone=identity", "backbone.width=8")
    having = "backbone=conv4, conv4_narrow, conv6, vit_small"
    assert said == f"backbone.width: backbone=identity has no such key, {having} would"


def test_going_on_with_a_name_in_quotes():
    """The name is typed as Hydra can read it."""
    about = SimpleNamespace(
        runtime=SimpleNamespace(config_sources=[]),
        overrides=SimpleNamespace(task=["way=3", 'name="é"'], hydra=["hydra.run.dir=a b"]),
    )
    command = go_on(about, "é", Path("a b"))
    assert command == ["metarun", "way=3", 'name="é"', "resume=auto", "hydra.run.dir=a b"]


def test_prepare_and_verify(metarun, capsys):
    """Both tell which data is there, and train nothing; verify makes nothing."""
    told = metarun.error(*metarun.data, "data.size=17", "mode=verify")
    assert told.startswith("data=image_folder is not prepared")
    assert "metarun mode=prepare data=image_folder" in told
    capsys.readouterr()
    shown = {}
    for mode in ("prepare", "verify"):
        metarun.main(*metarun.data, "data.size=17", f"mode={mode}")
        lines = capsys.readouterr().out.splitlines()
        shown[mode] = dict(line.split(maxsplit=1) for line in lines)
        assert shown[mode]["classes"] == "64 / 21 / 21 (train / val / test)"
        assert shown[mode]["examples"] == "1280 / 420 / 420 (train / val / test)"
        assert shown[mode]["example"] == "1×17×17"
        assert float(shown[mode]["seconds"]) >= 0
    folder = Path(shown["prepare"]["folder"])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert shown["verify"]["bytes"] == shown["prepare"]["bytes"] == f"{size:,}"
    assert shown["verify"]["checksum"] == shown["prepare"]["checksum"]
    assert shown["verify"]["data"].startswith("image_folder, ok")
    path = folder / "val.safetensors"
    content, about = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    told = metarun.error(*metarun.data, "data.size=17", "mode=verify")
    assert told.startswith(f"{path} is damaged: metarun mode=prepare data=image_folder")
    metarun.main(*metarun.data, "data.size=17", "mode=prepare")
    metarun.main(*metarun.data, "data.size=17", "mode=verify")
    assert list(metarun.folder.iterdir()) == [], "no run folder"


@pytest.mark.parametrize("mode", ["prepare", "verify"])
def test_functions_have_nothing_to_prepare(metarun, capsys, mode):
    metarun.main("data=sinusoid", f"mode={mode}")
    text = capsys.readouterr().out
    assert text == f"data=sinusoid has no files, it is drawn when it is needed: nothing to {mode}\n"
    assert list(metarun.folder.iterdir()) == []


def test_letters_are_prepared(metarun, capsys):
    metarun.main("data=glyphs", "mode=prepare")
    assert "data      glyphs\n" in capsys.readouterr().out


def test_verify_fetches_nothing(metarun):
    told = metarun.error("data=omniglot", f"data.root={metarun.folder}", "mode=verify")
    assert told.endswith("images_background.zip is missing: metarun mode=prepare fetches it")
    assert list(metarun.folder.iterdir()) == []


def test_a_classifier_is_refused_a_regression(metarun):
    assert "use algo=maml, anil, reptile, cnp" in metarun.error("data=sinusoid")


def test_no_gpu(metarun):
    """device=cuda without a GPU is the user's error."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert metarun.error("device=cuda").startswith("device=cuda, but torch sees no NVIDIA GPU")


def test_answers_without_torch():
    """Help, the config and an error come before torch and wandb are loaded."""
    for arguments in (["--help"], ["--cfg", "job"], ["wya=3"]):
        program = (
            f"import sys; sys.argv = ['metarun', *{arguments}]\n"
            "from metarun.cli.main import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "sys.exit(len({'torch', 'wandb', 'matplotlib'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_version(metarun, capsys):
    """It is metarun's, and what composes its configs stands beside it."""
    with pytest.raises(SystemExit) as leaving:
        metarun.main("--version")
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"metarun {__version__} (Hydra {version('hydra-core')})\n"


def test_config_shown(metarun, capsys):
    """--cfg job shows values as they will be, and runs nothing."""
    metarun.main("--cfg", "job", "--resolve", "way=20", "sampler.way=60")
    shown = capsys.readouterr().out
    assert "way: 60" in shown
    assert shown.count("way: 20") == 3  # the task's, the test's and its sampler's
    assert list(metarun.folder.iterdir()) == []


def test_algorithm_chooses_its_sampler(metarun, capsys):
    """An algorithm's YAML names sampler and schedule; the command line has the last word."""
    conf = metarun.folder / "conf"
    (conf / "algo").mkdir(parents=True)
    (conf / "algo" / "mine.yaml").write_text(
        "# @package _global_\n# Mine\ndefaults: [override /sampler: within_superclass]\n"
        "algo: {_target_: metarun.algos.protonet.ProtoNet, distance: cosine}\n"
    )
    mine = ["--config-dir", str(conf), "algo=mine", "--cfg", "job"]
    metarun.main(*mine)
    assert "WithinSuperclass" in capsys.readouterr().out
    metarun.main(*mine, "sampler=uniform")
    assert "uniform.Uniform" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs(metarun, experiment):
    """Every committed experiment composes, and runs for two steps on other data."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    data = [o for o in metarun.data if o.startswith("data")]
    if "/data: sinusoid" in text:
        data, small = [], []
    elif "/backbone: koch2015" in text:
        data.remove("data.size=16")
        small = ["~data.splits", "~data.rotations", "data.size=65", "backbone.features=8"]
        small.append("eval=uniform")
    elif "/backbone: mlp" in text:
        small = ["backbone.widths=[4]"]
    elif "/backbone: resnet12" in text:
        small = ["backbone.widths=[4,4,4,4]"]
    elif "/backbone: pixels" in text:
        small = []
    elif "/data: omniglot_challenge" in text:
        small = ["~data.background", "~data.mirrors", "sampler=uniform", "eval=uniform"]
        small.append("backbone.width=4")
    else:
        small = ["backbone.width=4"]
    if experiment.startswith("nichol2018/") or experiment.endswith("/reptile"):
        small.append("algo.test_steps=2")
    elif experiment.startswith("ravi2017/"):
        small.append("algo.inner_steps=2")
    name = experiment.replace("/", "-")
    short = "train.steps=2 train.val_every=2 eval.episodes=2 eval.val_episodes=2".split()
    metarun.main(
        *(f"experiment={experiment}", *data, *short, *small, "sampler.tasks=2", "tracker=none"),
        *("device=cpu", f"hydra.run.dir=outputs/{name}"),
    )
    results = metarun.results(name)
    assert results["status"] == "finished"
    assert results["train"]["steps"] == 2


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Small archives of the standard data sets, all in one folder, as one would keep them."""
    return layouts.published(tmp_path_factory.mktemp("published"), pictures=3)


TWO_STEPS = (
    "train.steps=2 train.val_every=2 eval.episodes=2 eval.val_episodes=2 sampler.tasks=2 query=2 "
    "backbone.width=4 tracker=none device=cpu"
).split()
PUBLISHED = {"cifar_fs": 20, "fc100": 20, "cub": 50, "aircraft": 15, "dtd": 7, "vgg_flower": 16}


@pytest.mark.parametrize("data", PUBLISHED)
def test_published_data_runs(metarun, published, data):
    """Every standard data set is one line away, and trains for two steps."""
    metarun.main(f"data={data}", f"data.root={published}", *TWO_STEPS, "name=run")
    results = metarun.results(f"{data}/protonet/run")
    assert results["status"] == "finished"
    assert results["data"]["classes"]["test"] == PUBLISHED[data]


def test_data_without_training_classes(metarun, published, capsys):
    """It tests a model that was trained on other data; training on it is refused."""
    signs = ("data=gtsrb", f"data.root={published}")
    assert "data=gtsrb has no classes to train on" in metarun.error(*signs)
    metarun.main("data=dtd", f"data.root={published}", *TWO_STEPS, "name=run")
    checkpoint = "checkpoint=outputs/dtd/protonet/run/checkpoints/best.pt"
    capsys.readouterr()
    metarun.main(*signs, *TWO_STEPS, "mode=test", checkpoint, "name=run")
    assert "trained on other data; it is tested on what data= says" in capsys.readouterr().out
    assert metarun.results("gtsrb/protonet/run")["data"]["classes"]["test"] == 43


SMALL = {  # what makes the network of each file of conf/backbone a small one
    "conv4": "backbone.width=4",
    "conv4_narrow": "backbone.width=4",
    "conv6": "backbone.width=4",
    "identity": "algo.learn_temperature=true",  # or nothing would be learnt
    "koch2015": "backbone.features=8 data.size=65",
    "mlp": "backbone.widths=[8]",
    "pixels": "algo.learn_temperature=true",  # or nothing would be learnt
    "r2d2": "backbone.widths=[4,4,4,4]",
    "resnet10": "backbone.widths=[4,4,4,4]",
    "resnet12": "backbone.widths=[4,4,4,4]",
    "resnet18": "backbone.widths=[4,4,4,4]",
    "timm": "backbone.name=resnet10t data.size=32",
    "torchvision": "backbone.name=shufflenet_v2_x0_5 data.size=32",
    "vit_small": "backbone.patch=8 backbone.width=12 backbone.depth=2",
    "wrn28_10": "backbone.depth=10 backbone.widening=1",
}


@pytest.mark.parametrize("backbone", [path.stem for path in (CONF / "backbone").glob("*.yaml")])
def test_backbone_runs(metarun, backbone):
    """Every committed backbone composes and trains for two steps; some by other methods too."""
    short = "train.steps=2 train.val_every=2 eval.episodes=2 eval.val_episodes=2".split()
    small = [f"backbone={backbone}", *SMALL[backbone].split(), *short, "tracker=none", "device=cpu"]
    runs = {"protonet": []}
    if backbone in ("resnet12", "vit_small"):  # which have dropout, or no batch norm
        runs["maml"] = ["algo=maml", "algo.test_steps=2", "sampler.tasks=2"]
    if backbone == "resnet12":
        runs["relation"] = ["algo=relation", "backbone.pool=false", "algo.width=4"]
    for name, more in runs.items():
        metarun.main(*metarun.data, *small, *more, f"hydra.run.dir=outputs/{name}")
        results = metarun.results(name)
        assert (results["status"], results["train"]["steps"]) == ("finished", 2)
        assert results["backbone"]["parameters"] <= results["parameters"]
        assert results["backbone"]["flops"] > 0 or backbone in ("identity", "pixels")


def own_algorithm(folder: Path) -> Path:
    """A package `mine` with an algorithm, and a config folder that names it."""
    (folder / "mine.py").write_text(
        "from metarun.algos.protonet import ProtoNet\nclass Mine(ProtoNet):\n    pass\n"
    )
    conf = folder / "conf"
    (conf / "algo").mkdir(parents=True)
    (conf / "algo" / "mine.yaml").write_text("# Mine\n_target_: mine.Mine\ndistance: cosine\n")
    return conf


def test_own_class(metarun, monkeypatch):
    """A user's own class runs once the command line, and not a file, says that it may."""
    conf = own_algorithm(metarun.folder)
    monkeypatch.syspath_prepend(metarun.folder)
    mine = ["--config-dir", str(conf), "algo=mine"]
    assert "add plugins.allow=[mine]" in metarun.error(*mine)
    assert metarun.run(*mine, "plugins.allow=[mine]", "name=own")["names"]["algo"] == "mine"
    (conf / "experiment").mkdir()
    (conf / "experiment" / "sly.yaml").write_text(
        "# @package _global_\ndefaults: [override /algo: mine]\nplugins: {allow: [mine]}\n"
    )
    refused = metarun.error("--config-dir", str(conf), "experiment=sly")
    assert refused == "plugins.allow: it can be given on the command line only"


def test_hydras_callbacks_and_logging_of_an_allowed_package(metarun, monkeypatch):
    """They are the person's own, once they say so; nothing else comes in with them."""
    (metarun.folder / "called.py").write_text(
        "import logging\nfrom hydra.experimental.callback import Callback\n"
        "class Told(Callback):\n"
        "    def on_job_start(self, config, **_): open('told', 'w').close()\n"
        "class Handler(logging.NullHandler):\n"
        "    def createLock(self): open('logging', 'w').close(); super().createLock()\n"
    )
    monkeypatch.syspath_prepend(metarun.folder)
    own = ["+hydra.callbacks.x._target_=called.Told"]
    logs = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"h": {"class": "called.Handler"}},
        "root": {"handlers": ["h"]},
    }
    logging = metarun.folder / "conf" / "hydra" / "job_logging"
    logging.mkdir(parents=True)
    (logging / "mine.yaml").write_text(yaml.safe_dump(logs))
    own += ["--config-dir", "conf", "hydra/job_logging=mine"]
    assert "it cannot be changed" in metarun.error(*own)
    assert metarun.run(*own, "plugins.allow=[called]", "name=own")["status"] == "finished"
    assert (metarun.folder / "told").exists()
    assert (metarun.folder / "logging").exists()
    for other in (
        "+hydra.callbacks.y._target_=shutil.rmtree",
        "+hydra.callbacks.x.deep._target_=shutil.rmtree",
        "+hydra.job_logging.handlers.f.class=logging.FileHandler",
        "+hydra.job_logging.handlers.h.filters=['ext://os.environ']",
    ):
        assert "it cannot be changed" in metarun.error(*own, "plugins.allow=[called]", other)


@pytest.mark.parametrize(
    ("place", "target", "may"),
    [
        ("launcher", "hydra_plugins.mine.Launcher", True),
        ("launcher.ray.init", "hydra_plugins.hydra_ray_launcher.ray_launcher.os.system", False),
        ("sweeper.sampler", "optuna.samplers.RandomSampler", True),
        ("sweeper.sampler", "optuna.samplers._tpe.sampler.warnings.warn", False),
        ("sweeper.sampler.x", "optuna.samplers.RandomSampler", False),
        ("help", "hydra_plugins.mine.Launcher", False),
    ],
)
def test_what_hydras_own_settings_may_name(place, target, may):
    """Hydra makes plugins that are installed, and whatever stands inside their settings."""
    shipped = OmegaConf.create({"runtime": {"choices": {"hydra/sweeper": "basic"}}})
    own = shipped.copy()
    OmegaConf.update(own, f"{place}._target_", target)
    with nullcontext() if may else pytest.raises(UserError, match="not allowed to run"):
        refuse_foreign_code(own, shipped, [])
    refuse_foreign_code(own, shipped, [target.split(".")[0]])


def test_unknown_key_in_a_file(metarun):
    """A misspelt key of an experiment file is refused like one of the command line."""
    conf = metarun.folder / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain: {stepz: 3}\n")
    said = metarun.error("--config-dir", str(conf), "experiment=mine")
    assert said == "train.stepz: there is no such key, did you mean train.steps?"
    (conf / "algo").mkdir()
    (conf / "algo" / "mine.yaml").write_text(
        "# @package _global_\n# Mine\nalgo: {_target_: metarun.algos.protonet.ProtoNet}\n"
        "eval: {epsiodes: 10}\n"
    )
    said = metarun.error("--config-dir", str(conf), "algo=mine")
    assert said == "eval.epsiodes: there is no such key, did you mean eval.episodes?"


def test_sweep(metarun):
    """Each job of a sweep has a folder and a W&B run of its own, in one group."""
    metarun.main(
        *("-m", *metarun.data, "seed=0,1", "hydra.sweep.dir=outputs", "hydra.sweep.subdir=${seed}"),
        *("train.steps=2", "eval.episodes=4", "eval.val_episodes=4", "backbone.width=8"),
        *("tracker.mode=offline", "device=cpu"),
    )
    first, second = (metarun.results(name) for name in ("0", "1"))
    assert first["status"] == second["status"] == "finished"
    assert first["wandb_id"] != second["wandb_id"]
    assert first["names"]["sweep"] == second["names"]["sweep"] == "outputs"
    assert first["test"]["episodes_sha256"] == second["test"]["episodes_sha256"]
    for name, results in (("0", first), ("1", second)):
        (run,) = (metarun.folder / "outputs" / name / "wandb").glob("offline-run-*")
        assert run.name.endswith(results["wandb_id"])


def returned_by_jobs(metarun) -> list:
    """A list to which every job of a sweep adds what it returns to the sweeper."""
    values, run_job = [], basic_launcher.run_job

    def watched(**arguments):
        done = run_job(**arguments)
        values.append(done.return_value)
        return done

    metarun.monkeypatch.setattr(basic_launcher, "run_job", watched)
    return values


def test_a_job_returns_its_validation(metarun):
    """What sweepers choose by is the best validation, and not the test."""
    returned = returned_by_jobs(metarun)
    to = ("hydra.sweep.dir=.", "hydra.sweep.subdir=outputs/${seed}")
    metarun.main("-m", *metarun.data, *QUICK, "optim.lr=0.1", "seed=0,1", *to)
    runs = [metarun.results(name) for name in ("0", "1")]
    assert returned == [run["val"]["accuracy"] for run in runs]
    assert returned != [run["test"]["accuracy"] for run in runs]
    returned.clear()
    metarun.main("-m", *metarun.data, *QUICK, "train.steps=0", "seed=2", *to)
    assert returned == [None], "no validation, and the test's accuracy is no substitute"
    assert metarun.results("2")["test"]["accuracy"] > 0


def test_a_search_maximises():
    """Errors are less than none, so that the lowest of them is the best."""
    assert objective({"val": {"accuracy": 0.7}, "test": {"accuracy": 0.9}}) == 0.7
    assert objective({"val": {"mse": 0.2}, "test": {"mse": 0.1}}) == -0.2
    for nothing in ({"val": None}, {}, {"val": {"mse": None}}):  # null is what is not finite
        assert objective({**nothing, "test": {"accuracy": 0.9}}) is None


SEARCH = ("-m", "hydra/sweeper=search", "optim.lr=tag(log,interval(0.0001,0.1))")


def test_search(metarun):
    """Optuna keeps the values of the run that validated best."""
    metarun.main(
        *(*SEARCH, "hydra.sweeper.n_trials=3", "algo.distance=choice(euclidean,cosine)"),
        *(*metarun.data, *QUICK, "hydra.sweep.dir=outputs", "hydra.sweep.subdir=${hydra.job.num}"),
    )
    runs = [metarun.results(str(number)) for number in range(3)]
    best = max(runs, key=lambda run: run["val"]["accuracy"])
    found = OmegaConf.load(metarun.folder / "outputs/optimization_results.yaml")
    assert found.best_value == best["val"]["accuracy"]
    assert len({run["config"]["optim"]["lr"] for run in runs}) == 3


def test_a_search_that_tries_values_again(metarun):
    """Their result is there already."""
    metarun.main(
        *(*SEARCH[:2], "hydra.sweeper.n_trials=5", "algo.distance=choice(euclidean,cosine)"),
        *(*metarun.data, *QUICK, "hydra.sweep.dir=outputs"),
    )
    runs = cells.below(metarun.folder / "outputs")
    assert [run.state for run in runs] == ["finished", "finished"]
    found = OmegaConf.load(metarun.folder / "outputs/optimization_results.yaml")
    assert found.best_value == max(run.results["val"]["accuracy"] for run in runs)


def test_search_without_optuna(metarun):
    """What to install is told."""
    metarun.monkeypatch.setattr("metarun.cli.check.find_spec", lambda name: None)
    assert "pip install 'metarun[search]'" in metarun.error(*SEARCH)
    assert "set train.split=train" in metarun.error(*SEARCH, "train.split=trainval")
    custom = "hydra.sweeper.custom_search_space=os.system"
    assert "custom_search_space: it cannot be changed" in metarun.error(*SEARCH, custom)


def test_sweep_of_wandb(metarun):
    """The committed file names keys and a figure that exist; W&B's agent makes such commands."""
    sweep = yaml.safe_load((CONF.parent / "scripts" / "wandb_sweep.yaml").read_text())
    env, program, *rest = sweep["command"]
    assert (env, program, rest.pop()) == ("${env}", "metarun", "${args_no_hyphens}")
    for end in (0, -1):
        values = {
            key: [about["min"], about["max"]] if "min" in about else about["values"]
            for key, about in sweep["parameters"].items()
        }
        check([*rest, *(f"{key}={options[end]}" for key, options in values.items())], None)
    assert sweep["metric"]["name"] in flat({"val": {"accuracy": 0.5}})


def test_a_failing_job_does_not_stop_the_sweep(metarun, capsys):
    """The others run; the failure is told with its job's number, and the exit code says so."""
    with pytest.raises(SystemExit) as leaving:
        metarun.main(
            *("-m", *metarun.data, *QUICK, "algo.distance=manhattan,cosine"),
            *("hydra.sweep.dir=.", "hydra.sweep.subdir=outputs/${algo.distance}"),
        )
    assert leaving.value.code == 2
    assert "metarun: job 0: algo.distance=manhattan: choose one of" in capsys.readouterr().err
    assert metarun.results("cosine")["status"] == "finished"


def test_wheel_has_the_configs(metarun, tmp_path):
    """A wheel, unpacked elsewhere, composes what the checkout does."""
    checkout = CONF.parent
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path / "dist"), str(checkout)], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shown = []
    for place in (tmp_path / "site", checkout):
        program = (
            f"import sys; sys.path.insert(0, {str(place)!r}); import metarun\n"
            f"assert metarun.__file__.startswith({str(place)!r})\n"
            "sys.argv = ['metarun', '--cfg', 'job', 'algo=protonet', 'way=7']\n"
            "from metarun.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
        )
        shown.append(done.stdout)
    assert (tmp_path / "site" / "metarun" / "data" / "class_splits" / "cub.json").is_file()
    assert shown[0] == shown[1]
    assert "way: 7" in shown[0]


def test_loading_torch_leaves_the_garbage_collector_on_and_nothing_to_say():
    """Frozen objects that outlive the interpreter's end would be told there as leaks."""
    script = (
        "import gc; from metarun.cli.main import load_torch; load_torch(); print(gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


MIXTURE = (
    "data.size=16 data.sources.mine.grey=true way=3 query=2 eval.episodes=3 eval.val_episodes=2 "
    "eval.tasks=2 train.steps=2 train.val_every=2 backbone.width=4 tracker=none device=cpu"
).split()


def test_several_data_sets_are_a_mixture(metarun):
    """data=[a,b:c] mixes the choices a and c, the second under the name b; each has its keys."""
    root = metarun.data[1].removeprefix("data.root=")
    mine = f"data.sources.mine.root={root}"
    metarun.main("data=[glyphs,mine:image_folder]", mine, *MIXTURE, "name=run")
    results = metarun.results("mixture/protonet/run")
    assert results["config"]["data"]["sources"]["glyphs"]["size"] == 16
    test = results["test"]
    sources = test["sources"]
    assert list(sources) == ["mine", "glyphs"]
    mean = sum(of_source["accuracy"] for of_source in sources.values()) / 2
    assert test["accuracy"] == pytest.approx(mean)
    halves = sum(of_source["ci95"] ** 2 for of_source in sources.values()) ** 0.5 / 2
    assert test["ci95"] == pytest.approx(halves)
    rows = (metarun.folder / "outputs/mixture/protonet/run/episodes.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["source", *["mine"] * 3, *["glyphs"] * 3]
    # The same model on one of the sources alone answers the same episodes in the same way.
    best = "checkpoint=outputs/mixture/protonet/run/checkpoints/best.pt"
    shared = [o for o in MIXTURE if ".mine." not in o]
    metarun.main(*metarun.data[:4], *shared, "mode=test", best, "name=run")
    other = metarun.results("image_folder/protonet/run")["test"]
    assert other["episodes_sha256"] == sources["mine"]["episodes_sha256"]
    assert other["accuracy"] == sources["mine"]["accuracy"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data=[glyphs,omniglto]", "data=omniglto: there is no such choice, did you mean omniglot"),
        ("data=[]", "say of what, as in data=[omniglot,glyphs]"),
        ("data=[glyphs,sinusoid]", "data.sources.sinusoid: it has no classes"),
        ("data=[glyphs,glyphs]", "glyphs stands there twice: give it one, as in mine:glyphs"),
        ("data=[glyphs,x.y:glyphs]", "x.y is no name for a source: give it one, as in mine:glyphs"),
    ],
)
def test_mixtures_that_cannot_be(metarun, typed, said):
    assert said in metarun.error(typed, *[o for o in MIXTURE if ".mine." not in o])


def test_unequal_tasks_are_trained_and_tested_on(metarun):
    """sampler=variable chooses them for tests, too."""
    metarun.main(
        *metarun.data[:4],
        "sampler=variable",
        "way=6",
        "sampler.least_way=3",
        "algo=proto_maml",
        "eval.sampler.least_way=3",
        *[o for o in MIXTURE[4:] if not o.startswith("query")],
        "sampler.tasks=3",
        "name=run",
    )
    test = metarun.results("image_folder/proto_maml/run")["test"]
    assert test["sampler"]["least_way"] == 3
    assert 0 < test["accuracy"] < 1


@pytest.mark.parametrize("key", ["most_query", "most_support", "most_of_class"])
@pytest.mark.parametrize("group", ["sampler", "eval.sampler"])
def test_unequal_tasks_have_examples(metarun, group, key):
    """Without a query, a task's loss would be the mean of nothing."""
    said = metarun.error("sampler=variable", f"{group}.{key}=0")
    assert said == f"{group}.{key}=0: it must be at least 1"


@pytest.mark.parametrize(("choice", "tasks"), [("sampler=uniform", 4), ("sampler=variable", 1)])
def test_a_test_takes_few_large_tasks_at_once(metarun, capsys, choice, tasks):
    """One of sampler=variable may have a thousand examples."""
    metarun.main("--cfg", "job", choice)
    assert f"\n  tasks: {tasks}\n" in capsys.readouterr().out.partition("\neval:")[2]


def test_what_is_the_users_own_is_known(metarun):
    """An own test sampler has keys of its own, whatever they are called; an own group exists."""
    conf = metarun.folder / "conf"
    (conf / "eval").mkdir(parents=True)
    (conf / "experiment/mine").mkdir(parents=True)
    target = "_target_: metarun.samplers.uniform.Uniform"
    keys = "  way: ${eval.way}\n  shot: 2\n  query: ${eval.query}\n  tasks: 1\n"
    (conf / "eval/mine.yaml").write_text(f"sampler:\n  {target}\n{keys}")
    (conf / "experiment/mine/foo.yaml").write_text("# @package _global_\nway: 3\n")
    mine = ["--config-dir", str(conf)]
    metarun.main(*mine, "eval=mine", "--cfg", "job")
    said = metarun.error(*mine, "eval=mine", "eval.sampler.way=4")
    assert said == "eval.sampler.way=4: it is set as eval.way=4"
    said = metarun.error(*mine, "experiment/mine=foo")
    assert said == "experiment/mine: it is no group of every run: write +experiment/mine=CHOICE"
    said = metarun.error(*mine, "+experiment/mime=foo")
    assert said.endswith("did you mean experiment/mine?")
    (conf / "eval/mine.yaml").write_text("sampler: {")
    assert f"{conf}/eval/mine.yaml" in metarun.error(*mine, "eval=mine")
