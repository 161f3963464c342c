"""DiffuSpec: a diffusion model drafts what an autoregressive model would say, which checks it.

    python -m studies.diffuspec --draft out/mdm/ckpt.pt --verify out/ar/ckpt.pt --num 100

    B samples   R of them unfinished   P prompt positions   A cells   S = P + A   K symbols
    J drafted cells   b beams

It takes two checkpoints of one task, and prints its costs beside those of plain next-token
decoding and how many answers are equal.
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json

import torch

from decoders.board import rank_of
from mtp import next_token_ranks
from noise import sample_keys, sample_symbols, uniform
from objectives import OBJECTIVES
from plumbing.cli import Parser, choose_device, end, number, run, say
from sample import decode_next_token
from studies.common import add_flags, in_batches, load_pair


@torch.no_grad()
def diffuspec(drafter, verifier, task, draft_ranks, start, keys, temperature=0.0, k=20, beam=3,
              mix=0.5, bigram=None):
    """DiffuSpec (arXiv 2510.02358): start (B, S) without givens -> tokens (B, S), stats each (B,).

    A round: one pass of the drafter over all unknown cells; a path of the next `k` symbols through
    its most likely ones (best_path: the paper's CPS); one causal pass of the verifier (`ar`) over
    prefix and path. The path is kept as far as the verifier agrees, plus the verifier's next token.
    So the answer equals decode_next_token()'s, at T > 0 as well: both use the random numbers of the
    cell. (The paper instead accepts with probability p / q.) k = 0: no drafts, next-token decoding
    without a cache. Ends after at most A rounds.

    draft_ranks: Objective.ranks of the drafter; bigram (V, K): see count_bigrams, None: mix = 1.
    stats: nfe: passes of both; draft_nfe: the drafter's; tokens: pairs of both; accepted: tokens
    per pass of the verifier. Defaults: the paper's (k 20 to 30). Not implemented: its adaptive k
    (ADL), which follows the end of text in a draft; our answers have one length.
    """
    P, A, S, K = task.P, task.A, task.S, task.K
    positions = torch.arange(S, device=start.device)
    rank = next_token_ranks(OBJECTIVES["ar"].ranks, task, start.device)  # CAUSAL
    tokens, stats = start.clone(), torch.zeros(4, len(start), dtype=torch.long, device=start.device)
    found, nfe, draft_nfe, pairs = stats  # each (B,)
    while (found < A).any():
        rows = (found < A).nonzero().flatten()
        have, now = found[rows], tokens[rows]  # (R,), (R, S)
        count = (A - 1 - have).clamp(max=k)  # (R,) drafted; the last token needs no draft
        J = int(count.max())
        next_ones = P + have.unsqueeze(1) + torch.arange(J + 1, device=have.device)  # (R, J + 1)
        next_ones = next_ones.clamp(max=S - 1)
        nth = positions - (P + have).unsqueeze(1)  # (R, S) of each position among them, < 0 before
        noise = [uniform(keys[rows], (have + j).unsqueeze(1), K) for j in range(J + 1)]
        noise = torch.stack(noise, dim=1)  # (R, J + 1, K)
        # 1. draft
        if J:
            ranks = rank_of(draft_ranks, task, now)
            logits = take(drafter(now, positions, ranks), next_ones[:, :J])  # (R, J, K)
            before = now.gather(1, next_ones[:, :1] - 1).squeeze(1)  # (R,)
            path = best_path(logits, temperature, noise[:, :J], beam, mix, bigram, before)
            drafted = (nth >= 0) & (nth < count.unsqueeze(1))  # (R, S)
            now = path.gather(1, nth.clamp(0, J - 1)).where(drafted, now)
        # 2. verify: the token at a position is predicted at the one before it
        T = P + int((have + count).max())
        logits = take(verifier(now[:, :T], positions[:T], rank), (next_ones - 1).clamp(max=T - 1))
        truth = sample_symbols(logits, temperature, noise)  # (R, J + 1)
        same = (now.gather(1, next_ones) == truth).long()  # what was not drafted equals nothing
        good = same.cumprod(dim=1).sum(dim=1)  # (R,) drafts accepted
        # 3. keep the drafts that were right, and the verifier's token after them
        keep = (nth >= 0) & (nth <= good.unsqueeze(1))
        tokens[rows] = truth.gather(1, nth.clamp(0, J)).where(keep, tokens[rows])
        found[rows] += good + 1
        nfe[rows] += 1 + (count > 0).long()
        draft_nfe[rows] += (count > 0).long()
        pairs[rows] += P + have + count + S * (count > 0)
    return tokens, {"nfe": nfe, "draft_nfe": draft_nfe, "tokens": pairs,
                    "accepted": A / (nfe - draft_nfe).double()}


def take(logits, where):
    """logits (R, T, K) at positions where (R, J) -> (R, J, K) fp32."""
    return logits.float().gather(1, where.unsqueeze(2).expand(-1, -1, logits.shape[2]))


def best_path(logits, temperature, noise, beam, mix, bigram, before, mass=0.8, most=15):
    """CPS: a beam search through the likely symbols of each cell. logits (R, J, K) -> (R, J).

    A cell offers its most likely symbols up to a total probability `mass`, at most `most`. The
    score of a path is the sum of mix log p(v) + (1 - mix) log bigram(v after the one before it). At
    T > 0 Gumbel noise is added to log p, as in noise.sample_symbols(): without a bigram the path is
    its sample.
    """
    scores = (logits / (temperature or 1.0)).log_softmax(dim=-1)  # (R, J, K)
    if temperature:
        scores = scores - (-noise.log()).log()
    if bigram is None:
        return scores.argmax(dim=-1)
    likely, symbols = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    offered = likely.cumsum(dim=-1) - likely < mass
    offered[..., most:] = False
    offered = torch.zeros_like(offered).scatter(-1, symbols, offered)
    scores = (mix * scores).masked_fill(~offered, -torch.inf)
    R, J, K = scores.shape
    total, ends = scores.new_zeros(R, 1), before.unsqueeze(1)  # (R, b), (R, b)
    paths = ends[:, :, None][:, :, :0]  # (R, b, j)
    for j in range(J):
        step = total.unsqueeze(2) + scores[:, j, None] + (1 - mix) * bigram[ends]  # (R, b, K)
        total, best = step.flatten(1).topk(min(beam, step[0].numel()), dim=1)
        ends = best % K
        kept = paths.gather(1, (best // K).unsqueeze(2).expand(-1, -1, j))
        paths = torch.cat([kept, ends.unsqueeze(2)], dim=2)
    return paths[:, 0]


def count_bigrams(task, seed, device, num=2000):
    """log p(symbol | the token before it) in `num` training answers, each count plus 1: (V, K).

    The paper's proxy for the verifier is a 3-gram model.
    """
    tokens, _ = task.train_batch(num, torch.Generator(device).manual_seed(seed), device)
    pairs = tokens[:, task.P - 1:-1] * task.K + tokens[:, task.P:]  # (num, A)
    counts = torch.bincount(pairs.flatten(), minlength=task.V * task.K).view(task.V, task.K) + 1.0
    return (counts / counts.sum(dim=1, keepdim=True)).log()


def main(argv=None):
    p = Parser(__doc__)
    add_flags(p, 100, draft="mdm or sidm", verify="ar, same task")
    p.add_argument("--k", type=number(0, 10_000), default=20, help="drafted tokens; default 20")
    p.add_argument("--beam", type=number(1, 1000), default=3, help="beams; default 3")
    p.add_argument("--mix", type=number(0.0, 1.0, kind=float), default=0.5,
                   help="weight of the drafter against a bigram; default 0.5; 1: no bigram")
    p.add_argument("--temperature", type=number(0.0, 1e6, kind=float),
                   help="default: 0 for paths and puzzles, 1 for generation")
    args = p.parse_args(argv)
    device, _, reason = choose_device(args.device)
    torch.set_float32_matmul_precision("highest")  # equal answers are promised for fp32
    drafter, ranks, verifier, task = load_pair(args.draft, args.verify, device)
    say(reason.split(",")[0] + ", fp32")
    T = (0.0 if task.unique_answer else 1.0) if args.temperature is None else args.temperature
    bigram = count_bigrams(task, args.seed, device) if args.mix < 1 else None
    start, _ = task.test_set(args.num)
    keys = sample_keys(args.seed, start, copies_differ=not task.unique_answer or T > 0)
    size = 128 if device.type == "cpu" else 320_000 // task.S
    tokens, stats, seconds = in_batches(
        lambda part, keys, _: diffuspec(drafter, verifier, task, ranks, part, keys, T, args.k,
                                        args.beam, args.mix, bigram),
        start, keys, device, size, "DiffuSpec")
    plain, _, _ = in_batches(
        lambda part, keys, _: decode_next_token(verifier, task, "ar", part, T, keys),
        start, keys, device, size, "plain")
    means = {name: round(values.double().mean().item(), 3) for name, values in stats.items()}
    print(json.dumps({
        "task": task.name, "num": args.num,
        "solved": int(task.check(start, tokens[:, task.P:]).sum()),
        "equal_to_plain": int((tokens == plain).all(dim=1).sum()), "plain_nfe": task.A,
        "plain_tokens": task.S - 1, **means, "seconds": round(seconds, 3), "k": args.k,
        "beam": args.beam, "mix": args.mix, "temperature": T, "seed": args.seed,
        "device": str(device)}))


if __name__ == "__main__":
    end(run(main))
