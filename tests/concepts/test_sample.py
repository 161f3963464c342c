"""The samplers: oracles, exact distributions, costs, samples that start anywhere.

    P prompt   A answer cells   c candidates   n latents   k tokens per step   W window
"""
import math
from contextlib import nullcontext

import pytest
import torch

from conftest import (LINE, Oracle, TrueConditionals, empty, keys_for, random_model, task_config)
from data import make_task
from metrics import wilson
from model import CAUSAL
from noise import sample_keys, sample_symbols, uniform
from objectives import ALL, SamplingParams, make_sampling_params
from sample import decode, decode_next_token, evaluate

FAMILY = ("mdm", "sidm", "scdm", "mtp")
CPU = torch.device("cpu")


def settings_for(objective):
    """Every order, number of candidates, latents and tokens per step that the objective takes."""
    if objective == "mtp":
        windows = ((1, 1), (3, 1), (3, 2), (ALL, 1), (ALL, 5))
        return [SamplingParams("left_to_right", k, W - k, k, 0.0) for W, k in windows]
    settings = []
    for n in {"mdm": (ALL,), "sidm": (0,), "scdm": (0, 1, 5, ALL)}[objective]:
        for k in (1, 3):
            settings += [SamplingParams("confidence", max(k, c), n, k, 0.0) for c in (1, 4, ALL)]
            settings += [SamplingParams(order, 4, n, k, 0.0) for order in ("margin", "entropy")]
            settings += [SamplingParams(order, k, n, k, 0.0)
                         for order in ("random", "left_to_right")]
    return settings


@pytest.fixture(scope="module")
def puzzle_task(data_dir):
    return make_task(task_config("sudoku", board_size=9, data_dir=data_dir))


@pytest.fixture(scope="module")
def small_task(data_dir):
    return make_task(task_config("sudoku", board_size=4, data_dir=data_dir))


def cost(u, P, A, sampling):
    """The formula of the README: passes, and pairs summed over passes, to find u cells of A."""
    k, pairs, passes = sampling.tokens_per_step, 0, 0
    while u > 0:
        c = min(max(k, sampling.candidates), u)
        pairs += P + (A - u) + c + max(0, min(sampling.latents, u - c))
        passes, u = passes + 1, u - k
    return passes, pairs


# -- oracles, costs --


@pytest.mark.parametrize("layout", ["inplace", "prompt"])
@pytest.mark.parametrize("objective", FAMILY)
def test_oracle_solves_with_every_sampler(objective, layout, data_dir):
    """A model that knows the solutions solves 9x9 puzzles at all settings, with unequal givens.

    What is given never changes, a pass commits k cells of the samples that take part, committed
    cells stay, costs are the formula.
    """
    task = make_task(task_config("sudoku", board_size=9, data_dir=data_dir, layout=layout))
    start, answers = task.test_set(3)
    unknown = (start[:, task.P:] == task.MASK).sum(dim=1).tolist()
    assert layout == "prompt" or len(set(unknown)) > 1
    oracle = Oracle(task, start, answers)
    for sampling in settings_for(objective):
        history = []
        tokens, stats = decode(oracle, task, objective, start, sampling, keys_for(start), history)
        assert torch.equal(tokens[:, task.P:], answers), sampling
        assert task.check(start, tokens[:, task.P:]).all()
        expected = [cost(u, task.P, 81, sampling) for u in unknown]
        assert list(zip(stats["nfe"].tolist(), stats["tokens"].tolist())) == expected
        before, left = start, list(unknown)
        for record in history:
            now, was_known = record["tokens"], before != task.MASK
            assert torch.equal(now[was_known], before[was_known])
            for row in record["rows"].tolist():
                left[row] -= min(sampling.tokens_per_step, left[row])
            assert (now == task.MASK).sum(dim=1).tolist() == left
            before = now


def test_costs_of_the_readme():
    """Its numbers for the dial: 3,402 against 6,642 tokens, and 9,882 against 13,122."""
    class Task:
        P, A, S, K, MASK = 1, 81, 82, 9, 10

    def blind(tokens, positions, rank=None):
        return torch.zeros(*tokens.shape, 9)

    def tokens_of(P, n):
        Task.P, Task.S = P, P + 81
        start = torch.full((1, P + 81), Task.MASK)
        return decode(blind, Task, "scdm", start, SamplingParams("random", 1, n, 1, 0.0),
                      keys_for(start))[1]["tokens"].item()
    costs = [tokens_of(1, 0), tokens_of(1, ALL), tokens_of(81, 0), tokens_of(81, ALL)]
    assert costs == [3402, 6642, 9882, 13122]


