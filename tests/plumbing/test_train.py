"""Training: resume, kill, what is written and kept. Real processes only if they matter."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import config as configuration
import data
import train
from config import Config
from conftest import LINE, PUZZLE, SOLUTION, TINY, environment
from plumbing.checkpoint import COLUMNS, read_log
from plumbing.cli import run
from plumbing.show import parse_train_args

ROOT = Path(__file__).parents[2]
SMALL = ["--preset", "sudoku4", "--objective", "scdm", *TINY, "--max-steps", "20",
         "--checkpoint-every-steps", "5", "--eval-every-steps", "7"]
PARTS = {"model", "optimizer", "step", "seconds", "solved", "rng", "config", "versions"}


def load(out):
    return torch.load(out / "ckpt.pt", weights_only=True)


def assert_same_state(a, b):
    """Model, optimisers, generator and step of two runs are equal bit for bit."""
    a, b = load(a), load(b)
    assert a.keys() == b.keys() == PARTS
    a["optimizer"], b["optimizer"] = ([o["state"] for o in run["optimizer"]] for run in (a, b))
    for name in ("model", "optimizer", "step", "rng"):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def losses(out):
    return [(r["step"], r["loss_nats"], r["solved"]) for r in read_log(out / "log.csv")]


def last_line(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.fixture
def small(data_dir):
    return [*SMALL, "--data-dir", data_dir, "--out"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main(SMALL + ["--data-dir", data_dir, "--out", str(out)])
    return out


def in_step(number, action, monkeypatch):
    """Replace the loss of that step of the next training by action(loss)."""
    real, calls = train.training_loss, []

    def training_loss(*args):
        calls.extend([1] * torch.is_grad_enabled())  # not for the held-out loss
        loss = real(*args)
        return action(loss) if len(calls) == number else loss

    monkeypatch.setattr(train, "training_loss", training_loss)


def kill(signum):
    def action(loss):
        os.kill(os.getpid(), signum)
        return loss
    return action


# -- it trains --


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss(tmp_path, small, optimizer):
    """60 small steps lower the 4x4 loss well below that of guessing (log 4 = 1.386)."""
    rate = ["--muon-learning-rate", "0.05"] if optimizer == "muon" else []
    train.main([*small, str(tmp_path / "o"), "--optimizer", optimizer, *rate, "--width", "32",
                "--batch-size", "64", "--max-steps", "60", "--learning-rate", "0.01",
                "--log-every-steps", "10"])
    first, *_, last = [float(loss) for _, loss, _ in losses(tmp_path / "o")]
    assert first < 1.5 and last < 1.1


def test_the_held_out_loss_is_logged(uninterrupted):
    """In the rows of evaluations only; after 20 steps near the loss of guessing."""
    log = read_log(uninterrupted / "log.csv")
    assert tuple(log[0]) == COLUMNS
    evaluated = [r["step"] for r in log if r["held_out_nats"]]
    assert evaluated == [r["step"] for r in log if r["solved"]] == ["7", "14", "20"]
    assert all(1.2 < float(r["held_out_nats"]) < 1.5 for r in log if r["held_out_nats"])


def test_schedule():
    config = Config(max_steps=100, warmup_steps=10, decay_fraction=0.4)
    scale = [train.lr_scale(s, 0.0, config) for s in range(100)]
    assert scale[0] == pytest.approx(0.1) and scale[9:60] == [1.0] * 51
    assert scale[80] == pytest.approx(0.5) and 0 < scale[99] < 0.03
    timed = Config(max_steps=100, max_seconds=10.0, warmup_steps=0, decay_fraction=0.5)
    assert train.lr_scale(1, 7.5, timed) == pytest.approx(0.5)


# -- interrupted and resumed --


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, small, uninterrupted, monkeypatch,
                                                      signum, code, capsys):
    """Stopped in step 8, moved to the default --out, resumed: every bit is as without a stop."""
    monkeypatch.chdir(tmp_path)
    out, moved = tmp_path / "run", tmp_path / "out" / "run"
    with monkeypatch.context() as patch:
        in_step(8, kill(signum), patch)
        assert run(train.main, [*small, str(out)]) == code
    assert f"saved step 8 in {out}/ckpt.pt; go on with --resume" in capsys.readouterr().err
    assert load(out)["step"] == 8
    moved.parent.mkdir()
    out.rename(moved)
    assert run(train.main, ["--resume"]) == 0
    assert_same_state(moved, uninterrupted)
    assert not out.exists()
    assert load(moved)["config"]["out"] == "out/run"
    assert {r[0] for r in losses(moved)} == {"5", "7", "8", "10", "14", "15", "20"}
    assert [r for r in losses(moved) if r[2]] == [r for r in losses(uninterrupted) if r[2]]


def test_muon_is_resumed_bit_for_bit(tmp_path, small, monkeypatch):
    muon = ["--optimizer", "muon", "--max-steps", "9"]
    train.main([*small, str(tmp_path / "whole"), *muon])
    with monkeypatch.context() as patch:
        in_step(4, kill(signal.SIGTERM), patch)
        assert run(train.main, [*small, str(tmp_path / "run"), *muon]) == 143
    assert run(train.main, ["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_kill_9_at_any_moment(tmp_path, small, uninterrupted):
    """kill -9 a real process twice, resume each time: equal bits at the end."""
    out = tmp_path / "run"
    argv = [sys.executable, str(ROOT / "train.py"), *small, str(out), "--resume",
            "--checkpoint-every-steps", "1"]
    log = out / "log.csv"
    for wait in (0.02, 0.11):
        process = subprocess.Popen(argv, env=environment(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        size = log.stat().st_size if log.exists() else 0
        while time.time() < deadline and process.poll() is None:
            if log.exists() and log.stat().st_size not in (0, size):
                break
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.wait()
    assert subprocess.run(argv, env=environment(), capture_output=True).returncode == 0
    assert_same_state(out, uninterrupted)


def test_log_rows_after_the_checkpoint_are_dropped(tmp_path, small):
    """A run that was killed after logging step 24 and saving step 20 logs 21-24 only once."""
    out = tmp_path / "run"
    train.main([*small, str(out), "--log-every-steps", "2"])
    assert load(out)["step"] == 20
    log = out / "log.csv"
    log.write_text(log.read_text() + "24,1.0,0.5,1.0,,,\n" + "9" * 5000 + ",1\n26,1.")
    run(train.main, ["--out", str(out), "--resume", "--max-steps", "26", "--log-every-steps", "2"])
    steps = [int(s) for s, _, _ in losses(out)]
    assert steps == sorted(set(steps)) and steps[-1] == 26


def test_existing_run_is_not_overwritten(uninterrupted, capsys):
    before = (uninterrupted / "ckpt.pt").read_bytes(), (uninterrupted / "log.csv").read_bytes()
    out = ["--out", str(uninterrupted)]
    assert run(train.main, SMALL + out) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(train.main, [*out, "--resume", "--width", "64"]) == 2
    assert "--width 64 differs from 16" in capsys.readouterr().err
    assert run(train.main, [*out, "--resume"]) == 0
    assert "step 20, and it has ended; nothing to do" in capsys.readouterr().out
    assert run(train.main, [*out, "--resume", "--max-steps", "5"]) == 0
    assert "step 20, and --max-steps 5 is less; nothing to do" in capsys.readouterr().out
    assert before == ((uninterrupted / "ckpt.pt").read_bytes(),
                      (uninterrupted / "log.csv").read_bytes())


def test_a_log_without_its_checkpoint_is_kept(tmp_path, small, capsys):
    """Refused; with --resume it is renamed, which is reported."""
    out = tmp_path / "run"
    run(train.main, [*small, str(out), "--max-steps", "2"])
    log = (out / "log.csv").read_bytes()
    for name in ("log.csv.old", "log.csv.old2"):
        (out / "ckpt.pt").unlink()
        (out / "log.csv").write_bytes(log)
        assert run(train.main, [*small, str(out), "--max-steps", "2"]) == 2
        assert "holds a log.csv without a checkpoint" in last_line(capsys)
        assert run(train.main, [*small, str(out), "--max-steps", "3", "--resume"]) == 0
        assert "it is kept as log.csv.old" in capsys.readouterr().err
        assert (out / name).read_bytes() == log


def test_a_checkpoint_of_another_machine_is_resumed(tmp_path, small, capsys):
    """With other threads rounding differs, which is reported. From a GPU only the state of the
    optimisers is used; their options come from this run."""
    out = tmp_path / "run"
    train.main([*small, str(out), "--max-steps", "2"])
    saved = load(out)
    threads = saved["versions"]["threads"]
    saved["versions"]["threads"] += 1
    torch.save(saved, out / "ckpt.pt")
    assert run(train.main, ["--out", str(out), "--resume", "--max-steps", "3"]) == 0
    assert f"made with {threads + 1} threads, this run has {threads}: rounding differs" \
        in capsys.readouterr().err
    own = saved["optimizer"][0]["param_groups"]
    foreign = [{**group, "capturable": True, "fused": True, "betas": (0.0, 0.0)} for group in own]
    saved["versions"]["device"], saved["optimizer"][0]["param_groups"] = "cuda", foreign
    torch.save(saved, out / "ckpt.pt")
    assert run(train.main, ["--out", str(out), "--resume", "--max-steps", "4"]) == 0
    assert "is from device cuda: data and masks continue with a new" in capsys.readouterr().err
    after = load(out)["optimizer"][0]["param_groups"]
    assert all({**a, "lr": 0} == {**b, "lr": 0} for a, b in zip(own, after, strict=True))


# -- nothing is lost --


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path, small, monkeypatch, capsys):
    out = tmp_path / "run"
    in_step(13, lambda loss: loss * float("nan"), monkeypatch)
    assert run(train.main, [*small, str(out)]) == 2
    error = last_line(capsys)
    assert "loss became nan at step 13" in error and "learning-rate" in error
    saved = load(out)
    assert saved["step"] == 10 and all(v.isfinite().all() for v in saved["model"].values())


def test_full_disk_keeps_the_old_checkpoint(tmp_path, small, capsys):
    """/dev/full behaves like a full disk."""
    out = tmp_path / "run"
    train.main([*small, str(out)])
    before = (out / "ckpt.pt").read_bytes()
    (out / "ckpt.pt.tmp").symlink_to("/dev/full")
    assert run(train.main, ["--out", str(out), "--resume", "--max-steps", "30"]) == 2
    error = last_line(capsys)
    assert "No space left" in error and "intact" in error
    assert (out / "ckpt.pt").read_bytes() == before
    assert sorted(f.name for f in out.iterdir()) == ["ckpt.pt", "log.csv"]  # no .tmp


def test_the_state_is_saved_when_the_log_cannot_be_written(tmp_path, small, monkeypatch, capsys):
    """In step 8, between two checkpoints."""
    def full_disk(loss):
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    in_step(8, full_disk, monkeypatch)
    assert run(train.main, [*small, str(out)]) == 2
    assert "No space left on device; step 7 is saved" in last_line(capsys)
    assert load(out)["step"] == 7


def test_the_state_is_saved_when_the_reader_goes_away(tmp_path, small):
    """train.py 2>&1 | head -1 ends in the middle of a run."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *small, str(out), "--max-steps", "1000000",
         "--eval-every-steps", "0", "--checkpoint-every-steps", "1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={k: v for k, v in environment().items() if k != "TQDM_DISABLE"})
    assert b"parameters, device cpu" in process.stdout.readline()
    process.stdout.read(1)  # of the progress bar
    process.stdout.close()
    assert process.wait(60) == 0 and load(out)["step"] > 0
    assert sorted(f.name for f in out.iterdir()) == ["ckpt.pt", "log.csv"]


