"""Train what learns to decode, and put it beside plain, the best fixed threshold and the ceiling.

    B samples   A cells   S positions

    python -m decoders.learned --ckpt results/sudoku9-cpu/mdm-seed0.pt --what filter
    python -m decoders.learned --ckpt FILE --what policy --reward add --alpha 6   # haste pays
    python -m decoders.learned --ckpt FILE --what certainty --json out/certainty.json

filter and policy (heads.py) leave the model as it is, certainty and mdpo (tune.py) train a copy.
Three streams of puzzles, none of which the model was trained on: one to train on, one to choose a
knob by, and the test set, where the whole curve is shown and the chosen point marked.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json
import time
from dataclasses import replace

import torch

from data import make_task
from decoders import OBJECTIVES_DECODED, finish
from decoders.board import Board
from decoders.heads import (filter_decode, odds, policy_decode, replay, train_filter,
                            train_policy)
from decoders.oracle import oracle_decode
from decoders.plain import plain
from decoders.tune import tune_certainty, tune_mdpo
from metrics import summarize
from objectives import OBJECTIVES
from plumbing.checkpoint import load_model, write_text
from plumbing.cli import DEVICES, BadInput, Parser, choose_device, end, number, path, run, say
from plumbing.randomness import sample_keys

WHAT = ("filter", "policy", "certainty", "mdpo")
TAUS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
POOL = 2000  # base puzzles of a stream; symmetries make more of them
STREAMS = {"training": 1_000_001, "validation": 1_000_002}  # added to the seed of the run
SLACK = 0.05  # how much less than plain may be solved by a knob that is chosen for its speed

# --------------------------------------------------------------------------------------------------
# Puzzles


def stream(task, config, name, num, seed, device):
    """Puzzles that neither the model's training nor the test set holds -> start (num, S), answers.

    name: training or validation. A task of the same kind is made with another seed, so it draws as
    training does: on 9x9 without symmetric copies of test puzzles. (task.held_out() would not do:
    for puzzles it IS the test set.) On small boards equal puzzles are left out one by one.
    """
    small = config.train_size and min(config.train_size, POOL)
    own = make_task(replace(config, seed=config.seed + STREAMS[name], train_size=small or POOL,
                            train_file=""))
    test = {tuple(row) for row in task.test_set(1000)[0].tolist()}
    generator = torch.Generator(device).manual_seed(seed)
    starts, answers, found = [], [], 0
    for _ in range(100):
        tokens, given = own.train_batch(num, generator, device)
        cells = tokens[:, task.P:]
        start = task.start(tokens[:, :task.P], None if given is None else
                           cells.masked_fill(~given, task.MASK))
        new = torch.tensor([tuple(row) not in test for row in start.tolist()], device=device)
        starts, answers, found = [*starts, start[new]], [*answers, cells[new]], found + new.sum()
        if found >= num:
            return torch.cat(starts)[:num], torch.cat(answers)[:num]
    raise BadInput(f"the {name} stream of task {task.name} holds hardly a puzzle that the test set "
                   "does not; use a larger board")


# --------------------------------------------------------------------------------------------------
# Measuring


@torch.no_grad()
def measure(model, task, ranks, puzzles, loop, seed=0, batch_size=128):
    """Decode puzzles (start, answers) by loop(board, answers) -> a row of numbers, solved (num,).

    answers are for the ceiling alone; every other loop must leave them. What a number means:
    metrics.py.
    """
    start, answers = puzzles
    keys = sample_keys(seed, start, copies_differ=False)
    parts, began = [], time.perf_counter()
    for i in range(0, len(start), batch_size):
        rows = slice(i, i + batch_size)
        board = Board(model, task, ranks, start[rows], keys[rows])
        tokens, stats = finish(board, loop(board, answers[rows]))
        parts.append((tokens[:, task.P:], stats["nfe"], stats["tokens"]))
    found, nfe, pairs = (torch.cat(part) for part in zip(*parts, strict=True))
    stats = {"nfe": nfe, "tokens": pairs}
    row = summarize(task, start, found, answers, stats, time.perf_counter() - began)
    return row, stats["solved"]


def curve(name, model, task, ranks, test, validation, loops, reference, rows):
    """Append to rows how `name` does on the test set at every knob of loops {value: loop}.

    The value `chosen` on the validation stream: the fewest passes among those that solve at least
    as many as plain less SLACK, or the one that solves most. reference: plain's measurements on
    test and validation, (row, solved) each; won, lost: the test puzzles that it did otherwise.
    """
    tried = {}
    if len(loops) > 1:
        tried = {v: measure(model, task, ranks, validation, loop)[0] for v, loop in loops.items()}
    enough = reference[1][0]["solved_rate"] - SLACK
    good = {v: row["nfe"] for v, row in tried.items() if row["solved_rate"] >= enough}
    best = min(good, key=good.get) if good else max(
        tried, key=lambda v: tried[v]["solved_rate"], default=None)
    for value, loop in loops.items():
        row, solved = measure(model, task, ranks, test, loop)
        before = reference[0][1]
        row = {"name": name, "knob": value, **row, "chosen": len(loops) > 1 and value == best,
               "won": int((solved & ~before).sum()), "lost": int((before & ~solved).sum())}
        rows.append(row)
        show(row)


def show(row):
    low, high = (100 * rate for rate in row["interval"])
    knob = "" if row["knob"] is None else f" at {row['knob']}"
    print(f"{row['name']}{knob}: solved {row['solved']}/{row['num']} ({low:.1f}-{high:.1f} %), "
          f"{row['nfe']} passes, {row['tokens']} tokens; against plain +{row['won']} "
          f"-{row['lost']}{'  <- chosen on the validation stream' * row['chosen']}", flush=True)


@torch.no_grad()
def calibration_error(confidence, unknown, right, bins=10):
    """ECE: mean |share right - mean confidence| over equal bins, weighted by their cells."""
    c, hit = confidence[unknown].double(), right[unknown].double()
    which = (c * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.double, device=c.device).index_add_(0, which, hit - c)
    return (gap.abs().sum() / len(c)).item()


def over_taus(head):
    """-> {tau: loop}: head's filter over the whole knob; of odds: fixed thresholds."""
    return {tau: lambda board, _, tau=tau: filter_decode(board, head, tau) for tau in TAUS}


