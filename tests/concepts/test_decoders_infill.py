"""Reasoning as infilling: what is asked, when it comes, when it is sure, and the posterior."""
import json
import math

import pytest
import torch
from conftest import TINY, Oracle, TrueConditionals, empty, keys_for, random_model, task_config

import decoders
from data import make_task
from decoders import traces
from decoders.board import Board
from decoders.infill import asked_cells
from objectives import OBJECTIVES, Dials
from plumbing.cli import BadInput


def run(model, task, start, temperature=0.0, **knobs):
    """-> tokens, stats, history of decoder infill."""
    row, history = decoders.DECODERS["infill"], []
    knobs = {k: knob.default for k, knob in row.knobs.items()} | knobs
    dials = Dials("", 1, 0, 1, temperature, decoder="infill", knobs=knobs)
    tokens, stats = decoders.decode(model, task, "mdm", start, dials, keys_for(start), history)
    assert not stats["confidence"].requires_grad  # gradients of every pass would fill the memory
    return tokens, stats, [step.tokens for step in history]


@pytest.fixture(scope="module")
def puzzles(data_dir):
    task = make_task(task_config("sudoku", data_dir=data_dir))
    return task, *task.test_set(12)


# -- what is asked --


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


def test_what_a_board_asks_is_the_blanks_of_its_last_row(puzzles):
    task, start, _ = puzzles
    asked = asked_cells(task, start)
    blanks = task.blanks(start)
    assert torch.equal(asked[:, 12:], blanks[:, 12:]) and not asked[:, :12].any()
    assert torch.equal(asked_cells(task, start, "end")[:, 15], blanks[:, 15])
    assert torch.equal(asked_cells(task, start, "all"), blanks)
    assert not blanks[:, 12:].all()  # some are given, and a given cell is never asked


# -- when it comes --


@pytest.mark.parametrize("region", ("asked", "end"))
def test_the_asked_cells_come_first_or_last(region, puzzles):
    task, start, _ = puzzles
    model, blanks = random_model(task), task.blanks(start)
    asked = asked_cells(task, start, region)
    seen = {}
    for order in ("first", "last", "free"):
        _, stats, history = run(model, task, start, gamma=0.0, order=order, region=region)
        unknown = torch.stack([now[:, task.P:] == task.MASK for now in history])  # (steps, B, A)
        left_asked = (unknown & asked).sum(dim=2)  # (steps, B)
        left_rest = (unknown & ~asked).sum(dim=2)
        untouched_rest = left_rest == (blanks & ~asked).sum(dim=1)
        untouched_asked = left_asked == asked.sum(dim=1)
        seen[order] = (((left_asked == 0) | untouched_rest).all().item(),
                       ((left_rest == 0) | untouched_asked).all().item())
        assert torch.equal(stats["nfe"], blanks.sum(dim=1))
    has = asked.any(dim=1)
    assert has.any() and seen == {"first": (True, False), "last": (False, True),
                                  "free": (False, False)}


# -- when it is sure --


class Fixed:
    """A model of one opinion: logits (A, K), whatever it is shown."""

    def __init__(self, task, logits):
        self.task, self.logits = task, logits

    def __call__(self, tokens, positions, rank=None, cache=None):
        full = torch.nn.functional.pad(self.logits, (0, 0, self.task.P, 0))
        return full.expand(len(tokens), -1, -1)


def opinions(task):
    """Logits (A, K): every cell sure (H = 0), but those of the last row less and less -> and H."""
    logits = torch.full((task.A, task.K), -200.0)
    logits[:, 2] = 0.0
    for cell, other in zip(range(12, 16), (-4.0, -3.0, -2.0, -1.0)):
        logits[cell, 0] = other
    return logits, torch.distributions.Categorical(logits=logits[12:]).entropy().tolist()


@pytest.mark.parametrize("aggregate", ("mean", "max", "sum"))
def test_exit_as_soon_as_the_aggregate_is_below_gamma(aggregate):
    """Asked cells first, so the surest of four goes at each pass, and what is known is certain."""
    task = make_task(task_config())
    start, (logits, H) = empty(task, 1), opinions(task)
    assert H == sorted(H)
    total = {"mean": lambda h: sum(h) / 4, "max": max, "sum": sum}[aggregate]
    levels = [total([*H[known:], *[0.0] * known]) for known in range(5)]  # known cells have none
    for level in levels[:4]:
        for gamma in (level * 1.001, level * 0.999):
            passes = 1 + next(known for known in range(5) if levels[known] < gamma)
            _, stats, history = run(Fixed(task, logits), task, start, gamma=gamma, order="first",
                                    aggregate=aggregate)
            assert stats["nfe"].item() == len(history) == passes
            assert stats["tokens"].item() == passes * task.S


def test_the_exit_commits_what_this_pass_says():
    """And only in the samples that are sure: a board with an unsure last row goes on."""
    task = make_task(task_config())
    start, (logits, H) = empty(task, 2), opinions(task)
    start[1, task.P + 12:] = torch.tensor([0, 1, 2, 3])  # nothing is asked: all of it is, then
    sure = logits.clone()
    sure[:, 0] = torch.arange(16.0) - 1000  # sure everywhere
    tokens, stats, _ = run(Fixed(task, sure), task, start)
    assert stats["nfe"].tolist() == [1, 1] and (tokens[0, task.P:] == 2).all()
    sure[0, 0] = 0.0  # a coin in a cell that only the second is asked for
    _, stats, _ = run(Fixed(task, sure), task, start, gamma=0.05)
    assert stats["nfe"].tolist() == [1, 12] and math.log(2) / 12 > 0.05
    _, stats, _ = run(Fixed(task, sure), task, start, gamma=0.06)
    assert stats["nfe"].tolist() == [1, 1] and math.log(2) / 12 < 0.06


