"""What is masked in training, and the losses, against enumeration.

    A answer positions   m masked cells   W window
"""
import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import diffusion
import mtp
import train
from config import Config
from conftest import ToyTask, TrueConditionals, random_model
from model import CAUSAL
from objectives import OBJECTIVES

TASK = ToyTask()


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_batch(count, seed=1):
    x = torch.randint(2, (count, 5), generator=gen(seed))
    x[:, 0] = TASK.BOS
    return x


def draw_levels(B, A, generator, given=None, **how):
    given = torch.zeros(B, A, dtype=torch.bool) if given is None else given
    return diffusion.draw_levels(given, generator, **how)


def loss_of(objective, model, x, generator, window="all", given=None, shard=slice(None), **how):
    """One sample of an objective's loss, as in a training step."""
    config = Config(objective=objective, window=window, **how)
    given = torch.zeros(len(x), TASK.A, dtype=torch.bool) if given is None else given
    level, W = OBJECTIVES[objective].mask(given, generator, config)
    return train.training_loss(model, x[shard], level[shard], W, TASK, config)


# -- the forward process --


def test_masks_are_uniform_and_stratified():
    """m is exactly uniform on 1..A, thanks to strata; every cell is masked equally often."""
    level = draw_levels(4000, 4, gen())
    m = (level > 0).sum(dim=1)
    assert torch.equal(m.bincount(), torch.tensor([0, 1000, 1000, 1000, 1000]))  # 4000 strata
    masked = (level > 0).float().mean(dim=0)  # expectation (A + 1) / 2A = 0.625; 5 sigma = 0.038
    assert (masked - 0.625).abs().max() < 0.04
    for t, k in zip(level[:50], m):
        assert sorted(t[t > 0].tolist()) == list(range(1, int(k) + 1))


def test_rates_give_the_distribution_of_m():
    """P(m <= k) = 1 - (1 - (k / A)^a)^b, exactly, by strata; mask_random() uses them."""
    def counts(level):
        return (level > 0).sum(dim=1).bincount(minlength=5).tolist()

    given = torch.zeros(4000, 4, dtype=torch.bool)
    for a, b in ((4.0, 1.0), (3.0, 3.0), (0.5, 2.0)):
        F = [1 - (1 - (k / 4) ** a) ** b for k in range(5)]
        expected = [0] + [4000 * (F[k] - F[k - 1]) for k in range(1, 5)]
        config = Config(mask_rate_a=a, mask_rate_b=b)
        level, _ = diffusion.mask_random(given, gen(), config)
        assert max(abs(c - e) for c, e in zip(counts(level), expected)) <= 1.5
        level, _ = mtp.mask_suffix(given, gen(), config)
        assert counts(level) == [0] + [1000] * 4  # the cut of mtp is uniform, whatever the rates
    assert counts(diffusion.mask_random(given, gen(), Config())[0]) == [0] + [1000] * 4
    # an eighth of the batch is uniform, the rest is not
    m = (draw_levels(4000, 4, gen(), rates=(4.0, 1.0, 1 / 8)) > 0).sum(dim=1)
    assert m[:500].bincount(minlength=5).tolist() == [0] + [125] * 4
    rest = m[500:].bincount(minlength=5).tolist()
    assert all(abs(c - 3500 * (k**4 - (k - 1)**4) / 256) <= 1.5 for k, c in enumerate(rest) if k)


def test_few_uniform_samples_reach_every_m():
    """32 of 512, fewer than cells: over many batches each m of 1..57 is equally frequent."""
    g = gen()
    levels = [draw_levels(512, 57, g, rates=(4.0, 1.0, 1 / 16)) for _ in range(300)]
    m = torch.cat([(level[:32] > 0).sum(dim=1) for level in levels])
    expected = 300 * 32 / 57  # of each m; 5 standard deviations without strata
    assert (m.bincount(minlength=58)[1:] - expected).abs().max() < 5 * expected ** 0.5
    # rounded up: one in a batch of four
    levels = [draw_levels(4, 57, g, rates=(100.0, 1.0, 1 / 16)) for _ in range(50)]
    m = torch.stack([(level > 0).sum(dim=1) for level in levels]).float()
    assert m[:, 0].mean() < 40 and m[:, 1:].mean() > 56


def test_rates_are_for_training_alone(monkeypatch):
    """A training step uses the config's rates; the held-out loss always uses uniform ones."""
    drawn = []
    config = Config(task="sudoku-gen", board_size=4, train_size=4, mask_rate_a=4.0, mask_rate_b=2.0,
                    uniform_fraction=0.5, width=8, depth=1, heads=1, batch_size=4, eval_samples=4)
    task = train.make_task(config)
    state = train.make_state(config, task, torch.device("cpu"), contextlib.nullcontext())
    real = diffusion.draw_levels
    monkeypatch.setattr(diffusion, "draw_levels",
                        lambda *args, rates: drawn.append(rates) or real(*args, rates=rates))
    train.make_step(state)(1.0)
    train.held_out_loss(state)
    assert drawn == [(4.0, 2.0, 0.5), diffusion.UNIFORM]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("loops", (1, 2))