# --------------------------------------------------------------------------------------------------
# What is trained


def train_and_measure(what, model, task, config, args, device):
    """Train `what` and measure it -> the rows of a report."""
    ranks, num = OBJECTIVES[config.objective].ranks, args.num
    generator = torch.Generator(device).manual_seed(args.seed)
    test = tuple(part.to(device) for part in task.test_set(num))
    validation = stream(task, config, "validation", num, args.seed, device)
    start, answers = stream(task, config, "training", args.puzzles, args.seed, device)
    reference = [measure(model, task, ranks, puzzles, lambda board, _: plain(board))
                 for puzzles in (test, validation)]
    rows, log = [], []
    known = (task, ranks, test, validation)

    def add(name, loops, by=model):
        curve(name, by, *known, loops, reference, rows)

    rows.append({"name": "plain", "knob": None, **reference[0][0], "chosen": False, "won": 0,
                 "lost": 0})
    show(rows[0])
    add("EGP, knows the answers", {None: oracle_decode})
    add("threshold", over_taus(odds))
    began = time.perf_counter()
    if what == "filter":
        data = replay(model, task, ranks, start, answers)
        for corrects, name in ((True, "filter"), (False, "filter, the paper's form")):
            steps = 200 if corrects else 1000  # it has more to learn
            add(name, over_taus(train_filter(*data, generator, corrects, steps)))
    elif what == "policy":
        head = train_policy(model, task, ranks, start, generator, args.updates, alpha=args.alpha,
                            additive=args.reward == "add", log=log)
        add(f"policy, {args.reward}", {
            boost: lambda board, _, boost=boost: policy_decode(board, head, boost)
            for boost in (0.5, 0.8, 1.0, 1.2)})
    elif what == "certainty":
        own, right = own_answers(model, task, ranks, start, args.seed)
        say(f"{int(right.sum())} of {len(start)} training puzzles answered right by the model")
        if not right.any():
            raise BadInput("the model answers no training puzzle right; train it longer, or give "
                           "more --puzzles")
        for beta in sorted({0.0, args.beta}):  # 0: the same data, no forcing
            tuned = tune_certainty(model, task, ranks, start[right], own[right], generator, beta,
                                   args.updates)
            add(f"threshold, beta {beta:g}", over_taus(odds), tuned)
            log.append({"beta": beta, "ece": calibration_error(
                *replay(tuned, task, ranks, *validation))})
        log.append({"beta": None, "ece": calibration_error(
            *replay(model, task, ranks, *validation))})
    elif what == "mdpo":
        tuned = tune_mdpo(model, task, ranks, start, answers, generator, args.updates,
                          lr=args.lr, log=log)
        for name, by in (("before, k", model), ("mdpo, k", tuned)):
            add(name, {k: lambda board, _, k=k: plain(board, k) for k in (1, 2, 4, 8)}, by)
    return rows, log, round(time.perf_counter() - began, 1)


