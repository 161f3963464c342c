"""What makes each of decoders/remask.py itself: what is undone, when, and what a shadow may know.

    B samples   A cells   K symbols   m cells to find
"""
import pytest
import torch
from conftest import ToyTask, empty, keys_for, random_model, task_config

import decoders
from data import make_task
from decoders.board import Board
from decoders.remask import VIEWS, believe, committed, probes, remdm, shadows
from objectives import OBJECTIVES

# those that undo, each with knobs at which it does so without luck
UNDOING = {"rcr": {}, "remdm": {"eta": 1.0}, "p2": {}, "saber": {},
           "wino": {"tau1": 0.6}}
SCHEDULED = ("rcr", "remdm", "p2")  # a fixed number of passes


class Fixed:
    """A 'model' that thinks the same of a cell whatever it sees: probs (A, K)."""

    def __init__(self, probs):
        self.logits = torch.nn.functional.pad(probs.log(), (0, 0, 1, 0))  # (1 + A, K)

    def __call__(self, tokens, positions, rank=None, cache=None):
        return self.logits[positions.expand_as(tokens)]


class Toy(ToyTask):
    """A cells of two symbols."""

    def __init__(self, A):
        self.A, self.S = A, 1 + A


def toy_board(*probs, copies=1):
    """The model gives symbol 0 of each cell that probability."""
    p, task = torch.tensor(probs).unsqueeze(1), Toy(len(probs))
    start = empty(task, copies)
    return Board(Fixed(torch.cat([p, 1 - p], dim=1)), task, OBJECTIVES["mdm"].ranks, start,
                 keys_for(start))


def decode(board, name, **knobs):
    """Run a decoder on a board -> its steps: the symbols (B, A) after each."""
    row, history = decoders.DECODERS[name], [board.symbols.clone()]
    knobs = {k: knob.default for k, knob in row.knobs.items()} | knobs
    with torch.no_grad():
        for _ in row.decode(board, **knobs):
            history.append(board.symbols.clone())
            assert len(history) < 50, f"{name} does not end"
    return history


@pytest.fixture(scope="module")
def puzzles(data_dir):
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, answers = task.test_set(12)
    return task, start, answers


def board_of(puzzles, seed=0, depth=2, objective="mdm", temperature=0.0):
    task, start, _ = puzzles
    model = random_model(task, seed=seed, depth=depth)
    return Board(model, task, OBJECTIVES[objective].ranks, start, keys_for(start), temperature)


def half_filled(puzzles, **kw):
    """Some blanks of each puzzle filled with symbols, another number in each."""
    board = board_of(puzzles, **kw)
    task = board.task
    number = torch.arange(task.A)
    cells = (number * 7 + torch.arange(len(board.tokens)).unsqueeze(1)) % 3 == 0  # (B, A)
    symbols = (number % task.K).expand(cells.shape)
    board.commit(cells, symbols, torch.full(cells.shape, 0.5))
    return board


# -- undoing --


@pytest.mark.parametrize("name, knobs", [*UNDOING.items(), *(
    (name, {"view": view}) for name in ("p2", "saber", "wino") for view in VIEWS)])
def test_a_planted_wrong_cell_is_undone(name, knobs, puzzles):
    """A model that knows the answer, and a wrong cell: mended here, kept by plain and at null."""
    task, start, answers = puzzles[0], puzzles[1][:1], puzzles[2][:1]
    knows = Fixed(torch.nn.functional.one_hot(answers[0], task.K) * 0.99 + 0.0025)
    cell = task.blanks(start).long().argmax()
    wrong = answers.clone()
    wrong[0, cell] = (answers[0, cell] + 1) % task.K

    def solve(name, knobs):
        board = Board(knows, task, OBJECTIVES["mdm"].ranks, start, keys_for(start))
        # little confidence for those that look at it; saber looks at how far the belief fell
        sure = torch.full(wrong.shape, 1.0 if name == "saber" else 0.3)
        board.commit(torch.arange(task.A) == cell, wrong, sure)
        decode(board, name, **knobs)
        return board

    board = solve(name, knobs)
    assert torch.equal(board.symbols, answers) and board.undone.item() >= 1
    for kept in (solve("plain", {}), solve(name, decoders.DECODERS[name].null)):
        assert kept.symbols[0, cell] == wrong[0, cell] and kept.undone.item() == 0


