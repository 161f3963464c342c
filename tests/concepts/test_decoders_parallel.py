"""decoders/parallel.py: which cells each rule takes in a pass, against the rule in slow Python."""
import math

import pytest
import torch
from boards import BOARDS, TOY, Opinions, board_of, generator, play
from conftest import empty

from decoders import DECODERS
from studies.exact import Conditionals

NAMES = ("threshold", "factor", "med", "eb", "klass")


def first_passes(name, tables, passes=1, **params):
    """-> the cells that the decoder has committed of an empty board after so many passes."""
    board = board_of(Opinions(*tables), empty(BOARDS, 1), BOARDS)
    steps = DECODERS[name].decode(board, **params)
    for _ in range(passes):
        next(steps)
    return (~board.unknown[0]).nonzero().flatten().tolist()


def by_hand(name, value, probs):
    """The rule of a paper, literally: probs (A, K) -> the cells of one pass."""
    c = probs.amax(dim=1).tolist()
    H = [-sum(p * math.log(p) for p in cell if p > 0) for cell in probs.tolist()]
    if name == "threshold":
        return {i for i in range(len(c)) if c[i] > value} | {c.index(max(c))}
    if name == "med":
        return {i for i in range(len(H)) if H[i] < value} or {H.index(min(H))}
    line = sorted(range(len(c)), key=lambda i: H[i] if name == "eb" else -c[i])
    for n in range(len(line), 1, -1):
        some = [H[i] for i in line[:n]]
        if name == "factor" and (n + 1) * (1 - c[line[n - 1]]) < value:
            return set(line[:n])
        if name == "eb" and sum(some) - max(some) < value:
            return set(line[:n])
    return {line[0]}


@pytest.mark.parametrize("name, values", [
    ("threshold", (0.3, 0.6, 0.9, 0.97)), ("factor", (0.2, 0.5, 1.0, 3.0)),
    ("med", (0.05, 0.2, 0.5, 1.0)), ("eb", (0.01, 0.1, 0.5, 3.0))])
def test_a_pass_takes_what_the_rule_says(name, values):
    sizes = set()
    for seed in range(5):
        g = generator(seed)
        sharp = 8 * torch.rand(BOARDS.A, 1, generator=g)
        table = sharp * torch.randn(BOARDS.A, BOARDS.K, generator=g)
        for value in values:
            taken = first_passes(name, [table], **{DECODERS[name].main: value})
            assert set(taken) == by_hand(name, value, table.double().softmax(dim=1))
            sizes.add(len(taken))
    assert len(sizes) > 4 and max(sizes) > 8


@pytest.mark.parametrize("name", NAMES)
def test_what_rounds_to_certain_is_one_pass_but_not_with_null_settings(name):
    """Largest p 1.0, H 0.0: with "at least tau" or "at most lam" all would go with them."""
    start, answers = empty(BOARDS, 2), torch.arange(16).remainder(4).expand(2, -1)
    model = Opinions(200.0 * torch.nn.functional.one_hot(answers[0], 4))
    for params, passes in ((DECODERS[name].null, 16), ({}, 3 if name == "klass" else 1)):
        board = board_of(model, start, BOARDS)
        assert len(play(board, DECODERS[name].decode(board, **params))) == passes
        assert board.nfe.tolist() == [passes] * 2 and torch.equal(board.symbols, answers)


def test_order_of_the_fallback_and_of_the_prefix():
    """Cell 0 has the largest max p, cell 1 the smallest entropy, cell 2 the largest margin."""
    probs = torch.full((16, 4), 0.25)
    probs[0] = torch.tensor([0.60, 0.36, 0.02, 0.02])
    probs[1] = torch.tensor([0.55, 0.449, 0.0005, 0.0005])
    probs[2] = torch.tensor([0.59, 0.14, 0.135, 0.135])
    for name, params in (("med", dict(lam=0.0)), ("eb", dict(gamma=0.0))):
        for cell, order in enumerate(("confidence", "entropy", "margin")):
            assert first_passes(name, [probs.log()], order=order, **params) == [cell]
    # H of cell 1 is 0.70, of cell 0 0.83: it alone is below, and no fallback is added
    assert first_passes("med", [probs.log()], lam=0.75, order="confidence") == [1]


