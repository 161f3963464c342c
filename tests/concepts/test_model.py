"""The visibility rule: no leak through any mask, fast paths equal the rule, a sequence is a set.

    B batch   T tokens in the forward pass   S positions   m unknown cells

The matrices are written out by hand, a character for each pair: row q, column k, `x` where q may
look at k. Tokens: three of the prompt (p), two known cells (k), four unknown ones (1..4 in their
level).
"""
import math
from types import SimpleNamespace

import pytest
import torch

import diffusion
import mtp
from config import Config
from conftest import ToyTask, random_model
from model import CAUSAL, visible
from plumbing.checkpoint import build_model

T = 9
LEVEL = torch.tensor([[3, -1, 1, 0, 4, 2]])  # diffusion: unknown cells in a mixed order
SUFFIX = torch.tensor([[-1, 0, 1, 2, 3, 4]])  # mtp: unknown cells are the last ones, W = 2

MATRICES = {
    #          ppp 3k1k42          (the tokens, in the order of the columns and rows)
    "mdm": """ xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx
               xxx xxxxxx""",
    #          ppp 3k1k42
    "sidm": """xxx .x.x..
               xxx .x.x..
               xxx .x.x..
               xxx xx.x..
               xxx .x.x..
               xxx .xxx..
               xxx .x.x..
               xxx .x.xx.
               xxx .x.x.x""",
    #          ppp 3k1k42
    "scdm": """xxx .x.x..
               xxx .x.x..
               xxx .x.x..
               xxx xxxx.x
               xxx .x.x..
               xxx .xxx..
               xxx .x.x..
               xxx xxxxxx
               xxx .xxx.x""",
    #          ppp kk1234
    "mtp": """ xxx xxxx..
               xxx xxxx..
               xxx xxxx..
               xxx xxxx..
               xxx xxxx..
               xxx xxxx..
               xxx xxxx..
               xxx xxxxx.
               xxx xxxx.x""",
    "ar": """  x.. ......
               xx. ......
               xxx ......
               xxx x.....
               xxx xx....
               xxx xxx...
               xxx xxxx..
               xxx xxxxx.
               xxx xxxxxx""",
}


def by_hand(name):
    """The matrix -> (T, T) bool."""
    rows = ["".join(line.split()) for line in MATRICES[name].splitlines()]
    return torch.tensor([[cell == "x" for cell in row] for row in rows])


def ranks_of(name):
    """The training-time ranking of the T tokens, from the objective's own function."""
    rank = {"mdm": torch.zeros_like(LEVEL), "sidm": diffusion.independent(LEVEL),
            "scdm": diffusion.semi_causal(LEVEL), "mtp": mtp.window_sees_itself(SUFFIX, 2),
            "ar": torch.arange(4, 10).unsqueeze(0)}[name]
    prompt = torch.zeros(1, 3, dtype=rank.dtype)
    if name == "ar":
        prompt = torch.arange(1, 4).unsqueeze(0)
    return torch.cat([prompt, rank], dim=1)


@pytest.fixture
def model():
    task = ToyTask()
    task.S = task.V = task.K = 12
    return random_model(task)


@pytest.mark.parametrize("name", MATRICES)
def test_rule_is_the_table(name):
    assert torch.equal(visible(ranks_of(name))[0], by_hand(name))


def test_fast_ways_stand_for_those_ranks():
    """What an objective returns in place of a tensor: None is all 0, CAUSAL is 1, 2, 3, ..."""
    assert diffusion.joint(LEVEL) is None and mtp.causal(SUFFIX) is CAUSAL
    assert mtp.window_sees_itself(SUFFIX) is None and mtp.window_sees_itself(SUFFIX, 6) is None
    assert mtp.window_sees_itself(SUFFIX, torch.tensor(6)).eq(0).all()


@pytest.mark.parametrize("name", ["mdm", "sidm", "scdm", "mtp", "ar"])
def test_no_leak(model, name):
    """Changing a token changes exactly the logits that may see it, directly or through others.

    Pins minGPT#75 (a mask that leaks gives a loss near 0). The reach is the transitive closure of
    the rule.
    """
    rank, tokens, positions = ranks_of(name), torch.randint(12, (1, T)), torch.randperm(12)[:T]
    reach = by_hand(name)
    for _ in range(T):
        reach = reach | ((reach.float() @ reach.float()) > 0)
    base = model(tokens, positions, rank)
    for k in range(T):
        changed = tokens.clone()
        changed[0, k] = (changed[0, k] + 1) % 12
        moved = (model(changed, positions, rank) != base).any(dim=2)[0]
        assert torch.equal(moved, reach[:, k]), f"{name}: changing token {k}"


