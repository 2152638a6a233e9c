"""One of bench.py's processes: a case at work, or the ceiling.

torch, Hydra and metarun are loaded where the clocks of the first step and of the memory say so.
"""

import ctypes
import functools
import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from bench_cases import CASES, composed, flop_of, flop_per_task, label, made_up, passes

FOREVER = 10**9  # steps


def serve(name: str, cases: list[str], settings: list[str]) -> None:
    """Answer on stdout, in JSON, whenever stdin says `run SECONDS`.

    `name` is a case or "ceiling", which is that of the `cases`; `settings` are overrides. Of
    several ranks the first answers, and the others keep step with it.
    """
    from metarun import ranks

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # nothing else is to be printed on stdout
    os.dup2(2, 1)
    if ranks.expected() > 1:
        ranks.join()
    job = Ceiling(cases, settings) if name == "ceiling" else Case(name, settings)
    if ranks.rank():
        job.follow()
        return
    say = {"ready": True, **job.facts}
    while True:
        give_back_memory()
        print(json.dumps(say), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        say = job.run(float(line.split()[1]))


def give_back_memory() -> None:
    """Give the system what memory was freed, so that many processes can take turns."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class Clock:
    """Time spent in the calls it watches, as the device sees it; calls within calls count once."""

    def __init__(self, device: Any):
        self.device, self.on_gpu = device, device.type == "cuda"
        self.depth, self.lock = 0, threading.Lock()
        self.marks: list[Any] = []  # a start, its end, a start, ...

    def now(self) -> float:
        """The time, once the device has done what it was asked."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def move(self, by: int) -> None:
        """A watched call begins, by=1, or ends, by=-1."""
        with self.lock:
            if 0 in (self.depth, self.depth + by):
                self.mark()
            self.depth += by

    def mark(self) -> None:
        """Note the time; a GPU does so when it gets there, and nobody waits for it."""
        import torch

        if not self.on_gpu:
            self.marks.append(time.perf_counter())
        elif not torch.cuda.is_current_stream_capturing():
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()

    def watch(self, owner: Any, name: str) -> None:
        """Watch the calls of that function of `owner`."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.move(1)
            try:
                return function(*args, **kwargs)
            finally:
                self.move(-1)

        setattr(owner, name, watched)

    def taken(self) -> float:
        """Seconds in watched calls since this was last asked, the device being at rest."""
        marks, self.marks = self.marks, []
        pairs = list(zip(marks[::2], marks[1::2], strict=True))
        if self.on_gpu:
            return sum(start.elapsed_time(end) for start, end in pairs) / 1000
        return sum(end - start for start, end in pairs)


class Case:
    """A case at work."""

    def __init__(self, name: str, settings: list[str]):
        self.config = composed(name, settings)
        import torch

        made_up(CASES[name][0])  # before the clock starts: a run finds its data prepared
        began = time.perf_counter()
        from metarun.configs.composing import plain
        from metarun.parts import build

        self.loaded = peak_rss()
        self.parts = build(plain(self.config))
        self.clock = Clock(self.parts.device.torch_device)
        self.watch()
        self.work = self.testing() if self.config.mode == "test" else self.training()
        next(self.work)
        first_step = self.clock.now() - began
        self.facts = {
            "torch": torch.__version__,
            "device": str(self.parts.device),
            "gflop_per_unit": flop_per_task(self.config) / 1e9,
            "convolutions": [label(*layer) for layer in passes(self.config)],
            "first_step_seconds": first_step,
        }

    def watch(self) -> None:
        """Have the clock watch the forward pass, the backward pass and the optimiser."""
        import torch

        algorithm, optimizer = self.parts.training.algorithm, self.parts.training.optimizer
        calls = [(algorithm, "loss"), (algorithm, "predict"), (torch.autograd, "backward")]
        calls += [(optimizer, "zero_grad"), (optimizer, "step")]
        for owner, name in [*calls, (torch.cuda.CUDAGraph, "replay")]:
            self.clock.watch(owner, name)
        if self.config.mode == "test":  # the network may be called from elsewhere than `predict`
            for network in algorithm.children():
                network.register_forward_pre_hook(lambda *_: self.clock.move(1))
                network.register_forward_hook(lambda *_: self.clock.move(-1))

    def training(self) -> Iterator[int]:
        """Train on and on; yields the tasks of the first step, then of each line of the log."""
        from metarun import ranks

        yield from self.fit(steps=1, log_every=1)
        log_every = self.config.train.log_every
        if not self.clock.on_gpu:  # where steps can take long, and a turn is not to be much longer
            start = self.clock.now()
            sum(self.fit(steps=2, log_every=1))
            log_every = max(1, min(log_every, int(0.2 / (self.clock.now() - start))))
            log_every = ranks.from_first(lambda: log_every)
        yield from self.fit(FOREVER, log_every)

    def fit(self, steps: int, log_every: int) -> Iterator[int]:
        """Train up to that step; yields the tasks of each line of the log."""
        from metarun import ranks
        from metarun.training.loop import Plan, fit

        parts, progress = self.parts, self.parts.training.progress
        rhythm = {"steps": steps, "val_every": FOREVER, "log_every": log_every}
        done = progress.episodes
        for _ in fit(
            parts.training,
            Plan(**{**self.config.train, **rhythm}),
            parts.sampler,
            parts.data.open("train").to(parts.device.torch_device),
            parts.device,
            metric=parts.protocol.metric,
            validate=lambda: (0.0, 0.0),
            save=lambda best: None,
            stop=lambda: ranks.on_any(False),  # which costs several ranks an exchange
        ):
            if progress.episodes > done:  # not a validation's record
                yield progress.episodes - done
            done = progress.episodes

    def testing(self) -> Iterator[int]:
        """Answer one batch of test episodes, then all of them, again and again."""
        for count in chain([self.config.eval.tasks], repeat(self.config.eval.episodes)):
            self.parts.score(self.parts.episodes_of("test", count))
            yield count

    def follow(self) -> None:
        """Work until the first rank has ended."""
        from metarun.errors import Interrupted

        with suppress(Interrupted):
            for _ in self.work:
                pass
        os._exit(0)  # what a GPU still waits for will not come

    def run(self, seconds: float) -> dict[str, Any]:
        """Work for about that long; what was done."""
        import torch

        next(self.work)  # warms up: memory was given back after the last turn
        self.clock.now()
        self.clock.taken()
        units, spent, start = 0, 0.0, self.clock.now()
        while spent < seconds or not units:
            units += next(self.work)
            spent = self.clock.now() - start
        gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if self.clock.on_gpu else None
        outside = spent - self.clock.taken()
        return {
            "units": units,
            "seconds": spent,
            "data_seconds": outside,  # nearly all of it is to get the data
            "outside_seconds": outside,
            "peak_mib": gpu_peak or peak_rss() - self.loaded,
        }


def peak_rss() -> float:
    """The most memory that this process has had so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Ceiling:
    """What the machine can do: matrix products, and the convolutions of the cases' networks."""

    def __init__(self, cases: list[str], settings: list[str]):
        configs = [composed(case, settings) for case in cases]
        import torch

        from metarun.device import choose
        from metarun.runs.provenance import processor

        device = choose(**configs[0].device)
        self.layers = {label(*layer): layer for config in configs for layer in passes(config)}
        self.clock = Clock(device.torch_device)
        self.place = {"device": device.torch_device, "dtype": torch.float32}
        if device.precision == "bf16":
            self.place["dtype"] = torch.bfloat16
        self.facts = {
            "torch": torch.__version__,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "processor": processor(),
        }

    def run(self, seconds: float) -> dict[str, Any]:
        """GFLOP/s of everything, each measured for its share of `seconds`."""
        import torch

        each, n = seconds / (len(self.layers) + 2), 8192 if self.clock.on_gpu else 2048
        rates = {}
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
            a, b = torch.randn(2, n, n, device=self.clock.device).to(dtype)
            rates[f"matrix product {name}"] = self.rate(torch.mm, a, b, 2 * n**3, each)
        for name, (images, channels, filters, side, size) in self.layers.items():
            x = torch.randn(1, channels, size, size, **self.place).repeat(images, 1, 1, 1)
            w = torch.randn(filters, channels, side, side, **self.place)
            x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
            flop = images * flop_of(channels, filters, side, size)
            rates[name] = self.rate(convolve, x, w, flop, each)
        return rates

    def rate(self, work: Callable, a: Any, b: Any, flop: int, seconds: float) -> float:
        """GFLOP/s of `work` on a and b, repeated for at least that long."""

        def timed(calls: int) -> float:
            start = self.clock.now()
            for _ in range(calls):
                work(a, b)
            return self.clock.now() - start

        calls = 2
        timed(calls)
        while (spent := timed(calls)) < seconds:
            calls *= 2
        return calls * flop / spent / 1e9


def convolve(x: Any, w: Any) -> Any:
    """A convolution that keeps the map's size."""
    import torch

    return torch.conv2d(x, w, padding=w.shape[2] // 2)
