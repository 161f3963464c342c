"""Autoregressive models: plain next token (ar), and with latent tokens through multi-token prediction (mtp).

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   W window

`mtp` is diffusion.py with two changes. The hidden cells are not random: they are the last m, so a
uniformly random cut splits the answer into known and unknown. And only the first W unknown cells, the
WINDOW, are visible and scored. At inference the first of the window is committed; the other W - 1 are
latent tokens. W = 1 has no latents and is the control; W = A ("all") has all of them. (arXiv 2602.03769,
AR with multi-token prediction.)
"""
import math

import torch
import torch.nn.functional as F

from diffusion import draw_turns, hidden_loss


def ar_loss(model, tokens, task):
    """Plain next-token loss on the answer (nats per token): position i predicts i + 1, causal attention."""
    positions = torch.arange(task.S - 1, device=tokens.device)
    logits = model(tokens[:, :-1], positions, causal=True)[:, task.P - 1:]  # (B, A, K)
    return F.cross_entropy(logits.float().transpose(1, 2), tokens[:, task.P:])


def draw_window(window, A, generator, device):
    """W of this step: an int in 1..A, or a 0-dim tensor drawn anew for window = "random".

    "random" is uniform in log W, so small windows get as much practice as large ones.
    """
    if window == "random":
        u = torch.rand((), generator=generator, device=device)
        return torch.exp(u * math.log(A + 1)).long().clamp(1, A)
    return A if window == "all" else min(int(window), A)


def ranks(turn, W):
    """Known cells and the window see each other (0); beyond the window nobody is seen (+inf). (B, A) -> (B, A)."""
    return torch.zeros_like(turn, dtype=torch.float).masked_fill(turn > W, math.inf)


def mtp_loss(model, tokens, task, window, generator, shard=slice(None)):
    """Cross-entropy averaged over the window after a uniform random cut (nats per token). shard: the samples that count (train.py)."""
    W = draw_window(window, task.A, generator, tokens.device)
    turn = draw_turns(len(tokens), task.A, generator, tokens.device, left_to_right=True)[shard]  # the cut: (B, A)
    rank = None if window == "all" else ranks(turn, W)
    return hidden_loss(model, tokens[shard], task, turn, rank, (turn > 0) & (turn <= W))
