"""Random numbers for decoding: each sample has its own, a function of the seed and of its start.

    B batch   S positions

A generator's stream depends on who else is in the batch. Here a number is a hash of (sample, step,
index), so neither the neighbours in a file nor the batch size nor the device change it.
"""
from collections import Counter

import torch

INCREMENT = -0x61C8864680B583EB  # splitmix64's, odd, as int64: added first, for mix(0) is 0


def mix(x):
    """Scramble int64 (the finaliser of splitmix64): the same bits on every device."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def sample_keys(seed, start, copies_differ):
    """-> (B,) int64, the randomness of each sample: from the seed and the sample's content.

    So neither the neighbours in a batch nor the order of a file matter. copies_differ: equal starts
    are told apart by counting them (generation, T > 0); otherwise they get the same answer.
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


def uniform(keys, step, *shape):
    """-> (B, *shape) fp32 in (0, 1): the numbers of this step. A part of a shape has the same."""
    count = torch.Size(shape).numel()
    index = (step << 32) + torch.arange(1, count + 1, device=keys.device)
    bits = mix(keys.unsqueeze(1) + index * INCREMENT)
    return (((bits >> 40 & (1 << 24) - 1) + 0.5) / (1 << 24)).view(len(keys), *shape)
