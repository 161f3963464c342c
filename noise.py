"""Random numbers for decoding, and the two choices that use them: which symbol, which cell.

    B batch   S positions   K answer symbols   c cells

The stream of a torch.Generator depends on who else is in the batch. Here a random number is a hash
of (sample, pass, index), so results do not depend on the batch, on the order of a file, or on the
device.
"""
from collections import Counter

import torch

INCREMENT = -0x61C8864680B583EB  # of splitmix64 (odd), as int64; mix(0) is 0, so it is added first


def mix(x):
    """Scramble int64 (the finaliser of splitmix64): the same bits on every device."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def sample_keys(seed, start, copies_differ):
    """-> (B,) int64, a key for each sample: a hash of the seed and of the sample's start (B, S).

    copies_differ: equal starts get different keys, by counting them (generation, T > 0); otherwise
    they get the same key, and so the same answer.
    """
    columns = torch.arange(start.shape[1], device=start.device) << 16
    content = mix(start + columns).sum(dim=1)
    if copies_differ:
        seen, copy = Counter(), []
        for c in content.tolist():
            copy.append(seen[c])
            seen[c] += 1
        content = content + mix(torch.tensor(copy, device=start.device) + (1 << 40))
    return mix(content + mix(torch.tensor(seed + (1 << 50), device=start.device)))


def uniform(keys, number, *shape):
    """-> (B, *shape) fp32 in (0, 1): draw `number` of each sample, a function of the key alone."""
    count = torch.Size(shape).numel()
    index = (number << 32) + torch.arange(1, count + 1, device=keys.device)
    bits = mix(keys.unsqueeze(1) + index * INCREMENT)
    u = ((bits >> 40 & (1 << 24) - 1) + 0.5) / (1 << 24)
    return u.clamp(max=1 - 2**-24).view(len(keys), *shape)  # the largest would round up to 1


def sample_symbols(logits, temperature, noise=None):
    """logits (..., K) -> symbols (...). noise: uniform, of that shape; temperature 0 needs none."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits / temperature).softmax(dim=-1)
    return (probs / -noise.log()).argmax(dim=-1)  # the Gumbel trick: no host synchronisation


def certainty(probs, order):
    """How certain the model is of each cell: (B, c, K) -> (B, c), whatever symbol is sampled."""
    if order == "margin":
        top = probs.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
    if order == "entropy":
        return torch.special.xlogy(probs, probs).sum(dim=-1)  # the least entropy first
    return probs.amax(dim=-1)
