"""Ceilings: what an order could reach that KNOWS which guess is right. No decoders of the table.

    B samples   A cells   K symbols   k cells per pass

Both loops are given the answers, as decoders never are. They choose CELLS by them, not symbols:
what is committed is always the model's own guess, so a board is lost where the model has no right
guess left. What they solve is a ceiling in practice (no theorem: more right cells may mislead).
"""
from decoders.board import surest


def oracle_decode(board, references, force=False):
    """EGP, extremely greedy parallel (Learn2PD, arXiv 2509.25188): commit every right guess.

    references (B, A): the answers, a row of -1 where there is none (nothing is right then).
    Where no guess of a sample is right, its surest cell is committed all the same: with its wrong
    guess, or with force by the answer (the paper's guard, for replays that must reach it).
    Ends: every pass commits at least one cell of each unfinished sample.
    """
    while board.unknown.any():
        board.logits = board.look()  # (B, A, K)
        confidence, symbols = board.logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        right = board.unknown & (symbols == references)
        stuck = board.unknown & ~right.any(dim=1, keepdim=True)
        cells = right | surest(confidence, stuck, 1)
        if force:
            symbols = references.where(stuck & (references >= 0), symbols)
        board.commit(cells, symbols, confidence)
        yield


def oracle_order(board, references, k=1):
    """The surest k of the right guesses: plain, if it never had to commit a wrong one.

    As oracle_decode() in everything else. k = 1 makes a mistake only where no guess is
    right; it takes as many passes as plain.
    """
    while board.unknown.any():
        board.logits = board.look()  # (B, A, K)
        confidence, symbols = board.logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        right = board.unknown & (symbols == references)
        stuck = board.unknown & ~right.any(dim=1, keepdim=True)
        cells = surest(confidence, right, k) | surest(confidence, stuck, 1)
        board.commit(cells, symbols, confidence)
        yield
