"""studies/exact.py: the truth it compares with, against enumeration; its table in miniature."""
import json
import math
from collections import Counter

import pytest
import torch
from boards import BOARDS, board_of, generator
from conftest import TrueConditionals, empty, random_model

from decoders import DECODERS
from metrics import wilson
from plumbing.cli import run
from studies import exact

MASK, POSITIONS = BOARDS.MASK, torch.arange(17)


def some_states(support, count):
    """Members with random cells unknown, and more of those known later -> before, after."""
    g = generator()
    member = support[torch.randint(len(support), (count,), generator=g)]
    first, second = torch.rand(2, count, 16, generator=g)
    p = torch.rand(2, count, 1, generator=g)
    after = member.masked_fill(first < p[0], MASK)
    return after.masked_fill(second < p[1], MASK), after


def entropy(patterns):
    count = Counter(patterns)
    return -sum(n / len(patterns) * math.log(n / len(patterns)) for n in count.values())


@pytest.mark.parametrize("kind", ("boards", "squares"))
def test_the_error_of_a_pass_is_enumerated_and_bounded(kind, boards4):
    support = boards4 if kind == "boards" else exact.latin_squares()
    before, after = some_states(support, 40)
    error, bound = exact.pass_error(before, after, support, BOARDS.K)
    assert (error <= bound + 1e-12).all() and (error > 0.1).sum() > 5
    for b, a, e, limit in zip(before.tolist(), after.tolist(), error, bound, strict=True):
        fits = [m for m in support.tolist() if all(x in (MASK, y) for x, y in zip(b, m))]
        now = [i for i in range(16) if b[i] == MASK != a[i]]
        H = [entropy([m[i] for m in fits]) for i in now]
        joint = entropy([tuple(m[i] for i in now) for m in fits])
        assert e.item() == pytest.approx(sum(H) - joint, abs=1e-9)
        assert limit.item() == pytest.approx(sum(H) - max(H, default=0.0), abs=1e-9)


def test_conditionals(boards4):
    """As enumerated; uniform where nothing fits; and right again once the wrong cell is undone.

    The shapes are those of model.Transformer.
    """
    model = exact.Conditionals(BOARDS, boards4)
    tokens = torch.cat([torch.full((30, 1), BOARDS.BOS), some_states(boards4, 30)[0]], dim=1)

    def probs(by, tokens):
        return by(tokens, POSITIONS)[:, 1:].softmax(dim=-1)

    expected = probs(TrueConditionals(BOARDS, boards4), tokens)
    assert torch.allclose(probs(model, tokens), expected, atol=1e-6)
    broken = tokens.clone()
    broken[:, 1:3] = 0  # the same digit twice in a row
    assert (probs(model, broken) == 0.25).all()
    broken[:, 1:3] = tokens[:, 1:3]
    assert torch.allclose(probs(model, broken), expected, atol=1e-6)
    assert model(tokens, POSITIONS).shape == random_model(BOARDS)(tokens, POSITIONS).shape
    with pytest.raises(ValueError, match="needs_network"):
        model(tokens[:, :5], POSITIONS[:5])


def test_a_board_can_leave_its_dead_end(boards4):
    """Commit what fits nothing, undo it: forward() knows the truth again."""
    board = board_of(exact.Conditionals(BOARDS, boards4), empty(BOARDS, 1), BOARDS)
    first, cells = board.forward(), torch.arange(16).unsqueeze(0) < 2
    board.commit(cells, torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16))
    assert (board.forward() == 0).all()
    board.undo(cells)
    assert torch.equal(board.forward(), first)


def test_latin_squares(boards4):
    squares = exact.latin_squares()
    assert squares.shape == (576, 16) and len(squares.unique(dim=0)) == 576
    sides = squares.view(-1, 4, 4)
    for lines in (sides, sides.transpose(1, 2)):
        assert (lines.sort(dim=2).values == torch.arange(4)).all()
    assert exact.fitting(boards4, squares, 4).sum(dim=1).eq(1).all()  # each board is a square


def test_total_variation():
    for counts, num, expected in (([2, 2], 4, 0), ([4, 0], 4, 0.5), ([1, 1], 4, 0.5),
                                  ([0, 0], 4, 1)):  # no answer is a member
        assert exact.total_variation(torch.tensor(counts).float(), num) == expected
    assert exact.null_distribution(2, 1, seed=0) == [0.5, 0.5, 0.5]
    mean, low, high = exact.null_distribution(288, 3000, seed=0)
    assert mean == pytest.approx((288 / (2 * math.pi * 3000)) ** 0.5, rel=0.02)
    assert low < mean < high < 1.1 * mean


@torch.no_grad()
def test_what_the_table_says(boards4):
    """One at a time is exact; two at a time is not; a threshold commits only what is determined.

    The seed is one at which the true samplers are inside their range: one in forty lies above it.
    """
    one, two, sure, bound = (exact.measure(BOARDS, boards4, name, params, 1500, seed=4) for
                             name, params in (("plain", {"k": 1}), ("plain", {"k": 2}),
                                              ("threshold", {"tau": 0.9}), ("eb", {})))
    _, low, high = exact.null_distribution(288, 1500, seed=0)
    for row in (one, sure, bound):
        assert low < row["tv"] < high and row["members"] == 1500
        assert row["error_nats"] < 1e-9
    assert one["nfe"] == 16 and sure["nfe"] < 12 and bound["nfe"] < sure["nfe"]
    assert two["tv"] > 2 * high and two["nfe"] == 8 and two["error_nats"] > 0.5
    assert wilson(two["members"], 1500)[1] < 0.2


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in DECODERS if not DECODERS[name].needs_network])
def test_every_decoder_is_in_the_table(name, boards4):
    """With its defaults; the bound of those that commit from the product of marginals holds."""
    assert len(exact.sweep(name)) > 1
    row = exact.measure(BOARDS, boards4, name, {}, 40, seed=0)
    assert 0 < row["members"] <= 40 and 0 <= row["tv"] <= 1 and row["nfe"] >= 1
    assert ("excess_nats" in row) == (name in exact.BOUNDED)
    assert row.get("excess_nats", 0) <= exact.EXCESS


@torch.no_grad()
@pytest.mark.parametrize("name, params", [("med", {"lam": 1.0}), ("eb", {"gamma": 1.0})])
def test_the_bound_holds_where_it_is_needed(name, params, boards4):
    """Here passes do err; eb's stay below gamma. Lost boards are not counted."""
    row = exact.measure(BOARDS, boards4, name, params, 100, seed=0)
    assert 0.5 < row["error_nats"] < row["bound_nats"] and row["members"] < 50
    assert row["excess_nats"] <= exact.EXCESS
    assert name == "med" or row["largest_bound_nats"] < params["gamma"]


def test_the_program(tmp_path, capsys):
    file = tmp_path / "exact.json"
    assert not exact.main(["--num", "60", "--decoder", "threshold", "--json", str(file)])
    out, report = capsys.readouterr().out, json.loads(file.read_text())
    assert [part["size"] for part in report] == [288, 576] and "the bound holds" in out
    taus = [r["decoder_params"]["tau"] for r in report[0]["rows"]]
    assert taus == [0.5, 0.7, 0.9, 0.95, 0.99, 0.999]
    assert "tau = 0.7 0.9 0.95 0.99 0.999 " in out  # equal in every number: one line
    assert f"{report[0]['rows'][0]['tv']:.3f}" in out
    assert run(exact.main, ["--decoder", "p2"]) == 2
    assert "uses the inside of a network" in capsys.readouterr().err
