"""Caches of keys and values that go stale: when they are exact, their error, their cost."""
import pytest
import torch
from boards import COUNT, PUZZLES, board_of, run
from conftest import random_model

from decoders.cache import dkv, freecache, logit_errors
from diffusion import independent, joint

NEVER = 1000


def errors(ranks, depth, decode, *params):
    board = board_of(random_model(PUZZLES, depth=depth), ranks=ranks)
    return torch.tensor(logit_errors(board, decode(board, *params)))


@pytest.mark.parametrize("ranks", (joint, independent))
def test_one_layer_tells_delayed_from_immediate(ranks):
    """The first layer's keys and values depend on the token alone: only a MASK's can be wrong."""
    for decode, *params in ((dkv, NEVER, "delayed"), (freecache, NEVER, NEVER),
                            (freecache, NEVER, 3)):
        assert errors(ranks, 1, decode, *params).max() < 1e-4
    immediate = errors(ranks, 1, dkv, NEVER, "immediate")
    assert immediate[0] == 0 and (immediate[1:] > 1e-3).all()


@pytest.mark.parametrize("refresh", (2, 3, 5))
def test_a_refresh_ends_the_error(refresh):
    off = errors(joint, 3, dkv, refresh, "delayed")
    at = torch.arange(len(off)) % refresh == 0
    assert (off[at] == 0).all() and (off[~at] > 1e-3).all()


def test_the_error_grows_with_the_interval_and_the_delay_pays():
    mean = {(n, cache): errors(joint, 3, dkv, n, cache).mean().item()
            for n in (1, 2, 4, NEVER) for cache in ("delayed", "immediate")}
    for cache in ("delayed", "immediate"):
        assert 0 == mean[1, cache] < mean[2, cache] < mean[4, cache] < mean[NEVER, cache]
    assert all(mean[n, "delayed"] < mean[n, "immediate"] for n in (2, 4, NEVER))


@pytest.mark.parametrize("name, params, computed", (
    ("dkv", {"refresh": 4}, lambda u, t: min(u - t + 1, u)),
    ("dkv", {"refresh": NEVER}, lambda u, t: u - t + 1),
    ("dkv", {"refresh": 3, "cache": "immediate"}, lambda u, t: u - t),
    ("freecache", {"refresh": NEVER, "block": 3}, lambda u, t: min(u - t // 3 * 3 + 1, u)),
    ("freecache", {"refresh": 6, "block": 2}, lambda u, t: min(u - t // 2 * 2 + 1, u))))
def test_what_is_charged(name, params, computed):
    """Of u cells to find, pass t computes those; every `refresh` passes all S positions."""
    _, stats, _ = run(random_model(PUZZLES), name, params)
    expected = [sum(PUZZLES.S if t % params["refresh"] == 0 else computed(u, t) for t in range(u))
                for u in COUNT.tolist()]
    assert stats["tokens"].tolist() == expected and torch.equal(stats["nfe"], COUNT)
