"""Every decoder: with its null settings it equals plain, an oracle solves with it, it ends.

What makes each of them itself is tested in test_decoders_FAMILY.py.
"""
import re
from pathlib import Path

import pytest
import torch
from boards import (ANSWERS, BLANKS, BOARDS, COUNT, PUZZLES, START, board_of, check_alone,
                    params_of, run)
from conftest import Oracle, empty, keys_for, random_model

import decoders
from decoders.board import top_cells
from errors import BadInput
from objectives import make_sampling_params
from sample import decode

NAMES = list(decoders.DECODERS)
README = Path(decoders.__file__).with_name("README.md").read_text(encoding="utf-8")
every_decoder = pytest.mark.parametrize("name", NAMES)
NULLS = [*((name, spec.null, "mdm") for name, spec in decoders.DECODERS.items()),
         *(("ccd", {"d": 1, "order": "confidence", "rule": rule, "top": 9}, "mdm")
           for rule in ("average", "both")),
         ("lrd", decoders.DECODERS["lrd"].null, "sidm"), ("dkv", {"refresh": 1}, "sidm"),
         ("freecache", {"refresh": 1}, "sidm")]


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("name, null, objective", NULLS)
def test_null_equals_plain(name, null, objective, temperature):
    """Bit for bit, step by step; for a network with every option."""
    model = random_model(PUZZLES)
    model.loops, model.blocks[0].attn.qk_norm = 2, True
    tokens, stats, history = run(model, name, null, temperature, objective)
    expected, plain, steps = run(model, "plain", {}, temperature, objective)
    assert torch.equal(tokens, expected) and len(history) == len(steps)
    assert all(map(torch.equal, history, steps))
    assert torch.equal(stats["confidence"], plain["confidence"])


@every_decoder
def test_an_oracle_solves_with_every_decoder(name):
    model, start, answers = Oracle(PUZZLES, START, ANSWERS), START, ANSWERS
    if name in ("lrd", "dkv", "freecache"):  # they need a transformer; this one knows one board
        answers = ANSWERS[:1].expand_as(ANSWERS)
        start = torch.cat([START[:, :1], answers.where(~BLANKS, PUZZLES.MASK)], dim=1)
        model = random_model(PUZZLES)
        model.position.weight.data[PUZZLES.P:] = 1e4 * model.head.weight.data[answers[0]]
    tokens, stats, _ = run(model, name, start=start)
    assert torch.equal(tokens[:, PUZZLES.P:], answers)
    assert (stats["nfe"] >= 1).all() and (stats["tokens"] >= PUZZLES.S).all()


@every_decoder
def test_a_given_cell_never_changes_and_all_ends(name):
    """With a model that knows nothing, at T = 1: the worst case for what undoes."""
    tokens, _, history = run(random_model(PUZZLES, seed=3), name, temperature=1.0)
    for now in history:
        assert torch.equal(now[:, PUZZLES.P:][~BLANKS], START[:, PUZZLES.P:][~BLANKS])
    assert (tokens[:, PUZZLES.P:] < PUZZLES.K).all()


@pytest.mark.parametrize("name, params, T, objective", [
    *((name, {}, 0.0, "mdm") for name in NAMES), ("lookum", {}, 1.0, "mdm"),
    ("block", {"size": 3, "later": "absent"}, 0.0, "mdm"),
    *((name, params, 0.0, objective) for objective in ("mdm", "sidm") for name, params in (
        ("dkv", {"refresh": 1000}), ("freecache", {"refresh": 1000, "block": 3})))])
def test_neighbours_do_not_matter(name, params, T, objective):
    """Though a pass has rows with different numbers of cells, and padding."""
    model = random_model(PUZZLES)
    check_alone(lambda rows: run(model, name, params, T, objective, START[rows]), (0, 3, 5, 11),
                ("nfe", "tokens", "undone"))


@every_decoder
def test_a_full_board_costs_nothing_and_no_graph_is_kept(name):
    """Without torch.no_grad() by the caller: 100 puzzles took 7 GB when passes kept their graph."""
    full = torch.cat([START[:, :PUZZLES.P], ANSWERS], dim=1)
    tokens, stats, _ = run(random_model(PUZZLES), name, start=full)
    assert torch.equal(tokens, full) and not stats["nfe"].any() and not stats["tokens"].any()
    _, stats = decoders.decode(random_model(PUZZLES), PUZZLES, "mdm", START, params_of(name),
                               keys_for(START))
    assert not any(values.requires_grad for values in stats.values())


@pytest.mark.parametrize("objective", ("mdm", "sidm"))
@pytest.mark.parametrize("order", ("confidence", "margin", "entropy"))
@pytest.mark.parametrize("k", (1, 3))
def test_plain_is_the_loop_of_sample(objective, order, k):
    """Two loops, written differently, with all cells as candidates."""
    model = random_model(PUZZLES)
    sampling = make_sampling_params(objective, PUZZLES, order=order, tokens_per_step=k,
                                    candidates=10**9)
    expected, cost = decode(model, PUZZLES, objective, START, sampling, keys_for(START))
    tokens, stats, _ = run(model, "plain", dict(k=k, order=order), 0.0, objective)
    assert torch.equal(tokens, expected)
    assert torch.equal(stats["nfe"], cost["nfe"]) and torch.equal(stats["tokens"], cost["tokens"])
    assert torch.allclose(stats["confidence"], cost["confidence"], atol=1e-5)


