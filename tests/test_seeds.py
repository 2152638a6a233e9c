import torch

from metarun.seeds import stream, stream_seed

STREAMS = ("init", "noise", "train", "val", "test")


def test_the_seed_of_a_stream():
    """The first 14 digits of `printf 0/train | sha256sum`; another value changes every result."""
    assert f"{stream_seed(0, 'train'):014x}" == "3dc27ba2cfba61"
    assert f"{stream_seed(3, 'test'):014x}" == "ed6f982fb8ef2e"


def test_a_stream_is_its_seed_and_name():
    assert torch.equal(
        torch.rand(5, generator=stream(2, "val")), torch.rand(5, generator=stream(2, "val"))
    )


def test_streams_of_near_seeds_have_nothing_in_common():
    """Not even shifted: no number of 200 occurs in another of 250 streams."""
    drawn = [
        number
        for seed in range(50)
        for name in STREAMS
        for number in torch.rand(200, generator=stream(seed, name), dtype=torch.float64).tolist()
    ]
    assert len(set(drawn)) == len(drawn) == 50 * 5 * 200


def test_a_stream_leaves_torchs_own_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "train"))
    assert torch.equal(torch.get_rng_state(), before)
