"""Speed changes nothing in what is computed: CUDA graph, kernels, compiler, several GPUs."""
import csv
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

import model
import train
from config import Config
from conftest import TINY
from plumbing import fast
from plumbing.cli import BadInput, run

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# -- the CUDA graph --


def fresh_state(optimizer, data_dir, scale=1.0):
    """No weight is zero, as some are at first: that would hide all others behind them."""
    config = Config(
        task="star", path_len=3, labels=9, width=16, depth=1, heads=2, batch_size=8,
        optimizer=optimizer, weight_decay=0.1, learning_rate=0.01 * scale,
        muon_learning_rate=0.01 * scale, grad_clip=0.5, data_dir=data_dir)
    state = train.make_state(config, train.make_task(config), CPU, nullcontext())
    generator = torch.Generator().manual_seed(1)
    for p in state.model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    return state


def test_one_gpu_runs_the_plain_update_as_a_cuda_graph(data_dir, monkeypatch):
    """The function that is recorded is the one that the CPU runs; the rate is filled in outside."""
    recorded = []
    monkeypatch.setattr(train, "compiler_works", lambda device: True)
    monkeypatch.setattr(train, "CUDAGraph", lambda f, generator: recorded.append(f) or f)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    plain, other = fresh_state("adamw", data_dir), fresh_state("adamw", data_dir)
    other.config.compile, other.device = True, SimpleNamespace(type="cuda")
    steps = train.make_step(plain), train.make_step(other)
    other.device = CPU
    assert len(recorded) == 1
    for scale in (0.1, 1.0, 0.0):
        assert steps[0](scale).item() == steps[1](scale).item()
    for a, b in zip(plain.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_lr_scale_is_a_learning_rate(optimizer, data_dir):
    """step(0.25) is step(1) at a quarter of the rate, step(0) moves nothing; rates stay tensors."""
    after = []
    for scale, lr_scale in ((0.25, 1.0), (1.0, 0.25)):
        state = fresh_state(optimizer, data_dir, scale)
        step, rates = train.make_step(state), [g["lr"] for o in state.optimizers
                                               for g in o.param_groups]
        for _ in range(3):
            step(lr_scale)
        assert [id(g["lr"]) for o in state.optimizers for g in o.param_groups] == [*map(id, rates)]
        after.append({name: p.clone() for name, p in state.model.state_dict().items()})
        step(0.0)
        assert all(torch.equal(p, after[-1][name]) for name, p in state.model.state_dict().items())
    for name in after[0]:
        torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-4, atol=1e-6)


def test_a_cuda_graph_runs_once_per_call(monkeypatch):
    """With a stand-in for CUDA graphs: recording runs nothing, a replay runs what was recorded.

    Each call trains once, and results are copies.
    """
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
    stand_in = dict(Stream=lambda: stream, CUDAGraph=Graph, current_stream=lambda: stream,
                    stream=lambda s: nullcontext(), graph=lambda g, stream: Recording())
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    take = fast.CUDAGraph(function, generator)
    results = [take() for _ in range(7)]
    assert ran == ["run"] * 3 + ["recorded"] + ["replayed"] * 4
    assert [float(r) for r in results] == [1, 2, 3, 4, 5, 6, 7]
    assert fast.WARM_STEPS == 4


# -- kernels and compiler --


def test_attention_kernels(monkeypatch):
    """On a GPU short sequences have kernels of their own; elsewhere, and alone, torch chooses."""
    asked = []
    monkeypatch.setattr(model, "sdpa_kernel", lambda kernels: asked.append(kernels))
    for T in (2, 17, 64):
        model.attention_for("cuda", T)
    assert asked == 3 * [[SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]]
    for device, T in (("cuda", 1), ("cuda", 65), ("cuda", 1000), ("cpu", 17), ("mps", 64)):
        assert isinstance(model.attention_for(device, T), nullcontext)
    monkeypatch.undo()
    with model.attention_for("cuda", 64):  # the list is one that torch takes
        pass


