"""The plain decoder: commit the k most confident cells of every pass. All others diff against it.

    B samples   A cells   K symbols   k cells per pass
"""
from decoders.board import certainty, top_cells
from decoders.spec import Decoder, Param


def plain(board, k=1, order="confidence"):
    """LLaDA's low-confidence order (arXiv 2502.09992), margin (2502.06768), Dream's entropy.

    commit the k unknown cells of largest certainty; random: any k
    """
    while board.unknown.any():
        logits = board.forward()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        score = board.noise() if order == "random" else certainty(probs, order)  # (B, A)
        cells = top_cells(score, board.unknown, k)  # <- the line that a paper changes
        board.commit(cells, board.sample(logits), probs.amax(dim=-1))
        yield


DECODERS = {
    "plain": Decoder(
        plain, "2502.09992", "the k of largest max p",
        {"k": Param(1, 1, 256),
         "order": Param("confidence", ("confidence", "margin", "entropy", "random"))},
        null={}, sweep=(1, 2, 3, 4, 8), source="LLaDA: one cell per pass"),
}