def test_deep_supervision_is_the_losses_of_shorter_models(objective, loops):
    """Four blocks, or two blocks twice. The gradient is the whole model's and 0.3 times those of
    the models that end at the readings; the value is the whole model's. Shards add up."""
    model, x = random_model(TASK, depth=4), toy_batch(12)
    if loops == 2:
        model.blocks = torch.nn.ModuleList([*model.blocks[:2]] * 2)

    def gradients(loss):
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    def at_depth(depth, shard=slice(None), loops=1, **how):
        blocks = model.blocks
        model.blocks, model.loops = blocks[:depth], loops
        loss = loss_of(objective, model, x, gen(), shard=shard, **how)
        model.blocks, model.loops = blocks, 1
        return loss

    for every, readings in ((1, (1, 2, 3)), (2, (2,)), (3, (3,)), (4, ())):
        parts = [at_depth(4 // loops, shard, loops, deep_supervision=every)
                 for shard in (slice(0, None, 2), slice(1, None, 2))]
        loss = sum(parts) / 2
        torch.testing.assert_close(loss, at_depth(4))
        expected = [torch.zeros_like(p) for p in model.parameters()]
        for depth, weight in ((4, 1.0), *((depth, 0.3) for depth in readings)):
            for total, g in zip(expected, gradients(at_depth(depth))):
                total += 0.0 if g is None else weight * g
        for g, e in zip(gradients(loss), expected):
            torch.testing.assert_close(torch.zeros_like(e) if g is None else g, e,
                                       rtol=1e-4, atol=1e-5)


def test_m_never_exceeds_what_there_is(monkeypatch):
    """The largest value of torch.rand rounds the last stratum up to B: m would be A + 1."""
    largest = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda *shape, **kw: torch.full(shape, largest))
    assert (torch.arange(3) + torch.rand(3))[2] == 3  # this rounding
    level = draw_levels(3, 4, None, left_to_right=True)
    assert level[2].tolist() == [1, 2, 3, 4]
    given = torch.tensor([[True, False, False, False]] * 3)
    level = draw_levels(3, 4, None, left_to_right=True, given=given)
    assert level[2].tolist() == [0, 1, 2, 3]


