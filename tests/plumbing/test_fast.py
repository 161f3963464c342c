"""Fast code computes the same: CUDA graph, kernels, compiler, micro-batches, several GPUs."""
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

import model
import train
from config import Config
from conftest import TINY, environment
from objectives import OBJECTIVES
from plumbing import fast
from plumbing.checkpoint import read_log
from plumbing.cli import BadInput, run

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def fresh_state(**fields):
    """A run whose weights are all random (zero outputs would hide differences)."""
    config = Config(task="star", path_len=3, labels=9, width=16, heads=2, batch_size=8,
                    **{"depth": 1, "weight_decay": 0.1, "learning_rate": 0.01, **fields})
    state = train.make_state(config, train.make_task(config), CPU, nullcontext())
    generator = torch.Generator().manual_seed(1)
    for p in state.model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    return state


def test_one_gpu_runs_the_plain_update_as_a_cuda_graph(monkeypatch):
    """The recorded function is the one that the CPU runs; learning rates are set outside."""
    recorded = []
    monkeypatch.setattr(train, "compiler_works", lambda device: True)
    monkeypatch.setattr(train, "CUDAGraph", lambda f, generator: recorded.append(f) or f)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    plain, other = fresh_state(), fresh_state()
    other.config.compile, other.device = True, SimpleNamespace(type="cuda")
    steps = train.make_step(plain), train.make_step(other)
    other.device = CPU
    assert len(recorded) == 1
    for scale in (0.1, 1.0, 0.0):
        assert steps[0](scale).item() == steps[1](scale).item()
    for a, b in zip(plain.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_lr_scale_is_a_learning_rate(optimizer):
    """step(0.25) is step(1) at a quarter of the rate; step(0) changes nothing."""
    after = []
    for scale, lr_scale in ((0.25, 1.0), (1.0, 0.25)):
        state = fresh_state(optimizer=optimizer, learning_rate=0.01 * scale, grad_clip=0.5,
                            muon_learning_rate=0.01 * scale)
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
    """With a stand-in for CUDA graphs (recording runs nothing, a replay runs what was recorded)
    each call trains once, and results are copies."""
    total, log = torch.zeros(()), []

    class Graph:
        register_generator_state = log.append

        def replay(self):
            total.add_(1)

    @contextmanager
    def recording(graph, stream):
        yield
        total.sub_(1)

    def function():
        log.append("run")
        return total.add_(1)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in dict(Stream=lambda: stream, CUDAGraph=Graph, current_stream=lambda: stream,
                            stream=lambda s: nullcontext(), graph=recording).items():
        monkeypatch.setattr(torch.cuda, name, value)
    take = fast.CUDAGraph(function, "generator")
    assert [float(take()) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [float(result) for result in (take(), take())] == [6, 7]
    assert log == ["run"] * 3 + ["generator", "run"] and fast.WARM_STEPS == 4


def test_attention_kernels(monkeypatch):
    """On a GPU attention over 2 to 64 tokens has other kernels; otherwise torch chooses."""
    asked = []
    monkeypatch.setattr(model, "sdpa_kernel", lambda kernels: asked.append(kernels))
    for T in (2, 17, 64):
        model.attention_for("cuda", T)
    assert asked == 3 * [[SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]]
    for device, T in (("cuda", 1), ("cuda", 65), ("cuda", 1000), ("cpu", 17), ("mps", 64)):
        assert isinstance(model.attention_for(device, T), nullcontext)
    monkeypatch.undo()
    with model.attention_for("cuda", 64):  # torch accepts the list
        pass


def test_without_a_compiler(monkeypatch, capsys):
    """Training continues with the plain model, and reports it."""
    def broken(function):
        raise RuntimeError("no compiler\x1b[31m here\nand a long story")
    monkeypatch.setattr(torch, "compile", broken)
    assert not fast.compiler_works(CPU)
    assert capsys.readouterr().err == (
        r"torch.compile failed (no compiler\x1b[31m here); training without it "
        "(--no-compile silences this)\n")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_are_the_whole_batch(objective):
    """The loss and the weights of the whole batch, within rounding."""
    results = []
    for parts in (1, 4):
        state = fresh_state(objective=objective, depth=2, grad_accum_steps=parts,
                            deep_supervision=1)
        step = train.make_step(state)
        results.append(([step(1.0).item() for _ in range(4)], state.model.state_dict()))
    (whole, weights), (parts, same) = results
    assert whole == pytest.approx(parts, rel=1e-5) and len(set(whole)) == 4
    for name in weights:
        torch.testing.assert_close(weights[name], same[name], rtol=1e-4, atol=1e-5)


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
    done = subprocess.run(command, env=environment(), timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("solved") == 1 and done.stderr.count("parameters, device cpu") == 1
    one, two = (read_log(tmp_path / name / "log.csv") for name in ("one", "two"))
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


@pytest.mark.parametrize("variables, flags, words", [
    (TORCHRUN, ["--batch-size", "9"], "--batch-size 9 is not a multiple of the world size 2 times"),
    (TORCHRUN, ["--batch-size", "6", "--grad-accum-steps", "2"],
     "of the world size 2 times --grad-accum-steps 2"),
    (TORCHRUN, ["--max-seconds", "5"], "--max-seconds needs one clock"),
    *((variables, [], "RANK or WORLD_SIZE is set, but not by torchrun; unset it") for variables
      in (dict(RANK="abc"), dict(WORLD_SIZE="\x1b[31m"), dict(WORLD_SIZE="9" * 5000),
          dict(WORLD_SIZE="-1"), dict(WORLD_SIZE="2"), dict(RANK="1"), {**TORCHRUN, "RANK": "2"},
          dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="x")))
])
def test_what_torchrun_cannot_train(tmp_path, monkeypatch, capsys, variables, flags, words):
    """Refused before the processes join, and before anything is written."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    argv = ["--preset", "sudoku4", *TINY, "--out", str(tmp_path / "no"), *flags]
    assert run(train.main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


def test_more_processes_than_gpus(monkeypatch):
    """Refused before the processes join, with the number of GPUs."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="more processes than GPUs: this machine has 1;"):
        fast.init_process_group(Config(), torch.device("cuda"), 2)
