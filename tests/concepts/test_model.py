"""The visibility rule: no leak through any mask, fast paths equal the rule, a sequence is a set.

    B batch   T tokens in the forward pass   S positions   m unknown cells

The matrices are written by hand, a character per pair: row q, column k, `x` if q may look at k.
Tokens: three of the prompt (p), two known cells (k), four unknown ones (1..4, their level).
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
BLOCKS = LEVEL.clamp(max=3)  # bcdm with two latents: the candidates share the highest level
SUFFIX = torch.tensor([[-1, 0, 1, 2, 3, 4]])  # mtp: unknown cells are the last ones, W = 2

NAMES = ("mdm", "sidm", "scdm", "bcdm", "mtp", "mtp-no-latents", "ar")
#   mdm         sidm        scdm        bcdm        mtp         no latents  ar
#   ppp 3k1k42  ppp 3k1k42  ppp 3k1k42  ppp 3k1k32  ppp kk1234  ppp kk1234  ppp kk1234
TABLE = """
    xxx xxxxxx  xxx .x.x..  xxx .x.x..  xxx .xxx.x  xxx xxxx..  xxx xx....  x.. ......
    xxx xxxxxx  xxx .x.x..  xxx .x.x..  xxx .xxx.x  xxx xxxx..  xxx xx....  xx. ......
    xxx xxxxxx  xxx .x.x..  xxx .x.x..  xxx .xxx.x  xxx xxxx..  xxx xx....  xxx ......
    xxx xxxxxx  xxx xx.x..  xxx xxxx.x  xxx xxxx.x  xxx xxxx..  xxx xx....  xxx x.....
    xxx xxxxxx  xxx .x.x..  xxx .x.x..  xxx .xxx.x  xxx xxxx..  xxx xx....  xxx xx....
    xxx xxxxxx  xxx .xxx..  xxx .xxx..  xxx .xxx.x  xxx xxxx..  xxx xxx...  xxx xxx...
    xxx xxxxxx  xxx .x.x..  xxx .x.x..  xxx .xxx.x  xxx xxxx..  xxx xx.x..  xxx xxxx..
    xxx xxxxxx  xxx .x.xx.  xxx xxxxxx  xxx .xxxxx  xxx xxxxx.  xxx xx..x.  xxx xxxxx.
    xxx xxxxxx  xxx .x.x.x  xxx .xxx.x  xxx .xxx.x  xxx xxxx.x  xxx xx...x  xxx xxxxxx
