"""Masked diffusion: which cells are masked, who may look at whom, and the loss.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols
    m masked cells   W window: how many of the masked cells are scored (here all)   R readings

Source: arXiv 2602.03769. In one forward pass an unknown cell is either DECODED (committed to a
symbol now) or LATENT (present, predicted, not committed). The objectives differ in their ranking:

    mdm    joint prediction         everything sees everything: all other unknown cells are latents
    sidm   independent prediction   an unknown cell sees the known ones and itself: no latents
    scdm   semi-causal              it also sees the unknown cells that come earlier in a random
                                    order: n latents, and n is a dial at inference (sample.py)
    bcdm   block-causal             n latents see each other and the known cells; the other unknown
                                    cells see all of these and themselves (ours, not the paper's)

A ranking is a function of LEVEL, the place of a cell in the order of decoding: <= 0 for a known
cell, 1, 2, 3, ... for the unknown ones. Training and sample.py call the same function.
"""
import math

import torch
import torch.nn.functional as F

UNIFORM = (1.0, 1.0, 0.0)  # the rates of draw_num_masked() at which the number is uniform


def joint(level, W=None):
    """mdm. level (B, A) -> None: everything sees everything (as rank 0 everywhere, but faster)."""
    return None


def independent(level, W=None):
    """sidm: known 0, unknown 1. Equal ranks above 0 do not see each other. (B, A) -> (B, A)."""
    return level.clamp(0, 1)


def semi_causal(level, W=None):
    """scdm: known 0, unknown 1..m in their order: each sees those before it. (B, A) -> (B, A)."""
    return level.clamp(min=0)


def block_causal(level, W=None):
    """bcdm: known cells and latents 0, candidates (highest level) 1. (B, A) -> (B, A)."""
    return (level == level.amax(dim=1, keepdim=True)).long()


def draw_num_masked(maskable, generator, rates=UNIFORM):
    """How many cells of each sample are masked: maskable (B,) int64 -> m (B,), in 1..maskable.
    By default m is uniform, and stratified: of n samples the i-th draws its mask ratio from the
    i-th of n equal parts of (0, 1). The paper draws a rate t in (0, 1] and weights the loss by 1/t,
    which needs t >= 1e-3 and may mask nothing; drawing m has the same expectation.

    rates (a, b, uniform): mask ratio ~ Kumaraswamy(a, b), P(ratio <= x) = 1 - (1 - x^a)^b. (1, 1)
    is uniform and gives the ELBO; other values give no bound, but spend more training on hard mask
    ratios, on average 3/5 at (3, 3), 4/5 at (4, 1). The first uniform * B samples, rounded up, have
    a uniform mask ratio, so that nearly complete boards are seen too. Both parts are stratified.
    """
    def strata(u):
        return (torch.arange(len(u), device=u.device) + u) / len(u)

    a, b, uniform = rates
    num_uniform = math.ceil(uniform * len(maskable))
    u = torch.rand(len(maskable), generator=generator, device=maskable.device)
    rest, first = u.split([len(maskable) - num_uniform, num_uniform])
    ratio = (1 - (1 - strata(rest)) ** (1 / b)) ** (1 / a)  # the inverse of the distribution
    ratio = torch.cat([strata(first), ratio])  # (B,)
    return 1 + torch.minimum((ratio * maskable).long(), maskable - 1)  # minimum: for rounding


def draw_levels(given, generator, left_to_right=False, rates=UNIFORM):
    """The forward process: which cells are masked, and in which order they would be decoded.

    given (B, A) bool: cells that are never masked. The other cells are put in an order (random, or
    left to right), and the last m of them are masked, m from draw_num_masked().
    Returns level (B, A) int64: <= 0 for a known cell; 1..m for the masked ones, in their order.
    """
    B, A = given.shape
    m = draw_num_masked(A - given.sum(dim=1), generator, rates)  # (B,)
    place = torch.arange(A, device=given.device).expand(B, A)  # (B, A) each cell's place in order
    if not left_to_right:
        place = torch.rand(B, A, generator=generator, device=given.device).argsort(dim=1)
    # given cells come first; the others keep their order
    place = (place - A * given.long()).argsort(dim=1).argsort(dim=1)
    return place - (A - m).unsqueeze(1) + 1


def mask_random(given, generator, config):
    """-> level (B, A), W: random cells are masked, and all of them are scored."""
    rates = (config.mask_rate_a, config.mask_rate_b, config.uniform_fraction)
    return draw_levels(given, generator, rates=rates), given.shape[1]


def mask_blocks(given, generator, config):
    """bcdm -> level (B, A), W: as mask_random(), but the masked cells behind the first n, the
    candidates, all have level n + 1. All masked cells are scored. Of m masked cells n = m - 1 are
    latents with probability config.full_latents_fraction; otherwise n is uniform on 0..m-1.
    """
    level, W = mask_random(given, generator, config)
    m = level.amax(dim=1, keepdim=True)  # (B, 1)
    full, u = torch.rand(2, len(m), 1, generator=generator, device=m.device)
    n = torch.minimum((u * m).long(), m - 1)
    n = torch.where(full < config.full_latents_fraction, m - 1, n)
    return torch.minimum(level, n + 1), W


def rank_with_prompt(ranks, level, W, P):
    """The ranking of prompt and answer: level (B, A) -> rank (B, P + A); the prompt has rank 0."""
    rank = ranks(level, W)
    return rank if rank is None else F.pad(rank, (P, 0))


def masked_loss(model, tokens, level, W, task, ranks, read_every=0):
    """The loss of each sample, nats: mean cross-entropy over its first W masked cells -> (B,).

    tokens (B, S) clean; level (B, A) and W from the objective's mask(); ranks: its ranking.
    With read_every (model.forward) returns (R, B), a loss for each reading.
    With m uniform on 1..A and the mean taken over the m masked cells the expectation is
    (1/A) E_order[ sum_i -log p(x_i | cells before i in the order) ] >= -(1/A) log p(x):
    the order-agnostic bound of arXiv 2110.02037, the masked-diffusion bound of arXiv 2406.07524.
    """
    P = task.P
    # 1. mask: the prompt is never masked, never scored
    masked = tokens[:, P:].masked_fill(level > 0, task.MASK)  # (B, A)
    noisy = torch.cat([tokens[:, :P], masked], dim=1)  # (B, S)
    # 2. predict
    rank = rank_with_prompt(ranks, level, W, P)
    positions = torch.arange(task.S, device=tokens.device)
    logits = model(noisy, positions, rank, read_every=read_every)  # (B, S, K) or (R, B, S, K)
    # 3. score
    nll = cross_entropy(logits[..., P:, :], tokens[:, P:])  # (B, A) or (R, B, A)
    scored = (level > 0) & (level <= W)
    return (nll * scored).sum(dim=-1) / scored.sum(dim=-1)


def cross_entropy(logits, symbols):
    """logits (..., B, A, K), symbols (B, A) -> the negative log-likelihood (..., B, A), nats."""
    symbols = symbols.expand(logits.shape[:-1])
    nll = F.cross_entropy(logits.float().flatten(0, -2), symbols.flatten(), reduction="none")
    return nll.view(symbols.shape)


def auxiliary_loss(losses, weight=0.3):
    """Deep supervision (arXiv 1409.5185): what the head reads after every N-th block is scored too.

    losses (R,): one for each reading, the model's own last. Returns a loss with the value of
    losses[-1] and the gradient of losses[-1] + weight * (the sum of the others).
    """
    added = weight * losses[:-1].sum()
    return losses[-1] + (added - added.detach())
