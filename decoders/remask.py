"""RCR and ReMDM: take back cells by the confidence they had when they were committed.

    B samples   A cells   K symbols   m cells to find   t passes made

Confidence is a cell's largest probability, as in plain, also at T > 0 (the papers: the probability
of the sampled symbol). Ties favour the committed cell. Decoders that undo cells by what the model
predicts for them now: recheck.py.
"""
import torch

from decoders.board import top_cells
from decoders.spec import Decoder, Param

TIE = 1e-6  # added for committed cells: in fp32 many cells have p = 1 exactly
PASSES = Param(256, 1, 512)


def committed(board):
    """(B, A) bool: the cells that the decoder has filled, and may undo."""
    return ~board.given & ~board.unknown


def num_known(board, t, passes):
    """-> (B,): how many cells are to be known after pass t of `passes`; at least one more each.

    The last pass asks for all m, so there are min(passes, m) of them.
    """
    m = (~board.given).sum(dim=1)
    return -(-t * m // m.clamp(min=1, max=passes))  # rounded up


def keep_best(board, score, logits, t, passes):
    """Known after pass t are the cells of largest score (B, A) among all, known or not."""
    keep = top_cells(score, ~board.given, num_known(board, t, passes))
    board.commit(keep, board.sample(logits), logits.softmax(dim=-1).amax(dim=-1))
    board.undo(~keep)


def rcr(board, passes=16, undo="yes"):
    """Running confidence remasking (arXiv 2508.13148; rule from the released code, not the paper).

    Fill every cell, then keep the most confident ones, each by its confidence when it was filled.
    With undo = no only unknown cells compete. Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits = board.forward()  # (B, A, K)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        score = torch.where(board.unknown, confidence, board.confidence + TIE)
        if undo == "no":
            score = score.masked_fill(committed(board), torch.inf)
        keep_best(board, score, logits, t, passes)
        yield


def remdm(board, eta=0.04, passes=256):
    """ReMDM-conf with a capped rate (arXiv 2503.00307; not checked against the paper).

    A committed cell is undone with probability sigma * softmax(-confidence), so a pass undoes sigma
    cells on average; sigma = min(eta, (1 - alpha_s) / alpha_t), alpha: fraction of cells known. As
    many more are committed, so undoing costs no pass. The paper commits random cells, we the most
    confident ones. Ends after min(passes, m) passes.
    """
    t = 0
    while board.unknown.any():
        t += 1
        logits = board.forward()  # (B, A, K)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        known = committed(board)
        more = (num_known(board, t, passes) - known.sum(dim=1)).clamp(min=0)  # (B,)
        room = board.unknown.sum(dim=1) - more  # unknown after this pass: alpha_s = 1 - room / m
        sigma = (room / known.sum(dim=1).clamp(min=1)).clamp(max=eta).unsqueeze(1)
        weight = (-board.confidence).masked_fill(~known, -torch.inf).softmax(dim=1)  # nan: no known
        lost = top_cells(weight, board.noise() < sigma * weight, room)
        cells = top_cells(confidence, board.unknown, more + lost.sum(dim=1))
        board.commit(cells, board.sample(logits), confidence)
        board.undo(lost)
        yield


DECODERS = {
    "rcr": Decoder(
        rcr, "2508.13148", "keep the largest max p of all cells, each as it was when filled",
        {"passes": Param(16, 1, 512), "undo": Param("yes", ("yes", "no"))},
        null={"passes": 512, "undo": "no"}, sweep=(6, 8, 12, 16, 32),
        source="paper: 4 cells a pass (128 passes for 512), as 16 do for a 9x9 puzzle"),
    "remdm": Decoder(
        remdm, "2503.00307", "plain, and undo eta * softmax(-p when committed)",
        {"eta": Param(0.04, 0.0, 1.0), "passes": PASSES}, null={"eta": 0.0}, sweep=(0.04, 0.2, 1.0),
        source="eta: a cap of the paper, unverified; passes: one a cell"),
}
