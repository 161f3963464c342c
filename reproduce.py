"""Reproduce the findings: train what a finding needs, evaluate its dials, write results/.

    n latents   W window

    python reproduce.py --preset demo      # two CPU cores, minutes
    python reproduce.py --table --write    # from results/: the tables of RESULTS.md and README.md
    python reproduce.py --boards           # one board, generated without and with latents

Each training and seed is one file results/<preset>/<name>-seed<k>.json: command, config, machine,
a row for each dial; its log lies beside it. No number in a table of the pages is typed by hand: a
test compares them with these files.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import functools
import json
import math
import platform
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from config import PRESETS, RANGES, Config
from decoders import compare
from likelihood import floor_nats, held_out_nats
from objectives import make_dials, show_count
from plumbing import figures, report
from plumbing.animate import animate
from plumbing.checkpoint import (load_checkpoint, load_model, read_log, replace_file,
                                 save_checkpoint, write_text)
from plumbing.cli import (ALL, DEVICES, BadInput, Parser, choose_device, end, number, path,
                          printable, run, say)
from plumbing.memory import peak_memory_gb, watch_memory
from plumbing.show import load_puzzles
from plumbing.trace import trace
from sample import evaluate
from train import train

HERE = Path(__file__).parent

# --------------------------------------------------------------------------------------------------
# EDIT HERE: what each finding trains and evaluates


@dataclass
class Run:
    """One training (or one shipped checkpoint) and the dials it is evaluated at."""
    name: str
    config: dict  # fields of Config
    grid: tuple = ({},)  # arguments of make_dials; test: a file of --puzzles instead of own tests
    like: str = ""  # "preset/name": its training is that run's, taken up where it was made
    steps_of: str = ""  # train as many steps as that run took, which stops when it has solved
    shipped: str = ""  # a checkpoint of this repository, to be loaded instead of trained
    ship: bool = False  # keep the trained weights, in bf16, beside the results


def dialled(dial, *counts):
    return tuple({dial: n} for n in counts)


def on_tests(*dials):
    """Each of the dials on every test set of puzzles."""
    return tuple({"test": test, **dial} for dial in dials for test in TESTS)


S6, DEMO, STAR, PLANNING = (PRESETS[p] for p in ("sudoku6", "demo", "star", "planning"))
S9, GEN9 = PRESETS["sudoku9"], PRESETS["sudoku9-gen"]
# For hard puzzles: what boards gained from, and puzzles that no given can be taken from.
HARD = dict(optimizer="muon", muon_learning_rate=1e-3, batch_size=256, qk_norm=True,
            deep_supervision=3, minimal_share=1.0)
TESTS = ("own", "kaggle_easy_2000.txt", "radcliffe_mixed_2500.txt", "bank_diabolical_150.txt",
         "top95.txt")
STEPS = tuple({"tokens_per_step": k} for k in (2, 4, 8))
ORDERS_AND_STEPS = ({}, {"order": "margin"}, {"order": "random"}, *STEPS)
# All unknown cells compete, also where the default is 8: objectives are to be compared at equal
# candidates. (In a random order none compete.)
OF_ALL = {"candidates": ALL}
ORDERS_AND_STEPS_OF_ALL = tuple(dial if dial.get("order") == "random" else {**OF_ALL, **dial}
                                for dial in ORDERS_AND_STEPS)
RESTARTS = tuple(dict(OF_ALL, restarts=k) for k in (4, 16))
FOUR = {"ar": dict(objective="ar"), "mtp-1": dict(objective="mtp", window="1"),
        "mtp-all": dict(objective="mtp", window="all"), "mdm": dict(objective="mdm")}
WINDOWS = dict(S6, objective="mtp", max_seconds=60.0)
DIAL = dict(S6, objective="scdm", width=96, depth=10, heads=3, optimizer="muon",
            learning_rate=2e-3, max_seconds=90.0)
DIAL_FILE = "results/demo-dial/scdm-seed0.pt"
WHOLE_DIAL = dialled("latents", 0, 1, 2, 4, 8, 16, 32, ALL)

FINDINGS = {
    # One GPU, minutes: all five objectives on 6x6 boards.
    "sudoku6": (
        Run("ar", dict(S6, objective="ar")),
        Run("mtp-1", dict(S6, objective="mtp", window="1")),
        Run("mtp-all", dict(S6, objective="mtp", window="all")),
        Run("sidm", dict(S6, objective="sidm")),
        Run("scdm", dict(S6, objective="scdm"), WHOLE_DIAL),
        Run("mdm", dict(S6, objective="mdm")),
    ),
    # One GPU: all five objectives on 9x9 boards, the task of the paper's Figure 1.
    "sudoku9-gen": (
        Run("ar", dict(GEN9, objective="ar")),
        Run("mtp-1", dict(GEN9, objective="mtp", window="1")),
        Run("mtp-all", dict(GEN9, objective="mtp", window="all")),
        Run("sidm", dict(GEN9, objective="sidm")),
        Run("scdm", dict(GEN9, objective="scdm"),
            dialled("latents", 0, 1, 2, 4, 8, 16, 32, 64, ALL)),
        Run("mdm", dict(GEN9, objective="mdm")),
        Run("mdm-long", dict(GEN9, objective="mdm", max_seconds=240.0)),
    ),
    # One GPU: 9x9 puzzles, givens in place; ar with the puzzle as a prompt.
    "sudoku9": (
        Run("mdm", dict(S9, objective="mdm"), on_tests(*ORDERS_AND_STEPS_OF_ALL, *RESTARTS)),
        Run("mdm-long", dict({**S9, **HARD}, objective="mdm", max_seconds=480.0),
            on_tests(*ORDERS_AND_STEPS_OF_ALL, *RESTARTS)),
        Run("scdm", dict(S9, objective="scdm"),
            on_tests(*(dict(n, **how) for n in dialled("latents", 0, 8, 32, ALL)
                       for how in ORDERS_AND_STEPS))),
        Run("sidm", dict(S9, objective="sidm"), on_tests(*ORDERS_AND_STEPS_OF_ALL, *RESTARTS, {})),
        Run("mtp-1", dict(S9, objective="mtp", window="1"), on_tests({})),
        Run("mtp-all", dict(S9, objective="mtp", window="all"), on_tests({}, *STEPS)),
        Run("ar", dict(S9, objective="ar", layout="prompt"), on_tests({})),
    ),
    # One GPU: the same puzzles as a prompt, in equal seconds; in place: sudoku9.
    "layouts": (
        Run("mdm-prompt", dict(S9, objective="mdm", layout="prompt"),
            on_tests(*ORDERS_AND_STEPS_OF_ALL)),
        Run("sidm-prompt", dict(S9, objective="sidm", layout="prompt"),
            on_tests(*ORDERS_AND_STEPS_OF_ALL, {})),
    ),
    # One GPU: what puzzles that no given can be taken from buy, as a share of the training set; a
    # share of 0: sudoku9.
    "difficulty": tuple(Run(f"mdm-minimal-{share}", dict(S9, objective="mdm", minimal_share=share),
                            on_tests({})) for share in (0.2, 0.5, 1.0)),
    # Two CPU cores: puzzles of newspapers.
    "sudoku9-cpu": (
        Run("mdm", dict(PRESETS["sudoku9-cpu"], objective="mdm"),
            ({"test": "own"}, {"test": "kaggle_easy_2000.txt"}), ship=True),
    ),
    # One GPU: mtp with one model for each window, and one model for all of them.
    "windows": (
        *(Run(f"mtp-{w}", dict(WINDOWS, window=w)) for w in ("1", "4", "8", "16", "all")),
        Run("mtp-random", dict(WINDOWS, window="random"), dialled("window", 1, 4, 8, 16, ALL)),
    ),
    # One GPU: star graphs, where only the second token is hard. Five arms get more seconds.
    "star": (
        *(Run(f"{name}-d2", dict(STAR, arms=2, **o)) for name, o in FOUR.items()),
        *(Run(f"{name}-d5", dict(STAR, arms=5, max_seconds=120.0, **o))
          for name, o in FOUR.items()),
    ),
    # One GPU: minimal planning, by planning distance.
    "planning": tuple(Run(name, dict(PLANNING, **o)) for name, o in FOUR.items()),
    # Two CPU cores: star graphs trained live, and a shipped 6x6 model dialled.
    "demo": (
        Run("mtp-all", dict(DEMO, objective="mtp", window="all", max_steps=1200,
                            stop_at_solved=0.98)),
        Run("mtp-1", dict(DEMO, objective="mtp", window="1"), steps_of="mtp-all"),
        Run("ar", dict(DEMO, objective="ar"), steps_of="mtp-all"),
        Run("scdm", {}, dialled("latents", 0, 4, 16, ALL), shipped=DIAL_FILE),
    ),
    # One GPU: the decoders of other papers, over their knobs, on puzzles and from empty boards.
    "decoders": (
        Run("puzzles", dict(S9, objective="mdm"),
            (*compare.grid("own"), *compare.grid("radcliffe_mixed_2500.txt")), like="sudoku9/mdm"),
        Run("boards", dict(GEN9, objective="mdm"), compare.grid("own", ceilings=()),
            like="sudoku9-gen/mdm"),
    ),
    # One GPU: the checkpoint that the demo ships.
    "demo-dial": (Run("scdm", DIAL, WHOLE_DIAL, ship=True),),
}
# Samples per row, 2,048 elsewhere. 8,192 boards of 6x6 fill a GPU, so that seconds can be compared.
NUM = {"demo": 512, "sudoku6": 8192, "windows": 8192, "sudoku9": 1000, "layouts": 1000,
       "difficulty": 1000, "decoders": 512, "sudoku9-cpu": 500}

# The README's board, of the shipped checkpoint: the first seed at which n = 0 and n = all differ.
BOARD_SEED = 2
BOARD_MOMENTS = (9, 18, 36)  # cells filled

# The generated parts of the pages.
PAGES = {"RESULTS.md": ("summary", "puzzles", "table", "blocks", "decoders"),
         "README.md": ("rows", "board")}


# --------------------------------------------------------------------------------------------------
# Train and evaluate


def do_run(preset, r, seed, args, command):
    """Train or load one Run, evaluate its dials, write its files -> what its json holds."""
    device, autocast, _ = choose_device(args.device)
    file = Path(args.results) / preset / f"{r.name}-seed{seed}.json"
    trained = f"{r.like or f'{preset}/{r.name}'}-seed{seed}"
    out = Path(args.out) / trained
    begun = time.perf_counter()
    if r.shipped:
        checkpoint, source, training = HERE / r.shipped, f"loaded from {r.shipped}", None
    else:
        config = config_of(preset, r, seed, args, out)
        checkpoint = out / "ckpt.pt"
        source, training = train_one(config, device, Path(args.results) / f"{trained}.json")
    model, task, config = load_model(checkpoint, device)
    print(f"  {r.name}: {printable(source, 200)}", flush=True)
    num = args.num or NUM.get(preset, 2048)
    rows = [evaluate_one(model, task, config, r.name, asked, num, seed, device, autocast, args)
            for asked in r.grid if test_file(asked, args)]
    likelihood = None
    if floor_nats(task) is not None and not r.shipped:
        nats, error, exact = held_out_nats(model, task, config.objective, config.window,
                                           min(256, num), 64, device, autocast)
        likelihood = {"nats_per_cell": nats, "standard_error": error, "exact": exact,
                      "floor": floor_nats(task)}
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
    peak = peak_memory_gb(device)
    training["wall_seconds"] = round(time.perf_counter() - begun, 1)
    training["peak_memory_gb"] = peak and round(peak, 2)
    return f"trained earlier, in {config.out}" if taken_up else "trained live", training


def test_file(asked, args):
    """-> the file of a test set, "own", or None where --puzzles has no such file."""
    name = asked.get("test", "own")
    if name == "own":
        return name
    file = Path(args.puzzles or "") / name
    return file if args.puzzles and file.exists() else None


@functools.cache
def load_test(task, file, num, whole):
    """-> start, references: `num` own test samples, or the puzzles of a file, or `num` of them."""
    if file == "own":
        return task.test_set(num)
    start, references = load_puzzles(task, file=file)
    if not whole and len(start) > num:
        some = torch.linspace(0, len(start) - 1, num).long()  # evenly: files go by difficulty
        start, references = start[some], references[some]
    return start, references


def evaluate_one(model, task, config, name, asked, num, seed, device, autocast, args):
    """Evaluate one setting of the dials -> a row."""
    file = test_file(asked, args)
    start, references = load_test(task, file, num, "decoder" not in asked)
    if "decoder" in asked:
        row = compare.evaluate_decoder(model, task, config.objective, asked, start, references,
                                       seed, device, autocast)
        print(f"    {asked}: solved {row['solved']}/{row['num']}, {row['nfe']} passes, "
              f"{row['seconds']:.1f} s", flush=True)
        return row
    dials = make_dials(config.objective, task, config.window,
                       **{k: v for k, v in asked.items() if k not in ("test", "restarts")})
    restarts = asked.get("restarts", 0)
    counts = ("latents", "window", "candidates")
    shown = (f"{k} {show_count(v, task) if k in counts else v}" for k, v in asked.items())
    label = " ".join([name, *shown])
    # The first pass of each shape loads kernels. That is not on the clock, but for puzzle files,
    # whose shapes are many.
    if device.type == "cuda" and file == "own":
        evaluate(model, task, config.objective, dials, start, None, seed, device, autocast)
    metrics, answers, stats = evaluate(model, task, config.objective, dials, start, references,
                                       seed, device, autocast, label=label, restarts=restarts)
    row = {"objective": config.objective,
           "trained_window": config.window if config.objective == "mtp" else None,
           "latents": show_count(dials.latents, task), "order": dials.order,
           "tokens_per_step": dials.tokens_per_step, "temperature": dials.temperature, **metrics}
    if "test" in asked:
        row.update(test=asked["test"], restarts=restarts,
                   candidates=show_count(dials.candidates, task))
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


def order():
    """What the tables show, and in which order: {preset: [name, ...]}."""
    return {preset: [r.name for r in runs] for preset, runs in FINDINGS.items()}


def example_decodes():
    """One board of the shipped checkpoint, without and with latents -> task, and for each its
    title, the steps, metrics and the trace.

    On the CPU whatever --device says, so that it is the same board everywhere.
    """
    cpu, found = torch.device("cpu"), []
    model, task, config = load_model(HERE / DIAL_FILE, cpu)
    start, _ = task.test_set(1)
    for title, n in (("n = 0: no latents", 0), ("n = all: all latents", ALL)):
        dials, history = make_dials(config.objective, task, latents=n), []
        metrics, answers, stats = evaluate(model, task, config.objective, dials, start, None,
                                           BOARD_SEED, cpu, nullcontext(), history=history)
        shown = trace(task, start, None, history, answers, stats, {})
        found.append((title, history, metrics, shown))
    return task, found


def example_board(results):
    """That board at a few moments, without and with latents -> Markdown."""
    task, decodes = example_decodes()
    columns = [(title, [step.tokens[0, task.P:].tolist() for step in history], metrics["nfe"],
                metrics["tokens"]) for title, history, metrics, _ in decodes]
    found = report.load_results(results, order())
    return report.board(found, columns, BOARD_MOMENTS, task.N, BOARD_SEED)


# --------------------------------------------------------------------------------------------------
# Command line


def parse_args(argv):
    p = Parser(__doc__)
    nums = ", ".join(f"{n:,} for {preset}" for preset, n in NUM.items())
    p.add_argument("--preset", choices=sorted(FINDINGS), help="what to train and evaluate")
    p.add_argument("--seeds", type=number(1, 1000), default=1,
                   help="how many seeds, each trained and evaluated; default 1")
    p.add_argument("--first-seed", type=number(0, 2**31), default=0, help="the first; default 0")
    p.add_argument("--table", action="store_true",
                   help="print the tables, from the results folder; no training")
    p.add_argument("--boards", action="store_true",
                   help="print one board at three moments, without and with latents; no training")
    p.add_argument("--write", action="store_true",
                   help="write tables and board into RESULTS.md and README.md; no training")
    p.add_argument("--figures", action="store_true",
                   help="draw the figures into the results folder; no training")
    p.add_argument("--animate", action="store_true",
                   help="draw that board being filled, step by step, as latents.gif into the "
                   "results folder; no training")
    p.add_argument("--results", type=path, default=str(HERE / "results"), metavar="DIR",
                   help="results folder; default: results/ beside this program")
    p.add_argument("--out", type=path, default="out", metavar="DIR",
                   help="folder for checkpoints; default out")
    p.add_argument("--puzzles", type=path, metavar="DIR", help="folder of puzzle files to test on "
                   f"({', '.join(TESTS[1:])}); what is not there is left out")
    p.add_argument("--num", type=number(1, 1_000_000),
                   help=f"samples per row; default {nums}, else 2,048")
    p.add_argument("--max-steps", type=number(*RANGES["max_steps"]),
                   help="optimiser steps, instead of the preset's (said in the json)")
    p.add_argument("--max-seconds", type=number(1, RANGES["max_seconds"][1], kind=float),
                   help="training seconds, instead of the preset's (said in the json)")
    p.add_argument("--only", metavar="NAMES", help="only the runs of these names, with commas")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    return p.parse_args(argv)


def show_results(args):
    """--table, --boards, --write, --figures, --animate: from the results folder alone."""
    texts = {}
    if args.table or args.write:
        texts.update(report.tables(args.results, order()))
    if args.table:
        print("\n\n".join(texts.values()))
    if args.boards or args.write:
        texts["board"] = example_board(args.results)
    if args.boards:
        print(texts["board"])
    if args.write:
        for file in report.write_pages(PAGES, texts, HERE):
            say(f"wrote {file}")
    if args.figures:
        for file in figures.draw(report.load_results(args.results, order()), args.results):
            print(f"drew {printable(file, 200)}")
    if args.animate:
        file = Path(args.results) / "latents.gif"
        animate([(title, shown) for title, *_, shown in example_decodes()[1]], file)
        print(f"drew {printable(file, 200)}")


def chosen_runs(args):
    """--preset and --only -> Runs. Raises BadInput for a name that the preset lacks."""
    runs = FINDINGS[args.preset]
    if args.only is None:
        return runs
    names, asked = [r.name for r in runs], args.only.split(",")
    unknown = sorted(set(asked) - set(names))
    if unknown:
        raise BadInput(f"--only {printable(', '.join(unknown))} is not in preset {args.preset}; "
                       f"legal: {', '.join(names)}")
    return [r for r in runs if r.name in asked]


def main(argv=None):
    args = parse_args(argv)
    if args.table or args.boards or args.write or args.figures or args.animate:
        show_results(args)
        return
    if not args.preset:
        raise BadInput(f"nothing to do; give --preset ({', '.join(sorted(FINDINGS))}), --table, "
                       "--boards, --write, --figures or --animate")
    runs, out = chosen_runs(args), printable(args.out, 200)
    print(f"preset {args.preset}, {choose_device(args.device)[2]}", flush=True)
    for r in runs:
        how = f"trained here; what {out} already holds is taken up"
        print(f"  {r.name}: {f'loaded from {r.shipped}' if r.shipped else how}", flush=True)
    command = shlex.join(["python", "reproduce.py", *(sys.argv[1:] if argv is None else argv)])
    start, done = time.perf_counter(), []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for r in runs:
            done.append(do_run(args.preset, r, seed, args, command))
    if args.preset == "decoders":
        print(f"\n{compare.tables(done)}")
        return
    print(f"\n{report.table({args.preset: done}, order())}\n")
    for line in report.findings(done):
        print(line)
    written = printable(f"{args.results}/{args.preset}", 200)
    print(f"{time.perf_counter() - start:.0f} s in all; written to {written}")


if __name__ == "__main__":
    end(run(main))