def test_oracle_solves_autoregressively(data_dir):
    task = make_task(task_config("sudoku", board_size=9, data_dir=data_dir, layout="prompt"))
    start, answers = task.test_set(2)
    for use_cache in (False, True):
        tokens, stats = decode_next_token(Oracle(task, start, answers), task, "ar", start, 0.0,
                                          keys_for(start), use_cache)
        assert torch.equal(tokens[:, 81:], answers)
        assert stats["nfe"].tolist() == [81, 81]
        pairs = 81 + 81 - 1 if use_cache else sum(81 + i for i in range(81))
        assert stats["tokens"].tolist() == [pairs, pairs]


def test_ar_cache_changes_cost_and_nothing_else():
    task = make_task(task_config())
    model, start = random_model(task), empty(task, 8)
    cached, cost_with = decode_next_token(model, task, "ar", start, 1.0, keys_for(start))
    plain, cost_without = decode_next_token(model, task, "ar", start, 1.0, keys_for(start), False)
    assert torch.equal(cached, plain)
    assert cost_with["tokens"][0] == 16  # P + A - 1: the last token is never fed
    assert cost_without["tokens"][0] == sum(range(1, 17))


# -- exact distributions --


def test_true_conditionals_sample_uniformly(boards4):
    """One cell per step at T = 1 in random order from the true conditionals: 288 boards, uniformly.

    Total variation of 2,880 samples against its null distribution (2,000 multinomial draws): above
    the largest of them in 1 of 2,000 correct runs (the seed is fixed). A wrong order or a wrong
    draw moves it far out.
    """
    task, N = make_task(task_config()), 2880
    start = empty(task, N)
    tokens, _ = decode(TrueConditionals(task, boards4), task, "mdm", start,
                       SamplingParams("random", 1, ALL, 1, 1.0), keys_for(start))
    powers = 4 ** torch.arange(16)
    code, drawn = (boards4 * powers).sum(dim=1), (tokens[:, 1:] * powers).sum(dim=1)
    counts = (drawn[:, None] == code[None]).sum(dim=0)
    assert counts.sum() == N, "every sample is a valid board"

    def tv(counts):
        return (counts / N - 1 / 288).abs().sum(dim=-1) / 2
    null_draws = torch.randint(288, (2000, N), generator=torch.Generator().manual_seed(2))
    null = tv(torch.zeros(2000, 288).scatter_add_(1, null_draws, torch.ones(2000, N)))
    assert tv(counts) <= null.max(), (tv(counts), null.min(), null.max())


@pytest.mark.parametrize("objective", FAMILY)
def test_true_conditionals_are_always_valid(objective, boards4):
    """One cell per step: whatever the order and the latents, the truth never makes a bad board.

    Also where cells are given: infilling.
    """
    task = make_task(task_config())
    start = empty(task, 4)
    start[1, 1:9] = boards4[7][:8]
    start[2, 16] = boards4[99][15]
    for sampling in settings_for(objective):
        if sampling.tokens_per_step == 1:
            sampling.temperature = 1.0
            tokens, _ = decode(TrueConditionals(task, boards4), task, objective, start, sampling,
                               keys_for(start))
            assert task.check(start, tokens[:, 1:]).all(), sampling


# -- who is decoded, who is present --


@pytest.mark.parametrize("order, expected", [("confidence", 1), ("margin", 0), ("entropy", 2)])
def test_orders_pick_the_cell_they_name(order, expected):
    """Cells whose best probability, margin and entropy disagree: each order has its favourite."""
    probs = torch.tensor([[.50, .17, .17, .16], [.52, .44, .02, .02], [.499, .499, .001, .001],
                          [.25, .25, .25, .25]])

    class Task:
        P, A, S, K, MASK = 1, 4, 5, 4, 5

    def model(tokens, positions, rank=None):
        return probs.log()[(positions - 1).clamp(min=0)].expand(*tokens.shape, 4)
    history, start = [], torch.tensor([[0, 5, 5, 5, 5]])
    sampling = SamplingParams(order, ALL, ALL, 1, 0.0)
    decode(model, Task, "mdm", start, sampling, keys_for(start), history)
    assert (history[0]["tokens"][0, 1:] != Task.MASK).nonzero().item() == expected


class Spy:
    """A model that remembers each call: positions and ranks."""

    def __init__(self, symbols):
        self.calls, self.symbols = [], symbols

    def __call__(self, tokens, positions, rank=None):
        self.calls.append((tokens, positions, rank))
        return torch.zeros(*tokens.shape, self.symbols)


