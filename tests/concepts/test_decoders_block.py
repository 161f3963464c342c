"""Blocks: their order, who is absent, who sees whom in training, and a cache that is exact.

    P prompt positions   A answer cells   n cells of a block   C positions of the clean copy
"""
import json
import time

import pytest
import torch
from conftest import Oracle, ToyTask, empty, keys_for, random_model, task_config

import decoders
from data import make_task
from decoders import block_diffusion
from decoders.block_diffusion import (block_nats, decode, draw_lengths, hide_in_blocks, main,
                                      who_sees_whom)
from diffusion import draw_turns, hidden_nats, joint
from objectives import OBJECTIVES, Dials
from plumbing.cli import BadInput
from test_decoders import puzzles, run  # noqa: F401  (a fixture)

TASK = ToyTask()  # P = 1, A = 4, K = 2


class Spy:
    """A model that keeps what it was fed and what it said."""

    def __init__(self, model):
        self.model, self.fed, self.said = model, [], []
        self.new_cache = getattr(model, "new_cache", None)

    def __call__(self, tokens, positions, rank=None, cache=None):
        keep = {} if cache is None else {"cache": cache}
        self.fed.append((tokens.clone(), positions, rank))
        self.said.append(self.model(tokens, positions, rank, **keep))
        return self.said[-1]


class Sure:
    """A model that is sure of symbol 0 everywhere, or knows nothing."""

    def __init__(self, task, logit):
        self.task, self.logit = task, logit

    def __call__(self, tokens, positions, rank=None, cache=None):
        return torch.zeros(*tokens.shape, self.task.K).index_fill(2, torch.tensor(0), self.logit)


# -- the row `block`: training-free --


@pytest.mark.parametrize("later", ("present", "absent"))
@pytest.mark.parametrize("size", (1, 3, 4))
def test_a_block_waits_for_those_before_it(size, later, puzzles):  # noqa: F811
    task, start, _ = puzzles
    tokens, stats, history = run(random_model(task), task, start, "block",
                                 {"size": size, "later": later, "k": 2})
    number, before = torch.arange(task.A) // size, start
    for now in history:
        open_before = before[:, task.P:] == task.MASK
        first = number.masked_fill(~open_before, task.A).amin(dim=1, keepdim=True)
        changed = now[:, task.P:] != before[:, task.P:]
        assert (number.expand_as(changed)[changed] == first.expand_as(changed)[changed]).all()
        in_block = (open_before & (number == first)).sum(dim=1)
        assert torch.equal(changed.sum(dim=1), in_block.clamp(max=2))
        before = now
    assert torch.equal(before, tokens)


