"""The command lines of train.py and sample.py, the puzzles they read, the boards they show."""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import config as configuration
from config import MAY_CHANGE, PRESETS, Config
from data.files import read_text
from metrics import entropy_floor, held_out_likelihood
from objectives import OBJECTIVES, ORDERS, make_sampling_params
from plumbing.checkpoint import load_checkpoint, write_text
from plumbing.cli import (DEVICES, BadInput, Parser, add_config_flags, number, path, printable,
                          say)
from plumbing.trace import MOST


def parse_train_args(description, argv):
    """Command line -> checked Config, resume flag. Defaults < preset < flags."""
    p = Parser(description)
    p.add_argument("--preset", choices=sorted(PRESETS), help="a set of fields; flags override it")
    p.add_argument("--resume", action="store_true",
                   help="continue from OUT/ckpt.pt with its config; an empty OUT starts fresh")
    add_config_flags(p)
    flags = vars(p.parse_args(argv))
    preset, resume = flags.pop("preset"), flags.pop("resume")
    asked = {**PRESETS.get(preset, {}), **flags}
    config = Config(**asked)
    file = Path(config.out) / "ckpt.pt"
    if resume and file.exists():
        saved = load_checkpoint(file)["config"]
        configuration.check_same_run(saved, asked, file)
        changed = {k: v for k, v in asked.items() if k in MAY_CHANGE}
        changed["out"] = config.out  # the folder may have been renamed
        config = replace(saved, **changed)
    configuration.check(config)
    configuration.check_asked(config, flags)
    return config, resume


