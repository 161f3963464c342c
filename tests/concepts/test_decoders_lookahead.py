"""CCD: what several contexts agree on. LookUM: the set of cells that leaves least uncertainty."""
import pytest
import torch
from boards import COUNT, PUZZLES, TOY, Opinions, run
from conftest import random_model

EMPTY = torch.tensor([[TOY.BOS] + [TOY.MASK] * 4])


def commits(model, name, **params):
    """-> for each step on the empty toy board what it wrote: {cell: symbol}."""
    out, before = [], EMPTY
    for now in run(model, name, params, start=EMPTY, task=TOY)[2]:
        out.append({i - 1: int(now[0, i]) for i in range(1, 5) if now[0, i] != before[0, i]})
        before = now
    return out


def script(*passes):
    """A 'model' that says, pass by pass, with which probability each of 4 cells is a 1."""
    ones = torch.tensor(passes)
    return Opinions(*torch.stack([1 - ones, ones], dim=2).log())


def test_ccd_commits_what_the_last_passes_agree_on():
    """Pass 2: cell 1 says as before, cell 2 changed its mind, cell 3 is not among the top 3."""
    # pass 1 has nothing to agree with; in pass 2 cell 2 is the most certain, and committed as such
    says = script([0.99, 0.9, 0.9, 0.6], [0.5, 0.9, 0.05, 0.6], [0.5, 0.5, 0.05, 0.6])
    assert commits(says, "ccd", top=3) == [{0: 1}, {2: 0, 1: 1}, {3: 1}]
    # three passes must agree: only the most certain until then
    says = script([0.99, 0.8, 0.7, 0.6], [0.5, 0.8, 0.7, 0.6], [0.5, 0.5, 0.7, 0.6])
    assert commits(says, "ccd", top=4, d=3) == [{0: 1}, {1: 1}, {2: 1, 3: 1}]
    # a cell that was not in the list before does not count
    says = script([0.99, 0.8, 0.55, 0.7], [0.5, 0.8, 0.7, 0.6], [0.5, 0.5, 0.55, 0.7])
    assert commits(says, "ccd", top=2) == [{0: 1}, {1: 1}, {2: 1, 3: 1}]


def test_ccd_averages():
    """The mean of two passes (0.85, 0.55) beats (0.3, 0.95), and names another symbol."""
    passes = ([0.99, 0.85, 0.3, 0.5], [0.5, 0.6, 0.95, 0.5], [0.5, 0.5, 0.95, 0.5], [0.5] * 4)
    assert commits(script(*passes), "ccd", rule="average")[:3] == [{0: 1}, {1: 1}, {2: 1}]
    assert commits(script(*passes), "ccd", rule="average", d=1)[:2] == [{0: 1}, {2: 1}]


class ChangesWithCell1:
    """Cell 0 has a bit more confidence than cell 1, but once cell 1 is known the others have more.

    What it says of a known cell (untrained in a real model) would make cell 0 look better.
    """

    def __call__(self, tokens, positions, rank=None):
        ones = torch.tensor([0.5, 0.72, 0.7, 0.6, 0.6]).repeat(len(tokens), 1)
        ones[tokens[:, 1] != TOY.MASK, 1] = 0.999
        ones[tokens[:, 2] != TOY.MASK] = torch.tensor([0.5, 0.8, 0.5, 0.8, 0.8])
        return torch.stack([1 - ones, ones], dim=2).log()


def test_lookum_takes_the_set_that_leaves_least_uncertainty():
    """A pool of one leaves no choice, however many paths."""
    assert commits(ChangesWithCell1(), "plain")[0] == {0: 1}
    assert commits(ChangesWithCell1(), "lookum", paths=8, cells=1, pool=2)[0] == {1: 1}
    assert commits(ChangesWithCell1(), "lookum", paths=8, cells=1, pool=1)[0] == {0: 1}


@pytest.mark.parametrize("paths, cells", ((1, 1), (2, 2), (3, 1), (4, 3)))
def test_what_lookum_costs(paths, cells):
    """Passes as plain with k cells; every state but the first is one of J that were predicted."""
    _, stats, _ = run(random_model(PUZZLES), "lookum", {"paths": paths, "cells": cells})
    assert torch.equal(stats["nfe"], -(-COUNT // cells))
    assert torch.equal(stats["tokens"], PUZZLES.S * (1 + paths * (stats["nfe"] - 1)))
