"""Training: resume, kill, damage, configuration. Real processes only where the process is the point."""
import ast
import csv
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample
import train
from conftest import TINY
from sample import run

ROOT = Path(__file__).parent.parent
SMALL = ["--preset", "sudoku4", "--objective", "scdm", *TINY, "--max-steps", "20", "--checkpoint-every-steps", "5", "--eval-every-steps", "7"]


def same_training_state(a, b):
    """Model, optimiser, generator and step of two checkpoint files are equal bit for bit."""
    a, b = (torch.load(f, weights_only=True) for f in (a, b))
    assert a.keys() == b.keys() == {"model", "optimizer", "step", "seconds", "solved", "rng", "config", "versions"}

    def equal(x, y):
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, list):
            return len(x) == len(y) and all(map(equal, x, y))
        return x == y
    return all(equal(a[k], b[k]) for k in ("model", "optimizer", "step", "rng"))


def losses(out):
    with open(out / "log.csv", encoding="utf-8") as f:
        return [(r["step"], r["loss_nats"], r["solved"]) for r in csv.DictReader(f)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main(SMALL + ["--data-dir", data_dir, "--out", str(out)])
    return out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss(tmp_path, data_dir, optimizer):
    """60 small steps bring the 4x4 loss well under that of guessing (log 4 = 1.386)."""
    rate = ["--muon-learning-rate", "0.05"] if optimizer == "muon" else []
    train.main(SMALL + ["--optimizer", optimizer, *rate, "--width", "32", "--batch-size", "64", "--max-steps", "60", "--learning-rate", "0.01",
                        "--log-every-steps", "10", "--data-dir", data_dir, "--out", str(tmp_path / "o")])
    first, *_, last = [float(l) for _, l, _ in losses(tmp_path / "o")]
    assert first < 1.5 and last < 1.1


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, data_dir, uninterrupted, monkeypatch):
    """Ctrl-C in step 8 (no multiple of anything): saved, 130, resumed; every bit as if nothing had happened (nanoGPT#467)."""
    out, real, calls = tmp_path / "run", train.training_loss, []

    def interrupting(*args):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)
    argv = SMALL + ["--data-dir", data_dir, "--out", str(out)]
    monkeypatch.setattr(train, "training_loss", interrupting)
    assert run(train.main, argv) == 130
    assert torch.load(out / "ckpt.pt", weights_only=True)["step"] == 8
    monkeypatch.setattr(train, "training_loss", real)
    assert run(train.main, ["--out", str(out), "--resume"]) == 0  # nothing but --out is needed
    assert same_training_state(out / "ckpt.pt", uninterrupted / "ckpt.pt")
    assert {r for r in losses(out) if r[0] in ("10", "14", "20")}
    assert [r for r in losses(out) if r[2]] == [r for r in losses(uninterrupted) if r[2]] or losses(out)[-1][2] == losses(uninterrupted)[-1][2]


def test_kill_9_at_any_moment(tmp_path, data_dir, uninterrupted):
    """kill -9 a real process three times, wherever it happens to be, resuming each time; the end is bit-identical."""
    out = tmp_path / "run"
    argv = [sys.executable, str(ROOT / "train.py"), *SMALL, "--data-dir", data_dir, "--out", str(out), "--resume", "--checkpoint-every-steps", "1"]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for wait in (0.02, 0.11):
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        size = (out / "log.csv").stat().st_size if (out / "log.csv").exists() else 0
        while time.time() < deadline and process.poll() is None and not ((out / "log.csv").exists() and (out / "log.csv").stat().st_size not in (0, size)):
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.wait()
    assert subprocess.run(argv, env=environment, capture_output=True).returncode == 0
    assert same_training_state(out / "ckpt.pt", uninterrupted / "ckpt.pt")


def test_log_rows_after_the_checkpoint_are_dropped(tmp_path, data_dir, uninterrupted):
    """A run that died after logging step 14 and saving step 10 does not log 11-14 twice."""
    out = tmp_path / "run"
    argv = SMALL + ["--data-dir", data_dir, "--out", str(out)]
    train.main(argv + ["--log-every-steps", "2"])
    checkpoint = torch.load(out / "ckpt.pt", weights_only=True)
    (out / "log.csv").write_text((out / "log.csv").read_text() + "24,1.0,0.5,1.0,,\n26,1.")
    run(train.main, ["--out", str(out), "--resume", "--max-steps", "26", "--log-every-steps", "2"])
    steps = [int(s) for s, _, _ in losses(out)]
    assert steps == sorted(set(steps)) and steps[-1] == 26 and checkpoint["step"] == 20