def test_no_compiler_is_said_and_survived(monkeypatch, capsys):
    """On a machine without a compiler training goes on with the plain model."""
    def broken(function):
        raise RuntimeError("no compiler\x1b[31m here\nand a long story")
    monkeypatch.setattr(torch, "compile", broken)
    assert not fast.compiler_works(CPU)
    assert capsys.readouterr().err == (
        r"torch.compile failed (no compiler\x1b[31m here); training without it "
        "(--no-compile silences this)\n")


# -- several GPUs --


def rows(out):
    with open(out / "log.csv", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_two_processes_train_as_one(tmp_path, data_dir):
    """Two gloo processes under torchrun, against one with the same global batch.

    Equal losses, evaluations and weights, up to the order of sums.
    """
    small = ["--preset", "sudoku4", "--objective", "scdm", *TINY, "--max-steps", "8",
             "--checkpoint-every-steps", "5", "--eval-every-steps", "7", "--log-every-steps", "2",
             "--grad-accum-steps", "2", "--depth", "2", "--deep-supervision", "1",
             "--data-dir", data_dir, "--out"]
    train.main([*small, str(tmp_path / "one")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", str(ROOT / "train.py"), *small, str(tmp_path / "two")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("solved") == 1 and done.stderr.count("parameters, device cpu") == 1
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == 6 and len(two) == 6
    for a, b in zip(one, two):
        assert all(a[k] == b[k] for k in ("step", "lr_scale", "solved", "num"))
        assert abs(float(a["loss_nats"]) - float(b["loss_nats"])) < 2e-5
    a, b = (torch.load(tmp_path / n / "ckpt.pt", weights_only=True) for n in ("one", "two"))
    assert a["step"] == b["step"] == 8 and torch.equal(a["rng"], b["rng"])
    for name, weights in a["model"].items():
        torch.testing.assert_close(weights, b["model"][name], rtol=0, atol=1e-4)


TORCHRUN = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost",
                MASTER_PORT="1")


@pytest.mark.parametrize("flags, words", [
    (["--batch-size", "9"], "--batch-size 9 is not a multiple of the world size 2 times"),
    (["--batch-size", "6", "--grad-accum-steps", "2"],
     "of the world size 2 times --grad-accum-steps 2"),
    (["--max-seconds", "5"], "a clock each")])
def test_what_several_processes_cannot_train(tmp_path, monkeypatch, capsys, flags, words):
    """Refused before they meet, and before anything is written."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    argv = ["--preset", "sudoku4", *TINY, "--out", str(tmp_path / "no"), *flags]
    assert run(train.main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


@pytest.mark.parametrize("variables, words", [
    (dict(RANK="abc"), "the environment variable RANK is 'abc', not a number"),
    (dict(WORLD_SIZE="\x1b[31m"), r"WORLD_SIZE is '\x1b[31m', not a number"),
    (dict(WORLD_SIZE="9" * 5000), "not a number"),
    (dict(WORLD_SIZE="-1"), "WORLD_SIZE is '-1', not a number"),
    (dict(WORLD_SIZE="2"), "WORLD_SIZE is 2, but this is not torchrun; unset it"),
    (dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="x"), "this is not torchrun; unset it"),
    (dict(RANK="1"), "RANK 1 is not below WORLD_SIZE 1; start with torchrun"),
    ({**TORCHRUN, "RANK": "2"}, "RANK 2 is not below WORLD_SIZE 2"),
])
def test_an_environment_that_is_not_torchruns(tmp_path, monkeypatch, capsys, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    argv = ["--preset", "sudoku4", *TINY, "--out", str(tmp_path / "no")]
    assert run(train.main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


def test_more_processes_than_gpus(monkeypatch):
    """Said before anything is joined, with the number of GPUs."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="more processes than GPUs, of which this machine has 1;"):
        fast.init_process_group(Config(), torch.device("cuda"), 2)


def test_one_rank_sums_alone():
    assert fast.all_reduce_sum([1.5, 2], CPU, 1) == [1.5, 2]
