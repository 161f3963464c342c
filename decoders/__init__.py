"""The decoders of the field on one board: one file a family, each a whole loop to diff with plain.

    diff decoders/plain.py decoders/parallel.py

They decode what predicts all unknown cells in one pass: objectives mdm and sidm. `sample.py
--decoder list` prints the table below, `--decoder NAME --knob VALUE` uses a row of it.
"""
from dataclasses import replace

import torch

from decoders import (block, cache, draft_verify, early_exit, infill, lookahead, parallel, plain,
                      refine, remask)
from decoders.board import Board
from objectives import OBJECTIVES, make_dials
from plumbing.cli import BadInput, printable
from plumbing.trace import Step

DECODERS = {
    **plain.DECODERS,
    **parallel.DECODERS,
    **early_exit.DECODERS,
    **remask.DECODERS,
    **refine.DECODERS,
    **lookahead.DECODERS,
    **draft_verify.DECODERS,
    **cache.DECODERS,
    **block.DECODERS,
    **infill.DECODERS,
}
OBJECTIVES_DECODED = ("mdm", "sidm")


def listing():
    """-> str: every decoder with its rule, paper, knobs and null knob."""
    lines = []
    for name, row in DECODERS.items():
        knobs = ", ".join(f"{k} = {knob.default} ({legal(knob)})" for k, knob in row.knobs.items())
        null = ", ".join(f"{k} = {v}" for k, v in row.null.items()) or "as it is"
        paper = f"arXiv {row.paper}" if row.paper[:1].isdigit() else row.paper
        lines += [f"{name}: {row.rule}  [{paper}]", f"    knobs: {knobs}; {row.source}",
                  f"    equals plain at: {null}"]
    return "\n".join(lines)


def legal(knob):
    if isinstance(knob.low, tuple):
        return " | ".join(knob.low)
    return f"{knob.low}..{knob.high}"


def choose(task, greedy, name, texts, objective, asked):
    """--decoder and its --knob texts ("0.9" or "tau=0.9") -> dials, as objectives.make_dials().

    asked: the dials that were asked for; only a temperature goes with a decoder. Raises BadInput
    for those, for an unknown name or knob, a value out of range, an objective without sense.
    """
    if name not in DECODERS:
        raise BadInput(f"--decoder '{printable(name)}' is unknown; legal: list, "
                       f"{', '.join(DECODERS)}")
    if objective not in OBJECTIVES_DECODED:
        raise BadInput(f"--decoder {name} needs a checkpoint that predicts all unknown cells at "
                       f"once ({' or '.join(OBJECTIVES_DECODED)}); this one is {objective}")
    for flag in (flag for flag, value in asked.items() if value is not None):
        if flag != "temperature":
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for --decoder {name}; it "
                           f"has --knob {' or '.join(DECODERS[name].knobs)}, and --temperature")
    row = DECODERS[name]
    knobs = row.settings()
    for text in texts or []:
        k, equals, value = text.rpartition("=")
        k = k if equals else row.main
        if k not in row.knobs:
            raise BadInput(f"--knob '{printable(k)}' is not a knob of decoder {name}; legal: "
                           f"{', '.join(row.knobs)}")
        knobs[k] = parse(f"--knob {k}", value, row.knobs[k])
    dials = make_dials(objective, task, greedy=greedy, temperature=asked.get("temperature"))
    return replace(dials, order="of the decoder", decoder=name, knobs=knobs)


def parse(flag, text, knob):
    """The text of a knob -> its value. Raises BadInput."""
    if isinstance(knob.low, tuple):
        if text in knob.low:
            return text
    else:
        try:
            value = type(knob.default)(text)
        except ValueError:
            value = None
        if value is not None and knob.low <= value <= knob.high:  # nan is in no range
            return value
    raise BadInput(f"{flag}: '{printable(text)}' is not legal; legal: {legal(knob)}")


@torch.no_grad()
def decode(model, task, objective, start, dials, keys, history=None):
    """As sample.decode(), by decoder dials.decoder at dials.knobs.

    stats (B,) also hold `undone`: cells committed and made unknown again; `once_right`: whether
    all was right in some pass, see Board; `order_tau`: Kendall's
    tau between the order of commits and the order of cells, -1 to 1 (as arXiv 2601.15593 asks).
    """
    board = Board(model, task, OBJECTIVES[objective].ranks, start, keys, dials.temperature)
    return finish(board, DECODERS[dials.decoder].decode(board, **dials.knobs), history)


def finish(board, loop, history=None):
    """Run a decoder, or any loop over a Board, to its end -> tokens and stats as decode().

    history: a list that receives a plumbing.trace.Step after every change of the board.
    """
    tokens, fed, nfe = board.tokens.clone(), board.fed.clone(), board.nfe.clone()
    for _ in loop:
        if history is None:
            continue
        rows = ((board.tokens != tokens).any(dim=1) | (board.fed != fed)).nonzero().flatten()
        rank = board.rank(tokens)  # as the model saw it; what a block leaves out is nobody's
        if board.absent is not None:
            rank = torch.zeros_like(tokens) if rank is None else rank
            absent = torch.nn.functional.pad(board.absent, (board.task.P, 0))
            rank = rank.float().masked_fill(absent, torch.inf)
        history.append(Step(
            board.tokens.clone(), board.positions[None], rank if rank is None else rank[rows],
            board.logits[rows], cells=board.positions[None, board.task.P:], rows=rows,
            fed=(board.fed - fed)[rows], passes=(board.nfe - nfe)[rows]))
        tokens, fed, nfe = board.tokens.clone(), board.fed.clone(), board.nfe.clone()
    found = ~board.given
    confidence = (board.sure * found).sum(dim=1) / found.sum(dim=1).clamp(min=1)
    return board.tokens, {
        "nfe": board.nfe, "tokens": board.fed, "undone": board.undone,
        "once_right": board.once_right, "order_tau": kendall_tau(board.when, found),
        "confidence": confidence.where(found.any(dim=1), 1.0)}


def kendall_tau(when, found):
    """Kendall's tau-a of step against cell number, over pairs of found cells: (B, A) -> (B,).

    A pair committed in the same step counts 0; no pair: 0.
    """
    later = (when.unsqueeze(1) - when.unsqueeze(2)).sign().triu(1)  # (B, A, A) of cell j after i
    pairs = (found.unsqueeze(1) & found.unsqueeze(2)).triu(1)
    return (later * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
