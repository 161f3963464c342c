"""What the model thinks of a committed cell now: three ways to ask, used by recheck.py.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols
    w shadow pairs   T = S + w pairs   n drafts

A masked diffusion model is never trained to predict a known cell: its symbol is visible. So the
symbol has to be masked to ask for it.
"""
import torch
from torch.nn.functional import pad

from decoders.remask import committed
from model import visible

VIEWS = ("shadow", "probe", "visible")


def believe(board, view):
    """One pass -> logits (B, A, K), as board.forward(), and held (B, A): p(committed symbol) now.

    held is 1 for a cell that is not committed. view:
    visible   the logits where the symbol stands. Free, but never trained: the symbol is visible.
    shadow    a second pair (MASK, same position) for each committed cell. It sees everything but
              its twin, and nothing sees it. (The other cells have seen the twin.)
    probe     a draft of the board for each committed cell, with that cell alone unknown: what the
              shadow approximates. S pairs for each.
    """
    cells = committed(board)
    if view == "visible":
        logits = predicted = board.forward()
    else:
        logits, predicted = (shadows if view == "shadow" else probes)(board, cells)
    symbols = board.symbols.masked_fill(~cells, 0).unsqueeze(2)
    held = predicted.softmax(dim=-1).gather(2, symbols).squeeze(2)
    return logits, held.where(cells, 1.0)


def shadows(board, cells):
    """One pass with a shadow of each of `cells` (B, A) -> logits (B, A, K), and the shadows' own.

    A shadow has rank 1, like an unknown cell of sidm: it sees what has rank 0, and nothing of rank
    0 or 1 sees it. No ranking can hide its twin from it, so that entry of the matrix is cleared.
    """
    rows, P, S = board.unfinished(), board.task.P, board.task.S
    count = cells[rows].sum(dim=1)  # (R,)
    w = int(count.max())
    cell = cells[rows].long().argsort(dim=1, descending=True, stable=True)[:, :w]  # (R, w)
    tokens = pad(board.tokens[rows], (0, w), value=board.task.MASK)  # (R, T)
    positions = torch.cat([board.positions.expand(len(rows), S), P + cell], dim=1)  # (R, T)
    rank = board.rank(board.tokens[rows])
    rank = torch.zeros_like(tokens) if rank is None else pad(rank, (0, w))
    rank[:, S:] = 1
    sees = visible(rank)  # (R, T query, T key)
    sees[:, S:].scatter_(2, (P + cell).unsqueeze(2), False)
    board.charge(rows, S)
    board.pairs[rows] += count  # samples with fewer shadows are not charged for the padding
    out = board.model(tokens, positions, sees).float()  # (R, T, K)
    logits, predicted = out.new_zeros(2, len(board.tokens), board.task.A, out.shape[2])
    logits[rows] = out[:, P:S]
    predicted[rows.unsqueeze(1), cell] = out[:, S:]
    return logits, predicted


def probes(board, cells):
    """As shadows(), by a draft of the board for each of `cells`, in the same pass."""
    logits, predicted = torch.zeros(2, *cells.shape, board.task.K, device=cells.device)
    for rows in board.unfinished().split(32):  # a few samples at once: each has many drafts
        row, cell = cells[rows].nonzero(as_tuple=True)  # (n,) each
        drafts = board.tokens[rows[row]]  # (n, S)
        n = torch.arange(len(row), device=row.device)
        drafts[n, board.task.P + cell] = board.task.MASK
        out = board.predict(torch.cat([board.tokens[rows], drafts]),
                            torch.cat([rows, rows[row]]))  # (R + n, A, K)
        logits[rows] = out[:len(rows)]
        predicted[rows[row], cell] = out[len(rows) + n, cell]
    return logits, predicted
