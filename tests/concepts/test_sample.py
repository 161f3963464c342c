"""The samplers: oracles, exact distributions, costs, samples that start anywhere.

    P prompt   A answer cells   c candidates   n latents   k tokens per step   W window
"""
import math
from contextlib import nullcontext

import pytest
import torch

from conftest import Oracle, TrueConditionals, empty, keys_for, random_model, task_config
from data import make_task
from metrics import wilson
from noise import sample_keys, sample_symbols, uniform
from objectives import ALL, SamplingParams, make_sampling_params
from sample import decode, decode_next_token, evaluate

FAMILY = ("mdm", "sidm", "scdm", "bcdm", "mtp", "mtp-no-latents")
CPU = torch.device("cpu")


def settings_for(objective):
    """Orders, numbers of candidates, latents and tokens per step that the objective accepts."""
    if objective == "mtp":
        windows = ((1, 1), (3, 1), (3, 2), (ALL, 1), (ALL, 5))
        return [SamplingParams("left_to_right", k, W - k, k, 0.0) for W, k in windows]
    if objective == "mtp-no-latents":
        return [SamplingParams("left_to_right", k, 0, k, 0.0) for k in (1, 3)]
    settings = []
    for n in {"mdm": (ALL,), "sidm": (0,), "scdm": (0, 1, 5, ALL),
              "bcdm": (0, 1, 5, ALL)}[objective]:
        for k in (1, 3):
            settings += [SamplingParams("confidence", max(k, c), n, k, 0.0) for c in (1, 4, ALL)]
            settings += [SamplingParams(order, 4, n, k, 0.0) for order in ("margin", "entropy")]
            settings += [SamplingParams(order, k, n, k, 0.0)
                         for order in ("random", "left_to_right")]
    return settings


TASK = make_task(task_config())  # 4x4 boards from nothing


@pytest.fixture(scope="module")
def puzzle_task(data_dir):
    return make_task(task_config("sudoku", board_size=9, data_dir=data_dir))


