"""Exercise 8, the exact sampler, on boards of three cells that can be counted by hand."""
import math

import pytest
import stubs  # noqa: F401
import torch

from course.ex8 import dependence, entropy_bound, law, over_steps, total_variation
from data.puzzles import all_boards_4x4

# The last cell repeats the first; the second is free.
BOARDS = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_one_cell_per_step_is_the_truth(order):
    assert law(BOARDS, order, 1).tolist() == pytest.approx([1 / 4] * 4)


def test_two_cells_that_depend_on_each_other():
    """First and last together: half of what is made has another last cell than the first."""
    q = law(BOARDS, [0, 2, 1], 2)
    assert q.tolist() == pytest.approx([1 / 8] * 4)
    assert total_variation(q) == pytest.approx(1 / 2)


def test_two_cells_that_do_not():
    q = law(BOARDS, [0, 1, 2], 2)
    assert q.tolist() == pytest.approx([1 / 4] * 4) and total_variation(q) == pytest.approx(0)


def test_total_variation_on_the_boards_alone():
    q = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.double)
    assert total_variation(q) == pytest.approx(1 / 4)


def test_dependence_and_its_bound():
    """In nats: log 2 for a cell and its copy, 0 for free ones; the bound sees no difference."""
    assert dependence(BOARDS, [0, 2]) == pytest.approx(math.log(2))
    assert dependence(BOARDS, [0, 1]) == pytest.approx(0, abs=1e-9)
    assert entropy_bound(BOARDS, [0, 2]) == pytest.approx(math.log(2))
    assert entropy_bound(BOARDS, [0, 1]) == pytest.approx(math.log(2))
    assert entropy_bound(BOARDS, [0, 1, 2]) == pytest.approx(2 * math.log(2))
    certain = torch.cat([BOARDS, torch.zeros(4, 1, dtype=torch.long)], dim=1)
    assert entropy_bound(certain, [0, 3]) == pytest.approx(0, abs=1e-9)  # H = log 2 and 0


def test_the_losses_of_the_steps_add_up_to_the_divergence():
    """KL(1/M || law) = the sum over steps of dependence(), and the bound is above: 288 boards."""
    boards = torch.tensor(all_boards_4x4())
    q, order = law(boards, range(16), 2), list(range(16))
    kl = -(q * len(boards)).log().mean().item()
    assert over_steps(boards, order, 2, dependence) == pytest.approx(kl)
    assert over_steps(boards, order, 2, entropy_bound) > kl
