"""Masked diffusion: what is hidden, who may look at whom (mdm, sidm, scdm), and the loss.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols
    m hidden cells   W window: how many of the hidden cells are looked at and scored (here all)

Source: "Reasoning with Latent Tokens in Diffusion Language Models", arXiv 2602.03769. In one
forward pass an unknown cell is either DECODED (committed to a symbol now) or LATENT (present,
predicted, not committed). The three objectives differ in one line, their ranking:

    mdm    joint prediction         everything sees everything: all other unknown cells are latents
    sidm   independent prediction   an unknown cell sees the known ones and itself: no latents
    scdm   semi-causal              it also sees the unknown cells that come earlier in a random
                                    order: n latents, and n is a dial at inference (sample.py)

A ranking is a function of `turn`: <= 0 for a known cell, 1, 2, 3, ... for the unknown ones in the
order they would be decoded. Training hides cells and calls it; sample.py calls the same one.
"""
import math

import torch
import torch.nn.functional as F

UNIFORM = (1.0, 1.0, 0.0)  # the rates of draw_turns(); at a = b = 1 every sample is uniform


def joint(turn, W=None):
    """mdm. turn (B, A) -> rank (B, A), or None: everything sees everything (all 0, but faster)."""
    return None


def independent(turn, W=None):
    """sidm: known 0, unknown 1. Equal ranks above 0 do not see each other. (B, A) -> (B, A)."""
    return turn.clamp(0, 1)


def semi_causal(turn, W=None):
    """scdm: known 0, unknown 1..m in their order: each sees those before it. (B, A) -> (B, A)."""
    return turn.clamp(min=0)


def draw_turns(batch_size, A, generator, device, left_to_right=False, given=None, rates=UNIFORM):
    """The forward process, and the only place that decides how many cells are hidden.

    Cells are lined up in an order (random, or left to right), the last m of them are hidden, and m
    is uniform on 1..A, unless rates say otherwise. It is stratified, so that every batch holds all
    noise levels: of n samples each has its own n-th of (0, 1) to draw from. given (B, A) bool or
    None: cells that are never hidden; A is then the number of the others.
    Returns turn (B, A) int64: <= 0 for a known cell; 1..m for the hidden ones, in their order.

    The paper draws a rate t in (0, 1] and weights by 1/t, which needs t >= 1e-3 and can hide
    nothing. Drawing m has the same expectation (sum over t of the weight = mean over m), with
    neither problem.

    rates (a, b, uniform): P(m <= k) = 1 - (1 - (k / A)^a)^b, the law of Kumaraswamy, uniform at
    (1, 1). Elsewhere the mean loss bounds no likelihood any more, but learning dwells where it is
    hard: three fifths hidden on average at (3, 3), four fifths at (4, 1). But at (4, 1) one sample
    in A^4 hides a single cell, and a model may never learn the last ones. So the first
    uniform * B samples, rounded up, have a uniform m all the same; they and the others are
    stratified each by themselves.
    """
    def strata(u):
        return (torch.arange(len(u), device=device) + u) / len(u)

    a, b, uniform = rates
    few = math.ceil(uniform * batch_size)
    u = torch.rand(batch_size, generator=generator, device=device)
    rest, first = u.split([batch_size - few, few])
    share = (1 - (1 - strata(rest)) ** (1 / b)) ** (1 / a)  # (B - few,) the inverse of the law
    share = torch.cat([strata(first), share])  # (B,) the share of the cells that is hidden
    if left_to_right:
        place = torch.arange(A, device=device).expand(batch_size, A)  # (B, A) place in the line
    else:
        # (B, A) a random permutation of each row
        place = torch.rand(batch_size, A, generator=generator, device=device).argsort(dim=1)
    free = torch.full((batch_size,), A, device=device)  # (B,) cells that may be hidden
    if given is not None:
        free = A - given.sum(dim=1)
        # given cells to the front of the line; the others keep their order
        place = (place - A * given.long()).argsort(dim=1).argsort(dim=1)
    m = 1 + torch.minimum((share * free).long(), free - 1)  # minimum: for rounding
    return place - (A - m).unsqueeze(1) + 1


def hide(batch_size, A, window, generator, device, given, rates=UNIFORM):
    """-> turn (B, A), W: random cells are hidden, and all of them count. window is for mtp.py."""
    return draw_turns(batch_size, A, generator, device, given=given, rates=rates), A


def hidden_nats(model, tokens, turn, W, task, ranks):
    """The loss of each sample: mean cross-entropy over its first W hidden cells -> (B,) nats.

    tokens (B, S) clean; turn (B, A) and W from hide(); ranks: the objective's ranking.
    With m uniform on 1..A and the mean taken over the m hidden cells the expectation is
    (1/A) E_order[ sum_i -log p(x_i | cells before i in the order) ] >= -(1/A) log p(x):
    the order-agnostic bound of arXiv 2110.02037, the masked-diffusion bound of arXiv 2406.07524.
    Shared by mtp.py, which hides other cells.
    """
    P = task.P
    # 1. hide: the prompt is never masked, never scored
    hidden = tokens[:, P:].masked_fill(turn > 0, task.MASK)  # (B, A)
    noisy = torch.cat([tokens[:, :P], hidden], dim=1)  # (B, S)
    # 2. predict: every prompt token has rank 0
    rank = ranks(turn, W)
    if rank is not None:
        rank = F.pad(rank, (P, 0))  # (B, S)
    logits = model(noisy, torch.arange(task.S, device=tokens.device), rank)  # (B, S, K)
    # 3. score
    logits = logits[:, P:].float().transpose(1, 2)  # (B, K, A)
    nll = F.cross_entropy(logits, tokens[:, P:], reduction="none")  # (B, A)
    scored = (turn > 0) & (turn <= W)
    return (nll * scored).sum(dim=1) / scored.sum(dim=1)


def supervise(nats, model, every, weight=0.3):
    """Deep supervision (arXiv 1409.5185): what the head reads after every `every`-th block, before
    the last one, is scored too, as if the model ended there.

    nats: what scores a model, calling it once -> a loss. Returns a loss of the value nats(model)
    and the gradient of nats(model) + weight * the sum of the losses of these shorter models.
    """
    early = []

    def last_reading(*inputs):
        logits, early[:] = model(*inputs, read_every=every)
        return logits

    loss = nats(last_reading)
    added = weight * sum((nats(lambda *_: logits) for logits in early), loss.new_zeros(()))
    return loss + (added - added.detach())
