"""Blocks, without training for them: only the first block that is not full may be committed.

    B samples   A cells   K symbols   k cells per pass   T pairs of the widest sample

A model that is trained for blocks, with a cache of those that are full: block_diffusion.py.
"""
import torch

from decoders.board import surest
from decoders.row import Decoder, Knob


def block(board, size=9, later="present", k=1):
    """Semi-autoregressive decoding (LLaDA, arXiv 2502.09992; Fast-dLLM v2, 2509.26328).

    commit the k surest cells of the first block with an unknown cell; blocks of `size` cells in
    their order. later=present: unknown cells of later blocks are latents, as in training. absent:
    they are not in the pass, which then costs less; to mdm, which never saw a sequence with holes,
    that is new. To sidm it is the same: there no unknown cell is seen by another.
    """
    number = torch.arange(board.task.A, device=board.tokens.device) // size  # (A,)
    while board.unknown.any():
        unknown = board.unknown
        current = number.expand_as(unknown).masked_fill(~unknown, board.task.A).amin(dim=1)  # (B,)
        ahead = unknown & (number > current.unsqueeze(1))  # (B, A)
        logits = board.look() if later == "present" else look_without(board, ahead)  # (B, A, K)
        probs = logits.softmax(dim=-1)
        confidence = probs.amax(dim=-1)
        cells = surest(confidence, unknown & ~ahead, k)
        board.commit(cells, board.draw(logits), confidence)
        yield


def look_without(board, absent):
    """board.look() with the cells `absent` (B, A) not in the pass; their logits mean nothing.

    Seats are filled from the left; an empty one has rank +inf: nobody sees it, nobody pays for it.
    """
    P, rows = board.task.P, board.unfinished()
    board.absent = absent
    present = torch.nn.functional.pad(~absent[rows], (P, 0), value=True)  # (R, S)
    seats = present.sum(dim=1)  # (R,)
    positions = (~present).long().argsort(dim=1, stable=True)[:, :seats.max()]  # (R, T)
    tokens = board.tokens[rows].gather(1, positions)
    turn = (tokens == board.task.MASK).long()
    rank = board.ranks(turn)
    rank = (torch.zeros_like(turn) if rank is None else rank).float()
    empty = torch.arange(positions.shape[1], device=rows.device) >= seats.unsqueeze(1)
    board.pay(rows, seats)
    seen = board.model(tokens, positions, rank.masked_fill(empty, torch.inf)).float()  # (R, T, K)
    logits = seen.new_zeros(len(board.tokens), board.task.S, seen.shape[2])
    logits[rows.unsqueeze(1), positions] = seen
    return logits[:, P:]


DECODERS = {
    "block": Decoder(
        block, "2509.26328", "the k of largest max p in the first block that is not full",
        {"size": Knob(9, 1, 256), "later": Knob("present", ("present", "absent")),
         "k": Knob(1, 1, 256)},
        null={"size": 256}, sweep=(1, 3, 9, 27, 81),
        source="a row of a 9x9 board; the papers' 32 are tokens of text"),
}