def test_the_board():
    board = board_of(random_model(PUZZLES))
    everything = torch.ones_like(BLANKS)
    board.commit(everything, ANSWERS, torch.full(ANSWERS.shape, 0.5))
    assert torch.equal(board.symbols, ANSWERS)  # the givens agree: they are the puzzle's
    assert torch.equal(board.confidence == 0.5, BLANKS)
    assert torch.equal(board.committed_at == 1, BLANKS)
    for _ in range(2):  # the second time nothing is left to undo
        board.undo(everything)
        assert torch.equal(board.tokens, START) and torch.equal(board.undone, COUNT)
    board.predict(board.tokens[[2, 2, 5]], torch.tensor([2, 2, 5]))
    assert board.nfe.tolist() == [0, 0, 1, 0, 0, 1] + [0] * 6
    assert board.pairs.tolist() == [0, 0, 2 * PUZZLES.S, 0, 0, PUZZLES.S] + [0] * 6


def test_ties_go_to_the_first_cell():
    score, cells = torch.tensor([[1.0, 3, 3, 3]]), torch.tensor([[True, False, True, True]])
    assert top_cells(score, cells, 1).tolist() == [[False, False, True, False]]
    assert top_cells(score, cells, torch.tensor([2])).tolist() == [[False, False, True, True]]
    assert top_cells(score, cells, 9).tolist() == cells.tolist()


def test_kendall_tau():
    """Pairs of found cells: in the order of the cells 1, backwards -1, at once 0."""
    committed_at = torch.tensor([[1, 2, 3, 9], [3, 2, 1, 0], [1, 1, 1, 0], [2, 1, 3, 0]])
    found = torch.tensor([[True, True, True, False]] * 4)
    expected = torch.tensor([1.0, -1.0, 0.0, 1 / 3])
    assert torch.allclose(decoders.kendall_tau(committed_at, found), expected)


def test_generation_samples():
    """At T = 1 from empty boards samples differ, and repeat with the seed."""
    a, b, c = (run(random_model(BOARDS), "plain", temperature=1.0, start=empty(BOARDS, 6),
                   task=BOARDS, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and len(a.unique(dim=0)) == 6


@pytest.mark.parametrize("name, texts, objective, asked, words", (
    ("plane", [], "mdm", {}, "'plane' is unknown; legal: list, plain"),
    ("plain", ["t=2"], "mdm", {}, "'t' is not a parameter of decoder plain; legal: k, order"),
    ("plain", ["0"], "mdm", {}, "--decoder-param k: '0' is not legal; legal: 1..256"),
    ("plain", ["nan"], "mdm", {}, "'nan' is not legal"),
    ("plain", ["order=up"], "mdm", {}, "'up' is not legal; legal: confidence | margin"),
    ("plain", [], "scdm", {}, "this one is scdm"),
    ("plain", [], "mdm", {"order": "margin"}, "--order has no meaning for --decoder")))
def test_what_is_refused(name, texts, objective, asked, words):
    with pytest.raises(BadInput) as e:
        decoders.choose(BOARDS, True, name, texts, objective, asked)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_parameters_are_chosen_and_listed():
    sampling = decoders.choose(BOARDS, True, "plain", ["3", "order=margin"], "mdm",
                               {"temperature": 1.0})
    assert sampling.decoder == "plain" and sampling.temperature == 1.0 and sampling.order == "-"
    assert sampling.decoder_params == {"k": 3, "order": "margin"}
    for name, spec in decoders.DECODERS.items():
        assert f"{name}: {spec.rule}" in decoders.listing()
        assert all(f"{k} = " in decoders.listing() for k in spec.params)


def test_the_example_of_the_readme_works_as_it_stands(monkeypatch):
    """It is a decoder: with its null settings plain, otherwise faster."""
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", README, re.S).group(1), namespace)
    monkeypatch.setitem(decoders.DECODERS, "ramp", namespace["DECODERS"]["ramp"])
    model = random_model(PUZZLES)
    null, plain = (run(model, name, temperature=1.0, params=params)[2] for name, params in (
        ("ramp", decoders.DECODERS["ramp"].null), ("plain", {})))
    assert torch.equal(torch.stack(null), torch.stack(plain))
    _, stats, _ = run(model, "ramp", {"fraction": 0.5}, 1.0)
    assert stats["nfe"].tolist() == [n.bit_length() for n in COUNT.tolist()]  # halves, rounded up
    assert "ramp: the ceil" in decoders.listing()


def test_the_readme_names_every_file():
    named = set(re.findall(r"\w+\.py", README[README.index("## Files"):]))
    folder = Path(decoders.__file__).parent
    here = {f.name for part in (folder, folder.parent / "studies") for f in part.glob("*.py")}
    assert not here - {"__init__.py"} - named
    assert len(README.encode()) <= 5 * 1024
