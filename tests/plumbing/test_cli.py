"""Command lines: output, exit codes, hints; then real processes: signals, closed streams, -OO."""
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sample
import train
from conftest import TINY, environment
from plumbing import cli
from plumbing.cli import BadInput, printable, run, say

ROOT = Path(__file__).parents[2]
KEYS = {"task", "objective", "params", "num", "solved", "exact", "cell_acc", "order", "latents",
        "nfe", "tokens", "seconds", "distinct", "references", "interval"}


@pytest.mark.parametrize("objective, flags, latents, tokens", [
    ("mdm", [], "all", 16 * 17), ("sidm", [], 0, sum(range(2, 18))), ("scdm", [], "all", 16 * 17),
    ("scdm", ["--latents", "0"], 0, sum(range(2, 18))),
    ("scdm", ["--latents", "10000"], "all", 16 * 17), ("ar", [], 0, 16),
    ("mtp", [], "all", 16 * 17)])
def test_json_is_one_object(tiny_checkpoints, objective, flags, latents, tokens, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints[objective]), "--num", "5", "--json",
                             "--device", "cpu", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert KEYS <= report.keys()
    assert report["objective"] == objective and report["num"] == 5
    assert report["exact"] is None and report["nfe"] == 16
    assert (report["latents"], report["tokens"]) == (latents, tokens)


@pytest.mark.parametrize("name, argv, words", [
    ("mdm", ["--latents", "0"], "no meaning for objective mdm"),
    ("scdm", ["--latents", "-1"], "'-1' is not an integer >= 0 or the word all"),
    ("scdm", ["--order", "confidense"], "did you mean confidence"),
    ("scdm", ["--puzzle", "1234"], "the board that begins here ends after 1 of 4 rows"),
    ("scdm", ["--puzzle", "12345"], "5 characters where 16 are needed"),
    ("mdm", ["--temperature", "-1"], "'-1'"), ("mdm", ["--temperature", "nan"], "'nan'"),
    ("mdm", ["--num", "0"], "'0' is not an integer from 1"),
    ("sudoku9", ["--puzzle", "55" + "." * 79], "row 1 holds 5 twice"),
    ("sudoku9", ["--puzzle", "12345678." + "." * 8 + "9" + "." * 63], "no solution"),
    ("sudoku9", ["--puzzles", "/no/such/file"], "cannot read /no/such/file"),
    ("sudoku9", ["--num", "1001"], "has 1000"),
    ("star", ["--puzzle", "1,2|2,3/1,3"], "2 edges"),
    ("scdm", ["--device", "cude"], "did you mean cuda")])
def test_mistakes_are_one_line_and_exit_2(tiny_checkpoints, name, argv, words, capsys):
    assert run(sample.main, ["--ckpt", str(tiny_checkpoints[name]), *argv]) == 2
    out, error = capsys.readouterr()
    assert words in error and "Traceback" not in error and not out
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("main, flag, hint", [
    (train.main, "--lr", "the flag is --learning-rate"),
    (train.main, "--data", "the flag is --train-file FILE"),
    (sample.main, "--data", "the flag is --puzzles FILE"),
    (train.main, "--wandb", "every loss is in OUT/log.csv, which any plotting program reads"),
    (train.main, "--epochs", "the flag is --max-steps (training is counted in steps)"),
    (train.main, "--checkpoint", "the flag is --init FILE (to start from its weights)"),
    (sample.main, "--checkpoint", "the flag is --ckpt FILE"),
    (train.main, "--lr=3", "the flag is --learning-rate"),
    (train.main, "--minimal-share", "the flag is --minimal-fraction"),
    (sample.main, "--knob", "the flag is --decoder-param"),
    (train.main, "--warmup", "did you mean --warmup-steps?"),
    (sample.main, "--temp", "did you mean --temperature?"),
    (train.main, "--weight_decay", "did you mean --weight-decay?"),
    (train.main, "--learningrate", "did you mean --learning-rate?"),
    (train.main, "--batch_size=4", "did you mean --batch-size?"),
    (sample.main, "--lr", "--help lists the legal ones"),
    *((train.main, flag, "--help lists the legal ones") for flag in (
        "--dropout", "--max", "--order", "--patience", "-x")),
])
def test_hints(main, flag, hint, capsys):
    argv = [flag] if main is train.main else ["--ckpt", "x", flag]
    assert run(main, argv) == 2
    assert capsys.readouterr().err.endswith(f"unknown argument {flag}; {hint}\n")


def test_hints_name_flags_that_exist(capsys):
    flags = ""
    for main in (train.main, sample.main):
        run(main, ["--help"])
        flags += capsys.readouterr().out
    for hint, names in cli.OTHER_NAMES.items():
        for name in names.split():
            assert not re.search(rf"{name}[ \n,]", flags), name
        for flag in re.findall(r"--[a-z-]+", hint):
            assert re.search(rf"{flag}[ \n,]", flags), flag


def test_foreign_text_is_escaped_and_shortened(capsys):
    assert printable("a\x1b[31m\x9b\u202e\n\0b") == r"a\x1b[31m\x9b\u202e\n\x00b"
    assert printable("é ²") == "é ²" and printable("x" * 100) == "x" * 77 + "..."
    assert printable(Path("a")) == "a" and printable("\udcff") == r"\udcff"
    say("a\nb\x1b[2J")
    assert capsys.readouterr().err == "a\\nb\\x1b[2J\n"


