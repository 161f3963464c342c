"""EDLM: drafts of whole answers from a diffusion model, of which an autoregressive one picks.

    python -m decoders.edlm --draft out/mdm/ckpt.pt --verify out/ar/ckpt.pt --passes 4 --num 100

    B samples   J drafts   P prompt positions   A cells   S = P + A   K symbols   u unknown cells

Cells committed in one pass are drawn from the product of their marginals, which is not their joint.
A model with a tractable likelihood knows by how much: importance weights put it right, as far as
the drafts hold an answer worth picking. Two checkpoints of one task, so it is no row of DECODERS.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json
import time

import torch
from tqdm import tqdm

from decoders.board import rank_of
from decoders.diffuspec import load_pair
from metrics import summarize
from mtp import next_token_ranks
from objectives import OBJECTIVES
from plumbing.cli import DEVICES, Parser, choose_device, end, number, path, run, say
from plumbing.randomness import sample_keys, uniform
from sample import draw


@torch.no_grad()
def edlm(drafter, verifier, task, draft_ranks, start, keys, passes=8, drafts=2):
    """The energy of an autoregressive model (EDLM, arXiv 2410.21357, the variant without training).

    x_1 .. x_J ~ prod_i p(x_i | known),   pick j with weight w_j = p_AR(x_j) / prod_i p(x_i | known)

    Each of `passes` rounds drafts all unknown cells J = `drafts` times (2: the paper's code), picks
    one draft, and keeps its share of the cells, in a random order. At drafts = 1 nothing is picked:
    parallel decoding in a random order. At T = 1; at T = 0 all drafts would be one.

    start (B, S) without givens -> tokens (B, S), stats each (B,): nfe: passes of both models, all
    drafts of a round being one; tokens: pairs of both. Not here: the window of rounds in which the
    paper picks (all do), and energies that are trained. (The released code is said to weigh by
    exp(+E), not verified; by the paper's formula, and here, a low energy is likely.)
    """
    P, A, S = task.P, task.A, task.S
    positions, B = torch.arange(S, device=start.device), len(start)
    passes = min(passes, A)  # beyond that some rounds would keep nothing
    rank = next_token_ranks(OBJECTIVES["ar"].ranks, task, start.device)  # CAUSAL
    order = uniform(keys, 0, A).argsort(dim=1).argsort(dim=1)  # (B, A) of each cell, 0 is first
    tokens = start.clone()
    for t in range(passes):
        cells = tokens[:, P:]  # (B, A), a view of tokens
        # 1. draft
        logits = drafter(tokens, positions, rank_of(draft_ranks, task, tokens))[:, P:]
        log_p = logits.float().log_softmax(dim=-1).unsqueeze(1)  # (B, 1, A, K)
        noise = uniform(keys, 2 * t + 1, drafts, A, task.K)
        symbols = draw(log_p, 1.0, noise)  # (B, J, A)
        unknown = (cells == task.MASK).unsqueeze(1)  # (B, 1, A)
        x = symbols.where(unknown, cells.unsqueeze(1))  # (B, J, A)
        # 2. pick
        picked = x[:, 0]
        if drafts > 1:
            log_q = log_p.expand(-1, drafts, -1, -1).gather(3, symbols.unsqueeze(3)).squeeze(3)
            log_q = (log_q * unknown).sum(dim=2)  # (B, J)
            whole = torch.cat([tokens[:, :P].unsqueeze(1).expand(-1, drafts, -1), x], dim=2)
            log_w = log_likelihood(verifier, task, whole.flatten(0, 1), rank).view(B, -1) - log_q
            best = draw(log_w, 1.0, uniform(keys, 2 * t + 2, drafts))  # (B,) by the weights
            picked = x[torch.arange(B, device=best.device), best]
        # 3. keep the next share
        keep = order < -(-(t + 1) * A // passes)  # rounded up: the last round keeps all
        tokens[:, P:] = picked.where(keep, cells)
    asked = drafts > 1  # was the verifier
    nfe = torch.full((B,), passes * (1 + asked), device=start.device)
    return tokens, {"nfe": nfe, "tokens": torch.full_like(nfe, passes * (
        S + asked * drafts * (S - 1)))}


def log_likelihood(verifier, task, tokens, rank):
    """log p of whole answers under next-token prediction, in one pass: tokens (R, S) -> (R,)."""
    T = task.S - 1  # the last token is never fed
    logits = verifier(tokens[:, :T], torch.arange(T, device=tokens.device), rank)[:, task.P - 1:]
    log_p = logits.float().log_softmax(dim=-1)  # (R, A, K)
    return log_p.gather(2, tokens[:, task.P:].unsqueeze(2)).squeeze(2).sum(dim=1)


def main(argv=None):
    p = Parser(__doc__, prog="python -m decoders.edlm")
    p.add_argument("--draft", type=path, required=True, metavar="FILE", help="mdm or sidm")
    p.add_argument("--verify", type=path, required=True, metavar="FILE", help="ar, same task")
    p.add_argument("--num", type=number(1, 1_000_000), default=100, help="samples; default 100")
    p.add_argument("--passes", type=number(1, 256), default=8, help="rounds; default 8")
    p.add_argument("--drafts", type=number(1, 4096), default=2, help="of a round; default 2")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    drafter, ranks, verifier, task = load_pair(args.draft, args.verify, device)
    say(reason)
    start, _ = task.test_set(args.num)
    keys, parts, began = sample_keys(args.seed, start, copies_differ=True), [], time.perf_counter()
    size = max(1, (4096 if device.type == "cpu" else 320_000 // task.S) // args.drafts)
    for i in tqdm(range(0, len(start), size), desc="EDLM", delay=2, leave=False):
        part, part_keys = start[i:i + size].to(device), keys[i:i + size].to(device)
        with autocast:
            tokens, stats = edlm(drafter, verifier, task, ranks, part, part_keys, args.passes,
                                 args.drafts)
        parts.append((tokens[:, task.P:].cpu(), {k: v.cpu() for k, v in stats.items()}))
    answers = torch.cat([answers for answers, _ in parts])
    stats = {name: torch.cat([s[name] for _, s in parts]) for name in parts[0][1]}
    metrics = summarize(task, start, answers, None, stats, time.perf_counter() - began)
    print(json.dumps({"task": task.name, **metrics, "passes": args.passes, "drafts": args.drafts,
                      "temperature": 1.0, "seed": args.seed, "device": str(device)}))


if __name__ == "__main__":
    end(run(main))