@pytest.mark.parametrize("name", UNDOING)
def test_every_undo_is_counted_and_it_ends_in_time(name, puzzles):
    """A model that knows nothing: cells seen to vanish are the cells counted; m passes at most."""
    board = board_of(puzzles, seed=5, temperature=1.0)
    m = (~board.given).sum(dim=1)
    history = decode(board, name, **UNDOING[name])
    MASK, vanished = board.task.MASK, 0
    for before, after in zip(history, history[1:], strict=False):
        assert ((before == after) | (before == MASK) | (after == MASK)).all()  # never overwritten
        vanished = vanished + ((before != MASK) & (after == MASK)).sum(dim=1)
    assert torch.equal(vanished, board.undone) and vanished.sum() > 0
    assert (board.nfe <= m).all()


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize("passes", (1, 3, 5, 512))
def test_the_schedule(name, passes, puzzles):
    """After pass t of T = min(passes, m) exactly ceil(t m / T) are known, whatever was undone."""
    board = board_of(puzzles, seed=5)
    m = (~board.given).sum(dim=1)
    T = m.clamp(max=passes)
    history = decode(board, name, passes=passes, **UNDOING[name])
    assert torch.equal(board.nfe, T)
    for t, symbols in enumerate(history):
        known = ((symbols != board.task.MASK) & ~board.given).sum(dim=1)
        assert torch.equal(known, torch.minimum((t * m / T).ceil().long(), m))


# -- the rules, by hand --


def test_rcr_remembers_how_sure_it_was():
    """What stands with 0.65 yields to an unknown 0.7, what stands with 0.75 does not."""
    for sure, undone in ((0.65, 1), (0.75, 0)):
        board = toy_board(0.7, 0.6, 0.55, 0.5)
        board.commit(torch.tensor([[False, False, False, True]]), torch.ones(1, 4).long(),
                     torch.full((1, 4), sure))
        assert decode(board, "rcr", passes=512)[1].tolist() == [[0, 2, 2, 2] if undone
                                                                else [2, 2, 2, 1]]
        assert board.undone.item() == undone


@pytest.mark.parametrize("name", ("rcr", "p2"))
def test_of_equals_what_stands_stays(name):
    """In fp32 many cells have p = 1 exactly; the first of them must not push out the last."""
    board = toy_board(1.0, 1.0, 1.0, 1.0)
    board.commit(torch.arange(4) == 3, torch.zeros(1, 4).long(), torch.ones(1, 4))
    assert decode(board, name, passes=512)[1].tolist() == [[2, 2, 2, 0]]
    assert board.undone.item() == 0


def test_p2_weighs_what_stands_with_eta():
    """Of p = .9, .8, .7, .6 with eta = 3: at three cells 0.8 ** 3 is less than 0.6."""
    board = toy_board(0.9, 0.8, 0.7, 0.6)
    history = decode(board, "p2", eta=3.0, view="visible")
    assert history[2].tolist() == [[0, 0, 2, 2]] and history[3].tolist() == [[0, 2, 0, 0]]
    assert board.undone.item() == 1


def test_remdm_loses_eta_cells_in_a_pass():
    """sigma of them in each pass: eta, until (1 - alpha_s) / alpha_t = (99 - n) / n is less."""
    board = toy_board(*[0.5] * 100, copies=40)
    for _ in remdm(board, eta=0.5):
        pass
    expected = sum(min(0.5, (99 - n) / n) for n in range(1, 100))
    assert abs(board.undone.float().mean().item() - expected) < 3  # standard error 0.9


def test_remdm_loses_what_was_least_sure():
    """Of two cells, one of confidence 1 and one of 0: exp(1) times as often the second."""
    board = toy_board(*[0.5] * 8, copies=4000)
    board.commit(torch.arange(8) < 2, torch.zeros(4000, 8).long(),
                 torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).expand(4000, 8))
    next(remdm(board, eta=1.0))
    gone = (board.symbols == board.task.MASK).float().mean(dim=0)
    assert abs(gone[0] - 0.269) < 0.03 and abs(gone[1] - 0.731) < 0.03  # softmax(-1, 0)


def test_saber_commits_what_is_surer_than_the_mean_of_the_committed():
    for lift, first in ((0.0, [0, 0, 0, 0]), (0.5, [0, 2, 2, 0]), (1.0, [0, 2, 2, 0])):
        board = toy_board(0.9, 0.8, 0.7, 0.6)
        board.commit(torch.tensor([[False, False, False, True]]), torch.zeros(1, 4).long(),
                     torch.full((1, 4), 0.65))
        assert decode(board, "saber", n=1, lift=lift)[1].tolist() == [first]