def test_fast_paths_equal_the_rule(model):
    tokens, positions = torch.randint(12, (3, T)), torch.arange(T)
    general = model(tokens, positions, torch.zeros(3, T))
    torch.testing.assert_close(model(tokens, positions), general)
    general = model(tokens, positions, torch.arange(1, T + 1))
    torch.testing.assert_close(model(tokens, positions, CAUSAL), general)


def test_a_sequence_is_a_set(model):
    """Permuting the (token, position, rank) triples permutes the logits."""
    tokens, positions = torch.randint(12, (2, T)), torch.rand(2, 12).argsort(dim=1)[:, :T]
    rank, shuffle = ranks_of("scdm").expand(2, T), torch.randperm(T)
    shuffled = model(tokens[:, shuffle], positions[:, shuffle], rank[:, shuffle])
    torch.testing.assert_close(shuffled, model(tokens, positions, rank)[:, shuffle])


@pytest.mark.parametrize("name", ["sidm", "scdm", "mtp"])
def test_trimmed_equals_masked(model, name):
    """Leaving tokens out gives what masking them out gives: the dial's saving changes no logit."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    rank = ranks_of(name).expand(2, T).float()
    keep = torch.tensor([0, 1, 2, 4, 5, 6])  # the prompt, one known cell, two unknown ones
    absent = torch.ones(T, dtype=torch.bool)
    absent[keep] = False
    masked = model(tokens, positions, rank.masked_fill(absent, math.inf))
    trimmed = model(tokens[:, keep], positions[keep], rank[:, keep])
    torch.testing.assert_close(trimmed, masked[:, keep])


def test_sidm_is_scdm_without_latents(model):
    """One unknown cell at a time: what sidm trains is what scdm sees at n = 0."""
    tokens, positions = torch.randint(12, (1, T)), torch.arange(T)
    sidm = model(tokens, positions, ranks_of("sidm"))
    known = (ranks_of("sidm")[0] == 0).nonzero().flatten()
    for cell in (ranks_of("sidm")[0] == 1).nonzero().flatten():
        present = torch.cat([known, cell.view(1)])
        rank = torch.tensor([0] * len(known) + [1])  # scdm with n = 0: the candidate has rank n + 1
        alone = model(tokens[:, present], positions[present], rank)[:, -1]
        torch.testing.assert_close(alone, sidm[:, cell])


@pytest.mark.parametrize("rank", [CAUSAL, torch.arange(-3, T - 3).clamp(min=0)])
def test_cache_equals_no_cache(model, rank):
    """Causal, and with a prompt of four that sees itself both ways: any ranking at first."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    full, cache = model(tokens, positions, rank), model.new_cache()
    first = rank if rank is CAUSAL else rank[:4]
    pieces = [model(tokens[:, :4], positions[:4], first, cache=cache)]
    for i in range(4, T):
        pieces.append(model(tokens[:, i:i + 1], positions[i:i + 1], CAUSAL, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), full)