# -- when it ends --


def test_compiling_and_making_data_are_not_on_the_clock(tmp_path, small, monkeypatch):
    """Both take longer than --max-seconds: the run goes on at a full learning rate."""
    make_step, prepare = train.make_step, data.sudoku.Sudoku.prepare

    def slow_step(*args):
        take, delays = make_step(*args), [0.6]
        return lambda scale: time.sleep(delays.pop() if delays else 0) or take(scale)

    def slow_data(task, device):
        time.sleep(0 if task.pool else 0.6)
        prepare(task, device)

    monkeypatch.setattr(train, "make_step", slow_step)
    monkeypatch.setattr(data.sudoku.Sudoku, "prepare", slow_data)
    out = tmp_path / "run"
    config, _ = parse_train_args("", [*small, str(out), "--max-steps", "100000", "--max-seconds",
                                      "0.5", "--log-every-steps", "1", "--compile"])
    assert train.train(config)["num"] == 4
    log = read_log(out / "log.csv")
    assert train.WARM_STEPS < len(log) == load(out)["step"] < 100000
    assert float(log[train.WARM_STEPS - 1]["seconds"]) < 0.1 and float(log[-1]["seconds"]) >= 0.5
    assert float(log[1]["lr_scale"]) == pytest.approx(2 / Config.warmup_steps)