def test_absent_cells_are_not_in_the_pass_and_not_paid(puzzles):  # noqa: F811
    task, start, _ = puzzles
    for i in (0, 5, 11):
        spy = Spy(random_model(task))
        _, stats, history = run(spy, task, start[i:i + 1], "block", {"size": 4, "later": "absent"})
        pairs, before = 0, start[i, task.P:]
        for (fed, positions, _), now in zip(spy.fed, history, strict=True):
            unknown = before == task.MASK
            current = int(unknown.nonzero()[0]) // 4
            later = unknown & (torch.arange(task.A) // 4 > current)
            expected = [0] + (1 + (~later).nonzero().flatten()).tolist()
            assert sorted(positions[0].tolist()) == expected
            pairs, before = pairs + len(expected), now[0, task.P:]
        assert stats["tokens"].item() == pairs


def test_absent_is_an_oracle_s_and_a_loner_s_way_too(puzzles):  # noqa: F811
    """Ragged batches: empty seats are seen by nobody. Masks of their own rows are compared too."""
    task, start, answers = puzzles
    knobs = {"size": 3, "later": "absent"}
    tokens, _, _ = run(Oracle(task, start, answers), task, start, "block", knobs)
    assert torch.equal(tokens[:, task.P:], answers)
    model = random_model(task)
    together, stats, _ = run(model, task, start, "block", knobs)
    for i in range(len(start)):
        alone, one, _ = run(model, task, start[i:i + 1], "block", knobs)
        assert torch.equal(alone[0], together[i])
        assert torch.allclose(one["confidence"], stats["confidence"][i:i + 1], atol=1e-6)
        assert all(torch.equal(one[s][0], stats[s][i]) for s in ("nfe", "tokens"))


def test_to_sidm_later_cells_are_absent_anyway(puzzles):  # noqa: F811
    """No unknown cell sees another: the answers are the same and cost less. For mdm they differ."""
    task, start, _ = puzzles
    model, got = random_model(task), {}
    for objective in ("sidm", "mdm"):
        for later in ("present", "absent"):
            got[objective, later] = run(model, task, start, "block", {"size": 4, "later": later},
                                        objective=objective)[:2]
    (a, a_cost), (b, b_cost) = got["sidm", "present"], got["sidm", "absent"]
    assert torch.equal(a, b) and torch.equal(a_cost["nfe"], b_cost["nfe"])
    assert torch.allclose(a_cost["confidence"], b_cost["confidence"], atol=1e-6)
    assert (a_cost["tokens"] > b_cost["tokens"]).all()
    assert not torch.equal(got["mdm", "present"][0], got["mdm", "absent"][0])


# -- who sees whom in training --


@pytest.mark.parametrize("token_causal, context", [
    (False, [".....xxx", ".....xxx", ".....xxx"]),
    (True, [".....x..", ".....xx.", ".....xxx"])])
def test_who_sees_whom_by_hand(token_causal, context):
    """P = 1 and two blocks of two: [noisy bos a b c d ; clean bos a b]."""
    rows = ["xxx.....", "xxx.....", "xxx.....", "...xxxxx", "...xxxxx", *context]
    got = who_sees_whom((2, 2), 1, token_causal, "cpu")
    assert got.tolist() == [[cell == "x" for cell in row] for row in rows]


def test_blocks_of_one_cell_are_autoregressive():
    """Each cell sees, of the positions, the prompt, those before it and itself: causal."""
    P, A = 3, 6
    matrix = who_sees_whom((1,) * A, P, False, "cpu")
    S, C = P + A, P + A - 1
    by_position = matrix[:S, :S].clone()
    by_position[:, :C] |= matrix[:S, S:]
    assert torch.equal(by_position[P:], torch.ones(S, S).tril().bool()[P:])
    clean = matrix[S:, S:]
    assert torch.equal(clean[P + 1:], torch.ones(C, C).tril().bool()[P + 1:])
    assert clean[:P + 1, :P + 1].all() and not clean[:P + 1, P + 1:].any()  # prompt and first cell


def test_one_block_is_mdm():
    """The same hidden cells, the same loss, and no clean copy in the pass."""
    g = torch.Generator().manual_seed
    turn, lengths = hide_in_blocks(8, TASK.A, "all", g(0), "cpu", None, sizes=[TASK.A])
    assert torch.equal(turn, draw_turns(8, TASK.A, g(0), "cpu")) and lengths == (TASK.A,)
    tokens, spy = torch.randint(2, (8, TASK.S), generator=g(1)), Spy(random_model(TASK))
    nats = block_nats(spy, tokens, turn, lengths, TASK, None)
    expected = hidden_nats(spy.model, tokens, turn, TASK.A, TASK, joint)
    assert torch.allclose(nats, expected, atol=1e-6) and spy.fed[0][0].shape == (8, TASK.S)


@pytest.mark.parametrize("token_causal", (False, True))
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (2, 2), (3, 1), (4,)])
def test_nothing_leaks_through_the_loss(lengths, token_causal):
    """A hidden symbol reaches later blocks (through their clean context), never its own or earlier.

    Nor does any symbol, hidden or not, reach an earlier block.
    """
    model = random_model(TASK)
    tokens = torch.randint(2, (1, TASK.S), generator=torch.Generator().manual_seed(2))
    turn = torch.tensor([[1, 0, 1, 2]]) if lengths != (1, 1, 1, 1) else torch.ones(1, 4).long()
    block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def logits_of(tokens):
        spy = Spy(model)
        block_nats(spy, tokens, turn, lengths, TASK, None, token_causal)
        return spy.said[0][0, TASK.P:TASK.S]

    base = logits_of(tokens)
    for cell in range(TASK.A):
        changed = tokens.clone()
        changed[0, TASK.P + cell] ^= 1
        moved = (logits_of(changed) != base).any(dim=1)
        known = turn[0, cell] == 0
        assert not moved[block < block[cell]].any()
        assert moved[block > block[cell]].all()
        assert moved[block == block[cell]].all() == known
        assert known or not moved[block == block[cell]].any()


