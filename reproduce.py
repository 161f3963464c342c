"""Reproduce the findings: train what a finding needs, evaluate its sampling, write results/.

    n latents   W window

    python reproduce.py --preset demo      # two CPU cores, minutes
    python reproduce.py --table            # from results/: its pages, and two csv files
    python reproduce.py --figures          # from results/: its figures

Each training and seed is one file results/<preset>/<name>-seed<k>.json: command, config, machine,
a row for each way of decoding; its log lies beside it. No number of the pages is typed by hand: a
test compares them with these files.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from config import PRESETS, RANGES
from decoders import DECODERS
from objectives import ALL, make_sampling_params
from plumbing import figures, pages, report
from plumbing.animate import animate
from plumbing.checkpoint import load_model
from plumbing.cli import (DEVICES, BadInput, Parser, choose_device, end, number, path, printable,
                          run, say)
from plumbing.figures import COLORS, GREY, INK, Curve, Panel
from plumbing.trace import trace
from sample import evaluate
from studies import compare
from studies.runs import Run, do_run

HERE = Path(__file__).parent
BOARD_SEED = 0  # of results/latents.gif: the first seed at which n = 0 and n = all differ

# --------------------------------------------------------------------------------------------------
# EDIT HERE: what each finding trains, and how it decodes


def each(name, *counts):
    return tuple({name: n} for n in counts)


def on_tests(*sampling):
    """Each way of decoding on every test set of puzzles."""
    return tuple({"test": test, **asked} for asked in sampling for test in TESTS)


S6, DEMO, STAR, PLANNING = (PRESETS[p] for p in ("sudoku6", "demo", "star", "planning"))
S9, GEN9 = PRESETS["sudoku9"], PRESETS["sudoku9-gen"]
# For hard puzzles: the recipe of boards, and minimal puzzles (no given can be removed).
HARD = dict(optimizer="muon", muon_learning_rate=1e-3, batch_size=256, qk_norm=True,
            deep_supervision=3, minimal_fraction=1.0)
TESTS = ("in-house", "kaggle_easy_2000.txt", "radcliffe_mixed_2500.txt", "bank_diabolical_150.txt",
         "top95.txt")
STEPS = tuple({"tokens_per_step": k} for k in (2, 4, 8))
ORDERS_AND_STEPS = ({}, {"order": "margin"}, {"order": "random"}, *STEPS)
RESTARTS = each("restarts", 4, 16)
OF_EIGHT = {"candidates": 8}  # as in the paper; by default all unknown cells compete
FOUR = {"ar": dict(objective="ar"), "mtp-1": dict(objective="mtp", window="1"),
        "mtp-all": dict(objective="mtp", window="all"), "mdm": dict(objective="mdm")}
WINDOWS = dict(S6, objective="mtp", max_seconds=60.0)
SMALL = dict(S6, objective="scdm", width=96, depth=10, heads=3, optimizer="muon",
            learning_rate=2e-3, max_seconds=90.0)
SHIPPED = "results/demo-dial/scdm-seed0.pt"
WHOLE_DIAL = each("latents", 0, 1, 2, 4, 8, 16, 32, ALL)

FINDINGS = {
    # One GPU, minutes: the paper's five objectives on 6x6 boards.
    "sudoku6": (
        Run("ar", dict(S6, objective="ar")),
        Run("mtp-1", dict(S6, objective="mtp", window="1")),
        Run("mtp-all", dict(S6, objective="mtp", window="all")),
        Run("sidm", dict(S6, objective="sidm")),
        Run("scdm", dict(S6, objective="scdm"), WHOLE_DIAL),
        Run("mdm", dict(S6, objective="mdm")),
    ),
    # One GPU: all objectives on 9x9 boards, the task of the paper's Figure 1.
    "sudoku9-gen": (
        Run("ar", dict(GEN9, objective="ar")),
        Run("mtp-1", dict(GEN9, objective="mtp", window="1")),
        Run("mtp-all", dict(GEN9, objective="mtp", window="all")),
        Run("sidm", dict(GEN9, objective="sidm")),
        Run("scdm", dict(GEN9, objective="scdm"),
            each("latents", 0, 1, 2, 4, 8, 16, 32, 64, ALL)),
        Run("bcdm", dict(GEN9, objective="bcdm"),
            each("latents", 0, 1, 2, 4, 8, 16, 32, 64, ALL)),
        Run("mtp-no-latents", dict(GEN9, objective="mtp-no-latents")),
        Run("mdm", dict(GEN9, objective="mdm")),
        Run("mdm-long", dict(GEN9, objective="mdm", max_seconds=240.0)),
    ),
    # One GPU: 9x9 puzzles, givens in place; ar has the prompt layout.
    "sudoku9": (
        Run("mdm", dict(S9, objective="mdm"), on_tests(*ORDERS_AND_STEPS, *RESTARTS)),
        Run("mdm-long", dict({**S9, **HARD}, objective="mdm", max_seconds=480.0),
            on_tests(*ORDERS_AND_STEPS, *RESTARTS)),
        Run("scdm", dict(S9, objective="scdm"),
            on_tests(*(dict(n, **how) for n in each("latents", 0, 8, 32, ALL)
                       for how in ORDERS_AND_STEPS))),
        Run("sidm", dict(S9, objective="sidm"), on_tests(*ORDERS_AND_STEPS, *RESTARTS, OF_EIGHT)),
        Run("mtp-1", dict(S9, objective="mtp", window="1"), on_tests({})),
        Run("mtp-all", dict(S9, objective="mtp", window="all"), on_tests({}, *STEPS)),
        Run("ar", dict(S9, objective="ar", layout="prompt"), on_tests({})),
    ),
    # One GPU: the prompt layout, in equal seconds; givens in place: sudoku9.
    "layouts": (
        Run("mdm-prompt", dict(S9, objective="mdm", layout="prompt"),
            on_tests(*ORDERS_AND_STEPS)),
        Run("sidm-prompt", dict(S9, objective="sidm", layout="prompt"),
            on_tests(*ORDERS_AND_STEPS, OF_EIGHT)),
    ),
    # One GPU: a fraction of minimal puzzles in the training set; a fraction of 0: sudoku9.
    "difficulty": tuple(
        Run(f"mdm-minimal-{x}", dict(S9, objective="mdm", minimal_fraction=x), on_tests({}))
        for x in (0.2, 0.5, 1.0)),
    # Two CPU cores: puzzles of newspapers.
    "sudoku9-cpu": (
        Run("mdm", dict(PRESETS["sudoku9-cpu"], objective="mdm"),
            ({"test": "in-house"}, {"test": "kaggle_easy_2000.txt"}), ship=True),
    ),
    # One GPU: mtp with one model for each window, and one model for all of them.
    "windows": (
        *(Run(f"mtp-{w}", dict(WINDOWS, window=w)) for w in ("1", "4", "8", "16", "all")),
        Run("mtp-random", dict(WINDOWS, window="random"), each("window", 1, 4, 8, 16, ALL)),
    ),
    # One GPU: star graphs, where only the second token is hard. Five arms get more seconds.
    "star": (
        *(Run(f"{name}-d2", dict(STAR, arms=2, **o)) for name, o in FOUR.items()),
        *(Run(f"{name}-d5", dict(STAR, arms=5, max_seconds=120.0, **o))
          for name, o in FOUR.items()),
    ),
    # One GPU: minimal planning, by planning distance.
    "planning": tuple(Run(name, dict(PLANNING, **o)) for name, o in FOUR.items()),
    # Two CPU cores: star graphs trained live, and a shipped 6x6 model at several n.
    "demo": (
        Run("mtp-all", dict(DEMO, objective="mtp", window="all", max_steps=1200,
                            stop_at_solved=0.98)),
        Run("mtp-1", dict(DEMO, objective="mtp", window="1"), steps_of="mtp-all"),
        Run("ar", dict(DEMO, objective="ar"), steps_of="mtp-all"),
        Run("scdm", {}, each("latents", 0, 4, 16, ALL), shipped=SHIPPED),
    ),
    # One GPU: the decoders of other papers, over their parameters, on puzzles and empty boards.
    "decoders": (
        Run("puzzles", dict(S9, objective="mdm"),
            (*compare.grid("in-house"), *compare.grid("radcliffe_mixed_2500.txt")),
            like="sudoku9/mdm"),
        Run("boards", dict(GEN9, objective="mdm"), compare.grid("in-house", ceilings=()),
            like="sudoku9-gen/mdm"),
    ),
    # One GPU: the checkpoint that the demo ships.
    "demo-dial": (Run("scdm", SMALL, WHOLE_DIAL, ship=True),),
}
# Samples per row, 2,048 elsewhere. 8,192 boards of 6x6 fill a GPU, so that seconds can be compared.
NUM = {"demo": 512, "sudoku6": 8192, "windows": 8192, "sudoku9": 1000, "layouts": 1000,
       "difficulty": 1000, "decoders": 512, "sudoku9-cpu": 500}

# --------------------------------------------------------------------------------------------------
# EDIT HERE: what each figure draws (how: plumbing/figures.py; the names of rows: plumbing/pages.py)


def families(preset, mtp, labels, nudge=0, **at):
    """Both families of objectives. Dotted: two models, trained without and with latents.
    mtp: which run has none; labels: {run: label}, those that are drawn; at: where the label of a
    run stands, where that is not right of its last row."""
    pairs = [Curve("", (f"{preset}/{a}", f"{preset}/{b}"), ":", GREY)
             for a, b in (("sidm", "mdm"), (mtp, "mtp-all"))]
    return (*pairs, *(Curve(label, f"{preset}/{name}", "o--" if name == mtp else "o-",
                            at=at.get(name.replace("-", "_"), (-1, 7, 0)),
                            nudge=nudge if name == "ar" else 0)
                      for name, label in labels.items()))


def four(preset, suffix="", **at):
    """The four runs of star graphs and of planning."""
    return tuple(Curve(label, f"{preset}/{name}{suffix}", line,
                       at=at.get(name.replace("-", "_"), (-1, 5, 0)))
                 for name, label, line in (
                     ("ar", "ar", "o-"), ("mtp-1", "mtp, W = 1", "o--"),
                     ("mtp-all", "mtp, W = all", "o-"), ("mdm", "mdm", "o-")))


def puzzles(test, title, mdm=(-1, 6, -4), random=(-1, 6, 0)):
    """Several cells a pass, one, and restarts: a line from left to right."""
    of = f"test={test} candidates=all order=confidence"
    at_random = f"test={test} order=random"
    return Panel(title, "nfe", (
        Curve("mdm-long", f"sudoku9/mdm-long {of}", color="#0b2f4e"),
        Curve("mdm", f"sudoku9/mdm {of}", at=mdm),
        Curve("sidm", f"sudoku9/sidm {of}"),
        Curve("mdm, random order", f"sudoku9/mdm {at_random}", "x", at=random),
        Curve("sidm, random order", f"sudoku9/sidm {at_random}", "x")), log=True)


def layouts(test, title):
    ways = {"random\norder": "order=random", "8 candi-\ndates": "candidates=8",
            "all candi-\ndates": "candidates=all tokens_per_step=1",
            "8 cells\na pass": "candidates=all tokens_per_step=8"}
    runs = (("mdm", "sudoku9/mdm", "o-", 2), ("sidm", "sudoku9/sidm", "o-", 2),
            ("mdm, prompt", "layouts/mdm-prompt", "o--", -7),
            ("sidm, prompt", "layouts/sidm-prompt", "o--", 5))
    return Panel(title, tuple(ways), tuple(
        Curve(label, tuple(f"{run} test={test} {way}" for way in ways.values()), line,
              at=(-1, 6, up)) for label, run, line, up in runs))


def minimal(test, title, ylim):
    one = f"test={test} candidates=all order=confidence tokens_per_step=1 restarts=0"
    curve = Curve("", (f"sudoku9/mdm {one}", f"difficulty/* {one}"), color=COLORS["mdm"])
    return Panel(title, "minimal_fraction", (curve,), xlabel="fraction of minimal puzzles",
                 ylim=ylim)


def blocks(label, order, color):
    rows = [f"trained-blocks/block size={size} order={order if size > 1 else '*'}"
            for size in (1, 3, 9, 27, 81)]
    return Curve(label, tuple(rows), color=color, at=(-1, 7, 0))


def decoder_panels(run, test, ylim, legend):
    """A panel for each family of decoders, plain in grey in all of them."""
    of = f"decoders/{run} test={test} decoder="

    def swept(name, color):
        main = DECODERS[name].main
        return Curve(name, f"{of}{name} restarts=0 decoder_params={main}=*", color=color)

    def panel(title, x, *names, more=(), legend=legend):
        curves = [swept(name, f"C{i}") for i, name in enumerate(names)]
        return Panel(title, x, (swept("plain", GREY), *curves, *more), log=True, ylim=ylim,
                     legend=legend)

    more = (Curve("restarts", f"{of}plain restarts=[14]*", color="C3"),
            Curve("all right guesses", f"{of}oracle*all*", "*", INK),
            Curve("one right guess", f"{of}oracle*one*", "P", INK))
    return (panel("several cells a pass", "nfe", "threshold", "factor", "med", "eb", "klass"),
            panel("early exit", "nfe", "prophet", "sched"),
            panel("cells are undone", "nfe", "rcr", "remdm", "p2", "saber", "wino"),
            panel("look ahead, drafts, soft masks", "nfe", "ccd", "lookum", "freedave", "lrd"),
            panel("caches: the same passes, fewer pairs", "tokens", "dkv", "freecache"),
            panel("blocks, restarts, upper bounds", "nfe", "block", more=more,
                  legend=legend.replace("right", "left")))


NINE = {"ar": "ar", "mtp-no-latents": "mtp without\nlatents", "mtp-all": "mtp", "sidm": "sidm",
        "mdm": "mdm", "scdm": "scdm", "bcdm": "bcdm"}
SIX = {"ar": "ar", "mtp-1": "mtp, W = 1", "mtp-all": "mtp, W = all", "sidm": "sidm", "mdm": "mdm",
       "scdm": "scdm"}
TRAINED = (("ar", 0), ("mtp-1", -5), ("mtp-no-latents", 2), ("mtp-all", 7), ("sidm", 7),
           ("scdm", 0), ("bcdm", -12), ("mdm", 3),
           ("mdm-long", 0))  # runs, and how far above its curve the label stands
FIGURES = {  # name: panels in a row, height of a row in inches, panels
    "boards-9x9": (2, 3.6, (
        Panel("9x9 boards, by latents", "latents", families(
            "sudoku9-gen", "mtp-no-latents", NINE, -0.15, sidm=(0, 0, 11), ar=(0, 7, 0),
            mtp_no_latents=(0, 8, -14), mdm=(-1, 7, 4), bcdm=(6, 8, -4), scdm=(6, 6, -6))),
        Panel("by measured time", "ms", families(
            "sudoku9-gen", "mtp-no-latents", NINE, sidm=(0, -6, 6), ar=(0, 7, 0),
            mtp_no_latents=(0, 8, -14), mdm=(-1, 0, 9), bcdm=(6, 8, -4), scdm=(6, 6, -6))))),
    "boards-9x9-training": (1, 3.6, (Panel("9x9 boards during training", "seconds", tuple(
        Curve(name, f"sudoku9-gen/{name}", "--" if "no-latents" in name else "-",
              at=(-1, 6, up)) for name, up in TRAINED)),)),
    "boards-6x6": (2, 3.4, (
        Panel("6x6 boards, against latents", "latents", families(
            "sudoku6", "mtp-1", SIX, -0.15, sidm=(0, 6, 2), mtp_1=(0, 6, -6), mdm=(-1, 6, -5))),
        Panel("against measured time", "ms", families(
            "sudoku6", "mtp-1", SIX, sidm=(0, -6, 0), mtp_1=(0, -6, 0), mdm=(-1, 6, -5))),
        Panel("demo: the shipped model on a CPU", "latents", (Curve("scdm", "demo/scdm"),)),
        Panel("against measured time", "ms", (Curve("scdm", "demo/scdm"),)))),
    "star-graphs": (3, 3.6, (
        Panel("G(2,5)", "seconds", four("star", "-d2", mdm=(-1, 5, 6), mtp_all=(-1, 5, -8),
                                        ar=(-1, 5, 7), mtp_1=(-1, 5, -16)), chance=50),
        Panel("G(5,5)", "seconds", four("star", "-d5", mdm=(-1, 5, 6), mtp_all=(-1, 5, -8),
                                        ar=(-1, 5, 0)), chance=20),
        Panel("demo: G(2,4), on a CPU", "seconds", four("demo", mtp_all=(-1, -5, 0),
                                                        ar=(2, -2, 14), mtp_1=(-1, 0, -9)),
              chance=50))),
    "planning": (1, 3.4, (Panel("minimal planning", "distance", four(
        "planning", " distance=?", ar=(2, 6, 6), mtp_1=(3, 0, 12)), chance=50),)),
    "puzzles-9x9": (2, 3.3, (
        puzzles("in-house", "in-house test set", mdm=(-1, 4, -9)),
        puzzles("radcliffe*", "Radcliffe, five bands of rating"),
        puzzles("bank*", "diabolical (Sudoku Exchange)", mdm=(-1, 0, -12), random=(-1, -6, 6)),
        puzzles("top95", "top95"))),
    "layouts": (2, 3.4, (layouts("in-house", "in-house test set"),
                         layouts("radcliffe*", "Radcliffe"))),
    "minimal-puzzles": (3, 2.9, (minimal("radcliffe*", "Radcliffe", (78, 84)),
                                 minimal("bank*", "diabolical", (62, 80)),
                                 minimal("top95", "top95", (38, 66)))),
    "windows": (1, 3.2, (Panel("6x6 boards, mtp", "latents", (
        Curve("a model for each window", "windows/mtp-[1-9a]*", "o--", at=(0, 8, -8)),
        Curve("one model, its window random in training", "windows/mtp-random", at=(1, 4, -14))),
        ylim=(30, 103)),)),
    "decoders": (2, 2.7, decoder_panels("puzzles", "radcliffe*", (20, 103), "lower right")),
    "decoders-boards": (2, 2.7, decoder_panels("boards", "in-house", (-2, 104), "upper left")),
    "trained-blocks": (1, 3.2, (Panel(
        "9x9 boards, a model for each size of block", ("1", "3", "9", "27", "81"),
        (blocks("left to right", "left_to_right", "C0"), blocks("random order", "random", "C1")),
        xlabel="cells of a block"),)),
    "speed": (1, 3.6, (Panel("scdm: what fewer latents save", "tokens_ratio", (
        Curve("CPU", "bench-cpu/sample objective=scdm", color="C0", at=(2, 8, -6)),
        Curve("GPU", "bench-sample/sample objective=scdm", color="C1", at=(2, -8, 6))),
        y="seconds_ratio", xlabel="pairs, of those at n = all", ylim=(0.4, 1.05)),)),
    "puzzles-cpu": (1, 3.2, (Panel("9x9 puzzles on two CPU cores, in-house test set", "seconds",
                                   (Curve("mdm", "sudoku9-cpu/mdm test=in-house"),)),)),
}

# --------------------------------------------------------------------------------------------------
# Command line


def order():
    """What is shown, and in which order: {preset: [name, ...]}."""
    return {preset: [r.name for r in runs] for preset, runs in FINDINGS.items()}


def example_decodes():
    """One board of the shipped checkpoint, without and with latents -> [(title, trace)].

    On the CPU whatever --device says, so that it is the same board everywhere.
    """
    cpu, found = torch.device("cpu"), []
    model, task, config = load_model(HERE / SHIPPED, cpu)
    start, _ = task.test_set(1)
    for title, n in (("n = 0: no latents", 0), ("n = all: all latents", ALL)):
        sampling, history = make_sampling_params(config.objective, task, latents=n), []
        _, answers, stats = evaluate(model, task, config.objective, sampling, start, None,
                                     BOARD_SEED, cpu, nullcontext(), history=history)
        found.append((title, trace(task, start, None, history, answers, stats, {})))
    return found


def parse_args(argv):
    p = Parser(__doc__)
    nums = ", ".join(f"{n:,} for {preset}" for preset, n in NUM.items())
    p.add_argument("--preset", choices=sorted(FINDINGS), help="what to train and evaluate")
    p.add_argument("--seeds", type=number(1, 1000), default=1,
                   help="how many seeds, each trained and evaluated; default 1")
    p.add_argument("--first-seed", type=number(0, 2**31), default=0, help="the first; default 0")
    p.add_argument("--table", action="store_true",
                   help="print the rows of the results folder and write all.csv, bench.csv and, "
                   "where it has a folder pages/, the pages and README.md's findings; no training")
    p.add_argument("--figures", action="store_true",
                   help="draw the figures into the results folder; no training")
    p.add_argument("--animate", action="store_true",
                   help="draw one board being filled without and with latents, step by step, as "
                   "latents.gif into the results folder; no training")
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
    """--table, --figures, --animate: from the results folder alone."""
    if args.animate:
        file = Path(args.results) / "latents.gif"
        animate(example_decodes(), file)
        print(f"drew {printable(file, 200)}")
    if not args.table and not args.figures:
        return
    found = report.load_results(args.results, order())
    if args.table:
        made = pages.pages(args.results, found, order(), HERE / "README.md")
        print(report.table(found, order()))
        for file in pages.write(made):
            say(f"wrote {file}")
    if args.figures:
        rows = [*pages.result_rows(args.results, found), *pages.bench_rows(args.results)]
        for file in figures.draw(FIGURES, rows, args.results):
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
    if args.table or args.figures or args.animate:
        show_results(args)
        return
    if not args.preset:
        raise BadInput(f"nothing to do; give --preset ({', '.join(sorted(FINDINGS))}), --table, "
                       "--figures or --animate")
    runs, out = chosen_runs(args), printable(args.out, 200)
    print(f"preset {args.preset}, {choose_device(args.device)[2]}", flush=True)
    for r in runs:
        how = f"trained here; what {out} already holds is taken up"
        print(f"  {r.name}: {f'loaded from {r.shipped}' if r.shipped else how}", flush=True)
    command = shlex.join(["python", "reproduce.py", *(sys.argv[1:] if argv is None else argv)])
    args.num = args.num or NUM.get(args.preset, 2048)
    start, done = time.perf_counter(), []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for r in runs:
            done.append(do_run(args.preset, r, seed, args, command))
    print(f"\n{report.table({args.preset: done}, order())}\n")
    for line in report.findings(done):
        print(line)
    written = printable(f"{args.results}/{args.preset}", 200)
    print(f"{time.perf_counter() - start:.0f} s in all; written to {written}")


if __name__ == "__main__":
    end(run(main))
