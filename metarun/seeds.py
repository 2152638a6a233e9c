"""One seed, several streams of random numbers that do not disturb each other."""

import hashlib

import torch


def stream_seed(seed: int, stream: str) -> int:
    """Seed of the named stream: streams of one seed, and of near seeds, have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:7], "big")


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the named stream, so that every device sees the same draws."""
    return torch.Generator().manual_seed(stream_seed(seed, name))
