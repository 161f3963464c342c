"""Decoders that commit several cells per pass where the model is confident: a threshold or a bound.

    B samples   A cells   K symbols   p: probabilities of a cell   c = max p   H: entropy of p, nats

Cells committed in one pass are sampled independently, from the product of their marginals. The
error of this is bounded: KL(joint | product of marginals) <= sum of H - largest H (studies/exact.py
checks it). Each decoder here keeps the error small in its own way. All comparisons are strict,
where papers write "at least": then tau = 1, f = 0, lam = 0 and gamma = 0 commit one cell per pass
even where p rounds to 1. Every pass commits a cell, so there are at most A passes.
"""
import torch

from decoders.board import certainty, top_cells
from decoders.spec import Decoder, Param


def threshold(board, tau=0.9):
    """Fast-dLLM, arXiv 2505.22618, section 3.3: every cell whose confidence exceeds a threshold.

    commit all with c > tau, and always the most confident one
    """
    while board.unknown.any():
        logits = board.forward()  # (B, A, K)
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        cells = top_cells(confidence, board.unknown, 1) | board.unknown & (confidence > tau)
        board.commit(cells, board.sample(logits), confidence)
        yield


def factor(board, f=1.0):
    """Fast-dLLM, arXiv 2505.22618: n cells if the least confident of them is confident enough.

    commit the n cells of largest c, n maximal with (n + 1) (1 - c of the n-th) < f, at least one

    Theorem: at f = 1 these cells have the same most likely symbols together as one by one.
    """
    n = torch.arange(1, board.task.A + 1, device=board.tokens.device)
    while board.unknown.any():
        logits = board.forward()
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        ordered = confidence.masked_fill(~board.unknown, 0.0).sort(dim=1, descending=True).values
        fits = (n + 1) * (1 - ordered) < f  # (B, A) of the n-th
        cells = top_cells(confidence, board.unknown, (fits * n).amax(dim=1).clamp(min=1))
        board.commit(cells, board.sample(logits), confidence)
        yield


def med(board, lam=0.2, order="entropy"):
    """Multi-token entropy decoding, arXiv 2510.19990: every cell of small entropy.

    commit all with H < lam; where there is none, the first in `order`

    Not verified: whether the paper also limits how many.
    """
    while board.unknown.any():
        logits = board.forward()
        probs = logits.softmax(dim=-1)
        low = board.unknown & (-certainty(probs, "entropy") < lam)  # (B, A)
        one = top_cells(certainty(probs, order), board.unknown, 1)
        cells = torch.where(low.any(dim=1, keepdim=True), low, one)
        board.commit(cells, board.sample(logits), probs.amax(dim=-1))
        yield


def eb(board, gamma=0.01, order="entropy"):
    """Entropy-bounded sampler, arXiv 2505.24857: as many cells as an error budget allows.

    commit the first n in `order`, n maximal with sum of H - largest H < gamma, at least one

    The sum bounds the error of the pass in nats, so gamma is the error allowed per pass.
    """
    while board.unknown.any():
        logits = board.forward()
        probs = logits.softmax(dim=-1)
        H, score = -certainty(probs, "entropy"), certainty(probs, order)  # (B, A)
        first = score.masked_fill(~board.unknown, -torch.inf).argsort(
            dim=1, descending=True, stable=True)
        H = H.gather(1, first)  # in order; known cells come last and cannot be taken
        bound = H.cumsum(dim=1) - H.cummax(dim=1).values  # never decreases
        cells = top_cells(score, board.unknown, (bound < gamma).sum(dim=1).clamp(min=1))
        board.commit(cells, board.sample(logits), probs.amax(dim=-1))
        yield


def klass(board, tau=0.6, eps=0.015, h=2):
    """KLASS, arXiv 2511.05664: every confident cell whose prediction has stopped changing.

    commit all with c > tau whose KL(p now | p one pass ago) was below eps in each of the last h
    passes; where there is none, the most confident one (not verified in the paper)
    """
    before, stable_for = None, torch.zeros_like(board.unknown, dtype=torch.long)  # passes, (B, A)
    while board.unknown.any():
        logits = board.forward()
        log_p = logits.log_softmax(dim=-1)
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        if before is not None:
            kl = (log_p.exp() * (log_p - before)).sum(dim=-1)  # (B, A)
            stable_for = torch.where(kl < eps, stable_for + 1, 0)
        before = log_p
        stable = board.unknown & (confidence > tau) & (stable_for >= h)
        one = top_cells(confidence, board.unknown, 1)
        cells = torch.where(stable.any(dim=1, keepdim=True), stable, one)
        board.commit(cells, board.sample(logits), confidence)
        yield


ORDER = Param("entropy", ("entropy", "margin", "confidence"))
DECODERS = {
    "threshold": Decoder(
        threshold, "2505.22618", "all with max p > tau", {"tau": Param(0.9, 0.0, 1.0)},
        null={"tau": 1.0}, sweep=(0.5, 0.7, 0.9, 0.95, 0.99, 0.999), source="the paper's default"),
    "factor": Decoder(
        factor, "2505.22618", "the n of largest max p, (n + 1)(1 - max p of the n-th) < f",
        {"f": Param(1.0, 0.0, 1000.0)}, null={"f": 0.0}, sweep=(0.1, 0.25, 0.5, 1.0, 2.0),
        source="the paper's theorem holds up to f = 1"),
    "med": Decoder(
        med, "2510.19990", "all with H < lam", {"lam": Param(0.2, 0.0, 10.0), "order": ORDER},
        null={"lam": 0.0, "order": "confidence"}, sweep=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
        source="lam: the paper; it falls back on order entropy"),
    "eb": Decoder(
        eb, "2505.24857", "the first n of least H, sum H - max H < gamma",
        {"gamma": Param(0.01, 0.0, 100.0), "order": ORDER},
        null={"gamma": 0.0, "order": "confidence"}, sweep=(0.001, 0.01, 0.1, 0.5, 1.0),
        source="the paper sweeps gamma from 0.001 to 0.1; order: entropy is one of its three"),
    "klass": Decoder(
        klass, "2511.05664", "all with max p > tau and KL to the pass before < eps, h times",
        {"tau": Param(0.6, 0.0, 1.0), "eps": Param(0.015, 0.0, 100.0), "h": Param(2, 0, 256)},
        null={"tau": 1.0}, sweep=(0.4, 0.6, 0.8, 0.9, 0.99), source="one of the paper's settings"),
}