@pytest.mark.parametrize("exception, code, words", [
    (BadInput("a\x1b\nb"), 2, r": a\x1b\nb"), (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    (cli.Stopped(), 143, "stopped by SIGTERM"), (MemoryError(), 2, "out of memory; lower"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2,
     "out of memory; lower --batch-size"),
    (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory; lower --batch-size"),
    (OSError(28, "No space left on device"), 2, "output: No space left on device"),
    (OSError(13, "Permission denied", "a\x1b"), 2, r"a\x1b: Permission denied"),
    (SystemExit(0), 0, "")])
def test_how_programs_end(exception, code, words, capsys):
    def main(argv):
        raise exception
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run(main) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == bool(words)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    exception = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run(main)


def test_escape_characters_of_paths_and_checkpoints(tiny_checkpoints, tmp_path, capsys,
                                                    monkeypatch):
    """--ckpt, --out and the strings in a checkpoint's config are escaped on the terminal."""
    monkeypatch.chdir(tmp_path)
    esc, good = "a\x1b[31m", torch.load(tiny_checkpoints["sudoku9"], weights_only=True)

    def ends(main, argv, code, *words):
        assert run(main, argv) == code
        text = "".join(capsys.readouterr())
        assert "\x1b" not in text and all(word in text for word in words), text

    ends(sample.main, ["--ckpt", esc], 2, r"checkpoint a\x1b[31m does not exist")
    Path(f"{esc}.pt").write_text("hello")
    ends(sample.main, ["--ckpt", f"{esc}.pt"], 2, r"checkpoint a\x1b[31m.pt cannot be loaded")
    for name, value in (("task", esc), ("out", f"{esc}\0"), ("window", esc), (esc, 1)):
        torch.save({**good, "config": {**good["config"], name: value}}, "c.pt")
        ends(sample.main, ["--ckpt", "c.pt"], 2, r"a\x1b[31m")
    # a legal but unusual path that cannot be written
    torch.save({**good, "config": {**good["config"], "data_dir": f"/dev/null/{esc}"}}, "c.pt")
    ends(sample.main, ["--ckpt", "c.pt", "--num", "1"], 0, r"data cache /dev/null/a\x1b[31m/")
    small = ["--preset", "sudoku4", *TINY, "--out", esc]
    ends(train.main, small, 0, r"; a\x1b[31m/ckpt.pt")
    ends(train.main, small, 2, r"a\x1b[31m already holds a checkpoint")
    ends(train.main, ["--out", esc, "--resume"], 0, r"a\x1b[31m is already at step 3")
    ends(train.main, [*small, "--init", esc], 2, r"checkpoint a\x1b[31m is not a file")


def shell(script, **more):
    """A shell script in which $py is this Python, run in the repository."""
    return subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, env=environment(py=sys.executable, **more))


def test_exit_codes_of_real_processes(tiny_checkpoints):
    """Success 0, mistake 2; stdout is JSON alone. sample.py ignores the variables of torchrun."""
    good = shell('$py sample.py --ckpt "$ckpt" --json', ckpt=str(tiny_checkpoints["scdm"]),
                 RANK="abc", WORLD_SIZE="2")
    assert good.returncode == 0 and json.loads(good.stdout)["num"] == 1
    bad = shell("$py sample.py --ckpt nowhere.pt")
    assert bad.returncode == 2 and not bad.stdout and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("sample.py: checkpoint nowhere.pt does not exist")


WITHOUT_DOCSTRINGS = """
import sys
import sample, train
from plumbing.cli import run
out, *tiny = sys.argv[1:]
assert False, "asserts are off"
codes = [run(train.main, ["--help"]), run(sample.main, ["--help"]),
         run(train.main, ["--preset", "sudoku4", "--out", out, *tiny]),
         run(sample.main, ["--ckpt", out + "/ckpt.pt"])]
sys.exit(codes != [0, 0, 0, 0])
"""


def test_programs_run_without_asserts_and_docstrings(tmp_path):
    """python -OO removes both."""
    done = subprocess.run([sys.executable, "-OO", "-c", WITHOUT_DOCSTRINGS, str(tmp_path / "run"),
                           *TINY], cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout and done.stdout.count("solved 0/") == 2


def test_closed_streams(tiny_checkpoints, tmp_path):
    """With closed or full stdout and stderr programs work or exit with 2; files are whole."""
    out = tmp_path / "run"
    small = f'train.py --preset sudoku4 {" ".join(TINY)} --out "$out"'
    done = shell(f"$py {small} >&- 2>&-", out=str(out))
    assert done.returncode == 0
    assert torch.load(out / "ckpt.pt", weights_only=True)["step"] == 3
    assert (out / "log.csv").read_text().count("\n") == 2
    done = shell('$py sample.py --ckpt no 2>&-; echo $?; $py sample.py --ckpt "$ckpt" >/dev/full; '
                 'echo $?', ckpt=str(tiny_checkpoints["scdm"]))
    assert done.stdout == "2\n2\n"
    assert done.stderr.splitlines()[1:] == ["sample.py: output: No space left on device"]


def catches_sigterm(process):
    """Is our signal handler installed? Python itself needs 20 ms before that."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_while_torch_is_loading():
    """At any moment of the first seconds: one line and the right code, or a finished run."""
    ends = {signal.SIGINT: (130, "Ctrl-C"), signal.SIGTERM: (143, "SIGTERM")}
    moments = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.1, 1.4, 3.0)
    kinds = itertools.cycle(itertools.product(("train.py", "sample.py"), ends))
    for moment, (name, signum) in zip(moments, kinds):
        process = subprocess.Popen([sys.executable, str(ROOT / name), "--help"], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=environment())
        while process.poll() is None and not catches_sigterm(process):
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.send_signal(signum)
        out, error = process.communicate(timeout=60)
        if process.returncode == 0:
            assert "usage: " in out and not error
        else:
            code, word = ends[signum]
            assert (process.returncode, error) == (code, f"{name}: stopped by {word}\n"), moment
