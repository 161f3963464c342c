"""Exercise 4, decode() with shares, line_up, seats, arrange: who is there, and what it costs.

    u unknown cells   c candidates   n latents   k cells per step
"""
import pytest
import torch
from stubs import Table, Toy, logits, raw

import objectives
from objectives import Dials, Objective
from plumbing.randomness import sample_keys
from sample import decode, shares

M = Toy.MASK


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Objectives of the tests' own, whose ranking is the turn."""
    monkeypatch.setitem(objectives.OBJECTIVES, "any", Objective(raw))
    monkeypatch.setitem(objectives.OBJECTIVES, "line", Objective(raw, left_to_right=True))


def decoded(start, dials, name="any", seed=0):
    """-> the model with its calls, tokens, stats."""
    start, model = torch.tensor(start), Table(logits())
    keys = sample_keys(seed, start, copies_differ=True)
    return model, *decode(model, Toy, name, start, dials, keys)


@pytest.mark.parametrize("dials, u, expected", [
    (Dials("random", 1, 0, 1, 0.0), 4, (1, 0)), (Dials("random", 1, 2, 1, 0.0), 4, (1, 2)),
    (Dials("random", 1, 10**9, 1, 0.0), 4, (1, 3)), (Dials("random", 2, 2, 2, 0.0), 3, (2, 1)),
    (Dials("random", 2, 2, 2, 0.0), 1, (1, 0)), (Dials("confidence", 3, 1, 1, 0.0), 4, (3, 1)),
    (Dials("confidence", 10**9, 1, 1, 0.0), 4, (4, 0))])
def test_shares(dials, u, expected):
    assert tuple(shares(u, dials)) == expected


@pytest.mark.parametrize("n, cost", [(0, 14), (1, 17), (2, 19), (99, 20)])
def test_the_cost_formula(n, cost):
    """tokens(n) = sum over i < A of P + i + c + min(n, A - i - c); absent latents cost nothing."""
    model, _, stats = decoded([[4, M, M, M, M]], Dials("random", 1, n, 1, 0.0))
    assert stats["tokens"].tolist() == [cost] and stats["nfe"].tolist() == [4]
    assert sum(tokens.numel() for tokens, _, _ in model.calls) == cost


def test_who_is_in_a_pass():
    """n = 1, one cell known: prompt, the known cell, a latent of turn 1, the candidate of turn 2.
    """
    model, _, _ = decoded([[4, M, M, 2, M]], Dials("random", 1, 1, 1, 0.0))
    tokens, positions, rank = model.calls[0]
    assert tokens.tolist() == [[4, 2, M, M]] and positions[0, :2].tolist() == [0, 3]
    assert rank.tolist() == [[0, 0, 1, 2]]
    assert len({*positions[0].tolist()}) == 4


def test_candidates_do_not_see_each_other():
    model, _, _ = decoded([[4, M, M, M, M]], Dials("confidence", 2, 2, 1, 0.0))
    assert model.calls[0][2].tolist() == [[0, 1, 2, 3, 3]]


def test_left_to_right_takes_the_first_and_latents_are_random():
    for seed in range(3):
        model, _, _ = decoded([[4, M, M, M, M]], Dials("left_to_right", 1, 1, 1, 0.0), seed=seed)
        assert [positions[0, -1].item() for _, positions, _ in model.calls] == [1, 2, 3, 4]
    latents = {decoded([[4, M, M, M, M]], Dials("left_to_right", 1, 1, 1, 0.0), seed=seed)[0]
               .calls[0][1][0, -2].item() for seed in range(20)}
    assert latents == {2, 3, 4}


def test_a_window_stands_right_behind():
    """rule.left_to_right: the latents are the next unknown cells, whatever is given."""
    model, _, _ = decoded([[4, M, 0, M, M]], Dials("left_to_right", 1, 1, 1, 0.0), "line")
    first, second = (positions[0, -2:].tolist() for _, positions, _ in model.calls[:2])
    assert first == [3, 1] and second == [4, 3]


def test_a_random_order_is_another_for_each_sample():
    model, _, _ = decoded([[4, M, M, M, M]] * 60, Dials("random", 1, 0, 1, 0.0))
    assert set(model.calls[0][1][:, -1].tolist()) == {1, 2, 3, 4}


def test_unequal_starts_are_padded_with_seats_that_nobody_sees():
    """Samples with 4, 2 and 0 cells to find: each has the cost of itself alone."""
    start = [[4, 0, M, 1, M], [4, M, M, M, M], [4, 0, 1, 2, 0]]
    dials = Dials("random", 1, 0, 1, 0.0)
    model, tokens, stats = decoded(start, dials)
    assert stats["nfe"].tolist() == [2, 4, 0]
    assert stats["tokens"].tolist() == [4 + 5, 2 + 3 + 4 + 5, 0]
    seen, _, rank = model.calls[0]  # the sample with most to find comes first
    assert seen.shape == (2, 4) and (rank == torch.inf).sum(dim=1).tolist() == [2, 0]
    most = model.logits.argmax(dim=1)
    for before, after in zip(start, tokens.tolist()):
        assert after == [most[i].item() if x == M else x for i, x in enumerate(before)]


@pytest.mark.parametrize("n", [0, 2, 10**9])
@pytest.mark.parametrize("k", [1, 3])
def test_every_cell_gets_what_the_model_says(n, k):
    model, tokens, stats = decoded([[4, M, M, M, M]] * 3, Dials("random", k, n, k, 0.0))
    assert torch.equal(tokens[:, 1:], model.logits.argmax(dim=1)[1:].expand(3, 4))
    assert stats["nfe"].tolist() == [-(-4 // k)] * 3
