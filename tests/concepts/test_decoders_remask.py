"""What makes each decoder of remask.py and recheck.py itself: what is undone, when, and shadows.

    B samples   A cells   K symbols   m cells to find
"""
import pytest
import torch
from boards import ANSWERS, BLANKS, COUNT, PUZZLES, START, TOY, Opinions, board_of, params_of, play
from conftest import ToyTask, empty, random_model

import decoders
from decoders.belief import VIEWS, believe, probes, shadows
from decoders.remask import committed, remdm
from objectives import OBJECTIVES

# those that undo, each with parameters with which it does so without luck
UNDOING = {"rcr": {}, "remdm": {"eta": 1.0}, "p2": {}, "saber": {}, "wino": {"tau1": 0.6}}
M = TOY.MASK  # 2


class Toy(ToyTask):
    """A cells of two symbols."""

    def __init__(self, A):
        self.A, self.S = A, 1 + A


def toy_board(*probs, copies=1):
    """The model gives symbol 0 of each cell that probability, whatever it sees."""
    p, task = torch.tensor(probs).unsqueeze(1), Toy(len(probs))
    return board_of(Opinions(torch.cat([p, 1 - p], dim=1).log()), empty(task, copies), task)


def begun(board, cells, symbols, confidence):
    """The board after a commit of those cells: lists, or one value for all; of every sample."""
    def row(values):
        values = values if isinstance(values, list) else [values] * board.task.A
        return torch.tensor(values).expand(len(board.tokens), -1)
    board.commit(torch.isin(torch.arange(board.task.A), torch.tensor(cells)).expand_as(board.given),
                 row(symbols), row(confidence).float())
    return board


def decode(board, name, **params):
    """Run a decoder on a board -> the symbols (B, A), before it and after each step."""
    before, P = board.symbols.clone(), board.task.P
    loop = decoders.DECODERS[name].decode(board, **params_of(name, **params).decoder_params)
    return [before, *(tokens[:, P:] for tokens in play(board, loop))]


def puzzle_board(seed=0, depth=2, objective="mdm", temperature=0.0):
    model = random_model(PUZZLES, seed=seed, depth=depth)
    return board_of(model, ranks=OBJECTIVES[objective].ranks, temperature=temperature)


def half_filled(**kw):
    """Some blanks of each puzzle filled with symbols, another number in each."""
    board, number = puzzle_board(**kw), torch.arange(PUZZLES.A)
    cells = (number * 7 + torch.arange(len(START)).unsqueeze(1)) % 3 == 0  # (B, A)
    board.commit(cells, (number % PUZZLES.K).expand_as(cells), torch.full(cells.shape, 0.5))
    return board


@pytest.mark.parametrize("name, params", [*UNDOING.items(), *(
    (name, {"view": view}) for name in ("p2", "saber", "wino") for view in VIEWS)])
def test_a_planted_wrong_cell_is_undone(name, params):
    """A model that knows the answer, and a wrong cell: mended here, kept by plain and at null."""
    knows = Opinions((torch.nn.functional.one_hot(ANSWERS[0], 4) * 0.99 + 0.0025).log())
    cell = int(BLANKS[0].long().argmax())
    wrong = ANSWERS[0].clone()
    wrong[cell] = (wrong[cell] + 1) % PUZZLES.K
    # little confidence for those that read it; saber reads how far the probability fell
    confidence = 1.0 if name == "saber" else 0.3

    def solve(name, params):
        board = begun(board_of(knows, START[:1]), [cell], wrong.tolist(), confidence)
        decode(board, name, **params)
        return board

    board = solve(name, params)
    assert torch.equal(board.symbols, ANSWERS[:1]) and board.undone.item() >= 1
    for kept in (solve("plain", {}), solve(name, decoders.DECODERS[name].null)):
        assert kept.symbols[0, cell] == wrong[cell] and kept.undone.item() == 0


