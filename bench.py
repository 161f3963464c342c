"""Benchmarks: what a training step and a decoded board cost. Medians of repeated runs.

    B batch   S positions   n latents   N parameters   L blocks   D width

    python bench.py                   # everything, at the size of a preset that suits the device
    python bench.py --what train --width 512 --depth 6                # 19M parameters
    python bench.py --what scale      # seconds per training step against S and N, fitted exponents
    python bench.py --what sample --out results/bench-sample.json     # for reproduce.py --table
    python bench.py --what world      # torchrun: one process per GPU against one process

Model flops per token of a training step: 6 N (matrices only, once for each loop) + 12 L D S
(attention over all S; half of that if it is causal).
Utilisation is relative to 989 TFLOP/s, the dense bf16 rate in the data sheet of the H100 and H200,
and None for other devices.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from config import PRESETS, RANGES, Config, check
from data import Task, make_task
from metrics import show_count
from noise import sample_keys
from objectives import OBJECTIVES, make_sampling_params
from plumbing.checkpoint import read_log, write_text
from plumbing.cli import (ALL, DEVICES, BadInput, Parser, choose_device, end, number, path,
                          printable, run, say)
from plumbing.fast import WARM_STEPS
from plumbing.memory import peak_memory_gb, watch_memory
from plumbing.report import bench_markdown
from sample import decode, decode_next_token
from train import make_state, make_step

SIZE = ("width", "depth", "heads")
PEAK = {"H100": 989e12, "H200": 989e12}  # flops per second


def median_seconds(function, device, repeats):
    """Median wall-clock seconds of function(), after one unmeasured call."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


class RandomTask:
    """Random tokens of any length: a speed can be measured at any S without a data set."""
    name, P, unique_answer = "random", 1, False
    start = Task.start

    def __init__(self, S, K=9):
        self.S, self.A, self.K, self.V = S, S - 1, K, K + 2
        self.MASK, self.BOS = K, K + 1

    def train_batch(self, B, generator, device):
        tokens = torch.randint(self.K, (B, self.S), generator=generator, device=device)
        tokens[:, 0] = self.BOS
        return tokens, torch.zeros(B, self.A, dtype=torch.bool, device=device)


# --------------------------------------------------------------------------------------------------
# A training step


def warm_step(task, config, device, autocast):
    """-> a fresh model and its step(lr_scale), compiled and recorded as a CUDA graph."""
    state = make_state(config, task, device, autocast)
    step = make_step(state)
    for _ in range(WARM_STEPS):
        step(0.0)
    return state.model, step


def time_training(task, config, device, autocast, repeats, steps=10):
    """-> a row: milliseconds per step, tokens per second, model flops, utilisation of the peak."""
    watch_memory(device)
    model, step = warm_step(task, config, device, autocast)
    seconds = median_seconds(lambda: [step(0.0) for _ in range(steps)], device, repeats) / steps
    next_token = OBJECTIVES[config.objective].next_token
    S = task.S - next_token  # next-token models do not read the last token
    blocks = config.loops * sum(p.numel() for p in model.blocks.parameters())
    attention = 12 * config.loops * config.depth * config.width * S / (2 if next_token else 1)
    tokens = config.batch_size * S
    flops = tokens * (6 * (blocks + model.head.weight.numel()) + attention)
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = next((rate for gpu, rate in PEAK.items() if gpu in name), None)
    return {"objective": config.objective, "optimizer": config.optimizer,
            "compiled": config.compile and device.type == "cuda", "params": model.num_params(),
            "heads": config.heads, "batch_size": config.batch_size, "S": task.S,
            "ms_per_step": 1000 * seconds,
            "tokens_per_second": tokens / seconds, "tflops": flops / seconds / 1e12,
            "utilisation": peak and flops / seconds / peak,
            "peak_memory_gb": peak_memory_gb(device)}


