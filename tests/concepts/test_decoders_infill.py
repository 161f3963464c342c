"""Reasoning as infilling (decoders/infill.py, studies/traces.py): what is asked, when it comes,
when the model is confident of it, and the posterior over reasoning."""
import json
import math

import pytest
import torch
from boards import (ANSWERS, BLANKS, BOARDS, COUNT, PUZZLES, START, Opinions, board_of, check_alone,
                    generator, run)
from conftest import TINY, Oracle, TrueConditionals, empty, keys_for, random_model, task_config

from data import make_task
from decoders.infill import asked_cells
from errors import BadInput
from studies import traces

ASKED = asked_cells(PUZZLES, START)


def test_what_a_star_asks_is_its_second_node():
    task = make_task(task_config("star"))
    start, _ = task.test_set(3)
    assert asked_cells(task, start).tolist() == [[False, True, False]] * 3
    assert asked_cells(task, start, "end").tolist() == [[False, False, True]] * 3


def test_what_planning_asks_is_the_node_behind_the_fork():
    """Against the shared node, found by counting neighbours, and the right path."""
    task = make_task(task_config("planning"))
    start, answers = task.test_set(200)
    asked, kinds = asked_cells(task, start), set()
    for prompt, answer, cells in zip(start[:, :task.P].tolist(), answers.tolist(), asked.tolist()):
        tails, heads = prompt[0:-2:2], prompt[1:-2:2]
        shared = next(v for v in tails + heads if tails.count(v) > 1 or heads.count(v) > 1)
        path = answer[0:1] + answer[1::2]
        node = path[min(path.index(shared) + 1, 5)]
        kinds.add(path.index(shared))
        assert cells == [v == node for v in answer]
    assert kinds == set(range(6))
    assert (asked_cells(task, start, "end").nonzero()[:, 1] == 9).all()


def test_what_a_board_asks_is_the_blanks_of_its_last_row():
    assert torch.equal(ASKED[:, 12:], BLANKS[:, 12:]) and not ASKED[:, :12].any()
    assert torch.equal(asked_cells(PUZZLES, START, "end")[:, 15], BLANKS[:, 15])
    assert torch.equal(asked_cells(PUZZLES, START, "all"), BLANKS)
    assert not BLANKS[:, 12:].all()  # some are given, and a given cell is never asked


@pytest.mark.parametrize("region", ("asked", "end"))
def test_the_asked_cells_come_first_or_last(region):
    model, asked, seen = random_model(PUZZLES), asked_cells(PUZZLES, START, region), {}
    for order in ("first", "last", "free"):
        _, stats, history = run(model, "infill", dict(gamma=0.0, order=order, region=region))
        unknown = torch.stack([PUZZLES.blanks(now) for now in history])  # (steps, B, A)
        left_asked = (unknown & asked).sum(dim=2)  # (steps, B)
        left_rest = (unknown & ~asked).sum(dim=2)
        untouched_rest = left_rest == (BLANKS & ~asked).sum(dim=1)
        untouched_asked = left_asked == asked.sum(dim=1)
        seen[order] = (((left_asked == 0) | untouched_rest).all().item(),
                       ((left_rest == 0) | untouched_asked).all().item())
        assert torch.equal(stats["nfe"], COUNT)
    assert asked.any() and seen == {"first": (True, False), "last": (False, True),
                                    "free": (False, False)}


def opinions():
    """Logits (A, K): every cell certain (H = 0), the last row less and less -> and its H."""
    logits = torch.full((16, 4), -200.0)
    logits[:, 2] = 0.0
    for cell, other in zip(range(12, 16), (-4.0, -3.0, -2.0, -1.0)):
        logits[cell, 0] = other
    return logits, torch.distributions.Categorical(logits=logits[12:]).entropy().tolist()


