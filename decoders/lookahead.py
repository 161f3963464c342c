"""Decoders that look at more than one state: CCD at the last ones, LookUM at the next ones.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols   J paths
"""
from collections import deque

import torch

from decoders.board import certainty, surest
from decoders.row import Decoder, Knob
from plumbing.randomness import uniform


def ccd(board, top=4, d=2, rule="agree", order="entropy"):
    """Coherent Contextual Decoding (arXiv 2512.02044): what holds in d contexts in a row is known.

    agree (the released code): commit the surest cell, and every cell that is among the `top` surest
    with the same likeliest symbol now and in the d - 1 passes before. average (the paper's text):
    commit the one cell that is surest by the mean of its last d distributions. both: agreement of
    that mean. Ends after at most A passes. (Not here: the released code's 5 warm-up passes with a
    growing buffer; facts about it are from notes on a preliminary release.)
    """
    past, guesses = deque(maxlen=d), deque(maxlen=d - 1)
    while board.unknown.any():
        logits = board.look()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        past.append(probs)
        if rule != "agree":
            probs = torch.stack([*past]).mean(dim=0)
            logits = probs.log()
        score = certainty(probs, order)  # (B, A)
        cells = surest(score, board.unknown, 1)
        listed = surest(score, board.unknown, top)
        guess = probs.argmax(dim=-1).where(listed, -1)  # (B, A)
        if rule != "average" and len(guesses) == d - 1 > 0:
            same = torch.stack([guess == earlier for earlier in guesses]).all(dim=0)
            cells = cells | (listed & same)
        guesses.append(guess)
        board.commit(cells, board.draw(logits), probs.amax(dim=-1))
        yield


def lookum(board, paths=2, cells=2, pool=5):
    """LookUM (arXiv 2511.05563): of J = `paths` sets of cells take the one that leaves least doubt.

    The first set is plain's, the others are drawn from the `pool` surest cells, in proportion to
    their certainty; the set whose next state has the least mean entropy is committed. That look is
    also the next pass, so a pass costs J times the pairs and nothing else. (How the paper draws and
    weights its sets is not verified; here the best is taken.) Ends after A / cells passes.
    """
    task, B = board.task, len(board.tokens)
    logits = None
    while board.unknown.any():
        logits = board.look() if logits is None else logits  # (B, A, K)
        probs, symbols, unknown = logits.softmax(dim=-1), board.draw(logits), board.unknown
        score = certainty(probs, "confidence")  # (B, A)
        sure = surest(score, unknown, max(pool, cells))
        noise = uniform(board.keys, 2 * board.steps, paths, task.A)
        sets = [surest(score, unknown, cells)]
        sets += [surest(score / -noise[:, j].log(), sure, cells) for j in range(1, paths)]
        sets = torch.stack(sets)  # (J, B, A)
        ahead = torch.where(sets, symbols, board.symbols)  # (J, B, A)
        ahead = torch.cat([board.tokens[:, :task.P].expand(paths, -1, -1), ahead], dim=2)
        still = ahead[:, :, task.P:] == task.MASK  # (J, B, A)
        going = still.any(dim=2)  # (J, B): a full board is not looked at
        seen = logits.new_zeros(paths, B, task.A, task.K)
        if going.any():
            seen[going] = board.forward(ahead[going], going.nonzero()[:, 1])
        doubt = -certainty(seen.softmax(dim=-1), "entropy")  # (J, B, A) nats
        best = ((doubt * still).sum(dim=2) / still.sum(dim=2).clamp(min=1)).argmin(dim=0)  # (B,)
        each = torch.arange(B, device=best.device)
        board.commit(sets[best, each], symbols, score)
        logits = seen[best, each]
        yield


DECODERS = {
    "ccd": Decoder(
        ccd, "2512.02044", "the surest, and all in the `top` surest with one argmax for d passes",
        {"top": Knob(4, 1, 256), "d": Knob(2, 1, 64), "rule": Knob("agree", ("agree", "average",
                                                                            "both")),
         "order": Knob("entropy", ("confidence", "margin", "entropy"))},
        null={"d": 1, "order": "confidence"}, sweep=(2, 4, 8, 16), source="the paper's for LLaDA"),
    "lookum": Decoder(
        lookum, "2511.05563", "of J sets of cells the one with least mean H in the next state",
        {"paths": Knob(2, 1, 64), "cells": Knob(2, 1, 256), "pool": Knob(5, 1, 256)},
        null={"paths": 1, "cells": 1}, sweep=(1, 2, 4), source="the paper's (from notes)"),
}
