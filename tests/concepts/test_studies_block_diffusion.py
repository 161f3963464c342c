"""Trained blocks: who sees whom in training, the loss, and a cache that is exact.

    P prompt positions   A answer cells   n cells of a block   C positions of the clean copy
"""
import json
import time
from types import SimpleNamespace

import pytest
import torch
from boards import BOARDS, PUZZLES, START, TOY, Opinions, Spy, check_alone, generator, run
from conftest import empty, keys_for, random_model, task_config

from data import make_task
from diffusion import draw_levels, joint, masked_loss
from errors import BadInput
from objectives import OBJECTIVES
from studies import block_diffusion
from studies.block_diffusion import (block_loss, decode, draw_lengths, main, mask_in_blocks,
                                     who_sees_whom)

UNIFORM = SimpleNamespace(mask_rate_a=1.0, mask_rate_b=1.0, uniform_fraction=0.0)
both_causalities = pytest.mark.parametrize("token_causal", (False, True))


def masked(B, A, g, *sizes):
    """-> level (B, A), lengths, of samples without givens."""
    return mask_in_blocks(torch.zeros(B, A, dtype=torch.bool), g, UNIFORM, sizes=list(sizes))


def log_prob(spy, tokens):
    """log p of the symbols of toy boards in the only pass: (B, A)."""
    return spy.said[0][:, 1:5].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


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
    matrix, S, C = who_sees_whom((1,) * A, P, False, "cpu"), P + A, P + A - 1
    by_position = matrix[:S, :S].clone()
    by_position[:, :C] |= matrix[:S, S:]
    assert torch.equal(by_position[P:], torch.ones(S, S).tril().bool()[P:])
    clean = matrix[S:, S:]
    assert torch.equal(clean[P + 1:], torch.ones(C, C).tril().bool()[P + 1:])
    assert clean[:P + 1, :P + 1].all() and not clean[:P + 1, P + 1:].any()  # prompt and first cell


def test_one_block_is_mdm():
    """The same masked cells, the same loss, and no clean copy in the pass."""
    level, lengths = masked(8, TOY.A, generator(0), TOY.A)
    expected = draw_levels(torch.zeros(8, TOY.A, dtype=torch.bool), generator(0))
    assert torch.equal(level, expected) and lengths == (TOY.A,)
    tokens, spy = torch.randint(2, (8, TOY.S), generator=generator(1)), Spy(random_model(TOY))
    loss = block_loss(spy, tokens, level, lengths, TOY, None)
    expected = masked_loss(spy.model, tokens, level, TOY.A, TOY, joint)
    assert torch.allclose(loss, expected, atol=1e-6) and spy.fed[0][0].shape == (8, TOY.S)


@both_causalities
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (2, 2), (3, 1), (4,)])
def test_nothing_leaks_through_the_loss(lengths, token_causal):
    """A masked symbol reaches later blocks (through their clean context), never its own or earlier.

    Nor does any symbol, masked or not, reach an earlier block.
    """
    model, tokens = random_model(TOY), torch.randint(2, (1, TOY.S), generator=generator(2))
    level = torch.tensor([[1, 0, 1, 2]]) if lengths != (1, 1, 1, 1) else torch.ones(1, 4).long()
    block = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def logits_of(tokens):
        spy = Spy(model)
        block_loss(spy, tokens, level, lengths, TOY, None, token_causal=token_causal)
        return spy.said[0][0, TOY.P:TOY.S]

    base = logits_of(tokens)
    for cell in range(TOY.A):
        changed = tokens.clone()
        changed[0, TOY.P + cell] ^= 1
        moved = (logits_of(changed) != base).any(dim=1)
        known = level[0, cell] == 0
        assert not moved[block < block[cell]].any()
        assert moved[block > block[cell]].all()
        assert moved[block == block[cell]].all() == known
        assert known or not moved[block == block[cell]].any()


@both_causalities
def test_blocks_of_one_cell_have_a_likelihood(token_causal):
    """The chain rule: over all 16 answers the probabilities add up to 1. Any leak would exceed it.
    """
    answers = torch.cartesian_prod(*[torch.arange(2)] * 4)
    tokens = torch.cat([torch.full((16, 1), TOY.BOS), answers], dim=1)
    nats = block_loss(random_model(TOY), tokens, *masked(16, 4, generator(), 1), TOY, None,
                      token_causal=token_causal)
    assert nats.std() > 0.01
    assert (-TOY.A * nats).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_weights_of_the_loss_by_hand():
    """Blocks of 3 and 1: the mean over the masked cells of each, weighted by 3/4 and 1/4."""
    spy, tokens = Spy(random_model(TOY)), torch.randint(2, (2, TOY.S))
    loss = block_loss(spy, tokens, torch.tensor([[1, 0, 2, 1], [1, 2, 3, 1]]), (3, 1), TOY, None)
    logp = log_prob(spy, tokens)
    assert torch.allclose(loss[0], -(3 * (logp[0, 0] + logp[0, 2]) / 2 + logp[0, 3]) / 4)
    assert torch.allclose(loss[1], -logp[1].mean())


