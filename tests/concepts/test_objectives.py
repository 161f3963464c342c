"""An objective is a ranking: who sees whom in TRAINING, by hand; a new objective in a few lines.

    A answer cells   W window   level: <= 0 known, 1, 2, 3, ... unknown in their order
"""
from contextlib import nullcontext

import pytest
import torch

import diffusion
import mtp
import train
from config import Config
from conftest import ToyTask, keys_for, random_model, task_config
from data import make_task
from errors import BadInput
from metrics import show_count
from model import CAUSAL, visible
from objectives import ALL, OBJECTIVES, Objective, SamplingParams, make_sampling_params
from sample import decode_next_token
from test_model import BLOCKS, LEVEL, MATRICES, SUFFIX

# The tokens of test_model: three of the prompt, six answer cells.
TASK = ToyTask()
TASK.P, TASK.A, TASK.S = 3, 6, 9
NONE_GIVEN = torch.zeros(1, 6, dtype=torch.bool)


class Spy:
    """A model that records its input and returns zeros."""

    def __call__(self, tokens, positions, rank=None, read_every=0):
        self.tokens, self.rank = tokens, rank
        return torch.zeros(*tokens.shape, TASK.K)


def seen_in_training(objective, level, W):
    """-> (T, T) bool: who may look at whom in the forward pass of the loss at this level."""
    spy, rule = Spy(), OBJECTIVES[objective]
    rule.loss(spy, torch.randint(2, (1, TASK.S)), level, W, TASK, rule.ranks)
    T = spy.tokens.shape[1]
    rank = {None: torch.zeros(1, T), CAUSAL: torch.arange(1, T + 1)[None]}.get(
        spy.rank if spy.rank is None or isinstance(spy.rank, str) else 0, spy.rank)
    return visible(rank.view(-1, T))[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_trains_under_its_matrix(objective):
    """For mtp W = 2. For ar without the last token, which is not an input."""
    level, W = {"bcdm": (BLOCKS, 6), "mtp": (SUFFIX, 2), "mtp-no-latents": (SUFFIX, 2),
                "ar": mtp.mask_nothing(NONE_GIVEN, None, None)}.get(objective, (LEVEL, 6))
    T = TASK.S - OBJECTIVES[objective].next_token
    assert torch.equal(seen_in_training(objective, level, W), MATRICES[objective][:T, :T])


@pytest.mark.parametrize("W, rows", [
    (1, ["xxxxxx..."] * 6 + ["xxxxxxx..", "xxxxxx.x.", "xxxxxx..x"]),
    (3, ["xxxxxxxx."] * 8 + ["xxxxxxxxx"]), (6, ["xxxxxxxxx"] * 9)])
def test_other_windows_train_under_their_matrices(W, rows):
    """Cells beyond the window see themselves, and no other cell sees them."""
    matrix = torch.tensor([[cell == "x" for cell in row] for row in rows])
    assert torch.equal(seen_in_training("mtp", SUFFIX, W), matrix)
    assert torch.equal(seen_in_training("mtp", SUFFIX, torch.tensor(W)), matrix)  # window = random


@pytest.mark.parametrize("window, W", [("all", 6), ("2", 2), ("1", 1), ("9", 6)])
def test_the_window_of_training(window, W):
    """W is an int, at most A; if W = A no attention mask is built."""
    level, drawn = mtp.mask_suffix(NONE_GIVEN.expand(8, 6), torch.Generator().manual_seed(0),
                                   Config(window=window))
    assert drawn == W and isinstance(drawn, int)
    assert (mtp.window_sees_itself(level, drawn) is None) == (W == 6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_answer_leaks_through_the_loss(objective):
    """Changing a masked symbol changes no logits. For ar: only the logits of later cells."""
    config, rule = Config(objective=objective, window="2"), OBJECTIVES[objective]
    model, x = random_model(TASK), torch.randint(2, (1, TASK.S))
    level, W = rule.mask(NONE_GIVEN, torch.Generator().manual_seed(3), config)

    def logits_of(tokens):
        kept = []

        def spy(*args, **kw):
            kept.append(model(*args, **kw))
            return kept[0]
        train.training_loss(spy, tokens, level, W, TASK, config)
        return kept[0][0, TASK.P - rule.next_token:]

    base = logits_of(x)
    for cell in (level[0] > 0).nonzero().flatten().tolist():
        changed = x.clone()
        changed[0, TASK.P + cell] ^= 1
        moved = (logits_of(changed) != base).any(dim=1)
        assert not moved[:cell + 1 if rule.next_token else None].any()


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm", "mtp"])
def test_training_and_decoding_rank_alike(objective):
    """The ranks of a decoding step are those of training at the same levels."""
    level = torch.tensor([[0, 0, 1, 2, 3]])  # two known cells, two latents, one candidate
    in_training = OBJECTIVES[objective].ranks(level, 5)
    in_decoding = OBJECTIVES[objective].ranks(level)
    assert in_training is in_decoding is None or torch.equal(in_training, in_decoding)


def test_a_new_objective(monkeypatch):
    """prefix: ar with a prompt that sees itself both ways (prompt rank 0, answer 1, 2, 3, ...).

    One entry of the table makes it: scdm's ranking with next-token prediction. It trains under its
    matrix and decodes with and without a cache as by hand.
    """
    prefix = Objective(diffusion.semi_causal, mtp.mask_nothing, mtp.next_token_loss,
                       left_to_right=True, next_token=True, sampling=("temperature",))
    monkeypatch.setitem(OBJECTIVES, "prefix", prefix)
    matrix = ["xxx....."] * 3 + ["xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxxxxx"]
    trained = seen_in_training("prefix", *mtp.mask_nothing(NONE_GIVEN, None, None))
    assert trained.tolist() == [[cell == "x" for cell in row] for row in matrix]
    config = Config(objective="prefix", task="star", path_len=3, labels=9, width=16, depth=2,
                    heads=2, batch_size=64, max_steps=3, device="cpu", learning_rate=0.01)
    task = make_task(config)
    state = train.make_state(config, task, torch.device("cpu"), nullcontext())
    step = train.make_step(state)
    losses = [step(1.0).item() for _ in range(3)]
    assert losses[2] < losses[0]
    torch.nn.init.normal_(state.model.head.weight, generator=torch.Generator().manual_seed(1))
    for block in state.model.blocks:  # large weights, so that answers depend on what a token sees
        torch.nn.init.normal_(block.attn.proj.weight, generator=torch.Generator().manual_seed(2))
    start, _ = task.test_set(5)
    rank = mtp.next_token_ranks(prefix.ranks, task, "cpu")
    tokens = start[:, :task.P]
    for T in range(task.P, task.S):  # by hand, greedily
        logits = state.model(tokens, torch.arange(T), rank[:T])[:, -1]
        tokens = torch.cat([tokens, logits.argmax(dim=1, keepdim=True)], dim=1)
    for use_cache in (True, False):
        decoded, _ = decode_next_token(state.model, task, "prefix", start, 0.0, keys_for(start),
                                       use_cache)
        assert torch.equal(decoded, tokens)


@pytest.mark.parametrize("objective, asked, word", [
    ("mdm", {"latents": 14}, "latents"), ("sidm", {"latents": ALL}, "latents"),
    ("ar", {"latents": 1}, "latents"), ("mtp", {"latents": 1}, "window"),
    ("ar", {"order": "confidence"}, "temperature"), ("mtp", {"order": "confidence"}, "window"),
    ("ar", {"tokens_per_step": 4}, "temperature"), ("ar", {"window": 2}, "temperature"),
    ("scdm", {"window": 2}, "latents"),
    ("scdm", {"order": "random", "candidates": 4}, "confidence"),
    ("mtp", {"window": 2, "tokens_per_step": 3}, "--window 3"), ("mdm", {"window": 1}, "order"),
    ("sidm", {"order": "left_to_right", "candidates": 2}, "margin")])
def test_parameters_without_meaning_are_refused(objective, asked, word):
    with pytest.raises(BadInput, match=word):
        make_sampling_params(objective, make_task(task_config()), "all", **asked)


BOARDS, STAR = make_task(task_config()), make_task(task_config("star"))


@pytest.mark.parametrize("objective, task, asked, expected", [
    ("scdm", BOARDS, {}, ("random", 1, ALL, 1, 1.0)),
    ("scdm", BOARDS, {"greedy": True}, ("confidence", 8, ALL, 1, 0.0)),
    ("mdm", STAR, {}, ("confidence", ALL, ALL, 1, 0.0)),
    ("sidm", STAR, {}, ("confidence", ALL, 0, 1, 0.0)),  # candidates as mdm: a fair ablation
    ("ar", STAR, {}, ("left_to_right", 1, 0, 1, 0.0)),
    ("mtp", STAR, {"trained_window": "4"}, ("left_to_right", 1, 3, 1, 0.0)),
    ("mtp", STAR, {"trained_window": "random"}, ("left_to_right", 1, ALL - 1, 1, 0.0)),
    ("mtp", STAR, {"window": 2, "tokens_per_step": 2}, ("left_to_right", 2, 0, 2, 0.0)),
    # mdm always has all latents, so only as many or more may be asked for
    ("mdm", STAR, {"latents": STAR.A - 1}, ("confidence", ALL, ALL, 1, 0.0)),
    ("scdm", STAR, {"order": "margin", "candidates": 4, "latents": 3, "tokens_per_step": 2,
                    "temperature": 0.5}, ("margin", 4, 3, 2, 0.5)),
    ("sidm", STAR, {"order": "random", "tokens_per_step": 3}, ("random", 3, 0, 3, 0.0)),
    ("sidm", STAR, {"candidates": 2, "tokens_per_step": 3}, ("confidence", 3, 0, 3, 0.0))])
def test_sampling_parameters(objective, task, asked, expected):
    assert make_sampling_params(objective, task, **asked) == SamplingParams(*expected)


def test_counts_as_they_are_reported():
    """15 latents beside a decoded cell are all of 16 cells; 15 of 16 candidates are not."""
    assert [show_count(n, 15) for n in (0, 14, 15, ALL)] == [0, 14, "all", "all"]
    assert [show_count(c, 16) for c in (15, 16, ALL)] == [15, "all", "all"]
