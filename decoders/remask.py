"""Decoders that take back what they committed: RCR, ReMDM, P2, Saber, WINO.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols
    m cells to find   t passes made   w shadow pairs   T = S + w pairs   n drafts

Two ask how sure a cell was when it was committed (rcr, remdm). Three ask what the model thinks of
it now, and that is the difficulty: a masked diffusion model is never trained to say anything at a
known cell. `believe` has three ways to ask. A confidence is a cell's largest probability, as in
plain, also at T > 0 (the papers: that of the symbol drawn). Of equals a committed cell stays.
"""
import torch
from torch.nn.functional import pad

from decoders.board import surest
from decoders.row import Decoder, Knob
from model import visible

TIE = 1e-6  # in fp32 many cells have p = 1 exactly: what stands there should not move for nothing
VIEWS = ("shadow", "probe", "visible")


# --------------------------------------------------------------------------------------------------
# What the model thinks of what is committed


def committed(board):
    """(B, A) bool: the cells that the decoder has filled, and may undo."""
    return ~board.given & ~board.unknown


def believe(board, view):
    """One pass -> logits (B, A, K), as board.look(), and held (B, A): p(symbol committed there).

    Of a cell that is not committed held is 1. view:
    visible   the logits where the symbol stands. Free, and never trained: the symbol is in sight.
    shadow    a second pair (MASK, same position), which sees all but its twin, and which nobody
              sees: a pair for each committed cell. The other cells have seen the twin.
    probe     a draft of the board for each committed cell, with that cell alone unknown: what the
              shadow approximates. S pairs for each.
    """
    cells = committed(board)
    if view == "visible":
        logits = seen = board.look()
    else:
        logits, seen = shadows(board, cells) if view == "shadow" else probes(board, cells)
    symbols = board.symbols.masked_fill(~cells, 0).unsqueeze(2)
    held = seen.softmax(dim=-1).gather(2, symbols).squeeze(2)
    return logits, held.where(cells, 1.0)


def shadows(board, cells):
    """One pass with a shadow of each of `cells` (B, A) -> logits (B, A, K), and the shadows' own.

    A shadow has rank 1, like an unknown cell of sidm: it sees what has rank 0, and no rank 0 or 1
    sees it. That it does not see its twin no ranking can say.
    """
    rows, P, S = board.unfinished(), board.task.P, board.task.S
    count = cells[rows].sum(dim=1)  # (R,)
    w = int(count.max())
    cell = cells[rows].long().argsort(dim=1, descending=True, stable=True)[:, :w]  # (R, w)
    tokens = pad(board.tokens[rows], (0, w), value=board.task.MASK)  # (R, T)
    positions = torch.cat([board.positions.expand(len(rows), S), P + cell], dim=1)  # (R, T)
    rank = board.rank(board.tokens[rows])
    rank = torch.zeros_like(tokens) if rank is None else pad(rank, (0, w))
    rank[:, S:] = 1
    sees = visible(rank)  # (R, T query, T key)
    sees[:, S:].scatter_(2, (P + cell).unsqueeze(2), False)
    board.pay(rows, S)
    board.fed[rows] += count  # the empty seats of samples with fewer shadows are not paid
    out = board.model(tokens, positions, sees).float()  # (R, T, K)
    logits, seen = out.new_zeros(2, len(board.tokens), board.task.A, out.shape[2])
    logits[rows] = out[:, P:S]
    seen[rows.unsqueeze(1), cell] = out[:, S:]
    return logits, seen


def probes(board, cells):
    """As shadows(), by a draft of the board for each of `cells`, in the same pass."""
    logits, seen = torch.zeros(2, *cells.shape, board.task.K, device=cells.device)
    for rows in board.unfinished().split(32):  # a few samples at once: each has many drafts
        row, cell = cells[rows].nonzero(as_tuple=True)  # (n,) each
        drafts = board.tokens[rows[row]]  # (n, S)
        n = torch.arange(len(row), device=row.device)
        drafts[n, board.task.P + cell] = board.task.MASK
        out = board.forward(torch.cat([board.tokens[rows], drafts]),
                            torch.cat([rows, rows[row]]))  # (R + n, A, K)
        logits[rows] = out[:len(rows)]
        seen[rows[row], cell] = out[len(rows) + n, cell]
    return logits, seen


