"""Train what learns to decode, and compare it with plain, fixed thresholds and the upper bound.

    B samples   A cells   S positions

    python -m studies.learned --ckpt results/sudoku9-cpu/mdm-seed0.pt --what filter
    python -m studies.learned --ckpt FILE --what policy --reward add --alpha 6   # rewards haste
    python -m studies.learned --ckpt FILE --what certainty --json out/certainty.json

filter and policy (heads.py) leave the model frozen; certainty and mdpo (tune.py) train a copy.
Three streams of puzzles, on none of which the model was trained: one to train on, one to choose a
parameter by, and the test set, which shows the whole curve with the chosen point marked.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import time
from dataclasses import replace

import torch

from data import make_task
from decoders.plain import plain
from metrics import summarize
from noise import sample_keys
from plumbing.cli import BadInput, Parser, choose_device, end, number, run, say
from studies.common import (add_flags, add_json_flag, decode_boards, interval_text, load,
                            write_json)
from studies.heads import filter_decode, odds, policy_decode, replay, train_filter, train_policy
from studies.oracle import oracle_decode
from studies.tune import tune_certainty, tune_mdpo

WHAT = ("filter", "policy", "certainty", "mdpo")
TAUS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
POOL = 2000  # base puzzles of a stream; symmetries make more of them
STREAMS = {"training": 1_000_001, "validation": 1_000_002}  # added to the seed of the run
SLACK = 0.05  # a parameter chosen for its speed may solve this much less than plain


def stream(task, config, name, num, seed, device):
    """Puzzles that are neither in the model's training nor in the test set -> start (num, S),
    answers (num, A). Raises BadInput where a board is too small to have them.

    name: training or validation. A task of the same kind with another seed draws as training does:
    on 9x9 without symmetric copies of test puzzles. (task.held_out() would not do: for puzzles it
    IS the test set.) On small boards puzzles that equal a test puzzle are left out one by one.
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
        start = task.start(tokens[:, :task.P], cells.masked_fill(~given, task.MASK))
        new = torch.tensor([tuple(row) not in test for row in start.tolist()], device=device)
        starts, answers, found = [*starts, start[new]], [*answers, cells[new]], found + new.sum()
        if found >= num:
            return torch.cat(starts)[:num], torch.cat(answers)[:num]
    raise BadInput(f"the {name} stream of task {task.name} holds hardly a puzzle that the test set "
                   "does not; use a larger board")


def measure(model, task, ranks, puzzles, loop):
    """Decode puzzles (start, answers) by loop(board, answers) -> a row of numbers, solved (num,).

    answers are for the upper bound alone; no other loop may read them. Numbers: metrics.py.
    """
    start, answers = puzzles
    keys = sample_keys(0, start, copies_differ=False)
    tokens, stats, seconds = decode_boards(model, task, ranks, start, keys,
                                           lambda board, rows: loop(board, answers[rows]))
    stats = {name: stats[name] for name in ("nfe", "tokens")}
    row = summarize(task, start.cpu(), tokens[:, task.P:], answers.cpu(), stats, seconds)
    return row, stats["solved"]


def curve(name, model, task, ranks, test, validation, loops, reference, rows):
    """Append to rows how `name` does on the test set, for every {parameter value: loop}.

    The value `chosen` on the validation stream: the fewest passes among those that solve at least
    as many as plain less SLACK, or the one that solves most. reference: plain's measurements on
    test and validation, (row, solved) each; won, lost: test puzzles with another outcome.
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
        rows.append({"name": name, "value": value, **row,
                     "chosen": len(loops) > 1 and value == best,
                     "won": int((solved & ~before).sum()), "lost": int((before & ~solved).sum())})
        show(rows[-1])


def show(row):
    value = "" if row["value"] is None else f" at {row['value']}"
    print(f"{row['name']}{value}: solved {interval_text(row['solved'], row['num'])}, "
          f"{row['nfe']} passes, {row['tokens']} tokens; against plain +{row['won']} "
          f"-{row['lost']}{'  <- chosen on the validation stream' * row['chosen']}", flush=True)


@torch.no_grad()
def calibration_error(confidence, unknown, right, bins=10):
    """ECE: mean |fraction right - mean confidence| over equal bins, weighted by their cells."""
    c, hit = confidence[unknown].double(), right[unknown].double()
    which = (c * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.double, device=c.device).index_add_(0, which, hit - c)
    return (gap.abs().sum() / len(c)).item()


def over_taus(head):
    """-> {tau: loop}: head's filter at every threshold; with odds as head: fixed thresholds."""
    return {tau: lambda board, _, tau=tau: filter_decode(board, head, tau) for tau in TAUS}