def test_latents_are_redrawn_each_step():
    """scdm with n = 2 on 16 cells: latents differ from step to step, none is the decoded cell."""
    task, spy = make_task(task_config()), Spy(4)
    start = empty(task, 1)
    decode(spy, task, "scdm", start, SamplingParams("left_to_right", 1, 2, 1, 0.0), keys_for(start))
    # latents, then the candidate
    seen = [positions[0, rank.view(-1) > 0].tolist() for _, positions, rank in spy.calls]
    assert [s[-1] for s in seen] == list(range(1, 17))  # left to right
    for i, s in enumerate(seen):
        assert len(set(s)) == min(3, 16 - i) and min(s) == i + 1
    assert len({tuple(s[:-1]) for s in seen[:8]}) == 8 and any(s[0] > s[1] for s in seen[:14])


def test_ranks_of_a_step_by_hand():
    """scdm, n = 2, two candidates, one prompt token, one known cell: 0 0 | 1 2 | 3 3."""
    task, spy = make_task(task_config()), Spy(4)
    start = empty(task, 1)
    start[0, 5] = 2
    decode(spy, task, "scdm", start, SamplingParams("confidence", 2, 2, 1, 0.0), keys_for(start))
    tokens, positions, rank = spy.calls[0]
    assert rank.tolist() == [[0, 0, 1, 2, 3, 3]] and positions[0, :2].tolist() == [0, 5]
    assert tokens[0].tolist() == [task.BOS, 2] + [task.MASK] * 4


def test_mtp_window_stands_right_behind():
    """W = 3 with givens: the next three blanks are present, in order; nobody else is."""
    task, spy = make_task(task_config()), Spy(4)
    start = empty(task, 1)
    start[0, [2, 3]] = 1
    decode(spy, task, "mtp", start, SamplingParams("left_to_right", 1, 2, 1, 0.0), keys_for(start))
    first, second = (sorted(positions[0].tolist()) for _, positions, _ in spy.calls[:2])
    assert first == [0, 1, 2, 3, 4, 5] and second == [0, 1, 2, 3, 4, 5, 6]
    assert spy.calls[0][2] is None


def test_sidm_is_scdm_at_zero_latents():
    task = make_task(task_config())
    model, start = random_model(task), empty(task, 4)
    for sampling in settings_for("sidm"):
        a, b = (decode(model, task, objective, start, sampling, keys_for(start, 5))
                for objective in ("sidm", "scdm"))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1]["tokens"], b[1]["tokens"])


# -- samples that start anywhere --


