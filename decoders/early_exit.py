"""Decoders that stop early: one cell per pass, until the model is confident of all the rest.

    B samples   A cells   K symbols   gap: the largest logit of a cell minus the second largest

An exit fills all unknown cells from the logits of that pass: with the most likely symbols at T = 0,
with independent samples at T = 1. Until then these decoders equal plain, so they take at most as
many passes as there are cells to find.

Thresholds on the gap are in units of a model's logits and do not transfer to another model. The
papers' 7.5, 5 and 2.5 belong to 7B and 8B language models; `scale` multiplies them all. calibrate()
finds it for a model without reading an answer. The defaults are what it found for
results/sudoku9-cpu on 120 new puzzles; at scale = 1 one answer in twelve to one in five was still
that of the full run.
"""
import math

import torch

from decoders.board import top_cells
from decoders.spec import Decoder, Param

NEVER = 1e9  # a scale that no gap reaches


def gap(logits):
    """(B, A, K) -> (B, A): log of the ratio between the two largest probabilities, in nats."""
    top = logits.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def prophet(board, scale=5.0, over="unknown"):
    """Prophet, arXiv 2508.19982: fill all when the mean gap passes a threshold that falls in steps.

    exit when the mean of gap >= scale * (7.5, 5, 2.5 in the first, second, last third)

    Thirds of the cells to be found. over: the mean is over the `unknown` cells, or over the whole
    `answer` with its committed cells, as in the authors' repository (the logits of a masked
    diffusion model are not trained at committed cells).
    """
    to_find = (~board.given).sum(dim=1)  # (B,)
    while board.unknown.any():
        logits, unknown = board.forward(), board.unknown
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # (B, A)
        found = 1 - unknown.sum(dim=1) / to_find.clamp(min=1)  # (B,) fraction
        tau = 7.5 - 2.5 * (found >= 0.33).float() - 2.5 * (found >= 0.67).float()
        asked = unknown if over == "unknown" else ~board.given
        mean = (gap(logits) * asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)
        stop = (mean >= scale * tau).unsqueeze(1)  # (B, 1)
        cells = top_cells(confidence, unknown, 1) | unknown & stop
        board.commit(cells, board.sample(logits), confidence)
        yield


def sched(board, scale=3.5, low=2.5, schedule="linear", k=4.0, over="mean", stable="yes"):
    """SchED, arXiv 2512.02892: prophet with a threshold that falls smoothly from 7.5 to `low`.

    exit when `over` (mean, median, least) of gap over the unknown cells >= scale * tau(t)

    t: the fraction of cells found. stable: and no unknown cell's most likely symbol has changed
    since the last pass. This clause is in the authors' code and not in the abstract; with it a
    sample with two cells to find takes at least two passes.
    """
    to_find = (~board.given).sum(dim=1)  # (B,)
    before = torch.full_like(board.symbols, -1)
    while board.unknown.any():
        logits, unknown = board.forward(), board.unknown
        confidence, best = logits.softmax(dim=-1).max(dim=-1)  # (B, A)
        t = 1 - unknown.sum(dim=1) / to_find.clamp(min=1)  # (B,)
        fall = {"linear": 1 - t, "cosine": (1 + (math.pi * t).cos()) / 2,
                "exp": (-k * t).exp()}[schedule]  # from 1 downwards
        gaps = gap(logits).masked_fill(~unknown, torch.nan)
        if over == "mean":
            summary = gaps.nanmean(dim=1)
        else:
            summary = gaps.nanquantile({"median": 0.5, "least": 0.0}[over], dim=1)
        stop = summary >= scale * (low + (7.5 - low) * fall)  # (B,); nan of a finished one: never
        if stable == "yes":
            stop = stop & ((best == before) | ~unknown).all(dim=1)
        before = best
        cells = top_cells(confidence, unknown, 1) | unknown & stop.unsqueeze(1)
        board.commit(cells, board.sample(logits), confidence)
        yield


def calibrate(decode, make_board, scales, fraction=0.99, **params):
    """-> the smallest of `scales` at which `fraction` of the answers equal those of the full run.

    decode: prophet or sched, with `params`; make_board() -> a fresh Board of the same puzzles,
    which should not be test puzzles. Returns NEVER where no scale will do. No reference is read:
    the full run may be wrong, but an early exit should not change its answer.
    """
    def answers(scale):
        board = make_board()
        for _ in decode(board, scale, **params):
            pass
        return board.symbols

    full = answers(NEVER)
    for scale in sorted(scales):
        if (answers(scale) == full).all(dim=1).double().mean() >= fraction:
            return scale
    return NEVER


DECODERS = {
    "prophet": Decoder(
        prophet, "2508.19982", "one by one; all when mean gap >= scale * (7.5, 5, 2.5)",
        {"scale": Param(5.0, 0.0, NEVER), "over": Param("unknown", ("unknown", "answer"))},
        null={"scale": NEVER}, sweep=(1.0, 2.0, 3.0, 4.0, 5.0),
        source="thresholds: the paper; scale: calibrate() on 9x9 puzzles"),
    "sched": Decoder(
        sched, "2512.02892", "one by one; all when mean gap >= scale * (7.5 falling to low)",
        {"scale": Param(3.5, 0.0, NEVER), "low": Param(2.5, 0.0, 7.5),
         "schedule": Param("linear", ("linear", "cosine", "exp")), "k": Param(4.0, 0.0, 100.0),
         "over": Param("mean", ("mean", "median", "least")), "stable": Param("yes", ("yes", "no"))},
        null={"scale": NEVER}, sweep=(1.0, 2.0, 3.0, 3.5, 4.5),
        source="7.5, low, stable: the authors' repository; scale: calibrate() on 9x9 puzzles"),
}
