"""An objective is a ranking: who may look at whom in TRAINING, by hand; a sixth in a few lines.

    A answer cells   W window   level: <= 0 known, 1, 2, 3, ... unknown in their order
"""
import pytest
import torch

import diffusion
import mtp
import train
from config import Config
from conftest import ToyTask, empty, keys_for, random_model, task_config
from data import make_task
from errors import BadInput
from model import CAUSAL, visible
from objectives import (ALL, OBJECTIVES, ORDERS, Objective, SamplingParams, make_sampling_params,
                        show_count)
from sample import decode, decode_next_token
from test_model import MATRICES, SUFFIX, LEVEL, by_hand

# The tokens of test_model: three of the prompt, six answer cells.
TASK = ToyTask()
TASK.P, TASK.A, TASK.S = 3, 6, 9
NONE_GIVEN = torch.zeros(1, 6, dtype=torch.bool)


class Spy:
    """A model that remembers what it was asked, and whose logits depend on nothing."""

    def __call__(self, tokens, positions, rank=None, read_every=0):
        self.tokens, self.rank = tokens, rank
        return torch.zeros(*tokens.shape, TASK.K)


def seen_in_training(objective, level, W):
    """-> (T, T) bool: who may look at whom in the forward pass of the loss, under this level."""
    spy, rule = Spy(), OBJECTIVES[objective]
    rule.loss(spy, torch.randint(2, (1, TASK.S)), level, W, TASK, rule.ranks)
    T = spy.tokens.shape[1]
    rank = {None: torch.zeros(1, T), CAUSAL: torch.arange(1, T + 1)[None]}.get(
        spy.rank if spy.rank is None or isinstance(spy.rank, str) else 0, spy.rank)
    return visible(rank.view(-1, T))[0]


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm"])
def test_diffusion_trains_under_its_matrix(objective):
    """Pins that sidm does not train as mdm, whatever the ranking is called."""
    assert torch.equal(seen_in_training(objective, LEVEL, 6), by_hand(objective))


def test_mtp_trains_under_its_matrix():
    assert torch.equal(seen_in_training("mtp", SUFFIX, 2), by_hand("mtp"))
    assert seen_in_training("mtp", SUFFIX, 6).all()  # W = all: everything sees everything


@pytest.mark.parametrize("W, rows", [
    (1, ["xxxxxx...", "xxxxxx...", "xxxxxx...", "xxxxxx...", "xxxxxx...", "xxxxxx...",
         "xxxxxxx..", "xxxxxx.x.", "xxxxxx..x"]),
    (3, ["xxxxxxxx."] * 8 + ["xxxxxxxxx"])])
def test_other_windows_train_under_their_matrices(W, rows):
    """Windows of one and of three: beyond them each sees itself, and nobody sees it."""
    matrix = torch.tensor([[cell == "x" for cell in row] for row in rows])
    assert torch.equal(seen_in_training("mtp", SUFFIX, W), matrix)
    assert torch.equal(seen_in_training("mtp", SUFFIX, torch.tensor(W)), matrix)  # window = random


def test_ar_trains_under_its_matrix():
    """The last token is never fed; the others look back."""
    level, W = mtp.mask_nothing(NONE_GIVEN, None, None)
    assert torch.equal(seen_in_training("ar", level, W), by_hand("ar")[:8, :8])