def test_saber_undoes_what_fell_most():
    """Falls of 0, 0.3, 0.4: the last goes, and it alone, for two are new. Then nothing falls: the
    first of equals goes."""
    board = toy_board(0.6, 0.7, 0.6, 0.9, 0.85, 0.7, 0.6)
    board.commit(torch.arange(7) < 3, torch.tensor([[0, 1, 0, 0, 0, 0, 0]]),
                 torch.tensor([[0.6, 0.6, 1.0, 0, 0, 0, 0]]))
    history = decode(board, "saber", mu=1)
    assert history[1].tolist() == [[0, 1, 2, 0, 0, 2, 2]]
    assert history[2].tolist() == [[2, 1, 0, 0, 0, 0, 2]]


def test_wino_drafts_above_tau1_and_undoes_below_tau2():
    """tau2 decides about 0.6; and a pass that drafts one cell undoes none."""
    for tau1, tau2, undone, first in ((0.75, 0.65, 1, [0, 0, 2, 2]), (0.75, 0.55, 0, [0, 0, 2, 0]),
                                      (0.85, 0.65, 0, [0, 2, 2, 0])):
        board = toy_board(0.9, 0.8, 0.7, 0.6)
        board.commit(torch.tensor([[False, False, False, True]]), torch.zeros(1, 4).long(),
                     torch.ones(1, 4))
        history = decode(board, "wino", tau1=tau1, tau2=tau2)
        assert history[1].tolist() == [first] and board.undone.item() == undone


def test_wino_drafts_and_undoes_only_so_many():
    """At most 0.7 of what is unknown; then fewer than were drafted, the least believed of them."""
    board = toy_board(*[0.95 - 0.04 * i for i in range(10)])
    history = decode(board, "wino", tau1=0.5, tau2=0.99)
    assert history[1].tolist() == [[0] * 7 + [2] * 3]
    assert history[2].tolist() == [[0] + [2] * 6 + [0] * 3]


# -- shadows --


@pytest.mark.parametrize("objective", ("mdm", "sidm"))
def test_at_depth_1_a_shadow_is_a_probe(objective, puzzles):
    """One layer looks at embeddings, and the two differ in the twin's alone, which neither sees."""
    board = half_filled(puzzles, depth=1, objective=objective)
    cells = committed(board)
    with torch.no_grad():
        (logits, seen), (also, probed) = shadows(board, cells), probes(board, cells)
    assert torch.allclose(seen[cells], probed[cells], atol=1e-4) and cells.sum() > 20
    unknown = board.unknown
    assert torch.allclose(logits[unknown], also[unknown], atol=1e-4)


def test_a_shadow_leaks_through_two_hops(puzzles):
    """Another symbol in a cell: its own shadow sees nothing of it at depth 1, hearsay at depth 2.

    The other shadows see it at any depth; a probe of the cell never does.
    """
    for depth, hearsay in ((1, False), (2, True)):
        board = half_filled(puzzles, depth=depth)
        cells = committed(board)
        mine = cells & (cells.cumsum(dim=1) == 1)  # the first committed cell of each sample
        with torch.no_grad():
            before, probed = shadows(board, cells)[1], probes(board, mine)[1]
            board.symbols[mine] = (board.symbols[mine] + 1) % board.task.K
            after, again = shadows(board, cells)[1], probes(board, mine)[1]
        moved = (after - before).abs().amax(dim=2) > 1e-4
        assert moved[mine].all() == hearsay and moved[mine].any() == hearsay
        assert moved[cells & ~mine].all()
        assert torch.allclose(probed[mine], again[mine], atol=1e-5)


@pytest.mark.parametrize("objective", ("mdm", "sidm"))
def test_nobody_sees_a_shadow(objective, puzzles):
    board = half_filled(puzzles, objective=objective)
    with torch.no_grad():
        looked, shadowed = board.look(), shadows(board, committed(board))[0]
    assert torch.allclose(looked, shadowed, atol=1e-4)


def test_what_each_view_costs(puzzles):
    """One pass on the clock each; pairs: nothing more, one for each committed cell, S for each."""
    for view in VIEWS:
        board = half_filled(puzzles)
        count, S = committed(board).sum(dim=1), board.task.S
        with torch.no_grad():
            _, held = believe(board, view)
        assert len(count.unique()) > 1 and (board.nfe == 1).all()
        assert torch.equal(board.fed - S, {"visible": 0, "shadow": 1, "probe": S}[view] * count)
        assert (held[~committed(board)] == 1).all() and (held[committed(board)] < 1).all()