@pytest.mark.parametrize("name", UNDOING)
def test_every_undo_is_counted_and_it_ends_in_time(name):
    """A model that knows nothing: cells seen to vanish are the cells counted; m passes at most."""
    board = puzzle_board(seed=5, temperature=1.0)
    history, MASK, vanished = decode(board, name, **UNDOING[name]), PUZZLES.MASK, 0
    for before, after in zip(history, history[1:], strict=False):
        assert ((before == after) | (before == MASK) | (after == MASK)).all()  # never overwritten
        vanished = vanished + ((before != MASK) & (after == MASK)).sum(dim=1)
    assert torch.equal(vanished, board.undone) and vanished.sum() > 0
    assert (board.nfe <= COUNT).all()


@pytest.mark.parametrize("name", ("rcr", "remdm", "p2"))
@pytest.mark.parametrize("passes", (1, 3, 5, 512))
def test_the_schedule(name, passes):
    """After pass t of T = min(passes, m) exactly ceil(t m / T) are known, whatever was undone."""
    board, T = puzzle_board(seed=5), COUNT.clamp(max=passes)
    history = decode(board, name, passes=passes, **UNDOING[name])
    assert torch.equal(board.nfe, T)
    for t, symbols in enumerate(history):
        known = ((symbols != PUZZLES.MASK) & BLANKS).sum(dim=1)
        assert torch.equal(known, torch.minimum((t * COUNT / T).ceil().long(), COUNT))


@pytest.mark.parametrize("confidence, first", ((0.65, [0, M, M, M]), (0.75, [M, M, M, 1])))
def test_rcr_remembers_its_confidence(confidence, first):
    """A cell committed with 0.65 yields to an unknown 0.7, one with 0.75 does not."""
    board = begun(toy_board(0.7, 0.6, 0.55, 0.5), [3], 1, confidence)
    assert decode(board, "rcr", passes=512)[1].tolist() == [first]
    assert board.undone.item() == (confidence < 0.7)


@pytest.mark.parametrize("name", ("rcr", "p2"))
def test_ties_favour_the_committed_cell(name):
    """In fp32 many cells have p = 1 exactly; the first of them must not push out the last."""
    board = begun(toy_board(1.0, 1.0, 1.0, 1.0), [3], 0, 1.0)
    assert decode(board, name, passes=512)[1].tolist() == [[M, M, M, 0]]
    assert board.undone.item() == 0


def test_p2_weighs_committed_cells_with_eta():
    """Of p = .9, .8, .7, .6 with eta = 3: at three cells 0.8 ** 3 is less than 0.6."""
    board = toy_board(0.9, 0.8, 0.7, 0.6)
    history = decode(board, "p2", eta=3.0, view="visible")
    assert history[2].tolist() == [[0, 0, M, M]] and history[3].tolist() == [[0, M, 0, 0]]
    assert board.undone.item() == 1


def test_remdm_loses_eta_cells_in_a_pass():
    """sigma of them in each pass: eta, until (1 - alpha_s) / alpha_t = (99 - n) / n is less."""
    board = toy_board(*[0.5] * 100, copies=40)
    play(board, remdm(board, eta=0.5))
    expected = sum(min(0.5, (99 - n) / n) for n in range(1, 100))
    assert abs(board.undone.float().mean().item() - expected) < 3  # standard error 0.9


def test_remdm_loses_what_had_least_confidence():
    """Of two cells, one of confidence 1 and one of 0: exp(1) times as often the second."""
    board = begun(toy_board(*[0.5] * 8, copies=4000), [0, 1], 0, [1.0, 0, 0, 0, 0, 0, 0, 0])
    next(remdm(board, eta=1.0))
    gone = (board.symbols == M).float().mean(dim=0)
    assert abs(gone[0] - 0.269) < 0.03 and abs(gone[1] - 0.731) < 0.03  # softmax(-1, 0)


@pytest.mark.parametrize("lift, first", ((0.0, [0] * 4), (0.5, [0, M, M, 0]), (1.0, [0, M, M, 0])))
def test_saber_commits_what_exceeds_the_mean_of_the_committed(lift, first):
    board = begun(toy_board(0.9, 0.8, 0.7, 0.6), [3], 0, 0.65)
    assert decode(board, "saber", n=1, lift=lift)[1].tolist() == [first]


