"""LRD: what a soft mask is made of, that it reaches the model, and when thinking ends."""
import math

import pytest
import torch
from conftest import keys_for, random_model
from test_decoders import puzzles, run  # noqa: F401

from decoders.board import Board
from decoders.refine import drift, look_soft, mixture
from diffusion import independent, joint

K, MASK = 4, 4


class FourSymbols:
    K, MASK = K, MASK


def test_a_soft_mask_by_hand():
    """a = mix (1 - H / log K); the nucleus is renormalised; no belief leaves the mask as it is."""
    embedding = torch.randn(6, 8)
    probs = torch.tensor([[[0.3, 0.5, 0.05, 0.15], [0.25] * 4, [0.0, 0.0, 1.0, 0.0]]])
    soft = mixture(embedding, probs, 0.2, 0.7, FourSymbols)
    entropy = -sum(p * math.log(p) for p in (0.3, 0.5, 0.05, 0.15))
    a = 0.2 * (1 - entropy / math.log(4))
    nucleus = (0.5 * embedding[1] + 0.3 * embedding[0]) / 0.8  # 0.5 < 0.7, so one more, no third
    assert torch.allclose(soft[0, 0], (1 - a) * embedding[MASK] + a * nucleus, atol=1e-6)
    assert torch.allclose(soft[0, 1], embedding[MASK], atol=1e-6)
    assert torch.allclose(soft[0, 2], 0.8 * embedding[MASK] + 0.2 * embedding[2], atol=1e-6)


def test_drift_is_the_mean_kl_of_unknown_cells():
    now = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    before = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    first, second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)
    for unknown, expected in (([True, True], (first + second) / 2), ([True, False], first)):
        found = drift(now, before, torch.tensor([unknown]))
        assert found.item() == pytest.approx(expected, abs=1e-6)
    assert drift(now, None, torch.tensor([[True, True]])).item() == math.inf
    assert drift(now, now, torch.tensor([[True, True]])).item() == 0


@pytest.mark.parametrize("ranks", (joint, independent))
def test_a_soft_mask_that_is_sure_is_a_committed_cell(puzzles, ranks):  # noqa: F811
    """Embeddings of MASK: what the board sees. Embeddings of symbols (mdm): as if committed."""
    task, start, answers = puzzles
    model = random_model(task)
    board = Board(model, task, ranks, start, keys_for(start))
    with torch.no_grad():
        masks = model.token.weight[task.MASK].expand(len(start), task.A, -1)
        assert torch.equal(look_soft(board, masks), board.look())
        if ranks is joint:
            full = torch.cat([start[:, :task.P], answers], dim=1)
            expected = board.forward(full, torch.arange(len(start)))
            assert torch.allclose(look_soft(board, model.token(answers)), expected, atol=1e-5)


@pytest.mark.parametrize("stop, refine, passes", (
    (0.0, 0, "one each"), (0.0, 3, "3 and one each"), (100.0, 0, "one, then the rest"),
    (100.0, 9, "calm at the second pass: one; then the rest")))
def test_when_thinking_ends(puzzles, stop, refine, passes):  # noqa: F811
    task, start, _ = puzzles
    u = task.blanks(start).sum(dim=1)
    _, stats, history = run(random_model(task), task, start, "lrd",
                            {"stop": stop, "refine": refine})
    expected = {"one each": u, "3 and one each": 3 + u,
                "one, then the rest": u.clamp(max=2)}.get(passes, 1 + u.clamp(max=2))
    assert torch.equal(stats["nfe"], expected)
    left = [task.blanks(now).sum(dim=1) for now in history]
    first = 0 if refine == 0 else 3 if stop == 0 else 1  # passes that commit nothing
    assert all(torch.equal(n, u) for n in left[:first]) and torch.equal(left[first], u - 1)


def test_the_mixture_matters_and_sidm_can_use_it(puzzles):  # noqa: F811
    """At mix = 0 thinking changes nothing but the cost; beliefs of a random model change answers.

    Under sidm no cell sees another's belief, only its own.
    """
    task, start, _ = puzzles
    model = random_model(task)
    for objective in ("mdm", "sidm"):
        knobs = {"stop": 0.0, "refine": 0, "order": "confidence"}
        plain = run(model, task, start, "plain", objective=objective)[0]
        hard = run(model, task, start, "lrd", {**knobs, "mix": 0.0}, objective=objective)[0]
        soft = run(model, task, start, "lrd", {**knobs, "mix": 1.0}, objective=objective)[0]
        assert torch.equal(hard, plain) and not torch.equal(soft, plain)
    again = run(model, task, start, "lrd", {"stop": 0.0, "mix": 0.0, "order": "confidence"})
    assert torch.equal(again[0], run(model, task, start, "plain")[0])
    assert torch.equal(again[1]["nfe"], task.blanks(start).sum(dim=1) + 20)


def test_neighbours_do_not_matter_at_any_temperature(puzzles):  # noqa: F811
    """Samples think for different numbers of passes; their random numbers are their own."""
    task, start, _ = puzzles
    model, knobs = random_model(task, seed=2), {"stop": 0.002, "mix": 0.2}
    tokens, stats, _ = run(model, task, start, "lrd", knobs, temperature=1.0)
    assert len((stats["nfe"] - task.blanks(start).sum(dim=1)).unique()) > 1
    for i in (1, 7):
        alone, one, _ = run(model, task, start[i:i + 1], "lrd", knobs, temperature=1.0)
        assert torch.equal(alone[0], tokens[i]) and one["nfe"][0] == stats["nfe"][i]
