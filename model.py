"""The transformer: (tokens, positions, rank) -> logits, and the one rule of who may look at whom.

    B batch   T tokens in the forward pass   S positions in the task   V vocabulary
    D width   H heads                        K answer symbols (the first K ids of the vocabulary)

A sequence here is a SET of (token, position) pairs. The position travels with its token, so any
subset of a sequence, in any order, is a valid input: a latent token that is not wanted is not in
the tensor. This file knows no objectives; an objective is a ranking (see `visible`).

What is not here, and why: no time embedding (the number of known tokens already tells the time),
no dropout (the tasks are augmented or endless), no rotary embedding (positions are a set of cells,
not a line), no biases.
"""
import contextlib

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CAUSAL = "causal"  # stands for ranks 1, 2, 3, ...


def visible(rank):
    """Who may look at whom. rank (..., T), any real dtype -> bool (..., T query, T key).

        q may look at k   iff   rank[k] < rank[q]   or   k is q   or   rank[k] == rank[q] <= 0

    So: all 0 is full attention; 1, 2, 3, ... is causal attention; equal ranks above 0 do not see
    each other; +inf is seen by nobody. (All five attention rules of arXiv 2602.03769 in one line.)
    """
    k, q = rank.unsqueeze(-2), rank.unsqueeze(-1)
    itself = torch.eye(rank.shape[-1], dtype=torch.bool, device=rank.device)
    return (k < q) | itself | ((k == q) & (q <= 0))


def attention_for(device_type, T):
    """A context in which attention over T tokens uses the fastest kernel. torch's first choice on a
    GPU works in tiles of 128 tokens; for few, another saves 9 to 22 % of a training step (LOG.md).
    """
    if device_type == "cuda" and 1 < T <= 64:
        return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return contextlib.nullcontext()


class Attention(nn.Module):
    """qk_norm: queries and keys are normalised (arXiv 2010.04245, but with a fixed scale), so that
    no score leaves +-2 sqrt(D/H), however the weights grow."""

    def __init__(self, width, heads, qk_norm=False):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x, mask, causal, past):
        B, T, D = x.shape
        heads = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        if past is not None:  # key-value cache: what earlier tokens put there, then this call's
            kv, cached = past  # (2, B, H, S, D/H), of which the first `cached` positions are filled
            kv[..., cached:cached + T, :] = qkv[1:]
            k, v = kv[..., :cached + T, :]
        return self.mix(q, k, v, mask, causal)

    def mix(self, q, k, v, mask, causal=False):
        """q (B, H, T, D/H); k, v (B, H, all that may be seen, D/H) -> (B, T, D)."""
        if self.qk_norm:
            q, k = 2 * F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual block (RMSNorm without gain, GELU, 4x hidden width)."""

    def __init__(self, width, heads, qk_norm=False):
        super().__init__()
        self.attn = Attention(width, heads, qk_norm)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x, mask, causal, past):
        x = x + self.attn(F.rms_norm(x, x.shape[-1:]), mask, causal, past)
        return x + self.feed_forward(x)

    def feed_forward(self, x):
        """Each token by itself. x (..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(F.rms_norm(x, x.shape[-1:]))))


class Transformer(nn.Module):
    """vocab_size V input symbols, of which the first `answer_symbols` K can be predicted.

    The head has one row for each symbol that an answer may hold. This is the ONE place where
    illegal tokens (MASK, BLANK, BOS, punctuation) leave the softmax: they have no logit at all.
    """

    def __init__(self, vocab_size, answer_symbols, num_positions, width, depth, heads, loops=1,
                 qk_norm=False):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(num_positions, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm) for _ in range(depth))
        self.head = nn.Linear(width, answer_symbols, bias=False)
        self.loops = loops

    def init_weights(self, generator, embedding_std):
        """Draw every weight from `generator`.

        With embeddings of std 0.02 a model of this size learns nothing for minutes; with 0.5 the
        same star graph is solved in one (LOG.md).
        """
        for name, p in self.named_parameters():
            if name.startswith(("token", "position")):
                nn.init.normal_(p, std=embedding_std, generator=generator)
            elif name.endswith(("proj.weight", "down.weight")) or name.startswith("head"):
                nn.init.zeros_(p)  # every block starts as the identity, every prediction as uniform
            else:
                nn.init.normal_(p, std=p.shape[1] ** -0.5, generator=generator)

    def forward(self, tokens, positions, rank=None, cache=None, read_every=0):
        """Predict the symbol of every pair.

        tokens (B, T) int64; positions (B, T) or (T,) int64 in 0..S-1. rank says who sees whom:
            (B, T) or (T,)           the rule of visible()
            None                     everything sees everything (all ranks 0)
            CAUSAL                   ranks 1, 2, 3, ...
            bool (T, T), (B, T, T)   an explicit attention mask (decoders/)
        None and CAUSAL are passed explicitly: inspecting a tensor would force a synchronisation.
        cache: from new_cache(), extended in place; new tokens see all that is cached, and each
        other by their ranks. Raises ValueError for CAUSAL with several new tokens behind others.
        Returns logits (B, T, K); with read_every = N > 0 (R, B, T, K): what the head reads after
        every N-th block (counted over all loops), the model's prediction last.
        """
        T = tokens.shape[1]
        causal = rank is CAUSAL and T > 1  # a single new token may see the whole cache
        if causal and cache is not None and cache["length"]:
            raise ValueError("CAUSAL takes one new token at a time once the cache holds any")
        if rank is not None and rank is not CAUSAL and not isinstance(rank, torch.Tensor):
            raise ValueError(f"rank is {rank!r}, not a tensor, None or CAUSAL")
        mask = None  # (B or 1, 1, T, T): the same for every head
        if isinstance(rank, torch.Tensor):
            mask = rank if rank.dtype == torch.bool else visible(rank)
            mask = mask.view(-1, 1, T, T)
            if cache is not None:  # (B or 1, 1, T, length + T): all see what is cached
                mask = F.pad(mask, (cache["length"], 0), value=True)
        blocks, readings = [*self.blocks] * self.loops, []
        x = self.token(tokens) + self.position(positions)  # (B, T, D)
        if torch.is_autocast_enabled(x.device.type):
            # in bf16 this stream takes half the memory traffic (LOG.md: 7 % of a step)
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if cache is not None and cache["kv"] is None:
            # room for all S at once: a cache that grows would copy itself at every token
            H, (S, D) = self.blocks[0].attn.heads, self.position.weight.shape
            cache["kv"] = x.new_empty(len(blocks), 2, len(x), H, S, D // H)
        with attention_for(x.device.type, T):
            for i, block in enumerate(blocks):
                past = None if cache is None else (cache["kv"][i], cache["length"])
                x = block(x, mask, causal, past)
                if i + 1 == len(blocks) or read_every and (i + 1) % read_every == 0:
                    readings.append(self.read(x))
        if cache is not None:
            cache["length"] += T
        return torch.stack(readings) if read_every else readings[0]

    def read(self, x):
        """x (B, T, D) after any block -> logits (B, T, K)."""
        return self.head(F.rms_norm(x, x.shape[-1:]))

    def new_cache(self):
        """An empty cache: the number of tokens it holds, and room for their keys and values."""
        return {"length": 0, "kv": None}

    def num_params(self):
        return sum(p.numel() for p in self.parameters())
