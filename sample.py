"""Sampling: decode() with its latent dial, next-token decoding with a cache, metrics, command line.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   W window
    T tokens in the forward pass   u unknown cells   c candidates   n latents   k cells per step

One step of decode(): choose the candidates, choose the latents, rank them, predict, commit. Whoever
is not needed is not in the tensor, so fewer latents are really faster. Samples may start anywhere:
with no cell known (generation) or with any given (puzzles, infilling), each with another number of
them.

    python sample.py --ckpt out/ckpt.pt --num 100              # generate, or solve own test puzzles
    python sample.py --ckpt out/ckpt.pt --puzzles FILE --json  # solve a file, print one JSON object
    python sample.py --decoder list                            # the decoders of other papers
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json
import time
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from likelihood import likelihood_report
from metrics import SUMMED, summarize
from model import CAUSAL
from mtp import next_token_ranks
from objectives import OBJECTIVES, show_count
from plumbing.checkpoint import load_model
from plumbing.cli import choose_device, end, run, say
from plumbing.randomness import sample_keys, uniform
from plumbing.show import answers_to_file, parse_sample_args, read_request, show, use_color
from plumbing.trace import Step, next_token_step, room, write

# --------------------------------------------------------------------------------------------------
# The sampler


def draw(logits, temperature, noise):
    """logits (..., K) -> symbols (...). noise: uniform, of that shape; temperature 0 needs none."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits / temperature).softmax(dim=-1)
    return (probs / -noise.log()).argmax(dim=-1)  # the Gumbel trick: no host synchronisation


def certainty(probs, order):
    """How certain the model is of each cell: (B, c, K) -> (B, c). Never of a symbol it sampled."""
    if order == "margin":
        top = probs.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
    if order == "entropy":
        return torch.special.xlogy(probs, probs).sum(dim=-1)  # the least entropy first
    return probs.amax(dim=-1)


def shares(u, dials):
    """Of u unknown cells -> how many are candidates, how many latents."""
    c = min(max(dials.tokens_per_step, dials.candidates), u)
    return c, min(dials.latents, u - c)


def line_up(known, c, dials, rule, noise):
    """-> cells (B, A): the unknown in the order they are taken, then the known.

    known (B, A) bool; c (B or 1, 1) candidates; noise (B, A) draws the line anew at every step.
    """
    place = torch.arange(known.shape[1], device=known.device, dtype=torch.float).expand(known.shape)
    line = place if rule.left_to_right else noise
    if dials.order == "left_to_right":
        first = (~known).cumsum(dim=1) <= c
        line = torch.where(first, place - known.shape[1], line)
    return line.masked_fill(known, torch.inf).argsort(dim=1, stable=True)


def seats(u, c, n, width, A):
    """Who is in a pass: known cells, then latents, then candidates, flush right in `width` seats.

    u, c, n (B or 1, 1) -> where in line_up() each seat's cell stands, its turn, and whether the
    seat is empty: all (B or 1, width). Turn: known <= 0, latents 1..n, every candidate n + 1.
    """
    r = torch.arange(width - 1, -1, -1, device=u.device)  # seats, counted from the right
    candidate, latent, known = c - 1 - r, 2 * c + n - 1 - r, A - 1 + c + n - r
    index = torch.where(r < c, candidate, torch.where(r < c + n, latent, known))
    return index, c + n - torch.maximum(r, c - 1), r >= A - u + c + n


def arrange(tokens, task, rule, dials, u, c, n, width, noise):
    """One pass: tokens (B, S) -> present (B, T) positions, rank or None, turn (., width).

    The last columns are the candidates. An empty seat has rank +inf: nobody sees it.
    """
    rows, P, A, device = len(tokens), task.P, task.A, tokens.device
    cells = line_up(tokens[:, P:] != task.MASK, c, dials, rule, noise)
    index, turn, empty = seats(u, c, n, width, A)
    cells = cells.gather(1, index.expand(rows, -1))  # (B, width)
    prompt = torch.arange(P, device=device).expand(rows, P)
    rank = rule.ranks(turn)
    if len(u) > 1:  # counts differ, so there may be empty seats
        rank = (torch.zeros_like(turn) if rank is None else rank).float()
        rank = rank.masked_fill(empty, torch.inf)
    if rank is not None:
        rank = torch.nn.functional.pad(rank, (P, 0))  # every prompt token has rank 0
    return torch.cat([prompt, P + cells], dim=1), rank, turn