def test_loops_are_passes_over_the_same_weights(model):
    """Two loops over two blocks are one over those blocks written out twice; cached likewise."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    twice = random_model(SimpleNamespace(V=12, K=12, S=12))
    twice.loops = 2
    longer = random_model(SimpleNamespace(V=12, K=12, S=12))
    longer.blocks.extend(list(longer.blocks))
    torch.testing.assert_close(twice(tokens, positions), longer(tokens, positions))
    cache = twice.new_cache()
    pieces = [twice(tokens[:, :4], positions[:4], CAUSAL, cache=cache)]
    for i in range(4, T):
        pieces.append(twice(tokens[:, i:i + 1], positions[i:i + 1], CAUSAL, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), twice(tokens, positions, CAUSAL))


@pytest.mark.parametrize("qk_norm", (False, True))
def test_attention_is_the_softmax_formula(model, qk_norm):
    """scaled_dot_product_attention under the rule, against the textbook formula."""
    layer, x, mask = model.blocks[0].attn, torch.randn(1, T, 32), visible(ranks_of("scdm"))
    layer.qk_norm = qk_norm
    q, k, v = (t.view(1, T, 2, 16).transpose(1, 2) for t in layer.qkv(x).split(32, dim=2))
    if qk_norm:  # queries of length 2 sqrt(16), keys of sqrt(16)
        q, k = 8 * q / q.norm(dim=3, keepdim=True), 4 * k / k.norm(dim=3, keepdim=True)
    scores = (q @ k.transpose(2, 3) / 16 ** 0.5).masked_fill(~mask.unsqueeze(1), -math.inf)
    mixed = (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(1, T, 32)
    torch.testing.assert_close(layer(x, mask.unsqueeze(1), False, None), layer.proj(mixed))


def test_qk_norm_is_cached_and_built_by_the_config(model):
    """Token by token as at once, with ReLU squared too; the config's field reaches every block."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    before = model(tokens, positions, CAUSAL)
    for block in model.blocks:
        block.attn.qk_norm = True
    full, cache = model(tokens, positions, CAUSAL), model.new_cache()
    assert (full - before).abs().max() > 0.1
    pieces = [model(tokens[:, i:i + 1], positions[i:i + 1], CAUSAL, cache=cache) for i in range(T)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full)
    task = SimpleNamespace(V=12, K=12, S=12)
    for asked in (False, True):
        built = build_model(Config(qk_norm=asked), task)
        assert [block.attn.qk_norm for block in built.blocks] == 4 * [asked]


def test_a_filled_cache_takes_one_causal_token_at_a_time():
    """CAUSAL with two new tokens behind cached ones would let the first see too little."""
    model = random_model(ToyTask())
    cache = model.new_cache()
    model(torch.zeros(1, 2).long(), torch.arange(2), CAUSAL, cache=cache)
    with pytest.raises(ValueError, match="one new token at a time"):
        model(torch.zeros(1, 2).long(), torch.arange(2, 4), CAUSAL, cache=cache)
    assert model(torch.zeros(1, 1).long(), torch.arange(2, 3), CAUSAL, cache=cache).shape[1] == 1


def test_feed_forward_is_the_formula():
    """x + down(GELU(up(x / rms(x)))), in every block."""
    model = build_model(Config(), SimpleNamespace(V=12, K=12, S=12))
    model.init_weights(torch.Generator().manual_seed(0), 0.5)
    x = torch.randn(2, T, 128, generator=torch.Generator().manual_seed(1))
    for block in model.blocks:
        torch.nn.init.normal_(block.down.weight, std=0.1)
        hidden = block.up(x / (x.square().mean(dim=2, keepdim=True) + 2 ** -23).sqrt())
        active = hidden / 2 * (1 + (hidden / 2 ** 0.5).erf())
        torch.testing.assert_close(block.feed_forward(x), block.down(active))


def test_init_covers_every_parameter():
    """A poisoned model is wholly redrawn by init_weights: nothing depends on global state."""
    model = random_model(ToyTask())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(math.nan)
    model.init_weights(torch.Generator().manual_seed(0), 0.5)
    assert all(p.isfinite().all() for p in model.parameters())
    assert abs(model.position.weight.std() - 0.5) < 0.1
    assert not any(b.attn.proj.weight.any() or b.down.weight.any() for b in model.blocks)
    assert not model.head.weight.any()
    std = model.blocks[0].attn.qkv.weight.std() * 32 ** 0.5
    assert abs(std - 1) < 0.1 and abs(model.blocks[0].up.weight.std() * 32 ** 0.5 - 1) < 0.1


def test_autocast_keeps_the_stream_in_bf16():
    """Under autocast every block gets bf16 (half the memory traffic); logits stay near fp32's."""
    task = ToyTask()
    model, seen = random_model(task), []
    model.blocks[1].register_forward_pre_hook(lambda block, args: seen.append(args[0].dtype))
    tokens = torch.randint(task.V, (3, task.S), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(tokens, torch.arange(task.S))
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(tokens, torch.arange(task.S)).float()
    assert seen == [torch.float32, torch.bfloat16]
    assert 0 < (rough - exact).norm() / exact.norm() < 0.03
