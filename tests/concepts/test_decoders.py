"""Every decoder of decoders/: at its null knob it is plain, an oracle solves with it, it ends.

What makes each of them itself is tested in test_decoders_FAMILY.py, one file for each of decoders/.
"""
import pytest
import torch
from conftest import Oracle, empty, keys_for, random_model, task_config

import decoders
from data import make_task
from decoders.board import Board, surest
from objectives import Dials, make_dials
from plumbing.cli import BadInput
from sample import decode

NAMES = list(decoders.DECODERS)
OPEN_THE_MODEL = ("lrd", "dkv", "freecache")  # they feed embeddings, or keep keys and values


@pytest.fixture(scope="module")
def puzzles(data_dir):
    """4x4 puzzles, each with another number of givens, and their answers."""
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, answers = task.test_set(12)
    return task, start, answers


def run(model, task, start, name, knobs=None, temperature=0.0, objective="mdm", seed=0):
    """-> tokens, stats, history of (B, S) tokens; knobs: those that differ from the defaults."""
    row = decoders.DECODERS[name]
    all_knobs = {k: knob.default for k, knob in row.knobs.items()} | (knobs or {})
    dials = Dials("", 1, 0, 1, temperature, decoder=name, knobs=all_knobs)
    history = []
    with torch.no_grad():
        tokens, stats = decoders.decode(model, task, objective, start, dials,
                                        keys_for(start, seed), history)
    return tokens, stats, [step.tokens for step in history]


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("name", NAMES)
def test_null_equals_plain(name, temperature, puzzles):
    """Bit for bit, step by step. (The last steps of what sees ahead may come at once.)"""
    task, start, _ = puzzles
    model = random_model(task)
    tokens, stats, history = run(model, task, start, name, decoders.DECODERS[name].null,
                                 temperature)
    expected, plain, plain_history = run(model, task, start, "plain", {}, temperature)
    assert torch.equal(tokens, expected)
    assert len(history) == len(plain_history)
    assert all(torch.equal(a, b) for a, b in zip(history, plain_history, strict=True))
    assert torch.equal(stats["confidence"], plain["confidence"])


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_solves_with_every_decoder(name, puzzles):
    task, start, answers = puzzles
    model = Oracle(task, start, answers)
    if name in OPEN_THE_MODEL:  # it must be a transformer; the one below knows one board by heart
        answers = answers[:1].expand_as(answers)
        start = torch.cat([start[:, :1], answers.where(~task.blanks(start), task.MASK)], dim=1)
        model = random_model(task)
        model.position.weight.data[task.P:] = 1e4 * model.head.weight.data[answers[0]]
    tokens, stats, _ = run(model, task, start, name)
    assert torch.equal(tokens[:, task.P:], answers)
    assert (stats["nfe"] >= 1).all() and (stats["tokens"] >= task.S).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_given_cell_never_changes_and_all_ends(name, puzzles):
    """With a model that knows nothing, at T = 1: the worst case for what undoes."""
    task, start, _ = puzzles
    tokens, _, history = run(random_model(task, seed=3), task, start, name, temperature=1.0)
    given = start[:, task.P:] != task.MASK
    for now in history:
        assert torch.equal(now[:, task.P:][given], start[:, task.P:][given])
    assert not (tokens == task.MASK).any() and (tokens[:, task.P:] < task.K).all()


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_do_not_matter(name, puzzles):
    """In a batch, alone, or in another order: the same answer at the same cost."""
    task, start, _ = puzzles
    model, keys = random_model(task), keys_for(start)
    knobs = {k: knob.default for k, knob in decoders.DECODERS[name].knobs.items()}
    dials = Dials("", 1, 0, 1, 0.0, decoder=name, knobs=knobs)
    with torch.no_grad():
        together, stats = decoders.decode(model, task, "mdm", start, dials, keys)
        for i in (0, 5, 11):
            alone, one = decoders.decode(model, task, "mdm", start[i:i + 1], dials, keys[i:i + 1])
            assert torch.equal(alone[0], together[i])
            assert all(torch.equal(one[s][0], stats[s][i]) for s in ("nfe", "tokens", "undone"))


def test_a_full_board_costs_nothing(puzzles):
    task, start, answers = puzzles
    full = torch.cat([start[:, :task.P], answers], dim=1)
    for name in NAMES:
        tokens, stats, _ = run(random_model(task), task, full, name)
        assert torch.equal(tokens, full) and not stats["nfe"].any() and not stats["tokens"].any()


def test_no_graph_is_kept(puzzles):
    """Without a word from the caller: else every pass would stay in memory."""
    task, start, _ = puzzles
    knobs = {"k": 4, "order": "confidence"}
    dials = Dials("", 1, 0, 1, 0.0, decoder="plain", knobs=knobs)
    _, stats = decoders.decode(random_model(task), task, "mdm", start, dials, keys_for(start))
    assert not any(values.requires_grad for values in stats.values())


# -- the board and plain --


