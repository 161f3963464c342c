"""The samplers: an oracle model must be solved with, exact distributions, costs equal their formulas.

    P prompt   A answer cells   c candidates   n latents   k tokens per step   W window
"""
import math

import pytest
import torch

from conftest import Oracle, TrueConditionals, random_model, task_config
from data import BadInput, make_task
from sample import ALL, Dials, decode, decode_ar, draw, evaluate, make_dials, wilson

FAMILY = ("mdm", "sidm", "scdm", "mtp")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def dials_for(objective):
    """Every order, window of candidates, latent count and tokens per step that the objective takes."""
    if objective == "mtp":
        return [Dials("left_to_right", k, W - k, k, 0.0) for W, k in ((1, 1), (3, 1), (3, 2), (ALL, 1), (ALL, 5))]
    latents = {"mdm": (ALL,), "sidm": (0,), "scdm": (0, 1, 5, ALL)}[objective]
    return [Dials(order, k if order in ("random", "left_to_right") else max(k, c), n, k, 0.0)
            for order in ("random", "confidence", "margin", "entropy", "left_to_right") for c in (1, 4, ALL) for n in latents for k in (1, 3)]


@pytest.fixture(scope="module")
def puzzle_task(data_dir):
    return make_task(task_config("sudoku", board_size=9, data_dir=data_dir))


@pytest.mark.parametrize("objective", FAMILY)
def test_oracle_solves_with_every_sampler(objective, puzzle_task):
    """A model that knows the solutions solves 9x9 puzzles at every dial; the prompt never changes; costs equal the formula."""
    prompts, answers = puzzle_task.test_set(2)
    P, A = 81, 81
    for dials in dials_for(objective):
        history = []
        tokens, stats = decode(Oracle(puzzle_task, answers), puzzle_task, objective, prompts, dials, gen(), history)
        assert torch.equal(tokens[:, P:], answers) and puzzle_task.check(prompts, tokens[:, P:]).all(), dials
        assert all(torch.equal(h[:, :P], prompts) for h in history)
        k, c, n = dials.tokens_per_step, dials.candidates, dials.latents
        steps = range(0, A, k)
        candidates = [min(max(c, k), A - i) for i in steps]
        formula = sum(P + i + ci + max(0, min(n, A - i - ci)) for i, ci in zip(steps, candidates))
        assert stats == {"nfe": math.ceil(A / k), "tokens": formula}
        # one step commits k cells and never touches a committed one
        assert [int((h[0, P:] != puzzle_task.MASK).sum()) for h in history] == [min(A, i + k) for i in steps]


def test_costs_of_the_readme():
    """The numbers that the README quotes for the dial: 3,402 against 6,642 tokens, and 9,882 against 13,122."""
    class Task:
        P, A, S, K, MASK = 1, 81, 82, 9, 10
    blind = lambda tokens, positions, rank=None: torch.zeros(*tokens.shape, 9)
    def cost(P, n):
        Task.P, Task.S = P, P + 81
        return decode(blind, Task, "scdm", torch.zeros(1, P, dtype=torch.long), Dials("random", 1, n, 1, 0.0), gen())[1]["tokens"]
    assert [cost(1, 0), cost(1, ALL), cost(81, 0), cost(81, ALL)] == [3402, 6642, 9882, 13122]


def test_oracle_solves_autoregressively(puzzle_task):
    prompts, answers = puzzle_task.test_set(2)
    for use_cache in (False, True):
        tokens, stats = decode_ar(Oracle(puzzle_task, answers), puzzle_task, prompts, 0.0, gen(), use_cache)
        assert torch.equal(tokens, torch.cat([prompts, answers], dim=1))
        assert stats == {"nfe": 81, "tokens": 81 + 81 - 1 if use_cache else sum(81 + i for i in range(81))}


