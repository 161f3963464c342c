"""Exercise 6, the star graph 0 -> 1 -> 2 -> 3 and 0 -> 4 -> 5 -> 6, edges shuffled, goal 3 or 6."""
import pytest
import stubs  # noqa: F401
import torch

from course.ex6 import chance_level, fork_and_after

EDGES = [5, 6, 0, 1, 1, 2, 0, 4, 2, 3, 4, 5]
PROMPT = torch.tensor([EDGES + [0, 3], EDGES + [0, 6]])


def test_chance_on_a_star_is_one_of_its_arms():
    assert chance_level(PROMPT, 4) == pytest.approx(1 / 2)
    three = torch.tensor([[0, 1, 0, 2, 0, 3, 0, 2]])
    assert chance_level(three, 2) == pytest.approx(1 / 3)


def test_chance_counts_steps():
    assert chance_level(PROMPT, 3) == 0 and chance_level(PROMPT, 5) == 0


def test_chance_with_forks_further_on():
    """0 -> 1 or 2; 1 -> 3; 2 -> 3 or 4: to 3 with probability 1/2 + 1/4."""
    graph = torch.tensor([[0, 1, 0, 2, 1, 3, 2, 3, 2, 4, 0, 3]])
    assert chance_level(graph, 3) == pytest.approx(3 / 4)


def test_right_paths():
    answers = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]])
    assert fork_and_after(PROMPT, answers) == pytest.approx((1, 1))


def test_the_wrong_arm_walked_well():
    """What a model that guesses at the fork does: after it, nothing is wrong."""
    answers = torch.tensor([[0, 4, 5, 6], [0, 4, 5, 6]])
    assert fork_and_after(PROMPT, answers) == pytest.approx((1 / 2, 1))


def test_the_right_arm_walked_badly():
    answers = torch.tensor([[0, 1, 2, 6], [0, 4, 6, 6]])
    assert fork_and_after(PROMPT, answers) == pytest.approx((1, 1 / 4))
