"""Upper bounds that know the answer, and what is trained to decode: filter, policy, two losses."""
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from boards import ANSWERS, BLANKS, COUNT, PUZZLES, START, board_of, check_alone, generator, play
from conftest import Oracle, random_model

from config import Config
from data import make_task
from decoders.plain import plain
from diffusion import joint
from errors import BadInput
from studies import learned
from studies.heads import (Filter, Policy, filter_decode, init, odds, policy_decode, policy_loss,
                           policy_reward, replay, train_filter, train_policy)
from studies.oracle import oracle_decode
from studies.tune import certainty_loss, mdpo_loss, step_advantages, tune_certainty, tune_mdpo

# One context around a whole training, as the program has it. In bf16 it keeps copies of weights.
both_precisions = pytest.mark.parametrize("autocast", (
    nullcontext(), torch.autocast("cpu", torch.bfloat16)), ids=("fp32", "bf16"))
both_bounds = pytest.mark.parametrize("k", (None, 1))


def played(model, loop, rows=slice(None)):
    """-> the board of those puzzles after loop(board)."""
    board = board_of(model, START[rows])
    play(board, loop(board))
    return board


def costs(board):
    return board.tokens, {"nfe": board.nfe, "tokens": board.pairs}


def test_egp_on_an_oracle_ends_in_one_pass():
    board = played(Oracle(PUZZLES, START, ANSWERS), lambda board: oracle_decode(board, ANSWERS))
    assert torch.equal(board.symbols, ANSWERS) and (board.nfe == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("k", (None, 1, 2))
def test_upper_bounds_commit_guesses_and_prefer_right_ones(k):
    """Step by step, of a model that knows nothing: all right ones, the best k of them, or one."""
    model, seen_stuck = random_model(PUZZLES), False
    board = board_of(model)
    loop = oracle_decode(board, ANSWERS, k)
    while board.unknown.any():
        unknown, before = board.unknown, board.tokens.clone()
        confidence, symbols = model(before, board.positions)[:, 1:].softmax(-1).max(-1)
        right = unknown & (symbols == ANSWERS)
        next(loop)
        new = unknown & ~board.unknown
        assert (board.symbols == symbols)[new].all()
        for i in unknown.any(dim=1).nonzero().flatten():
            if right[i].any():
                many = right[i].sum() if k is None else min(k, int(right[i].sum()))
                assert (right[i] | ~new[i]).all() and new[i].sum() == many
                left_out = confidence[i].masked_fill(new[i] | ~right[i], -1)
                assert confidence[i][new[i]].min() >= left_out.max()
            else:
                seen_stuck = True
                best = confidence[i].masked_fill(~unknown[i], -1).argmax()
                assert new[i].nonzero().flatten().tolist() == [int(best)]
    assert seen_stuck  # or this test has not seen the hard case


@both_bounds
def test_force_reaches_the_answer_and_no_reference_is_no_help(k):
    model, none = random_model(PUZZLES), torch.full_like(ANSWERS, -1)
    board = played(model, lambda board: oracle_decode(board, ANSWERS, k, force=True))
    assert torch.equal(board.symbols, ANSWERS)
    board = played(model, lambda board: oracle_decode(board, none, k))
    assert torch.equal(board.nfe, COUNT)  # one cell a pass


@both_bounds
def test_upper_bounds_do_not_depend_on_the_batch(k):
    check_alone(lambda rows: costs(played(
        random_model(PUZZLES), lambda board: oracle_decode(board, ANSWERS[rows], k), rows)))


def same_steps(one, other, temperature=0.0):
    """Do two loops do the same on a model that knows nothing, step by step, bit for bit?"""
    boards = [board_of(random_model(PUZZLES), temperature=temperature) for _ in range(2)]
    a, b = play(boards[0], one(boards[0])), play(boards[1], other(boards[1]))
    return len(a) == len(b) and all(map(torch.equal, a, b)) and torch.equal(
        boards[0].confidence, boards[1].confidence)


@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_null_settings_equal_plain(temperature):
    """tau = 1 whatever the head says; boost = 0 of a policy that has learned nothing."""
    def certain(confidence, unknown):
        return torch.full_like(confidence, 1e4)

    fresh = init(Policy(), generator())
    torch.nn.init.zeros_(fresh.out.weight)
    assert same_steps(lambda b: filter_decode(b, certain, 1.0), plain, temperature)
    assert same_steps(lambda b: policy_decode(b, fresh, 0.0), plain, temperature)
    assert not same_steps(lambda b: filter_decode(b, certain, 0.9), plain)
    assert not same_steps(lambda b: policy_decode(b, fresh, 1.0), plain)


def test_a_deterministic_policy_is_a_threshold():
    """s = 1[c > tau] leaves nothing to chance (the paper's null)."""
    def step(c, unknown, progress):
        return odds(c) + 100 * (2 * (c > 0.4).float() - 1)
    assert same_steps(lambda b: policy_decode(b, step), lambda b: filter_decode(b, odds, 0.4))


def test_a_policy_does_not_depend_on_the_batch():
    head = init(Policy(), generator())
    tokens, _ = check_alone(lambda rows: costs(played(
        random_model(PUZZLES), lambda board: policy_decode(board, head), rows)))
    assert (tokens[:, 1:] < PUZZLES.K).all()
    assert torch.equal(tokens[:, 1:][~BLANKS], START[:, 1:][~BLANKS])


@both_precisions
def test_replays_say_what_was_right_and_a_filter_learns_it(autocast):
    """Of an oracle all is right. Of a model that is right from 0.8 on, a filter learns that."""
    confidence, unknown, right = replay(Oracle(PUZZLES, START, ANSWERS), PUZZLES, joint, START,
                                        ANSWERS)
    assert right.all() and torch.equal(unknown, BLANKS)  # one pass each
    _, unknown, right = replay(random_model(PUZZLES), PUZZLES, joint, START, ANSWERS, batch_size=5)
    assert unknown.any(dim=1).all() and 0 < right[unknown].float().mean() < 0.9
    assert right[~unknown].all()  # force: the way is that of the answers
    confidence = torch.rand(400, 4, generator=generator())
    blank, right = torch.ones(400, 4, dtype=torch.bool), confidence > 0.8
    with autocast:
        said = train_filter(confidence, blank, right, generator())(confidence, blank) > 0
    assert (said == right).float().mean() > 0.9  # odds: 0.7
    for corrects in (True, False):  # what they say before they have learned anything
        head = Filter(4, corrects)
        for p in head.down.parameters():
            torch.nn.init.zeros_(p)
        assert torch.equal(head(confidence, blank), odds(confidence) * corrects)


def test_the_reward_of_the_paper_and_the_one_that_it_warns_of():
    solved, steps = torch.tensor([1.0, 1, 0, 0]), torch.tensor([4.0, 8, 1, 8])
    assert policy_reward(solved, steps, 8, 2.0).tolist() == [0.25, 0, 0, 0]
    assert policy_reward(solved, steps, 8, 0.5, additive=True).tolist() == [1.25, 1, 0.4375, 0]


def test_policy_gradient_takes_the_better_of_two_actions():
    """A bandit: one logit, action 1 pays. A clipped ratio has no gradient; a bad one is unlearned.
    """
    for better in (0.0, 1.0):
        b = torch.zeros(1, requires_grad=True)
        for step in range(40):
            u = (torch.rand(64, generator=generator(step)) < b.detach().sigmoid()).float()
            R = (u == better).float()
            log_prob = -F.binary_cross_entropy_with_logits(b.expand(64), u, reduction="none")
            loss = policy_loss(log_prob, log_prob.detach(), R - R.mean()).mean()
            b = (b - 4 * torch.autograd.grad(loss, b)[0]).detach().requires_grad_()
        assert abs(b.sigmoid().item() - better) < 0.1
    far = torch.tensor([1.0, -1.0], requires_grad=True)  # rho = e and 1/e: both have gone far
    for advantage, expected in (([1.0, -1.0], [0, 0]), ([-1.0, 1.0], [1, -1])):
        loss = policy_loss(far, torch.zeros(2), torch.tensor(advantage)).sum()
        assert torch.autograd.grad(loss, far)[0].sign().tolist() == expected


@both_precisions
def test_the_additive_reward_collapses_to_one_shot_and_constant_rewards_teach_nothing(autocast):
    """On a model that knows nothing, nothing is solved: only haste can pay."""
    log, make = [], dict(updates=12, prompts=4, G=8, lr=3e-2)
    with autocast:
        head, same = (train_policy(random_model(PUZZLES), PUZZLES, joint, START, generator(),
                                   **make, **more) for more in ({"additive": True, "log": log}, {}))
    assert log[-1][2] < 0.6 * log[0][2]  # passes
    assert same.out.weight.abs().sum() == 0 < head.out.weight.abs().sum()


def test_certainty_forcing():
    """beta = 0 is cross-entropy, gradients too; the entropy pulls at right guesses alone."""
    logits = torch.randn(3, 8, 4, generator=generator(), requires_grad=True)
    answers = torch.randint(4, (3, 8), generator=generator(1))
    masked = torch.rand(3, 8, generator=generator(2)) < 0.6
    masked[2] = False  # nothing is masked: no loss, no nan
    ce = torch.stack([F.cross_entropy(logits[i][masked[i]], answers[i][masked[i]])
                      if masked[i].any() else logits.sum() * 0 for i in range(3)])
    loss = certainty_loss(logits, answers, masked, beta=0.0)
    assert torch.allclose(loss, ce)
    gradient = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, ce)]
    assert torch.allclose(*gradient, atol=1e-6)
    extra = certainty_loss(logits, answers, masked, beta=3.0, T=0.5) - loss
    right = masked & (logits.argmax(-1) == answers)
    assert right.any() and (masked & ~right).any()
    entropy = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    for i in range(3):
        mean = entropy[i][right[i]].mean() if right[i].any() else torch.tensor(0.0)
        assert torch.allclose(extra[i], 3 * mean, atol=1e-5)
    pull = torch.autograd.grad(extra.sum(), logits)[0].abs().sum(-1)
    assert (pull[right] > 0).all() and (pull[~right].abs() < 1e-6).all()


