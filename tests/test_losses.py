"""The masking process and the losses, against enumeration.

    A answer positions   m hidden cells   W window
"""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import diffusion
import mtp
import train
from conftest import ToyTask, TrueConditionals, random_model

TASK = ToyTask()


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masks_are_uniform_and_stratified():
    """m is uniform on 1..A with no empty draw, every m appears equally often in a batch, every cell is hidden equally often."""
    turn = diffusion.draw_turns(4000, 4, gen(), "cpu")
    m = (turn > 0).sum(dim=1)
    assert torch.equal(m.bincount(), torch.tensor([0, 1000, 1000, 1000, 1000]))  # exact: 4000 strata
    hidden = (turn > 0).float().mean(dim=0)  # expectation (A + 1) / 2A = 0.625; 5 sigma = 0.038
    assert (hidden - 0.625).abs().max() < 0.04
    assert all(sorted(t[t > 0].tolist()) == list(range(1, int(k) + 1)) for t, k in zip(turn[:50], m))


def test_cut_hides_the_last_cells():
    turn = diffusion.draw_turns(400, 6, gen(), "cpu", left_to_right=True)
    for t in turn.tolist():
        assert all(b == a + 1 for a, b in zip(t, t[1:])) and t[-1] >= 1


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm"])
def test_bound_equals_enumeration(objective):
    """The Monte Carlo loss is the exact bound: all 15 masks of 4 cells (and all orders for scdm), weighted by hand.

    20,000 draws; the tolerance is 5 standard errors (false alarm 6e-7, and the seed is fixed).
    """
    model = random_model(TASK)
    x = torch.tensor([[TASK.BOS, 0, 1, 1, 0]])
    exact = 0.0
    with torch.no_grad():
        for order in itertools.permutations(range(4)):
            for m in range(1, 5):
                turn = torch.empty(1, 4, dtype=torch.long)
                turn[0, list(order)] = torch.arange(4) - (4 - m) + 1
                noisy = x.clone()
                noisy[:, 1:][turn > 0] = TASK.MASK
                rank = F.pad(diffusion.ranks(objective, turn), (1, 0))
                logp = model(noisy, torch.arange(5), rank)[:, 1:].log_softmax(dim=2).gather(2, x[:, 1:, None])[0, :, 0]
                exact += -logp[turn[0] > 0].mean().item() / (4 * math.factorial(4))
        values = torch.stack([diffusion.loss(model, x.expand(100, 5), TASK, objective, gen(s)) for s in range(200)])
    assert abs(values.mean() - exact) < 5 * values.std() / 200 ** 0.5


def test_bound_is_tight_for_the_true_conditionals():
    """A model that knows the distribution has bound = -log p(x) / A exactly, because every order factorises it."""
    support = torch.tensor(list(itertools.product(range(2), repeat=4)))
    weights = torch.rand(16, generator=gen(3)) + 0.05
    model = TrueConditionals(TASK, support, weights)
    for index in (0, 5, 14):
        x, total = support[index], 0.0
        for m in range(1, 5):
            for hidden in itertools.combinations(range(4), m):
                noisy = x.clone()
                noisy[list(hidden)] = TASK.MASK
                logp = model(noisy[None], torch.arange(1, 5)).log_softmax(dim=2)[0].gather(1, x[:, None])[:, 0]
                total += -logp[list(hidden)].mean() / (4 * math.comb(4, m))
        assert total.item() == pytest.approx(-(weights[index] / weights.sum()).log().item() / 4, rel=1e-5)


def test_prompt_is_never_masked_and_never_scored():
    """The loss does not look at the model's prompt logits, and the model always gets the whole prompt."""
    class Spy:
        def __call__(self, tokens, positions, rank=None, causal=False):
            assert (tokens[:, 0] == TASK.BOS).all()
            logits = torch.zeros(*tokens.shape, TASK.K)
            logits[:, 0] = math.nan
            return logits
    x = torch.tensor([[TASK.BOS, 0, 1, 1, 0]] * 8)
    for objective in ("mdm", "sidm", "scdm"):
        assert diffusion.loss(Spy(), x, TASK, objective, gen()).item() == pytest.approx(math.log(2))
    for window in ("1", "2", "all", "random"):
        assert mtp.mtp_loss(Spy(), x, TASK, window, gen()).item() == pytest.approx(math.log(2))


