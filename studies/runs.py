"""One run of reproduce.py: train it, or take up what was trained, decode, write its json file.

    n latents   W window
"""
import functools
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from config import Config
from metrics import entropy_floor, held_out_likelihood, show_count
from objectives import OBJECTIVES, make_sampling_params
from plumbing import report
from plumbing.checkpoint import (load_checkpoint, load_model, read_log, replace_file,
                                 save_checkpoint, write_text)
from plumbing.cli import BadInput, choose_device, printable, say
from plumbing.memory import peak_memory_gb, watch_memory
from plumbing.show import load_puzzles
from sample import evaluate
from studies import compare
from train import train

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    """One training (or one shipped checkpoint), and the ways in which it is decoded."""
    name: str
    config: dict  # fields of Config
    grid: tuple = ({},)  # arguments of make_sampling_params; test: of the in-house set, or a file
    like: str = ""  # "preset/name": its training is that run's, taken up where it was made
    steps_of: str = ""  # train as many steps as that run took, which stops when it has solved
    shipped: str = ""  # a checkpoint of this repository, to be loaded instead of trained
    ship: bool = False  # keep the trained weights, in bf16, beside the results


def do_run(preset, r, seed, args, command):
    """Train or load one Run, evaluate it, write its files -> what its json holds.

    args: device, results, out, num, puzzles, max_steps and max_seconds of reproduce.py.
    """
    device, autocast, _ = choose_device(args.device)
    file = Path(args.results) / preset / f"{r.name}-seed{seed}.json"
    trained = f"{r.like or f'{preset}/{r.name}'}-seed{seed}"
    out = Path(args.out) / trained
    begun = time.perf_counter()
    if r.shipped:
        checkpoint, source, training = ROOT / r.shipped, f"loaded from {r.shipped}", None
    else:
        config = config_of(preset, r, seed, args, out)
        checkpoint = out / "ckpt.pt"
        source, training = train_one(config, device, Path(args.results) / f"{trained}.json")
    model, task, config = load_model(checkpoint, device)
    print(f"  {r.name}: {printable(source, 200)}", flush=True)
    rows = [evaluate_one(model, task, config, r.name, asked, seed, device, autocast, args)
            for asked in r.grid if test_file(asked, args)]
    likelihood = None
    has_bound = OBJECTIVES[config.objective].bound and entropy_floor(task) is not None
    if has_bound and not r.shipped:
        nats, error, exact = held_out_likelihood(model, task, config.objective, config.window,
                                                 min(256, args.num), 64, device, autocast)
        likelihood = {"nats_per_cell": nats, "standard_error": error, "exact": exact,
                      "floor": entropy_floor(task)}
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    result = {
        "preset": preset, "name": r.name, "seed": seed, "source": source, "command": command,
        "params": model.num_params(), "training": training,
        "wall_seconds": round(time.perf_counter() - begun, 1),
        "machine": {"device": name, "threads": torch.get_num_threads(),
                    "torch": str(torch.__version__), "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"), "rows": rows, "likelihood": likelihood,
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "data_dir")}}
    file.parent.mkdir(parents=True, exist_ok=True)
    log = out / "log.csv"
    if not r.shipped and log.exists():
        replace_file(file.with_suffix(".csv"), lambda f: f.write(log.read_bytes()))
    if r.ship:
        save_for_sampling(checkpoint, file.with_suffix(".pt"))
    write_text(file, json.dumps(result, indent=1) + "\n")  # last: where it is, the others are
    return result


def config_of(preset, r, seed, args, out):
    """-> the Config that a Run trains. Raises BadInput where steps_of has no result to look at."""
    config = Config(**{**r.config, "seed": seed, "device": args.device, "out": str(out)})
    config.max_steps = args.max_steps or config.max_steps
    config.max_seconds = args.max_seconds or config.max_seconds
    if r.steps_of:
        other = Path(args.results) / preset / f"{r.steps_of}-seed{seed}.json"
        if not other.exists():
            raise BadInput(f"{r.name} trains as many steps as {r.steps_of}, and "
                           f"{printable(other, 200)} does not exist; run {r.steps_of} first")
        training = report.read_result(other)["training"]
        if training is None:
            raise BadInput(f"{printable(other, 200)}: field training is null, so there are no "
                           f"steps that {r.name} could take; run {r.steps_of} again")
        config.max_steps = training["steps"]
    return config


