"""The comparison of all decoders: the same puzzles for all, paired differences, upper bounds."""
import json
from contextlib import nullcontext

import pytest
import torch
from boards import ANSWERS, COUNT, PUZZLES, START
from conftest import Oracle, random_model

import reproduce
import reproduce
from config import PRESETS
from decoders import DECODERS
from plumbing import decoder_tables, report
from studies import compare

SMALL = dict(PRESETS["sudoku9-cpu"], objective="mdm", board_size=4, train_size=20, width=16,
             depth=1, heads=2, batch_size=8, eval_samples=4, max_steps=2)


def test_bits_survive():
    for n in (1, 4, 5, 17):
        solved = torch.arange(n) % 3 == 0
        assert decoder_tables.from_hex(decoder_tables.to_hex(solved), n) == solved.tolist()
    assert decoder_tables.to_hex(torch.tensor([1, 0, 0, 0, 1]).bool()) == "88"


def test_paired_difference():
    """10 puzzles, 3 gained and 1 lost: by the formula for paired proportions, by hand."""
    a = [True] * 3 + [False] + [True] * 6
    b = [False] * 3 + [True] + [True] * 6
    d, half = decoder_tables.paired_difference(a, b)
    assert d == pytest.approx(0.2) and half == pytest.approx(1.96 * (0.36 / 10) ** 0.5)
    assert decoder_tables.paired_difference(a, a) == (0.0, 0.0)


def test_the_grid_shows_whole_sweeps():
    """Every decoder that has a sweep, at its default too, each setting once."""
    runs = compare.grid("in-house")
    for name, spec in DECODERS.items():
        values = [r["decoder_params"][spec.main] for r in runs if r["decoder"] == name
                  and list(r["decoder_params"]) == [spec.main]]
        assert tuple(values[:len(spec.sweep)]) == spec.sweep
        assert not spec.sweep or spec.params[spec.main].default in spec.sweep
    assert len({json.dumps(r, sort_keys=True) for r in runs}) == len(runs)
    without = compare.grid("in-house", ceilings=())
    assert not [r for r in without if r["decoder"] in compare.CEILINGS]


def evaluate(model, name):
    asked = {"test": "in-house", "decoder": name, "decoder_params": {}}
    return compare.evaluate_decoder(model, PUZZLES, "mdm", asked, START, ANSWERS, 0,
                                    torch.device("cpu"), nullcontext())


@pytest.mark.parametrize("name", compare.CEILINGS)
def test_an_upper_bound_is_one(name):
    """It solves all with a model that knows all; with one that knows nothing it still fills every
    cell, with wrong symbols."""
    row = evaluate(Oracle(PUZZLES, START, ANSWERS), name)
    assert row["solved"] == 12 and row["solved_bits"] == "fff"
    assert row["nfe"] == (1 if name == "oracle: all right guesses" else COUNT.double().mean())
    assert evaluate(random_model(PUZZLES), name)["solved"] < 12
    assert row["order"] == row["latents"] == row["tokens_per_step"] == "-"  # nobody chose them


def test_a_board_that_was_right_and_is_lost_is_counted():
    """A model that is right in its first pass, and wrong as soon as a cell has been committed."""
    oracle = Oracle(PUZZLES, START, ANSWERS)

    def fickle(tokens, positions, rank=None):
        logits = oracle(tokens, positions, rank)
        most = COUNT[oracle.rows(tokens, positions.expand_as(tokens), rank)]
        begun = (tokens == PUZZLES.MASK).sum(dim=1) < most
        return torch.where(begun[:, None, None], logits.roll(1, dims=2), logits)

    row = evaluate(fickle, "plain")
    assert row["solved"] == 0 and row["once_right"] == 12
    assert evaluate(oracle, "plain")["once_right"] == 0


def test_the_preset_runs_and_is_reported(tmp_path, monkeypatch, data_dir):
    """Training, every decoder, rows from the files; plain differs from itself by nothing."""
    few = [r for r in compare.grid("in-house")
           if r["decoder_params"] in ({}, {"k": 1}, {"tau": 0.9}, {"k": 4})]
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
    rows = report.pool_seeds(found["decoders"])
    assert {r["run"] for r in rows} == {"puzzles", "boards"}
    plain = [r for r in rows if (r["decoder"], r["decoder_params"]) == ("plain", "k=1")]
    assert [(r["gain"], r["num"], r["seeds"]) for r in plain] == [(0, 20, 2)] * 2
    assert {("threshold", "tau=0.9")} <= {(r["decoder"], r["decoder_params"]) for r in rows}
    assert {r["order"] for r in rows} == {None}  # nobody chose it