def test_saber_undoes_what_fell_most():
    """Falls of 0, 0.3, 0.4: the last goes, and it alone, for two are new. Then nothing falls: the
    first of equals goes."""
    board = begun(toy_board(0.6, 0.7, 0.6, 0.9, 0.85, 0.7, 0.6), [0, 1, 2],
                  [0, 1, 0, 0, 0, 0, 0], [0.6, 0.6, 1.0, 0, 0, 0, 0])
    history = decode(board, "saber", mu=1)
    assert history[1].tolist() == [[0, 1, M, 0, 0, M, M]]
    assert history[2].tolist() == [[M, 1, 0, 0, 0, 0, M]]


@pytest.mark.parametrize("tau1, tau2, undone, first", (
    (0.75, 0.65, 1, [0, 0, M, M]), (0.75, 0.55, 0, [0, 0, M, 0]), (0.85, 0.65, 0, [0, M, M, 0])))
def test_wino_drafts_above_tau1_and_undoes_below_tau2(tau1, tau2, undone, first):
    """tau2 decides about 0.6; and a pass that drafts one cell undoes none."""
    board = begun(toy_board(0.9, 0.8, 0.7, 0.6), [3], 0, 1.0)
    assert decode(board, "wino", tau1=tau1, tau2=tau2)[1].tolist() == [first]
    assert board.undone.item() == undone


def test_wino_drafts_and_undoes_only_so_many():
    """At most 0.7 of what is unknown; then fewer than were drafted, the least likely of them."""
    board = toy_board(*[0.95 - 0.04 * i for i in range(10)])
    history = decode(board, "wino", tau1=0.5, tau2=0.99)
    assert history[1].tolist() == [[0] * 7 + [M] * 3]
    assert history[2].tolist() == [[0] + [M] * 6 + [0] * 3]


@torch.no_grad()
@pytest.mark.parametrize("objective", ("mdm", "sidm"))
def test_at_depth_1_a_shadow_is_a_probe(objective):
    """One layer sees embeddings, and the two differ in the twin's alone, which neither sees."""
    board = half_filled(depth=1, objective=objective)
    cells, unknown = committed(board), board.unknown
    (logits, shadow), (also, probe) = shadows(board, cells), probes(board, cells)
    assert torch.allclose(shadow[cells], probe[cells], atol=1e-4) and cells.sum() > 20
    assert torch.allclose(logits[unknown], also[unknown], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("depth, leaks", ((1, False), (2, True)))
def test_a_shadow_leaks_through_two_hops(depth, leaks):
    """Another symbol in a cell: its own shadow sees it at depth 2, through other cells, not at 1.

    The other shadows see it at any depth; a probe of the cell never does.
    """
    board = half_filled(depth=depth)
    cells = committed(board)
    mine = cells & (cells.cumsum(dim=1) == 1)  # the first committed cell of each sample
    before, probe = shadows(board, cells)[1], probes(board, mine)[1]
    board.symbols[mine] = (board.symbols[mine] + 1) % PUZZLES.K
    moved = (shadows(board, cells)[1] - before).abs().amax(dim=2) > 1e-4
    assert moved[mine].all() == leaks and moved[mine].any() == leaks
    assert moved[cells & ~mine].all()
    assert torch.allclose(probe[mine], probes(board, mine)[1][mine], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("objective", ("mdm", "sidm"))
def test_nothing_sees_a_shadow(objective):
    board = half_filled(objective=objective)
    assert torch.allclose(board.forward(), shadows(board, committed(board))[0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("view", VIEWS)
def test_what_each_view_costs(view):
    """One pass each; pairs: nothing more, one for each committed cell, S for each."""
    board = half_filled()
    cells, S = committed(board), PUZZLES.S
    _, held = believe(board, view)
    count = cells.sum(dim=1)
    assert len(count.unique()) > 1 and (board.nfe == 1).all()
    assert torch.equal(board.pairs - S, {"visible": 0, "shadow": 1, "probe": S}[view] * count)
    assert (held[~cells] == 1).all() and (held[cells] < 1).all()