@torch.no_grad()
def decode(model, task, objective, start, dials, keys, history=None):
    """Fill the unknown cells of each sample, tokens_per_step at a time.

    start (B, S), MASK where a cell is to be found; keys (B,) from sample_keys(). Returns tokens (B,
    S) and stats, each (B,): nfe: forward passes; tokens: pairs summed over passes; confidence: the
    largest probability at each cell when it was committed, averaged. history: a list that receives
    a plumbing.trace.Step per pass. For next-token objectives see decode_next_token(). In the
    released code of arXiv 2602.03769 candidate j also sees the j - 1 candidates before it; here
    candidates see known cells, latents and themselves only.
    """
    rule, P, A, device = OBJECTIVES[objective], task.P, task.A, start.device
    k = dials.tokens_per_step
    # Those with most to find come first: samples that are done are the last rows, and cost nothing.
    unknown = (start[:, P:] == task.MASK).sum(dim=1)  # (B,)
    unknown, order = unknown.sort(descending=True, stable=True)
    tokens, keys, back = start[order], keys[order], order.argsort()
    counts = unknown.tolist()  # the one time a GPU is waited for: the rest is known from here on
    table = torch.tensor([shares(u, dials) for u in range(A + 1)], device=device)  # (A + 1, 2)
    size = [A - u + sum(shares(u, dials)) for u in range(A + 1)]  # seats, of u unknown cells
    sure = torch.zeros(len(start), device=device)
    for step, done in enumerate(range(0, counts[0], k)):
        rows = sum(count > done for count in counts)
        left = {count - done for count in counts[:rows]}  # how many each may still have to find
        width, c_most = max(size[u] for u in left), shares(max(left), dials)[0]
        # 1. choose candidates and latents, and rank them (one row for all where counts are equal)
        u = unknown[:1 if len(left) == 1 else rows, None] - done  # (B or 1, 1)
        c, n = table[u].unbind(dim=2)
        present, rank, turn = arrange(tokens[:rows], task, rule, dials, u, c, n, width,
                                      uniform(keys[:rows], 2 * step, A))
        # 2. predict the candidates
        predicted = model(tokens[:rows].gather(1, present), present, rank)  # (B, T, K)
        logits = predicted[:, -c_most:].float()
        probs = logits.softmax(dim=-1)  # (B, c, K)
        # 3. choose k of them, but no seat in which a sample has no candidate
        valid = (turn[:, -c_most:] > n).expand(rows, -1)  # (B, c)
        pick = torch.arange(c_most, device=device).expand(rows, -1)
        if c_most > k:
            pick = certainty(probs, dials.order).masked_fill(~valid, -torch.inf).topk(k).indices
        where, valid = present[:, -c_most:].gather(1, pick), valid.gather(1, pick)  # (B, k)
        # 4. commit them. Noise goes with the seat, counted from the right: widths do not move it.
        noise = None
        if dials.temperature:
            noise = uniform(keys[:rows], 2 * step + 1, c_most, task.K).flip(1)
        symbols = draw(logits, dials.temperature, noise).gather(1, pick)
        symbols = torch.where(valid, symbols, tokens[:rows].gather(1, where))
        tokens = torch.cat([tokens[:rows].scatter(1, where, symbols), tokens[rows:]])
        sure[:rows] += (probs.amax(dim=-1).gather(1, pick) * valid).sum(dim=1)
        if history is not None:
            history.append(Step(tokens[back], present, rank, predicted, rows=order[:rows],
                                candidate=turn[:, -c_most:] > n))
    cost = {u: sum(P + size[v] for v in range(u, 0, -k)) for u in set(counts)}
    return tokens[back], {
        "nfe": (-(-unknown // k))[back],
        "tokens": torch.tensor([cost[u] for u in counts], device=device)[back],
        "confidence": torch.where(unknown > 0, sure / unknown.clamp(min=1), 1.0)[back]}


@torch.no_grad()
def decode_next_token(model, task, objective, start, temperature, keys, use_cache=True,
                      history=None):
    """Next-token decoding: as decode(), from left to right. No answer cell may be given.

    With the cache each token is fed once: P + A - 1 pairs, because the last one is never fed.
    Without it the whole prefix is fed at every step.
    """
    rank = next_token_ranks(OBJECTIVES[objective].ranks, task, start.device)  # (S,) or CAUSAL
    tokens, cache = start[:, :task.P], model.new_cache() if use_cache else None
    pairs, fed = 0, 0
    sure = torch.zeros(len(start), device=start.device)
    for step in range(task.A):
        new, T = tokens[:, fed:], tokens.shape[1]
        rank_now = CAUSAL  # a single new token sees all that is cached
        if rank is not CAUSAL and fed == 0:
            rank_now = rank[:T]
        positions = torch.arange(fed, T, device=start.device)
        logits = model(new, positions, rank_now, cache=cache)[:, -1].float()  # (B, K)
        new_symbol = draw(logits, temperature, uniform(keys, step, task.K))  # (B,)
        tokens = torch.cat([tokens, new_symbol.unsqueeze(1)], dim=1)
        sure += logits.softmax(dim=-1).amax(dim=-1)
        pairs += new.shape[1]
        fed = T if use_cache else 0
        if history is not None:
            history.append(next_token_step(tokens, start, rank, logits, new.shape[1]))
    one = torch.ones(len(start), dtype=torch.long, device=start.device)
    return tokens, {"nfe": one * task.A, "tokens": one * pairs, "confidence": sure / task.A}


# --------------------------------------------------------------------------------------------------
# Evaluation


def decode_all(model, task, objective, dials, start, keys, device, autocast, history, label):
    """start (num, S), keys (num,) in batches -> answers (num, A), stats (num,) each, seconds."""
    # 128 samples stay in a CPU's cache: a quarter faster; with few tokens a GPU waits for the host.
    size = 128 if device.type == "cpu" else 320_000 // task.S
    parts, seconds = [], 0.0
    for i in tqdm(range(0, len(start), size), desc=label, unit="batch", delay=2, leave=False):
        began = time.perf_counter()
        part, part_keys = start[i:i + size].to(device), keys[i:i + size].to(device)
        with autocast:
            if OBJECTIVES[objective].next_token:
                tokens, stats = decode_next_token(model, task, objective, part, dials.temperature,
                                                  part_keys, history=history)
            elif dials.decoder:
                import decoders  # here, because they import this file
                tokens, stats = decoders.decode(model, task, objective, part, dials, part_keys,
                                                history)
            else:
                tokens, stats = decode(model, task, objective, part, dials, part_keys, history)
        answer = tokens[:, task.P:].cpu()  # waits for the device
        seconds += time.perf_counter() - began
        parts.append((answer, {name: values.cpu() for name, values in stats.items()}))
    answers = torch.cat([answer for answer, _ in parts])
    return answers, {name: torch.cat([s[name] for _, s in parts]) for name in parts[0][1]}, seconds


def evaluate(model, task, objective, dials, start, references, seed, device, autocast,
             history=None, label="sampling", restarts=0):
    """Decode start (num, S) and score it -> metrics (plain numbers), answers (num, A), stats.

    Decoding sees the starts alone. references (num, A), a row of -1 for a sample without one, or
    None are used after it, to score. What is measured: metrics.py; stats: of each sample, see
    decode(). restarts: so many times the samples whose answer breaks the rules are decoded again
    from their start, at T = 1 where decoding is greedy; their passes and tokens add up. The rules
    may be asked, the reference may not.
    """
    generation = not task.unique_answer and bool(task.blanks(start).all())
    keys = sample_keys(seed, start, copies_differ=generation or dials.temperature > 0)
    answers, stats, seconds = decode_all(model, task, objective, dials, start, keys, device,
                                         autocast, history, label)
    warmer = replace(dials, temperature=dials.temperature or 1.0)
    for again in range(1, restarts + 1):
        wrong = (~task.check(start, answers)).nonzero().flatten()
        if not len(wrong):
            break
        keys = sample_keys(seed + (again << 33), start[wrong], copies_differ=True)
        answers[wrong], more, extra = decode_all(model, task, objective, warmer, start[wrong], keys,
                                                 device, autocast, None, f"restart {again}")
        for name, new in more.items():  # costs add up; the rest is of the last attempt
            stats[name][wrong] = stats[name][wrong] + new if name in SUMMED else new
        seconds += extra
    return summarize(task, start, answers, references, stats, seconds), answers, stats


# --------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    args = parse_sample_args(__doc__, argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    if args.bound:
        say(reason)
        print(likelihood_report(args, model, task, config, device, autocast))
        return
    start, references, dials = read_request(args, task, config)
    say(reason)
    history = room(args, len(start))
    metrics, answers, stats = evaluate(model, task, config.objective, dials, start, references,
                                       args.seed, device, autocast, history=history,
                                       restarts=args.restarts)
    if args.puzzle is not None and len(start) > 1:
        metrics[f"pass@{len(start)}"] = bool(metrics["solved"])
    if args.answers:
        answers_to_file(args.answers, task, start, answers, stats)
    counts = {name: show_count(getattr(dials, name), task) for name in ("candidates", "latents")}
    report = {"task": task.name, "objective": config.objective, "params": model.num_params(),
              **metrics, **asdict(dials), **counts, "restarts": args.restarts, "seed": args.seed,
              "device": str(device)}
    if args.trace:
        write(args.trace, task, start, references, history, answers, stats, report)
    if args.json:
        print(json.dumps(report))
    else:
        show(task, start, answers, history, stats, report, use_color(args.color))


if __name__ == "__main__":
    end(run(main))