def test_deep_supervision_scores_every_reading():
    """Readings (R, B, S + C, K) give a loss (R, B); the last one is the model's own."""
    model, tokens = random_model(TOY, depth=2), torch.randint(2, (4, TOY.S))
    level, lengths = masked(4, 4, generator(), 2)
    for complementary in (False, True):
        several, own = (block_loss(model, tokens, level, lengths, TOY, None, every,
                                   complementary=complementary) for every in (1, 0))
        assert several.shape == (2, len(own)) and torch.allclose(several[1], own)


def test_complementary_masks_mask_each_cell_once():
    level, lengths = masked(8, 4, generator(), 2)
    tokens, spy = torch.randint(2, (8, 5), generator=generator(1)), Spy(random_model(TOY))
    loss = block_loss(spy, tokens, level, lengths, TOY, None, complementary=True)
    noisy, twice = spy.fed[0][0][:, 1:5], tokens[:4].repeat(2, 1)
    unknown = noisy == TOY.MASK
    assert torch.equal(unknown[:4], level[:4] > 0) and torch.equal(unknown[4:], ~unknown[:4])
    assert torch.equal(spy.fed[0][0][:, 5:], twice[:, :3])  # clean, both times
    logp = log_prob(spy, twice)
    expected = -torch.where(unknown[:4], logp[:4], logp[4:]).mean(dim=1)
    assert loss.shape == (4,) and torch.allclose(loss, expected)


def test_what_is_masked():
    """In each block m is uniform on 1..n; several sizes are mixed, and fill A exactly."""
    level, lengths = masked(600, 16, generator(), 6)
    assert lengths == (6, 6, 4)
    for part, n in zip((level > 0).split(lengths, dim=1), lengths):
        counts = part.sum(dim=1).bincount(minlength=n + 1)
        assert counts[0] == 0 and ((counts[1:] - 600 / n).abs() <= 2).all()
    g = generator()
    drawn = [draw_lengths(16, [1, 4], g, "cpu") for _ in range(50)]
    assert all(sum(d) == 16 and {1, 4} >= set(d[:-1]) for d in drawn) and len(set(drawn)) > 10


@both_causalities
@pytest.mark.parametrize("size, tau", [(1, 1.0), (3, 1.0), (4, 0.6)])
@pytest.mark.parametrize("task", (BOARDS, make_task(task_config("star", path_len=6))))
def test_the_cache_is_exact(task, size, tau, token_causal):
    start, got = task.test_set(6)[0], []
    for cached in (True, False):
        spy = Spy(random_model(task))
        got.append((spy, *decode(spy, task, start, keys_for(start), 1.0, size=size, tau=tau,
                                 token_causal=token_causal, cached=cached)))
    (spy, tokens, cost, _), (other, expected, more, _) = got
    assert torch.equal(tokens, expected) and torch.equal(cost["nfe"], more["nfe"])
    for a, b in zip(spy.said, other.said, strict=True):
        n = min(size, a.shape[1])
        assert torch.allclose(a[:, -n:], b[:, -n:], atol=1e-5)
    assert (cost["tokens"] < more["tokens"]).all()


@both_causalities
def test_decoding_sees_what_training_saw(token_causal):
    """The last pass over each block, uncached, has the logits that the loss has for it."""
    model, start = Spy(random_model(BOARDS)), empty(BOARDS, 3)
    tokens, *_ = decode(model, BOARDS, start, keys_for(start), 0.0, size=4,
                        token_causal=token_causal, cached=False)
    for b, at in enumerate((3, 7, 11, 15)):  # one cell of the block is unknown
        here = slice(BOARDS.P + 4 * b, BOARDS.P + 4 * b + 4)
        unknown = model.fed[at][0][:, here] == BOARDS.MASK
        assert (unknown.sum(dim=1) == 1).all()
        level, spy = torch.ones(3, BOARDS.A, dtype=torch.long), Spy(model.model)
        level[:, 4 * b:4 * b + 4] = unknown
        block_loss(spy, tokens, level, (4,) * 4, BOARDS, None, token_causal=token_causal)
        assert torch.allclose(model.said[at][:, -4:], spy.said[0][:, here], atol=1e-5)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_one_block_decodes_as_plain(temperature):
    start, model = empty(BOARDS, 5), random_model(BOARDS)
    expected, plain, steps = run(model, "plain", (), temperature, start=start, task=BOARDS)
    for cached in (True, False):
        history = []
        tokens, stats, _ = decode(model, BOARDS, start, keys_for(start), temperature, history,
                                  size=BOARDS.A, cached=cached)
        assert torch.equal(tokens, expected) and torch.equal(stats["tokens"], plain["tokens"])
        assert len(history) == len(steps) and all(map(torch.equal, history, steps))