def test_step_advantages_by_hand():
    """Two copies, three passes: gain, plus the mean of what follows; then normalised per pass."""
    rewards = torch.tensor([[0.0, 0.5], [1.0, 0.5], [1.0, 0.0]]).unsqueeze(2)  # (N, G, B)
    raw = torch.tensor([[0 + 1.0, 0.5 + 0.25], [1 + 1.0, 0 + 0.0], [0.0, -0.5]])
    expected = (raw - raw.mean(1, keepdim=True)) / (raw.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(step_advantages(rewards).squeeze(2), expected)
    constant = torch.rand(5, 1, 3, generator=generator()).expand(5, 4, 3)
    assert step_advantages(constant).abs().max() == 0


def test_mdpo_raises_what_was_better():
    log_prob = torch.zeros(2, 3, requires_grad=True)
    confidence = torch.tensor([[0.5, 1.0, 1.0]] * 2)
    masked = torch.tensor([[True, True, False]] * 2)
    loss = mdpo_loss(log_prob, torch.zeros(2, 3), confidence, masked, torch.tensor([2.0, 0.0]))
    loss.sum().backward()
    assert log_prob.grad.tolist() == [[-0.5, -1.0, 0], [0, 0, 0]]


@both_precisions
def test_tuning_leaves_the_model_and_keeps_what_it_promises(autocast):
    """A copy is trained; lr = 0 and constant rewards change nothing; forcing raises confidence."""
    model = random_model(PUZZLES)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def moved(tuned):
        return sum((v - before[k]).abs().sum().item() for k, v in tuned.state_dict().items())

    def mdpo(count=12, **kw):
        return tune_mdpo(model, PUZZLES, joint, START[:count], ANSWERS[:count], generator(), **kw)

    assert moved(mdpo(updates=2, lr=0.0)) == 0
    assert moved(mdpo(updates=2, lr=1.0, temperature=0.0)) == 0  # all copies are one
    log, mean = [], []
    with autocast:
        tuned = mdpo(1, updates=40, passes=4, trained=4, lr=3e-3, log=log)
    assert moved(tuned) > 0 and sum(log[-8:]) > sum(log[:8]) + 1.6  # by 20 points
    for beta in (0.0, 4.0):
        with autocast:
            tuned = tune_certainty(model, PUZZLES, joint, START, ANSWERS, generator(), beta,
                                   steps=40, batch_size=8, lr=3e-3)
        logits = tuned(START, torch.arange(PUZZLES.S))[:, PUZZLES.P:]
        right = BLANKS & (logits.argmax(-1) == ANSWERS)
        mean.append(logits.softmax(-1).amax(-1)[right].mean().item())
    assert mean[1] > mean[0] + 0.02
    assert moved(model) == 0


def test_the_streams_hold_no_test_puzzle(data_dir):
    """On 4x4, where a stream would meet many of them."""
    config = Config(task="sudoku", board_size=4, data_dir=data_dir, layout="inplace",
                    train_size=100)
    task, rows = make_task(config), {}
    test = {tuple(row) for row in task.test_set(1000)[0].tolist()}
    for name in ("training", "validation"):
        start, answers = learned.stream(task, config, name, 300, 0, "cpu")
        assert task.check(start, answers).all() and len(start) == 300
        rows[name] = {tuple(row) for row in start.tolist()}
        assert not rows[name] & test
    assert rows["training"] != rows["validation"]


def test_calibration_error():
    c = torch.tensor([[0.95, 0.95, 0.95, 0.95, 0.15, 0.99]])
    right = torch.tensor([[True, True, True, False, False, False]])
    error = learned.calibration_error(c, torch.arange(6).unsqueeze(0) < 5, right)
    assert abs(error - (4 * abs(0.75 - 0.95) + 0.15) / 5) < 1e-6


@pytest.mark.parametrize("what", learned.WHAT)
def test_the_program(what, tiny_puzzles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learned, "TAUS", (0.5, 0.9))
    file = tmp_path / "a" / "out.json"
    assert not learned.main(["--ckpt", str(tiny_puzzles), "--what", what, "--num", "6", "--puzzles",
                             "40", "--updates", "1", "--device", "cpu", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names[:2] == ["plain", "EGP, knows the answers"]
    for name in set(names[2:]):  # one chosen point a curve, and all points shown
        mine = [row for row in rows if row["name"] == name]
        assert len(mine) >= 2 and sum(row["chosen"] for row in mine) == 1
    assert len(capsys.readouterr().out.splitlines()) == len(names)


def test_the_program_refuses():
    file = Path(__file__).parents[2] / "results/demo-dial/scdm-seed0.pt"
    with pytest.raises(BadInput, match="scdm on sudoku-gen; needed is mdm or sidm on a task"):
        learned.main(["--ckpt", str(file), "--device", "cpu"])


@pytest.fixture(scope="module")
def tiny_puzzles(tmp_path_factory, data_dir):
    """A small mdm on 4x4 puzzles that solves most of them."""
    import train
    out = tmp_path_factory.mktemp("tiny") / "s4"
    assert not train.main([
        "--task", "sudoku", "--board-size", "4", "--layout", "inplace", "--train-size", "100",
        "--objective", "mdm", "--width", "32", "--depth", "2", "--heads", "2", "--batch-size", "32",
        "--max-steps", "120", "--optimizer", "muon", "--warmup-steps", "10", "--device", "cpu",
        "--learning-rate", "3e-3", "--muon-learning-rate", "1e-2", "--eval-samples", "4",
        "--data-dir", data_dir, "--out", str(out)])
    return out / "ckpt.pt"
