"""Keys and values reused from earlier passes, although every token sees every other one.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols
    C positions computed in a pass           H heads   D width   N passes between refreshes

The symbol of a known token no longer changes, but what it sees does: beyond the first layer its
keys and values become stale with every commit. These decoders reuse them all the same and recompute
everything every N passes. Only the pairs that are computed are charged.
"""
import torch
import torch.nn.functional as F

from decoders.board import top_cells
from decoders.spec import Decoder, Param
from model import attention_for, visible


class Cache:
    """The keys and values of every position of every sample, from when it was last computed."""

    def __init__(self, board):
        self.board = board
        self.kv = None  # (layers, 2, B, H, S, D/H)

    def forward(self, fresh):
        """board.forward() that computes only the cells in `fresh` -> logits (B, A, K), right there.

        fresh (B, A) bool contains all unknown cells; None: every position, prompt included.
        """
        board, task = self.board, self.board.task
        rows = board.unfinished()
        every = torch.ones_like(board.tokens, dtype=torch.bool)  # (B, S)
        compute = (every if fresh is None else F.pad(fresh, (task.P, 0)))[rows]  # (R, S)
        board.charge(rows, compute.sum(dim=1))
        # The computed positions come first; a row that has fewer repeats its first one.
        where = (~compute).long().argsort(dim=1, stable=True)[:, :int(compute.sum(dim=1).max())]
        where = where.where(compute.gather(1, where), where[:, :1])  # (R, C)
        predicted = self.predict(board.tokens[rows], where, rows)  # (R, C, K)
        logits = predicted.new_zeros(len(board.tokens), task.S, task.K)
        logits[rows.unsqueeze(1), where] = predicted
        return logits[:, task.P:]

    def predict(self, tokens, where, rows):
        """model.forward at positions where (R, C) of tokens (R, S); they see all S positions."""
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


def one_by_one(board, refresh, block=1, delayed=True):
    """plain at k = 1 with a cache: a pass computes the cells in `active`, see dkv and freecache."""
    cache, before, passes = Cache(board), board.unknown, 0  # before: unknown one pass ago
    while board.unknown.any():
        if passes % block == 0:
            active = before if delayed else board.unknown
        logits = cache.forward(None if passes % refresh == 0 else active)  # (B, A, K)
        before, passes = board.unknown, passes + 1
        confidence = logits.softmax(dim=-1).amax(dim=-1)
        cells = top_cells(confidence, board.unknown, 1)
        board.commit(cells, board.sample(logits), confidence)
        yield logits  # for logit_errors


def dkv(board, refresh=8, cache="delayed"):
    """dKV-Cache-Decode (arXiv 2505.15781): a token is computed once more after it is committed.

    delayed: a pass computes the cells that were unknown one pass before, so it caches the keys and
    values of the committed token. immediate: the cells unknown now, so it keeps those of MASK (the
    control). refresh = N: everything is recomputed every N passes. Ends after A passes.
    """
    return one_by_one(board, refresh, delayed=cache == "delayed")


def freecache(board, refresh=32, block=8):
    """FreeCache (arXiv 2505.21467, abstract and notes only): prompt and early cells are frozen.

    A pass computes the cells that were unknown one pass before its block of `block` passes began;
    givens and cells found in earlier blocks are frozen, with their symbols. block = 1 is dkv.
    Not implemented: the paper's guide, an autoregressive model that reads the proposal and unmasks
    where both agree; it needs a second checkpoint that can see the givens.
    """
    return one_by_one(board, refresh, block)


@torch.no_grad()
def logit_errors(board, decoder):
    """The error of the cache: dkv(board, ...) or freecache(board, ...) -> a float for each pass.

    It is the largest |logit with cache - logit without| at an unknown cell of any sample. (The
    passes without a cache are charged to the board as well.)
    """
    errors, rows = [], torch.arange(len(board.tokens), device=board.tokens.device)
    tokens, unknown = board.tokens.clone(), board.unknown
    for logits in decoder:
        exact = board.predict(tokens, rows)  # (B, A, K)
        errors.append((logits - exact)[unknown].abs().max().item())
        tokens, unknown = board.tokens.clone(), board.unknown
    return errors


DECODERS = {
    "dkv": Decoder(
        dkv, "2505.15781", "compute what was unknown one pass before; the rest every N passes",
        {"refresh": Param(8, 1, 1000), "cache": Param("delayed", ("delayed", "immediate"))},
        null={"refresh": 1}, sweep=(2, 4, 8, 1000), needs_network=True,
        source="the paper's, for the low-confidence order"),
    "freecache": Decoder(
        freecache, "2505.21467", "compute what was unknown before the block of passes began",
        {"refresh": Param(32, 1, 1000), "block": Param(8, 1, 1000)}, null={"refresh": 1},
        sweep=(8, 32), needs_network=True, source="ours: the paper's are not verified"),
}
