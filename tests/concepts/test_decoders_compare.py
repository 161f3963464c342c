"""The comparison of all decoders: the same puzzles for all, paired differences, ceilings."""
import json

import pytest
import torch
from conftest import Oracle, random_model, task_config

import reproduce
from config import PRESETS
from data import make_task
from decoders import DECODERS, compare
from plumbing import report

CPU = torch.device("cpu")
SMALL = dict(PRESETS["sudoku9-cpu"], objective="mdm", board_size=4, train_size=20, width=16,
             depth=1, heads=2, batch_size=8, eval_samples=4, max_steps=2)


def test_bits_survive():
    for n in (1, 4, 5, 17):
        solved = torch.arange(n) % 3 == 0
        assert compare.from_hex(compare.to_hex(solved), n) == solved.tolist()
    assert compare.to_hex(torch.tensor([1, 0, 0, 0, 1]).bool()) == "88"


def test_paired_difference():
    """10 puzzles, 3 gained and 1 lost: by the formula for paired proportions, by hand."""
    a = [True] * 3 + [False] + [True] * 6
    b = [False] * 3 + [True] + [True] * 6
    d, half = compare.paired_difference(a, b)
    assert d == pytest.approx(0.2) and half == pytest.approx(1.96 * (0.36 / 10) ** 0.5)
    assert compare.paired_difference(a, a) == (0.0, 0.0)


def test_the_grid_shows_whole_sweeps():
    """Every decoder that has a sweep, at its default too, each setting once."""
    runs = compare.grid("own")
    for name, row in DECODERS.items():
        values = [r["knobs"][row.main] for r in runs if r["decoder"] == name
                  and list(r["knobs"]) == [row.main]]
        assert tuple(values[:len(row.sweep)]) == row.sweep
        assert not row.sweep or row.knobs[row.main].default in row.sweep
    assert len({json.dumps(r, sort_keys=True) for r in runs}) == len(runs)
    assert not [r for r in compare.grid("own", ceilings=()) if r["decoder"] in compare.CEILINGS]


def evaluate(model, task, name, start, references, **more):
    from contextlib import nullcontext
    asked = {"test": "own", "decoder": name, "knobs": {}, **more}
    return compare.evaluate_decoder(model, task, "mdm", asked, start, references, 0, CPU,
                                    nullcontext())


def test_a_ceiling_is_one(data_dir):
    """With a model that knows all, two passes of an oracle are none too few; with one that knows
    nothing, an oracle's order still fills every cell, with wrong symbols."""
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, answers = task.test_set(6)
    for name in compare.CEILINGS:
        row = evaluate(Oracle(task, start, answers), task, name, start, answers)
        assert row["solved"] == 6 and row["solved_bits"] == "fc"
        blind = evaluate(random_model(task), task, name, start, answers)
        assert blind["solved"] < 6
    one = evaluate(Oracle(task, start, answers), task, "oracle: all right guesses", start, answers)
    assert one["nfe"] == 1


def test_a_board_that_was_right_and_is_lost_is_counted(data_dir):
    """A model that is right in its first pass, and wrong as soon as a cell has been committed."""
    task = make_task(task_config("sudoku", data_dir=data_dir))
    start, answers = task.test_set(6)
    oracle, blank = Oracle(task, start, answers), task.blanks(start).sum(dim=1)

    def fickle(tokens, positions, rank=None, cache=None):
        logits = oracle(tokens, positions, rank)
        most = blank[oracle.rows(tokens, positions.expand_as(tokens), rank)]
        begun = (tokens == task.MASK).sum(dim=1) < most
        return torch.where(begun[:, None, None], logits.roll(1, dims=2), logits)

    row = evaluate(fickle, task, "plain", start, answers)
    assert row["solved"] == 0 and row["once_right"] == 6
    assert evaluate(oracle, task, "plain", start, answers)["once_right"] == 0


def test_the_preset_runs_and_is_reported(tmp_path, monkeypatch, data_dir, capsys):
    """Training, every decoder, tables from the files; plain differs from itself by nothing."""
    few = [r for r in compare.grid("own") if r["knobs"] in ({}, {"k": 1}, {"tau": 0.9}, {"k": 4})]
    boards = dict(SMALL, task="sudoku-gen", train_size=288)
    monkeypatch.setitem(reproduce.FINDINGS, "decoders", (
        reproduce.Run("puzzles", dict(SMALL, data_dir=data_dir), tuple(few)),
        reproduce.Run("boards", dict(boards, data_dir=data_dir), tuple(
            r for r in few if r["decoder"] not in compare.CEILINGS))))
    folder = str(tmp_path / "results")
    reproduce.main(["--preset", "decoders", "--seeds", "2", "--num", "10", "--device", "cpu",
                    "--results", folder, "--out", str(tmp_path / "out")])
    found = report.load_results(folder, reproduce.order())
    assert len(found["decoders"]) == 4
    groups = compare.pooled(found["decoders"])
    assert set(groups) == {("puzzles", "own"), ("boards", "own")}
    for rows in groups.values():
        plain = next(r for r in rows if r["decoder"] == "plain" and r["knobs"] == {"k": 1})
        assert plain["difference"] == (0.0, 0.0) and plain["num"] == 20 and plain["seeds"] == 2
    texts = report.tables(folder, reproduce.order())
    assert "| threshold | tau = 0.9 |" in texts["decoders"] and "decoders" not in texts["table"]
    assert texts["decoders"] in capsys.readouterr().out