@pytest.mark.parametrize("token_causal", (False, True))
def test_blocks_of_one_cell_have_a_likelihood(token_causal):
    """The chain rule: over all 16 answers the probabilities add up to 1. Any leak would exceed it.
    """
    answers = torch.cartesian_prod(*[torch.arange(2)] * 4)
    tokens = torch.cat([torch.full((16, 1), TASK.BOS), answers], dim=1)
    turn, lengths = hide_in_blocks(16, 4, "all", torch.Generator(), "cpu", None, sizes=[1])
    nats = block_nats(random_model(TASK), tokens, turn, lengths, TASK, None, token_causal)
    assert nats.std() > 0.01
    assert (-TASK.A * nats).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_weights_of_the_loss_by_hand():
    """Blocks of 3 and 1: the mean over the hidden cells of each, weighted by 3/4 and 1/4."""
    spy, tokens = Spy(random_model(TASK)), torch.randint(2, (2, TASK.S))
    turn = torch.tensor([[1, 0, 2, 1], [1, 2, 3, 1]])
    nats = block_nats(spy, tokens, turn, (3, 1), TASK, None)
    logp = spy.said[0][:, 1:5].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(nats[0], -(3 * (logp[0, 0] + logp[0, 2]) / 2 + logp[0, 3]) / 4)
    assert torch.allclose(nats[1], -logp[1].mean())


def test_complementary_masks_hide_each_cell_once():
    generator = torch.Generator().manual_seed(0)
    turn, lengths = hide_in_blocks(8, 4, "all", generator, "cpu", None, sizes=[2])
    tokens, spy = torch.randint(2, (8, 5), generator=generator), Spy(random_model(TASK))
    nats = block_nats(spy, tokens, turn, lengths, TASK, None, complementary=True)
    noisy = spy.fed[0][0][:, 1:5]
    hidden = noisy == TASK.MASK
    assert torch.equal(hidden[:4], turn[:4] > 0) and torch.equal(hidden[4:], ~hidden[:4])
    assert torch.equal(spy.fed[0][0][:, 5:], tokens[:4].repeat(2, 1)[:, :3])  # clean, both times
    logp = spy.said[0][:, 1:5].log_softmax(-1)
    logp = logp.gather(2, tokens[:4].repeat(2, 1)[:, 1:, None])[..., 0]
    expected = -torch.where(hidden[:4], logp[:4], logp[4:]).mean(dim=1)
    assert nats.shape == (4,) and torch.allclose(nats, expected)


def test_what_is_hidden():
    """In each block m is uniform on 1..n; several sizes are mixed, and fill A exactly."""
    generator = torch.Generator().manual_seed(0)
    turn, lengths = hide_in_blocks(600, 16, "all", generator, "cpu", None, sizes=[6])
    assert lengths == (6, 6, 4)
    for part, n in zip((turn > 0).split(lengths, dim=1), lengths):
        counts = part.sum(dim=1).bincount(minlength=n + 1)
        assert counts[0] == 0 and ((counts[1:] - 600 / n).abs() <= 2).all()
    drawn = [draw_lengths(16, [1, 4], generator, "cpu") for _ in range(50)]
    assert all(sum(d) == 16 and {1, 4} >= set(d[:-1]) for d in drawn) and len(set(drawn)) > 10


# -- decoding what was trained --


@pytest.fixture(scope="module")
def tasks():
    return [make_task(task_config()), make_task(task_config("star", path_len=6))]


@pytest.mark.parametrize("token_causal", (False, True))
@pytest.mark.parametrize("size, tau", [(1, 1.0), (3, 1.0), (4, 0.6)])
def test_the_cache_is_exact(size, tau, token_causal, tasks):
    for task in tasks:
        start = task.test_set(6)[0]
        got = []
        for cached in (True, False):
            spy = Spy(random_model(task))
            got.append((spy, *decode(spy, task, start, keys_for(start), 1.0, size=size, tau=tau,
                                     token_causal=token_causal, cached=cached)))
        (spy, tokens, cost), (other, expected, more) = got
        assert torch.equal(tokens, expected) and torch.equal(cost["nfe"], more["nfe"])
        assert len(spy.said) == len(other.said)
        for a, b in zip(spy.said, other.said):
            n = min(size, a.shape[1])
            assert torch.allclose(a[:, -n:], b[:, -n:], atol=1e-5)
        assert (cost["tokens"] < more["tokens"]).all()