def test_klass_takes_what_is_certain_and_has_stopped_changing():
    """Cells 0-3 are calm, 4-7 uncertain, 8-11 change; 15 and 14 are the most certain of all."""
    table = torch.zeros(16, 4)
    table[:4, 0], table[4:8, 0], table[8:12, 0] = 3.0, 1.0, 3.0
    table[15, 3], table[14, 3] = 9.0, 8.0  # taken in passes 1 and 2
    other = table.clone()
    other[8:12] = other[8:12].roll(1, dims=1)  # certain of something else, in every second pass
    tables, calm, changing = [table, other] * 4, [*range(4)], [*range(8, 12)]
    assert first_passes("klass", tables, 1, tau=0.6, h=0) == [*calm, *changing, 14, 15]
    for h in (1, 2):  # h passes with one cell each, then all that are calm
        assert first_passes("klass", tables, h + 1, tau=0.6, h=h) == [*calm, 14, 15]
        assert len(first_passes("klass", tables, h, tau=0.6, h=h)) == h
    assert first_passes("klass", tables, 2, tau=0.6, h=1, eps=100.) == [*calm, *changing, 14, 15]
    assert len(first_passes("klass", tables, 2, tau=0.6, h=1, eps=0.0)) == 2


def test_a_changed_prediction_starts_klass_anew():
    """Still, changed, still: with h = 2 the pass after is too early."""
    a, b = torch.zeros(16, 4), torch.zeros(16, 4)
    a[:, 0], b[:, 1] = 3.0, 3.0
    assert len(first_passes("klass", [a, a, b, b], 4, h=2)) == 4
    assert len(first_passes("klass", [a, a, b, b, b], 5, h=2)) == 16


def test_the_theorem_of_factor():
    """Up to f = 1 the most likely symbols of the cells taken are their most likely joint symbols.
    """
    wrong, several = {1.0: 0, 3.0: 0}, 0
    support = torch.cartesian_prod(*[torch.arange(2)] * 4)  # (16, 4)
    for seed in range(300):
        weights = (3.0 * torch.randn(16, generator=generator(seed))).softmax(dim=0)
        one = torch.nn.functional.one_hot(support, 2) * weights[:, None, None]
        for f in wrong:
            board = board_of(Opinions(one.sum(dim=0).log()), empty(TOY, 1), TOY)
            next(DECODERS["factor"].decode(board, f=f))
            taken = ~board.unknown[0]
            same = (support[:, None, taken] == support[None, :, taken]).all(dim=2)
            joint = (same * weights).sum(dim=1)  # (16,) of the pattern on those cells
            wrong[f] += not torch.equal(board.symbols[0, taken], support[joint.argmax(), taken])
            several += f == 1.0 and int(taken.sum()) > 1
    assert wrong[1.0] == 0 and wrong[3.0] > 0 and several > 20


def test_a_budget_of_nats_is_kept(boards4):
    """eb: sum H - max H of every pass stays below gamma, on the true conditionals."""
    sizes = []
    for gamma in (0.0, 0.4, 1.5):
        board = board_of(Conditionals(BOARDS, boards4), empty(BOARDS, 20), BOARDS, temperature=1.0)
        steps = DECODERS["eb"].decode(board, gamma=gamma)
        while board.unknown.any():
            probs = board.model(board.tokens, None)[:, 1:].double().softmax(dim=-1)
            before = board.unknown
            next(steps)
            H = -torch.special.xlogy(probs, probs).sum(dim=-1) * (before & ~board.unknown)
            assert (H.sum(dim=1) - H.amax(dim=1) <= gamma + 1e-6).all()
        sizes.append(board.nfe.double().mean().item())
    assert sizes[0] == 16 and sizes[1] < 10
