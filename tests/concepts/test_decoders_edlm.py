"""EDLM: with true models the picked drafts follow the joint; with one draft nothing is picked."""
import json

import pytest
import torch
from conftest import ToyTask, TrueConditionals, empty, keys_for, random_model, task_config

from data import make_task
from decoders.edlm import edlm, log_likelihood, main
from diffusion import joint
from model import CAUSAL
from plumbing.cli import run

TASK = ToyTask()
# four bits, the first two equal, the last two equal: the joint is not the product of its marginals
SUPPORT = torch.tensor([[a, a, b, b] for a in (0, 1) for b in (0, 1)])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


class TrueNext:
    """A next-token 'model' of support and weights: TrueConditionals, asked prefix by prefix."""

    def __init__(self, task, support, weights):
        self.task, self.true = task, TrueConditionals(task, support, weights)

    def __call__(self, tokens, positions, rank=None):
        P, A, out = self.task.P, self.task.A, []
        for have in range(A):
            board = torch.full((len(tokens), self.task.S), self.task.MASK)
            board[:, :P + have] = tokens[:, :P + have]
            logits = self.true(board, torch.arange(self.task.S))[:, P + have]
            out.append(logits.nan_to_num(0.0))  # behind a prefix that no member has
        logits = torch.stack(out, dim=1)  # (R, A, K), at positions P - 1, P, ...
        return torch.nn.functional.pad(logits, (0, 0, P - 1, 0))


def shares(passes, drafts, count=4000):
    """-> the share of each member of SUPPORT among the answers, and of all of them."""
    start = empty(TASK, count)
    tokens, stats = edlm(TrueConditionals(TASK, SUPPORT, WEIGHTS), TrueNext(TASK, SUPPORT, WEIGHTS),
                         TASK, joint, start, keys_for(start), passes, drafts)
    assert not (tokens == TASK.MASK).any()
    found = (tokens[:, None, TASK.P:] == SUPPORT).all(dim=2).float().mean(dim=0)
    return found, found.sum().item(), stats


def test_the_likelihood_is_the_joint():
    tokens = torch.cat([torch.full((4, 1), TASK.BOS), SUPPORT], dim=1)
    found = log_likelihood(TrueNext(TASK, SUPPORT, WEIGHTS), TASK, tokens, CAUSAL)
    assert torch.allclose(found.exp(), WEIGHTS / 10, atol=1e-5)


def test_picked_drafts_follow_the_joint():
    """In one round: of one draft three in ten are answers at all; of 64 nearly always one is, and
    each comes as often as it should (with the energy's sign turned the rare ones would)."""
    _, alone, _ = shares(1, 1)
    assert alone == pytest.approx((0.7**2 + 0.3**2) * (0.6**2 + 0.4**2), abs=0.036)  # 5 sigma
    found, valid, stats = shares(1, 64)
    assert valid > 0.999
    assert (found - WEIGHTS / 10).abs().max() < 0.04  # 5 sigma
    assert (stats["nfe"] == 2).all() and (stats["tokens"] == TASK.S + 64 * (TASK.S - 1)).all()


def test_more_drafts_more_valid():
    valid = [shares(2, drafts)[1] for drafts in (1, 2, 4, 16)]
    assert valid == sorted(valid) and valid[-1] > 0.99 and valid[0] < 0.8


@pytest.mark.parametrize("passes", (1, 3, 4))
def test_one_draft_is_parallel_decoding_in_a_random_order(passes):
    """Every round commits its share; the verifier is not asked; a sample is nobody's neighbour."""
    model, start = random_model(TASK), empty(TASK, 30)
    keys = keys_for(start)
    tokens, stats = edlm(model, None, TASK, joint, start, keys, passes, 1)
    alone, _ = edlm(model, None, TASK, joint, start[7:8], keys[7:8], passes, 1)
    assert torch.equal(alone[0], tokens[7])
    assert (stats["nfe"] == passes).all() and (stats["tokens"] == passes * TASK.S).all()
    if passes == 4:  # one cell a round: the chain rule, whatever is drafted
        start = empty(TASK, 4000)
        true = TrueConditionals(TASK, SUPPORT, WEIGHTS)
        tokens, _ = edlm(true, None, TASK, joint, start, keys_for(start), 4, 1)
        found = (tokens[:, None, TASK.P:] == SUPPORT).all(dim=2).float().mean(dim=0)
        assert found.sum() > 0.999 and (found - WEIGHTS / 10).abs().max() < 0.04


def test_the_program(tiny_checkpoints, capsys):
    pair = ["--draft", str(tiny_checkpoints["mdm"]), "--verify", str(tiny_checkpoints["ar"]),
            "--device", "cpu"]
    assert not run(main, [*pair, "--num", "5", "--passes", "99", "--drafts", "3"])
    said = json.loads(capsys.readouterr().out)
    task = make_task(task_config("sudoku-gen"))
    assert said["passes"] == 99 and said["nfe"] == 2 * task.A and said["num"] == 5
    assert said["tokens"] == task.A * (task.S + 3 * (task.S - 1))
    for argv, words in ((["--drafts", "0"], "--drafts"), (["--passes", "0"], "--passes")):
        assert run(main, [*pair, *argv]) == 2
        assert words in capsys.readouterr().err
