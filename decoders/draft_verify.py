"""FreeDave: the model drafts several steps of plain at once and checks them in one pass.

    B samples   J drafts   R rows of one forward pass   S = P + A positions   A cells   K symbols

It is lossless: every commit is plain's own step, from the exact logits of that state. The answer
equals plain's bit for bit where arithmetic does not depend on the batch (fp32; under bf16 two
symbols may tie).
"""
import torch

from decoders.board import certainty, top_cells
from decoders.spec import Decoder, Param
from noise import sample_symbols, uniform


def freedave(board, drafts=4):
    """FreeDave (arXiv 2510.00294): draft j is the board with its j most confident cells filled.

    One pass evaluates J = `drafts` drafts of each sample. Draft 1 is plain's step; draft j + 1 is
    accepted if it is plain's step from the accepted draft j. The logits of the last accepted draft
    start the next round. Every round commits a cell, so there are at most A passes. At T > 0 a step
    uses plain's random numbers. (Not implemented: FreeDave++, with drafts seeded by a threshold.)
    """
    task, B = board.task, len(board.tokens)
    done, logits = torch.zeros_like(board.nfe), None  # (B,): steps of plain taken so far
    while board.unknown.any():
        logits = board.forward() if logits is None else logits  # (B, A, K)
        # 1. draft: J steps of plain, as if its logits would not change
        tokens, chain = board.tokens, []
        for j in range(drafts):
            cells, symbols = step_of_plain(board, tokens, logits, done + j)
            written = tokens[:, task.P:].where(~cells, symbols)
            tokens = torch.cat([tokens[:, :task.P], written], dim=1)
            chain.append(tokens)
        # 2. predict: all drafts in one pass, except boards that are full
        chain = torch.stack(chain)  # (J, B, S)
        open_ones = (chain == task.MASK).any(dim=2)  # (J, B)
        predicted = logits.new_zeros(drafts, B, task.A, task.K)
        if open_ones.any():
            predicted[open_ones] = board.predict(chain[open_ones], open_ones.nonzero()[:, 1])
        # 3. verify: take plain's steps as long as they equal the drafts
        agree = board.unknown.any(dim=1)  # (B,)
        for j in range(drafts):
            cells, symbols = step_of_plain(board, board.tokens, logits, done)
            step = board.symbols.where(~cells, symbols)  # (B, A)
            agree = agree & cells.any(dim=1) & (step == chain[j, :, task.P:]).all(dim=1)
            if not agree.any():
                break
            board.logits = logits
            board.commit(cells & agree.unsqueeze(1), symbols, logits.softmax(dim=-1).amax(dim=-1))
            logits, done = predicted[j].where(agree.view(-1, 1, 1), logits), done + agree
            yield


def step_of_plain(board, tokens, logits, step):
    """plain's next step: tokens (B, S), logits -> its cell, bool (B, A), and symbols (B, A).

    step (B,): how many steps each sample has taken; the random numbers depend on it.
    """
    score = certainty(logits.softmax(dim=-1), "confidence")
    cells = top_cells(score, tokens[:, board.task.P:] == board.task.MASK, 1)
    noise = uniform(board.keys, 2 * step.unsqueeze(1) + 1, *logits.shape[1:])  # (B, A, K)
    return cells, sample_symbols(logits, board.temperature, noise)


DECODERS = {
    "freedave": Decoder(
        freedave, "2510.00294", "accept draft j + 1 iff it is plain's step from draft j",
        {"drafts": Param(4, 1, 64)}, null={"drafts": 1}, sweep=(2, 4, 8), source="the paper's"),
}
