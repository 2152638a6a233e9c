import math

import pytest
import torch
from torch import nn

from metarun.device import Device
from metarun.errors import Interrupted, UserError
from metarun.functional.metrics import ACCURACY, MSE
from metarun.training import loop
from metarun.training.loop import Plan, Progress, Training, fit

CPU = Device(torch.device("cpu"), "fp32")


class Given:
    """A sampler whose batches are the given numbers, one after another."""

    tasks = 4

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def __call__(self, split, generator):
        return torch.tensor(float(next(self.numbers)))


class Told(nn.Module):
    """Its loss is the batch, whatever the weights; their gradient is ten times the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 4.0]))

    def loss(self, batch):
        nothing = (self.w - self.w.detach()).sum()
        return batch + 10 * batch.nan_to_num(0, 1, 1) * nothing, {"accuracy": batch / 100}


class Square(nn.Module):
    """Its loss is (w - batch)²."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def loss(self, batch):
        return (self.w - batch).square(), {}


class Run:
    """A training of `algorithm` on the given numbers, with what it did in `records`, `saves`."""

    def __init__(
        self, numbers, accuracies=(), algorithm=None, stop_at=None, metric=ACCURACY, **plan
    ):
        self.algorithm = algorithm or Told()
        optimizer = torch.optim.SGD(self.algorithm.parameters(), lr=0.25)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        self.training = Training(self.algorithm, optimizer, schedule, torch.Generator(), Progress())
        self.gradients, self.records, self.saves, self.saved_episodes = [], [], [], []
        optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.gradient()))
        self.accuracies, self.stop_at = iter(accuracies), stop_at
        usual = {"steps": 10, "val_every": 1000, "log_every": 1, "patience": 0, "clip_norm": 0.0}
        usual["split"] = "train"
        self.fit = fit(
            self.training,
            Plan(**usual | plan),
            Given(numbers),
            None,
            CPU,
            metric=metric,
            validate=lambda: (next(self.accuracies, 0.5), 0.01),
            save=self.save,
            stop=lambda: self.training.progress.step == self.stop_at,
        )

    def save(self, best):
        self.saves.append((self.training.progress.step, best))
        self.saved_episodes.append(self.training.progress.episodes)

    def gradient(self):
        return torch.cat([p.grad.detach().flatten() for p in self.algorithm.parameters()])

    def go(self):
        for record in self.fit:
            self.records.append(record)
        return self

    def of(self, key):
        """The (step, value) pairs of the records that have the key."""
        return [(record["step"], record[key]) for record in self.records if key in record]


def test_records_and_their_rhythm():
    """Logged every 3 steps and at validations, which are every 4 steps and at the end."""
    run = Run(range(1, 11), steps=10, val_every=4, log_every=3).go()
    train = [record for record in run.records if "train/loss" in record]
    val = [record for record in run.records if "val/accuracy" in record]
    rest = ["train/loss", "train/accuracy", "train/episodes_per_second", "train/lr"]
    assert all(list(record) == ["step", "episodes", *rest] for record in train)
    rest = ["val/accuracy", "val/ci95", "val/best"]
    assert all(list(record) == ["step", "episodes", *rest] for record in val)
    assert [record["step"] for record in train] == [3, 4, 6, 8, 9, 10]
    assert [record["step"] for record in val] == [4, 8, 10]
    assert [record["step"] for record in run.records] == [3, 4, 4, 6, 8, 8, 9, 10, 10]
    assert all(record["episodes"] == 4 * record["step"] for record in run.records)
    assert (run.training.progress.step, run.training.progress.episodes) == (10, 40)
    assert run.training.progress.seconds > 0


def test_a_record_has_the_means_since_the_last():
    """Losses 1 to 10: of steps 1-3, 4, 5-6, 7-8, 9 and 10."""
    run = Run(range(1, 11), steps=10, val_every=4, log_every=3).go()
    means = [2, 4, 5.5, 7.5, 9, 10]
    assert [value for _, value in run.of("train/loss")] == means
    accuracies = [value for _, value in run.of("train/accuracy")]
    assert accuracies == pytest.approx([mean / 100 for mean in means])


def test_the_steps_worked_by_hand():
    """Rates 1/4, 1/4, 1/8; w goes 1, 1 - (1 - 3)/2 = 2, 2 - (2 - 4)/2 = 3, 3 - (3 + 1)/4 = 2."""
    run = Run([3, 4, -1], steps=3, algorithm=Square()).go()
    assert run.of("train/loss") == [(1, 4), (2, 4), (3, 16)]
    assert run.of("train/lr") == [(1, 0.25), (2, 0.25), (3, 0.125)]
    assert run.algorithm.w.item() == 2
    assert run.gradients == [-4, -4, 8]


def test_the_best_is_chosen_by_validation_accuracy():
    """The first of two equal ones; the checkpoint is saved at every validation."""
    run = Run(range(1, 7), [0.5, 0.7, 0.6, 0.7, 0.8, 0.1], steps=6, val_every=1).go()
    assert run.saves == [(1, True), (2, True), (3, False), (4, False), (5, True), (6, False)]
    assert [best for _, best in run.of("val/best")] == [0.5, 0.7, 0.7, 0.7, 0.8, 0.8]
    progress = run.training.progress
    assert (progress.best, progress.best_ci95, progress.best_step) == (0.8, 0.01, 5)