def test_existing_run_is_not_overwritten(uninterrupted, capsys):
    before = (uninterrupted / "ckpt.pt").read_bytes(), (uninterrupted / "log.csv").read_bytes()
    assert run(train.main, SMALL + ["--out", str(uninterrupted)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(train.main, ["--out", str(uninterrupted), "--resume", "--width", "64"]) == 2
    assert "--width 64 differs from 16" in capsys.readouterr().err
    assert run(train.main, ["--out", str(uninterrupted), "--resume"]) == 0  # already done: says so
    assert "nothing to do" in capsys.readouterr().out
    assert before[0] == (uninterrupted / "ckpt.pt").read_bytes()


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(tmp_path, data_dir, monkeypatch, capsys):
    out, real, calls = tmp_path / "run", train.training_loss, []

    def poisoned(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 13 else 1)
    monkeypatch.setattr(train, "training_loss", poisoned)
    assert run(train.main, SMALL + ["--data-dir", data_dir, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "loss became nan at step 13" in error and "learning-rate" in error
    saved = torch.load(out / "ckpt.pt", weights_only=True)
    assert saved["step"] == 10 and all(v.isfinite().all() for v in saved["model"].values())


def test_full_disk_keeps_the_old_checkpoint(tmp_path, data_dir, capsys, uninterrupted):
    """The write goes to /dev/full, which answers like a full disk."""
    out = tmp_path / "run"
    train.main(SMALL + ["--data-dir", data_dir, "--out", str(out)])
    before = (out / "ckpt.pt").read_bytes()
    (out / "ckpt.pt.tmp").symlink_to("/dev/full")
    assert run(train.main, ["--out", str(out), "--resume", "--max-steps", "30"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left" in error and "intact" in error
    assert (out / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("argv, words", [
    (["--preset", "sudoku5"], "did you mean sudoku"), (["--task", "sudoku_gen"], "did you mean sudoku-gen"),
    (["--objective", "mdn"], "did you mean mdm"), (["--batchsize", "3"], "did you mean --batch-size"), (["--order", "x"], "unknown argument --order"),
    (["--window", "0", "--objective", "mtp"], "'0' is not an integer >= 1"), (["--width", "20", "--heads", "3"], "--width 20 is not a multiple"),
    (["--max-steps", "many"], "'many'"), (["--learning-rate", "nan"], "'nan'"), (["--task", "sudoku", "--board-size", "6", "--train-size", "9"], "legal: 9"),
    (["--train-size", "-1"], "--train-size: '-1'"), (["--task", "star", "--labels", "3"], "--labels 3 cannot name"), (["--optimizer", "adam"], "did you mean adamw"),
    (["--window", "4"], "--window has no meaning for objective mdm"), (["--preset", "sudoku4", "--arms", "3"], "it is for task star"),
    (["--muon-learning-rate", "1"], "optimizer muon"), (["--beta2", "2"], "from 0 to 0.99999"), (["--seed", "5000000000"], "from 0 to 4294967296"),
    (["--board-size", "5"], "legal: 4, 6, 9"), (["--board-size", "10"], "from 0 to 9"), (["--out", "/dev/null/x", "--preset", "sudoku4"], "not writable"), (["stray"], "stray"), (["--task", "planning", "--labels", "5"], "--labels 5")])
def test_mistakes_are_one_line_and_exit_2(argv, words, tmp_path, capsys, data_dir):
    assert run(train.main, ["--out", str(tmp_path / "o"), "--data-dir", data_dir, "--device", "cpu", *argv]) == 2
    error = capsys.readouterr().err
    assert words in error.strip().splitlines()[-1] and "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(tmp_path, capsys):
    assert run(train.main, ["--preset", "sudoku4", "--device", "cuda", "--out", str(tmp_path / "o")]) == 2
    assert "--device cuda was asked" in capsys.readouterr().err


def test_every_config_field_is_read_and_explained():
    """No flag that does nothing: each field occurs as config.<name> (or in the task's config) outside its definition; each has a --help comment."""
    source = "".join((ROOT / f).read_text(encoding="utf-8") for f in ("train.py", "data/sudoku.py", "data/path.py", "data/__init__.py", "sample.py"))
    for f in fields(train.Config):
        assert re.search(rf"\bconfig\.{f.name}\b", source), f"{f.name} is never read"
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0


def test_help_shows_the_comments(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(train.Config):
        assert f"--{f.name.replace('_', '-')}" in text
    assert "embedding width (default: 128)" in text


def test_every_preset_is_a_legal_config(data_dir):
    """Each preset parses, and its task and model can be built."""
    for name in train.PRESETS:
        config, _ = train.parse_config(["--preset", name, "--data-dir", data_dir])
        task = train.make_task(config)
        assert sample.build_model(config, task).num_params() > 1000


def test_schedule():
    config = train.Config(max_steps=100, warmup_steps=10, decay_fraction=0.4)
    scale = [train.lr_scale(s, 0.0, config) for s in range(100)]
    assert scale[0] == pytest.approx(0.1) and scale[9:60] == [1.0] * 51 and scale[80] == pytest.approx(0.5) and 0 < scale[99] < 0.03
    timed = train.Config(max_steps=100, max_seconds=10.0, warmup_steps=0, decay_fraction=0.5)
    assert train.lr_scale(1, 7.5, timed) == pytest.approx(0.5)


def test_weights_alone_cannot_be_resumed(tmp_path, capsys):
    (tmp_path / "ckpt.pt").write_bytes((ROOT / "results" / "demo-dial" / "scdm-seed0.pt").read_bytes())
    config = train.Config(**{**torch.load(tmp_path / "ckpt.pt", weights_only=True)["config"], "out": str(tmp_path)})
    assert run(lambda _: train.train(config, resume=True)) == 2 and "weights alone" in capsys.readouterr().err
    assert not (tmp_path / "log.csv").exists()


def test_time_limit_stops_and_saves(tmp_path, data_dir):
    out = tmp_path / "run"
    metrics = train.train(train.parse_config(SMALL + ["--max-steps", "100000", "--max-seconds", "0.3", "--log-every-steps", "5", "--data-dir", data_dir, "--out", str(out)])[0])
    assert metrics["num"] == 4 and 0 < torch.load(out / "ckpt.pt", weights_only=True)["step"] < 100000


def test_the_compiler_is_not_on_the_clock(tmp_path, data_dir, monkeypatch):
    """A first step that takes longer than the whole time limit, as with a slow compiler, neither ends the run nor counts as training time."""
    real = train.make_step

    def slow_start(*a):
        take, waited = real(*a), []

        def take_slowly(scale):
            if not waited:
                waited.append(True)
                time.sleep(0.6)
            return take(scale)

        return take_slowly

    monkeypatch.setattr(train, "make_step", slow_start)
    out = tmp_path / "run"
    argv = SMALL + ["--compile", "--max-steps", "100000", "--max-seconds", "0.5", "--log-every-steps", "1", "--data-dir", data_dir, "--out", str(out)]
    train.train(train.parse_config(argv)[0])
    rows = [r.split(",") for r in (out / "log.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) > train.WARM_STEPS and float(rows[train.WARM_STEPS - 1][1]) < 0.1 and float(rows[-1][1]) >= 0.5
    assert float(rows[1][3]) == pytest.approx(2 / train.Config.warmup_steps)  # nor does it make the rate decay


def test_stops_when_solved(tmp_path, data_dir, monkeypatch):
    """stop_at_solved ends the run at the first evaluation that reaches it, and resuming does not train on."""
    real = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *a, **k: ({**real(*a, **k)[0], "solved_rate": 0.9}, None))
    argv = SMALL + ["--stop-at-solved", "0.8", "--data-dir", data_dir, "--out", str(tmp_path / "o")]
    train.main(argv)
    assert torch.load(tmp_path / "o" / "ckpt.pt", weights_only=True)["step"] == 7
    assert train.train(train.parse_config(["--out", str(tmp_path / "o"), "--resume"])[0], resume=True) is None


def test_two_processes_train_as_one(tmp_path, data_dir):
    """Two gloo processes under torchrun: the losses, evaluations and weights of one process with the same global batch (up to the order of sums)."""
    argv = [*SMALL, "--max-steps", "8", "--log-every-steps", "2", "--data-dir", data_dir, "--out"]
    train.main([*argv, str(tmp_path / "one")])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train.py")]
    done = subprocess.run([*command, *argv, str(tmp_path / "two")], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [(s, n) for s, _, n in one] == [(s, n) for s, _, n in two] and len(one) == 6
    assert all(abs(float(a) - float(b)) < 2e-5 for (_, a, _), (_, b, _) in zip(one, two))
    a, b = (torch.load(tmp_path / n / "ckpt.pt", weights_only=True) for n in ("one", "two"))
    assert a["step"] == b["step"] == 8 and torch.equal(a["rng"], b["rng"])
    for name, weights in a["model"].items():
        torch.testing.assert_close(weights, b["model"][name], rtol=0, atol=1e-4)
    for flags, words in ((["--batch-size", "9"], "not a multiple of the 2 processes"), (["--max-seconds", "5"], "a clock each")):
        done = subprocess.run([*command, *argv, str(tmp_path / "no"), *flags], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode and words in done.stderr and not (tmp_path / "no").exists()


def test_more_processes_than_gpus(monkeypatch):
    """Said before anything is joined, with the number of GPUs."""
    monkeypatch.setattr(train, "WORLD", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(train.BadInput, match="more processes than GPUs, of which this machine has 1;"):
        train.join_processes(train.Config(), torch.device("cuda"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_share_of_the_step_is_that_learning_rate(optimizer, data_dir):
    """step(0.25) at a rate is step(1) at a quarter of it: the schedule scales the update after it is computed."""
    after = []
    for scale, share in ((0.25, 1.0), (1.0, 0.25)):
        config = train.Config(task="star", path_len=3, labels=9, width=16, depth=1, heads=2, batch_size=8, optimizer=optimizer, weight_decay=0.1,
                              learning_rate=0.01 * scale, muon_learning_rate=0.01 * scale, data_dir=data_dir)
        task, device = train.make_task(config), torch.device("cpu")
        model = train.fresh_model(task, config, device)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))  # zero outputs would hide everything behind them
        step = train.make_step(model, task, config, device, nullcontext(), torch.Generator().manual_seed(0), train.make_optimizers(model, config, device))
        for _ in range(1 if optimizer == "muon" else 3):  # Muon works in bf16: from the second step on it amplifies rounding
            step(share)
        after.append(model.state_dict())
    for name in after[0]:
        torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-4, atol=1e-6)


def test_the_core_stays_small():
    """A reader has one sitting."""
    core = sum(len((ROOT / f).read_text(encoding="utf-8").splitlines()) for f in ("model.py", "diffusion.py", "mtp.py", "sample.py", "train.py"))
    assert core < 1150, core
    for file in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 115, f"{file.name} {node.name}"


def test_no_compiler_is_said_and_survived(monkeypatch, capsys):
    """On a machine without a compiler training goes on with the plain model."""
    def broken(function):
        raise RuntimeError("no compiler here\nand a long story")
    monkeypatch.setattr(torch, "compile", broken)
    assert not train.compiler_works(torch.device("cpu"))
    assert capsys.readouterr().err == "torch.compile failed (no compiler here); training without it (--no-compile silences this)\n"


def test_a_recorded_step_is_run_once_per_call(monkeypatch):
    """With a stand-in for CUDA graphs (recording runs nothing, a replay runs what was recorded): each call trains once, results are copies."""
    ran, generator = [], object()

    class Graph:
        def register_generator_state(self, g):
            assert g is generator

        def replay(self):
            ran.append("replayed")
            train_result.add_(1)

    def function():
        ran.append("recorded" if recording else "run")
        return train_result if recording else train_result.add_(1).clone()

    class Recording(nullcontext):
        def __enter__(self):
            recording.append(1)

        def __exit__(self, *_):
            recording.clear()

    recording, train_result = [], torch.zeros(())
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in dict(Stream=lambda: stream, CUDAGraph=Graph, current_stream=lambda: stream, stream=lambda s: nullcontext(), graph=lambda g, stream: Recording()).items():
        monkeypatch.setattr(torch.cuda, name, value)
    take = train.Recorded(function, generator)
    results = [take() for _ in range(7)]
    assert ran == ["run"] * 3 + ["recorded"] + ["replayed"] * 4
    assert [float(r) for r in results] == [1, 2, 3, 4, 5, 6, 7]