def test_ar_cache_changes_cost_and_nothing_else(boards4):
    task = make_task(task_config())
    model, prompt = random_model(task), torch.full((8, 1), task.BOS)
    cached, cost = decode_ar(model, task, prompt, 1.0, gen(1))
    plain, plain_cost = decode_ar(model, task, prompt, 1.0, gen(1), use_cache=False)
    assert torch.equal(cached, plain)
    assert cost == {"nfe": 16, "tokens": 16} and plain_cost["tokens"] == sum(range(1, 17))  # P + A - 1: the last token is never fed


def test_true_conditionals_sample_uniformly(boards4):
    """One cell per step at T = 1 in random order from the true conditionals is an exact sample: 288 boards, uniformly.

    Total variation of 2,880 samples against its null distribution (2,000 multinomial draws): above the largest of
    them in 1 of 2,000 correct runs (the seed is fixed, so a pass stays a pass). A wrong order or a wrong draw moves it far out.
    """
    task, N = make_task(task_config()), 2880
    tokens, _ = decode(TrueConditionals(task, boards4), task, "mdm", torch.full((N, 1), task.BOS), Dials("random", 1, ALL, 1, 1.0), gen())
    code = (boards4 * 4 ** torch.arange(16)).sum(dim=1)
    drawn = (tokens[:, 1:] * 4 ** torch.arange(16)).sum(dim=1)
    counts = (drawn[:, None] == code[None]).sum(dim=0)
    assert counts.sum() == N, "every sample is a valid board"
    tv = lambda counts: (counts / N - 1 / 288).abs().sum(dim=-1) / 2
    null_draws = torch.randint(288, (2000, N), generator=gen(2))
    null = tv(torch.zeros(2000, 288).scatter_add_(1, null_draws, torch.ones(2000, N)))
    assert tv(counts) <= null.max(), (tv(counts), null.min(), null.max())


@pytest.mark.parametrize("objective", FAMILY)
def test_true_conditionals_are_always_valid(objective, boards4):
    """One cell per step: whatever the order and the latents, the truth never makes an invalid board."""
    task = make_task(task_config())
    for dials in dials_for(objective):
        if dials.tokens_per_step == 1:
            dials.temperature = 1.0
            tokens, _ = decode(TrueConditionals(task, boards4), task, objective, torch.full((3, 1), task.BOS), dials, gen())
            assert task.check(tokens[:, :1], tokens[:, 1:]).all(), dials


@pytest.mark.parametrize("order, expected", [("confidence", 1), ("margin", 0), ("entropy", 2)])
def test_orders_pick_the_cell_they_name(order, expected):
    """Three cells whose best probability, margin and entropy disagree; each order commits its own favourite first."""
    probs = torch.tensor([[.50, .17, .17, .16], [.52, .44, .02, .02], [.499, .499, .001, .001]])
    probs = torch.cat([probs, torch.full((1, 4), 0.25)])

    class Task:
        P, A, S, K, MASK = 1, 4, 5, 4, 5
    model = lambda tokens, positions, rank=None: probs.log()[(positions - 1).clamp(min=0)].expand(*tokens.shape, 4)
    history = []
    decode(model, Task, "mdm", torch.zeros(1, 1, dtype=torch.long), Dials(order, ALL, ALL, 1, 0.0), gen(), history)
    assert (history[0][0, 1:] != Task.MASK).nonzero().item() == expected


def test_sidm_is_scdm_at_zero_latents():
    task = make_task(task_config())
    model, prompt = random_model(task), torch.full((4, 1), task.BOS)
    for dials in dials_for("sidm"):
        a, b = (decode(model, task, o, prompt, dials, gen(5)) for o in ("sidm", "scdm"))
        assert torch.equal(a[0], b[0]) and a[1] == b[1]