@pytest.mark.parametrize("token_causal", (False, True))
def test_decoding_sees_what_training_saw(token_causal):
    """The last pass over each block, uncached, has the logits that the loss has for it."""
    task, lengths = make_task(task_config()), (4, 4, 4, 4)
    model, start = Spy(random_model(task)), empty(task, 3)
    tokens, _ = decode(model, task, start, keys_for(start), 0.0, size=4, token_causal=token_causal,
                       cached=False)
    for b, at in enumerate((3, 7, 11, 15)):  # one cell of the block is unknown
        fed, said = model.fed[at][0], model.said[at]
        hidden = fed[:, task.P + 4 * b:task.P + 4 * b + 4] == task.MASK
        assert (hidden.sum(dim=1) == 1).all()
        turn = torch.ones(3, task.A, dtype=torch.long)
        turn[:, 4 * b:4 * b + 4] = hidden
        spy = Spy(model.model)
        block_nats(spy, tokens, turn, lengths, task, None, token_causal)
        trained = spy.said[0][:, task.P + 4 * b:task.P + 4 * b + 4]
        assert torch.allclose(said[:, -4:], trained, atol=1e-5)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_one_block_decodes_as_plain(temperature):
    task = make_task(task_config())
    start, model = empty(task, 5), random_model(task)
    expected, plain, steps = run(model, task, start, "plain", {}, temperature)
    for cached in (True, False):
        history = []
        tokens, stats = decode(model, task, start, keys_for(start), temperature, history,
                               size=task.A, cached=cached)
        assert torch.equal(tokens, expected)
        assert all(torch.equal(a, b) for a, b in zip(history, steps, strict=True))
        assert torch.equal(stats["tokens"], plain["tokens"])


def test_what_it_costs():
    """P = 1, A = 16, blocks of 4: 5 pairs in the first; then a pass that also feeds the last block.
    """
    task = make_task(task_config())
    start = empty(task, 2)
    for cached, pairs in ((True, 4 * 5 + (5 + 4 + 3 * 4) + 2 * (4 + 4 + 3 * 4)),
                          (False, 4 * (5 + 9 + 13 + 17))):
        _, stats = decode(random_model(task), task, start, keys_for(start), 1.0, size=4,
                          cached=cached)
        assert stats["nfe"].tolist() == [16, 16] and stats["tokens"].tolist() == [pairs] * 2


def test_neighbours_do_not_matter_to_a_trained_one(tasks):
    """With a threshold rows fill their blocks at different times."""
    task = tasks[0]
    start, model = empty(task, 6), random_model(task)
    keys, knobs = keys_for(start), dict(size=8, tau=0.6, order="random")
    together, stats = decode(model, task, start, keys, 1.0, **knobs)
    assert len(set(stats["nfe"].tolist())) > 1
    for i in range(6):
        alone, one = decode(model, task, start[i:i + 1], keys[i:i + 1], 1.0, **knobs)
        assert torch.equal(alone[0], together[i])
        assert one["nfe"][0] == stats["nfe"][i] and one["tokens"][0] == stats["tokens"][i]


def test_the_block_grows_where_the_model_is_sure():
    """Blocks of 1, 2, 4, 8 and the last cell, one pass each; a model that knows nothing stays at 1.
    """
    task = make_task(task_config())
    start = empty(task, 2)
    knobs = dict(size=1, tau=0.9, sure=0.9, cached=False)
    _, stats = decode(Sure(task, 20.0), task, start, keys_for(start), 0.0, **knobs)
    assert stats["nfe"].tolist() == [5, 5]
    assert stats["tokens"].tolist() == [2 + 4 + 8 + 16 + 17] * 2
    _, stats = decode(Sure(task, 0.0), task, start, keys_for(start), 0.0, **knobs)
    assert stats["nfe"].tolist() == [16, 16]
    assert stats["tokens"].tolist() == [sum(range(2, 18))] * 2
    model = random_model(task)
    got = [decode(model, task, start, keys_for(start), 1.0, **{**knobs, "sure": 0.6,
                                                              "cached": cached})
           for cached in (True, False)]
    assert torch.equal(got[0][0], got[1][0])


