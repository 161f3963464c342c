"""The command line of sample.py: output, exit codes, hostile files. In one process through main(argv)."""
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sample
from sample import run
from test_data import LINE

ROOT = Path(__file__).parent.parent
KEYS = {"task", "objective", "params", "num", "solved", "exact", "cell_acc", "order", "latents", "nfe", "tokens", "seconds"}


@pytest.fixture
def puzzle_file(tmp_path):
    file = tmp_path / "puzzles.txt"
    file.write_text("# two\n" + LINE + "\n\n" + LINE.replace(" ", ",") + "\n", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("objective", ["mdm", "sidm", "scdm", "ar", "mtp"])
def test_json_is_one_object(tiny_checkpoints, objective, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints[objective]), "--num", "5", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert KEYS <= report.keys()
    assert report["objective"] == objective and report["num"] == 5 and report["exact"] is None and report["nfe"] == 16
    assert report["latents"] == {"mdm": "all", "sidm": 0, "scdm": "all", "ar": 0, "mtp": "all"}[objective]
    assert report["tokens"] == {"mdm": 16 * 17, "scdm": 16 * 17, "mtp": 16 * 17, "sidm": sum(1 + i + 1 for i in range(16)), "ar": 16}[objective]


def test_puzzles_are_scored_against_their_solutions(tiny_checkpoints, puzzle_file, capsys):
    for extra, latents in (([], "all"), (["--latents", "0"], 0), (["--latents", "10000"], "all")):
        assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzles", puzzle_file, "--json", *extra]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["num"] == 2 and report["exact"] == 0 and 0 < report["cell_acc"] < 1 and report["latents"] == latents
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzle", LINE[:81], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 0  # the reference comes from the solver, for scoring only


def test_boards_are_shown_step_by_step_with_mistakes_in_words(tiny_checkpoints, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzle", LINE.split()[0], "--color", "always"]) == 0
    text = capsys.readouterr().out
    assert text.count("step ") == 81 and "\033[32m" in text and "\033[31m" in text and "mistakes: " in text and "solved 0/1" in text
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["scdm"]), "--num", "7"]) == 0
    text = capsys.readouterr().out
    assert text.count("sample ") == 5 and "\033" not in text  # not a terminal: no colour
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["star"]), "--window", "2"]) == 0
    assert "=" in capsys.readouterr().out


def test_same_seed_same_output(tiny_checkpoints, capsys):
    def text(seed):
        run(sample.main, ["--ckpt", str(tiny_checkpoints["scdm"]), "--num", "3", "--seed", seed])
        return [l for l in capsys.readouterr().out.splitlines() if "forward passes" not in l]
    assert text("1") == text("1") != text("2")


@pytest.mark.parametrize("name, argv, words", [
    ("mdm", ["--latents", "0"], "no meaning for objective mdm"), ("sidm", ["--latents", "all"], "no meaning for objective sidm"),
    ("scdm", ["--latents", "-1"], "'-1' is not an integer >= 0 or the word all"), ("mtp", ["--window", "0"], "'0' is not an integer >= 1"),
    ("scdm", ["--order", "confidense"], "did you mean confidence"), ("ar", ["--order", "confidence"], "no meaning for objective ar"),
    ("scdm", ["--latent", "3"], "did you mean --latents"), ("scdm", ["--puzzle", "1234"], "takes no puzzle"), ("mdm", ["--temperature", "-1"], "'-1'"), ("mdm", ["--seed", "9" * 30], "from 0 to"),
    ("sudoku9", ["--puzzle", "123"], "3 characters"), ("sudoku9", ["--puzzle", "55" + "." * 79], "row 1 holds 5 twice"),
    ("sudoku9", ["--puzzle", "12345678." + "." * 8 + "9" + "." * 63], "no solution"), ("sudoku9", ["--puzzle", "x" * 81], "'x'"),
    ("sudoku9", ["--puzzles", "/no/such/file"], "cannot read puzzle file"), ("sudoku9", ["--num", "1001"], "has 1000"),
    ("star", ["--puzzle", "1,2|2,3/1,3"], "2 edges"), ("scdm", ["--device", "cude"], "did you mean cuda")])
def test_mistakes_are_one_line_and_exit_2(tiny_checkpoints, name, argv, words, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints[name]), *argv]) == 2
    out, error = capsys.readouterr()
    assert words in error.strip().splitlines()[-1] and "Traceback" not in error and not out
    assert len(error.strip().splitlines()) == 1


def test_bad_puzzle_file(tiny_checkpoints, puzzle_file, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzles", puzzle_file, "--num", "3"]) == 2
    assert "--num 3 is more than the 2 puzzles" in capsys.readouterr().err
    Path(puzzle_file).write_text((LINE + "\n") * 6 + "7" * 81 + "\n", encoding="utf-8")
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzles", puzzle_file]) == 2
    assert "line 7: the puzzle contradicts itself: row 1 holds 7 9 times" in capsys.readouterr().err
    Path(puzzle_file).write_text("# first\n" + LINE + "\n" + "12345678." + "." * 8 + "9" + "." * 63 + "\n", encoding="utf-8")
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints["sudoku9"]), "--puzzles", puzzle_file]) == 2
    assert f"{puzzle_file} line 3: the puzzle has no solution" in capsys.readouterr().err


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


def test_hostile_and_damaged_checkpoints(tiny_checkpoints, tmp_path, capsys, monkeypatch):
    """Missing, truncated, empty, foreign, of another size, and a pickle that wants to run code: one line each, nothing is run."""
    monkeypatch.chdir(tmp_path)
    whole = tiny_checkpoints["scdm"].read_bytes()
    good = torch.load(tiny_checkpoints["scdm"], weights_only=True)
    files = {"truncated": whole[:len(whole) // 2], "empty": b"", "text": b"hello", "pickle": pickle.dumps(Hostile())}
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    torch.save(Hostile(), tmp_path / "hostile")
    torch.save({"weights": 1}, tmp_path / "foreign")
    torch.save({**good, "config": {**good["config"], "width": 48}}, tmp_path / "resized")
    torch.save({**good, "config": {"task": "sudoku-gen"}}, tmp_path / "old")
    for name in (*files, "hostile", "foreign", "resized", "old", "missing"):
        assert run(sample.main, ["--ckpt", str(tmp_path / name)]) == 2, name
        error = capsys.readouterr().err.strip().splitlines()
        assert f"checkpoint {tmp_path / name} " in error[-1] and len(error) == 1, error
    assert not (tmp_path / "hostile_was_here").exists()


def test_exit_codes_of_real_processes(tiny_checkpoints):
    """The same through a real interpreter: help 0, success 0, mistake 2; stdout holds the JSON alone."""
    def call(*argv):
        return subprocess.run([sys.executable, str(ROOT / "sample.py"), *argv], capture_output=True, text=True)
    good = call("--ckpt", str(tiny_checkpoints["scdm"]), "--json")
    assert good.returncode == 0 and json.loads(good.stdout)["num"] == 1
    bad = call("--ckpt", "nowhere.pt")
    assert bad.returncode == 2 and not bad.stdout and bad.stderr.count("\n") == 1
