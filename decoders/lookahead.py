"""Decoders that use more than one state: CCD the last ones, LookUM the next ones.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols   J paths
"""
from collections import deque

import torch

from decoders.board import certainty, top_cells
from decoders.spec import Decoder, Param
from noise import uniform


def ccd(board, top=4, d=2, rule="agree", order="entropy"):
    """Coherent Contextual Decoding (arXiv 2512.02044): commit what d passes in a row agree on.

    agree (the released code): commit the most certain cell, and every cell that was among the `top`
    most certain ones with the same most likely symbol now and in the d - 1 passes before. average
    (the paper's text): commit the cell that is most certain by the mean of its last d
    distributions. both: agreement of that mean. Ends after at most A passes. (Not implemented: the
    released code's 5 warm-up passes with a growing buffer; read in notes on a preliminary release.)
    """
    past, guesses = deque(maxlen=d), deque(maxlen=d - 1)
    while board.unknown.any():
        logits = board.forward()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        past.append(probs)
        if rule != "agree":
            probs = torch.stack([*past]).mean(dim=0)
            logits = probs.log()
        score = certainty(probs, order)  # (B, A)
        cells = top_cells(score, board.unknown, 1)
        listed = top_cells(score, board.unknown, top)
        guess = probs.argmax(dim=-1).where(listed, -1)  # (B, A)
        if rule != "average" and len(guesses) == d - 1 > 0:
            same = torch.stack([guess == earlier for earlier in guesses]).all(dim=0)
            cells = cells | listed & same
        guesses.append(guess)
        board.commit(cells, board.sample(logits), probs.amax(dim=-1))
        yield


def lookum(board, paths=2, cells=2, pool=5):
    """LookUM (arXiv 2511.05563): of J = `paths` sets of cells take the one that leaves the least
    uncertainty.

    The first set is plain's; the others are sampled from the `pool` most confident cells, in
    proportion to their confidence. The set whose next state has the smallest mean entropy is
    committed, and that state is also the next pass, so a pass costs J times the pairs and nothing
    else. (Not verified: how the paper samples and weights its sets.) Ends after A / cells passes.
    """
    task, B = board.task, len(board.tokens)
    logits = None
    while board.unknown.any():
        logits = board.forward() if logits is None else logits  # (B, A, K)
        probs, symbols, unknown = logits.softmax(dim=-1), board.sample(logits), board.unknown
        score = certainty(probs, "confidence")  # (B, A)
        pooled = top_cells(score, unknown, max(pool, cells))
        noise = uniform(board.keys, 2 * board.steps, paths, task.A)
        sets = [top_cells(score, unknown, cells)]
        sets += [top_cells(score / -noise[:, j].log(), pooled, cells) for j in range(1, paths)]
        sets = torch.stack(sets)  # (J, B, A)
        ahead = torch.where(sets, symbols, board.symbols)  # (J, B, A)
        still = ahead == task.MASK  # (J, B, A)
        ahead = torch.cat([board.tokens[:, :task.P].expand(paths, -1, -1), ahead], dim=2)
        open_ones = still.any(dim=2)  # (J, B): a full board is not predicted
        predicted = logits.new_zeros(paths, B, task.A, task.K)
        if open_ones.any():
            predicted[open_ones] = board.predict(ahead[open_ones], open_ones.nonzero()[:, 1])
        H = -certainty(predicted.softmax(dim=-1), "entropy")  # (J, B, A) nats
        best = ((H * still).sum(dim=2) / still.sum(dim=2).clamp(min=1)).argmin(dim=0)  # (B,)
        each = torch.arange(B, device=best.device)
        board.commit(sets[best, each], symbols, score)
        logits = predicted[best, each]
        yield


DECODERS = {
    "ccd": Decoder(
        ccd, "2512.02044", "the most certain, and all in the `top` with one argmax for d passes",
        {"top": Param(4, 1, 256), "d": Param(2, 1, 64),
         "rule": Param("agree", ("agree", "average", "both")),
         "order": Param("entropy", ("confidence", "margin", "entropy"))},
        null={"d": 1, "order": "confidence"}, sweep=(2, 4, 8, 16), source="the paper's for LLaDA"),
    "lookum": Decoder(
        lookum, "2511.05563", "of J sets of cells the one with least mean H in the next state",
        {"paths": Param(2, 1, 64), "cells": Param(2, 1, 256), "pool": Param(5, 1, 256)},
        null={"paths": 1, "cells": 1}, sweep=(1, 2, 4), source="the paper's (from notes)"),
}