def test_stops_when_solved(tmp_path, small, monkeypatch):
    """At the first evaluation that reaches the fraction; resuming needs a larger one."""
    real = train.evaluate

    def rated(*args, **kw):
        metrics, *rest = real(*args, **kw)
        return {**metrics, "solved_rate": 0.9}, *rest

    monkeypatch.setattr(train, "evaluate", rated)
    out = tmp_path / "o"
    train.main([*small, str(out), "--stop-at-solved", "0.8"])
    assert load(out)["step"] == 7
    resumed = ["--out", str(out), "--resume"]
    assert train.train(parse_train_args("", resumed)[0], resume=True) is None
    more, _ = parse_train_args("", [*resumed, "--stop-at-solved", "0.95"])
    assert train.train(more, resume=True) and load(out)["step"] == 20


# -- from other weights, from a file --


def test_weights_alone_cannot_be_resumed(tmp_path, capsys):
    (tmp_path / "ckpt.pt").write_bytes((ROOT / "results/demo-dial/scdm-seed0.pt").read_bytes())
    assert run(train.main, ["--out", str(tmp_path), "--resume"]) == 2
    assert f"contains weights only; a run cannot be resumed from it, but a new one can start " \
           f"from it: --init {tmp_path}/ckpt.pt" in last_line(capsys)
    assert not (tmp_path / "log.csv").exists()