def parse_sample_args(description, argv):
    """The command line of sample.py."""
    p = Parser(description, epilog="Parameters without a meaning for the objective are refused.")
    whole = number(1, 1_000_000)
    p.add_argument("--ckpt", type=path, metavar="FILE",
                   help="checkpoint of train.py; carries task, objective and sizes")
    p.add_argument("--num", type=whole, help="number of samples; with --puzzles: of puzzles from "
                   "the file (default all); with --puzzle: of answers, at T = 1 and with pass@k")
    p.add_argument("--puzzle", metavar="STRING",
                   help="one puzzle (81 characters, or a graph in its task's text format)")
    p.add_argument("--puzzles", type=path, metavar="FILE",
                   help="a file of puzzles; README.md lists the formats")
    p.add_argument("--answers", type=path, metavar="FILE",
                   help="write puzzle, answer, solved and confidence to FILE, a line per sample")
    p.add_argument("--trace", type=path, metavar="FILE", help="write every step to FILE, as .json "
                   f"for viewer/viewer.html or as a page (.html); at most {MOST} samples")
    p.add_argument("--latents", type=number(0, all_=True), metavar="N|all",
                   help="scdm, bcdm: latent tokens, redrawn in each step; default all")
    p.add_argument("--window", type=number(1, all_=True), metavar="W|all",
                   help="mtp: window with W - 1 latents; default: as trained")
    p.add_argument("--order", choices=ORDERS, help="which cell is decoded next; default: "
                   "confidence for puzzles, random for generation")
    p.add_argument("--candidates", type=number(1, all_=True), metavar="N|all",
                   help="cells that compete for being decoded; default: all, for scdm and bcdm 8")
    p.add_argument("--tokens-per-step", type=whole, metavar="K",
                   help="cells committed per forward pass; default 1")
    p.add_argument("--temperature", type=number(0.0, 1e6, kind=float), metavar="T",
                   help="0 is greedy; default: 0 for puzzles, 1 for generation")
    p.add_argument("--decoder", metavar="NAME|list",
                   help="decode by a rule of another paper; list shows all, without a --ckpt")
    p.add_argument("--decoder-param", action="append", metavar="[NAME=]VALUE",
                   help="a parameter of that decoder; without a name its first one")
    p.add_argument("--restarts", type=number(0, 1000), default=0, metavar="R",
                   help="decode samples that break the rules again, up to R times; default 0")
    p.add_argument("--bound", action="store_true", help="print the likelihood of --num (default "
                   "256) held-out samples, or its bound (diffusion, 32 masks per sample)")
    p.add_argument("--seed", type=number(0, 2**32), default=0,
                   help="seed of the order, the latents and the sampled symbols; default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                   help="auto: when stdout is a terminal")
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = p.parse_args(argv)
    check_together(args)
    return args


def check_together(args):
    """Flags that need or exclude each other. Raises BadInput."""
    if args.decoder == "list":
        return
    asked = {name: getattr(args, name) for name in (
        "decoder", "order", "candidates", "latents", "window", "tokens_per_step", "temperature",
        "puzzle", "puzzles", "answers")} | {"restarts": args.restarts or None}
    for name in (name for name, value in asked.items() if args.bound and value is not None):
        raise BadInput(f"--bound decodes nothing, so --{name.replace('_', '-')} has no meaning "
                       "with it; drop one of them")
    if args.ckpt is None:
        raise BadInput("the following arguments are required: --ckpt")
    for flag, file in (("--trace", args.trace), ("--answers", args.answers)):
        for name, other in (("--ckpt", args.ckpt), ("--puzzles", args.puzzles)):
            refuse_overwriting(flag, file, name, other)
    if args.decoder_param and not args.decoder:
        raise BadInput(f"--decoder-param {printable(args.decoder_param[0])} needs a --decoder; "
                       "--decoder list shows them")
    for flag, given in (("--bound", args.bound), ("--restarts", args.restarts)):
        if args.trace and given:
            raise BadInput(f"--trace shows a single decode, but {flag} is not one; drop one of "
                           "them")


def refuse_overwriting(flag, file, name, other):
    """Raises BadInput if `flag` would write to the file that `name` reads."""
    if file and other and os.path.realpath(file) == os.path.realpath(other):
        raise BadInput(f"{flag} {printable(file, 200)} would overwrite the file of {name}; give "
                       "another one")


def use_color(choice):
    if choice == "auto":
        return sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return choice == "always"


def read_request(args, task, config, choose_decoder):
    """sample.py's arguments -> start (num, S), references (num, A) or None, SamplingParams.

    choose_decoder: decoders.choose. Raises BadInput.
    """
    asked = {name: getattr(args, name) for name in ("order", "candidates", "latents", "window",
                                                    "tokens_per_step", "temperature")}
    if args.puzzle is not None and (args.num or 1) > 1 and args.temperature is None:
        asked["temperature"] = 1.0  # several answers to one puzzle
    from_user = args.puzzle is not None or args.puzzles is not None
    greedy = task.unique_answer or from_user
    if args.decoder:
        sampling = choose_decoder(task, greedy, args.decoder, args.decoder_param,
                                  config.objective, asked)
    else:
        sampling = make_sampling_params(config.objective, task, config.window, greedy, **asked)
    if from_user:
        start, references = load_puzzles(task, args.puzzle, args.puzzles, args.num)
    else:
        start, references = task.test_set(args.num or 1)
    if OBJECTIVES[config.objective].next_token and (start[:, task.P:] != task.MASK).any():
        raise BadInput(f"objective {config.objective} reads from left to right and cannot see "
                       "givens to the right; solve puzzles with mdm, scdm, sidm or mtp")
    return start, references, sampling


def load_puzzles(task, puzzle=None, file=None, num=None):
    """One puzzle, or a file of them -> start (num, S), references (num, A): find_references().

    num: copies of the one puzzle, or number of puzzles from the file. Raises BadInput with file and
    line for puzzles that have no solution.
    """
    if puzzle is not None and file is not None:
        raise BadInput("--puzzle and --puzzles were both given; give one")
    if puzzle is not None:
        puzzles, notes = task.read(puzzle, "--puzzle")
        if len(puzzles) > 1:
            raise BadInput(f"--puzzle holds {len(puzzles)} puzzles; give a file with --puzzles")
        puzzles = puzzles * (num or 1)
    else:  # lines after the first --num puzzles are not read
        puzzles, notes = task.read(read_text(file), file, num)
        if num and num > len(puzzles):
            raise BadInput(f"--num {num} is more than the {len(puzzles)} puzzles in "
                           f"{printable(file, 200)}")
    for note in notes:
        say(note)
    return torch.tensor([p[0] for p in puzzles]), find_references(puzzles, task)


def find_references(puzzles, task):
    """-> (num, A), a row of -1 if there is none, which is reported on stderr. Raises BadInput."""
    references, lacking, solved = [], {}, {}
    for start, answer, place in tqdm(puzzles, desc="checking puzzles", delay=2, leave=False):
        why = None
        if answer is None and tuple(start) not in solved:
            try:
                solved[tuple(start)] = task.reference(start)
            except BadInput as e:
                raise BadInput(f"{place}: {e}") from None
        if answer is None:
            answer, why = solved[tuple(start)]
        if answer is None:
            lacking.setdefault(why, []).append(place)
        references.append([-1] * task.A if answer is None else answer)
    for why, places in lacking.items():
        say(f"{len(places)} of {len(puzzles)} without a reference ({why}; first: {places[0]}): "
            "scored by the rules alone")
    return torch.tensor(references)


def likelihood_report(args, model, task, config, device, autocast):
    """-> what sample.py --bound prints: one line, or with --json one object."""
    nats, error, exact = held_out_likelihood(model, task, config.objective, config.window,
                                             args.num or 256, 32, device, autocast)
    floor = entropy_floor(task)
    if args.json:
        return json.dumps({"task": task.name, "objective": config.objective, "nats_per_cell": nats,
                           "standard_error": error, "exact": exact, "floor": floor})
    what = "-log p" if exact else "bound on -log p"
    line = f"{what}: {nats:.4f} +- {error:.4f} nats per cell"
    if floor is None:
        return line
    return (f"{line}; the entropy of uniformly random boards is {floor:.4f}, "
            f"{task.A * (nats - floor):.2f} nats per board lower")


def answers_to_file(file, task, start, answers, stats):
    """Write a line per sample: puzzle, answer, solved (1 or 0), confidence, with tabs between."""
    lines = ["puzzle\tanswer\tsolved\tconfidence\n"]
    empty = task.blanks(start).all(dim=1)
    for i in range(len(start)):
        puzzle = "" if empty[i] and task.name == "sudoku-gen" else task.format(start[i])
        answer = task.format_answer(answers[i])
        solved, confidence = int(stats["solved"][i]), stats["confidence"][i].item()
        lines.append(f"{puzzle}\t{answer}\t{solved}\t{confidence:.4f}\n")
    write_text(file, "".join(lines))


def solved_line(task_name, objective, metrics):
    """metrics: from metrics.summarize() -> one line: the number solved, with its interval."""
    low, high = metrics["interval"]
    return (f"{task_name} {objective}: solved {metrics['solved']}/{metrics['num']} = "
            f"{100 * metrics['solved_rate']:.1f} % "
            f"(95 % interval {100 * low:.1f}-{100 * high:.1f})")


def show(task, start, answers, history, stats, report, color):
    """Print each step of a single sample, or the first five answers; mistakes in words."""
    for s in range(min(len(start), 5)):
        before = start[s, task.P:]
        if len(start) == 1:
            for step, record in enumerate(history, 1):
                now = record["tokens"][s, task.P:].cpu()
                board = task.render(start[s], now, before, color)
                print(f"step {step} of {len(history)}\n{board}\n")
                before = now
        if len(start) > 1 or not history:
            print(f"sample {s + 1}\n{task.render(start[s], answers[s], answers[s], color)}")
        found = task.mistakes(start[s], answers[s])
        if bool(stats["solved"][s]) == bool(found):  # check() and mistakes() are separate code
            raise RuntimeError(f"the checkers of task {task.name} disagree about sample {s + 1}")
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        print(("mistakes: " + "; ".join(found[:5]) + more if found else "valid") + "\n")
    line = solved_line(task.name, report["objective"], report)
    if report["exact"] is not None:
        line += (f", exact {report['exact']}/{report['references']}, "
                 f"cells {100 * report['cell_acc']:.1f} %")
    if report["num"] > 1:
        line += f", {report['distinct']} different answer{'s' if report['distinct'] > 1 else ''}"
    for name in (name for name in report if name.startswith("pass@")):
        line += f", {name}: {'yes' if report[name] else 'no'}"
    print(line)
    if report["decoder"]:
        chosen = ", ".join(f"{k} = {value}" for k, value in report["decoder_params"].items())
        print(f"decoder {report['decoder']} ({chosen}): {report['undone']} cells undone per "
              f"sample, Kendall's tau of commits and cells {report['order_tau']}")
    else:
        order = report["order"]
        if order in ("confidence", "margin", "entropy"):
            order += f" over {report['candidates']} candidates"
        print(f"order {order}, latents {report['latents']}", end=", ")
    print(f"{report['nfe']} forward passes and {report['tokens']} tokens per sample, "
          f"{report['seconds']:.2f} s")
