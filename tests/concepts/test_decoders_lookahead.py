"""CCD: what holds in several contexts. LookUM: the set of cells that leaves least doubt."""
import pytest
import torch
from conftest import ToyTask, random_model
from test_decoders import puzzles, run  # noqa: F401

TASK = ToyTask()
EMPTY = torch.tensor([[TASK.BOS] + [TASK.MASK] * 4])


class Script:
    """A 'model' that says, pass by pass, with which probability each of 4 cells is a 1."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __call__(self, tokens, positions, rank=None):
        ones = torch.tensor([0.5] + self.passes.pop(0))
        return torch.stack([1 - ones, ones], dim=1).log().expand(len(tokens), -1, -1)


def commits(history):
    """-> for each step what it wrote: {cell: symbol}."""
    out, before = [], EMPTY
    for now in history:
        out.append({i - 1: int(now[0, i]) for i in range(1, 5) if now[0, i] != before[0, i]})
        before = now
    return out


def test_ccd_commits_what_the_last_passes_agree_on():
    """Pass 2: cell 1 says as before, cell 2 changed its mind, cell 3 is not among the top 3."""
    script = ([0.99, 0.9, 0.9, 0.6], [0.5, 0.9, 0.05, 0.6], [0.5, 0.5, 0.05, 0.6])
    _, stats, history = run(Script(*script), TASK, EMPTY, "ccd", {"top": 3})
    # pass 1 has nothing to agree with; in pass 2 cell 2 is the surest, and committed as such
    assert commits(history) == [{0: 1}, {2: 0, 1: 1}, {3: 1}] and stats["nfe"].item() == 3
    # three passes must agree: only the surest until then
    script = ([0.99, 0.8, 0.7, 0.6], [0.5, 0.8, 0.7, 0.6], [0.5, 0.5, 0.7, 0.6])
    assert commits(run(Script(*script), TASK, EMPTY, "ccd", {"top": 4, "d": 3})[2]) == [
        {0: 1}, {1: 1}, {2: 1, 3: 1}]
    # a cell that was not in the list before does not count
    script = ([0.99, 0.8, 0.55, 0.7], [0.5, 0.8, 0.7, 0.6], [0.5, 0.5, 0.55, 0.7])
    assert commits(run(Script(*script), TASK, EMPTY, "ccd", {"top": 2})[2]) == [
        {0: 1}, {1: 1}, {2: 1, 3: 1}]


def test_ccd_averages():
    """The mean of two passes (0.85, 0.55) is surer than (0.3, 0.95), and names another symbol."""
    script = ([0.99, 0.85, 0.3, 0.5], [0.5, 0.6, 0.95, 0.5], [0.5, 0.5, 0.95, 0.5],
              [0.5, 0.5, 0.5, 0.5])
    now = run(Script(*script), TASK, EMPTY, "ccd", {"rule": "average"})[2]
    assert commits(now)[:3] == [{0: 1}, {1: 1}, {2: 1}]
    now = run(Script(*script), TASK, EMPTY, "ccd", {"rule": "average", "d": 1})[2]
    assert commits(now)[:2] == [{0: 1}, {2: 1}]


@pytest.mark.parametrize("rule", ("agree", "average", "both"))
def test_one_context_is_plain(puzzles, rule):  # noqa: F811
    task, start, _ = puzzles
    knobs = {"d": 1, "order": "margin", "rule": rule, "top": 9}
    tokens, stats, _ = run(random_model(task), task, start, "ccd", knobs)
    expected, plain, _ = run(random_model(task), task, start, "plain", {"order": "margin"})
    assert torch.equal(tokens, expected) and torch.equal(stats["nfe"], plain["nfe"])


class ChangesWithCell1:
    """Cell 0 is a bit surer than cell 1, but once cell 1 is known the others are surer.

    What it says of a known cell (untrained in a real model) would make cell 0 look better.
    """

    def __call__(self, tokens, positions, rank=None):
        ones = torch.tensor([0.5, 0.72, 0.7, 0.6, 0.6]).repeat(len(tokens), 1)
        ones[tokens[:, 1] != TASK.MASK, 1] = 0.999
        ones[tokens[:, 2] != TASK.MASK] = torch.tensor([0.5, 0.8, 0.5, 0.8, 0.8])
        return torch.stack([1 - ones, ones], dim=2).log()


def test_lookum_takes_the_set_that_leaves_least_doubt():
    first = {name: commits(run(ChangesWithCell1(), TASK, EMPTY, name, knobs)[2])[0]
             for name, knobs in (("plain", {}), ("lookum", {"paths": 8, "cells": 1, "pool": 2}))}
    assert first == {"plain": {0: 1}, "lookum": {1: 1}}
    # a pool of one leaves no choice, however many paths
    one = run(ChangesWithCell1(), TASK, EMPTY, "lookum", {"paths": 8, "cells": 1, "pool": 1})[2]
    assert commits(one)[0] == {0: 1}


@pytest.mark.parametrize("paths, cells", ((1, 1), (2, 2), (3, 1), (4, 3)))
def test_what_lookum_costs(puzzles, paths, cells):  # noqa: F811
    """Passes as plain with k cells; every state but the first is one of J that were looked at."""
    task, start, _ = puzzles
    _, stats, _ = run(random_model(task), task, start, "lookum", {"paths": paths, "cells": cells})
    _, plain, _ = run(random_model(task), task, start, "plain", {"k": cells})
    assert torch.equal(stats["nfe"], plain["nfe"])
    assert torch.equal(stats["tokens"], task.S * (1 + paths * (stats["nfe"] - 1)))


def test_random_sets_are_a_samples_own(puzzles):  # noqa: F811
    task, start, _ = puzzles
    model = random_model(task, seed=5)
    tokens, _, _ = run(model, task, start, "lookum", temperature=1.0)
    alone, _, _ = run(model, task, start[4:5], "lookum", temperature=1.0)
    other, _, _ = run(model, task, start, "lookum", temperature=1.0, seed=1)
    assert torch.equal(tokens[4], alone[0]) and not torch.equal(tokens, other)
