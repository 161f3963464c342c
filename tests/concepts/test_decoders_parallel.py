"""decoders/parallel.py: which cells each rule takes in a pass, against the rule in slow Python."""
import math

import pytest
import torch
from conftest import ToyTask, empty, keys_for, task_config

import decoders
from data import make_task
from decoders.board import Board
from decoders.exact import Conditionals

NAMES = ("threshold", "factor", "med", "eb", "klass")
TASK = make_task(task_config())


class Tables:
    """A 'model' that gives the same logits (A, K) whatever it sees, another table each pass."""

    def __init__(self, *tables):
        self.tables, self.calls = tables, 0

    def __call__(self, tokens, positions, rank=None):
        table = self.tables[min(self.calls, len(self.tables) - 1)]
        self.calls += 1
        return torch.nn.functional.pad(table, (0, 0, 1, 0)).expand(len(tokens), -1, -1)


def first_passes(name, tables, passes=1, **knobs):
    """-> bool (A,): what the decoder has committed of an empty board after so many passes."""
    board = Board(Tables(*tables), TASK, lambda turn: None, empty(TASK, 1), torch.zeros(1).long())
    steps = decoders.DECODERS[name].decode(board, **knobs)
    for _ in range(passes):
        next(steps)
    return ~board.unknown[0]


def by_hand(name, knob, probs):
    """The rule of a paper, literally: probs (A, K) -> the set of cells of one pass."""
    c = probs.amax(dim=1).tolist()
    H = [-sum(p * math.log(p) for p in cell if p > 0) for cell in probs.tolist()]
    surest, calmest = c.index(max(c)), H.index(min(H))
    if name == "threshold":
        return {i for i in range(len(c)) if c[i] > knob} | {surest}
    if name == "med":
        return {i for i in range(len(H)) if H[i] < knob} or {calmest}
    line = sorted(range(len(c)), key=lambda i: H[i] if name == "eb" else -c[i])
    for n in range(len(line), 1, -1):
        some = [H[i] for i in line[:n]]
        if name == "factor" and (n + 1) * (1 - c[line[n - 1]]) < knob:
            return set(line[:n])
        if name == "eb" and sum(some) - max(some) < knob:
            return set(line[:n])
    return {line[0]}


@pytest.mark.parametrize("name, knobs", [
    ("threshold", (0.3, 0.6, 0.9, 0.97)), ("factor", (0.2, 0.5, 1.0, 3.0)),
    ("med", (0.05, 0.2, 0.5, 1.0)), ("eb", (0.01, 0.1, 0.5, 3.0))])
def test_a_pass_takes_what_the_rule_says(name, knobs):
    sizes = set()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        sharp = 8 * torch.rand(TASK.A, 1, generator=generator)
        table = sharp * torch.randn(TASK.A, TASK.K, generator=generator)
        main = next(iter(decoders.DECODERS[name].knobs))
        for knob in knobs:
            taken = first_passes(name, [table], **{main: knob}).nonzero().flatten().tolist()
            assert set(taken) == by_hand(name, knob, table.double().softmax(dim=1))
            sizes.add(len(taken))
    assert len(sizes) > 4 and max(sizes) > 8


@pytest.mark.parametrize("name", NAMES)
def test_what_rounds_to_certain_is_one_pass_but_not_at_the_null_knob(name):
    """Largest p 1.0, H 0.0: with "at least tau" or "at most lam" all would go at the null knob."""
    start, answers = empty(TASK, 2), torch.arange(16).remainder(4).expand(2, -1)
    model = Tables(200.0 * torch.nn.functional.one_hot(answers[0], 4))
    for knobs, passes in ((decoders.DECODERS[name].null, 16), ({}, 3 if name == "klass" else 1)):
        board = Board(model, TASK, lambda turn: None, start, keys_for(start))
        assert sum(1 for _ in decoders.DECODERS[name].decode(board, **knobs)) == passes
        assert board.nfe.tolist() == [passes] * 2 and torch.equal(board.symbols, answers)


def test_order_of_the_fallback_and_of_the_prefix():
    """Cell 0 has the largest max p, cell 1 the smallest entropy, cell 2 the largest margin."""
    probs = torch.full((16, 4), 0.25)
    probs[0] = torch.tensor([0.60, 0.36, 0.02, 0.02])
    probs[1] = torch.tensor([0.55, 0.449, 0.0005, 0.0005])
    probs[2] = torch.tensor([0.59, 0.14, 0.135, 0.135])
    for name, knobs in (("med", dict(lam=0.0)), ("eb", dict(gamma=0.0))):
        for cell, order in enumerate(("confidence", "entropy", "margin")):
            taken = first_passes(name, [probs.log()], order=order, **knobs)
            assert taken.nonzero().flatten().tolist() == [cell]
    # H of cell 1 is 0.70, of cell 0 0.83: it alone is below, and no fallback is added
    taken = first_passes("med", [probs.log()], lam=0.75, order="confidence")
    assert taken.nonzero().flatten().tolist() == [1]


