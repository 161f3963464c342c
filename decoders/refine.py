"""Latent Refinement Decoding: an unknown cell feeds its belief back in, and a calm board is read.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols   D width
"""
import math

import torch

from decoders.board import certainty, surest
from decoders.row import Decoder, Knob
from model import visible
from plumbing.fast import attention_for


def lrd(board, stop=0.001, mix=0.15, refine=20, top_p=0.9, order="entropy"):
    """Soft masks, then a stop by KL (arXiv 2510.11052, Eq. 4; its Appendix D says a = r H instead).

    a = mix (1 - H / log K); embedding of an unknown cell: (1 - a) e_MASK + a sum of p(v) e_v over
    the nucleus top_p. First up to `refine` passes that commit nothing, until the beliefs are calm:
    mean KL(p now, p before) over the unknown cells < stop. Then one cell a pass, and all that are
    left as soon as a pass that follows a commit is calm. Ends after refine + A passes.
    """
    soft = before = None  # (B, A, D), (B, A, K)
    decoding, passes = torch.zeros(len(board.tokens), dtype=torch.bool, device=board.nfe.device), 0
    while board.unknown.any():
        logits = look_soft(board, soft)  # (B, A, K)
        probs, passes = logits.softmax(dim=-1), passes + 1
        calm = drift(probs, before, board.unknown) < stop  # (B,)
        cells = surest(certainty(probs, order), board.unknown, 1)
        cells = cells | (calm & decoding).unsqueeze(1)
        decoding = decoding | calm | (passes > refine)  # the pass that ends the thinking commits
        board.commit(cells & decoding.unsqueeze(1), board.draw(logits), probs.amax(dim=-1))
        soft, before = mixture(board.model.token.weight, probs, mix, top_p, board.task), probs
        yield


def drift(probs, before, unknown):
    """Mean KL(probs, before) over the unknown cells: (B, A, K) twice -> (B,) nats; inf at first."""
    if before is None:
        return torch.full(unknown.shape[:1], torch.inf, device=unknown.device)
    tiny = torch.finfo(probs.dtype).tiny
    kl = (probs * (probs.clamp(min=tiny) / before.clamp(min=tiny)).log()).sum(dim=-1)  # (B, A)
    kl = kl.clamp(min=0)  # rounding: no stop at 0
    return (kl * unknown).sum(dim=1) / unknown.sum(dim=1).clamp(min=1)


def mixture(embedding, probs, mix, top_p, task):
    """What an unknown cell feeds in: embedding (V, D), probs (B, A, K) -> (B, A, D). Eq. 4."""
    top, symbols = probs.sort(dim=-1, descending=True, stable=True)
    nucleus = top * (top.cumsum(dim=-1) - top < top_p)  # up to the one that reaches top_p
    nucleus = torch.zeros_like(probs).scatter(-1, symbols, nucleus)
    belief = nucleus / nucleus.sum(dim=-1, keepdim=True) @ embedding[:task.K].float()
    entropy = -torch.special.xlogy(probs, probs).sum(dim=-1, keepdim=True)  # (B, A, 1) nats
    a = mix * (1 - entropy / math.log(task.K))
    return (1 - a) * embedding[task.MASK] + a * belief


def look_soft(board, soft):
    """board.look(), the unknown cells given by their embeddings soft (B, A, D); None: by MASK."""
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
    mask = None
    if rank is not None:
        mask = visible(rank).unsqueeze(1)  # (R, 1, S, S)
    with attention_for(x.device.type, task.S):
        for block in [*model.blocks] * model.loops:
            x = block(x, mask, False, None)
    board.pay(rows, task.S)
    seen = model.read(x)[:, task.P:].float()
    logits = seen.new_zeros(len(board.tokens), task.A, task.K)
    logits[rows] = seen
    return logits


DECODERS = {
    "lrd": Decoder(
        lrd, "2510.11052", "mask = (1 - a) e_MASK + a E_p[e], a = mix (1 - H / log K); all that "
        "are left when mean KL(p, p before) < stop",
        {"stop": Knob(0.001, 0.0, 100.0), "mix": Knob(0.15, 0.0, 1.0), "refine": Knob(20, 0, 1000),
         "top_p": Knob(0.9, 0.01, 1.0),
         "order": Knob("entropy", ("confidence", "margin", "entropy"))},
        null={"stop": 0.0, "mix": 0.0, "refine": 0, "order": "confidence"},
        sweep=(0.0001, 0.001, 0.01, 0.1), needs_network=True,
        source="the paper's, but its stop of 0.1 is for text: on hard Sudokus it solves nothing"),
}