def test_nothing_is_validated_on_classes_that_are_trained_on():
    """Each state that is saved takes the place of the best."""
    run = Run(range(1, 6), [0.5, 0.4, 0.3], steps=5, val_every=2, split="trainval").go()
    assert run.saves == [(2, True), (4, True), (5, True)]
    assert run.of("val/accuracy") == []
    assert math.isnan(run.training.progress.best)


def test_the_best_error_is_the_lowest():
    run = Run(range(1, 5), [0.5, 0.7, 0.2, 0.2], steps=4, val_every=1, metric=MSE).go()
    assert run.saves == [(1, True), (2, False), (3, True), (4, False)]
    assert [best for _, best in run.of("val/best")] == [0.5, 0.5, 0.2, 0.2]
    assert run.of("val/mse")[2] == (3, 0.2)


def test_an_accuracy_of_zero_is_better_than_none():
    run = Run([1], [0.0], steps=1).go()
    assert run.saves == [(1, True)]


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 6), (0, 8)])
def test_patience(patience, last):
    """Best at steps 1, 2, 4: one validation without a better is step 3, two in a row 5 and 6."""
    accuracies = [0.5, 0.7, 0.6, 0.8, 0.8, 0.1, 0.2, 0.3]
    run = Run(range(1, 9), accuracies, steps=8, val_every=1, patience=patience).go()
    assert run.training.progress.step == last


def test_the_algorithm_is_in_training_mode():
    algorithm = Told().eval()
    Run([1, 2], steps=2, algorithm=algorithm).go()
    assert algorithm.training


def test_clip_norm_bounds_the_gradient():
    """10 · (1, 1) and 0.01 · (1, 1): the one is cut to length 5 in its direction, the other not."""
    run = Run([1, 0.001], steps=2, clip_norm=5.0).go()
    torch.testing.assert_close(run.gradients[0], torch.full((2,), 5 / math.sqrt(2)))
    torch.testing.assert_close(run.gradients[1], torch.full((2,), 0.01))


def test_without_clip_norm_the_gradient_is_whole():
    run = Run([1, 100], steps=2).go()
    assert [gradient.tolist() for gradient in run.gradients] == [[10, 10], [1000, 1000]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("log_every", [1, 5, 1000])
def test_a_loss_that_is_not_finite_ends_the_run(bad, log_every):
    """At step 5, named exactly however rarely the log is written; nothing is saved after it."""
    run = Run([1, 2, 3, 4, bad, 6, 7, 8], steps=8, val_every=2, log_every=log_every)
    with pytest.raises(UserError, match=rf"the loss is {bad} at step 5: try a smaller optim.lr"):
        run.go()
    assert [step for step, _ in run.saves] == [2, 4]
    assert max(step for step, _ in run.of("val/accuracy")) == 4


def test_a_bad_loss_before_a_stop_is_not_saved():
    run = Run([1, math.nan, 3], steps=9, log_every=1000, stop_at=3)
    with pytest.raises(UserError, match="at step 2"):
        run.go()
    assert run.saves == []


def test_stopping_saves_and_raises():
    """In the middle of a line of the log, which is written."""
    run = Run(range(1, 11), steps=10, log_every=5, stop_at=3)
    with pytest.raises(Interrupted, match="stopped at step 3 of 10"):
        run.go()
    assert run.saves == [(3, False)]
    assert run.of("train/loss") == [(3, 2)]
    assert run.training.progress.episodes == 12


@pytest.fixture
def minutes(monkeypatch):
    """A minute goes by with each step, for the clock of checkpoints."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    class Timed(Run):
        def __init__(self, numbers, *given, **plan):
            def each():
                for number in numbers:
                    now[0] += 60
                    yield number

            super().__init__(each(), *given, **plan)

    return Timed


def test_a_checkpoint_every_so_many_minutes(minutes):
    """Three after the last one, which may be a validation's; the log is as without."""
    run = minutes(range(1, 11), steps=10, val_every=5, log_every=4, save_minutes=3.0).go()
    assert run.saves == [(3, False), (5, True), (8, False), (10, False)]
    without = minutes(range(1, 11), steps=10, val_every=5, log_every=4).go()
    assert without.saves == [(5, True), (10, False)]
    assert run.of("train/loss") == without.of("train/loss") == [(4, 2.5), (5, 5), (8, 7), (10, 9.5)]
    assert run.of("episodes") == without.of("episodes")


def test_such_a_checkpoint_knows_how_far_it_is(minutes):
    """In the midst of a line of the log too."""
    run = minutes(range(1, 11), steps=10, log_every=1000, save_minutes=2.0)
    assert run.go().saved_episodes == [8, 16, 24, 32, 40]
    assert run.training.progress.episodes == 40


def test_no_checkpoint_after_a_bad_loss(minutes):
    run = minutes([1, math.nan, 3, 4], steps=4, log_every=1000, save_minutes=2.0)
    with pytest.raises(UserError, match="the loss is nan at step 2"):
        run.go()
    assert run.saves == []


def test_stopping_at_a_validation_keeps_its_result():
    run = Run(range(1, 11), [0.9], steps=10, val_every=3, stop_at=3)
    with pytest.raises(Interrupted):
        run.go()
    assert run.saves[0] == (3, True)
    assert run.training.progress.best == 0.9


def test_no_steps_do_nothing():
    run = Run([], steps=0).go()
    assert (run.records, run.saves) == ([], [])
