"""EDLM: a diffusion model drafts whole answers, and an autoregressive model picks one of them.

    python -m studies.edlm --draft out/mdm/ckpt.pt --verify out/ar/ckpt.pt --passes 4 --num 100

    B samples   J drafts   P prompt positions   A cells   S = P + A   K symbols   u unknown cells

Cells committed in one pass are sampled from the product of their marginals, not from their joint.
A model with a tractable likelihood measures the difference: importance weights correct it, as far
as the drafts hold a good answer. It takes two checkpoints of one task.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json

import torch

from decoders.board import rank_of
from metrics import summarize
from mtp import next_token_ranks
from noise import sample_keys, sample_symbols, uniform
from objectives import OBJECTIVES
from plumbing.cli import Parser, choose_device, end, number, run, say
from studies.common import add_flags, in_batches, load_pair


@torch.no_grad()
def edlm(drafter, verifier, task, draft_ranks, start, keys, passes=8, drafts=2):
    """The energy of an autoregressive model (EDLM, arXiv 2410.21357, the variant without training).

    x_1 .. x_J ~ prod_i p(x_i | known),   pick j with weight w_j = p_AR(x_j) / prod_i p(x_i | known)

    Each of `passes` rounds drafts all unknown cells J = `drafts` times (2: the paper's code), picks
    one draft and keeps its part of the cells, in a random order. With drafts = 1 nothing is picked:
    parallel decoding in a random order. At T = 1; at T = 0 all drafts would be equal.

    start (B, S) without givens -> tokens (B, S), stats each (B,): nfe: passes of both models, all
    drafts of a round being one; tokens: pairs of both. Not implemented: the paper's window of
    rounds that pick (here all do), and trained energies. (The released code is said to weigh by
    exp(+E), not verified; by the paper's formula, and here, a low energy is likely.)
    """
    P, A, S = task.P, task.A, task.S
    positions, B = torch.arange(S, device=start.device), len(start)
    passes = min(passes, A)  # with more, some rounds would keep nothing
    rank = next_token_ranks(OBJECTIVES["ar"].ranks, task, start.device)  # CAUSAL
    order = uniform(keys, 0, A).argsort(dim=1).argsort(dim=1)  # (B, A) of each cell, 0 is first
    tokens = start.clone()
    for t in range(passes):
        cells = tokens[:, P:]  # (B, A), a view of tokens
        # 1. draft
        logits = drafter(tokens, positions, rank_of(draft_ranks, task, tokens))[:, P:]
        log_p = logits.float().log_softmax(dim=-1).unsqueeze(1)  # (B, 1, A, K)
        noise = uniform(keys, 2 * t + 1, drafts, A, task.K)
        symbols = sample_symbols(log_p, 1.0, noise)  # (B, J, A)
        unknown = (cells == task.MASK).unsqueeze(1)  # (B, 1, A)
        x = symbols.where(unknown, cells.unsqueeze(1))  # (B, J, A)
        # 2. pick
        picked = x[:, 0]
        if drafts > 1:
            log_q = log_p.expand(-1, drafts, -1, -1).gather(3, symbols.unsqueeze(3)).squeeze(3)
            log_q = (log_q * unknown).sum(dim=2)  # (B, J)
            whole = torch.cat([tokens[:, :P].unsqueeze(1).expand(-1, drafts, -1), x], dim=2)
            log_w = log_likelihood(verifier, task, whole.flatten(0, 1), rank).view(B, -1) - log_q
            best = sample_symbols(log_w, 1.0, uniform(keys, 2 * t + 2, drafts))  # (B,)
            picked = x[torch.arange(B, device=best.device), best]
        # 3. keep the cells of this round
        keep = order < -(-(t + 1) * A // passes)  # rounded up: the last round keeps all
        tokens[:, P:] = picked.where(keep, cells)
    verified = drafts > 1
    nfe = torch.full((B,), passes * (1 + verified), device=start.device)
    return tokens, {"nfe": nfe, "tokens": torch.full_like(nfe, passes * (
        S + verified * drafts * (S - 1)))}


def log_likelihood(verifier, task, tokens, rank):
    """log p of whole answers under next-token prediction, in one pass: tokens (R, S) -> (R,)."""
    T = task.S - 1  # the last token is never fed
    logits = verifier(tokens[:, :T], torch.arange(T, device=tokens.device), rank)[:, task.P - 1:]
    log_p = logits.float().log_softmax(dim=-1)  # (R, A, K)
    return log_p.gather(2, tokens[:, task.P:].unsqueeze(2)).squeeze(2).sum(dim=1)


def main(argv=None):
    p = Parser(__doc__, prog="python -m studies.edlm")
    add_flags(p, 100, draft="mdm or sidm", verify="ar, same task")
    p.add_argument("--passes", type=number(1, 256), default=8, help="rounds; default 8")
    p.add_argument("--drafts", type=number(1, 4096), default=2, help="per round; default 2")
    args = p.parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    drafter, ranks, verifier, task = load_pair(args.draft, args.verify, device)
    say(reason)
    start, _ = task.test_set(args.num)
    size = max(1, (4096 if device.type == "cpu" else 320_000 // task.S) // args.drafts)
    with autocast:
        tokens, stats, seconds = in_batches(
            lambda part, keys, _: edlm(drafter, verifier, task, ranks, part, keys, args.passes,
                                       args.drafts),
            start, sample_keys(args.seed, start, copies_differ=True), device, size, "EDLM")
    metrics = summarize(task, start, tokens[:, task.P:], None, stats, seconds)
    print(json.dumps({"task": task.name, **metrics, "passes": args.passes, "drafts": args.drafts,
                      "temperature": 1.0, "seed": args.seed, "device": str(device)}))


if __name__ == "__main__":
    end(run(main))