# -- the program --


def test_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "block", None)  # main() adds the row; here it goes again
    out = str(tmp_path / "b")
    tiny = ["train", "--preset", "sudoku4", "--width", "16", "--depth", "1", "--heads", "2",
            "--batch-size", "8", "--max-steps", "3", "--num", "4", "--device", "cpu", "--json",
            "--data-dir", str(tmp_path)]
    main([*tiny, "--sizes", "4,16", "--token-causal", "--complementary", "--out", out])
    main(["decode", "--ckpt", f"{out}/ckpt.pt", "--size", "4", "--num", "4", "--json", "--device",
          "cpu", "--no-cache"])
    trained, whole, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert (trained["size"], whole["size"], trained["nfe"]) == (4, 16, 16)
    assert trained["token_causal"] and trained["complementary"] and not again["cached"]
    assert again["solved"] == trained["solved"] and again["tokens"] > trained["tokens"] == 81
    for argv, words in (
            ([*tiny, "--sizes", "4", "--out", out], "already holds a checkpoint"),
            ([*tiny, "--sizes", "17", "--out", out + "2"], "a block of 17 cells"),
            ([*tiny, "--sizes", "4", "--objective", "mdm"], "--objective has no meaning"),
            ([*tiny, "--sizes", "4", "--batch-size", "7", "--complementary", "--out", out + "2"],
             "--batch-size 7"),
            ([*tiny, "--sizes", "4", "--task", "sudoku", "--out", out + "2"], "--layout prompt"),
            (["decode", "--ckpt", "results/demo-dial/scdm-seed0.pt"], "no checkpoint of"),
            (["dance"], "say train or decode")):
        with pytest.raises(BadInput) as e:
            main(argv)
        assert words in str(e.value) and "\n" not in str(e.value)


def test_compiling_is_not_on_the_clock(tmp_path, capsys, monkeypatch):
    """A first step of 0.6 s does not end a training of 0.5 s before the fifth."""
    monkeypatch.setitem(OBJECTIVES, "block", None)
    calls = []

    def slow_start(state):
        def step(scale):
            time.sleep(0.02 if calls else 0.6)
            calls.append(scale)
            return torch.zeros(())
        return step

    monkeypatch.setattr(block_diffusion, "make_step", slow_start)
    main(["train", "--preset", "sudoku4", "--width", "16", "--depth", "1", "--heads", "2",
          "--max-seconds", "0.5", "--compile", "--num", "1", "--device", "cpu", "--data-dir",
          str(tmp_path), "--out", str(tmp_path / "b"), "--sizes", "4"])
    assert len(calls) > 4


def test_left_to_right_only_the_latents_differ():
    """Whatever the size of a block, cells come in their order; a pass has more latents in it."""
    task = make_task(task_config())
    start, history = empty(task, 2), []
    for size in (1, 4, 16):
        decode(random_model(task), task, start, keys_for(start), 1.0, history, size=size,
               order="left_to_right")
    known = [(now != task.MASK).sum(dim=1).tolist() for now in history]
    assert known == [[n, n] for n in range(2, 18)] * 3
    assert all((now[:, :known[i][0]] != task.MASK).all() for i, now in enumerate(history))


def test_given_cells_are_refused(puzzles):  # noqa: F811
    task, start, _ = puzzles
    with pytest.raises(BadInput, match="--layout prompt"):
        decode(random_model(task), task, start, keys_for(start), 0.0, size=4)


@pytest.mark.parametrize("name", ("plain", "block"))
def test_decoding_keeps_no_gradients(name, puzzles):  # noqa: F811
    """A board that remembers every pass took 7 GB for 100 puzzles."""
    task, start, _ = puzzles
    knobs = {k: knob.default for k, knob in decoders.DECODERS[name].knobs.items()}
    dials = Dials("", 1, 0, 1, 0.0, decoder=name, knobs=knobs)
    _, stats = decoders.decode(random_model(task), task, "mdm", start, dials, keys_for(start))
    assert not stats["confidence"].requires_grad