def train_and_measure(what, model, task, config, ranks, args, device):
    """Train `what` and measure it -> rows, log, seconds of a report."""
    generator = torch.Generator(device).manual_seed(args.seed)
    test = tuple(part.to(device) for part in task.test_set(args.num))
    validation = stream(task, config, "validation", args.num, args.seed, device)
    start, answers = stream(task, config, "training", args.puzzles, args.seed, device)
    reference = [measure(model, task, ranks, puzzles, lambda board, _: plain(board))
                 for puzzles in (test, validation)]
    rows, log = [], []

    def add(name, loops, by=model):
        curve(name, by, task, ranks, test, validation, loops, reference, rows)

    rows.append({"name": "plain", "value": None, **reference[0][0], "chosen": False, "won": 0,
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
        def ece(by):
            return calibration_error(*replay(by, task, ranks, *validation))

        own, right = own_answers(model, task, ranks, start, args.seed)
        say(f"{int(right.sum())} of {len(start)} training puzzles answered right by the model")
        if not right.any():
            raise BadInput("the model answers no training puzzle right; train it longer, or give "
                           "more --puzzles")
        for beta in sorted({0.0, args.beta}):  # 0: the same data, no forcing
            tuned = tune_certainty(model, task, ranks, start[right], own[right], generator, beta,
                                   args.updates)
            add(f"threshold, beta {beta:g}", over_taus(odds), tuned)
            log.append({"beta": beta, "ece": ece(tuned)})
        log.append({"beta": None, "ece": ece(model)})
    elif what == "mdpo":
        tuned = tune_mdpo(model, task, ranks, start, answers, generator, args.updates,
                          lr=args.lr, log=log)
        for name, by in (("before, k", model), ("mdpo, k", tuned)):
            add(name, {k: lambda board, _, k=k: plain(board, k) for k in (1, 2, 4, 8)}, by)
    return rows, log, round(time.perf_counter() - began, 1)


def own_answers(model, task, ranks, start, seed):
    """The model's own answers, in few passes -> (B, A), and whether the rules accept them (B,)."""
    keys = sample_keys(seed, start, copies_differ=False)
    tokens, _, _ = decode_boards(model, task, ranks, start, keys,
                                 lambda board, _: filter_decode(board, odds, 0.95))
    own = tokens[:, task.P:].to(start.device)
    return own, task.check(start, own)


def main(argv=None):
    p = Parser(__doc__)
    add_flags(p, 200, 1000, "puzzles to test on, and as many to choose by",
              ckpt="checkpoint of objective mdm or sidm, on a task with one answer")
    p.add_argument("--what", choices=WHAT, default="filter", help="what to train; default filter")
    p.add_argument("--puzzles", type=number(1, 100_000), default=500,
                   help="puzzles to train on; default 500")
    p.add_argument("--updates", type=number(0, 100_000), metavar="N",
                   help="optimiser steps; default policy 60, certainty 60, mdpo 15")
    p.add_argument("--reward", choices=("multiply", "add"), default="multiply",
                   help="policy: how speed and success make a reward; add rewards haste anyway")
    p.add_argument("--alpha", type=number(0.0, 100.0, kind=float), default=1.0,
                   help="policy: weight of speed; default 1")
    p.add_argument("--beta", type=number(0.0, 100.0, kind=float), default=2.0,
                   help="certainty: weight of the forcing; default 2")
    p.add_argument("--lr", type=number(0.0, 1.0, kind=float), default=1e-5,
                   help="mdpo: learning rate; default 1e-5")
    add_json_flag(p)
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config, ranks = load(args.ckpt, device, lambda task: task.unique_answer,
                                      "a task whose samples have one answer")
    if args.updates is None:
        args.updates = 15 if args.what == "mdpo" else 60
    say(reason)
    with autocast:
        rows, log, seconds = train_and_measure(args.what, model, task, config, ranks, args, device)
    asked = {k: v for k, v in vars(args).items() if k not in ("json", "device")}
    write_json(args.json, {**asked, "device": str(device), "seconds": seconds, "rows": rows,
                           "log": log})


if __name__ == "__main__":
    end(run(main))