def test_mtp_window_1_is_cross_entropy_at_the_cut():
    """W = 1 has no latents: the loss is the next token's alone, from the prompt and the known cells alone."""
    model, x = random_model(TASK), torch.randint(2, (64, 5), generator=gen(1))
    x[:, 0] = TASK.BOS
    turn = diffusion.draw_turns(64, 4, gen(7), "cpu", left_to_right=True)
    expected = []
    for row, t in zip(x, turn):
        cut = 1 + int((t <= 0).sum())  # position of the first unknown cell
        tokens = torch.cat([row[:cut], torch.tensor([TASK.MASK])])
        logits = model(tokens[None], torch.arange(cut + 1))[0, -1]
        expected.append(F.cross_entropy(logits, row[cut]))
    torch.testing.assert_close(mtp.mtp_loss(model, x, TASK, "1", gen(7)), torch.stack(expected).mean())


@pytest.mark.parametrize("window", ["2", "3", "all", "9"])
def test_mtp_window_is_what_decoding_sees(window):
    """The training forward with +inf beyond the window equals the trimmed forward of decode(), cell by cell."""
    W, model, x = min(4, int(window) if window != "all" else 4), random_model(TASK), torch.randint(2, (32, 5), generator=gen(1))
    x[:, 0] = TASK.BOS
    turn = diffusion.draw_turns(32, 4, gen(7), "cpu", left_to_right=True)
    expected = []
    for row, t in zip(x, turn):
        cut = 1 + int((t <= 0).sum())
        end = min(cut + W, 5)
        tokens = torch.cat([row[:cut], torch.full((end - cut,), TASK.MASK)])
        expected.append(F.cross_entropy(model(tokens[None], torch.arange(end))[0, cut:], row[cut:end]))
    torch.testing.assert_close(mtp.mtp_loss(model, x, TASK, window, gen(7)), torch.stack(expected).mean())


def test_random_window_covers_all_windows():
    drawn = torch.stack([mtp.draw_window("random", 5, g, "cpu") for g in [gen()] for _ in range(400)])
    assert set(drawn.tolist()) == {1, 2, 3, 4, 5}
    assert mtp.draw_window("all", 5, gen(), "cpu") == 5 and mtp.draw_window("9", 5, gen(), "cpu") == 5


def test_ar_loss_is_next_token_on_the_answer():
    model, x = random_model(TASK), torch.randint(2, (16, 5), generator=gen(1))
    expected = torch.stack([F.cross_entropy(model(x[:, :i], torch.arange(i), torch.arange(1, i + 1))[:, -1], x[:, i]) for i in range(1, 5)])
    torch.testing.assert_close(mtp.ar_loss(model, x, TASK), expected.mean())


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm", "ar", "mtp"])
def test_every_parameter_learns(objective):
    """One backward pass gives every weight matrix a gradient (an unused parameter is a wiring mistake)."""
    import train
    model, x = random_model(TASK), torch.randint(2, (16, 5), generator=gen(1))
    train.training_loss(model, x, TASK, train.Config(objective=objective), gen()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("objective, window", [("mdm", ""), ("sidm", ""), ("scdm", ""), ("ar", ""), ("mtp", "2"), ("mtp", "random")])
def test_shards_add_up(objective, window):
    """The mean of the losses of two shards is the loss of the batch: masks and windows do not depend on who computes what."""
    model = random_model(TASK)
    tokens = torch.cat([torch.full((6, 1), TASK.BOS), torch.randint(2, (6, 4), generator=gen(1))], dim=1)
    config = SimpleNamespace(objective=objective, window=window)
    with torch.no_grad():
        whole, *halves = (train.training_loss(model, tokens, TASK, config, gen(2), shard) for shard in (slice(None), slice(0, None, 2), slice(1, None, 2)))
    assert abs(sum(halves) / 2 - whole) < 1e-6 and abs(halves[0] - halves[1]) > 1e-3
