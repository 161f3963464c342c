"""Exercise 4, decode_pass(): who is present, what that costs, what is committed.

    u unknown cells   k cells per pass   c candidates   n latents   T = P + A - u + c + n

c is sampling.candidates, at least k and at most u; n is sampling.latents, at most what is left.
A pass holds, in this order: the prompt, the known cells, n latents at the levels 1..n, c candidates
that all have level n + 1. Known cells have a level <= 0. Candidates come first in the order of the
objective (left to right) or of uniform(keys, 2u, A), latents next; order left_to_right takes the
first c unknown cells as candidates. The k candidates of largest certainty() are committed, with the
noise uniform(keys, 2u + 1, c, K). plumbing/trace.py lists what is in the record.
"""
import pytest
import torch
from stubs import Table, Toy, logits, raw

import objectives
from noise import sample_keys
from objectives import Objective, SamplingParams
from sample import decode

M, EMPTY = Toy.MASK, [4, Toy.MASK, Toy.MASK, Toy.MASK, Toy.MASK]


@pytest.fixture(autouse=True)
def two_objectives(monkeypatch):
    """Their ranking is the level, so that the model's rank shows it."""
    monkeypatch.setitem(objectives.OBJECTIVES, "any", Objective(raw))
    monkeypatch.setitem(objectives.OBJECTIVES, "line", Objective(raw, left_to_right=True))


def asked(order="random", c=1, n=0, k=1, temperature=0.0):
    return SamplingParams(order, c, n, k, temperature)


def decoded(start, sampling, name="any", seed=0, history=None):
    """-> the model with its calls, tokens, stats."""
    start, model = torch.tensor(start), Table(logits())
    keys = sample_keys(seed, start, copies_differ=True)
    return model, *decode(model, Toy, name, start, sampling, keys, history)


@pytest.mark.parametrize("sampling, u, c, n", [
    (asked(), 4, 1, 0), (asked(n=2), 4, 1, 2), (asked(n=10**9), 4, 1, 3),
    (asked(c=2, n=2, k=2), 3, 2, 1),
    (asked(c=2, n=2, k=2), 1, 1, 0), (asked("confidence", 3, 1), 4, 3, 1),
    (asked("confidence", 10**9, 1), 4, 4, 0)])
def test_candidates_and_latents(sampling, u, c, n):
    """Latents have the levels 1..n, every candidate has n + 1: candidates do not see each other."""
    model, _, _ = decoded([[4] + [M] * u + [0] * (4 - u)], sampling)
    levels = [0] * (5 - u) + [*range(1, n + 1)] + [n + 1] * c
    assert model.calls[0][2].clamp(min=0).tolist() == [levels]


@pytest.mark.parametrize("n, cost", [(0, 14), (1, 17), (2, 19), (99, 20)])
def test_the_cost_formula(n, cost):
    """tokens(n) = sum over i < A of P + i + c + min(n, A - i - c); absent latents cost nothing."""
    model, _, stats = decoded([EMPTY], asked(n=n))
    assert stats["tokens"].tolist() == [cost] and stats["nfe"].tolist() == [4]
    assert sum(tokens.numel() for tokens, _, _ in model.calls) == cost


def test_who_is_in_a_pass():
    """n = 1, one cell known: the prompt, the known cell, the latent, the candidate."""
    history = []
    model, after, _ = decoded([[4, M, M, 2, M]], asked(n=1), history=history)
    tokens, positions, rank = model.calls[0]
    assert tokens.tolist() == [[4, 2, M, M]] and positions[0, :2].tolist() == [0, 3]
    assert rank.tolist() == [[0, 0, 1, 2]] and len({*positions[0].tolist()}) == 4
    record = history[0]
    assert torch.equal(record["present"], positions) and torch.equal(record["rank"], rank)
    assert record["candidates"] == 1 and record["logits"].shape == (1, 4, Toy.K)
    assert torch.equal(history[-1]["tokens"], after)


def test_left_to_right_takes_the_first_and_latents_are_random():
    latents = set()
    for seed in range(20):
        model, _, _ = decoded([EMPTY], asked("left_to_right", n=1), seed=seed)
        assert [positions[0, -1].item() for _, positions, _ in model.calls] == [1, 2, 3, 4]
        latents.add(model.calls[0][1][0, -2].item())
    assert latents == {2, 3, 4}


def test_a_window_stands_right_behind():
    """rule.left_to_right: the latents are the next unknown cells, whatever is given."""
    model, _, _ = decoded([[4, M, 0, M, M]], asked("left_to_right", n=1), "line")
    first, second = (positions[0, -2:].tolist() for _, positions, _ in model.calls[:2])
    assert first == [3, 1] and second == [4, 3]


def test_each_sample_has_a_random_order_of_its_own():
    model, _, _ = decoded([EMPTY] * 60, asked())
    assert set(model.calls[0][1][:, -1].tolist()) == {1, 2, 3, 4}


def test_unequal_starts_wait_for_each_other():
    """Samples with 2, 4 and 0 unknown cells: each has the cost and the answer of itself alone."""
    start = torch.tensor([[4, 0, M, 1, M], EMPTY, [4, 0, 1, 2, 0]])
    keys, sampling = sample_keys(0, start, copies_differ=True), asked(temperature=1.0)
    model = Table(logits())
    tokens, stats = decode(model, Toy, "any", start, sampling, keys)
    assert stats["nfe"].tolist() == [2, 4, 0]
    assert stats["tokens"].tolist() == [4 + 5, 2 + 3 + 4 + 5, 0]
    assert [len(seen) for seen, _, _ in model.calls] == [1, 1, 2, 2]
    for i in range(3):
        rows = slice(i, i + 1)
        alone, _ = decode(Table(logits()), Toy, "any", start[rows], sampling, keys[rows])
        assert torch.equal(alone[0], tokens[i])


@pytest.mark.parametrize("n", [0, 2, 10**9])
@pytest.mark.parametrize("k", [1, 3])
def test_every_cell_gets_what_the_model_says(n, k):
    model, tokens, stats = decoded([EMPTY] * 3, asked(c=k, n=n, k=k))
    assert torch.equal(tokens[:, 1:], model.logits.argmax(dim=1)[1:].expand(3, 4))
    assert stats["nfe"].tolist() == [-(-4 // k)] * 3
    sure = model.logits[1:].softmax(dim=1).amax(dim=1).mean()
    torch.testing.assert_close(stats["confidence"], sure.expand(3))


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_the_most_certain_candidates_come_first(order):
    """All cells compete, two are committed in each pass."""
    model, _, _ = decoded([EMPTY], asked(order, c=99, k=2))
    probs = model.logits[1:].softmax(dim=1)
    top = probs.topk(2, dim=1).values
    score = {"confidence": top[:, 0], "margin": top[:, 0] - top[:, 1],
             "entropy": (probs * probs.log()).sum(dim=1)}[order]
    known = set(model.calls[1][1][0, 1:3].tolist())
    assert known == {1 + cell for cell in score.topk(2).indices.tolist()}


def test_symbols_at_a_temperature():
    """T = 2: each symbol as often as softmax(logits / 2) says; 6 standard errors of 3,000."""
    model, tokens, _ = decoded([EMPTY] * 3000, asked(temperature=2.0))
    probs = (model.logits[1:] / 2).softmax(dim=1)  # (A, K)
    rates = torch.nn.functional.one_hot(tokens[:, 1:], Toy.K).double().mean(dim=0)
    assert ((rates - probs).abs() < 6 * (probs * (1 - probs) / 3000).sqrt()).all()