def test_klass_takes_what_is_sure_and_has_stopped_changing():
    calm, unsure, changing = 3.0, 1.0, 3.0
    table = torch.zeros(16, 4)
    table[:4, 0], table[4:8, 0], table[8:12, 0] = calm, unsure, changing
    other = table.clone()
    other[8:12] = other[8:12].roll(1, dims=1)  # sure of something else, in every second pass
    tables = [table, other] * 4
    table[15, 3] = other[15, 3] = 9.0  # passes 1 and 2 take the surest two of all
    table[14, 3] = other[14, 3] = 8.0
    for h in (0, 1, 2):
        taken = first_passes("klass", tables, h + 1, tau=0.6, h=h)
        if h == 0:  # stability is not asked for
            expected = [*range(4), *range(8, 12), 14, 15]
        else:  # h passes with one cell each, then all that are calm
            expected = [*range(4), 14, 15]
        assert taken.nonzero().flatten().tolist() == expected
        few = first_passes("klass", tables, max(h, 1), tau=0.6, h=h)
        assert h == 0 or few.sum() == h
    loose = first_passes("klass", tables, 2, tau=0.6, h=1, eps=100.0)
    assert loose.nonzero().flatten().tolist() == [*range(4), *range(8, 12), 14, 15]
    restless = first_passes("klass", tables, 2, tau=0.6, h=1, eps=0.0)
    assert restless.sum() == 2


def test_a_change_of_mind_starts_klass_anew():
    """Still, changed, still: with h = 2 the pass after is too early."""
    a, b = torch.zeros(16, 4), torch.zeros(16, 4)
    a[:, 0], b[:, 1] = 3.0, 3.0
    assert first_passes("klass", [a, a, b, b], 4, h=2).sum() == 4
    assert first_passes("klass", [a, a, b, b, b], 5, h=2).sum() == 16


def test_the_theorem_of_factor():
    """Up to f = 1 the likeliest symbols of the cells taken are their likeliest joint symbols."""
    task, wrong = ToyTask(), {1.0: 0, 3.0: 0}
    support = torch.cartesian_prod(*[torch.arange(2)] * 4)  # (16, 4)
    several = 0
    for seed in range(300):
        noise = torch.randn(16, generator=torch.Generator().manual_seed(seed))
        weights = (3.0 * noise).softmax(dim=0)
        one = torch.nn.functional.one_hot(support, 2) * weights[:, None, None]
        model = Tables(one.sum(dim=0).log())
        for f in wrong:
            start = empty(task, 1)
            board = Board(model, task, lambda t: None, start, torch.zeros(1).long())
            next(decoders.DECODERS["factor"].decode(board, f=f))
            taken = ~board.unknown[0]
            same = (support[:, None, taken] == support[None, :, taken]).all(dim=2)
            joint = (same * weights).sum(dim=1)  # (16,) of the pattern on those cells
            mode = support[joint.argmax(), taken]
            wrong[f] += not torch.equal(board.symbols[0, taken], mode)
            several += f == 1.0 and int(taken.sum()) > 1
    assert wrong[1.0] == 0 and wrong[3.0] > 0 and several > 20


def test_a_budget_of_nats_is_kept(boards4):
    """eb: sum H - max H of every pass stays below gamma, on the true conditionals."""
    start = empty(TASK, 20)
    board = Board(Conditionals(TASK, boards4), TASK, lambda t: None, start, keys_for(start), 1.0)
    sizes = []
    for gamma in (0.0, 0.4, 1.5):
        board = Board(board.model, TASK, lambda t: None, start, keys_for(start), 1.0)
        steps = decoders.DECODERS["eb"].decode(board, gamma=gamma)
        while board.unknown.any():
            probs = board.model(board.tokens, None)[:, 1:].double().softmax(dim=-1)
            before = board.unknown
            next(steps)
            H = -torch.special.xlogy(probs, probs).sum(dim=-1) * (before & ~board.unknown)
            bound = H.sum(dim=1) - H.amax(dim=1)
            assert (bound <= gamma + 1e-6).all()
        sizes.append(board.nfe.double().mean().item())
    assert sizes[0] == 16 and sizes[1] < 10