@pytest.mark.parametrize("aggregate", ("mean", "max", "sum"))
def test_exit_as_soon_as_the_aggregate_is_below_gamma(aggregate):
    """Asked cells first: the most confident of four goes at each pass; a known cell is certain."""
    logits, H = opinions()
    assert H == sorted(H)
    total = {"mean": lambda h: sum(h) / 4, "max": max, "sum": sum}[aggregate]
    levels = [total([*H[known:], *[0.0] * known]) for known in range(5)]  # known cells have none
    for gamma in (level * factor for level in levels[:4] for factor in (1.001, 0.999)):
        passes = 1 + next(known for known in range(5) if levels[known] < gamma)
        _, stats, history = run(Opinions(logits), "infill", dict(
            gamma=gamma, order="first", aggregate=aggregate), start=empty(BOARDS, 1), task=BOARDS)
        assert stats["nfe"].item() == len(history) == passes
        assert stats["tokens"].item() == passes * BOARDS.S


def test_the_exit_commits_what_this_pass_says():
    """And only in the samples that are certain: a board with an uncertain last row goes on."""
    start = empty(BOARDS, 2)
    start[1, 13:] = torch.tensor([0, 1, 2, 3])  # nothing is asked: all of it is, then
    certain = opinions()[0]
    certain[:, 0] = torch.arange(16.0) - 1000  # certain everywhere

    def exits(logits, **params):
        return run(Opinions(logits), "infill", params, start=start, task=BOARDS)

    tokens, stats, _ = exits(certain)
    assert stats["nfe"].tolist() == [1, 1] and (tokens[0, 1:] == 2).all()
    certain[0, 0] = 0.0  # a coin in a cell that only the second is asked for
    assert 0.05 < math.log(2) / 12 < 0.06
    assert exits(certain, gamma=0.05)[1]["nfe"].tolist() == [1, 12]
    assert exits(certain, gamma=0.06)[1]["nfe"].tolist() == [1, 1]


def test_sampling_with_the_answer_clamped_is_sampling_from_the_posterior(boards4):
    """Exact conditionals: the 12 boards of a last row come equally often, and no other."""
    start, board = empty(BOARDS, 1200), boards4[:1].expand(1200, -1)
    clamped = traces.clamp(BOARDS, start, board, asked_cells(BOARDS, start))
    tokens, _, history = run(TrueConditionals(BOARDS, boards4), "infill", {"gamma": 0.0}, 1.0,
                             start=clamped, task=BOARDS)
    assert all(torch.equal(now[:, -4:], board[:, -4:]) for now in history)
    found, times = tokens[:, 1:].unique(dim=0, return_counts=True)
    assert torch.equal(found, boards4[(boards4[:, 12:] == board[0, 12:]).all(dim=1)].unique(dim=0))
    chi2 = ((times - 100.0) ** 2 / 100).sum().item()
    assert len(found) == 12 and chi2 < 31.3  # 11 degrees of freedom: once in a thousand seeds


def test_the_score_of_a_trace_is_the_answers_log_probability(boards4):
    """Nothing known: four fair digits. Three rows known: the fourth is certain, right or wrong."""
    start, board = empty(BOARDS, 300), boards4[:1].expand(300, -1)
    model = TrueConditionals(BOARDS, boards4)
    scores, valid = traces.score_traces(model, BOARDS, "mdm", start, board,
                                        asked_cells(BOARDS, start), keys_for(start))
    assert scores.shape == (300, 4) and valid.all()
    assert torch.allclose(scores[:, 0], torch.tensor(-4 * math.log(4)))
    found, _, _ = run(model, "infill", dict(gamma=0.0, order="last"), 1.0, start=start, task=BOARDS)
    same = (found[:, -4:] == board[:, -4:]).all(dim=1)
    assert 0 < same.sum() < 300
    assert torch.allclose(scores[same, 3], torch.tensor(0.0), atol=1e-5)
    assert (scores[~same, 3] < -100).all()
    between = scores[same, 1:3].mean(dim=0).tolist()
    assert -4 * math.log(4) < between[0] < between[1] < 0


