"""Caches of what can still change: when they are exact, how far they are off, what they save."""
import pytest
import torch
from conftest import keys_for, random_model
from test_decoders import puzzles, run  # noqa: F401

from decoders.board import Board
from decoders.cache import dkv, freecache, logit_errors
from diffusion import independent, joint

NEVER = 1000


def errors(puzzles, ranks, depth, decode, *knobs):  # noqa: F811
    task, start, _ = puzzles
    board = Board(random_model(task, depth=depth), task, ranks, start, keys_for(start))
    return torch.tensor(logit_errors(board, decode(board, *knobs)))


@pytest.mark.parametrize("ranks", (joint, independent))
def test_one_layer_tells_delayed_from_immediate(puzzles, ranks):  # noqa: F811
    """The first layer's keys and values are of the token alone: only a MASK's can be wrong."""
    assert errors(puzzles, ranks, 1, dkv, NEVER, "delayed").max() < 1e-4
    immediate = errors(puzzles, ranks, 1, dkv, NEVER, "immediate")
    assert immediate[0] == 0 and (immediate[1:] > 1e-3).all()
    assert errors(puzzles, ranks, 1, freecache, NEVER, NEVER).max() < 1e-4
    assert errors(puzzles, ranks, 1, freecache, NEVER, 3).max() < 1e-4


@pytest.mark.parametrize("refresh", (2, 3, 5))
def test_a_refresh_ends_the_error(puzzles, refresh):  # noqa: F811
    off = errors(puzzles, joint, 3, dkv, refresh, "delayed")
    at = torch.arange(len(off)) % refresh == 0
    assert (off[at] == 0).all() and (off[~at] > 1e-3).all()


def test_the_error_grows_with_the_interval_and_the_delay_pays(puzzles):  # noqa: F811
    mean = {(n, cache): errors(puzzles, joint, 3, dkv, n, cache).mean().item()
            for n in (1, 2, 4, NEVER) for cache in ("delayed", "immediate")}
    for cache in ("delayed", "immediate"):
        assert 0 == mean[1, cache] < mean[2, cache] < mean[4, cache] < mean[NEVER, cache]
    assert all(mean[n, "delayed"] < mean[n, "immediate"] for n in (2, 4, NEVER))


@pytest.mark.parametrize("name, knobs, computed", (
    ("dkv", {"refresh": 4}, lambda u, t: min(u - t + 1, u)),
    ("dkv", {"refresh": NEVER}, lambda u, t: u - t + 1),
    ("dkv", {"refresh": 3, "cache": "immediate"}, lambda u, t: u - t),
    ("freecache", {"refresh": NEVER, "block": 3}, lambda u, t: min(u - t // 3 * 3 + 1, u)),
    ("freecache", {"refresh": 6, "block": 2}, lambda u, t: min(u - t // 2 * 2 + 1, u))))
def test_what_is_fed(puzzles, name, knobs, computed):  # noqa: F811
    """Of u cells to find, pass t computes those; every `refresh` passes all S positions."""
    task, start, _ = puzzles
    _, stats, _ = run(random_model(task), task, start, name, knobs)
    expected = [sum(task.S if t % knobs["refresh"] == 0 else computed(u, t) for t in range(u))
                for u in task.blanks(start).sum(dim=1).tolist()]
    assert stats["tokens"].tolist() == expected
    assert torch.equal(stats["nfe"], task.blanks(start).sum(dim=1))


@pytest.mark.parametrize("name", ("dkv", "freecache"))
def test_refresh_1_is_no_cache_under_sidm_with_every_option(puzzles, name):  # noqa: F811
    task, start, _ = puzzles
    model = random_model(task)
    model.loops = 2
    model.blocks[0].attn.qk_norm = model.blocks[1].relu_squared = True
    a, _, _ = run(model, task, start, name, {"refresh": 1}, 1.0, "sidm")
    b, _, _ = run(model, task, start, "plain", {}, 1.0, "sidm")
    assert torch.equal(a, b)


@pytest.mark.parametrize("name, knobs", (("dkv", {"refresh": NEVER}),
                                         ("freecache", {"refresh": NEVER, "block": 3})))
@pytest.mark.parametrize("objective", ("mdm", "sidm"))
def test_ragged_batches(puzzles, name, knobs, objective):  # noqa: F811
    """A row with fewer cells to compute than its neighbours computes no others in their place."""
    task, start, _ = puzzles
    together, stats, _ = run(random_model(task), task, start, name, knobs, 0.0, objective)
    for i in range(0, 12, 3):
        alone, one, _ = run(random_model(task), task, start[i:i + 1], name, knobs, 0.0, objective)
        assert torch.equal(alone[0], together[i])
        assert torch.allclose(one["confidence"][0], stats["confidence"][i], atol=1e-5)
        assert one["tokens"][0] == stats["tokens"][i]
