"""Every decoder where the truth is known: a 'model' that knows the exact conditionals of a set.

    B samples   A cells   K symbols   M members of the set: 288 boards of 4x4, 576 Latin squares

    python -m studies.exact               # a table in about a minute; --json FILE keeps it

From empty boards, at T = 1, a perfect sampler makes every member equally often. The model makes no
mistake, so every error is the decoder's own: cells of one pass are sampled as if independent.
Reported: passes and pairs per board, members among the answers, the total variation distance to the
uniform distribution (beside that of as many true samples), and for the decoders of parallel.py the
error of their passes in nats, with its bound.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import torch
from tqdm import tqdm

import decoders
from config import PRESETS, Config
from data import make_task
from data.puzzles import all_boards_4x4
from decoders import DECODERS, parallel, plain
from noise import sample_keys
from objectives import SamplingParams
from plumbing.cli import BadInput, Parser, end, number, run, say
from studies.common import add_json_flag, write_json

LOG_ZERO = -30.0  # logit of an impossible symbol: never sampled, but differences stay finite
BOUNDED = (*plain.DECODERS, *parallel.DECODERS)  # each pass commits from the product of marginals
EXCESS = 1e-9  # nats: rounding of fp64


def latin_squares():
    """-> (576, 16): all squares of side 4 with every symbol once in each row and column."""
    rows = torch.cartesian_prod(*[torch.arange(4)] * 4)  # (256, 4)
    digits = torch.arange(4)
    rows = rows[(rows.sort(dim=1).values == digits).all(dim=1)]  # (24, 4) permutations
    squares = rows[torch.cartesian_prod(*[torch.arange(24)] * 4)]  # (24^4, 4, 4)
    return squares[(squares.sort(dim=1).values == digits[:, None]).all(dim=(1, 2))].flatten(1)


def fitting(symbols, support, K):
    """Which members agree with the known cells. symbols (B, A), >= K: unknown -> bool (B, M)."""
    known = torch.nn.functional.one_hot(symbols.clamp(max=K), K + 1)[..., :K].float()  # (B, A, K)
    members = torch.nn.functional.one_hot(support, K).float()  # (M, A, K)
    return known.flatten(1) @ members.flatten(1).T == known.sum(dim=(1, 2))[:, None]


class Conditionals:
    """A 'model' of the uniform distribution over support (M, A): logits log p(x_i | known cells).

    For a board that no member fits (after a wrong commit) every cell is uniform over symbols: such
    a sample is lost unless its decoder undoes something.
    """

    def __init__(self, task, support):
        self.task, self.support = task, support
        self.members = torch.nn.functional.one_hot(support, task.K).float().flatten(1)  # (M, A K)

    def __call__(self, tokens, positions, rank=None):
        """tokens (B, S), positions (S,) -> logits (B, S, K), as model.Transformer; 0 at prompts."""
        task = self.task
        if tokens.shape[1] != task.S:
            raise ValueError(f"{tokens.shape[1]} positions instead of {task.S}: set needs_network "
                             "in the spec of this decoder")
        fits = fitting(tokens[:, task.P:], self.support, task.K).float()  # (B, M)
        probs = fits @ self.members / fits.sum(dim=1, keepdim=True)  # (B, A K); nan: nothing fits
        logits = probs.log().clamp(min=LOG_ZERO).nan_to_num(0.0)
        logits = logits.view(len(tokens), task.A, task.K)
        return torch.nn.functional.pad(logits, (0, 0, task.P, 0))


def pass_error(before, after, support, K):
    """The error of one pass, and its bound -> error (B,), bound (B,) in nats, fp64; nan: no member.

    before, after (B, A): symbols, K or more where unknown. For the cells committed in between,
    given the known ones: KL(true joint | product of marginals) = sum of H - H(joint) <= sum of H -
    max H, because a joint entropy is at least as large as that of each part. (MED, arXiv
    2510.19990; EB, 2505.24857.)
    """
    fits = fitting(before, support, K)  # (B, M)
    now = (before >= K) & (after < K)  # (B, A)
    count = fits.sum(dim=1).double()  # (B,)
    count = count.where(count > 0, torch.nan)
    members = torch.nn.functional.one_hot(support, K).double()  # (M, A, K)
    p = torch.einsum("bm,mak->bak", fits.double(), members) / count[:, None, None]
    H = -torch.special.xlogy(p, p).sum(dim=-1) * now  # (B, A) of the marginals
    powers = K ** torch.arange(support.shape[1])
    pattern = (support * now[:, None]) @ powers  # (B, M): a number for a member's symbols there
    whose = torch.arange(len(now))[:, None] * K ** support.shape[1]  # no two boards share one
    _, which, size = (pattern + whose).masked_fill(~fits, -1).unique(return_inverse=True,
                                                                     return_counts=True)
    alike = size[which].double()  # (B, M): fitting members with the same pattern
    joint = count.log() - (alike.log() * fits).sum(dim=1) / count  # (B,) H(joint)
    error = (H.sum(dim=1) - joint).clamp(min=0)  # below 0 only by rounding
    return error, H.sum(dim=1) - H.amax(dim=1)


def run_errors(start, history, support, K):
    """-> error, bound (passes, B) of every pass of a run; 0 where no member fits any longer."""
    pairs = zip([start, *history[:-1]], history, strict=True)
    parts = [pass_error(before, after, support, K) for before, after in pairs]
    return [torch.stack(each).nan_to_num(0.0) for each in zip(*parts, strict=True)]


def total_variation(counts, num):
    """Of `num` answers from the uniform distribution over M members. counts (..., M)."""
    M = counts.shape[-1]
    lost = 1 - counts.sum(dim=-1) / num  # the fraction of answers that are no member
    return ((counts / num - 1 / M).abs().sum(dim=-1) + lost) / 2


def null_distribution(M, num, seed, draws=400):
    """Total variation of `num` true samples -> mean, and the range that holds 95 % of them."""
    generator = torch.Generator().manual_seed(seed)
    member = torch.randint(M, (draws, num), generator=generator)
    counts = torch.zeros(draws, M).scatter_add_(1, member, torch.ones(draws, num))
    tv = total_variation(counts, num)
    return [tv.mean().item(), *tv.quantile(torch.tensor([0.025, 0.975])).tolist()]


def measure(task, support, name, params, num, seed, traced=100):
    """Decode `num` empty boards -> a row of the table. traced: so many boards for the errors."""
    sampling = SamplingParams("-", 1, 0, 1, 1.0, name, DECODERS[name].settings(params))
    start, _ = task.test_set(num)
    keys, history = sample_keys(seed, start, copies_differ=True), []
    tokens, stats = decoders.decode(Conditionals(task, support), task, "mdm", start, sampling, keys,
                                    history)
    answers = tokens[:, task.P:]
    counts = fitting(answers, support, task.K).sum(dim=0)  # (M,)
    report = {"decoder": name, "decoder_params": params, "num": num, "members": int(counts.sum()),
              "tv": total_variation(counts, num).item(),
              **{s: stats[s].double().mean().item() for s in ("nfe", "tokens", "undone")}}
    if name in BOUNDED:
        boards = [board[:traced, task.P:] for board in
                  [start, *(change["tokens"] for change in history)]]
        error, bound = run_errors(boards[0], boards[1:], support, task.K)
        report.update(error_nats=error.sum(dim=0).mean().item(),
                      bound_nats=bound.sum(dim=0).mean().item(),
                      largest_bound_nats=bound.max().item(),
                      excess_nats=(error - bound).max().item(), traced=error.numel())
    return report


def sweep(name):
    """Values of a decoder's first parameter: its sweep, or half, once and twice the default."""
    spec = DECODERS[name]
    default = spec.params[spec.main].default
    return [{spec.main: value} for value in spec.sweep or (default / 2, default, 2 * default)]


