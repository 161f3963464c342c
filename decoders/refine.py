"""Latent Refinement Decoding: an unknown cell feeds its belief back in; stable beliefs are read.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols   D width
"""
import math

import torch

from decoders.board import certainty, top_cells
from decoders.spec import Decoder, Param
from model import attention_for, visible


def lrd(board, stop=0.001, mix=0.15, refine=20, top_p=0.9, order="entropy"):
    """Soft masks, and a stop by KL (arXiv 2510.11052, Eq. 4; its Appendix D says a = r H instead).

    a = mix (1 - H / log K); embedding of an unknown cell: (1 - a) e_MASK + a sum of p(v) e_v over
    the nucleus top_p. Up to `refine` passes first commit nothing, until the beliefs are stable:
    mean KL(p now, p before) over the unknown cells < stop. Then one cell a pass, and all cells as
    soon as a pass that follows a commit is stable. Ends after refine + A passes.
    """
    soft = before = None  # (B, A, D), (B, A, K)
    decoding, passes = torch.zeros(len(board.tokens), dtype=torch.bool, device=board.nfe.device), 0
    while board.unknown.any():
        logits = forward_soft(board, soft)  # (B, A, K)
        probs, passes = logits.softmax(dim=-1), passes + 1
        stable = change(probs, before, board.unknown) < stop  # (B,)
        cells = top_cells(certainty(probs, order), board.unknown, 1)
        cells = cells | (stable & decoding).unsqueeze(1)
        decoding = decoding | stable | (passes > refine)  # the pass that ends refinement commits
        board.commit(cells & decoding.unsqueeze(1), board.sample(logits), probs.amax(dim=-1))
        soft, before = mixture(board.model.token.weight, probs, mix, top_p, board.task), probs
        yield


def change(probs, before, unknown):
    """Mean KL(probs, before) over the unknown cells: (B, A, K) twice -> (B,) nats; inf at first."""
    if before is None:
        return torch.full(unknown.shape[:1], torch.inf, device=unknown.device)
    tiny = torch.finfo(probs.dtype).tiny
    kl = (probs * (probs.clamp(min=tiny) / before.clamp(min=tiny)).log()).sum(dim=-1)  # (B, A)
    kl = kl.clamp(min=0)  # rounding must not make it less than a stop of 0
    return (kl * unknown).sum(dim=1) / unknown.sum(dim=1).clamp(min=1)


def mixture(embedding, probs, mix, top_p, task):
    """The input of an unknown cell: embedding (V, D), probs (B, A, K) -> (B, A, D). Eq. 4."""
    top, symbols = probs.sort(dim=-1, descending=True, stable=True)
    nucleus = top * (top.cumsum(dim=-1) - top < top_p)  # up to the one that reaches top_p
    nucleus = torch.zeros_like(probs).scatter(-1, symbols, nucleus)
    belief = nucleus / nucleus.sum(dim=-1, keepdim=True) @ embedding[:task.K].float()
    entropy = -torch.special.xlogy(probs, probs).sum(dim=-1, keepdim=True)  # (B, A, 1) nats
    a = mix * (1 - entropy / math.log(task.K))
    return (1 - a) * embedding[task.MASK] + a * belief


def forward_soft(board, soft):
    """board.forward() with embeddings soft (B, A, D) for the unknown cells; None: that of MASK."""
    model, task, rows = board.model, board.task, board.unfinished()
    tokens = board.tokens[rows]  # (R, S)
    x = model.token(tokens)  # (R, S, D)
    if soft is not None:
        unknown = (tokens[:, task.P:] == task.MASK).unsqueeze(-1)
        cells = torch.where(unknown, soft[rows].to(x.dtype), x[:, task.P:])
        x = torch.cat([x[:, :task.P], cells], dim=1)
    x = x + model.position(board.positions)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    rank = board.rank(tokens)
    mask = None if rank is None else visible(rank).unsqueeze(1)  # (R, 1, S, S)
    with attention_for(x.device.type, task.S):
        for block in [*model.blocks] * model.loops:
            x = block(x, mask, False, None)
    board.charge(rows, task.S)
    predicted = model.read(x)[:, task.P:].float()
    logits = predicted.new_zeros(len(board.tokens), task.A, task.K)
    logits[rows] = predicted
    return logits


DECODERS = {
    "lrd": Decoder(
        lrd, "2510.11052", "mask = (1 - a) e_MASK + a E_p[e], a = mix (1 - H / log K); all that "
        "are left when mean KL(p, p before) < stop",
        {"stop": Param(0.001, 0.0, 100.0), "mix": Param(0.15, 0.0, 1.0),
         "refine": Param(20, 0, 1000), "top_p": Param(0.9, 0.01, 1.0),
         "order": Param("entropy", ("confidence", "margin", "entropy"))},
        null={"stop": 0.0, "mix": 0.0, "refine": 0, "order": "confidence"},
        sweep=(0.0001, 0.001, 0.01, 0.1), needs_network=True,
        source="the paper's, but its stop of 0.1 is for text: on hard Sudokus it solves nothing"),
}
