"""Blocks without training: their order, absent cells, ragged batches."""
import pytest
import torch
from boards import COUNT, PUZZLES, START, Spy, run
from conftest import random_model


@pytest.mark.parametrize("later", ("present", "absent"))
@pytest.mark.parametrize("size", (1, 3, 4))
def test_a_block_waits_for_those_before_it(size, later):
    tokens, _, history = run(random_model(PUZZLES), "block",
                             {"size": size, "later": later, "k": 2})
    number, before = torch.arange(PUZZLES.A) // size, START
    for now in history:
        unknown = PUZZLES.blanks(before)
        first = number.masked_fill(~unknown, PUZZLES.A).amin(dim=1, keepdim=True)
        changed = (now != before)[:, PUZZLES.P:]
        assert not (changed & (number != first)).any()
        in_block = (unknown & (number == first)).sum(dim=1)
        assert torch.equal(changed.sum(dim=1), in_block.clamp(max=2))
        before = now
    assert torch.equal(before, tokens)


@pytest.mark.parametrize("i", (0, 5, 11))
def test_absent_cells_are_not_in_the_pass_and_not_charged(i):
    spy, pairs, before = Spy(random_model(PUZZLES)), 0, START[i:i + 1]
    _, stats, history = run(spy, "block", {"size": 4, "later": "absent"}, start=before)
    for (fed, positions, _), now in zip(spy.fed, history, strict=True):
        unknown = PUZZLES.blanks(before)[0]
        later = unknown & (torch.arange(PUZZLES.A) // 4 > int(unknown.nonzero()[0]) // 4)
        expected = [0] + (1 + (~later).nonzero().flatten()).tolist()
        assert sorted(positions[0].tolist()) == expected
        pairs, before = pairs + len(expected), now
    assert stats["tokens"].item() == pairs


def test_for_sidm_later_cells_are_absent_anyway():
    """No unknown cell sees another: the answers are the same and cost less. For mdm they differ."""
    model = random_model(PUZZLES)
    (a, a_cost), (b, b_cost), (c, _), (d, _) = (
        run(model, "block", {"size": 4, "later": later}, objective=objective)[:2]
        for objective in ("sidm", "mdm") for later in ("present", "absent"))
    assert torch.equal(a, b) and torch.equal(a_cost["nfe"], COUNT) and not torch.equal(c, d)
    assert torch.equal(b_cost["nfe"], COUNT) and (a_cost["tokens"] > b_cost["tokens"]).all()
    assert torch.allclose(a_cost["confidence"], b_cost["confidence"], atol=1e-6)