@pytest.mark.parametrize("window, W", [("all", 6), ("2", 2), ("1", 1)])
def test_the_window_of_training_is_the_one_asked_for(window, W):
    """For `all` W = A, an int, so no attention mask is built."""
    level, drawn = mtp.mask_suffix(NONE_GIVEN.expand(8, 6), torch.Generator().manual_seed(0),
                                   Config(window=window))
    assert drawn == W and isinstance(drawn, int)
    assert (mtp.window_sees_itself(level, drawn) is None) == (W == 6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_answer_leaks_through_the_loss(objective):
    """Changing the masked symbol of one cell changes that cell's score and no other's.

    For ar: the score of that cell and of later ones, never of earlier ones. The score of a cell is
    the part of the loss that its own logits make, taken from gradients with respect to the logits.
    """
    config = Config(objective=objective, window="2")
    model, x = random_model(TASK), torch.randint(2, (1, TASK.S))
    generator = torch.Generator().manual_seed(3)
    level, W = OBJECTIVES[objective].mask(NONE_GIVEN, generator, config)
    cells = [c for c in range(TASK.A) if level[0, c] > 0]

    def logits_of(tokens):
        kept = []

        def spy(*args, **kw):
            kept.append(model(*args, **kw))
            return kept[0]
        train.training_loss(spy, tokens, level, W, TASK, config)
        shift = 1 if OBJECTIVES[objective].next_token else 0
        return kept[0][0, TASK.P - shift:]

    base = logits_of(x)
    for cell in cells:
        changed = x.clone()
        changed[0, TASK.P + cell] ^= 1
        moved = (logits_of(changed) != base).any(dim=1)
        if OBJECTIVES[objective].next_token:
            assert not moved[:cell + 1].any()
        else:
            assert not moved.any()  # a masked symbol never enters the forward pass


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm", "mtp"])
def test_training_and_decoding_rank_alike(objective):
    """One function: the ranks of a decoding step are those of training at the same levels."""
    level = torch.tensor([[0, 0, 1, 2, 3]])  # two known cells, two latents, one candidate
    in_training = OBJECTIVES[objective].ranks(level, 5)
    in_decoding = OBJECTIVES[objective].ranks(level)
    assert in_training is in_decoding is None or torch.equal(in_training, in_decoding)


def test_a_sixth_objective(monkeypatch):
    """prefix: ar with a prompt that sees itself both ways (prompt rank 0, answer 1, 2, 3, ...).

    One row makes it: scdm's ranking, but the next token is predicted. It trains and decodes; its
    prompt sees itself; with the cache it says what it says without.
    """
    prefix = Objective(diffusion.semi_causal, mtp.mask_nothing, mtp.next_token_loss,
                       left_to_right=True, next_token=True, sampling=("temperature",))
    monkeypatch.setitem(OBJECTIVES, "prefix", prefix)
    config = Config(objective="prefix", task="star", path_len=3, labels=9, width=16, depth=2,
                    heads=2, batch_size=64, max_steps=3, device="cpu", learning_rate=0.01)
    task = make_task(config)
    full_precision = torch.autocast("cpu", enabled=False)
    state = train.make_state(config, task, torch.device("cpu"), full_precision)
    step = train.make_step(state)
    losses = [step(1.0).item() for _ in range(3)]
    assert losses[2] < losses[0]
    torch.nn.init.normal_(state.model.head.weight, generator=torch.Generator().manual_seed(1))
    for block in state.model.blocks:  # so that what a token sees decides its answer
        torch.nn.init.normal_(block.attn.proj.weight, generator=torch.Generator().manual_seed(2))
    start, _ = task.test_set(5)
    sampling = make_sampling_params("prefix", task)
    with_cache, without = (
        decode_next_token(state.model, task, "prefix", start, sampling.temperature,
                          keys_for(start), use_cache)
        for use_cache in (True, False))
    assert torch.equal(with_cache[0], without[0]) and with_cache[1]["tokens"][0] == task.S - 1
    rank = mtp.next_token_ranks(prefix.ranks, task, "cpu")
    tokens = start[:, :task.P]
    for T in range(task.P, task.S):  # by hand, greedily, under its own ranks
        logits = state.model(tokens, torch.arange(T), rank[:T])[:, -1]
        tokens = torch.cat([tokens, logits.argmax(dim=1, keepdim=True)], dim=1)
    assert torch.equal(with_cache[0], tokens)
    trained = seen_in_training("prefix", *mtp.mask_nothing(NONE_GIVEN, None, None))
    matrix = ["xxx....."] * 3 + ["xxxx....", "xxxxx...", "xxxxxx..", "xxxxxxx.", "xxxxxxxx"]
    assert trained.tolist() == [[cell == "x" for cell in row] for row in matrix]
    sees = visible(rank)
    assert sees[:task.P, :task.P].all() and not sees[:task.P, task.P:].any()
    assert torch.equal(sees[task.P:, task.P:], torch.ones(task.A, task.A).tril().bool())


@pytest.mark.parametrize("objective, asked, word", [
    ("mdm", {"latents": 0}, "latents"), ("sidm", {"latents": ALL}, "latents"),
    ("ar", {"latents": 1}, "latents"), ("mtp", {"latents": 1}, "window"),
    ("ar", {"order": "confidence"}, "temperature"), ("mtp", {"order": "confidence"}, "window"),
    ("ar", {"tokens_per_step": 4}, "temperature"), ("ar", {"window": 2}, "temperature"),
    ("scdm", {"window": 2}, "latents"),
    ("scdm", {"order": "random", "candidates": 4}, "confidence"),
    ("mtp", {"window": 2, "tokens_per_step": 3}, "--window 3"), ("mdm", {"window": 1}, "order"),
    ("sidm", {"order": "left_to_right", "candidates": 2}, "margin")])
def test_flags_without_meaning_are_refused(objective, asked, word):
    with pytest.raises(BadInput, match=word):
        make_sampling_params(objective, make_task(task_config()), "all", **asked)


def test_default_sampling_parameters():
    def fields(*args, **kw):
        d = make_sampling_params(*args, **kw)
        return d.order, d.candidates, d.latents, d.tokens_per_step, d.temperature

    boards, star = make_task(task_config()), make_task(task_config("star"))
    assert fields("scdm", boards) == ("random", 1, ALL, 1, 1.0)
    assert fields("scdm", boards, greedy=True) == ("confidence", 8, ALL, 1, 0.0)
    assert fields("mdm", star) == ("confidence", ALL, ALL, 1, 0.0)
    assert fields("sidm", star) == ("confidence", ALL, 0, 1, 0.0)  # as mdm: a fair ablation
    assert fields("ar", star) == ("left_to_right", 1, 0, 1, 0.0)
    assert make_sampling_params("mtp", star, "4").latents == 3
    assert make_sampling_params("mtp", star, "random").latents == ALL - 1
    # all is what mdm does anyway: that many, and no fewer, may be asked for
    assert make_sampling_params("mdm", star, latents=star.A - 1).latents == ALL
    with pytest.raises(BadInput):
        make_sampling_params("mdm", star, latents=star.A - 2)


def test_what_is_asked_for_is_what_comes():
    star = make_task(task_config("star"))
    sampling = make_sampling_params("scdm", star, order="margin", candidates=4, latents=3,
                                    tokens_per_step=2, temperature=0.5)
    assert sampling == SamplingParams("margin", 4, 3, 2, 0.5)
    sampling = make_sampling_params("sidm", star, order="random", tokens_per_step=3)
    assert sampling == SamplingParams("random", 3, 0, 3, 0)
    assert make_sampling_params("sidm", star, candidates=2, tokens_per_step=3).candidates == 3
    assert make_sampling_params("mtp", star, "all", window=2, tokens_per_step=2).latents == 0
    assert ORDERS == ("random", "confidence", "margin", "entropy", "left_to_right")


def test_counts_as_they_are_reported():
    """A - 1 latents are all there can be beside a decoded cell; 15 of 16 candidates are not all."""
    assert [show_count(n, 15) for n in (0, 14, 15, ALL)] == [0, 14, "all", "all"]
    assert [show_count(c, 16) for c in (15, 16, ALL)] == [15, "all", "all"]


def test_decode_names_no_objective():
    """What an objective is stands in the table, not in the sampler."""
    import inspect
    for function in (decode, decode_next_token):
        body = inspect.getsource(function).split('"""')[2]
        assert not any(f'"{name}"' in body for name in OBJECTIVES)


def test_empty_is_what_a_task_starts_with():
    task = make_task(task_config())
    assert torch.equal(empty(task, 3), task.test_set(3)[0])
    assert len(MATRICES) == len(OBJECTIVES)