def test_seeds_and_temperature():
    """Same seed, same output; at temperature 0 and a fixed order the seed does not matter; T = 1 follows the softmax."""
    task = make_task(task_config())
    model, prompt = random_model(task), torch.full((4, 1), task.BOS)
    sampled = lambda seed, t, order="random": decode(model, task, "scdm", prompt, Dials(order, 1, 3, 1, t), gen(seed))[0]
    assert torch.equal(sampled(1, 1.0), sampled(1, 1.0)) and not torch.equal(sampled(1, 1.0), sampled(2, 1.0))
    greedy = lambda seed: decode(model, task, "mdm", prompt, Dials("confidence", ALL, ALL, 1, 0.0), gen(seed))[0]
    assert torch.equal(greedy(1), greedy(2))
    logits = torch.tensor([2.0, 0.0, 1.0])
    share = draw(logits.expand(20000, 3), 0.5, gen()).bincount(minlength=3) / 20000
    assert (share - (logits / 0.5).softmax(dim=0)).abs().max() < 0.018  # 5 standard errors


def test_latents_are_redrawn_each_step():
    """scdm with n = 2 on 16 cells: the latent cells differ from step to step and never are the decoded cell."""
    task, seen = make_task(task_config()), []

    def spy(tokens, positions, rank=None):
        seen.append(positions[0, rank.view(-1) > 0].tolist())  # latents, then the candidate
        return torch.zeros(*tokens.shape, 4)
    decode(spy, task, "scdm", torch.full((1, 1), task.BOS), Dials("left_to_right", 1, 2, 1, 0.0), gen())
    assert [s[-1] for s in seen] == list(range(1, 17))  # left to right
    assert all(len(set(s)) == min(3, 16 - i) and min(s) == i + 1 for i, s in enumerate(seen))
    assert len({tuple(s[:-1]) for s in seen[:8]}) == 8 and any(s[0] > s[1] for s in seen[:14])


def test_evaluation_never_sees_an_answer():
    """decode() gets prompts alone: the references only meet the finished answers."""
    task = make_task(task_config("star"))
    prompts, answers = task.test_set(20)
    model = random_model(task)
    dials = make_dials("mtp", task)
    from contextlib import nullcontext
    a, b = (evaluate(model, task, "mtp", dials, prompts, r, 0, torch.device("cpu"), nullcontext()) for r in (answers, (answers + 1) % task.K))
    assert torch.equal(a[1], b[1]) and a[0]["solved"] == b[0]["solved"]


def test_wilson():
    """Against values worked out with the closed form by hand for 8 of 10, 0 of 10 and 10 of 10."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=2e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=2e-4)


@pytest.mark.parametrize("objective, asked, word", [
    ("mdm", {"latents": 0}, "latents"), ("sidm", {"latents": ALL}, "latents"), ("ar", {"latents": 1}, "latents"),
    ("mtp", {"latents": 1}, "window"), ("ar", {"order": "confidence"}, "temperature"), ("mtp", {"order": "confidence"}, "window"),
    ("ar", {"tokens_per_step": 4}, "temperature"), ("ar", {"window": 2}, "temperature"), ("scdm", {"window": 2}, "latents"),
    ("scdm", {"order": "random", "candidates": 4}, "confidence"), ("mtp", {"window": 2, "tokens_per_step": 3}, "--window 3"),
    ("mdm", {"window": 1}, "order"), ("sidm", {"order": "left_to_right", "candidates": 2}, "margin")])
def test_flags_without_meaning_are_refused(objective, asked, word):
    with pytest.raises(BadInput, match=word):
        make_dials(objective, make_task(task_config()), "all", **asked)


def test_default_dials():
    gen_task, star = make_task(task_config()), make_task(task_config("star"))
    assert make_dials("scdm", gen_task) == Dials("random", 1, ALL, 1, 1.0)
    assert make_dials("mdm", star) == Dials("confidence", ALL, ALL, 1, 0.0)
    assert make_dials("sidm", star) == Dials("confidence", 8, 0, 1, 0.0)
    assert make_dials("mtp", star, "4").latents == 3 and make_dials("mtp", star, "random").latents == ALL - 1
    assert make_dials("mdm", star, latents=10000).latents == ALL  # all is what mdm does anyway