def test_init(tmp_path, small, uninterrupted, capsys):
    """A new run from old weights, with another objective; its config names the source."""
    old, out = uninterrupted / "ckpt.pt", tmp_path / "run"
    new = ["--init", str(old), "--objective", "mdm", "--learning-rate", "1e-9", "--max-steps", "2"]
    assert run(train.main, [*small, str(out), *new]) == 0
    saved, weights = load(out), load(uninterrupted)["model"]
    assert saved["step"] == 2 and saved["config"]["init"] == str(old)
    assert saved["config"]["objective"] == "mdm"
    for name, value in saved["model"].items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)
        assert name.startswith("token") or value.any()  # a fresh model would have zeros
    # resuming does not need the source
    saved["config"]["init"] = "gone.pt"
    torch.save(saved, out / "ckpt.pt")
    assert run(train.main, ["--out", str(out), "--resume", "--max-steps", "3"]) == 0
    capsys.readouterr()
    for flags, words in ((["--width", "32"], "weight token.weight has shape"),
                         (["--depth", "2"], "blocks.1.attn.qkv.weight has shape missing"),
                         (["--heads", "1"], "heads = 2, but this run has 1; they must be equal"),
                         (["--qk-norm"], "trained with qk_norm = False, but this run has True;")):
        assert run(train.main, [*small, str(tmp_path / "no"), "--init", str(old), *flags]) == 2
        assert words in last_line(capsys) and not (tmp_path / "no").exists()


@pytest.fixture
def file_run(tmp_path, data_dir):
    """-> call(text): train on a puzzle file with that text -> the exit code."""
    def call(text):
        (tmp_path / "p.txt").write_text(text, encoding="utf-8")
        return run(train.main, [
            "--task", "sudoku", "--objective", "scdm", "--train-file", str(tmp_path / "p.txt"),
            *TINY, "--data-dir", data_dir, "--out", str(tmp_path / "run")])
    return call