def train_one(config, device, file):
    """Train, or take up what `config.out` holds -> what was done, and what it took.

    file: the result of the Run whose training it is, perhaps of an earlier call, or of another
    machine: then it took other steps.
    """
    begun = time.perf_counter()
    watch_memory(device)
    taken_up = train(config, resume=True) is None
    if taken_up and file.exists():
        try:  # it knows what that training took
            earlier = report.read_result(file)["training"]
        except BadInput as e:
            say(f"not used, and written again: {e}")
            earlier = None
        steps = load_checkpoint(Path(config.out) / "ckpt.pt")["step"]
        if earlier and earlier["steps"] == steps:
            return f"trained earlier, in {config.out}", earlier
    log = Path(config.out) / "log.csv"
    logged = read_log(log)
    try:
        last = logged[-1]
        training = {"steps": int(last["step"]), "seconds": float(last["seconds"]),
                    "loss_nats": float(last["loss_nats"])}
        if not all(map(math.isfinite, training.values())):
            raise ValueError
    except (IndexError, KeyError, TypeError, ValueError):
        raise BadInput(f"{printable(log, 200)} does not end in a row of numbers; "
                       "move its folder away to train again") from None
    if taken_up:  # with what was measured where it was trained, but for its memory
        training["peak_memory_gb"] = None
        return f"trained earlier, in {config.out}", training
    peak = peak_memory_gb(device)
    training["wall_seconds"] = round(time.perf_counter() - begun, 1)
    training["peak_memory_gb"] = peak and round(peak, 2)
    return "trained live", training


def test_file(asked, args):
    """-> the file of a test set, "in-house", or None where --puzzles has no such file."""
    name = asked.get("test", "in-house")
    if name == "in-house":
        return name
    file = Path(args.puzzles or "") / name
    return file if args.puzzles and file.exists() else None


@functools.cache
def load_test(task, file, num, whole):
    """-> start, references: `num` test samples, or the puzzles of a file, or `num` of them."""
    if file == "in-house":
        return task.test_set(num)
    start, references = load_puzzles(task, file=file)
    if not whole and len(start) > num:
        some = torch.linspace(0, len(start) - 1, num).long()  # evenly: files go by difficulty
        start, references = start[some], references[some]
    return start, references


def evaluate_one(model, task, config, name, asked, seed, device, autocast, args):
    """Decode in one way -> a row."""
    file = test_file(asked, args)
    start, references = load_test(task, file, args.num, "decoder" not in asked)
    if "decoder" in asked:
        row = compare.evaluate_decoder(model, task, config.objective, asked, start, references,
                                       seed, device, autocast)
        print(f"    {asked}: solved {row['solved']}/{row['num']}, {row['nfe']} passes, "
              f"{row['seconds']:.1f} s", flush=True)
        return row
    of_params = {k: v for k, v in asked.items() if k not in ("test", "restarts")}
    sampling = make_sampling_params(config.objective, task, config.window, **of_params)
    restarts = asked.get("restarts", 0)
    most = {"latents": task.A - 1, "window": task.A, "candidates": task.A}
    shown = (f"{k} {show_count(v, most[k]) if k in most else v}" for k, v in asked.items())
    label = " ".join([name, *shown])
    # The first pass of each shape loads kernels. That is not on the clock, but for puzzle files,
    # whose shapes are many.
    if device.type == "cuda" and file == "in-house":
        evaluate(model, task, config.objective, sampling, start, None, seed, device, autocast)
    metrics, answers, stats = evaluate(model, task, config.objective, sampling, start, references,
                                       seed, device, autocast, label=label, restarts=restarts)
    row = {"objective": config.objective,
           "trained_window": config.window if config.objective == "mtp" else None,
           "latents": show_count(sampling.latents, task.A - 1), "order": sampling.order,
           "tokens_per_step": sampling.tokens_per_step, "temperature": sampling.temperature,
           **metrics}
    if "test" in asked:
        row.update(test=asked["test"], restarts=restarts,
                   candidates=show_count(sampling.candidates, task.A))
    if task.name == "planning":
        distance, solved = task.distance(start), stats["solved"]
        row["by_distance"] = {
            str(k): [int(solved[distance == k].sum()), int((distance == k).sum())]
            for k in range(int(distance.max()) + 1)}
    print(f"    {label}: solved {metrics['solved']}/{metrics['num']} in "
          f"{metrics['seconds']:.1f} s", flush=True)
    return row


def save_for_sampling(checkpoint, file):
    """Keep the weights of a checkpoint in bf16, without what only training needs."""
    saved = load_checkpoint(checkpoint)
    save_checkpoint({
        "model": {name: value.bfloat16() for name, value in saved["model"].items()},
        "step": saved["step"], "versions": saved["versions"],
        "config": {**asdict(saved["config"]), "out": "", "data_dir": ""}}, file)
