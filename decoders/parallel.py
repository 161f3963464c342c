"""Decoders that commit several cells per pass where the model is sure: a threshold, or a bound.

    B samples   A cells   K symbols   p: probabilities of a cell   c = max p   H: entropy of p, nats

Cells committed in one pass are drawn independently, from the product of their marginals. What this
costs is known: KL(joint | product of marginals) <= sum of H - largest H (exact.py checks it). Each
decoder here keeps that error small in its own way. All comparisons are strict, where papers write
"at least": then tau = 1, f = 0, lam = 0 and gamma = 0 commit one cell per pass even where p rounds
to 1; at an exact tie (f = 1, p = 2/3) fp32 decides. Every pass commits a cell, so none takes more
passes than there are cells to find.
"""
import torch

from decoders.board import certainty, surest
from decoders.row import Decoder, Knob


def threshold(board, tau=0.9):
    """Fast-dLLM, arXiv 2505.22618, section 3.3: every cell that is sure enough.

    commit all with c > tau, and always the surest
    """
    while board.unknown.any():
        logits = board.look()  # (B, A, K)
        sure = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        cells = surest(sure, board.unknown, 1) | (board.unknown & (sure > tau))
        board.commit(cells, board.draw(logits), sure)
        yield


def factor(board, f=1.0):
    """Fast-dLLM, arXiv 2505.22618: n cells at once if the least sure of them is sure enough for n.

    commit the n surest, n the largest with (n + 1) (1 - c of the n-th) < f, at least one

    At f = 1 it is a theorem that all at once has the same most likely symbols as one by one.
    """
    n = torch.arange(1, board.task.A + 1, device=board.tokens.device)
    while board.unknown.any():
        logits = board.look()
        sure = logits.softmax(dim=-1).amax(dim=-1)
        line = sure.masked_fill(~board.unknown, 0.0).sort(dim=1, descending=True).values
        fits = (n + 1) * (1 - line) < f  # (B, A) of the n-th
        cells = surest(sure, board.unknown, (fits * n).amax(dim=1).clamp(min=1))
        board.commit(cells, board.draw(logits), sure)
        yield


def med(board, lam=0.2, order="entropy"):
    """Multi-token entropy decoding, arXiv 2510.19990: every cell of small entropy.

    commit all with H < lam; where there is none, the first in `order`

    Not verified: whether the paper also limits how many.
    """
    while board.unknown.any():
        logits = board.look()
        probs = logits.softmax(dim=-1)
        calm = board.unknown & (-certainty(probs, "entropy") < lam)  # (B, A)
        one = surest(certainty(probs, order), board.unknown, 1)
        cells = torch.where(calm.any(dim=1, keepdim=True), calm, one)
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        yield


def eb(board, gamma=0.01, order="entropy"):
    """Entropy-bounded sampler, arXiv 2505.24857: as many cells as a budget of error allows.

    commit the first n in `order`, n the largest with sum of H - largest H < gamma, at least one

    The sum bounds the error of the pass in nats, so gamma is the error allowed per pass.
    """
    while board.unknown.any():
        logits = board.look()
        probs = logits.softmax(dim=-1)
        H, score = -certainty(probs, "entropy"), certainty(probs, order)  # (B, A)
        first = score.masked_fill(~board.unknown, -torch.inf).argsort(dim=1, descending=True,
                                                                      stable=True)
        H = H.gather(1, first)  # in order; known cells stand last and cannot be taken
        bound = H.cumsum(dim=1) - H.cummax(dim=1).values  # never falls along the line
        cells = surest(score, board.unknown, (bound < gamma).sum(dim=1).clamp(min=1))
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        yield


def klass(board, tau=0.6, eps=0.015, h=2):
    """KLASS, arXiv 2511.05664: every cell that is fairly sure and has stopped changing its mind.

    commit all with c > tau whose KL(p now | p one pass ago) was below eps in each of the last h
    passes; where there is none, the surest. Not verified: what the paper commits there.
    """
    before, calm = None, torch.zeros_like(board.unknown, dtype=torch.long)
    while board.unknown.any():
        logits = board.look()
        sure, log_p = logits.softmax(dim=-1).amax(dim=-1), logits.log_softmax(dim=-1)
        if before is not None:
            kl = (log_p.exp() * (log_p - before)).sum(dim=-1)  # (B, A)
            calm = torch.where(kl < eps, calm + 1, 0)  # for how many passes
        before = log_p
        stable = board.unknown & (sure > tau) & (calm >= h)
        one = surest(sure, board.unknown, 1)
        cells = torch.where(stable.any(dim=1, keepdim=True), stable, one)
        board.commit(cells, board.draw(logits), sure)
        yield


ORDER = Knob("entropy", ("entropy", "margin", "confidence"))
DECODERS = {
    "threshold": Decoder(
        threshold, "2505.22618", "all with max p > tau", {"tau": Knob(0.9, 0.0, 1.0)},
        null={"tau": 1.0}, sweep=(0.5, 0.7, 0.9, 0.95, 0.99, 0.999),
        source="the paper's default"),
    "factor": Decoder(
        factor, "2505.22618", "the n surest, (n + 1)(1 - max p of the n-th) < f",
        {"f": Knob(1.0, 0.0, 1000.0)}, null={"f": 0.0}, sweep=(0.1, 0.25, 0.5, 1.0, 2.0),
        source="the paper's theorem holds up to f = 1"),
    "med": Decoder(
        med, "2510.19990", "all with H < lam", {"lam": Knob(0.2, 0.0, 10.0), "order": ORDER},
        null={"lam": 0.0, "order": "confidence"}, sweep=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
        source="lam: the paper; it falls back on order entropy"),
    "eb": Decoder(
        eb, "2505.24857", "the first n of least H, sum H - max H < gamma",
        {"gamma": Knob(0.01, 0.0, 100.0), "order": ORDER},
        null={"gamma": 0.0, "order": "confidence"}, sweep=(0.001, 0.01, 0.1, 0.5, 1.0),
        source="the paper sweeps gamma from 0.001 to 0.1; order: entropy is one of its three"),
    "klass": Decoder(
        klass, "2511.05664", "all with max p > tau and KL to the pass before < eps, h times",
        {"tau": Knob(0.6, 0.0, 1.0), "eps": Knob(0.015, 0.0, 100.0), "h": Knob(2, 0, 256)},
        null={"tau": 1.0}, sweep=(0.4, 0.6, 0.8, 0.9, 0.99),
        source="one of the paper's settings"),
}
