"""Benchmarks: what a training step and a decoded board cost. Medians of repeated runs in one process.

    B batch   S positions   n latents   N parameters   L blocks   D width

    python bench.py                         # everything, at the size of a preset that suits the device
    python bench.py --what scale            # seconds per training step against S and against N, with fitted exponents
    python bench.py --what sample --out results/bench-sample.json    # reproduce.py --table shows every results/bench*.json
    python bench.py --what processes --out results/bench-processes.json    # torchrun: one process per GPU against one process

Model flops per token of a training step: 6 N (matrices only) + 12 L D S (attention, full). Utilisation is against
989 TFLOP/s, the dense bf16 rate in the data sheet of the H100 and H200; on other devices none is given.
"""
import csv
import gc
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

from sample import ALL, DEVICES, OBJECTIVES, Parser, choose_device, decode, decode_ar, make_dials, number, run
from data import BadInput, make_task
from train import PRESETS, WARM_STEPS, Config, fresh_model, make_optimizers, make_step

PEAK = {"H100": 989e12, "H200": 989e12}


def median_seconds(function, device, repeats):
    """Median wall-clock seconds of function(), after one unmeasured call."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def watch_memory(device):
    """From here on counts for peak_memory_gb. To be called before a training begins: a recorded step, replayed, allocates nothing that could be seen."""
    gc.collect()  # the model before this one
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb(device):
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


class RandomTask:
    """Random tokens of any length, so that a speed can be measured at any S without a data set."""

    def __init__(self, S, K=9):
        self.P, self.A, self.S, self.K, self.V, self.MASK, self.BOS = 1, S - 1, S, K, K + 2, K, K + 1
        self.unique_answer = False

    def train_batch(self, B, generator, device):
        tokens = torch.randint(self.K, (B, self.S), generator=generator, device=device)
        tokens[:, 0] = self.BOS
        return tokens


def warm_step(task, config, device, autocast):
    """-> a fresh model and its step(scale), compiled and recorded."""
    model = fresh_model(task, config, device)
    step = make_step(model, task, config, device, autocast, torch.Generator(device).manual_seed(0), make_optimizers(model, config, device))
    for _ in range(WARM_STEPS):
        step(0.0)
    return model, step


def time_training(task, config, device, autocast, repeats, steps=10):
    """-> one row: milliseconds per step, tokens per second, model flops and their share of the peak."""
    watch_memory(device)
    model, step = warm_step(task, config, device, autocast)
    seconds = median_seconds(lambda: [step(0.0) for _ in range(steps)], device, repeats) / steps
    matrices = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    S = task.S - (config.objective == "ar")  # the last token is never fed
    tokens = config.batch_size * S
    flops = tokens * (6 * matrices + 12 * config.depth * config.width * S)
    peak = next((v for k, v in PEAK.items() if device.type == "cuda" and k in torch.cuda.get_device_name()), None)
    return {"objective": config.objective, "optimizer": config.optimizer, "compiled": config.compile and device.type == "cuda",
            "params": model.num_params(), "batch_size": config.batch_size, "S": task.S,
            "ms_per_step": 1000 * seconds, "tokens_per_second": tokens / seconds, "tflops": flops / seconds / 1e12,
            "utilisation": peak and flops / seconds / peak,
            "peak_memory_gb": peak_memory_gb(device)}


KINDS = (  # what a GPU kernel does, by a piece of its name; the first that fits
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
    """Where one training step goes: milliseconds of GPU kernels by kind, from torch's profiler -> rows. CUDA only."""
    _, step = warm_step(task, config, device, autocast)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        for _ in range(steps):
            step(0.0)
        torch.cuda.synchronize()
    ms = dict.fromkeys((kind for kind, _ in KINDS), 0.0)
    for event in profile.key_averages():
        ms[kind_of(event.key)] += event.device_time_total / 1000 / steps
    return [{"part of a step": kind, "ms": value, "share": value / sum(ms.values())} for kind, value in ms.items()]


