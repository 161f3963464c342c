"""FreeDave: the model drafts several steps of plain at once and checks them in one pass.

    B samples   J drafts   R rows of one forward pass   S = P + A positions   A cells   K symbols

Lossless: what is committed is always plain's own step, from the exact logits of the state it is
taken in. So the answer is plain's to the bit where arithmetic does not depend on the batch (fp32;
under bf16 two symbols may be as likely as each other).
"""
import torch

from decoders.board import certainty, surest
from decoders.row import Decoder, Knob
from plumbing.randomness import uniform
from sample import draw


def freedave(board, drafts=4):
    """FreeDave (arXiv 2510.00294): draft j is the board with its j surest cells filled.

    One pass looks at J = `drafts` drafts of each sample. Draft 1 is plain's step; draft j + 1 is
    accepted if it is plain's step from the accepted draft j. The logits of the last accepted one
    are those of the next round. Every round commits a cell, so it ends after at most A passes. Also
    at T > 0: a step's random numbers are plain's. (Not here: FreeDave++, whose drafts are seeded by
    a threshold.)
    """
    task, B = board.task, len(board.tokens)
    done, logits = torch.zeros_like(board.nfe), None  # (B,): steps of plain taken so far
    while board.unknown.any():
        logits = board.look() if logits is None else logits  # (B, A, K)
        # 1. draft: J steps of plain, as if its logits would not change
        tokens, chain = board.tokens, []
        for j in range(drafts):
            cells, symbols = step_of_plain(board, tokens, logits, done + j)
            written = tokens[:, task.P:].where(~cells, symbols)
            tokens = torch.cat([tokens[:, :task.P], written], dim=1)
            chain.append(tokens)
        # 2. look at all of them in one pass, but not at a full board
        chain = torch.stack(chain)  # (J, B, S)
        going = (chain == task.MASK).any(dim=2)  # (J, B)
        seen = logits.new_zeros(drafts, B, task.A, task.K)
        if going.any():
            seen[going] = board.forward(chain[going], going.nonzero()[:, 1])
        # 3. verify: take plain's steps for as long as they are the drafted ones
        agree = board.unknown.any(dim=1)  # (B,)
        for j in range(drafts):
            cells, symbols = step_of_plain(board, board.tokens, logits, done)
            step = board.symbols.where(~cells, symbols)  # (B, A)
            agree = agree & cells.any(dim=1) & (step == chain[j, :, task.P:]).all(dim=1)
            if not agree.any():
                break
            board.logits = logits
            board.commit(cells & agree.unsqueeze(1), symbols, logits.softmax(dim=-1).amax(dim=-1))
            logits, done = seen[j].where(agree.view(-1, 1, 1), logits), done + agree
            yield


def step_of_plain(board, tokens, logits, step):
    """Of tokens (B, S) and their logits -> the cell plain takes, bool (B, A), and symbols (B, A).

    step (B,): how many steps each sample has taken; the random numbers belong to it.
    """
    score = certainty(logits.softmax(dim=-1), "confidence")
    cells = surest(score, tokens[:, board.task.P:] == board.task.MASK, 1)
    noise = uniform(board.keys, 2 * step.unsqueeze(1) + 1, *logits.shape[1:])  # (B, A, K)
    return cells, draw(logits, board.temperature, noise)


DECODERS = {
    "freedave": Decoder(
        freedave, "2510.00294", "accept draft j + 1 iff it is plain's step from draft j",
        {"drafts": Knob(4, 1, 64)}, null={"drafts": 1}, sweep=(2, 4, 8), source="the paper's"),
}
