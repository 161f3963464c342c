"""LRD: what a soft mask is made of, that it reaches the model, and when refinement ends."""
import math

import pytest
import torch
from boards import ANSWERS, COUNT, PUZZLES, START, board_of, check_alone, run
from conftest import random_model

from decoders.refine import change, forward_soft, mixture
from diffusion import independent, joint


def test_a_soft_mask_by_hand():
    """a = mix (1 - H / log K); the nucleus is renormalised; no belief leaves the mask unchanged."""
    embedding, MASK = torch.randn(6, 8), PUZZLES.MASK
    probs = torch.tensor([[[0.3, 0.5, 0.05, 0.15], [0.25] * 4, [0.0, 0.0, 1.0, 0.0]]])
    soft = mixture(embedding, probs, 0.2, 0.7, PUZZLES)
    entropy = -sum(p * math.log(p) for p in (0.3, 0.5, 0.05, 0.15))
    a = 0.2 * (1 - entropy / math.log(4))
    nucleus = (0.5 * embedding[1] + 0.3 * embedding[0]) / 0.8  # 0.5 < 0.7, so one more, no third
    assert torch.allclose(soft[0, 0], (1 - a) * embedding[MASK] + a * nucleus, atol=1e-6)
    assert torch.allclose(soft[0, 1], embedding[MASK], atol=1e-6)
    assert torch.allclose(soft[0, 2], 0.8 * embedding[MASK] + 0.2 * embedding[2], atol=1e-6)


def test_change_is_the_mean_kl_of_unknown_cells():
    now = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    before = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    first, second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)
    for unknown, expected in (([True, True], (first + second) / 2), ([True, False], first)):
        found = change(now, before, torch.tensor([unknown]))
        assert found.item() == pytest.approx(expected, abs=1e-6)
    assert change(now, None, torch.tensor([[True, True]])).item() == math.inf
    assert change(now, now, torch.tensor([[True, True]])).item() == 0


@torch.no_grad()
@pytest.mark.parametrize("ranks", (joint, independent))
def test_a_certain_soft_mask_is_a_committed_cell(ranks):
    """Embeddings of MASK: what the board sees. Embeddings of symbols (mdm): as if committed."""
    model = random_model(PUZZLES)
    board = board_of(model, ranks=ranks)
    masks = model.token.weight[PUZZLES.MASK].expand(len(START), PUZZLES.A, -1)
    assert torch.equal(forward_soft(board, masks), board.forward())
    if ranks is joint:
        full = torch.cat([START[:, :PUZZLES.P], ANSWERS], dim=1)
        expected = board.predict(full, torch.arange(len(START)))
        assert torch.allclose(forward_soft(board, model.token(ANSWERS)), expected, atol=1e-5)


@pytest.mark.parametrize("stop, refine, passes, silent", (
    (0.0, 0, COUNT, 0), (0.0, 3, 3 + COUNT, 3),  # one cell each, after `refine` passes without any
    (100.0, 0, COUNT.clamp(max=2), 0),  # one cell, then the rest
    (100.0, 9, 1 + COUNT.clamp(max=2), 1)))  # stable at the second pass: one cell; then the rest
def test_when_refinement_ends(stop, refine, passes, silent):
    _, stats, history = run(random_model(PUZZLES), "lrd", {"stop": stop, "refine": refine})
    assert torch.equal(stats["nfe"], passes)
    left = [PUZZLES.blanks(now).sum(dim=1) for now in history]
    assert all(torch.equal(n, COUNT) for n in left[:silent])
    assert torch.equal(left[silent], COUNT - 1)


def test_the_mixture_matters_and_sidm_can_use_it():
    """At mix = 0 refinement changes nothing but the cost; beliefs of a random model change answers.

    Under sidm no cell sees another's belief, only its own.
    """
    model, hard = random_model(PUZZLES), {"stop": 0.0, "order": "confidence", "mix": 0.0}
    for objective in ("mdm", "sidm"):
        plain = run(model, "plain", {}, 0.0, objective)[0]
        tokens, stats, _ = run(model, "lrd", hard, 0.0, objective)
        assert torch.equal(tokens, plain) and torch.equal(stats["nfe"], COUNT + 20)
        soft = run(model, "lrd", {**hard, "refine": 0, "mix": 1.0}, 0.0, objective)[0]
        assert not torch.equal(soft, plain)


def test_neighbours_do_not_matter_at_any_temperature():
    """Samples refine for different numbers of passes; their random numbers are their own."""
    model, params = random_model(PUZZLES, seed=2), {"stop": 0.002, "mix": 0.2}
    _, stats = check_alone(lambda rows: run(model, "lrd", params, 1.0, start=START[rows]), (1, 7))
    assert len((stats["nfe"] - COUNT).unique()) > 1
