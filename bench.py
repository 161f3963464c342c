"""Benchmarks: what a training step and a decoded board cost. Medians of repeated runs in one process.

    B batch   S positions   n latents   N parameters   L blocks   D width

    python bench.py                         # training and sampling at the size of a preset that suits the device
    python bench.py --what scale            # seconds per training step against S and against N, with fitted exponents

Model flops per token of a training step: 6 N (matrices only) + 12 L D S (attention, full). Utilisation is against
989 TFLOP/s, the dense bf16 rate in the data sheet of the H100 and H200; on other devices none is given.
"""
import json
import math
import statistics
import sys
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from sample import ALL, DEVICES, OBJECTIVES, Parser, choose_device, decode, decode_ar, make_dials, number, run
from data import make_task
from train import PRESETS, Config, fresh_model, make_step

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


class RandomTask:
    """Random tokens of any length, so that a speed can be measured at any S without a data set."""

    def __init__(self, S, K=9):
        self.P, self.A, self.S, self.K, self.V, self.MASK, self.BOS = 1, S - 1, S, K, K + 2, K, K + 1
        self.unique_answer = False

    def train_batch(self, B, generator, device):
        tokens = torch.randint(self.K, (B, self.S), generator=generator, device=device)
        tokens[:, 0] = self.BOS
        return tokens


def time_training(task, config, device, autocast, repeats, steps=10):
    """-> one row: milliseconds per step, tokens per second, model flops and their share of the peak."""
    model = fresh_model(task, config, device)
    _, step = make_step(model, task, config, device, autocast, torch.Generator(device).manual_seed(0))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(lambda: [step(0.0) for _ in range(steps)], device, repeats) / steps
    matrices = sum(p.numel() for p in model.blocks.parameters()) + model.head.weight.numel()
    tokens = config.batch_size * task.S
    flops = tokens * (6 * matrices + 12 * config.depth * config.width * task.S)
    peak = next((v for k, v in PEAK.items() if device.type == "cuda" and k in torch.cuda.get_device_name()), None)
    return {"objective": config.objective, "params": model.num_params(), "batch_size": config.batch_size, "S": task.S,
            "ms_per_step": 1000 * seconds, "tokens_per_second": tokens / seconds, "tflops": flops / seconds / 1e12,
            "utilisation": peak and flops / seconds / peak,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None}


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


def exponent(xs, ys):
    """Slope of log y against log x, least squares."""
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = statistics.mean(lx), statistics.mean(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly)) / sum((a - mx) ** 2 for a in lx)


def show(title, rows):
    print(f"\n{title}\n")
    keys = list(rows[0])
    text = [[("-" if r[k] is None else f"{r[k]:.3g}" if isinstance(r[k], float) else f"{r[k]:,}" if isinstance(r[k], int) else r[k]) for k in keys] for r in rows]
    widths = [max(len(k), *(len(t[i]) for t in text)) for i, k in enumerate(keys)]
    for line in [keys, *text]:
        print("  ".join(cell.rjust(w) for cell, w in zip(line, widths)))


def main(argv=None):
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--preset", choices=sorted(PRESETS), help="whose model size and batch; default: sudoku9 on a GPU, sudoku9-cpu elsewhere")
    p.add_argument("--what", choices=("train", "sample", "scale", "all"), default="all", help="what to measure")
    p.add_argument("--repeats", type=number(1), default=5, help="runs per median")
    p.add_argument("--batch-size", type=number(1), help="of sampling; default 1,024 on a GPU, 64 elsewhere")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    print(reason, file=sys.stderr)
    gpu = device.type == "cuda"
    config = Config(**PRESETS[args.preset or ("sudoku9" if gpu else "sudoku9-cpu")])
    config = replace(config, max_steps=10**9, device=args.device)
    report = {"device": reason, "torch": str(torch.__version__), "width": config.width, "depth": config.depth}
    task = RandomTask(162 if config.task == "sudoku" else make_task(config).S)
    if args.what in ("train", "all"):
        report["train"] = [time_training(task, replace(config, objective=o, window="all"), device, autocast, args.repeats)
                           for o in tqdm(OBJECTIVES, desc="training", delay=2)]
    if args.what in ("sample", "all"):
        report["sample"] = time_sampling(RandomTask(82), config, device, autocast, args.repeats, args.batch_size or (1024 if gpu else 64))
    if args.what in ("scale", "all"):
        lengths = (16, 36, 81, 162, 512)
        rows = [time_training(RandomTask(S), replace(config, objective="mdm", batch_size=max(1, config.batch_size * 162 // S)), device, autocast, args.repeats)
                for S in tqdm(lengths, desc="length", delay=2)]
        sizes = ((128, 5), (256, 6), (512, 6), (768, 8), (1024, 8)) if gpu else ((64, 2), (128, 4), (256, 4))
        more = [time_training(task, replace(config, objective="mdm", width=w, depth=d, heads=max(1, w // 64)), device, autocast, args.repeats)
                for w, d in tqdm(sizes, desc="size", delay=2)]
        report["length"], report["size"] = rows, more
        report["exponents"] = {"seconds per token against S": exponent(lengths, [1 / r["tokens_per_second"] for r in rows]),
                               "seconds per step against parameters": exponent([r["params"] for r in more], [r["ms_per_step"] for r in more])}
    if args.json:
        print(json.dumps(report))
        return
    for part in ("train", "sample", "length", "size"):
        if part in report:
            show(part, report[part])
    for name, value in report.get("exponents", {}).items():
        print(f"\n{name}: exponent {value:.2f}")


if __name__ == "__main__":
    sys.exit(run(main))