KINDS = (  # the kind of a GPU kernel, and parts of the names; the first match counts
    ("attention", ("sdpa", "flash", "fmha", "cudnn")),
    ("matrix products", ("nvjet", "gemm", "cutlass", "splitK")),
    ("optimiser, clipping", ("multi_tensor", "LpNorm", "FusedOptimizer")),
    ("loss", ("SoftMax", "nll_loss", "softmax")),
    ("norms, activations, residuals, embeddings (fused by the compiler)", ("triton",)),
    ("data, masks, copies", ("",)),
)


def kind_of(kernel):
    return next(kind for kind, pieces in KINDS if any(p in kernel for p in pieces))


def budget(task, config, device, autocast, steps=5):
    """The time of a training step: milliseconds of GPU kernels by kind, from torch's profiler."""
    _, step = warm_step(task, config, device, autocast)
    torch.cuda.synchronize()
    on_gpu = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=on_gpu, acc_events=True) as profile:
        for _ in range(steps):
            step(0.0)
        torch.cuda.synchronize()
    ms = dict.fromkeys((kind for kind, _ in KINDS), 0.0)
    for event in profile.key_averages():
        ms[kind_of(event.key)] += event.device_time_total / 1000 / steps
    return [{"part of a step": kind, "ms": value, "fraction": value / sum(ms.values())}
            for kind, value in ms.items()]


# --------------------------------------------------------------------------------------------------
# Sampling


def time_sampling(task, config, device, autocast, repeats, batch_size):
    """-> rows: the cost of generating batch_size answers. (Untrained weights cost the same.)"""
    model, rows = make_state(config, task, device, autocast).model, []
    start = task.start(torch.full((batch_size, 1), task.BOS, device=device))
    keys = sample_keys(0, start, copies_differ=True)
    kinds = (("scdm", 0), ("scdm", 8), ("scdm", 32), ("scdm", ALL), ("mdm", None), ("ar", None),
             ("ar, no cache", None))
    for kind, n in kinds:
        stats = {}

        def once():
            with autocast:
                if kind.startswith("ar"):
                    _, new = decode_next_token(model, task, "ar", start, 1.0, keys, kind == "ar")
                else:
                    sampling = make_sampling_params(kind, task, latents=n)
                    _, new = decode(model, task, kind, start, sampling, keys)
            stats.update(new)

        seconds = median_seconds(once, device, repeats)
        rows.append({"objective": kind, "latents": n and show_count(n, task.A - 1),
                     "batch_size": batch_size, "nfe": mean(stats["nfe"]),
                     "tokens": mean(stats["tokens"]), "seconds": seconds,
                     "boards_per_second": batch_size / seconds})
    most = next(r for r in rows if r["latents"] == "all")
    for r in rows:
        r["tokens_ratio"] = r["tokens"] / most["tokens"]
        r["seconds_ratio"] = r["seconds"] / most["seconds"]
    return rows


def time_puzzles(task, config, device, autocast, repeats, num):
    """-> rows: the cost of solving `num` puzzles with 47 to 64 blanks, 1 and 8 cells per pass.

    Samples with fewer blanks wait; with 8 cells per pass there are eight groups of samples.
    """
    model, rows = make_state(config, task, device, autocast).model, []
    noise = torch.rand(num, task.A, generator=torch.Generator().manual_seed(0))
    blanks = 47 + torch.arange(num) % 18
    cells = torch.zeros(num, task.A, dtype=torch.long)
    cells[noise.argsort(dim=1).argsort(dim=1) < blanks[:, None]] = task.MASK
    start = task.start(torch.full((num, 1), task.BOS), cells).to(device)
    keys = sample_keys(0, start, copies_differ=True)
    for k in (1, 8):
        sampling = make_sampling_params("mdm", task, greedy=True, tokens_per_step=k)

        def once():
            with autocast:
                return decode(model, task, "mdm", start, sampling, keys)[1]
        rows.append({"objective": "mdm", "puzzles": num, "tokens_per_step": k,
                     "nfe": mean(once()["nfe"]), "seconds": median_seconds(once, device, repeats)})
    return rows


