"""Several seeds trained at once are what each is by itself."""

from functools import partial

import pytest
import torch
from torch import nn

from metarun.algos.matching import MatchingNet
from metarun.algos.protonet import ProtoNet
from metarun.algos.reptile import Reptile
from metarun.algos.siamese import Siamese
from metarun.backbones.conv4 import Conv4
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.errors import UserError
from metarun.samplers.pairs import PairSampler
from metarun.samplers.uniform import Uniform
from metarun.seeds import stream
from metarun.training.loop import Progress, Training
from metarun.training.stacked import Stacked, clip, meta_batches
from metarun.training.step import Step
from tests.algos import tasks

CPU = Device(torch.device("cpu"), "fp32")
SEEDS = [0, 7]
SAMPLER = Uniform(way=3, shot=2, query=2, tasks=3)
EXACT = {"rtol": 0, "atol": 1e-9}


def conv4(mode):
    return Conv4(tasks.SHAPE, width=3, batch_norm=mode)


def split():
    """Five classes of six examples, in float64."""
    return stack_classes(
        "vectors", {name: tasks.normal(6, *tasks.SHAPE, seed=ord(name)) for name in "abcde"}
    )


def matching(fce):
    return MatchingNet(conv4("running"), fce, processing_steps=2, temperature=1.0)


ALGORITHMS = {
    "protonet": lambda: ProtoNet(conv4("running")),
    "protonet_batch": lambda: ProtoNet(conv4("batch")),
    "protonet_cosine": lambda: ProtoNet(conv4("support"), "cosine", 0.5, learn_temperature=True),
    "matching": partial(matching, fce=False),
    "siamese": lambda: Siamese(conv4("running"), distortions=False),
    **{name: partial(tasks.algorithm, name) for name in tasks.FAMILY if name != "mamlpp"},
    "fomaml": partial(tasks.algorithm, "maml", first_order=True),
    "maml_mlp": partial(tasks.algorithm, "maml", "mlp", "none", inner_steps=3),
}
# A gradient that is zero but for rounding, as of a bias before batch norm, is not blown up by eps.
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01, eps=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=0.01, eps=1e-3),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "plain": partial(torch.optim.SGD, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.001, momentum=0.5, eps=1e-3),
}


def new_optimizer(name, parameters):
    """An optimiser of what is learnt, whose rate is halved every eight steps."""
    optimizer = OPTIMIZERS[name]([p for p in parameters if p.requires_grad])
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=8, gamma=0.5)


def training(seed, algorithm, optimizer):
    torch.manual_seed(seed)
    made = algorithm().double().train()
    with torch.no_grad():  # the family of tasks.py has a seed of its own
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    of_optimizer = new_optimizer(optimizer, made.parameters())
    return Training(made, *of_optimizer, stream(seed, "train"), Progress())


def by_itself(training, sampler, steps, clip_norm):
    """The figures of so many steps of one training."""
    figures, step = [], Step(training.algorithm, training.optimizer, CPU, clip_norm)
    for _ in range(steps):
        figures.append(step(sampler(split(), training.generator)))
        training.schedule.step()
    return figures


def at_once(trainings, optimizer, sampler, steps, clip_norm):
    """The same of several, for each."""
    stacked = Stacked(trainings, CPU, clip_norm, partial(new_optimizer, optimizer))
    batches = meta_batches(sampler, split(), [t.generator for t in trainings])
    figures = [stacked.step(next(batches))[0] for _ in range(steps)]
    stacked.hand_out()
    return [list(of_seed) for of_seed in zip(*figures, strict=True)]


