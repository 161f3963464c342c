"""Blocks without training for them: only cells of the first unfinished block may be committed.

    B samples   A cells   K symbols   k cells per pass   T pairs of the sample with the most pairs

studies/block_diffusion.py trains a model for blocks and caches the finished ones.
"""
import torch

from decoders.board import top_cells
from decoders.spec import Decoder, Param


def block(board, size=9, later="present", k=1):
    """Semi-autoregressive decoding (LLaDA, arXiv 2502.09992; Fast-dLLM v2, 2509.26328).

    commit the k most confident cells of the first block with an unknown cell; blocks of `size`
    cells, in their order. later = present: unknown cells of later blocks are latents, as in
    training. absent: they are left out of the pass, which costs less; mdm was not trained on
    sequences with gaps. For sidm both give the same answers: its unknown cells never see another.
    """
    number = torch.arange(board.task.A, device=board.tokens.device) // size  # (A,)
    while board.unknown.any():
        unknown = board.unknown
        current = number.expand_as(unknown).masked_fill(~unknown, board.task.A).amin(dim=1)  # (B,)
        ahead = unknown & (number > current.unsqueeze(1))  # (B, A)
        logits = board.forward() if later == "present" else forward_without(board, ahead)
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        cells = top_cells(confidence, unknown & ~ahead, k)
        board.commit(cells, board.sample(logits), confidence)
        yield


def forward_without(board, absent):
    """board.forward() with the cells `absent` (B, A) left out; their logits mean nothing.

    A sample with fewer pairs than another is padded on the right. Padding has rank +inf, so nothing
    sees it, and it is not charged.
    """
    P, rows = board.task.P, board.unfinished()
    board.absent = absent
    present = torch.nn.functional.pad(~absent[rows], (P, 0), value=True)  # (R, S)
    count = present.sum(dim=1)  # (R,)
    positions = (~present).long().argsort(dim=1, stable=True)[:, :count.max()]  # (R, T)
    tokens = board.tokens[rows].gather(1, positions)
    level = (tokens == board.task.MASK).long()
    rank = board.ranks(level)
    rank = (torch.zeros_like(level) if rank is None else rank).float()
    padding = torch.arange(positions.shape[1], device=rows.device) >= count.unsqueeze(1)
    board.charge(rows, count)
    predicted = board.model(tokens, positions, rank.masked_fill(padding, torch.inf)).float()
    logits = predicted.new_zeros(len(board.tokens), board.task.S, predicted.shape[2])
    logits[rows.unsqueeze(1), positions] = predicted  # (R, T, K)
    return logits[:, P:]


DECODERS = {
    "block": Decoder(
        block, "2509.26328", "the k of largest max p in the first unfinished block",
        {"size": Param(9, 1, 256), "later": Param("present", ("present", "absent")),
         "k": Param(1, 1, 256)},
        null={"size": 256}, sweep=(1, 3, 9, 27, 81),
        source="a row of a 9x9 board; the papers' 32 are tokens of text"),
}