def merged(rows):
    """Rows that differ only in the parameter become one -> [(row, the texts of its values)]."""
    groups = []
    for row in rows:
        text = str(next(iter(row["decoder_params"].values())))
        if groups and {**row, "decoder_params": 0} == {**groups[-1][0], "decoder_params": 0}:
            groups[-1][1].append(text)
        else:
            groups.append((row, [text]))
    return groups


def table(part):
    """One set of the report -> text, a line per decoder and value."""
    mean, low, high = part["null_tv"]
    lines = [f"{part['set']} ({part['size']} members): {part['num']} answers at T = 1. "
             f"TV of as many true samples: {mean:.3f} (95 %: {low:.3f}-{high:.3f})",
             f"{'decoder':10} {'parameter':30} {'passes':>6} {'pairs':>6} {'undone':>6} "
             f"{'valid %':>7} {'TV':>6}   error <= bound, nats a board"]
    for row, texts in merged(part["rows"]):
        values = f"{next(iter(row['decoder_params']))} = {' '.join(texts)}"
        line = (f"{row['decoder']:10} {values:30} {row['nfe']:6.2f} {row['tokens']:6.0f} "
                f"{row['undone']:6.2f} {100 * row['members'] / row['num']:7.1f} {row['tv']:6.3f} "
                + ("*" if row["tv"] > high else " "))
        if "error_nats" in row:
            line += f" {row['error_nats']:6.3f} <= {row['bound_nats']:.3f}"
        lines.append(line)
    bounded = [row for row in part["rows"] if "traced" in row]
    lines.append("* a larger distance than 97.5 % of true samplers have with as many answers")
    if bounded:
        worst, passes = max(r["excess_nats"] for r in bounded), sum(r["traced"] for r in bounded)
        holds = "holds" if worst <= EXCESS else "IS BROKEN"
        lines.append(f"the bound {holds} in {passes} passes: error - bound <= {worst:.1e} nats")
    return "\n".join(lines)


def main(argv=None):
    p = Parser(__doc__, prog="python -m studies.exact")
    p.add_argument("--num", type=number(1, 10**5), default=2000, help="answers of each decoder")
    p.add_argument("--seed", type=number(0, 2**31), default=0)
    p.add_argument("--decoder", choices=DECODERS, help="this one only; default: all")
    add_json_flag(p)
    args = p.parse_args(argv)
    if args.decoder and DECODERS[args.decoder].needs_network:
        raise BadInput(f"--decoder {args.decoder} uses the inside of a network, and there is none "
                       "here; leave it out")
    task = make_task(Config(**PRESETS["sudoku4"]))
    names = [args.decoder] if args.decoder else list(DECODERS)
    left_out = [name for name in names if DECODERS[name].needs_network]
    jobs = [(name, params) for name in names if name not in left_out for params in sweep(name)]
    report = []
    for title, support in (("4x4 boards", torch.tensor(all_boards_4x4())),
                           ("Latin squares", latin_squares())):
        part = {"set": title, "size": len(support), "num": args.num, "seed": args.seed,
                "null_tv": null_distribution(len(support), args.num, args.seed)}
        with torch.no_grad():
            part["rows"] = [measure(task, support, *job, args.num, args.seed)
                            for job in tqdm(jobs, desc=title, unit="run", leave=False)]
        print(table(part) + "\n", flush=True)
        report.append(part)
    if left_out:
        say(f"left out, because they use the inside of a network: {', '.join(left_out)}")
    write_json(args.json, report)


if __name__ == "__main__":
    end(run(main))
