"""Prophet and SchED: the pass at which each rule fills the rest, worked out by hand."""
import pytest
import torch
from boards import BOARDS, board_of, generator, play
from conftest import empty, keys_for, random_model

from decoders import DECODERS
from decoders.early_exit import NEVER, calibrate, gap


class Gaps:
    """A 'model' with given gaps (A,) at unknown cells, and `known` at the others.

    flip: its most likely symbol is another one in every second pass.
    """

    def __init__(self, gaps, known=0.0, flip=False):
        self.gaps, self.known, self.flip, self.calls = torch.as_tensor(gaps), known, flip, 0

    def __call__(self, tokens, positions, rank=None):
        unknown = tokens[:, 1:] == BOARDS.MASK
        best = self.calls % 2 if self.flip else 1
        self.calls += 1
        logits = torch.zeros(*unknown.shape, BOARDS.K)
        logits[..., best] = torch.where(unknown, self.gaps, self.known)
        return torch.nn.functional.pad(logits, (0, 0, 1, 0))


def passes(name, model, given=0, scale=1.0, **params):
    """On a board of 16 cells, the first `given` of them known -> forward passes until it is full"""
    start = empty(BOARDS, 1)
    start[:, 1:1 + given] = 0
    board = board_of(model, start, BOARDS)
    play(board, DECODERS[name].decode(board, scale, **params))
    return int(board.nfe)


def test_gap():
    assert gap(torch.tensor([[[1.0, 5.0, 2.5]]])).tolist() == [[2.5]]


def test_prophet_exits_by_thirds():
    """6 of 16 is the first fraction of at least 0.33, 11 of 16 the first of 0.67."""
    for g, expected in ((8.0, 1), (6.0, 7), (3.0, 12), (2.0, 16)):
        assert passes("prophet", Gaps(g)) == expected
    assert passes("prophet", Gaps(3.0), scale=0.4) == 1  # 0.4 * 7.5 = 3
    assert passes("prophet", Gaps(6.0), given=7) == 4  # 9 to find: 3 of 9 is 0.333


def test_prophet_over_the_whole_answer():
    """With `answer` committed cells count, too: mean = 4 (1 - found) never passes again."""
    assert passes("prophet", Gaps(4.0)) == 12
    assert passes("prophet", Gaps(4.0), over="answer") == 16
    assert passes("prophet", Gaps(4.0, known=4.0), over="answer") == 12
    # given cells are no part of the answer: 8 found of 12, mean (4 * 4 + 8 * 2) / 12 = 2.67
    assert passes("prophet", Gaps(4.0, known=2.0), given=4, over="answer") == 10


@pytest.mark.parametrize("schedule, g, found", [
    ("linear", 6.9, 2), ("cosine", 6.9, 4), ("exp", 6.9, 1), ("linear", 5.1, 8), ("exp", 3.6, 7)])
def test_sched_exits_by_its_schedule(schedule, g, found):
    """7.5 - 5 t, 2.5 + 2.5 (1 + cos pi t), 2.5 + 5 exp(-4 t) at t = found / 16."""
    assert passes("sched", Gaps(g), schedule=schedule) == found + 1


def test_sched_counts_the_cells_to_be_found_and_has_a_low_end():
    assert passes("sched", Gaps(5.1), given=8) == 5  # 4 of 8 is the first t of 0.48
    assert passes("sched", Gaps(2.0)) == 16
    assert passes("sched", Gaps(2.0), low=0.0) == 13  # 7.5 (1 - t) at t = 12 / 16 is 1.875


def test_one_uncertain_cell():
    """Mean and median do not see it; the least gap does, and it is the last to be committed."""
    gaps = torch.full((16,), 10.0)
    gaps[5] = 0.1
    for over, expected in (("mean", 2), ("median", 2), ("least", 16)):
        assert passes("sched", Gaps(gaps), over=over) == expected
    gaps[:7] = 0.1
    assert passes("sched", Gaps(gaps), over="mean") > 2  # 5.7
    assert passes("sched", Gaps(gaps), over="median") == 2


def test_stability():
    """Without the clause a first guess may do; with it a model that wavers never exits."""
    for flip, stable, expected in ((False, "no", 1), (False, "yes", 2), (True, "no", 1),
                                   (True, "yes", 16)):
        assert passes("sched", Gaps(8.0, flip=flip), stable=stable) == expected


@torch.no_grad()
@pytest.mark.parametrize("name", ("prophet", "sched"))
def test_calibrate_finds_the_smallest_scale_that_changes_nothing(name):
    start, decode = empty(BOARDS, 24), DECODERS[name].decode
    start[:, 1:] = torch.where(torch.rand(24, 16, generator=generator()) < 0.3, 0, start[:, 1:])
    model, keys, scales = random_model(BOARDS), keys_for(start), (0.01, 0.05, 0.1, 0.15, 0.2, 0.5)

    def fresh():
        return board_of(model, start, BOARDS, keys=keys)

    def answers(scale):
        play(board := fresh(), decode(board, scale))
        return board.symbols

    same = {s: (answers(s) == answers(NEVER)).all(dim=1).double().mean() for s in scales}
    found = calibrate(decode, fresh, reversed(scales), fraction=0.8)
    assert found == min(s for s in scales if same[s] >= 0.8) and scales[0] < found
    assert calibrate(decode, fresh, scales[:1], fraction=0.8) == NEVER
