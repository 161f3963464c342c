"""Exercise 3, three rankings, on five cells: the 3rd, known, the 1st, known, the 2nd."""
import stubs  # noqa: F401
import torch

from diffusion import independent, joint, semi_causal

LEVEL = torch.tensor([[3, -1, 1, 0, 2]])
KNOWN, UNKNOWN = [1, 3], [2, 4, 0]  # the unknown cells in their order


def test_mdm_everything_sees_everything():
    """None says so, and so does a tensor with one rank for all cells that is not above 0."""
    rank = joint(LEVEL, 5)
    assert rank is None or len(set(rank[0].tolist())) == 1 and rank.max() <= 0


def test_sidm_known_cells_see_each_other_and_no_others():
    rank = independent(LEVEL, 5)[0]
    assert set(rank[KNOWN].tolist()) == {0}


def test_sidm_unknown_cells_see_the_known_and_not_each_other():
    rank = independent(LEVEL, 5)[0]
    assert rank.shape == (5,) and len(set(rank[UNKNOWN].tolist())) == 1 and rank[0] > 0


def test_scdm_known_cells_see_each_other_and_no_others():
    rank = semi_causal(LEVEL, 5)[0]
    assert set(rank[KNOWN].tolist()) == {0} and rank[UNKNOWN].min() > 0


def test_scdm_unknown_cells_see_those_before_them():
    first, second, third = semi_causal(LEVEL, 5)[0, UNKNOWN].tolist()
    assert 0 < first < second < third


def test_the_same_ranking_without_W():
    """Decoding calls a ranking with the levels alone."""
    assert joint(LEVEL) is None or not joint(LEVEL).any()
    assert torch.equal(independent(LEVEL), independent(LEVEL, 5))
    assert torch.equal(semi_causal(LEVEL), semi_causal(LEVEL, 5))