@pytest.mark.parametrize("cached, pairs", ((True, 4 * 5 + (5 + 4 + 3 * 4) + 2 * (4 + 4 + 3 * 4)),
                                           (False, 4 * (5 + 9 + 13 + 17))))
def test_what_it_costs(cached, pairs):
    """P = 1, A = 16, blocks of 4: 5 pairs in the first; then a pass that also feeds the last block.
    """
    start = empty(BOARDS, 2)
    _, stats, _ = decode(random_model(BOARDS), BOARDS, start, keys_for(start), 1.0, size=4,
                         cached=cached)
    assert stats["nfe"].tolist() == [16, 16] and stats["tokens"].tolist() == [pairs] * 2


def test_neighbours_do_not_matter():
    """With a threshold rows fill their blocks at different times."""
    start, model = empty(BOARDS, 6), random_model(BOARDS)
    keys = keys_for(start)
    _, stats = check_alone(lambda rows: decode(model, BOARDS, start[rows], keys[rows], 1.0, size=8,
                                               tau=0.6, order="random"), range(6))
    assert len(set(stats["nfe"].tolist())) > 1


def test_the_block_grows_where_the_model_is_confident():
    """Blocks of 1, 2, 4, 8 and the last cell, one pass each; a model that knows nothing stays at 1.
    """
    start, model = empty(BOARDS, 2), random_model(BOARDS)

    def decoded(model, T=0.0, cached=False, sure=0.9):
        return decode(model, BOARDS, start, keys_for(start), T, size=1, tau=0.9, sure=sure,
                      cached=cached)

    for logit, passes, pairs in ((20.0, 5, 2 + 4 + 8 + 16 + 17), (0.0, 16, sum(range(2, 18)))):
        _, stats, _ = decoded(Opinions(torch.tensor([[logit, 0, 0, 0]]).expand(16, 4)))
        assert stats["nfe"].tolist() == [passes] * 2 and stats["tokens"].tolist() == [pairs] * 2
    assert torch.equal(decoded(model, 1.0, True, 0.6)[0], decoded(model, 1.0, False, 0.6)[0])


def test_left_to_right_only_the_latents_differ():
    """Whatever the size of a block, cells come in their order; a pass has more latents in it."""
    start, history = empty(BOARDS, 2), []
    for size in (1, 4, 16):
        decode(random_model(BOARDS), BOARDS, start, keys_for(start), 1.0, history, size=size,
               order="left_to_right")
    known = [(now != BOARDS.MASK).sum(dim=1).tolist() for now in history]
    assert known == [[n, n] for n in range(2, 18)] * 3
    assert all((now[:, :known[i][0]] != BOARDS.MASK).all() for i, now in enumerate(history))


def test_given_cells_are_refused():
    with pytest.raises(BadInput, match="--layout prompt"):
        decode(random_model(PUZZLES), PUZZLES, START, keys_for(START), 0.0, size=4)


TINY = ["train", "--preset", "sudoku4", "--width", "16", "--depth", "1", "--heads", "2",
        "--device", "cpu"]


def test_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "block", None)  # main() adds the entry; here it goes again
    out = str(tmp_path / "b")
    tiny = [*TINY, "--batch-size", "8", "--max-steps", "3", "--num", "4", "--json", "--data-dir",
            str(tmp_path)]
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


def test_compiling_is_not_training_time(tmp_path, capsys, monkeypatch):
    """A first step of 0.6 s does not end a training of 0.5 s before the fifth."""
    monkeypatch.setitem(OBJECTIVES, "block", None)
    calls = []

    def step(scale):
        time.sleep(0.02 if calls else 0.6)
        calls.append(scale)
        return torch.zeros(())

    monkeypatch.setattr(block_diffusion, "make_step", lambda state: step)
    main([*TINY, "--max-seconds", "0.5", "--compile", "--num", "1", "--data-dir", str(tmp_path),
          "--out", str(tmp_path / "b"), "--sizes", "4"])
    assert len(calls) > 4
