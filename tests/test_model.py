"""The visibility rule: no leak through any mask, fast paths equal the general rule, a sequence is a set.

    B batch   T tokens in the forward pass   S positions   m unknown cells
"""
import math

import pytest
import torch

import diffusion
import mtp
from conftest import ToyTask, random_model
from model import visible

T = 9


def ranks_of(name):
    """A training-time ranking of T tokens for each rule: 3 prompt tokens, 2 known cells, 4 unknown cells."""
    turn = torch.tensor([[3, -1, 1, 0, 4, 2]])  # unknown cells in a mixed order
    suffix = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    rank = {"mdm": diffusion.ranks("mdm", turn), "sidm": diffusion.ranks("sidm", turn), "scdm": diffusion.ranks("scdm", turn),
            "mtp": mtp.ranks(suffix, 2), "ar": torch.arange(4, 10).unsqueeze(0)}[name]
    prompt = torch.arange(1, 4).unsqueeze(0) if name == "ar" else torch.zeros(1, 3, dtype=rank.dtype)
    return torch.cat([prompt, rank], dim=1)


@pytest.fixture
def model():
    task = ToyTask()
    task.S = task.V = task.K = 12
    return random_model(task)


def by_hand(name):
    """Who may look at whom, from the table of the README, written as a double loop: (T, T) bool."""
    rank = ranks_of(name)[0].tolist()
    may = torch.zeros(T, T, dtype=torch.bool)
    for q in range(T):
        for k in range(T):
            q_known, k_known = rank[q] == 0, rank[k] == 0
            may[q, k] = q == k or {
                "mdm": True,
                "sidm": k_known,
                "scdm": k_known if q_known else k_known or rank[k] < rank[q],
                "mtp": k_known,
                "ar": k < q}[name]
    return may


@pytest.mark.parametrize("name", ["mdm", "sidm", "scdm", "mtp", "ar"])
def test_rule_is_the_table(name):
    assert torch.equal(visible(ranks_of(name))[0], by_hand(name))


@pytest.mark.parametrize("name", ["mdm", "sidm", "scdm", "mtp", "ar"])
def test_no_leak(model, name):
    """Changing a token changes exactly the logits that may see it, directly or through others.

    Pins minGPT#75 (a mask that leaks gives a loss near 0). The reach is the transitive closure of the rule.
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
    torch.testing.assert_close(model(tokens, positions), model(tokens, positions, torch.zeros(3, T)))
    torch.testing.assert_close(model(tokens, positions, causal=True), model(tokens, positions, torch.arange(1, T + 1)))


def test_a_sequence_is_a_set(model):
    """Permuting the (token, position, rank) triples permutes the logits."""
    tokens, positions, rank = torch.randint(12, (2, T)), torch.rand(2, 12).argsort(dim=1)[:, :T], ranks_of("scdm").expand(2, T)
    shuffle = torch.randperm(T)
    torch.testing.assert_close(model(tokens[:, shuffle], positions[:, shuffle], rank[:, shuffle]), model(tokens, positions, rank)[:, shuffle])


@pytest.mark.parametrize("name", ["sidm", "scdm", "mtp"])
def test_trimmed_equals_masked(model, name):
    """Leaving tokens out gives what masking them out gives: the saving of the latent dial changes no logit."""
    tokens, positions, rank = torch.randint(12, (2, T)), torch.arange(T), ranks_of(name).expand(2, T).float()
    keep = torch.tensor([0, 1, 2, 4, 5, 6])  # the prompt, one known cell, two unknown ones
    absent = torch.ones(T, dtype=torch.bool)
    absent[keep] = False
    masked = model(tokens, positions, rank.masked_fill(absent, math.inf))
    torch.testing.assert_close(model(tokens[:, keep], positions[keep], rank[:, keep]), masked[:, keep])


def test_sidm_is_scdm_without_latents(model):
    """One unknown cell at a time: what sidm trains is what scdm sees at n = 0."""
    tokens, positions = torch.randint(12, (1, T)), torch.arange(T)
    sidm = model(tokens, positions, ranks_of("sidm"))
    known = (ranks_of("sidm")[0] == 0).nonzero().flatten()
    for cell in (ranks_of("sidm")[0] == 1).nonzero().flatten():
        present = torch.cat([known, cell.view(1)])
        rank = torch.tensor([0] * len(known) + [1])  # scdm with n = 0: the candidate has rank n + 1
        torch.testing.assert_close(model(tokens[:, present], positions[present], rank)[:, -1], sidm[:, cell])


def test_cache_equals_no_cache(model):
    tokens, positions = torch.randint(12, (2, T)), torch.arange(T)
    full, cache = model(tokens, positions, causal=True), model.new_cache()
    pieces = [model(tokens[:, :4], positions[:4], causal=True, cache=cache)]
    pieces += [model(tokens[:, i:i + 1], positions[i:i + 1], causal=True, cache=cache) for i in range(4, T)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full)


def test_attention_is_the_softmax_formula(model):
    """scaled_dot_product_attention under the rule, against the textbook formula."""
    layer, x, mask = model.blocks[0].attn, torch.randn(1, T, 32), visible(ranks_of("scdm"))
    q, k, v = (t.view(1, T, 2, 16).transpose(1, 2) for t in layer.qkv(x).split(32, dim=2))
    scores = (q @ k.transpose(2, 3) / 16 ** 0.5).masked_fill(~mask.unsqueeze(1), -math.inf)
    expected = layer.proj((scores.softmax(dim=3) @ v).transpose(1, 2).reshape(1, T, 32))
    torch.testing.assert_close(layer(x, mask.unsqueeze(1), False, None), expected)


def test_init_covers_every_parameter():
    """A poisoned model is wholly redrawn by init_weights: nothing keeps a value that depends on global state."""
    model = random_model(ToyTask())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(math.nan)
    model.init_weights(torch.Generator().manual_seed(0), 0.5)
    assert all(p.isfinite().all() for p in model.parameters())
    assert abs(model.position.weight.std() - 0.5) < 0.1
    assert all(not b.attn.proj.weight.any() and not b.down.weight.any() for b in model.blocks)


def test_autocast_keeps_the_stream_in_bf16():
    """Under autocast every block gets bf16 (half the memory traffic), and the logits stay near the fp32 ones."""
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
