"""P2, Saber, WINO: undo committed cells by what the model predicts for them now (belief.py).

    B samples   A cells   K symbols   m cells to find

Confidence and ties: see remask.py, whose decoders undo by the confidence at commit time.
"""
import torch

from decoders.belief import VIEWS, believe
from decoders.board import top_cells
from decoders.remask import PASSES, TIE, committed, keep_best
from decoders.spec import Decoder, Param


def p2(board, eta=1.0, passes=256, view="shadow"):
    """P2 with itself as planner (arXiv 2502.03540; the paper's view is `visible`).

    Score ALL cells anew, an unknown one by log max p, a committed one by eta * log p(its symbol);
    keep the best. eta = 0 never undoes, a larger one undoes more. Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits, held = believe(board, view if eta else "visible")  # (B, A, K), (B, A)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        keep_best(board, torch.where(board.unknown, confidence, held ** eta + TIE), logits, t,
                  passes)
        yield


def saber(board, n=2, mu=8, lift=0.0, view="probe"):
    """Saber (arXiv 2510.18165): an adaptive threshold, and a step back for every mu steps.

    Commit all cells with more confidence than tau, the mean confidence of the committed ones (at
    least n). Of those committed before, undo the max(n / 2, new / mu) whose probability fell most
    since the last pass, but fewer than are new, and none when all are known. lift moves tau towards
    1. The released code reads the largest p where the symbol stands (`visible`). Ends after at most
    m passes.
    """
    before = board.confidence.clone()  # (B, A) probability of each committed symbol one pass ago
    while board.unknown.any():
        logits, held = believe(board, view if mu else "visible")  # (B, A, K), (B, A)
        confidence, known = logits.softmax(dim=-1).amax(dim=-1), committed(board)
        count = known.sum(dim=1)
        tau = ((board.confidence * known).sum(dim=1) / count).where(count > 0, 1.0)  # (B,)
        tau = tau.lerp(torch.ones_like(tau), lift).unsqueeze(1)
        cells = board.unknown & (confidence > tau) | top_cells(confidence, board.unknown, n)
        new = cells.sum(dim=1)
        steps = (-(-new // mu)).clamp(min=n // 2) if mu else 0 * new
        steps = torch.minimum(steps, new - 1) * (board.unknown & ~cells).any(dim=1)
        lost = top_cells(before - held, known, steps)
        before = torch.where(known, held, confidence)
        board.commit(cells, board.sample(logits), confidence)
        board.undo(lost)
        yield


def wino(board, tau1=0.99, tau2=0.9, view="shadow"):
    """WINO: wide in, narrow out (arXiv 2507.18578).

    Commit all cells with p > tau1 (at most 5 to 20, see `most`), or the most confident one; in the
    same pass undo committed cells with p < tau2, but fewer than the pass before had committed, and
    none where only one is new. So a pass gains a cell on balance, and there are at most m passes.
    (`most` and `fewer` are from code that reproduces the paper; there shadows see each other.)
    """
    drafted = torch.full_like(board.pairs, board.task.A)  # (B,) cells committed one pass ago
    while board.unknown.any():
        logits, held = believe(board, view if tau2 else "visible")  # (B, A, K), (B, A)
        confidence, unknown = logits.softmax(dim=-1).amax(dim=-1), board.unknown
        most = (0.7 * unknown.sum(dim=1)).long().clamp(5, 20)  # (B,)
        cells = top_cells(confidence, unknown & (confidence > tau1), most)
        cells = cells | top_cells(confidence, unknown, 1)
        new = cells.sum(dim=1)
        lost = top_cells(-held, committed(board) & (held < tau2), (drafted - 1) * (new > 1))
        drafted = new
        board.commit(cells, board.sample(logits), confidence)
        board.undo(lost)
        yield


DECODERS = {
    "p2": Decoder(
        p2, "2502.03540", "keep the k largest of log max p (unknown), eta * log p (committed)",
        {"eta": Param(1.0, 0.0, 100.0), "passes": PASSES, "view": Param("shadow", VIEWS)},
        null={"eta": 0.0}, sweep=(0.5, 1.0, 2.0), needs_network=True,
        source="released code: eta 1; passes: one a cell; view: ours"),
    "saber": Decoder(
        saber, "2510.18165", "all with max p > mean p of the committed; undo what fell most",
        {"n": Param(2, 1, 256), "mu": Param(8, 0, 256), "lift": Param(0.0, 0.0, 1.0),
         "view": Param("probe", VIEWS)},
        null={"n": 1, "mu": 0, "lift": 1.0}, sweep=(2, 4), needs_network=True,
        source="released code; lift and view: ours"),
    "wino": Decoder(
        wino, "2507.18578", "all with max p > tau1; undo where p(symbol | the others) < tau2",
        {"tau1": Param(0.99, 0.0, 1.0), "tau2": Param(0.9, 0.0, 1.0),
         "view": Param("shadow", VIEWS)},
        null={"tau1": 1.0, "tau2": 0.0}, sweep=(0.5, 0.6, 0.7, 0.9, 0.99), needs_network=True,
        source="tau2: paper; its tau1, 0.6, solves nearly no Sudoku; view: ours"),
}