def due(board, t, passes):
    """-> (B,): how many cells are to be known after pass t of `passes`; at least one more each.

    The last pass asks for all m, so there are min(passes, m) of them.
    """
    m = (~board.given).sum(dim=1)
    return -(-t * m // m.clamp(min=1, max=passes))  # rounded up


# --------------------------------------------------------------------------------------------------
# By the confidence when it was committed


def rcr(board, passes=16, undo="yes"):
    """Running confidence remasking (arXiv 2508.13148; rule from the released code, not the paper).

    Fill every cell, then keep the surest of ALL of them, each by the confidence of when it was
    filled; with undo = no only an unknown cell competes. Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits = board.look()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        score = torch.where(board.unknown, probs.amax(dim=-1), board.sure + TIE)
        if undo == "no":
            score = score.masked_fill(committed(board), torch.inf)
        keep = surest(score, ~board.given, due(board, t, passes))
        board.commit(keep, board.draw(logits), probs.amax(dim=-1))
        board.undo(~keep)
        yield


def remdm(board, eta=0.04, passes=256):
    """ReMDM-conf with a capped rate (arXiv 2503.00307; not checked against the paper).

    A committed cell is lost with probability sigma * softmax(-confidence), so sigma is the number
    lost in a pass; sigma = min(eta, (1 - alpha_s) / alpha_t), alpha: share of cells known. As many
    more are committed, so undoing costs no pass. The paper commits random cells, we the surest.
    Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits = board.look()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        known = committed(board)
        more = (due(board, t, passes) - known.sum(dim=1)).clamp(min=0)  # (B,)
        room = board.unknown.sum(dim=1) - more  # unknown after this pass: alpha_s = 1 - room / m
        sigma = (room / known.sum(dim=1).clamp(min=1)).clamp(max=eta).unsqueeze(1)
        weight = (-board.sure).masked_fill(~known, -torch.inf).softmax(dim=1)  # nan: none is known
        lost = surest(weight, board.noise() < sigma * weight, room)
        cells = surest(probs.amax(dim=-1), board.unknown, more + lost.sum(dim=1))
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        board.undo(lost)
        yield


# --------------------------------------------------------------------------------------------------
# By what the model thinks now


def p2(board, eta=1.0, passes=256, view="shadow"):
    """P2 with itself as planner (arXiv 2502.03540; the paper's view is `visible`).

    Rank ALL cells anew, an unknown one by log max p, a committed one by eta * log p(its symbol);
    keep the best. eta = 0 never undoes, a larger one undoes more. Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits, held = believe(board, view if eta else "visible")  # (B, A, K), (B, A)
        probs = logits.softmax(dim=-1)
        score = torch.where(board.unknown, probs.amax(dim=-1), held ** eta + TIE)
        keep = surest(score, ~board.given, due(board, t, passes))
        board.commit(keep, board.draw(logits), probs.amax(dim=-1))
        board.undo(~keep)
        yield


def saber(board, n=2, mu=8, lift=0.0, view="probe"):
    """Saber (arXiv 2510.18165): an adaptive threshold, and a step back for every mu steps.

    Commit all cells surer than tau, the mean confidence of what is committed (at least n); of those
    committed before, undo max(n / 2, new / mu) whose probability fell most since the last pass, but
    fewer than are new, and none when all are known. lift moves tau towards 1. The released code
    looks where the symbol stands (`visible`), at the largest p there. Ends after m passes at most.
    """
    before = board.sure.clone()  # (B, A) probability of each committed symbol in the last pass
    while board.unknown.any():
        logits, held = believe(board, view if mu else "visible")  # (B, A, K), (B, A)
        probs = logits.softmax(dim=-1)
        sure, known = probs.amax(dim=-1), committed(board)
        count = known.sum(dim=1)
        tau = ((board.sure * known).sum(dim=1) / count).where(count > 0, 1.0)  # (B,)
        tau = tau.lerp(torch.ones_like(tau), lift).unsqueeze(1)
        cells = board.unknown & (sure > tau) | surest(sure, board.unknown, n)
        new = cells.sum(dim=1)
        steps = (-(-new // mu)).clamp(min=n // 2) if mu else 0 * new
        steps = torch.minimum(steps, new - 1) * (board.unknown & ~cells).any(dim=1)
        lost = surest(before - held, known, steps)
        before = torch.where(known, held, sure)
        board.commit(cells, board.draw(logits), sure)
        board.undo(lost)
        yield


def wino(board, tau1=0.99, tau2=0.9, view="shadow"):
    """WINO: wide in, narrow out (arXiv 2507.18578).

    Draft all cells with p > tau1 (of them at most 5 to 20, see `most`), or the surest; in the same
    pass undo what is held with p < tau2, but fewer cells than the pass before had drafted, and none
    where only one is drafted. So on balance a pass gains a cell, and it ends after m at most.
    (`most` and `fewer` are from code that reproduces the paper; there shadows see each other.)
    """
    drafted = torch.full_like(board.fed, board.task.A)  # (B,) in the pass before
    while board.unknown.any():
        logits, held = believe(board, view if tau2 else "visible")  # (B, A, K), (B, A)
        probs = logits.softmax(dim=-1)
        sure = probs.amax(dim=-1)
        most = (0.7 * board.unknown.sum(dim=1)).long().clamp(5, 20)  # (B,)
        cells = surest(sure, board.unknown & (sure > tau1), most) | surest(sure, board.unknown, 1)
        new = cells.sum(dim=1)
        lost = surest(-held, committed(board) & (held < tau2), (drafted - 1) * (new > 1))
        drafted = new
        board.commit(cells, board.draw(logits), sure)
        board.undo(lost)
        yield


PASSES = Knob(256, 1, 512)
DECODERS = {
    "rcr": Decoder(
        rcr, "2508.13148", "keep the largest max p of all cells, each as it was when filled",
        {"passes": Knob(16, 1, 512), "undo": Knob("yes", ("yes", "no"))},
        null={"passes": 512, "undo": "no"},
        sweep=(6, 8, 12, 16, 32),
        source="paper: 4 cells a pass (128 passes for 512), as 16 do for a 9x9 puzzle"),
    "remdm": Decoder(
        remdm, "2503.00307", "plain, and lose eta * softmax(-p when committed)",
        {"eta": Knob(0.04, 0.0, 1.0), "passes": PASSES},
        null={"eta": 0.0}, sweep=(0.04, 0.2, 1.0),
        source="eta: a cap of the paper, unverified; passes: one a cell"),
    "p2": Decoder(
        p2, "2502.03540", "keep the k largest of log max p (unknown), eta * log p (committed)",
        {"eta": Knob(1.0, 0.0, 100.0), "passes": PASSES, "view": Knob("shadow", VIEWS)},
        null={"eta": 0.0}, sweep=(0.5, 1.0, 2.0), needs_network=True,
        source="released code: eta 1; passes: one a cell; view: ours"),
    "saber": Decoder(
        saber, "2510.18165", "all with max p > mean p of the committed; undo what fell most",
        {"n": Knob(2, 1, 256), "mu": Knob(8, 0, 256), "lift": Knob(0.0, 0.0, 1.0),
         "view": Knob("probe", VIEWS)},
        null={"n": 1, "mu": 0, "lift": 1.0}, sweep=(2, 4), needs_network=True,
        source="released code; lift and view: ours"),
    "wino": Decoder(
        wino, "2507.18578", "all with max p > tau1; undo where p(symbol | the others) < tau2",
        {"tau1": Knob(0.99, 0.0, 1.0), "tau2": Knob(0.9, 0.0, 1.0), "view": Knob("shadow", VIEWS)},
        null={"tau1": 1.0, "tau2": 0.0}, sweep=(0.5, 0.6, 0.7, 0.9, 0.99), needs_network=True,
        source="tau2: paper; its tau1, 0.6, is ruin on Sudoku; view: ours"),
}
