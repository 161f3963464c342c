"""Decoders that stop early: one cell per pass, until the model is sure of all the rest at once.

    B samples   A cells   K symbols   gap: the largest logit of a cell minus the second largest

An exit fills everything that is unknown from the logits of that pass: the likeliest symbols at
T = 0; at T = 1 it draws, each cell for itself. Until then these decoders are plain, so they take at
most as many passes as there are cells to find.

Thresholds on the gap are in units of a model's logits, and do not carry over to another model. The
papers' 7.5, 5 and 2.5 are of 7B and 8B language models; scale = 1 is theirs. `scale` multiplies
them all, and calibrate() finds it for a model, without asking a reference. The defaults here are
what it found for results/sudoku9-cpu on 120 new puzzles; at scale = 1 one answer in twelve to one
in five was still that of the full run.
"""
import math

import torch

from decoders.board import surest
from decoders.row import Decoder, Knob

NEVER = 1e9  # a scale that no gap reaches


def gap(logits):
    """(B, A, K) -> (B, A): in nats, the log of how much likelier the best symbol is."""
    top = logits.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def prophet(board, scale=5.0, over="unknown"):
    """Prophet, arXiv 2508.19982: fill all when the mean gap passes a threshold that falls in steps.

    exit when the mean of gap >= scale * (7.5, 5, 2.5 in the first, second, last third)

    Thirds of the cells to be found. over: the mean is over the `unknown` cells, or over the whole
    `answer`, committed cells included, as in the authors' repository; there a masked diffusion
    model's logits are not trained.
    """
    to_find = (~board.given).sum(dim=1)  # (B,)
    while board.unknown.any():
        logits, unknown = board.look(), board.unknown
        sure = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        found = 1 - unknown.sum(dim=1) / to_find.clamp(min=1)  # (B,) share
        tau = 7.5 - 2.5 * (found >= 0.33).float() - 2.5 * (found >= 0.67).float()
        asked = unknown if over == "unknown" else ~board.given
        mean = (gap(logits) * asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)
        stop = (mean >= scale * tau).unsqueeze(1)  # (B, 1)
        cells = surest(sure, unknown, 1) | (unknown & stop)
        board.commit(cells, board.draw(logits), sure)
        yield


def sched(board, scale=3.5, low=2.5, schedule="linear", k=4.0, over="mean", stable="yes"):
    """SchED, arXiv 2512.02892: as prophet, with a threshold that falls smoothly from 7.5 to `low`.

    exit when `over` (mean, median, least) of gap over the unknown cells >= scale * tau(t)

    t: the share of cells found. stable: and no unknown cell's likeliest symbol has changed since
    the pass before, a clause that is in the authors' code as shipped and not in the abstract; so a
    sample takes two passes at least, if it has two cells to find.
    """
    to_find = (~board.given).sum(dim=1)  # (B,)
    before = torch.full_like(board.symbols, -1)
    while board.unknown.any():
        logits, unknown = board.look(), board.unknown
        sure, best = logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        t = 1 - unknown.sum(dim=1) / to_find.clamp(min=1)  # (B,)
        fall = {"linear": 1 - t, "cosine": (1 + (math.pi * t).cos()) / 2,
                "exp": (-k * t).exp()}[schedule]  # from 1 downwards
        gaps = gap(logits).masked_fill(~unknown, torch.nan)
        if over == "mean":
            sum_up = gaps.nanmean(dim=1)
        else:
            sum_up = gaps.nanquantile({"median": 0.5, "least": 0.0}[over], dim=1)
        stop = sum_up >= scale * (low + (7.5 - low) * fall)  # (B,); never of a finished sample: nan
        if stable == "yes":
            stop = stop & ((best == before) | ~unknown).all(dim=1)
        before = best
        cells = surest(sure, unknown, 1) | (unknown & stop.unsqueeze(1))
        board.commit(cells, board.draw(logits), sure)
        yield


def calibrate(decode, make_board, scales, share=0.99, **knobs):
    """-> the smallest of `scales` at which `share` of the answers are those of the full run.

    decode: prophet or sched, at `knobs`; make_board() -> a fresh Board of the same puzzles, which
    should not be the test's. NEVER where none will do. No reference is asked: the full run may be
    wrong, but an early exit should not change it.
    """
    def answers(scale):
        board = make_board()
        for _ in decode(board, scale, **knobs):
            pass
        return board.symbols

    full = answers(NEVER)
    for scale in sorted(scales):
        if (answers(scale) == full).all(dim=1).double().mean() >= share:
            return scale
    return NEVER


DECODERS = {
    "prophet": Decoder(
        prophet, "2508.19982", "one by one; all when mean gap >= scale * (7.5, 5, 2.5)",
        {"scale": Knob(5.0, 0.0, NEVER), "over": Knob("unknown", ("unknown", "answer"))},
        null={"scale": NEVER}, sweep=(1.0, 2.0, 3.0, 4.0, 5.0),
        source="thresholds: the paper; scale: calibrate() on 9x9 puzzles"),
    "sched": Decoder(
        sched, "2512.02892", "one by one; all when mean gap >= scale * (7.5 falling to low)",
        {"scale": Knob(3.5, 0.0, NEVER), "low": Knob(2.5, 0.0, 7.5),
         "schedule": Knob("linear", ("linear", "cosine", "exp")), "k": Knob(4.0, 0.0, 100.0),
         "over": Knob("mean", ("mean", "median", "least")), "stable": Knob("yes", ("yes", "no"))},
        null={"scale": NEVER}, sweep=(1.0, 2.0, 3.0, 3.5, 4.5),
        source="7.5, low, stable: the authors' repository; scale: calibrate() on 9x9 puzzles"),
}
