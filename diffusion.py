"""Masked diffusion: what is hidden, who may look at whom (mdm, sidm, scdm), and the loss.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   m hidden cells

Source: "Reasoning with Latent Tokens in Diffusion Language Models", arXiv 2602.03769. In one forward
pass an unknown cell is either DECODED (committed to a symbol now) or LATENT (present, predicted, not
committed). The three objectives differ in one line, in `ranks`:

    mdm    joint prediction         everything sees everything: all other unknown cells are latents
    sidm   independent prediction   an unknown cell sees the known ones and itself: no latents
    scdm   semi-causal              it also sees the unknown cells that come earlier in a random order:
                                    n latents, and n is a dial at inference (sample.py)
"""
import torch
import torch.nn.functional as F


def draw_turns(batch_size, A, generator, device, left_to_right=False):
    """The masking process, and the only place that decides how many cells are hidden and which.

    Cells are lined up in an order (random, or left to right), the last m of them are hidden, and m is
    uniform on 1..A, stratified over the batch so that every batch holds all noise levels.
    Returns turn (B, A) int64: <= 0 for a known cell; 1..m for the hidden ones, in their order.

    The paper draws a rate t in (0, 1] and weights by 1/t, which needs t >= 1e-3 and can hide nothing.
    Drawing m gives the same expectation (sum over t of the weight = mean over m) with neither problem.
    """
    strata = torch.arange(batch_size, device=device) + torch.rand(batch_size, generator=generator, device=device)
    m = 1 + (strata / batch_size * A).long().clamp(max=A - 1)  # (B,); the clamp is for rounding only
    if left_to_right:
        place = torch.arange(A, device=device).expand(batch_size, A)  # (B, A)
    else:
        place = torch.rand(batch_size, A, generator=generator, device=device).argsort(dim=1)  # (B, A) a permutation each
    return place - (A - m).unsqueeze(1) + 1


def ranks(objective, turn):
    """The objective, as a ranking for model.visible. turn (B, A) -> rank (B, A)."""
    if objective == "mdm":
        return torch.zeros_like(turn)
    if objective == "sidm":
        return turn.clamp(0, 1)  # known 0, unknown 1: equal ranks above 0 do not see each other
    return turn.clamp(min=0)  # scdm: known 0, unknown 1..m in their random order


def hidden_loss(model, tokens, task, turn, rank, scored):
    """Mean cross-entropy over the scored cells of each sample, then over samples (nats per token).

    tokens (B, S) clean; turn, rank, scored (B, A). Shared by this file and mtp.py, which choose them.
    """
    P = task.P
    # 1. hide: the prompt is never masked, never scored
    noisy = torch.cat([tokens[:, :P], tokens[:, P:].masked_fill(turn > 0, task.MASK)], dim=1)  # (B, S)
    # 2. predict: every prompt token has rank 0
    if rank is not None:
        rank = F.pad(rank, (P, 0))  # (B, S)
    logits = model(noisy, torch.arange(task.S, device=tokens.device), rank)  # (B, S, K)
    # 3. score
    nll = F.cross_entropy(logits[:, P:].float().transpose(1, 2), tokens[:, P:], reduction="none")  # (B, A)
    return ((nll * scored).sum(dim=1) / scored.sum(dim=1)).mean()


def loss(model, tokens, task, objective, generator, shard=slice(None)):
    """One draw of the likelihood bound, in nats per answer token. shard: the samples that count (train.py).

    With m uniform on 1..A and the mean taken over the m hidden cells, the expectation is
    (1/A) E_order[ sum_i -log p(x_i | cells before i in the order) ] >= -(1/A) log p(x):
    the order-agnostic bound of arXiv 2110.02037, which is the masked-diffusion bound of arXiv 2406.07524.
    """
    turn = draw_turns(len(tokens), task.A, generator, tokens.device)[shard]
    rank = None if objective == "mdm" else ranks(objective, turn)  # None: the fast way to say "all 0"
    return hidden_loss(model, tokens[shard], task, turn, rank, turn > 0)
