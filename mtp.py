"""Autoregressive models: next token (ar), and with latent tokens by multi-token prediction (mtp).

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   W window

`mtp` is diffusion.py with two changes. The masked cells are not random: they are the last m, so a
random cut splits the answer into known and unknown. And only the first W unknown cells, the WINDOW,
are visible and scored. At inference the first cell of the window is committed; the other W - 1 are
latent tokens. W = A ("all") has all of them. W = 1 has none, but also fewer training targets:
`mtp-no-latents` (objectives.py) has the targets and no latents. (arXiv 2602.03769, AR-MTP.)
"""
import math

import torch

from diffusion import cross_entropy, draw_levels
from model import CAUSAL


def causal(level, W=None):
    """ar: each token sees itself and those before it. -> CAUSAL, that is ranks 1, 2, 3, ..."""
    return CAUSAL


def window_sees_itself(level, W=None):
    """mtp: known cells and the first W unknown see each other (0), nobody sees the rest (+inf).

    (B, A) -> (B, A), or None (all 0) where nothing is beyond the window. In decoding W is not
    given: cells beyond the window are not in the tensor.
    """
    if W is None or isinstance(W, int) and W >= level.shape[1]:
        return None
    return torch.zeros_like(level, dtype=torch.float).masked_fill(level > W, math.inf)


def draw_window(window, A, generator, device):
    """W of this step: an int in 1..A, or a 0-dim tensor drawn anew for window = "random".

    "random" is log-uniform: 1 is as likely as 2 or 3, and as 4 to 7.
    """
    if window == "random":
        u = torch.rand((), generator=generator, device=device)
        return torch.exp(u * math.log(A + 1)).long().clamp(1, A)
    return A if window == "all" else min(int(window), A)


def mask_suffix(given, generator, config):
    """-> level (B, A), W: all cells from a random cut on are masked, and the first W are scored.

    The cut is uniform whatever the mask rates: at a high rate W = 1 would hardly train the last.
    """
    W = draw_window(config.window, given.shape[1], generator, given.device)
    return draw_levels(given, generator, left_to_right=True), W


def mask_nothing(given, generator, config):
    """-> level (B, A), W: next-token prediction needs no masks; every answer cell is scored."""
    B, A = given.shape
    return torch.arange(1, A + 1, device=given.device).expand(B, A), A


def next_token_ranks(ranks, task, device):
    """The ranking of a next-token objective over prompt and answer: rank (S,), or CAUSAL."""
    return ranks(torch.arange(1 - task.P, task.A + 1, device=device))


def next_token_loss(model, tokens, level, W, task, ranks, read_every=0):
    """The loss of each sample, nats: mean cross-entropy of its answer tokens -> (B,) or (R, B).

    Each answer token is predicted at the position before it; level and W are not used.
    """
    positions = torch.arange(task.S - 1, device=tokens.device)
    rank = next_token_ranks(ranks, task, tokens.device)
    rank = rank if rank is CAUSAL else rank[:-1]  # the last token is never fed
    logits = model(tokens[:, :-1], positions, rank, read_every=read_every)  # (..., B, S - 1, K)
    return cross_entropy(logits[..., task.P - 1:, :], tokens[:, task.P:]).mean(dim=-1)