def evaluated(model, task, objective, sampling, start, references=None, **kw):
    return evaluate(model, task, objective, sampling, start, references, 0, CPU, nullcontext(),
                    **kw)


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
    """A model that knows the solutions solves 9x9 puzzles with all sampling parameters.

    Known cells never change, a pass commits k cells of each sample that takes part, and costs are
    those of the formula.
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
    """Tokens at n = 0 and n = all: 3,402 and 6,642; with a prompt of 81 9,882 and 13,122."""
    assert [cost(81, P, 81, SamplingParams("random", 1, n, 1, 0.0)) for P in (1, 81)
            for n in (0, ALL)] == [(81, 3402), (81, 6642), (81, 9882), (81, 13122)]


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


def test_ar_cache_changes_the_cost_only():
    model, start = random_model(TASK), empty(TASK, 8)
    cached, cost_with = decode_next_token(model, TASK, "ar", start, 1.0, keys_for(start))
    plain, cost_without = decode_next_token(model, TASK, "ar", start, 1.0, keys_for(start), False)
    assert torch.equal(cached, plain)
    assert cost_with["tokens"][0] == 16  # P + A - 1: the last token is not an input
    assert cost_without["tokens"][0] == sum(range(1, 17))


# -- exact distributions --


def test_true_conditionals_sample_uniformly(boards4):
    """True conditionals, one cell per step, T = 1, random order: 288 boards, uniformly.

    Total variation of 2,880 samples against its null distribution (2,000 multinomial draws); 1 of
    2,000 correct runs exceeds all of them (the seed is fixed).
    """
    N = 2880
    start = empty(TASK, N)
    tokens, _ = decode(TrueConditionals(TASK, boards4), TASK, "mdm", start,
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
    """One cell per step in any order, with any latents; also with given cells (infilling)."""
    start = empty(TASK, 4)
    start[1, 1:9] = boards4[7][:8]
    start[2, 16] = boards4[99][15]
    for sampling in settings_for(objective):
        if sampling.tokens_per_step == 1:
            sampling.temperature = 1.0
            tokens, _ = decode(TrueConditionals(TASK, boards4), TASK, objective, start, sampling,
                               keys_for(start))
            assert TASK.check(start, tokens[:, 1:]).all(), sampling


# -- which cells are present, which one is decoded --


@pytest.mark.parametrize("order, expected", [("confidence", 1), ("margin", 0), ("entropy", 2)])
def test_orders_pick_the_cell_they_name(order, expected):
    """Three cells are best by probability, margin and entropy: each order picks its own."""
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
    """A model that records its calls: tokens, positions, ranks."""

    def __init__(self):
        self.calls = []

    def __call__(self, tokens, positions, rank=None):
        self.calls.append((tokens, positions, rank))
        return torch.zeros(*tokens.shape, 4)


def calls_of(objective, known, *sampling):
    """-> the calls of the model in decoding one 4x4 board; known: {position: symbol}."""
    spy, start = Spy(), empty(TASK, 1)
    for position, symbol in known.items():
        start[0, position] = symbol
    decode(spy, TASK, objective, start, SamplingParams(*sampling), keys_for(start))
    return spy.calls


def test_latents_are_redrawn_in_each_step():
    """scdm with n = 2: latents differ between steps and are never the decoded cell."""
    # latents, then the candidate
    seen = [positions[0, rank.view(-1) > 0].tolist() for _, positions, rank in
            calls_of("scdm", {}, "left_to_right", 1, 2, 1, 0.0)]
    assert [s[-1] for s in seen] == list(range(1, 17))  # left to right
    for i, s in enumerate(seen):
        assert len(set(s)) == min(3, 16 - i) and min(s) == i + 1
    assert len({tuple(s[:-1]) for s in seen[:8]}) == 8 and any(s[0] > s[1] for s in seen[:14])


def test_ranks_of_a_step_by_hand():
    """scdm, n = 2, two candidates, one prompt token, one known cell: 0 0 | 1 2 | 3 3."""
    tokens, positions, rank = calls_of("scdm", {5: 2}, "confidence", 2, 2, 1, 0.0)[0]
    assert rank.tolist() == [[0, 0, 1, 2, 3, 3]] and positions[0, :2].tolist() == [0, 5]
    assert tokens[0].tolist() == [TASK.BOS, 2] + [TASK.MASK] * 4


def test_the_mtp_window_is_the_next_cells():
    """W = 3 with givens: exactly the next three unknown cells are present."""
    calls = calls_of("mtp", {2: 1, 3: 1}, "left_to_right", 1, 2, 1, 0.0)
    first, second = (sorted(positions[0].tolist()) for _, positions, _ in calls[:2])
    assert first == [0, 1, 2, 3, 4, 5] and second == [0, 1, 2, 3, 4, 5, 6]
    assert calls[0][2] is None


def test_sidm_is_scdm_at_zero_latents():
    model, start = random_model(TASK), empty(TASK, 4)
    for sampling in settings_for("sidm"):
        a, b = (decode(model, TASK, objective, start, sampling, keys_for(start, 5))
                for objective in ("sidm", "scdm"))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1]["tokens"], b[1]["tokens"])


# -- samples with different numbers of unknown cells --


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
        if objective.startswith("mtp"):
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
            rank = (rank == n + 1).long() if objective == "bcdm" else rank
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
def test_a_batch_equals_its_samples(objective, temperature, data_dir):
    """Samples with 3, 16, 0, 9, 1 and 12 unknown cells: the same answers together and alone."""
    task = make_task(task_config("sudoku", data_dir=data_dir))
    model, (_, answers) = random_model(task), task.test_set(6)
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


# -- randomness --


def test_seeds_and_temperature():
    """Same seed, same output; T = 0 ignores the seed; T > 0 follows the softmax."""
    model, start = random_model(TASK), empty(TASK, 4)

    def answer(seed, objective, *sampling):
        return decode(model, TASK, objective, start, SamplingParams(*sampling),
                      keys_for(start, seed))[0]
    sampled = [answer(seed, "scdm", "random", 1, 3, 1, 1.0) for seed in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1]) and not torch.equal(sampled[0], sampled[2])
    greedy = [answer(seed, "mdm", "confidence", ALL, ALL, 1, 0.0) for seed in (1, 2)]
    assert torch.equal(*greedy)
    logits = torch.tensor([2.0, 0.0, 1.0])
    keys = sample_keys(0, torch.zeros(20000, 1, dtype=torch.long), copies_differ=True)
    symbols = sample_symbols(logits.expand(20000, 3), 0.5, uniform(keys, 0, 3))
    rate = symbols.bincount(minlength=3) / 20000
    assert (rate - (logits / 0.5).softmax(dim=0)).abs().max() < 0.018  # 5 standard errors


def test_noise_is_uniform_and_independent():
    """Means, and products of successive samples, steps and indices: within 5 standard errors."""
    keys = sample_keys(3, torch.zeros(500, 2, dtype=torch.long), copies_differ=True)
    x = torch.stack([uniform(keys, step, 40) for step in range(10)]) - 0.5  # (10, 500, 40)
    assert x.min() > -0.5 and x.max() < 0.5 and len(x.unique()) > 0.98 * x.numel()
    bound = 5 / 12 / math.sqrt(x.numel() * 0.9)
    assert abs(x.mean()) < 5 / math.sqrt(12 * x.numel()) and abs(x.var() - 1 / 12) < 0.002
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert abs((a * b).mean()) < bound


@pytest.mark.parametrize("objective", ["scdm", "sidm"])
def test_other_puzzles_of_a_file_do_not_matter(objective, puzzle_task):
    """The same answers in reverse order and without the others. Copies agree at T = 0."""
    model = random_model(puzzle_task)
    start, answers = puzzle_task.test_set(12)
    sampling = make_sampling_params(objective, puzzle_task, tokens_per_step=9)

    def answers_to(start):
        return evaluated(model, puzzle_task, objective, sampling, start)[1]
    forward, backward = answers_to(start), answers_to(start.flip(0)).flip(0)
    assert torch.equal(forward, backward)
    assert torch.equal(answers_to(start[3:5]), forward[3:5])
    assert len(answers_to(start[:1].repeat(8, 1)).unique(dim=0)) == 1


def test_copies_differ_if_they_should():
    """Generation, and several answers to one puzzle at T = 1: equal starts, independent samples."""
    model, start = random_model(TASK), empty(TASK, 30)
    sampling = make_sampling_params("scdm", TASK)
    metrics, answers, _ = evaluated(model, TASK, "scdm", sampling, start)
    assert metrics["distinct"] == len(answers.unique(dim=0)) > 25
    start[:, 1] = 2
    answers = evaluated(model, TASK, "scdm", sampling, start)[1]
    assert len(answers.unique(dim=0)) > 25 and (answers[:, 0] == 2).all()


# -- evaluation --


def test_decoding_never_sees_a_reference():
    """Other references change neither the answers nor the number solved."""
    task = make_task(task_config("star"))
    start, answers = task.test_set(20)
    model, sampling = random_model(task), make_sampling_params("mtp", task)
    a, b = (evaluated(model, task, "mtp", sampling, start, references)
            for references in (answers, (answers + 1) % task.K))
    assert torch.equal(a[1], b[1]) and a[0]["solved"] == b[0]["solved"]


def test_metrics_by_hand(puzzle_task):
    """One wrong cell in one of three puzzles, one of which has no reference."""
    start, answers = puzzle_task.test_set(3)
    wrong, references, blanks = answers.clone(), answers.clone(), puzzle_task.blanks(start)
    cell = int(blanks[0].nonzero()[0])
    wrong[0, cell] = (wrong[0, cell] + 1) % 9
    references[2] = -1
    sampling = make_sampling_params("mdm", puzzle_task)
    metrics, _, stats = evaluated(Oracle(puzzle_task, start, wrong), puzzle_task, "mdm", sampling,
                                  start, references)
    names = ("num", "solved", "references", "exact")
    assert [metrics[name] for name in names] == [3, 2, 2, 1]
    to_find = int(blanks[:2].sum())
    assert metrics["cell_acc"] == (to_find - 1) / to_find
    assert stats["solved"].tolist() == [False, True, True]
    assert metrics["nfe"] == pytest.approx(blanks.sum(dim=1).double().mean().item(), abs=0.01)


def test_restarts_decode_invalid_answers_again(boards4):
    """True conditionals at T = 1 with four cells per step are often wrong; restarts help.

    Valid answers do not change; the others get other random numbers, and costs add up.
    """
    model, start = TrueConditionals(TASK, boards4), empty(TASK, 200)
    sampling = SamplingParams("random", 4, ALL, 4, 1.0)
    runs = [evaluated(model, TASK, "mdm", sampling, start, restarts=r) for r in (0, 1, 30)]
    once, twice, often = (metrics["solved"] for metrics, _, _ in runs)
    assert 0 < once < twice < often and often > 0.9 * 200
    (_, first, stats), (_, _, after_one), (_, last, after) = runs
    right = stats["solved"]
    assert torch.equal(first[right], last[right]) and (after["nfe"][right] == 4).all()
    assert (after_one["nfe"][~right] == 8).all() and (after_one["tokens"][~right] == 8 * 17).all()
    assert (after["nfe"][~right] % 4 == 0).all() and after["nfe"].max() > 8


def test_wilson():
    """8 of 10, 0 of 10 and 10 of 10, against the closed form by hand."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=2e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=2e-4)
