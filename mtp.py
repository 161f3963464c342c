"""Autoregressive models: next token (ar), and with latent tokens by multi-token prediction (mtp).

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   W window

`mtp` is diffusion.py with two changes. The hidden cells are not random: they are the last m, so a
random cut splits the answer into known and unknown. And only the first W unknown cells,
the WINDOW, are visible and scored. At inference the first of the window is committed; the other W -
1 are latent tokens. W = 1 has no latents and is the control; W = A ("all") has all of them. (arXiv
2602.03769, AR with multi-token prediction.)
"""
import math

import torch
import torch.nn.functional as F

from diffusion import UNIFORM, draw_turns
from model import CAUSAL


def causal(turn, W=None):
    """ar. turn is 1 - P .. 0 for the prompt, 1 .. A for the answer: ranks in a row, CAUSAL."""
    return CAUSAL


def window_sees_itself(turn, W=None):
    """mtp: known cells and the first W unknown see each other (0), the rest nobody sees (+inf).

    (B, A) -> (B, A), or None (all 0) where nothing is beyond the window. In decoding the cells
    beyond it are not in the tensor at all, so W is not given.
    """
    if W is None or isinstance(W, int) and W >= turn.shape[1]:
        return None
    return torch.zeros_like(turn, dtype=torch.float).masked_fill(turn > W, math.inf)


def draw_window(window, A, generator, device):
    """W of this step: an int in 1..A, or a 0-dim tensor drawn anew for window = "random".

    "random" is uniform in log W, so small windows get as much practice as large ones.
    """
    if window == "random":
        u = torch.rand((), generator=generator, device=device)
        return torch.exp(u * math.log(A + 1)).long().clamp(1, A)
    return A if window == "all" else min(int(window), A)


def hide_the_rest(batch_size, A, window, generator, device, given, rates=UNIFORM):
    """-> turn (B, A), W: all cells from a random cut on are hidden, and W of them count.

    The cut is uniform whatever the rates: with W = 1 the first hidden cell alone counts, so where
    much is hidden the last cells would have hardly any practice.
    """
    W = draw_window(window, A, generator, device)
    return draw_turns(batch_size, A, generator, device, left_to_right=True, given=given), W


def hide_nothing(batch_size, A, window, generator, device, given, rates=UNIFORM):
    """-> turn (B, A), W: next-token prediction needs no masks; every answer cell has its turn."""
    return torch.arange(1, A + 1, device=device).expand(batch_size, A), A


def next_token_ranks(ranks, task, device):
    """The ranking of a next-token objective over prompt and answer: rank (S,), or CAUSAL."""
    return ranks(torch.arange(1 - task.P, task.A + 1, device=device))


def next_token_nats(model, tokens, turn, W, task, ranks):
    """The loss of each sample: mean cross-entropy of its answer tokens -> (B,) nats.

    Each is predicted at the position before it.
    """
    positions = torch.arange(task.S - 1, device=tokens.device)
    rank = next_token_ranks(ranks, task, tokens.device)
    rank = rank if rank is CAUSAL else rank[:-1]  # the last token is never fed
    logits = model(tokens[:, :-1], positions, rank)[:, task.P - 1:].float()  # (B, A, K)
    nll = F.cross_entropy(logits.transpose(1, 2), tokens[:, task.P:], reduction="none")  # (B, A)
    return nll.mean(dim=1)
