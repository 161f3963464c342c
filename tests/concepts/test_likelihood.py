"""The likelihood of held-out data against enumeration, and the floor."""
import itertools
import math
from contextlib import nullcontext

import pytest
import torch

from conftest import ToyTask, TrueConditionals, random_model, task_config
from data import make_task
from data.puzzles import all_boards_4x4
from metrics import cuts, entropy_floor, held_out_likelihood, masks

CPU = torch.device("cpu")


class HeldOut(ToyTask):
    """A toy task with these held-out data."""

    def __init__(self, tokens, given=None):
        none = torch.zeros(len(tokens), self.A, dtype=torch.bool)
        self.tokens, self.given = tokens, none if given is None else given

    def held_out(self, num):
        return self.tokens[:num], self.given


def all_answers():
    answers = torch.tensor(list(itertools.product(range(2), repeat=4)))
    return torch.cat([torch.full((16, 1), ToyTask.BOS), answers], dim=1)


def test_the_bound_is_tight_for_the_truth():
    """For a model that knows the distribution the bound is the entropy.

    The held-out data are all 16 answers, so the mean is known; their weights differ.
    """
    tokens = all_answers()
    weights = torch.rand(16, generator=torch.Generator().manual_seed(3)) + 0.05
    model = TrueConditionals(ToyTask(), tokens[:, 1:], weights)
    nats, error, exact = held_out_likelihood(model, HeldOut(tokens), "mdm", "all", 16, 4000, CPU,
                                             nullcontext())
    expected = -(weights / weights.sum()).log().mean().item() / 4
    assert not exact and nats == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("window", ["all", "1", "2"])
def test_a_fixed_order_has_a_likelihood(window):
    """mtp: the mean over all cuts of -log p(next cell), by hand; also with a given cell."""
    tokens, W = all_answers()[:5], 4 if window == "all" else int(window)
    model = random_model(ToyTask())
    for given in (None, torch.tensor([[False, True, False, False]] * 5)):
        free = [c for c in range(4) if given is None or not given[0, c]]
        expected = []
        for row in tokens:
            total = 0.0
            for i, cell in enumerate(free):
                present = [0, *(1 + c for c in range(4) if c not in free or c < cell)]
                latents = [1 + c for c in free[i:i + W]]
                seen = torch.tensor(present + latents)
                noisy = torch.cat([row[present], torch.full((len(latents),), ToyTask.MASK)])
                logits = model(noisy[None], seen)[0, len(present)]
                total -= logits.log_softmax(dim=0)[row[1 + cell]].item()
            expected.append(total / len(free))
        nats, error, exact = held_out_likelihood(model, HeldOut(tokens, given), "mtp", window, 5,
                                                 1, CPU, nullcontext())
        assert exact and nats == pytest.approx(sum(expected) / 5, abs=1e-5)
        assert error == pytest.approx(torch.tensor(expected).std().item() / 5 ** 0.5, abs=1e-5)


def test_ar_is_the_chain_rule():
    tokens, model = all_answers()[:6], random_model(ToyTask())
    ranks = torch.arange(1, 6)
    logp = model(tokens, torch.arange(5), ranks).log_softmax(dim=2)[:, :-1]
    expected = -logp.gather(2, tokens[:, 1:, None])[:, :, 0].mean().item()
    nats, _, exact = held_out_likelihood(model, HeldOut(tokens), "ar", "all", 6, 1, CPU,
                                         nullcontext())
    assert exact and nats == pytest.approx(expected, abs=1e-5)


def test_masks_of_a_sample():
    """With as many draws as samples and cells, each sample has each m once; givens are spared."""
    levels = list(masks(torch.zeros(8, 8, dtype=torch.bool), 8, torch.Generator().manual_seed(0)))
    m = torch.stack([(level > 0).sum(dim=1) for level in levels])  # (draws, B)
    assert all(sorted(column) == list(range(1, 9)) for column in m.T.tolist())
    given = torch.eye(4, 6, dtype=torch.bool) | torch.eye(4, 6, dtype=torch.bool).roll(2, dims=1)
    for level in masks(given, 3, torch.Generator().manual_seed(0)):
        assert not ((level > 0) & given).any() and ((level > 0).sum(dim=1) >= 1).all()


def test_cuts_run_over_the_blanks():
    given = torch.tensor([[True, False, False], [False, False, False]])
    masked = [(level > 0).tolist() for level in cuts(given)]
    assert masked == [[[False, True, True], [True, True, True]],
                      [[False, False, True], [False, True, True]],
                      [[False, False, False], [False, False, True]]]


def test_floors():
    """log(288)/16, log(28,200,960)/36, log(6.67e21)/81: 0.35394, 0.47652 and 0.62040 nats."""
    floors = [entropy_floor(make_task(task_config(board_size=N))) for N in (4, 6, 9)]
    assert floors == pytest.approx([0.35394, 0.47652, 0.62040], abs=6e-6)
    assert entropy_floor(make_task(task_config("star"))) is None
    assert math.log(len(all_boards_4x4())) / 16 == floors[0]