def reference_decode(model, task, objective, start, sampling, keys):
    """The loop written for samples with equally many known cells, in other words."""
    B, P, A = len(start), task.P, task.A
    tokens, i = start.clone(), int((start[0, task.P:] != task.MASK).sum())
    while i < A:
        k = min(sampling.tokens_per_step, A - i)
        c = min(max(k, sampling.candidates), A - i)
        n = min(sampling.latents, A - i - c)
        known = tokens[:, P:] != task.MASK
        line = uniform(keys, 2 * (A - i), A)
        if objective == "mtp":
            line = torch.arange(A, dtype=torch.float).repeat(B, 1)
        if sampling.order == "left_to_right":
            for b in range(B):
                first = (~known[b]).nonzero().flatten()[:c]
                line[b, first] = torch.arange(c) - float(c)
        cells = P + line.masked_fill(known, torch.inf).argsort(dim=1, stable=True)
        prompt = torch.arange(P).expand(B, P)
        present = torch.cat([prompt, cells[:, A - i:], cells[:, c:c + n], cells[:, :c]], dim=1)
        rank = None
        if objective not in ("mdm", "mtp"):
            rank = torch.arange(1 - P - i, n + c + 1).clamp(0, n + 1)
        logits = model(tokens.gather(1, present), present, rank)[:, -c:]
        probs = logits.softmax(dim=-1)
        pick = torch.arange(k).expand(B, k)
        if c > k:
            top = probs.topk(2, dim=-1).values
            score = {"confidence": top[..., 0], "margin": top[..., 0] - top[..., 1],
                     "entropy": torch.special.xlogy(probs, probs).sum(dim=-1)}[sampling.order]
            pick = score.topk(k, dim=1).indices
        symbols = logits.argmax(dim=-1)
        if sampling.temperature:
            noise = uniform(keys, 2 * (A - i) + 1, c, task.K)
            probs = (logits / sampling.temperature).softmax(dim=-1)
            symbols = (probs / -noise.log()).argmax(dim=-1)
        tokens = tokens.scatter(1, cells[:, :c].gather(1, pick), symbols.gather(1, pick))
        i += k
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("objective", FAMILY)
def test_equal_counts_are_bit_equal_to_the_plain_loop(objective, temperature):
    """Generation, and puzzles with the same number of givens each."""
    task = make_task(task_config())
    model = random_model(task)
    same = empty(task, 5)
    for b in range(5):
        same[b, 1 + torch.randperm(16, generator=torch.Generator().manual_seed(b))[:6]] = b % 4
    for start in (empty(task, 5), same):
        for sampling in settings_for(objective):
            sampling.temperature = temperature
            tokens, _ = decode(model, task, objective, start, sampling, keys_for(start))
            expected = reference_decode(model, task, objective, start, sampling, keys_for(start))
            assert torch.equal(tokens, expected), sampling


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("objective", FAMILY)
def test_ragged_is_one_by_one(objective, temperature, small_task):
    """Samples with 16, 12, 9, 3, 1 and 0 cells to find: together as each alone, in any order."""
    task, model = small_task, random_model(small_task)
    _, answers = task.test_set(6)
    start, g = empty(task, 6), torch.Generator().manual_seed(1)
    for b, unknown in enumerate((3, 16, 0, 9, 1, 12)):
        given = torch.randperm(16, generator=g)[:16 - unknown]
        start[b, 1 + given] = answers[b, given]
    keys = keys_for(start)
    for sampling in settings_for(objective):
        sampling.temperature = temperature
        together, stats = decode(model, task, objective, start, sampling, keys)
        for b in range(6):
            alone, one = decode(model, task, objective, start[b:b + 1], sampling, keys[b:b + 1])
            assert torch.equal(together[b], alone[0]), (sampling, b)
            assert all(torch.allclose(stats[name][b], one[name][0]) for name in one), (sampling, b)


def test_a_full_puzzle_is_done(small_task):
    """Nothing to find: no pass, no change, confidence 1."""
    _, answers = small_task.test_set(2)
    start = torch.cat([torch.full((2, 1), small_task.BOS), answers], dim=1)
    history = []
    tokens, stats = decode(None, small_task, "mdm", start, settings_for("mdm")[0], keys_for(start),
                           history)
    assert torch.equal(tokens, start) and not history
    assert stats["nfe"].tolist() == stats["tokens"].tolist() == [0, 0]
    assert stats["confidence"].tolist() == [1, 1]


# -- randomness --


def test_seeds_and_temperature():
    """Same seed, same output; greedy in a fixed order ignores it; T = 1 follows the softmax."""
    task = make_task(task_config())
    model, start = random_model(task), empty(task, 4)

    def at(seed, t, order="random"):
        sampling = SamplingParams(order, 1, 3, 1, t)
        return decode(model, task, "scdm", start, sampling, keys_for(start, seed))[0]
    assert torch.equal(at(1, 1.0), at(1, 1.0))
    assert not torch.equal(at(1, 1.0), at(2, 1.0))

    def greedy(seed):
        sampling = SamplingParams("confidence", ALL, ALL, 1, 0.0)
        return decode(model, task, "mdm", start, sampling, keys_for(start, seed))[0]
    assert torch.equal(greedy(1), greedy(2))
    logits = torch.tensor([2.0, 0.0, 1.0])
    keys = sample_keys(0, torch.zeros(20000, 1, dtype=torch.long), copies_differ=True)
    sampled = sample_symbols(logits.expand(20000, 3), 0.5, uniform(keys, 0, 3))
    rate = sampled.bincount(minlength=3) / 20000
    assert (rate - (logits / 0.5).softmax(dim=0)).abs().max() < 0.018  # 5 standard errors


def test_noise_is_uniform_and_independent():
    """Means, neighbours in sample, step and index: within 5 standard errors of independence."""
    keys = sample_keys(3, torch.zeros(500, 2, dtype=torch.long), copies_differ=True)
    x = torch.stack([uniform(keys, step, 40) for step in range(10)]) - 0.5  # (10, 500, 40)
    assert x.min() > -0.5 and x.max() < 0.5 and len(x.unique()) > 0.98 * x.numel()
    bound = 5 / 12 / math.sqrt(x.numel() * 0.9)
    assert abs(x.mean()) < 5 / math.sqrt(12 * x.numel()) and abs(x.var() - 1 / 12) < 0.002
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert abs((a * b).mean()) < bound


