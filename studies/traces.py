"""What infilling is good for, measured: one checkpoint, one table, nothing trained.

    B samples   A cells   K symbols   r cells of reasoning: all to be found but the asked ones

    python -m studies.traces --ckpt FILE --num N [--json FILE]

After "No Compute Left Behind", arXiv 2510.19990: (a) the asked cells first or last, (b) exit when
the model is confident of them, (c) reasoning sampled with the right answer clamped: the posterior
over traces, (d) the log-probability of the right answer as the score of half a trace. (a) and (b)
decode greedily without a reference; (c) and (d) sample at T = 1, towards a KNOWN answer. The
paper's model has 8B parameters and writes text; here a checker says which trace is valid.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import torch

import decoders
from decoders.board import Board
from decoders.infill import DECODERS, asked_cells, infill
from metrics import wilson
from noise import sample_keys
from objectives import OBJECTIVES
from plumbing.checkpoint import load_model
from plumbing.cli import BadInput, Parser, choose_device, end, run, say
from sample import evaluate
from studies.common import add_flags, add_json_flag, in_batches, write_json

GAMMAS = (0.01, 0.1, 0.3, 1.0)  # nats
THIRDS = (0, 1, 2, 3)  # how much of the reasoning is known when a trace is scored


def puzzles_with_asked(task, num, region):
    """The first `num` test puzzles with something asked -> start, references, asked (bool (B, A)).

    Raises BadInput for a task without references: any board is right, so there is none to clamp.
    """
    start, references = task.test_set(num)
    if references is None:
        raise BadInput(f"task {task.name} has no right answer to ask for; give --ckpt a model of "
                       "sudoku, star or planning")
    asked = asked_cells(task, start, region)
    has = asked.any(dim=1)
    if not has.any():
        raise BadInput(f"--region {region}: none of the {num} puzzles has anything to be found "
                       "there; give another one, or a larger --num")
    if not has.all():
        say(f"{int((~has).sum())} of {num} puzzles left out: nothing to be found in the region")
    return start[has], references[has], asked[has]


def clamp(task, start, references, asked):
    """The same puzzles with the right answer in the asked cells, as given ones -> (B, S)."""
    cells = torch.where(asked, references, start[:, task.P:])
    return torch.cat([start[:, :task.P], cells], dim=1)


def auc(score, valid):
    """P(a valid one scores above an invalid one), ties half -> value, (low, high); or None.

    The interval: 95 %, normal, with DeLong's variance (1988), cut to 0..1. It has no width where
    the two are separated without a mistake. None where one kind has fewer than two.
    """
    yes, no = score[valid], score[~valid]
    if min(len(yes), len(no)) < 2:
        return None
    above = (yes.unsqueeze(1) > no).double() + (yes.unsqueeze(1) == no).double() / 2
    value = above.mean().item()
    variance = above.mean(dim=1).var() / len(yes) + above.mean(dim=0).var() / len(no)
    half = 1.96 * variance.item() ** 0.5
    return value, (max(0.0, value - half), min(1.0, value + half))


@torch.no_grad()
def score_traces(model, task, objective, start, references, asked, keys, region="asked"):
    """Sample at T = 1, the asked cells last, and score -> scores (B, 4), valid (B,) bool.

    score = sum over asked cells of log p(right symbol), in nats, when 0, 1/3, 2/3 and all of the r
    cells of reasoning are known. valid: whether the checker accepts the whole answer in the end.
    """
    board = Board(model, task, OBJECTIVES[objective].ranks, start, keys, temperature=1.0)
    r = (task.blanks(start) & ~asked).sum(dim=1)  # (B,)
    at = (r.unsqueeze(1) * torch.tensor(THIRDS, device=r.device) / 3).round()  # (B, 4) cells known
    scores = torch.full(at.shape, torch.nan, device=r.device)
    trace = infill(board, gamma=0.0, region=region, order="last")
    for known in range(int(r.max()) + 1):
        rows = (at == known).any(dim=1).nonzero().flatten()
        if len(rows):
            logits = board.predict(board.tokens[rows], rows)  # (R, A, K): a probe of its own
            right = logits.log_softmax(dim=-1).gather(2, references[rows].unsqueeze(2)).squeeze(2)
            score = (right * asked[rows]).sum(dim=1, keepdim=True)  # (R, 1)
            scores[rows] = torch.where(at[rows] == known, score, scores[rows])
        next(trace, None)
    for _ in trace:
        pass
    return scores, task.check(start, board.symbols)


def study(model, task, objective, num, region, seed, device, autocast):
    """(a) to (d) -> rows of plain numbers. Raises BadInput."""
    start, references, asked = puzzles_with_asked(task, num, region)
    rows = []

    def decoded(part, name, begin, temperature=0.0, **params):
        texts = [f"{name}={value}" for name, value in {"region": region, **params}.items()]
        sampling = decoders.choose(task, True, "infill", texts, objective,
                                   {"temperature": temperature})
        metrics, answers, stats = evaluate(model, task, objective, sampling, begin, None, seed,
                                           device, autocast, label=name)
        right = ((answers == references) | ~asked).all(dim=1)
        rows.append(counts(part, name, right, stats["solved"], metrics["nfe"], metrics["tokens"]))
        return right, stats["solved"]

    for order in DECODERS["infill"].params["order"].low:
        decoded("a", f"order {order}", start, gamma=0, order=order)
    for gamma in GAMMAS:
        decoded("b", f"exit at gamma {gamma}", start, gamma=gamma)
    for gamma in GAMMAS:
        decoded("b", f"order last, exit at gamma {gamma}", start, gamma=gamma, order="last")
    right, valid = decoded("c", "sampled", start, 1.0, gamma=0)
    rows.append(counts("c", "sampled, of those with the right answer", right[right], valid[right]))
    decoded("c", "sampled, answer clamped", clamp(task, start, references, asked), 1.0, gamma=0)

    def run_batch(start, keys, batch):
        scores, valid = score_traces(model, task, objective, start, references[batch].to(device),
                                     asked[batch].to(device), keys, region)
        return scores, {"valid": valid}

    with autocast:
        scores, stats, _ = in_batches(run_batch, start, sample_keys(seed, start, True), device,
                                      label="scoring")
    for third, score in zip(THIRDS, scores.T):
        value, interval = auc(score, stats["valid"]) or (None, None)
        rows.append({"part": "d", "name": f"{third}/3 of the reasoning known", "num": len(score),
                     "valid": int(stats["valid"].sum()), "auc": value, "auc_interval": interval})
    return rows


def counts(part, name, right, valid, nfe=None, tokens=None):
    """right, valid (B,) bool -> a row."""
    row = {"part": part, "name": name, "num": len(right), "nfe": nfe, "tokens": tokens}
    for kind, those in (("right", right), ("valid", valid)):
        row[kind], row[f"{kind}_interval"] = int(those.sum()), wilson(int(those.sum()), len(those))
    return row


def table(rows):
    """-> the lines that are printed."""
    def percent(r, kind):
        low, high = (100 * x for x in r[f"{kind}_interval"])
        return f"{100 * r[kind] / r['num']:5.1f} ({low:.1f}-{high:.1f})" if r["num"] else "-"

    lines = [f"   {'':40} {'puzzles':>7} {'passes':>6} {'tokens':>7}  {'asked right %':20}"
             f"  {'valid %':20}"]
    for r in rows:
        if r["part"] != "d":
            nfe, tokens = ("" if r[key] is None else r[key] for key in ("nfe", "tokens"))
            lines.append(f"{r['part']}  {r['name']:40} {r['num']:7} {nfe:>6} {tokens:>7}  "
                         f"{percent(r, 'right'):20}  {percent(r, 'valid'):20}".rstrip())
            continue
        what = ("undefined: all alike" if r["auc"] is None else
                "{:.3f} ({:.3f}-{:.3f})".format(r["auc"], *r["auc_interval"]))
        lines.append(f"d  {r['name']:40} AUC of the score for validity {what}; "
                     f"{r['valid']} of {r['num']} traces valid")
    return lines


def main(argv=None):
    p = Parser(__doc__)
    add_flags(p, 500, what="puzzles",
              ckpt="checkpoint of train.py: mdm or sidm, on star, planning or sudoku")
    p.add_argument("--region", choices=("asked", "end"), default="asked",
                   help="asked: behind the fork of a path, the last row of a board; end: the last "
                   "cell")
    add_json_flag(p)
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    say(reason)
    rows = study(model, task, config.objective, args.num, args.region, args.seed, device, autocast)
    print(f"{task.name} {config.objective}, region {args.region}, seed {args.seed}; 95 % intervals")
    print("\n".join(table(rows)))
    write_json(args.json, {
        "task": task.name, "objective": config.objective, "region": args.region, "seed": args.seed,
        "params": model.num_params(), "device": str(device), "rows": rows})


if __name__ == "__main__":
    end(run(main))