def mean(values):
    """(B,) -> the mean over the samples, an int if it is whole."""
    value = values.double().mean().item()
    return int(value) if value.is_integer() else value


# --------------------------------------------------------------------------------------------------
# Several GPUs


def time_world_sizes(config, count, steps=400):
    """train.py in 1 and in `count` processes, same seed and batch -> a row each, with its losses.

    At most 2,000 puzzles or boards: a speed needs no more, and making 200,000 takes ten minutes.
    """
    config = replace(config, train_size=min(config.train_size, 2000), max_seconds=0.0,
                     max_steps=steps, log_every_steps=steps // 8, eval_every_steps=0,
                     eval_samples=1)
    rows = []
    for world in tqdm((1, count), desc="world size", delay=2):
        with tempfile.TemporaryDirectory() as out:
            train_with(world, config, out)
            log = [(int(r["step"]), float(r["seconds"]), float(r["loss_nats"]))
                   for r in read_log(Path(out) / "log.csv")]
        (first, begin, _), (last, end, _) = log[0], log[-1]  # the first row includes start-up
        seconds = (end - begin) / (last - first)
        rows.append({"world_size": world, "global_batch": config.batch_size,
                     "ms_per_step": 1000 * seconds,
                     "samples_per_second": config.batch_size / seconds,
                     **{f"loss at {step}": loss for step, _, loss in log[::2]}})
    for r in rows:
        r["throughput_ratio"] = r["samples_per_second"] / rows[0]["samples_per_second"]
    return rows