@pytest.mark.parametrize("objective", ["scdm", "sidm"])
def test_neighbours_in_a_file_do_not_matter(objective, puzzle_task):
    """The same puzzles reversed, and among others: the same answers. Copies agree at T = 0."""
    model = random_model(puzzle_task)
    start, answers = puzzle_task.test_set(12)
    sampling = make_sampling_params(objective, puzzle_task, tokens_per_step=9)

    def answers_to(start):
        return evaluate(model, puzzle_task, objective, sampling, start, None, 0, CPU,
                        nullcontext())[1]
    forward, backward = answers_to(start), answers_to(start.flip(0)).flip(0)
    assert torch.equal(forward, backward)
    assert torch.equal(answers_to(start[3:5]), forward[3:5])
    assert len(answers_to(start[:1].repeat(8, 1)).unique(dim=0)) == 1


def test_copies_differ_where_they_should():
    """Generation, and several answers to one puzzle at T = 1: equal starts, independent draws."""
    task = make_task(task_config())
    model, start = random_model(task), empty(task, 30)
    sampling = make_sampling_params("scdm", task)
    metrics, answers, _ = evaluate(model, task, "scdm", sampling, start, None, 0, CPU,
                                   nullcontext())
    assert metrics["distinct"] == len(answers.unique(dim=0)) > 25
    start[:, 1] = 2
    answers = evaluate(model, task, "scdm", sampling, start, None, 0, CPU, nullcontext())[1]
    assert len(answers.unique(dim=0)) > 25 and (answers[:, 0] == 2).all()


# -- evaluation --


def test_evaluation_never_sees_an_answer():
    """decode() gets starts alone: the references only meet the finished answers."""
    task = make_task(task_config("star"))
    start, answers = task.test_set(20)
    model, sampling = random_model(task), make_sampling_params("mtp", task)
    a, b = (evaluate(model, task, "mtp", sampling, start, r, 0, CPU, nullcontext())
            for r in (answers, (answers + 1) % task.K))
    assert torch.equal(a[1], b[1]) and a[0]["solved"] == b[0]["solved"]


def test_scores_count_what_they_say(puzzle_task):
    """One wrong cell in one of three puzzles, one of them without a reference."""
    start, answers = puzzle_task.test_set(3)
    wrong = answers.clone()
    blanks = puzzle_task.blanks(start)
    cell = int(blanks[0].nonzero()[0])
    wrong[0, cell] = (wrong[0, cell] + 1) % 9
    references = answers.clone()
    references[2] = -1

    class Fixed(Oracle):
        pass
    model = Fixed(puzzle_task, start, wrong)
    sampling = make_sampling_params("mdm", puzzle_task)
    metrics, _, stats = evaluate(model, puzzle_task, "mdm", sampling, start, references, 0, CPU,
                                 nullcontext())
    names = ("num", "solved", "references", "exact")
    assert [metrics[name] for name in names] == [3, 2, 2, 1]
    to_find = int(blanks[:2].sum())
    assert metrics["cell_acc"] == (to_find - 1) / to_find
    assert stats["solved"].tolist() == [False, True, True]
    assert metrics["nfe"] == pytest.approx(blanks.sum(dim=1).double().mean().item(), abs=0.01)


def test_restarts_decode_again_what_breaks_the_rules(boards4, small_task):
    """The truth at T = 1, two cells per step, is often wrong: restarts mend it, and cost passes.

    Samples that were right keep their answer; the others get other random numbers each time.
    """
    task = make_task(task_config())
    model, start = TrueConditionals(task, boards4), empty(task, 200)
    sampling = SamplingParams("random", 4, ALL, 4, 1.0)
    runs = [evaluate(model, task, "mdm", sampling, start, None, 0, CPU, nullcontext(), restarts=r)
            for r in (0, 1, 30)]
    once, twice, often = (metrics["solved"] for metrics, _, _ in runs)
    assert 0 < once < twice < often and often > 0.9 * 200
    (_, first, stats), (_, _, after_one), (_, last, after) = runs
    right = stats["solved"]
    assert torch.equal(first[right], last[right]) and (after["nfe"][right] == 4).all()
    assert (after_one["nfe"][~right] == 8).all() and (after_one["tokens"][~right] == 8 * 17).all()
    assert (after["nfe"][~right] % 4 == 0).all() and after["nfe"].max() > 8


def test_wilson():
    """Against values worked out with the closed form by hand for 8 of 10, 0 of 10 and 10 of 10."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=2e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=2e-4)
    assert LINE and CAUSAL
