"""EDLM: with true models the picked drafts follow the joint; with one draft nothing is picked."""
import json

import pytest
import torch
from boards import BOARDS, TOY, check_alone
from conftest import TrueConditionals, empty, keys_for, random_model

from diffusion import joint
from model import CAUSAL
from plumbing.cli import run
from studies.edlm import edlm, log_likelihood, main

# four bits, the first two equal, the last two equal: the joint is not the product of its marginals
SUPPORT = torch.tensor([[a, a, b, b] for a in (0, 1) for b in (0, 1)])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
TRUE = TrueConditionals(TOY, SUPPORT, WEIGHTS)


def true_next(tokens, positions, rank=None):
    """A next-token 'model' of SUPPORT and WEIGHTS: TRUE, asked prefix by prefix."""
    out = []
    for have in range(TOY.A):
        board = torch.full((len(tokens), TOY.S), TOY.MASK)
        board[:, :1 + have] = tokens[:, :1 + have]
        logits = TRUE(board, torch.arange(TOY.S))[:, 1 + have]
        out.append(logits.nan_to_num(0.0))  # behind a prefix that no member has
    return torch.stack(out, dim=1)  # (R, A, K), at positions P - 1, P, ...


def found(passes, drafts, count=4000, verifier=true_next):
    """-> the fraction of each member of SUPPORT among the answers, and of all of them; stats."""
    start = empty(TOY, count)
    tokens, stats = edlm(TRUE, verifier, TOY, joint, start, keys_for(start), passes, drafts)
    assert not (tokens == TOY.MASK).any()
    each = (tokens[:, None, 1:] == SUPPORT).all(dim=2).float().mean(dim=0)
    return each, each.sum().item(), stats


def test_the_likelihood_is_the_joint():
    tokens = torch.cat([torch.full((4, 1), TOY.BOS), SUPPORT], dim=1)
    likelihood = log_likelihood(true_next, TOY, tokens, CAUSAL).exp()
    assert torch.allclose(likelihood, WEIGHTS / 10, atol=1e-5)


def test_picked_drafts_follow_the_joint():
    """In one round: of one draft three in ten are answers at all; of 64 nearly always one is, and
    each comes as often as it should (with the energy's sign turned the rare ones would)."""
    assert found(1, 1)[1] == pytest.approx((0.7**2 + 0.3**2) * (0.6**2 + 0.4**2), abs=0.036)
    each, valid, stats = found(1, 64)
    assert valid > 0.999
    assert (each - WEIGHTS / 10).abs().max() < 0.04  # 5 sigma, as above
    assert (stats["nfe"] == 2).all() and (stats["tokens"] == TOY.S + 64 * (TOY.S - 1)).all()


def test_more_drafts_more_valid():
    valid = [found(2, drafts)[1] for drafts in (1, 2, 4, 16)]
    assert valid == sorted(valid) and valid[-1] > 0.99 and valid[0] < 0.8


@pytest.mark.parametrize("passes", (1, 3, 4))
def test_one_draft_is_parallel_decoding_in_a_random_order(passes):
    """The verifier is not asked. One cell a round: the chain rule, whatever is drafted."""
    model, start = random_model(TOY), empty(TOY, 30)
    keys = keys_for(start)
    _, stats = check_alone(lambda rows: edlm(model, None, TOY, joint, start[rows], keys[rows],
                                             passes, 1), (7,))
    assert (stats["nfe"] == passes).all() and (stats["tokens"] == passes * TOY.S).all()
    if passes == 4:
        each, valid, _ = found(4, 1, verifier=None)
        assert valid > 0.999 and (each - WEIGHTS / 10).abs().max() < 0.04


def test_the_program(tiny_checkpoints, capsys):
    pair = ["--draft", str(tiny_checkpoints["mdm"]), "--verify", str(tiny_checkpoints["ar"]),
            "--device", "cpu"]
    assert not run(main, [*pair, "--num", "5", "--passes", "99", "--drafts", "3"])
    said = json.loads(capsys.readouterr().out)
    assert said["passes"] == 99 and said["nfe"] == 2 * BOARDS.A and said["num"] == 5
    assert said["tokens"] == BOARDS.A * (BOARDS.S + 3 * (BOARDS.S - 1))
    for argv, words in ((["--drafts", "0"], "--drafts"), (["--passes", "0"], "--passes")):
        assert run(main, [*pair, *argv]) == 2
        assert words in capsys.readouterr().err
