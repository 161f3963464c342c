"""Exercise 1, visible: matrices by hand, row q, column k, `x` where q may look at k."""
import math

import pytest
import stubs  # noqa: F401
import torch

from model import visible


def matrix(rank):
    return ["".join("x" if k else "." for k in row) for row in visible(torch.tensor(rank)).tolist()]


def test_all_zero_is_full_attention():
    assert matrix([0, 0, 0]) == ["xxx", "xxx", "xxx"]


def test_a_row_of_ranks_is_causal_attention():
    assert matrix([1, 2, 3, 4]) == ["x...", "xx..", "xxx.", "xxxx"]


def test_equal_ranks_above_0_do_not_see_each_other():
    assert matrix([0, 1, 1, 2]) == ["x...", "xx..", "x.x.", "xxxx"]


def test_equal_ranks_up_to_0_do():
    assert matrix([-1, -1, 0, 0]) == ["xx..", "xx..", "xxxx", "xxxx"]


def test_infinity_is_seen_by_nobody_and_sees_all_but_its_like():
    assert matrix([0.0, 0.0, math.inf, math.inf]) == ["xx..", "xx..", "xxx.", "xx.x"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_any_number_of_leading_dimensions_and_any_real_type(dtype):
    rank = torch.tensor([[[0, 1, 2]], [[2, 1, 1]]], dtype=dtype)
    sees = visible(rank)
    assert sees.shape == (2, 1, 3, 3) and sees.dtype == torch.bool
    assert sees[1, 0].tolist() == [[True, True, True], [False, True, False], [False, False, True]]
