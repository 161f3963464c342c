"""Upper bounds: an order of decoding that KNOWS which guess is right. No decoder of the table.

    B samples   A cells   K symbols   k cells per pass

The loop reads the answers, which decoders never do. It uses them to choose CELLS, not symbols: the
committed symbol is always the model's own guess, so a board is lost where the model has no right
guess left. This is a ceiling in practice, not a theorem: more right cells may mislead.
"""
from decoders.board import top_cells


def oracle_decode(board, references, k=None, force=False):
    """Commit every right guess: EGP, extremely greedy parallel (Learn2PD, arXiv 2509.25188).

    references (B, A): the answers, a row of -1 where there is none (then no guess is right).
    k: only the k most confident right guesses; k = 1 is plain, if it never had to commit a wrong
    one. Where no guess of a sample is right, its most confident cell is committed with its wrong
    guess, or with force by the answer (the paper's guard, for replays that must reach the answer).
    Every pass commits at least one cell of each unfinished sample.
    """
    while board.unknown.any():
        board.logits = board.forward()  # (B, A, K)
        confidence, symbols = board.logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        right = board.unknown & (symbols == references)
        stuck = board.unknown & ~right.any(dim=1, keepdim=True)
        chosen = right if k is None else top_cells(confidence, right, k)
        if force:
            symbols = references.where(stuck & (references >= 0), symbols)
        board.commit(chosen | top_cells(confidence, stuck, 1), symbols, confidence)
        yield