def test_cut_masks_the_last_cells():
    """m is uniform; with givens the other cells are cut from left to right."""
    level = draw_levels(400, 6, gen(), left_to_right=True)
    for t in level.tolist():
        assert all(b == a + 1 for a, b in zip(t, t[1:])) and t[-1] >= 1
    assert torch.equal((level > 0).sum(dim=1).bincount()[1:] // 10 * 10, torch.full((6,), 60))
    given = torch.tensor([[False, True, False, True, False]] * 300)
    level = draw_levels(300, 5, gen(), left_to_right=True, given=given)
    seen = {tuple(t) for t in level.clamp(min=0)[:, [0, 2, 4]].tolist()}
    assert seen == {(0, 0, 1), (0, 1, 2), (1, 2, 3)} and not (level[:, [1, 3]] > 0).any()


def test_given_cells_are_never_masked():
    """m is uniform on 1..(cells not given); which of them are masked is uniform too."""
    given = torch.tensor([[True, False, False, True, False]])
    level = draw_levels(3000, 5, gen(), given=given.expand(3000, 5))
    assert not (level[:, given[0]] > 0).any()
    m = (level > 0).sum(dim=1)
    assert torch.equal(m.bincount(), torch.tensor([0, 1000, 1000, 1000]))
    masked = (level > 0).float().mean(dim=0)[~given[0]]  # (1/3)(1/3 + 2/3 + 1) = 2/3; 5 sigma
    assert (masked - 2 / 3).abs().max() < 0.043
    ragged = torch.tensor([[True, True, True, True, False], [False] * 5])
    level = draw_levels(2, 5, gen(), given=ragged)
    assert level[0].tolist()[4] == 1 and (level[0] > 0).sum() == 1


# -- the bound --


@pytest.mark.parametrize("objective, free", [
    ("mdm", (0, 1, 2, 3)), ("sidm", (0, 1, 2, 3)), ("scdm", (0, 1, 2, 3)), ("mdm", (0, 2, 3))])
def test_bound_equals_enumeration(objective, free):
    """The Monte Carlo loss is the exact bound: all orders and all m, weighted by hand.

    The ranks are written out here; cells that are not free are given. 20,000 samples; the tolerance
    is 5 standard errors (false alarm 6e-7, and the seed is fixed).
    """
    model, x, exact = random_model(TASK), torch.tensor([[TASK.BOS, 0, 1, 1, 0]]), 0.0
    given = torch.tensor([[cell not in free for cell in range(4)]])
    with torch.no_grad():
        for order in itertools.permutations(free):
            for m in range(1, len(free) + 1):
                masked = order[len(free) - m:]  # in their order
                noisy, rank = x.clone(), torch.zeros(1, 5)
                for level, cell in enumerate(masked, 1):
                    noisy[0, 1 + cell] = TASK.MASK
                    rank[0, 1 + cell] = {"mdm": 0, "sidm": 1, "scdm": level}[objective]
                logp = model(noisy, torch.arange(5), rank).log_softmax(dim=2)
                logp = logp.gather(2, x[:, :, None].clamp(max=1))[0, 1:, 0]
                exact -= logp[list(masked)].mean().item()
        exact /= len(free) * math.factorial(len(free))
        values = torch.stack([loss_of(objective, model, x.expand(100, 5), gen(s),
                                      given=given.expand(100, 4)) for s in range(200)])
    assert abs(values.mean() - exact) < 5 * values.std() / 200 ** 0.5


def test_bound_is_tight_for_the_true_conditionals():
    """A model that knows the distribution has bound = -log p(x) / A, by the chain rule."""
    support = torch.tensor(list(itertools.product(range(2), repeat=4)))
    weights = torch.rand(16, generator=gen(3)) + 0.05
    model = TrueConditionals(TASK, support, weights)
    for index in (0, 5, 14):
        x, total = support[index], 0.0
        for m in range(1, 5):
            for masked in itertools.combinations(range(4), m):
                noisy = x.clone()
                noisy[list(masked)] = TASK.MASK
                logp = model(noisy[None], torch.arange(1, 5)).log_softmax(dim=2)[0]
                logp = logp.gather(1, x[:, None])[:, 0]
                total += -logp[list(masked)].mean() / (4 * math.comb(4, m))
        true = -(weights[index] / weights.sum()).log().item() / 4
        assert total.item() == pytest.approx(true, rel=1e-5)


def test_prompt_is_never_masked_and_never_scored():
    """The loss ignores the prompt's logits, and the model always reads the whole prompt."""
    class Spy:
        def __call__(self, tokens, positions, rank=None, read_every=0):
            assert (tokens[:, 0] == TASK.BOS).all()
            logits = torch.zeros(*tokens.shape, TASK.K)
            logits[:, 0] = math.nan
            return logits

    x = torch.tensor([[TASK.BOS, 0, 1, 1, 0]] * 8)
    for objective in ("mdm", "sidm", "scdm"):
        assert loss_of(objective, Spy(), x, gen()).item() == pytest.approx(math.log(2))
    for window in ("1", "2", "all", "random"):
        loss = loss_of("mtp", Spy(), x, gen(), window)
        assert loss.item() == pytest.approx(math.log(2))


# -- windows --


@pytest.mark.parametrize("window", ["1", "2", "3", "all", "9"])
def test_mtp_window_is_what_decoding_sees(window):
    """Ranks +inf beyond the window equal absent cells, as in decode(), cell by cell.

    W = 1 has no latents: it predicts the next cell from the prompt and the known cells.
    """
    W = min(4, int(window)) if window != "all" else 4
    model, x = random_model(TASK), toy_batch(32)
    level = draw_levels(32, 4, gen(7), left_to_right=True)
    expected = []
    for row, t in zip(x, level):
        cut = 1 + int((t <= 0).sum())  # position of the first unknown cell
        end = min(cut + W, 5)
        tokens = torch.cat([row[:cut], torch.full((end - cut,), TASK.MASK)])
        logits = model(tokens[None], torch.arange(end))[0, cut:]
        expected.append(F.cross_entropy(logits, row[cut:end]))
    loss = loss_of("mtp", model, x, gen(7), window)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_random_window_is_uniform_in_log_W():
    """P(W = w) = log((w + 1) / w) / log(A + 1), within 5 standard errors of 20,000 draws."""
    g, A = gen(), 5
    drawn = torch.stack([mtp.draw_window("random", A, g, "cpu") for _ in range(20000)])
    rate = drawn.bincount(minlength=A + 1)[1:] / len(drawn)
    p = torch.tensor([math.log((w + 1) / w) / math.log(A + 1) for w in range(1, A + 1)])
    assert ((rate - p).abs() < 5 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_ar_loss_is_next_token_on_the_answer():
    model, x = random_model(TASK), toy_batch(16)
    expected = []
    for i in range(1, 5):
        logits = model(x[:, :i], torch.arange(i), torch.arange(1, i + 1))[:, -1]
        expected.append(F.cross_entropy(logits, x[:, i]))
    torch.testing.assert_close(loss_of("ar", model, x, gen()), torch.stack(expected).mean())
    assert mtp.next_token_ranks(mtp.causal, TASK, "cpu") is CAUSAL


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_parameter_learns(objective):
    """One backward pass gives every weight matrix a gradient."""
    model = random_model(TASK)
    loss_of(objective, model, toy_batch(16), gen()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