@torch.no_grad()
def own_answers(model, task, ranks, start, seed, batch_size=128):
    """What the model itself answers, in few passes -> (B, A), and whether the rules agree (B,)."""
    parts = []
    for part in start.split(batch_size):
        board = Board(model, task, ranks, part, sample_keys(seed, part, copies_differ=False))
        finish(board, filter_decode(board, odds, 0.95))
        parts.append(board.symbols)
    own = torch.cat(parts)
    return own, task.check(start, own)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--ckpt", type=path, required=True, metavar="FILE",
                   help="checkpoint of objective mdm or sidm, on a task with one answer")
    p.add_argument("--what", choices=WHAT, default="filter", help="what to train; default filter")
    p.add_argument("--num", type=number(1, 1000), default=200,
                   help="puzzles to test on, and as many to choose by; default 200")
    p.add_argument("--puzzles", type=number(1, 100_000), default=500,
                   help="puzzles to train on; default 500")
    p.add_argument("--updates", type=number(0, 100_000), metavar="N",
                   help="optimiser steps; default policy 60, certainty 60, mdpo 15")
    p.add_argument("--reward", choices=("multiply", "add"), default="multiply",
                   help="policy: how speed and success make a reward; add: haste pays in any case")
    p.add_argument("--alpha", type=number(0.0, 100.0, kind=float), default=1.0,
                   help="policy: what speed is worth; default 1")
    p.add_argument("--beta", type=number(0.0, 100.0, kind=float), default=2.0,
                   help="certainty: weight of the forcing; default 2")
    p.add_argument("--lr", type=number(0.0, 1.0, kind=float), default=1e-5,
                   help="mdpo: learning rate; default 1e-5")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--json", type=path, metavar="FILE", help="write all numbers there")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    if config.objective not in OBJECTIVES_DECODED or not task.unique_answer:
        raise BadInput(f"--ckpt {args.ckpt}: {config.objective} on {task.name}; needed is "
                       f"{' or '.join(OBJECTIVES_DECODED)} on a task whose samples have one answer")
    if args.updates is None:
        args.updates = 15 if args.what == "mdpo" else 60
    say(reason)
    model.eval().requires_grad_(False)
    with autocast:
        rows, log, seconds = train_and_measure(args.what, model, task, config, args, device)
    if args.json:
        asked = {k: v for k, v in vars(args).items() if k not in ("json", "device")}
        write_text(args.json, json.dumps({**asked, "device": str(device), "seconds": seconds,
                                          "rows": rows, "log": log}, indent=1) + "\n")


if __name__ == "__main__":
    end(run(main))
