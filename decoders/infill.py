"""Reasoning as infilling: one part of the answer is ASKED, the rest is the reasoning towards it.

    B samples   A cells   K symbols   H entropy of a cell in nats

A model that predicts all unknown cells in one pass shows at every pass how confident it is of the
asked ones, long before the reasoning is complete. So decoding can stop early, and either part may
be decoded first. studies/traces.py measures what follows from clamping the asked part.
"""
import torch

from decoders.board import top_cells
from decoders.spec import Decoder, Param


def asked_cells(task, start, region="asked"):
    """The unknown cells that count as the answer. start (B, S) -> bool (B, A).

    asked: of a path the node behind the fork, the only one that takes the whole graph to find
    (star: the second; planning: the one behind the node that both chains share, at most the goal;
    a node in two edges is two cells); of a board the last row. end: the last cell; of a path it is
    the goal, which the prompt tells. all: every cell.
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

    exit when the aggregated entropy of the asked cells is below gamma; a known cell has none

    The exit commits all unknown cells from this pass, the reasoning too, because the walk or board
    is judged as a whole. Until then the most confident cell is committed: any, or of the asked ones
    first, or last. Where the region has nothing to find, the whole board is asked. At most one
    pass per cell to find. Not verified: the paper's aggregate and its order of cells.
    """
    asked = asked_cells(board.task, board.tokens, region)  # (B, A)
    asked = torch.where(asked.any(dim=1, keepdim=True), asked, board.unknown)
    while (unknown := board.unknown).any():
        logits = board.forward()  # (B, A, K)
        probs = logits.softmax(dim=-1)
        confidence = probs.amax(dim=-1)
        H = -torch.special.xlogy(probs, probs).sum(dim=-1) * (asked & unknown)  # (B, A) nats
        uncertainty = H.amax(dim=1) if aggregate == "max" else H.sum(dim=1)  # (B,)
        if aggregate == "mean":
            uncertainty = uncertainty / asked.sum(dim=1)  # of a full board nan, below no gamma
        part = unknown & {"free": unknown, "first": asked, "last": ~asked}[order]
        part = torch.where(part.any(dim=1, keepdim=True), part, unknown)
        cells = top_cells(confidence, part, 1)
        cells = torch.where((uncertainty < gamma).unsqueeze(1), unknown, cells)
        board.commit(cells, board.sample(logits), confidence)
        yield


DECODERS = {
    "infill": Decoder(
        infill, "2510.19990", "one by one; all when the mean H of the asked cells < gamma",
        {"gamma": Param(0.1, 0.0, 1e3), "region": Param("asked", ("asked", "end", "all")),
         "order": Param("free", ("free", "first", "last")),
         "aggregate": Param("mean", ("mean", "max", "sum"))},
        null={"gamma": 0.0}, source="gamma: the paper's; aggregate: unverified"),
}