def train_with(world, config, out):
    """Run train.py, under torchrun if `world` is more than 1. Raises BadInput if it fails."""
    changed = {k: v for k, v in asdict(config).items() if v != getattr(Config(), k)}
    if changed.pop("compile", False):
        changed["compile"] = None
    flags = [f"--{name.replace('_', '-')}" + ("" if value is None else f"={value}")
             for name, value in changed.items()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    program = str(Path(__file__).parent / "train.py")
    threads = max(1, torch.get_num_threads() // world)
    done = subprocess.run(
        [sys.executable, *(torchrun if world > 1 else []), program, *flags, "--out", out],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        # torchrun prints a page more
        why = next((line for line in lines if line.startswith("train.py: ")), lines[-1])
        raise BadInput(f"training with {world} processes failed: {printable(why, 300)}")


# --------------------------------------------------------------------------------------------------
# Costs against sizes


def exponent(xs, ys):
    """Slope of log y against log x, least squares."""
    return statistics.linear_regression([*map(math.log, xs)], [*map(math.log, ys)]).slope


def time_lengths(config, device, autocast, repeats):
    """-> rows: a training step at several S with about the same number of tokens."""
    rows = []
    for S in tqdm((16, 36, 81, 162, 512), desc="length", delay=2):
        sized = replace(config, batch_size=max(1, config.batch_size * 162 // S))
        rows.append(time_training(RandomTask(S), sized, device, autocast, repeats))
    return rows


def time_sizes(task, config, device, autocast, repeats):
    """-> rows: a training step of models of several sizes; larger ones on a GPU."""
    sizes = ((64, 2), (128, 4), (256, 4))
    if device.type == "cuda":
        sizes = ((128, 5), (256, 6), (512, 6), (768, 8), (1024, 8))
    rows = []
    for width, depth in tqdm(sizes, desc="size", delay=2):
        sized = replace(config, width=width, depth=depth, heads=max(1, width // 64))
        rows.append(time_training(task, sized, device, autocast, repeats))
    return rows


def fitted_exponents(lengths, sizes):
    per_token = [1 / r["tokens_per_second"] for r in lengths]
    per_step = [r["ms_per_step"] for r in sizes]
    return {"seconds per token against S": exponent([r["S"] for r in lengths], per_token),
            "seconds per step against parameters": exponent([r["params"] for r in sizes], per_step)}


# --------------------------------------------------------------------------------------------------
# Command line


def parse_args(argv):
    p = Parser(__doc__)
    p.add_argument("--preset", choices=sorted(PRESETS),
                   help="of model size and batch; default: sudoku9 on a GPU, else sudoku9-cpu")
    for field in SIZE:
        p.add_argument(f"--{field}", type=number(*RANGES[field]), metavar="N",
                       help="of the model; default: the preset's")
    p.add_argument("--what", choices=("train", "sample", "scale", "world", "all"),
                   default="all", help="what to measure; all: everything but world")
    p.add_argument("--world-size", type=number(2, 4096),
                   help="processes of --what world; default: one per GPU, at least 2")
    p.add_argument("--repeats", type=number(1, 1000), default=5, help="runs per median")
    p.add_argument("--batch-size", type=number(1, 1_000_000),
                   help="of sampling; default 4,096 on a GPU, 64 elsewhere")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    p.add_argument("--out", type=path, metavar="FILE",
                   help="also write that object to FILE, after each part")
    return p.parse_args(argv)


def chosen_config(args, device):
    """-> Config: mdm and AdamW at the size of the preset, which the measurements then vary."""
    name = args.preset or ("sudoku9" if device.type == "cuda" else "sudoku9-cpu")
    asked = {field: getattr(args, field) for field in SIZE if getattr(args, field)}
    config = Config(**{**PRESETS[name], **asked})
    check(config)
    if config.task == "sudoku":
        config.layout = "prompt"  # every objective can be trained on this layout
    return replace(config, max_steps=10**9, device=args.device, optimizer="adamw", objective="mdm",
                   deep_supervision=0)


def training_kinds(config, device):
    """The configs of --what train: every objective; mdm with twice the batch, with heads of width
    128 if they fit, with both; with Muon; without the compiler."""
    kinds = [replace(config, objective=o) for o in OBJECTIVES]
    twice, wide = {"batch_size": 2 * config.batch_size}, {"heads": config.width // 128}
    changes = [twice]
    if config.width % 128 == 0 and wide["heads"] != config.heads:
        changes += [wide, {**twice, **wide}]
    kinds += [replace(config, **change) for change in [*changes, {"optimizer": "muon"}]]
    if device.type == "cuda":
        kinds.append(replace(config, compile=False))
    return kinds


def main(argv=None):
    args = parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    say(reason)
    config, gpu = chosen_config(args, device), device.type == "cuda"
    task, how = RandomTask(make_task(config).S), (device, autocast, args.repeats)
    command = shlex.join(["python", "bench.py", *(sys.argv[1:] if argv is None else argv)])
    report = {"command": command, "device": reason, "threads": torch.get_num_threads(),
              "torch": str(torch.__version__), "width": config.width, "depth": config.depth,
              "repeats": args.repeats}

    def keep():
        if args.out:
            write_text(args.out, json.dumps(report, indent=1) + "\n")

    keep()  # a bad --out is refused before anything is measured
    if args.what in ("train", "all"):
        report["train"] = [time_training(task, kind, *how) for kind in
                           tqdm(training_kinds(config, device), desc="training", delay=2)]
        if gpu:
            report["budget"] = budget(task, config, device, autocast)
        keep()
    if args.what in ("sample", "all"):
        batch_size = args.batch_size or (4096 if gpu else 64)
        report["sample"] = time_sampling(RandomTask(82), config, *how, batch_size)
        report["puzzles"] = time_puzzles(RandomTask(82), config, *how, 2500 if gpu else 64)
        keep()
    if args.what in ("scale", "all"):
        report["length"] = time_lengths(config, *how)
        keep()
        report["size"] = time_sizes(task, config, *how)
        report["exponents"] = fitted_exponents(report["length"], report["size"])
        keep()
    if args.what == "world":
        # split between two, this is the batch of the other parts
        twice = replace(config, batch_size=2 * config.batch_size)
        count = args.world_size or max(2, torch.cuda.device_count())
        report["world"] = time_world_sizes(twice, count)
        keep()
    print(json.dumps(report) if args.json else bench_markdown(report))


if __name__ == "__main__":
    end(run(main))
