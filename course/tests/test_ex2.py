"""Exercise 2: the distributions of the masks, and the bound by enumeration."""
import itertools
import math

import pytest
import torch
from stubs import Table, Toy, gen, logits, raw

from diffusion import draw_levels, draw_num_masked, masked_loss

X = torch.tensor([[Toy.BOS, 0, 2, 1, 1]])
FOUR, NONE = torch.tensor([4]), torch.zeros(1, 4, dtype=torch.bool)


def test_m_is_in_1_to_the_maskable_cells_and_stratified():
    assert draw_num_masked(FOUR.expand(400), gen()).bincount().tolist() == [0, *[100] * 4]
    maskable = torch.tensor([1, 2, 3, 4] * 50)
    m = draw_num_masked(maskable, gen())
    assert (m >= 1).all() and (m <= maskable).all() and (m[maskable == 4] == 4).any()


@pytest.mark.parametrize("rates, counts", [((2.0, 1.0, 0.0), [0, 100, 300, 500, 700]),
                                           ((1.0, 2.0, 0.0), [0, 700, 500, 300, 100])])
def test_other_rates(rates, counts):
    """P(at most m of 4 are masked) = 1 - (1 - (m / 4)^a)^b; at (2, 1) it is (m / 4)^2."""
    assert draw_num_masked(FOUR.expand(1600), gen(), rates).bincount().tolist() == counts
    level = draw_levels(NONE.expand(1600, 4), gen(), rates=rates)
    assert (level > 0).sum(dim=1).bincount().tolist() == counts


def test_a_fourth_of_the_batch_is_uniform():
    m = draw_num_masked(FOUR.expand(1600), gen(), (2.0, 1.0, 0.25))
    assert m[:400].bincount().tolist() == [0, 100, 100, 100, 100]
    assert m[400:].bincount().tolist() == [0, 75, 225, 375, 525]


def test_levels_are_1_to_m():
    level = draw_levels(NONE.expand(400, 4), gen())
    m = (level > 0).sum(dim=1)
    assert m.bincount().tolist() == [0, 100, 100, 100, 100]
    for row, count in zip(level.tolist(), m.tolist()):
        assert sorted(t for t in row if t > 0) == list(range(1, count + 1))


def test_every_cell_is_as_likely():
    """Each cell is masked in (A + 1) / 2A of the samples; 6 standard errors."""
    rate = (draw_levels(NONE.expand(4000, 4), gen()) > 0).float().mean(dim=0)
    assert (rate - 0.625).abs().max() < 0.046


def test_left_to_right_masks_a_suffix():
    level = draw_levels(NONE.expand(40, 4), gen(), left_to_right=True).clamp(min=0)
    suffixes = {(0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4)}
    assert {tuple(row) for row in level.tolist()} == suffixes


@pytest.mark.parametrize("left_to_right", [False, True])
def test_given_cells_are_never_masked(left_to_right):
    given = torch.tensor([[False, True, False, True]]).expand(200, 4)
    level = draw_levels(given, gen(), left_to_right)
    assert not (level[given] > 0).any()
    assert (level > 0).sum(dim=1).bincount().tolist() == [0, 100, 100]


def test_what_the_model_is_given():
    model, level = Table(logits()), torch.tensor([[2, 0, 1, -1]])
    masked_loss(model, X, level, 4, Toy, raw)
    (tokens, positions, rank), = model.calls
    assert tokens.tolist() == [[Toy.BOS, Toy.MASK, 2, Toy.MASK, 1]]
    assert positions.tolist() == [[0, 1, 2, 3, 4]] and rank.tolist() == [[0, 2, 0, 1, -1]]


@pytest.mark.parametrize("W, cells", [(4, (0, 2, 3)), (2, (2, 3)), (1, (3,))])
def test_the_mean_over_the_first_W_masked_cells(W, cells):
    model, level = Table(logits()), torch.tensor([[3, 0, 2, 1]])
    loss = masked_loss(model, X, level, W, Toy, raw)
    logp = model.logits.log_softmax(dim=1)
    expected = -sum(logp[1 + cell, X[0, 1 + cell]] for cell in cells) / len(cells)
    assert loss.shape == (1,) and loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_every_reading_has_a_loss():
    model, level = Table(logits()), torch.tensor([[2, 0, 1, 0]])
    both = masked_loss(model, X, level, 4, Toy, raw, read_every=1)  # (R, B)
    reverse = Table(model.logits.flip(-1))
    each = [masked_loss(one, X, level, 4, Toy, raw) for one in (reverse, model)]
    torch.testing.assert_close(both, torch.stack(each))


class Truth:
    """A 'model' that knows a distribution over the 81 answers: log p(cell | what is known)."""

    def __init__(self):
        self.answers = torch.tensor(list(itertools.product(range(3), repeat=4)))  # (81, 4)
        self.p = torch.rand(81, generator=gen(3)) + 0.05
        self.p = self.p / self.p.sum()

    def __call__(self, tokens, positions, rank=None, read_every=0):
        known = tokens[:, None, 1:] == Toy.MASK  # (B, 1, 4)
        fits = (known | (tokens[:, None, 1:] == self.answers)).all(dim=2) * self.p  # (B, 81)
        symbols = torch.nn.functional.one_hot(self.answers, 3).float()  # (81, 4, 3)
        probs = torch.einsum("bm,mak->bak", fits / fits.sum(dim=1, keepdim=True), symbols)
        return torch.nn.functional.pad(probs.log().clamp(min=-50), (0, 0, 1, 0))


def test_the_bound_is_tight_for_the_truth():
    """Over all masks of four cells, m uniform: the mean loss is -log p(x) / 4, exactly."""
    model, total = Truth(), 0.0
    for m in range(1, 5):
        for cells in itertools.combinations(range(4), m):
            level = torch.zeros(1, 4, dtype=torch.long)
            level[0, list(cells)] = torch.arange(1, m + 1)
            total += masked_loss(model, X, level, 4, Toy, raw).item() / (4 * math.comb(4, m))
    row = int((model.answers == X[0, 1:]).all(dim=1).nonzero())
    assert total == pytest.approx(-model.p[row].log().item() / 4, abs=1e-5)


def test_the_loss_is_an_estimate_of_the_bound():
    """Masks from draw_levels() in place of all masks: within 6 standard errors."""
    model = Truth()
    row = int((model.answers == X[0, 1:]).all(dim=1).nonzero())
    level = draw_levels(NONE.expand(4000, 4), gen())
    loss = masked_loss(model, X.expand(4000, 5), level, 4, Toy, raw)
    error = loss.std().item() / 4000 ** 0.5
    assert abs(loss.mean().item() + model.p[row].log().item() / 4) < 6 * error