"""
MATRICES = {name: torch.tensor([[cell == "x" for cell in line.split("  ")[i].replace(" ", "")]
                                for line in map(str.strip, TABLE.strip().splitlines())])
            for i, name in enumerate(NAMES)}  # (T, T) bool each


def ranks_of(name):
    """The training-time ranking of the T tokens, from the objective's own function."""
    rank = {"mdm": torch.zeros_like(LEVEL), "sidm": diffusion.independent(LEVEL),
            "scdm": diffusion.semi_causal(LEVEL), "bcdm": diffusion.block_causal(BLOCKS),
            "mtp": mtp.window_sees_itself(SUFFIX, 2),
            "mtp-no-latents": diffusion.independent(SUFFIX),
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
    assert torch.equal(visible(ranks_of(name))[0], MATRICES[name])


def test_objectives_return_fast_forms_of_ranks():
    """None for all 0, CAUSAL for 1, 2, 3, ..."""
    assert diffusion.joint(LEVEL) is None and mtp.causal(SUFFIX) is CAUSAL
    assert mtp.window_sees_itself(SUFFIX) is None and mtp.window_sees_itself(SUFFIX, 6) is None
    assert mtp.window_sees_itself(SUFFIX, torch.tensor(6)).eq(0).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_leak(model, name):
    """Changing a token changes exactly the logits that may see it, directly or through others.

    Pins minGPT#75 (a mask that leaks gives a loss near 0). The reach is the transitive closure of
    the rule.
    """
    rank, tokens, positions = ranks_of(name), torch.randint(12, (1, T)), torch.randperm(12)[:T]
    reach = MATRICES[name]
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
    """Absent tokens equal tokens of rank +inf: that latents are absent changes no logit."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    rank = ranks_of(name).expand(2, T).float()
    keep = torch.tensor([0, 1, 2, 4, 5, 6])  # the prompt, one known cell, two unknown ones
    absent = torch.ones(T, dtype=torch.bool)
    absent[keep] = False
    masked = model(tokens, positions, rank.masked_fill(absent, math.inf))
    trimmed = model(tokens[:, keep], positions[keep], rank[:, keep])
    torch.testing.assert_close(trimmed, masked[:, keep])


def test_sidm_is_scdm_without_latents(model):
    """Training of sidm equals decoding of scdm at n = 0, one unknown cell at a time."""
    tokens, positions = torch.randint(12, (1, T)), torch.arange(T)
    sidm = model(tokens, positions, ranks_of("sidm"))
    known = (ranks_of("sidm")[0] == 0).nonzero().flatten()
    for cell in (ranks_of("sidm")[0] == 1).nonzero().flatten():
        present = torch.cat([known, cell.view(1)])
        rank = torch.tensor([0] * len(known) + [1])  # scdm with n = 0: the candidate has rank n + 1
        alone = model(tokens[:, present], positions[present], rank)[:, -1]
        torch.testing.assert_close(alone, sidm[:, cell])


def token_by_token(model, tokens, positions, first=CAUSAL):
    """Logits with a cache: the first four tokens under the ranks `first`, then one at a time."""
    cache = model.new_cache()
    pieces = [model(tokens[:, :4], positions[:4], first, cache=cache)]
    for i in range(4, T):
        pieces.append(model(tokens[:, i:i + 1], positions[i:i + 1], CAUSAL, cache=cache))
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("rank", [CAUSAL, torch.arange(-3, T - 3).clamp(min=0)])
@pytest.mark.parametrize("qk_norm, loops", [(False, 1), (True, 1), (False, 2)])
def test_cache_equals_no_cache(model, rank, qk_norm, loops):
    """Causal, and with a prompt of four that sees itself both ways."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    before, model.loops = model(tokens, positions, rank), loops
    for block in model.blocks:
        block.attn.qk_norm = qk_norm
    whole = model(tokens, positions, rank)
    assert ((whole - before).abs().max() > 0.1) == (qk_norm or loops > 1)
    first = rank if rank is CAUSAL else rank[:4]
    torch.testing.assert_close(token_by_token(model, tokens, positions, first), whole)


def test_loops_are_passes_over_the_same_weights(model):
    """Two loops over two blocks are one loop over those blocks written twice."""
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    model.loops = 2
    longer = random_model(SimpleNamespace(V=12, K=12, S=12))
    longer.blocks.extend(list(longer.blocks))
    torch.testing.assert_close(model(tokens, positions), longer(tokens, positions))


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


def test_a_filled_cache_takes_one_causal_token_at_a_time():
    """CAUSAL would be wrong for two new tokens: the first one would not see the cache."""
    model = random_model(ToyTask())
    cache = model.new_cache()
    model(torch.zeros(1, 2).long(), torch.arange(2), CAUSAL, cache=cache)
    with pytest.raises(ValueError, match="one new token at a time"):
        model(torch.zeros(1, 2).long(), torch.arange(2, 4), CAUSAL, cache=cache)
    assert model(torch.zeros(1, 1).long(), torch.arange(2, 3), CAUSAL, cache=cache).shape[1] == 1


def test_feed_forward_is_the_formula():
    """x + down(GELU(up(x / rms(x)))), in every block; the config sets qk_norm."""
    for qk_norm in (True, False):
        model = build_model(Config(qk_norm=qk_norm), SimpleNamespace(V=12, K=12, S=12))
        assert [block.attn.qk_norm for block in model.blocks] == 4 * [qk_norm]
    model.init_weights(torch.Generator().manual_seed(0), 0.5)
    x = torch.randn(2, T, 128, generator=torch.Generator().manual_seed(1))
    for block in model.blocks:
        torch.nn.init.normal_(block.down.weight, std=0.1)
        up = block.up(x / (x.square().mean(dim=2, keepdim=True) + 2 ** -23).sqrt())
        active = up / 2 * (1 + (up / 2 ** 0.5).erf())
        torch.testing.assert_close(block.feed_forward(x), block.down(active))


def test_init_covers_every_parameter():
    """init_weights() replaces every weight of a model of nans."""
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
    """Under autocast every block reads bf16 (half the memory traffic); logits are near fp32's."""
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
