"""bcdm, the block-causal dial: its low end is sidm, its high end is mdm, and no candidate leaks.

    B batch   P prompt   A answer cells   T tokens in the forward pass   n latents   m masked cells
"""
from types import SimpleNamespace

import pytest
import torch

import diffusion
from conftest import ToyTask, empty, keys_for, random_model, task_config
from data import make_task
from model import visible
from objectives import ALL, ORDERS, SamplingParams
from sample import decode

TASK = ToyTask()


def masked_batch(B=64, given=None, fraction=0.5, seed=0):
    """-> level (B, 4) as bcdm draws it, and the same cells as mdm draws them."""
    config = SimpleNamespace(mask_rate_a=1.0, mask_rate_b=1.0, uniform_fraction=0.0,
                             full_latents_fraction=fraction)
    given = torch.zeros(B, 4, dtype=torch.bool) if given is None else given
    blocks, W = diffusion.mask_blocks(given, torch.Generator().manual_seed(seed), config)
    order, same_W = diffusion.mask_random(given, torch.Generator().manual_seed(seed), config)
    assert W == same_W == 4  # every masked cell is scored
    return blocks, order


@pytest.mark.parametrize("k", (1, 3))
@pytest.mark.parametrize("order", ORDERS)
def test_no_latents_is_sidm(order, k):
    """With the same weights, decoding at n = 0 equals sidm's bit for bit, in every order."""
    task = make_task(task_config())
    model, start = random_model(task), empty(task, 6)
    start[1, 3:9] = 2
    candidates = k if order in ("random", "left_to_right") else 5
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(order, candidates, 0, k, temperature)
        (a, a_stats), (b, b_stats) = (decode(model, task, objective, start, sampling,
                                             keys_for(start)) for objective in ("bcdm", "sidm"))
        assert torch.equal(a, b)
        assert all(torch.equal(a_stats[name], b_stats[name]) for name in a_stats)


def test_the_loss_without_latents_is_sidms():
    model = random_model(TASK)
    x = torch.randint(2, (64, 5), generator=torch.Generator().manual_seed(1))
    _, order = masked_batch()
    ours = diffusion.masked_loss(model, x, order.clamp(max=1), 4, TASK, diffusion.block_causal)
    assert torch.equal(ours, diffusion.masked_loss(model, x, order, 4, TASK, diffusion.independent))


def test_all_latents_is_mdm_with_the_arrows_into_the_candidate_cut():
    """n = all, one candidate: what it reads is mdm's forward pass, in which no one else sees it."""
    task = make_task(task_config())
    model, start, history = random_model(task), empty(task, 5), []
    decode(model, task, "bcdm", start, SamplingParams("random", 1, ALL, 1, 0.0), keys_for(start),
           history)
    tokens = start
    for record in history:
        present = record["present"]
        cut = torch.ones(present.shape[1], present.shape[1], dtype=torch.bool)
        cut[:-1, -1] = False  # the candidate stands last
        assert present.shape[1] == task.S
        expected = model(tokens.gather(1, present), present, cut)
        assert torch.equal(record["logits"], expected)
        whole = model(tokens.gather(1, present), present)  # and mdm itself is something else
        assert record is history[-1] or not torch.allclose(whole, expected)
        tokens = record["tokens"]


@pytest.mark.parametrize("fraction", (0.0, 0.5, 1.0))
def test_no_candidate_is_seen_in_training(fraction):
    """Neither known cells nor latents nor other candidates see a candidate; it sees them all."""
    given = torch.tensor([[False, True, False, False]]).expand(64, 4)
    for cells in (None, given):
        blocks, order = masked_batch(given=cells, fraction=fraction)
        assert torch.equal(blocks > 0, order > 0)
        sees = visible(diffusion.block_causal(blocks))  # (B, A, A)
        candidate = blocks == blocks.amax(dim=1, keepdim=True)
        assert torch.equal(sees, ~candidate.unsqueeze(1) | torch.eye(4, dtype=torch.bool))
        assert not (candidate & (order <= 0)).any()


def test_the_law_of_n():
    """n = m - 1 for the fraction that is asked for; uniform on 0..m - 1 for the rest."""
    for fraction in (0.0, 0.5, 1.0):
        blocks, order = masked_batch(40000, fraction=fraction)
        m, n = order.amax(dim=1), blocks.amax(dim=1) - 1
        for k in range(1, 5):
            counts = n[m == k].bincount(minlength=k).float()
            expected = torch.full((k,), (1 - fraction) / k)
            expected[k - 1] += fraction
            error = (expected * (1 - expected) / counts.sum()).sqrt()
            assert len(counts) == k
            assert ((counts / counts.sum() - expected).abs() <= 5 * error).all()


def test_latents_are_the_first_of_the_order():
    """Which n cells are latents is random: those that come first in the order of decoding."""
    blocks, order = masked_batch(1000)
    latent = (blocks > 0) & (blocks < blocks.amax(dim=1, keepdim=True))
    assert torch.equal(blocks[latent], order[latent])
    assert latent.float().mean(dim=0).std() < 0.05
