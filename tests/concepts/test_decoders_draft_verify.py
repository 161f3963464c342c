"""FreeDave: plain's answer, symbol by symbol and step by step, in fewer passes."""
from pathlib import Path

import pytest
import torch
from conftest import SOLUTION, Oracle, empty, random_model, task_config
from test_decoders import puzzles, run  # noqa: F401

from data import make_task
from plumbing.checkpoint import load_model

TRAINED = Path(__file__).parents[2] / "results" / "sudoku9-cpu" / "mdm-seed0.pt"


def assert_lossless(model, task, start, drafts, temperature, objective="mdm"):
    """-> share of plain's passes that freedave took."""
    tokens, stats, history = run(model, task, start, "freedave", {"drafts": drafts}, temperature,
                                 objective)
    expected, plain, plain_history = run(model, task, start, "plain", {}, temperature, objective)
    assert torch.equal(tokens, expected)
    assert torch.allclose(stats["confidence"], plain["confidence"], atol=1e-5)
    assert torch.allclose(stats["order_tau"], plain["order_tau"])  # in the same order
    if len(start) == 1:
        assert all(torch.equal(a, b) for a, b in zip(history, plain_history, strict=True))
    assert (stats["nfe"] <= plain["nfe"]).all() and (stats["tokens"] >= plain["tokens"]).all()
    return stats["nfe"].sum().item() / plain["nfe"].sum().item()


def maybe_given(task, boards, share, seed):
    """Starts of many kinds: each cell of the boards is given with probability `share`."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(boards.shape, generator=generator) < share
    return torch.cat([empty(task, len(boards))[:, :1], boards.where(given, task.MASK)], dim=1)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("drafts", (2, 5))
def test_lossless_on_hundreds_of_boards(boards4, drafts, temperature):
    task = make_task(task_config())
    for seed, share, count in ((0, 0.0, 100), (1, 0.3, 200)):
        start = maybe_given(task, boards4[::288 // count][:count], share, seed)
        passes = assert_lossless(random_model(task, seed=seed), task, start, drafts, temperature)
        assert passes < 0.95
    assert_lossless(random_model(task, seed=4), task, start[:40], drafts, temperature, "sidm")


def test_one_board_takes_the_same_steps(puzzles):  # noqa: F811
    task, start, _ = puzzles
    for i in range(3):
        assert_lossless(random_model(task, seed=i), task, start[i:i + 1], 4, 1.0)


def test_lossless_with_a_trained_model():
    """9x9, where the model knows much."""
    model, task, _ = load_model(TRAINED, "cpu")
    solution = torch.tensor([int(c) - 1 for c in SOLUTION]).expand(2, -1)
    start = maybe_given(task, solution, 0.6, seed=0)
    assert assert_lossless(model, task, start, 6, 0.0) < 0.75


@pytest.mark.parametrize("drafts", (1, 3, 4))
def test_what_an_oracle_costs(puzzles, drafts):  # noqa: F811
    """Every draft is accepted: each state is looked at once, `drafts` of them in a pass."""
    task, start, answers = puzzles
    _, stats, _ = run(Oracle(task, start, answers), task, start, "freedave", {"drafts": drafts})
    u = task.blanks(start).sum(dim=1)
    assert torch.equal(stats["nfe"], 1 + (u - 1 + drafts - 1) // drafts)
    assert torch.equal(stats["tokens"], task.S * u)


@pytest.mark.parametrize("drafts", (3, 4))
def test_drafts_are_drawn_with_the_random_numbers_of_their_steps(puzzles, drafts):  # noqa: F811
    """At T = 1 a model that no commit can change its mind accepts every draft, too."""
    task, start, _ = puzzles
    belief = torch.randn(task.S, task.K, generator=torch.Generator().manual_seed(0))

    def model(tokens, positions, rank=None):
        return belief[positions].expand(len(tokens), -1, -1)

    _, stats, _ = run(model, task, start, "freedave", {"drafts": drafts}, temperature=1.0)
    u = task.blanks(start).sum(dim=1)
    assert torch.equal(stats["nfe"], 1 + (u - 1 + drafts - 1) // drafts)
    assert_lossless(model, task, start, drafts, 1.0)
