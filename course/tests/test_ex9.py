"""Exercise 9, an objective of your own. These tests also need exercises 1, 3 and 5.

(An objective that uses other parts needs their exercises: random masks need exercise 2.)
"""
import pytest
import stubs  # noqa: F401
import torch

import train
from config import Config
from course.ex9 import sixth
from data import make_task
from model import CAUSAL, visible
from mtp import next_token_ranks
from noise import sample_keys
from objectives import OBJECTIVES, make_sampling_params
from sample import decode, decode_next_token


@pytest.fixture
def trained(monkeypatch):
    """-> name, Objective, task, model after three steps, their losses."""
    name, objective = sixth()
    assert name not in OBJECTIVES
    monkeypatch.setitem(OBJECTIVES, name, objective)
    config = Config(objective=name, task="star", path_len=4, labels=11, width=16, depth=1, heads=2,
                    batch_size=32, max_steps=3, device="cpu")
    task, exact = make_task(config), torch.autocast("cpu", enabled=False)
    state = train.make_state(config, task, torch.device("cpu"), exact)
    step = train.make_step(state)
    return name, objective, task, state.model, [step(1.0).item() for _ in range(3)]


def test_it_trains(trained):
    assert all(torch.tensor(trained[4]).isfinite()) and trained[4][0] != trained[4][2]


def test_it_decodes(trained):
    name, objective, task, model, _ = trained
    start, sampling = task.test_set(4)[0], make_sampling_params(name, task)
    keys = sample_keys(0, start, copies_differ=True)
    if objective.next_token:
        tokens, _ = decode_next_token(model, task, name, start, sampling.temperature, keys)
    else:
        tokens, _ = decode(model, task, name, start, sampling, keys)
    assert tokens.shape == start.shape and tokens[:, task.P:].max() < task.K


def ranks_of(objective, task):
    """Its ranks in two situations: a random order, and the last cells with a window of 2."""
    if objective.next_token:
        rank = next_token_ranks(objective.ranks, task, "cpu")
        return [torch.arange(1, task.S + 1) if rank is CAUSAL else rank]
    situations = (torch.tensor([[2, -1, 1, 0]]), 4), (torch.tensor([[0, 1, 2, 3]]), 2)
    ranks = [objective.ranks(level, W) for level, W in situations]
    return [torch.zeros(1, 4) if rank is None else rank for rank in ranks]


def test_who_sees_whom_differs_from_all_five(trained):
    name, objective, task, _, _ = trained
    own = [visible(rank) for rank in ranks_of(objective, task)]
    for other in set(OBJECTIVES) - {name}:
        if OBJECTIVES[other].next_token == objective.next_token:
            theirs = [visible(rank) for rank in ranks_of(OBJECTIVES[other], task)]
            assert not all(map(torch.equal, own, theirs)), f"that is {other}"
