"""Decoders of other papers, on one board: a file per family, whole loops to diff with plain.

    diff decoders/plain.py decoders/parallel.py

They need a model that predicts all unknown cells in one pass: objectives mdm and sidm. `sample.py
--decoder list` prints the table below; `--decoder NAME --decoder-param VALUE` uses an entry.
"""
import time
from dataclasses import replace

import torch

from decoders import (block, cache, draft_verify, early_exit, infill, lookahead, parallel, plain,
                      recheck, refine, remask)
from decoders.board import Board
from errors import BadInput, printable
from objectives import OBJECTIVES, make_sampling_params

FAMILIES = (plain, parallel, early_exit, remask, recheck, refine, lookahead, draft_verify, cache,
            block, infill)
DECODERS = {name: spec for family in FAMILIES for name, spec in family.DECODERS.items()}
OBJECTIVES_DECODED = ("mdm", "sidm")


def listing():
    """-> str: every decoder with its rule, paper, parameters, and when it equals plain."""
    lines = []
    for name, spec in DECODERS.items():
        params = ", ".join(f"{k} = {p.default} ({p.legal()})" for k, p in spec.params.items())
        null = ", ".join(f"{k} = {v}" for k, v in spec.null.items()) or "as it is"
        paper = f"arXiv {spec.paper}" if spec.paper[:1].isdigit() else spec.paper
        lines += [f"{name}: {spec.rule}  [{paper}]", f"    parameters: {params}; {spec.source}",
                  f"    equals plain at: {null}"]
    return "\n".join(lines)


def choose(task, greedy, name, texts, objective, asked):
    """--decoder and its --decoder-param texts ("0.9" or "tau=0.9") -> SamplingParams.

    asked: the sampling parameters that were asked for. Raises BadInput for any but a temperature,
    for an unknown name or parameter, a value out of range, and an objective that is not decoded.
    """
    if name not in DECODERS:
        raise BadInput(f"--decoder '{printable(name)}' is unknown; legal: list, "
                       f"{', '.join(DECODERS)}")
    if objective not in OBJECTIVES_DECODED:
        raise BadInput(f"--decoder {name} needs a checkpoint that predicts all unknown cells at "
                       f"once ({' or '.join(OBJECTIVES_DECODED)}); this one is {objective}")
    spec = DECODERS[name]
    for flag in (flag for flag, value in asked.items() if value is not None):
        if flag != "temperature":
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for --decoder {name}; it "
                           f"has --decoder-param {' or '.join(spec.params)}, and --temperature")
    params = spec.settings()
    for text in texts or []:
        k, equals, value = text.rpartition("=")
        k = k if equals else spec.main
        if k not in spec.params:
            raise BadInput(f"--decoder-param '{printable(k)}' is not a parameter of decoder {name};"
                           f" legal: {', '.join(spec.params)}")
        params[k] = spec.params[k].parse(f"--decoder-param {k}", value)
    sampling = make_sampling_params(objective, task, greedy=greedy,
                                    temperature=asked.get("temperature"))
    return replace(sampling, order="-", decoder=name, decoder_params=params)


@torch.no_grad()
def decode(model, task, objective, start, sampling, keys, history=None):
    """As sample.decode(), by decoder sampling.decoder with sampling.decoder_params.

    stats (B,) also hold `undone`: cells committed and made unknown again; `once_right`: see Board;
    `order_tau`: Kendall's tau between the order of commits and the order of cells, -1 to 1 (as
    arXiv 2601.15593 reports).
    """
    board = Board(model, task, OBJECTIVES[objective].ranks, start, keys, sampling.temperature)
    loop = DECODERS[sampling.decoder].decode(board, **sampling.decoder_params)
    return finish(board, loop, history)


def finish(board, loop, history=None):
    """Run a decoder, or any loop over a Board, to its end -> tokens and stats as decode().

    history: a list that receives record() after every change of the board.
    """
    before = board.tokens.clone(), board.pairs.clone(), board.nfe.clone()
    for _ in loop:
        if history is not None:
            history.append(record(board, *before))
            before = board.tokens.clone(), board.pairs.clone(), board.nfe.clone()
    found = ~board.given
    confidence = (board.confidence * found).sum(dim=1) / found.sum(dim=1).clamp(min=1)
    return board.tokens, {
        "nfe": board.nfe, "tokens": board.pairs, "undone": board.undone,
        "once_right": board.once_right, "order_tau": kendall_tau(board.committed_at, found),
        "confidence": confidence.where(found.any(dim=1), 1.0)}


def record(board, tokens, pairs, nfe):
    """What changed since the board had these tokens, pairs and nfe: an entry of a history, dict."""
    rows = ((board.tokens != tokens).any(dim=1) | (board.pairs != pairs)).nonzero().flatten()
    rank = board.rank(tokens)  # as the model saw it
    if board.absent is not None:  # rank +inf: the cells that a block leaves out
        rank = torch.zeros_like(tokens) if rank is None else rank
        absent = torch.nn.functional.pad(board.absent, (board.task.P, 0))
        rank = rank.float().masked_fill(absent, torch.inf)
    present = board.positions[None]
    return {"tokens": board.tokens.clone(), "present": present, "cells": present[:, board.task.P:],
            "rank": rank if rank is None else rank[rows], "logits": board.logits[rows],
            "rows": rows, "candidates": None, "pairs": (board.pairs - pairs)[rows],
            "passes": (board.nfe - nfe)[rows], "at": time.perf_counter()}


def kendall_tau(committed_at, found):
    """Kendall's tau-a of step against cell number, over pairs of found cells: (B, A) -> (B,).

    A pair committed in the same step counts 0; no pair: 0.
    """
    later = (committed_at.unsqueeze(1) - committed_at.unsqueeze(2)).sign().triu(1)  # (B, A, A)
    pairs = (found.unsqueeze(1) & found.unsqueeze(2)).triu(1)
    return (later * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