def assert_same(got, wanted):
    """Weights, buffers, the optimiser's state, the rate and what is drawn next."""
    pairs = [(t.algorithm.state_dict(), t.optimizer.state_dict()) for t in (got, wanted)]
    torch.testing.assert_close(*(weights for weights, _ in pairs), **EXACT)
    torch.testing.assert_close(*(state["state"] for _, state in pairs), **EXACT)
    assert pairs[0][1]["param_groups"] == pairs[1][1]["param_groups"]
    assert got.schedule.state_dict() == wanted.schedule.state_dict()
    assert torch.equal(got.generator.get_state(), wanted.generator.get_state())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_seeds_at_once(name):
    """Every step, the gradient clipped in some of them; and what is left after the last."""
    steps = 20 if name in ("protonet", "maml") else 4
    sampler = PairSampler(tasks=6) if name == "siamese" else SAMPLER
    singles, several = ([training(s, ALGORITHMS[name], "adam") for s in SEEDS] for _ in range(2))
    wanted = [by_itself(single, sampler, steps, 0.5) for single in singles]
    for mine, its in zip(at_once(several, "adam", sampler, steps, 0.5), wanted, strict=True):
        torch.testing.assert_close(mine, its, **EXACT)
    for got, single in zip(several, singles, strict=True):
        assert_same(got, single)
    first, last = wanted[0][0]["loss"], wanted[-1][-1]["loss"]
    assert first != last


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_taken_apart_and_put_together_again(optimizer):
    """Six steps at once, three of each by itself and three at once, as twelve by itself."""
    singles, several = (
        [training(s, ALGORITHMS["protonet"], optimizer) for s in SEEDS] for _ in range(2)
    )
    for single in singles:
        by_itself(single, SAMPLER, 12, 0.0)
    at_once(several, optimizer, SAMPLER, 6, 0.0)
    for each in several:
        by_itself(each, SAMPLER, 3, 0.0)
    at_once(several, optimizer, SAMPLER, 3, 0.0)
    for got, single in zip(several, singles, strict=True):
        assert_same(got, single)


def test_clip():
    """As torch does it, for each seed: one above the norm, one below."""
    leaves = [torch.zeros(2, 3, 2), torch.zeros(2), torch.zeros(2, 4)]
    for seed, leaf in enumerate(leaves):
        leaf.grad = tasks.normal(*leaf.shape, seed=seed).float()
        leaf.grad[1] *= 0.01
    alone = [[leaf.grad[s].clone() for leaf in leaves] for s in range(2)]
    clip(leaves, 0.5)
    for s, grads in enumerate(alone):
        own = [nn.Parameter(torch.zeros_like(g)) for g in grads]
        for p, g in zip(own, grads, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(own, 0.5)
        for leaf, p in zip(leaves, own, strict=True):
            torch.testing.assert_close(leaf.grad[s], p.grad)


class Dropout(ProtoNet):
    def __init__(self):
        super().__init__(nn.Sequential(conv4("running"), nn.Dropout(0.5)))


class Curious(ProtoNet):
    def loss(self, episodes):
        loss, metrics = super().loss(episodes)
        return loss * loss.item(), metrics


def reptile():
    return Reptile(conv4("batch"), 3, 0.1, 2, 2, 2, 2, True)


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        (Dropout, "the loss of Dropout"),
        (lambda: Curious(conv4("running")), "the loss of Curious"),
        (reptile, "the loss of Reptile"),
        (partial(matching, fce=True), "the loss of MatchingNet"),
        (partial(tasks.algorithm, "mamlpp"), "MAMLPlusPlus counts its steps"),
    ],
)
def test_what_cannot_be_done_at_once(algorithm, why):
    """It is refused, and nothing has changed."""
    trainings = [training(s, algorithm, "adam") for s in SEEDS]
    stacked = Stacked(trainings, CPU, 0.0, partial(new_optimizer, "adam"))
    before = {name: buffer.clone() for name, buffer in stacked.buffers.items()}
    batch = next(meta_batches(SAMPLER, split(), [stream(s, "train") for s in SEEDS]))
    with pytest.raises(UserError, match="seeds=2: ") as refusal:
        stacked.rehearse(batch)
    assert why in str(refusal.value)
    torch.testing.assert_close(stacked.buffers, before, rtol=0, atol=0)
