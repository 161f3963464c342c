"""Ceilings that know the answer, and what is trained to decode: filter, policy, two losses."""
import pytest
import torch
from conftest import Oracle, keys_for, random_model, task_config

from data import make_task
from decoders.board import Board
from decoders.oracle import oracle_decode, oracle_order


@pytest.fixture(scope="module")
def puzzles(data_dir):
    """4x4 puzzles, each with another number of givens, and their answers."""
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, answers = task.test_set(12)
    return task, start, answers


def board_of(model, task, start):
    return Board(model, task, lambda turn: None, start, keys_for(start))


@torch.no_grad()
def finish(board, loop):
    """Run a decoder to its end -> the board."""
    for _ in loop:
        pass
    return board


# -- ceilings --


def test_egp_on_an_oracle_ends_in_one_pass(puzzles):
    task, start, answers = puzzles
    board = board_of(Oracle(task, start, answers), task, start)
    finish(board, oracle_decode(board, answers))
    assert torch.equal(board.symbols, answers) and (board.nfe == 1).all()


@torch.no_grad()
def test_ceilings_commit_guesses_and_prefer_right_ones(puzzles):
    """Step by step, of a model that knows nothing: all right ones, the surest k of them, or one."""
    task, start, answers = puzzles
    model = random_model(task)
    for k in (None, 1, 2):
        board = board_of(model, task, start)
        loop = oracle_order(board, answers, k) if k else oracle_decode(board, answers)
        seen_stuck = False
        while board.unknown.any():
            unknown, before = board.unknown, board.tokens.clone()
            confidence, symbols = model(before, board.positions)[:, task.P:].softmax(-1).max(-1)
            right = unknown & (symbols == answers)
            next(loop)
            new = unknown & ~board.unknown
            assert (board.symbols == symbols)[new].all()
            for i in unknown.any(dim=1).nonzero().flatten():
                if right[i].any():
                    many = right[i].sum() if k is None else min(k, int(right[i].sum()))
                    assert (right[i] | ~new[i]).all() and new[i].sum() == many
                    left_out = confidence[i].masked_fill(new[i] | ~right[i], -1)
                    assert confidence[i][new[i]].min() >= left_out.max()
                else:
                    seen_stuck = True
                    best = confidence[i].masked_fill(~unknown[i], -1).argmax()
                    assert new[i].nonzero().flatten().tolist() == [int(best)]
        assert seen_stuck  # or this test has not seen the hard case


def test_force_reaches_the_answer_and_no_reference_is_no_help(puzzles):
    task, start, answers = puzzles
    board = board_of(random_model(task), task, start)
    finish(board, oracle_decode(board, answers, force=True))
    assert torch.equal(board.symbols, answers)
    for loop in (oracle_decode, oracle_order):
        board = board_of(random_model(task), task, start)
        finish(board, loop(board, torch.full_like(answers, -1)))
        assert torch.equal(board.nfe, task.blanks(start).sum(dim=1))  # one cell a pass


def test_ceilings_do_not_mind_neighbours(puzzles):
    task, start, answers = puzzles
    for loop in (oracle_decode, oracle_order):
        board = board_of(random_model(task), task, start)
        finish(board, loop(board, answers))
        for i in (0, 5, 11):
            alone = board_of(random_model(task), task, start[i:i + 1])
            finish(alone, loop(alone, answers[i:i + 1]))
            assert torch.equal(alone.tokens[0], board.tokens[i])
            assert alone.nfe[0] == board.nfe[i] and alone.fed[0] == board.fed[i]