def time_sampling(task, config, device, autocast, repeats, batch_size):
    """-> rows: seconds and tokens to generate batch_size answers, for the latent dial, mdm and ar. Untrained weights cost the same."""
    model, rows = fresh_model(task, config, device), []
    prompt = torch.full((batch_size, 1), task.BOS, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for objective, n in (("scdm", 0), ("scdm", 8), ("scdm", 32), ("scdm", ALL), ("mdm", None), ("ar", None), ("ar, no cache", None)):
        stats = {}

        def once():
            with autocast:
                if objective.startswith("ar"):
                    stats.update(decode_ar(model, task, prompt, 1.0, generator, use_cache=objective == "ar")[1])
                else:
                    stats.update(decode(model, task, objective, prompt, make_dials(objective, task, latents=n), generator)[1])
        seconds = median_seconds(once, device, repeats)
        rows.append({"objective": objective, "latents": "all" if n == ALL else n, "batch_size": batch_size, **stats, "seconds": seconds,
                     "boards_per_second": batch_size / seconds})
    most = next(r for r in rows if r["latents"] == "all")
    for r in rows:
        r["tokens_ratio"], r["seconds_ratio"] = r["tokens"] / most["tokens"], r["seconds"] / most["seconds"]
    return rows


def time_processes(config, count, steps=400):
    """train.py with 1 process and with `count` under torchrun: same seed, same global batch -> a row each, with the loss curve.

    At most 2,000 puzzles or boards (each batch is augmented anyway): a speed needs no more, and making 200,000 takes ten minutes.
    """
    config = replace(config, train_size=min(config.train_size, 2000), max_seconds=0.0, max_steps=steps, log_every_steps=steps // 8,
                     eval_every_steps=0, eval_samples=1)
    changed = {k: v for k, v in asdict(config).items() if v != getattr(Config(), k) and k != "compile"}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in changed.items()] + ["--compile"] * config.compile
    rows = []
    for world in tqdm((1, count), desc="processes", delay=2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // world))}
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run([sys.executable, *torchrun, str(Path(__file__).parent / "train.py"), *flags, "--out", out],
                                  env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                why = next((line for line in lines if line.startswith("train.py: ")), lines[-1])  # torchrun says a page more
                raise BadInput(f"training with {world} processes failed: {why}")
            with open(Path(out) / "log.csv", encoding="utf-8") as f:
                log = [(int(r["step"]), float(r["seconds"]), float(r["loss_nats"])) for r in csv.DictReader(f)]
        (first, begin, _), (last, end, _) = log[0], log[-1]  # the first row holds start-up
        seconds = (end - begin) / (last - first)
        rows.append({"processes": world, "global_batch": config.batch_size, "ms_per_step": 1000 * seconds,
                     "samples_per_second": config.batch_size / seconds, **{f"loss at {step}": loss for step, _, loss in log[::2]}})
    for r in rows:
        r["throughput_ratio"] = r["samples_per_second"] / rows[0]["samples_per_second"]
    return rows


def exponent(xs, ys):
    """Slope of log y against log x, least squares."""
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = statistics.mean(lx), statistics.mean(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly)) / sum((a - mx) ** 2 for a in lx)


def markdown(report):
    """The report of --json as tables."""
    titles = {"train": "Training step", "budget": "Where the mdm step goes", "sample": "Sampling", "length": "Cost against length (mdm)", "size": "Cost against parameters (mdm)",
              "processes": "Several processes (torchrun, DistributedDataParallel), a GPU or a share of the CPU each; mean over the steps"}
    medians = "" if "processes" in report else f", medians of {report['repeats']}"
    text = [f"**Speed**: `{report['command']}` ({report['device']}, {report['threads']} threads, torch {report['torch']}; "
            f"training at {report['width']} x {report['depth']}{medians})"]
    for part, title in titles.items():
        if part in report:
            keys = [k for k in report[part][0] if any(row[k] is not None for row in report[part])]  # what was measured here
            text += ["", f"{title}:", "", f"| {' | '.join(k.replace('_', ' ') for k in keys)} |", "|---" * len(keys) + "|"]
            text += [f"| {' | '.join(cell(row[k]) for k in keys)} |" for row in report[part]]
    if "exponents" in report:
        text += ["", "  \n".join(f"{name}: exponent {value:.2f}" for name, value in report["exponents"].items())]
    return "\n".join(text)


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else {True: "yes", False: "no"}.get(value, str(value))


def main(argv=None):
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--preset", choices=sorted(PRESETS), help="whose model size and batch; default: sudoku9 on a GPU, sudoku9-cpu elsewhere")
    p.add_argument("--what", choices=("train", "sample", "scale", "processes", "all"), default="all", help="what to measure; all leaves processes out")
    p.add_argument("--processes", type=number(2), help="how many for --what processes; default: one for each GPU, or 2")
    p.add_argument("--repeats", type=number(1), default=5, help="runs per median")
    p.add_argument("--batch-size", type=number(1), help="of sampling; default 4,096 on a GPU, 64 elsewhere")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    p.add_argument("--out", metavar="FILE", help="also write that object here, after each part")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    print(reason, file=sys.stderr)
    gpu = device.type == "cuda"
    config = Config(**PRESETS[args.preset or ("sudoku9" if gpu else "sudoku9-cpu")])
    config = replace(config, max_steps=10**9, device=args.device, optimizer="adamw", objective="mdm")
    command = "python bench.py " + shlex.join(argv if argv is not None else sys.argv[1:])
    report = {"command": command.strip(), "device": reason, "threads": torch.get_num_threads(), "torch": str(torch.__version__),
              "width": config.width, "depth": config.depth, "repeats": args.repeats}
    task = RandomTask(162 if config.task == "sudoku" else make_task(config).S)

    def keep():
        if args.out:
            Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    keep()
    if args.what in ("train", "all"):
        kinds = [replace(config, objective=o) for o in OBJECTIVES]
        kinds += [replace(config, batch_size=2 * config.batch_size), replace(config, optimizer="muon")] + [replace(config, compile=False)] * gpu
        report["train"] = [time_training(task, c, device, autocast, args.repeats) for c in tqdm(kinds, desc="training", delay=2)]
        if gpu:
            report["budget"] = budget(task, config, device, autocast)
        keep()
    if args.what in ("sample", "all"):
        report["sample"] = time_sampling(RandomTask(82), config, device, autocast, args.repeats, args.batch_size or (4096 if gpu else 64))
        keep()
    if args.what in ("scale", "all"):
        lengths = (16, 36, 81, 162, 512)
        report["length"] = [time_training(RandomTask(S), replace(config, batch_size=max(1, config.batch_size * 162 // S)), device, autocast, args.repeats)
                            for S in tqdm(lengths, desc="length", delay=2)]
        keep()
        sizes = ((128, 5), (256, 6), (512, 6), (768, 8), (1024, 8)) if gpu else ((64, 2), (128, 4), (256, 4))
        report["size"] = [time_training(task, replace(config, width=w, depth=d, heads=max(1, w // 64)), device, autocast, args.repeats)
                          for w, d in tqdm(sizes, desc="size", delay=2)]
        report["exponents"] = {
            "seconds per token against S": exponent(lengths, [1 / r["tokens_per_second"] for r in report["length"]]),
            "seconds per step against parameters": exponent([r["params"] for r in report["size"]], [r["ms_per_step"] for r in report["size"]])}
        keep()
    if args.what == "processes":
        twice = replace(config, batch_size=2 * config.batch_size)  # shared out between two, it is the batch of the other parts
        report["processes"] = time_processes(twice, args.processes or max(2, torch.cuda.device_count()))
        keep()
    print(json.dumps(report) if args.json else markdown(report))


if __name__ == "__main__":
    sys.exit(run(main))
