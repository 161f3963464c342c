"""Exercise 5, next token with a cache, and the window of mtp."""
import math

import pytest
import torch
from stubs import Table, Toy, gen, logits

import objectives
from model import CAUSAL
from mtp import causal, draw_window, next_token_loss, window_sees_itself
from noise import sample_keys
from objectives import Objective
from sample import decode_next_token

LEVEL = torch.tensor([[0, 1, 2, 3]])
CLEAN = torch.tensor([[Toy.BOS, 0, 2, 1, 1], [Toy.BOS, 2, 2, 0, 1]])


@pytest.mark.parametrize("W", [1, 2, torch.tensor(2)])
def test_nobody_sees_beyond_the_window(W):
    rank = window_sees_itself(LEVEL, W)[0]
    assert rank.tolist() == [0.0 if t <= W else math.inf for t in LEVEL[0].tolist()]


def test_without_a_cell_beyond_it_all_see_all():
    """None is the fast way to say so; decoding does not give W."""
    assert window_sees_itself(torch.tensor([[1, 2, 3, 4]]), 3)[0, 3] == math.inf
    for W in (4, 7, None):
        rank = window_sees_itself(LEVEL, W)
        assert rank is None or not rank.any()


def test_windows_of_a_number_and_of_all():
    windows = [draw_window(window, 5, gen(), "cpu") for window in ("all", "1", "3", "9")]
    assert windows == [5, 1, 3, 5]


def test_random_windows_are_uniform_in_log_W():
    """P(W = w) = log((w + 1) / w) / log(A + 1); 6 standard errors of 3,000 draws."""
    g = gen()
    drawn = [int(draw_window("random", 4, g, "cpu")) for _ in range(3000)]
    for w in range(1, 5):
        p = math.log((w + 1) / w) / math.log(5)
        assert abs(drawn.count(w) / 3000 - p) < 6 * (p * (1 - p) / 3000) ** 0.5


def test_each_token_is_scored_at_the_position_before_it():
    model, level = Table(logits()), torch.arange(1, 5).expand(2, 4)
    loss = next_token_loss(model, CLEAN, level, 4, Toy, causal)
    logp = model.logits.log_softmax(dim=1)
    expected = [-sum(logp[i - 1, row[i]] for i in range(1, 5)) / 4 for row in CLEAN]
    torch.testing.assert_close(loss, torch.stack(expected))
    both = next_token_loss(model, CLEAN, level, 4, Toy, causal, read_every=1)  # (R, B)
    assert both.shape == (2, 2) and torch.equal(both[1], loss) and not torch.equal(both[0], loss)


def test_what_the_model_is_given():
    """Clean tokens, and a ranking under which no token sees a later one. The last is not needed."""
    model = Table(logits())
    next_token_loss(model, CLEAN, torch.arange(1, 5).expand(2, 4), 4, Toy, causal)
    (tokens, positions, rank), = model.calls
    T = tokens.shape[1]
    assert T in (4, 5) and torch.equal(tokens, CLEAN[:, :T])
    assert positions[0].tolist() == list(range(T)) and rank is CAUSAL


class Caching(Table):
    """It also counts how often it is given its cache."""
    caches = 0

    def __call__(self, tokens, positions, rank=None, cache=None):
        self.caches += cache is not None
        return super().__call__(tokens, positions, rank)


def decoded(monkeypatch, use_cache, temperature=0.0, count=2):
    monkeypatch.setitem(objectives.OBJECTIVES, "next", Objective(causal, next_token=True))
    start = torch.tensor([[Toy.BOS] + [Toy.MASK] * 4] * count)
    model, keys = Caching(logits()), sample_keys(0, start, copies_differ=True)
    return model, *decode_next_token(model, Toy, "next", start, temperature, keys, use_cache)


def test_with_the_cache_the_model_reads_each_token_once(monkeypatch):
    model, tokens, stats = decoded(monkeypatch, True)
    assert torch.equal(torch.cat([call[0] for call in model.calls], dim=1), tokens[:, :4])
    assert [call[1][0].tolist() for call in model.calls] == [[0], [1], [2], [3]]
    assert stats["tokens"].tolist() == [4, 4] and stats["nfe"].tolist() == [4, 4]
    assert model.caches == 4


def test_without_it_the_model_reads_the_whole_prefix(monkeypatch):
    model, tokens, stats = decoded(monkeypatch, False)
    for i, (seen, positions, rank) in enumerate(model.calls, 1):
        assert torch.equal(seen, tokens[:, :i]) and positions[0].tolist() == list(range(i))
        assert rank is CAUSAL
    assert stats["tokens"].tolist() == [1 + 2 + 3 + 4] * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_changes_cost_and_nothing_else(monkeypatch, temperature):
    model, with_cache, _ = decoded(monkeypatch, True, temperature, 20)
    _, without, _ = decoded(monkeypatch, False, temperature, 20)
    assert torch.equal(with_cache, without) and with_cache.shape == (20, 5)
    if temperature == 0:
        assert torch.equal(with_cache[0, 1:], model.logits.argmax(dim=1)[:-1])
    else:
        assert len(with_cache.unique(dim=0)) > 5


def test_confidence_is_the_mean_probability(monkeypatch):
    model, _, stats = decoded(monkeypatch, True)
    expected = model.logits[:4].softmax(dim=1).amax(dim=1).mean()
    torch.testing.assert_close(stats["confidence"], expected.expand(2))