@pytest.mark.parametrize("objective", ("mdm", "sidm"))
@pytest.mark.parametrize("order", ("confidence", "margin", "entropy"))
@pytest.mark.parametrize("k", (1, 3))
def test_plain_is_the_loop_of_sample(objective, order, k, puzzles):
    """Two loops, written differently, with all cells as candidates."""
    task, start, _ = puzzles
    model, keys = random_model(task), keys_for(start)
    dials = make_dials(objective, task, order=order, tokens_per_step=k, candidates=10**9)
    with torch.no_grad():
        expected, cost = decode(model, task, objective, start, dials, keys)
    tokens, stats, _ = run(model, task, start, "plain", dict(k=k, order=order), 0.0, objective)
    assert torch.equal(tokens, expected)
    assert torch.equal(stats["nfe"], cost["nfe"]) and torch.equal(stats["tokens"], cost["tokens"])
    assert torch.allclose(stats["confidence"], cost["confidence"], atol=1e-5)


def test_the_board(puzzles):
    task, start, answers = puzzles
    board = Board(random_model(task), task, lambda turn: None, start, keys_for(start))
    blank = task.blanks(start)
    everything = torch.ones_like(blank)
    board.commit(everything, answers, torch.full_like(answers, 0.5, dtype=torch.float))
    assert torch.equal(board.symbols, answers)  # the givens agree: they are the puzzle's
    assert torch.equal(board.sure == 0.5, blank) and torch.equal(board.when == 1, blank)
    board.undo(everything)
    assert torch.equal(board.tokens, start) and torch.equal(board.undone, blank.sum(dim=1))
    board.undo(everything)  # nothing is left to undo
    assert torch.equal(board.undone, blank.sum(dim=1))
    board.forward(board.tokens[[2, 2, 5]], torch.tensor([2, 2, 5]))
    assert board.nfe.tolist() == [0, 0, 1, 0, 0, 1] + [0] * 6
    assert board.fed.tolist() == [0, 0, 2 * task.S, 0, 0, task.S] + [0] * 6


def test_surest_takes_the_first_of_equals():
    score, cells = torch.tensor([[1.0, 3, 3, 3]]), torch.tensor([[True, False, True, True]])
    assert surest(score, cells, 1).tolist() == [[False, False, True, False]]
    assert surest(score, cells, torch.tensor([2])).tolist() == [[False, False, True, True]]
    assert surest(score, cells, 9).tolist() == cells.tolist()


def test_kendall_tau():
    """Pairs of found cells: in the order of the cells 1, backwards -1, at once 0."""
    when = torch.tensor([[1, 2, 3, 9], [3, 2, 1, 0], [1, 1, 1, 0], [2, 1, 3, 0]])
    found = torch.tensor([[True, True, True, False]] * 4)
    expected = torch.tensor([1.0, -1.0, 0.0, 1 / 3])
    assert torch.allclose(decoders.kendall_tau(when, found), expected)


# -- the command line --


def test_what_is_refused():
    for name, texts, objective, asked, words in (
            ("plane", [], "mdm", {}, "'plane' is unknown; legal: list, plain"),
            ("plain", ["t=2"], "mdm", {}, "'t' is not a knob of decoder plain; legal: k, order"),
            ("plain", ["0"], "mdm", {}, "--knob k: '0' is not legal; legal: 1..256"),
            ("plain", ["nan"], "mdm", {}, "'nan' is not legal"),
            ("plain", ["order=up"], "mdm", {}, "'up' is not legal; legal: confidence | margin"),
            ("plain", [], "scdm", {}, "this one is scdm"),
            ("plain", [], "mdm", {"order": "margin"}, "--order has no meaning for --decoder")):
        with pytest.raises(BadInput) as e:
            decoders.choose(make_task(task_config()), True, name, texts, objective, asked)
        assert words in str(e.value) and "\n" not in str(e.value)


def test_knobs_are_chosen():
    dials = decoders.choose(make_task(task_config()), True, "plain", ["3", "order=margin"], "mdm",
                            {"temperature": 1.0})
    assert dials.decoder == "plain" and dials.temperature == 1.0
    assert dials.knobs == {"k": 3, "order": "margin"}


def test_the_list_names_every_decoder_and_knob():
    text = decoders.listing()
    for name, row in decoders.DECODERS.items():
        assert f"{name}: {row.rule}" in text and all(f"{k} = " in text for k in row.knobs)


def test_generation_draws(boards4):
    """At T = 1 from empty boards samples differ, and repeat with the seed."""
    task = make_task(task_config())
    start = empty(task, 6)
    a, _, _ = run(random_model(task), task, start, "plain", temperature=1.0)
    b, _, _ = run(random_model(task), task, start, "plain", temperature=1.0)
    c, _, _ = run(random_model(task), task, start, "plain", temperature=1.0, seed=1)
    assert torch.equal(a, b) and not torch.equal(a, c) and len(a.unique(dim=0)) == 6
