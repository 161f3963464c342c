"""Keys and values that are kept from earlier passes, though every token here sees every other.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols
    C positions computed in a pass           H heads   D width   N passes from refresh to refresh

A known token changes no more, but what it has seen does: its keys and values beyond the first layer
go stale with every commit. These decoders use them all the same, and compute all anew every N
passes. Only what is computed is counted as fed.
"""
import torch
import torch.nn.functional as F

from decoders.board import certainty, surest
from decoders.row import Decoder, Knob
from model import visible
from plumbing.fast import attention_for


class Cache:
    """The keys and values of every position of every sample, as of when it was last computed."""

    def __init__(self, board):
        self.board = board
        self.kv = None  # (layers, 2, B, H, S, D/H)

    def look(self, fresh):
        """As board.look(), but of the unfinished samples only the cells in `fresh` are computed.

        fresh (B, A) bool, all cells unknown now among them; None: every position, prompt included.
        -> logits (B, A, K), right where fresh.
        """
        board, task = self.board, self.board.task
        rows = board.unfinished()
        compute = torch.ones_like(board.tokens, dtype=torch.bool)  # (B, S)
        if fresh is not None:
            compute = torch.cat([torch.zeros_like(compute[:, :task.P]), fresh], dim=1)
        compute = compute[rows]
        board.pay(rows, compute.sum(dim=1))
        # The computed positions first; a row that has fewer repeats its first, which is harmless.
        where = (~compute).long().argsort(dim=1, stable=True)[:, :int(compute.sum(dim=1).max())]
        where = where.where(compute.gather(1, where), where[:, :1])  # (R, C)
        seen = self.forward(board.tokens[rows], where, rows)  # (R, C, K)
        logits = seen.new_zeros(len(board.tokens), task.S, task.K)
        logits[rows.unsqueeze(1), where] = seen
        return logits[:, task.P:]

    def forward(self, tokens, where, rows):
        """model.forward at positions where (R, C) of tokens (R, S), which see all S."""
        board, task, model = self.board, self.board.task, self.board.model
        layers, (R, C) = [*model.blocks] * model.loops, where.shape
        x = model.token(tokens.gather(1, where)) + model.position(where)  # (R, C, D)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        rank, mask = board.rank(tokens), None
        if rank is not None:
            mask = visible(rank).expand(R, -1, -1)  # (R, S, S)
            mask = mask.gather(1, where.unsqueeze(2).expand(-1, -1, task.S)).unsqueeze(1)
        with attention_for(x.device.type, C):
            for i, block in enumerate(layers):
                D, H = x.shape[-1], block.attn.heads
                heads = block.attn.qkv(F.rms_norm(x, (D,))).view(R, C, 3, H, D // H)
                if self.kv is None:
                    self.kv = heads.new_zeros(len(layers), 2, len(board.tokens), H, task.S, D // H)
                q = heads[:, :, 0].transpose(1, 2)  # (R, H, C, D/H)
                kv = self.kv[i].permute(1, 3, 0, 2, 4)  # a view (B, S, 2, H, D/H)
                kv[rows.unsqueeze(1), where] = heads[:, :, 1:]
                k, v = self.kv[i][:, rows]  # each (R, H, S, D/H)
                x = x + block.attn.mix(q, k, v, mask)
                x = x + block.feed_forward(x)
        return model.read(x).float()  # (R, C, K)


def dkv(board, refresh=8, cache="delayed"):
    """dKV-Cache-Decode (arXiv 2505.15781): a token is computed once more after it is committed.

    delayed: a pass computes what was unknown one pass before, so it caches keys and values of the
    committed token; immediate: what is unknown now, so it keeps those of its MASK (the control).
    refresh = N: all positions anew every N passes. Ends after A passes.
    """
    kv, before, passes = Cache(board), None, 0
    while board.unknown.any():
        fresh = before if cache == "delayed" else board.unknown
        logits = kv.look(None if passes % refresh == 0 else fresh)  # (B, A, K)
        before, passes = board.unknown, passes + 1
        probs = logits.softmax(dim=-1)
        cells = surest(certainty(probs, "confidence"), board.unknown, 1)
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        yield logits  # for logit_errors


def freecache(board, refresh=32, block=8):
    """FreeCache (arXiv 2505.21467, abstract and notes only): the prompt and early cells are frozen.

    A pass computes the cells that were unknown one pass before its block of `block` passes began:
    what is given, and what earlier blocks have found, is frozen, but as a symbol and not as a MASK.
    block = 1 is dkv. refresh: all positions anew every N passes. Ends after A passes. Not here:
    the paper's guide, an autoregressive model that reads the proposal and unmasks what both say.
    That needs a second checkpoint, and one that can see the givens.
    """
    kv, before, passes = Cache(board), board.unknown, 0
    while board.unknown.any():
        if passes % block == 0:
            active = before
        logits = kv.look(None if passes % refresh == 0 else active)  # (B, A, K)
        before, passes = board.unknown, passes + 1
        probs = logits.softmax(dim=-1)
        cells = surest(certainty(probs, "confidence"), board.unknown, 1)
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        yield logits  # for logit_errors


@torch.no_grad()
def logit_errors(board, decoder):
    """How far the cache is off: dkv(board, ...) or freecache(board, ...) -> list of floats.

    One a pass: the largest |logit with cache - logit without| at an unknown cell of any sample, in
    the states that the decoder itself goes through. (The passes without are on the board's bill.)
    """
    errors, rows = [], torch.arange(len(board.tokens), device=board.tokens.device)
    tokens, unknown = board.tokens.clone(), board.unknown
    for logits in decoder:
        exact = board.forward(tokens, rows)  # (B, A, K)
        errors.append((logits - exact)[unknown].abs().max().item())
        tokens, unknown = board.tokens.clone(), board.unknown
    return errors


DECODERS = {
    "dkv": Decoder(
        dkv, "2505.15781", "compute what was unknown one pass before; the rest every N passes",
        {"refresh": Knob(8, 1, 1000), "cache": Knob("delayed", ("delayed", "immediate"))},
        null={"refresh": 1}, sweep=(2, 4, 8, 1000), needs_network=True,
        source="the paper's, for the low-confidence order"),
    "freecache": Decoder(
        freecache, "2505.21467", "compute what was unknown before the block of passes began",
        {"refresh": Knob(32, 1, 1000), "block": Knob(8, 1, 1000)},
        null={"refresh": 1}, sweep=(8, 32), needs_network=True,
        source="ours: the paper's are not verified"),
}