def scores_of(model, rows=slice(None), some=ASKED.any(dim=1)):
    start, answers, asked = (x[some][rows] for x in (START, ANSWERS, ASKED))
    return traces.score_traces(model, PUZZLES, "mdm", start, answers, asked, keys_for(start))


def test_scores_do_not_depend_on_the_neighbours():
    """Rows of reasoning of unequal length: a third of one's own."""
    model = random_model(PUZZLES)
    scores, _ = scores_of(model)
    assert not scores.isnan().any() and (scores < 0).all()
    for i in (0, 4):
        assert torch.allclose(scores_of(model, slice(i, i + 1))[0][0], scores[i], atol=1e-4)
    scores, valid = scores_of(Oracle(PUZZLES, START, ANSWERS))
    assert valid.all() and (scores > -1e-5).all()


def test_scoring_costs_a_probe_each(monkeypatch):
    """One pass per committed cell and one per score: half a trace is scored at half a trace."""
    board = board_of(random_model(PUZZLES), temperature=1.0)
    monkeypatch.setattr(traces, "Board", lambda *args, **kw: board)
    traces.score_traces(board.model, PUZZLES, "mdm", START, ANSWERS, ASKED, board.keys)
    r = (BLANKS & ~ASKED).sum(dim=1)
    probes = torch.tensor([len({round(n * third / 3) for third in range(4)}) for n in r.tolist()])
    assert torch.equal(board.nfe, COUNT + probes)


def test_auc():
    score = torch.tensor([3.0, 2.0, 1.0, 2.0, 0.0])
    valid = torch.tensor([True, True, False, False, False])
    value, (low, high) = traces.auc(score, valid)  # pairs won: 3 and 2.5 of 3
    assert value == pytest.approx(5.5 / 6)
    # DeLong: variance of (1, 5/6) over 2, of (1, 3/4, 1) over 3
    half = 1.96 * ((1 / 12) ** 2 * 2 / 2 + ((1 / 6) ** 2 + 2 * (1 / 12) ** 2) / 2 / 3) ** 0.5
    assert low == pytest.approx(value - half) and high == min(1.0, value + half)
    assert traces.auc(-score, valid)[0] == pytest.approx(0.5 / 6)
    assert traces.auc(score, torch.tensor([True] * 4 + [False])) is None
    value, (low, high) = traces.auc(torch.rand(4000, generator=generator()),
                                    torch.arange(4000) < 900)
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * (1 / 12 * (
        1 / 900 + 1 / 3100)) ** 0.5, rel=0.1)  # the variance of ranks of uniform numbers


def test_the_command(tmp_path, data_dir, capsys):
    import train
    out, file = tmp_path / "star", tmp_path / "traces.json"
    argv = ["--task", "star", "--path-len", "3", "--labels", "9", "--objective", "mdm", *TINY]
    assert not train.main(argv + ["--data-dir", data_dir, "--out", str(out)])
    capsys.readouterr()
    traces.main(["--ckpt", str(out / "ckpt.pt"), "--num", "20", "--device", "cpu", "--json",
                 str(file)])
    printed, rows = capsys.readouterr().out, json.loads(file.read_text())["rows"]
    assert printed.count("\n") == 2 + len(rows) and "AUC" in printed
    rows = {r["name"]: r for r in rows}
    assert rows["order free"]["nfe"] == 3
    clamped = rows["sampled, answer clamped"]
    assert clamped["right"] == clamped["num"] == 20 and clamped["nfe"] == 2
    sampled, those = rows["sampled"], rows["sampled, of those with the right answer"]
    assert those["num"] == sampled["right"] and those["valid"] == sampled["valid"]


@pytest.mark.parametrize("name, words", (("star", "this one is mtp"),
                                         ("mdm", "sudoku-gen has no right answer")))
def test_what_the_command_refuses(name, words, tiny_checkpoints):
    with pytest.raises(BadInput) as e:
        traces.main(["--ckpt", str(tiny_checkpoints[name]), "--num", "2", "--device", "cpu"])
    assert words in str(e.value) and "\n" not in str(e.value)