def test_training_on_a_file(tmp_path, data_dir, file_run, capsys):
    """Symmetric copies of test puzzles are removed and counted."""
    config = Config(task="sudoku", train_size=20, data_dir=data_dir)
    task = train.make_task(config)
    start, answers = task.test_set(1)
    assert file_run(task.format(start[0], answers[0])) == 2
    assert "contains only copies of test puzzles" in last_line(capsys)
    copy = (answers + 1) % 9  # relabelled
    blank = "." * 40 + task.format_answer(copy[0])[40:]
    text = f"quizzes,solutions\n{PUZZLE},{SOLUTION}\n{blank},{task.format_answer(copy[0])}\n"
    assert file_run(text) == 0
    error = capsys.readouterr().err
    assert "read column 'quizzes' as the puzzle and 'solutions' as the solution" in error
    assert "p.txt: 1 puzzles to train on; 1 removed as symmetric copies of test puzzles" in error
    assert load(tmp_path / "run")["config"]["train_file"] == str(tmp_path / "p.txt")
    task = train.make_task(replace(config, train_file=str(tmp_path / "p.txt")))
    tokens, given = task.train_batch(8, torch.Generator().manual_seed(0), "cpu")
    assert task.check(tokens, tokens[:, 1:]).all() and (given.sum(dim=1) >= 30).all()


@pytest.mark.parametrize("text, words", [
    (f"{LINE}\n# none here\n{PUZZLE}\n", "p.txt line 3: no solution"),
    (f"{LINE}\n{SOLUTION} {SOLUTION}\n", "p.txt line 2: the puzzle has no empty cell"),
    (f"{LINE}\n{LINE[:-1]}1\n", "p.txt line 2: the solution contradicts itself"),
    ("", "p.txt: holds no puzzle"),
])
def test_a_bad_training_file_is_refused(tmp_path, file_run, capsys, text, words):
    """The message names the line, and nothing is written."""
    assert file_run(text) == 2
    assert words in last_line(capsys) and not (tmp_path / "run").exists()


# -- the command line --


@pytest.mark.parametrize("argv, words", [
    (["--preset", "sudoku5"], "did you mean sudoku"),
    (["--window", "0", "--objective", "mtp"], "'0' is not an integer >= 1"),
    (["--width", "20", "--heads", "3"], "--width 20 is not a multiple"),
    (["--depth", "3", "--deep-supervision", "3"], "reads nothing before the last of 3 blocks"),
    (["--preset", "sudoku9-gen", "--depth", "3"], "--deep-supervision 3 reads nothing before"),
    (["--max-steps", "many"], "'many'"),
    (["--learning-rate", "nan"], "'nan'"),
    (["--task", "sudoku", "--board-size", "5", "--train-size", "9"], "legal: 4, 6, 9"),
    (["--task", "star", "--labels", "3"], "--labels 3 cannot name"),
    (["--window", "4"], "--window has no meaning for objective mdm"),
    (["--preset", "sudoku4", "--arms", "3"], "it is for task star"),
    (["--objective", "mtp", "--mask-rate-a", "4"], "it is for objective mdm"),
    (["--out", "/dev/null/x", "--preset", "sudoku4"], "not writable"),
    (["--out", ""], "--out: '' is not a path"),
    (["stray"], "stray"),
    (["--batch-size", "9", "--grad-accum-steps", "2"],
     "--batch-size 9 is not a multiple of --grad-accum-steps 2"),
    (["--width", "16384", "--depth", "256"], "lower one of them"),
    (["--task", "sudoku", "--objective", "ar"], "give --layout prompt"),
    (["--task", "sudoku", "--eval-samples", "1001"], "the fixed test set has 1000"),
    *[(["--device", "cuda"], "--device cuda was given, but torch finds no such device")][
        :not torch.cuda.is_available()],
])
def test_mistakes_are_one_line_and_exit_2(argv, words, tmp_path, capsys, data_dir):
    assert run(train.main, ["--out", str(tmp_path / "o"), "--data-dir", data_dir, "--device", "cpu",
                            *argv]) == 2
    assert words in last_line(capsys) and not (tmp_path / "o").exists()
