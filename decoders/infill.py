"""Reasoning as infilling: a part of the answer is what is ASKED, the rest the reasoning towards it.

    B samples   A cells   K symbols   H entropy of a cell in nats

A model that predicts all unknown cells at once tells at every pass how sure it is of what is asked,
long before the reasoning is written down: early exit. And nothing says which of them comes first.
What follows from clamping the asked part is measured by traces.py.
"""
import torch

from decoders.board import surest
from decoders.row import Decoder, Knob


def asked_cells(task, start, region="asked"):
    """The unknown cells that count as the answer. start (B, S) -> bool (B, A).

    asked: of a path the node behind the fork, the only one that takes the whole graph to find
    (star: the second; planning: behind the node that both chains share, or the goal where that is
    the goal; a node in two edges is two cells); of a board the last row. end: the last cell; of a
    path this is the goal, which the prompt tells, so no reasoning leads to it. all: every cell.
    """
    cell = torch.arange(task.A, device=start.device).expand(len(start), -1)  # (B, A)
    if region == "all":
        chosen = cell >= 0
    elif region == "end":
        chosen = cell == task.A - 1
    elif task.name == "star":
        chosen = cell == 1
    elif task.name == "planning":  # cells 2 i - 1 and 2 i hold node i
        behind = (task.LENGTH - task.distance(start)).clamp(max=task.LENGTH - 1)  # (B,)
        chosen = (cell + 1) // 2 == behind.unsqueeze(1)
    else:
        chosen = cell >= task.A - task.N
    return chosen & task.blanks(start)


def infill(board, gamma=0.1, region="asked", order="free", aggregate="mean"):
    """Reasoning as infilling with early exit: arXiv 2510.19990, its answer slots and its gamma.

    exit when the entropies of the asked cells, aggregated, are below gamma; a known cell has none

    At the exit every unknown cell is committed from this pass: what is asked as the paper says, the
    reasoning because a board has to be full. (A reader of the answer alone may stop as well, but
    the walk or the board is judged whole.) Until then the surest cell is committed: any, or of the
    asked ones first, or last. At most one pass per cell to be found. Where nothing of the region is
    to be found, all of the board is asked. Which aggregate the paper takes is unverified; so is
    its order of cells.
    """
    asked = asked_cells(board.task, board.tokens, region)  # (B, A)
    asked = torch.where(asked.any(dim=1, keepdim=True), asked, board.unknown)
    while (unknown := board.unknown).any():
        logits = board.look()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        confidence = probs.amax(dim=-1)
        entropy = -torch.special.xlogy(probs, probs).sum(dim=-1) * (asked & unknown)  # (B, A) nats
        doubt = entropy.amax(dim=1) if aggregate == "max" else entropy.sum(dim=1)  # (B,)
        if aggregate == "mean":
            doubt = doubt / asked.sum(dim=1)  # a full board has 0/0, which is below nothing
        part = unknown & {"free": unknown, "first": asked, "last": ~asked}[order]
        part = torch.where(part.any(dim=1, keepdim=True), part, unknown)
        cells = surest(confidence, part, 1)
        cells = torch.where((doubt < gamma).unsqueeze(1), unknown, cells)
        board.commit(cells, board.draw(logits), confidence)
        yield


DECODERS = {
    "infill": Decoder(
        infill, "2510.19990", "the surest one; all as soon as the mean H of the asked < gamma",
        {"gamma": Knob(0.1, 0.0, 1e3), "region": Knob("asked", ("asked", "end", "all")),
         "order": Knob("free", ("free", "first", "last")),
         "aggregate": Knob("mean", ("mean", "max", "sum"))},
        null={"gamma": 0.0}, source="gamma: the paper's; aggregate: unverified"),
}