# -- the posterior --


def test_sampling_with_the_answer_clamped_is_sampling_from_the_posterior(boards4):
    """Exact conditionals: the 12 boards of a last row come equally often, and no other."""
    task, num = make_task(task_config()), 1200
    start, board = empty(task, num), boards4[:1].expand(num, -1)
    clamped = traces.clamp(task, start, board, asked_cells(task, start))
    tokens, _, history = run(TrueConditionals(task, boards4), task, clamped, 1.0, gamma=0.0)
    for now in history:
        assert torch.equal(now[:, -4:], board[:, -4:])
    drawn, times = tokens[:, task.P:].unique(dim=0, return_counts=True)
    assert torch.equal(drawn, boards4[(boards4[:, 12:] == board[0, 12:]).all(dim=1)].unique(dim=0))
    chi2 = ((times - 100.0) ** 2 / 100).sum().item()
    assert len(drawn) == 12 and chi2 < 31.3  # 11 degrees of freedom: once in a thousand seeds


def test_the_score_of_a_trace_is_the_answers_log_probability(boards4):
    """Nothing known: four fair digits. Three rows known: the fourth is certain, right or wrong."""
    task, num = make_task(task_config()), 300
    start, board = empty(task, num), boards4[:1].expand(num, -1)
    model, asked, keys = TrueConditionals(task, boards4), asked_cells(task, start), keys_for(start)
    scores, valid = traces.score_traces(model, task, "mdm", start, board, asked, keys)
    assert scores.shape == (num, 4) and valid.all()
    assert torch.allclose(scores[:, 0], torch.tensor(-4 * math.log(4)))
    drawn, _, _ = run(model, task, start, 1.0, gamma=0.0, order="last")
    same = (drawn[:, -4:] == board[:, -4:]).all(dim=1)
    assert 0 < same.sum() < num
    assert torch.allclose(scores[same, 3], torch.tensor(0.0), atol=1e-5)
    assert (scores[~same, 3] < -100).all()
    between = scores[same, 1:3].mean(dim=0).tolist()
    assert -4 * math.log(4) < between[0] < between[1] < 0


def test_scores_do_not_depend_on_the_neighbours(puzzles):
    """Rows of reasoning of unequal length: a third of one's own."""
    task, start, answers = puzzles
    asked = asked_cells(task, start)
    start, answers, asked = (x[asked.any(dim=1)] for x in (start, answers, asked))
    model, keys = random_model(task), keys_for(start)
    together, valid = traces.score_traces(model, task, "mdm", start, answers, asked, keys)
    assert not together.isnan().any() and (together < 0).all()
    for i in (0, 4):
        alone, _ = traces.score_traces(model, task, "mdm", start[i:i + 1], answers[i:i + 1],
                                       asked[i:i + 1], keys[i:i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-4)
    scores, valid = traces.score_traces(Oracle(task, start, answers), task, "mdm", start, answers,
                                        asked, keys)
    assert valid.all() and (scores > -1e-5).all()


def test_scoring_costs_a_probe_each(puzzles, monkeypatch):
    """One pass per committed cell and one per score: half a trace is scored at half a trace."""
    task, start, answers = puzzles
    asked = asked_cells(task, start)
    boards = []
    monkeypatch.setattr(traces, "Board", lambda *a, **kw: boards.append(Board(*a, **kw))
                        or boards[0])
    traces.score_traces(random_model(task), task, "mdm", start, answers, asked, keys_for(start))
    r = (task.blanks(start) & ~asked).sum(dim=1)
    probes = torch.tensor([len({round(n * third / 3) for third in range(4)}) for n in r.tolist()])
    assert torch.equal(boards[0].nfe, task.blanks(start).sum(dim=1) + probes)
    assert OBJECTIVES["mdm"].ranks is boards[0].ranks


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
    generator = torch.Generator().manual_seed(0)
    value, (low, high) = traces.auc(torch.rand(4000, generator=generator), torch.arange(4000) < 900)
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * (1 / 12 * (
        1 / 900 + 1 / 3100)) ** 0.5, rel=0.1)  # the variance of ranks of uniform numbers


# -- the command --


def test_the_command(tmp_path, data_dir, capsys):
    import train
    out = tmp_path / "star"
    argv = ["--task", "star", "--path-len", "3", "--labels", "9", "--objective", "mdm", *TINY]
    assert not train.main(argv + ["--data-dir", data_dir, "--out", str(out)])
    file = tmp_path / "traces.json"
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


def test_what_the_command_refuses(tiny_checkpoints, capsys):
    for name, words in (("star", "this one is mtp"), ("mdm", "sudoku-gen has no right answer")):
        with pytest.raises(BadInput) as e:
            traces.main(["--ckpt", str(tiny_checkpoints[name]), "--num", "2", "--device", "cpu"])
        assert words in str(e.value) and "\n" not in str(e.value)
