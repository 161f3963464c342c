"""FreeDave: plain's answer, symbol by symbol and step by step, in fewer passes."""
from pathlib import Path

import pytest
import torch
from boards import ANSWERS, BOARDS, COUNT, PUZZLES, START, Opinions, generator, run
from conftest import SOLUTION, Oracle, empty, random_model

from plumbing.checkpoint import load_model

TRAINED = Path(__file__).parents[2] / "results" / "sudoku9-cpu" / "mdm-seed0.pt"


def fraction_of_passes(model, drafts, temperature, objective="mdm", **where):
    """Assert that freedave is lossless -> the fraction of plain's passes that it took."""
    tokens, stats, history = run(model, "freedave", {"drafts": drafts}, temperature, objective,
                                 **where)
    expected, plain, plain_history = run(model, "plain", {}, temperature, objective, **where)
    assert torch.equal(tokens, expected)
    assert torch.allclose(stats["confidence"], plain["confidence"], atol=1e-5)
    assert torch.allclose(stats["order_tau"], plain["order_tau"])  # in the same order
    if len(tokens) == 1:
        assert len(history) == len(plain_history) and all(map(torch.equal, history, plain_history))
    assert (stats["nfe"] <= plain["nfe"]).all() and (stats["tokens"] >= plain["tokens"]).all()
    return stats["nfe"].sum().item() / plain["nfe"].sum().item()


def maybe_given(task, boards, p, seed):
    """Starts of many kinds: each cell of the boards is given with probability p."""
    given = torch.rand(boards.shape, generator=generator(seed)) < p
    return torch.cat([empty(task, len(boards))[:, :1], boards.where(given, task.MASK)], dim=1)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("drafts", (2, 5))
def test_lossless_on_hundreds_of_boards(boards4, drafts, temperature):
    for seed, p, count in ((0, 0.0, 100), (1, 0.3, 200)):
        start = maybe_given(BOARDS, boards4[::288 // count][:count], p, seed)
        assert fraction_of_passes(random_model(BOARDS, seed=seed), drafts, temperature,
                                  start=start, task=BOARDS) < 0.95
    fraction_of_passes(random_model(BOARDS, seed=4), drafts, temperature, "sidm",
                       start=start[:40], task=BOARDS)


@pytest.mark.parametrize("i", range(3))
def test_one_board_takes_the_same_steps(i):
    fraction_of_passes(random_model(PUZZLES, seed=i), 4, 1.0, start=START[i:i + 1])


def test_lossless_with_a_trained_model():
    """9x9, where the model knows much."""
    model, task, _ = load_model(TRAINED, "cpu")
    solution = torch.tensor([int(c) - 1 for c in SOLUTION]).expand(2, -1)
    start = maybe_given(task, solution, 0.6, seed=0)
    assert fraction_of_passes(model, 6, 0.0, start=start, task=task) < 0.75


@pytest.mark.parametrize("drafts", (1, 3, 4))
def test_what_an_oracle_costs(drafts):
    """Every draft is accepted: each state is predicted once, `drafts` of them in a pass."""
    _, stats, _ = run(Oracle(PUZZLES, START, ANSWERS), "freedave", {"drafts": drafts})
    assert torch.equal(stats["nfe"], 1 + (COUNT - 1 + drafts - 1) // drafts)
    assert torch.equal(stats["tokens"], PUZZLES.S * COUNT)


@pytest.mark.parametrize("drafts", (3, 4))
def test_drafts_use_the_random_numbers_of_their_steps(drafts):
    """At T = 1 a model whose predictions no commit can change accepts every draft, too."""
    model = Opinions(torch.randn(PUZZLES.A, PUZZLES.K, generator=generator()))
    _, stats, _ = run(model, "freedave", {"drafts": drafts}, temperature=1.0)
    assert torch.equal(stats["nfe"], 1 + (COUNT - 1 + drafts - 1) // drafts)
    fraction_of_passes(model, drafts, 1.0)
