"""Sampling: decode() with the latent dial, next-token decoding with a cache, command line.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   W window
    T tokens in the forward pass   u unknown cells   c candidates   n latents   k cells per pass

One pass of decode(): choose candidates and latents, rank them, predict, commit. Other unknown cells
are not in the tensor, so fewer latents are faster. Any cells may be given at the start.

    python sample.py --ckpt out/ckpt.pt --num 100              # generate, or solve test puzzles
    python sample.py --ckpt out/ckpt.pt --puzzles FILE --json  # solve a file, print one JSON object
    python sample.py --decoder list                            # the decoders of other papers
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import json
import time
from collections import Counter
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

from diffusion import rank_with_prompt
from metrics import SUMMED, show_count, summarize
from model import CAUSAL
from mtp import next_token_ranks
from noise import certainty, sample_keys, sample_symbols, uniform
from objectives import OBJECTIVES

# --------------------------------------------------------------------------------------------------
# The sampler


@torch.no_grad()
def decode(model, task, objective, start, sampling, keys, history=None):
    """Fill the unknown cells of each sample, tokens_per_step of them in a forward pass.

    start (B, S), MASK where a cell is to be found; keys (B,) from sample_keys(). A sample with
    fewer unknown cells waits until the others are down to as many. Returns tokens (B, S) and stats,
    each (B,): nfe: forward passes; tokens: pairs summed over passes; confidence: the largest
    probability at each cell when it was committed, averaged. history: a list that receives a dict
    per pass (plumbing/trace.py). For next-token objectives see decode_next_token().
    """
    unknown, k = (start[:, task.P:] == task.MASK).sum(dim=1), sampling.tokens_per_step  # (B,)
    # Sort: samples that meet in a pass (u, u + k, u + 2k, ... unknown at the start) are contiguous.
    place = (unknown % k * (task.A + 1) - unknown).argsort(stable=True)
    tokens, keys, back = start[place], keys[place], place.argsort()
    counts = unknown.tolist()  # the only time the host waits for a GPU
    arriving, group, ready = Counter(counts), Counter(u % k for u in counts), Counter()
    nfe, pairs = torch.zeros(2, len(start), dtype=torch.long, device=start.device)
    confidence = torch.zeros(len(start), device=start.device)
    for u in range(max(counts), 0, -1):
        ready[u % k] += arriving[u]
        if ready[u % k]:
            first = sum(group[r] for r in range(u % k))
            now = slice(first, first + ready[u % k])  # the samples with u unknown cells
            tokens[now], sure, record = decode_pass(model, task, OBJECTIVES[objective], sampling,
                                                    tokens[now], keys[now], u)
            nfe[now] += 1
            pairs[now] += record["present"].shape[1]
            confidence[now] += sure
            if history is not None:
                history.append({"tokens": tokens[back], "rows": place[now], **record})
    confidence = torch.where(unknown > 0, confidence[back] / unknown.clamp(min=1), 1.0)
    return tokens[back], {"nfe": nfe[back], "tokens": pairs[back], "confidence": confidence}


def decode_pass(model, task, rule, sampling, tokens, keys, u):
    """One forward pass over samples with u unknown cells each: tokens (B, S), keys (B,).

    -> tokens with k cells more, the sum of their confidence (B,), a record for `history`.
    Candidates see known cells, latents and themselves; in the released code of arXiv 2602.03769
    candidate j also sees the j - 1 candidates before it.
    """
    P, A, k = task.P, task.A, min(sampling.tokens_per_step, u)
    c = min(max(sampling.candidates, k), u)  # candidates
    n = min(sampling.latents, u - c)  # latents, redrawn in every pass
    # 1. put the cells in order: candidates, latents, unknown cells that are left out, known cells
    known = tokens[:, P:] != task.MASK  # (B, A)
    cell = torch.arange(A, device=tokens.device, dtype=torch.float).expand(known.shape)
    place = cell if rule.left_to_right else uniform(keys, 2 * u, A)
    if sampling.order == "left_to_right":
        place = torch.where((~known).cumsum(dim=1) <= c, cell - A, place)
    cells = P + place.masked_fill(known, torch.inf).argsort(dim=1, stable=True)  # (B, A)
    # 2. rank those that are present: known cells <= 0, latents 1..n, candidates n + 1
    prompt = torch.arange(P, device=tokens.device).expand(len(tokens), P)
    present = torch.cat([prompt, cells[:, u:], cells[:, c:c + n], cells[:, :c]], dim=1)  # (B, T)
    level = torch.arange(u - A + 1, n + c + 1, device=tokens.device).clamp(max=n + 1)
    rank = rank_with_prompt(rule.ranks, level.unsqueeze(0), None, P)  # (1, T), or None
    # 3. predict
    predicted = model(tokens.gather(1, present), present, rank)  # (B, T, K)
    logits = predicted[:, -c:].float()
    probs = logits.softmax(dim=-1)  # (B, c, K)
    # 4. commit the k candidates that the model is most certain of
    best = certainty(probs, sampling.order).topk(k, dim=1).indices  # (B, k)
    noise = uniform(keys, 2 * u + 1, c, task.K) if sampling.temperature else None
    symbols = sample_symbols(logits, sampling.temperature, noise).gather(1, best)
    sure = probs.amax(dim=-1).gather(1, best).sum(dim=1)  # (B,)
    record = {"present": present, "rank": rank, "logits": predicted, "candidates": c,
              "at": time.perf_counter()}
    return tokens.scatter(1, present[:, -c:].gather(1, best), symbols), sure, record


@torch.no_grad()
def decode_next_token(model, task, objective, start, temperature, keys, use_cache=True,
                      history=None):
    """Next-token decoding: as decode(), from left to right. No answer cell may be given.

    With the cache each token but the last is fed once; without it the whole prefix in every pass.
    """
    rank = next_token_ranks(OBJECTIVES[objective].ranks, task, start.device)  # (S,) or CAUSAL
    tokens, cache = start[:, :task.P], model.new_cache() if use_cache else None
    pairs, cached = 0, 0
    confidence = torch.zeros(len(start), device=start.device)
    for step in range(task.A):
        new, T = tokens[:, cached:], tokens.shape[1]
        # a single new token sees all that is cached
        rank_now = CAUSAL if rank is CAUSAL or cached else rank[:T]
        positions = torch.arange(cached, T, device=start.device)
        logits = model(new, positions, rank_now, cache=cache)[:, -1].float()  # (B, K)
        symbol = sample_symbols(logits, temperature, uniform(keys, step, task.K))  # (B,)
        tokens = torch.cat([tokens, symbol.unsqueeze(1)], dim=1)
        confidence += logits.softmax(dim=-1).amax(dim=-1)
        pairs += new.shape[1]
        cached = T if use_cache else 0
        if history is not None:
            seen = torch.arange(T, device=start.device).unsqueeze(0)  # (1, T)
            history.append({"tokens": torch.cat([tokens, start[:, T + 1:]], dim=1),
                            "present": seen, "rank": rank if rank is CAUSAL else rank[None, :T],
                            "logits": logits.unsqueeze(1), "cells": torch.full_like(seen[:, :1], T),
                            "pairs": new.shape[1], "at": time.perf_counter()})
    one = torch.ones(len(start), dtype=torch.long, device=start.device)
    return tokens, {"nfe": one * task.A, "tokens": one * pairs, "confidence": confidence / task.A}


# --------------------------------------------------------------------------------------------------
# Evaluation


def decode_all(model, task, objective, sampling, start, keys, device, autocast, history, label):
    """start (num, S), keys (num,) in batches -> answers (num, A), stats (num,) each, seconds."""
    # 128 samples stay in a CPU's cache: a quarter faster; with few tokens a GPU waits for the host.
    size = 128 if device.type == "cpu" else 320_000 // task.S
    parts, seconds = [], 0.0
    for i in tqdm(range(0, len(start), size), desc=label, unit="batch", delay=2, leave=False):
        began = time.perf_counter()
        part, part_keys = start[i:i + size].to(device), keys[i:i + size].to(device)
        with autocast:
            if OBJECTIVES[objective].next_token:
                tokens, stats = decode_next_token(model, task, objective, part,
                                                  sampling.temperature, part_keys, history=history)
            elif sampling.decoder:
                import decoders  # the decoders of other papers, only where one is asked for
                tokens, stats = decoders.decode(model, task, objective, part, sampling, part_keys,
                                                history)
            else:
                tokens, stats = decode(model, task, objective, part, sampling, part_keys, history)
        answer = tokens[:, task.P:].cpu()  # waits for the device
        seconds += time.perf_counter() - began
        parts.append((answer, {name: values.cpu() for name, values in stats.items()}))
    answers = torch.cat([answer for answer, _ in parts])
    return answers, {name: torch.cat([s[name] for _, s in parts]) for name in parts[0][1]}, seconds


def evaluate(model, task, objective, sampling, start, references, seed, device, autocast,
             history=None, label="sampling", restarts=0):
    """Decode start (num, S) and score it -> metrics (plain numbers), answers (num, A), stats.

    Decoding sees the starts alone. references (num, A), a row of -1 for a sample without one, or
    None are used after it, to score. What is measured: metrics.py; stats: of each sample, see
    decode(). restarts: so many times the samples whose answer breaks the rules are decoded again
    from their start, at T = 1 where decoding is greedy; their passes and tokens add up, and history
    is of the last attempt. Restarts use the rule checker only, never a reference.
    """
    generation = not task.unique_answer and bool(task.blanks(start).all())
    keys = sample_keys(seed, start, copies_differ=generation or sampling.temperature > 0)
    answers, stats, seconds = decode_all(model, task, objective, sampling, start, keys, device,
                                         autocast, history, label)
    warmer = replace(sampling, temperature=sampling.temperature or 1.0)
    for again in range(1, restarts + 1):
        wrong = (~task.check(start, answers)).nonzero().flatten()
        if not len(wrong):
            break
        if history is not None:
            history.clear()
        keys = sample_keys(seed + (again << 33), start[wrong], copies_differ=True)
        answers[wrong], more, extra = decode_all(model, task, objective, warmer, start[wrong], keys,
                                                 device, autocast, history, f"restart {again}")
        for name, new in more.items():  # costs add up; the rest is of the last attempt
            stats[name][wrong] = stats[name][wrong] + new if name in SUMMED else new
        seconds += extra
    return summarize(task, start, answers, references, stats, seconds), answers, stats


# --------------------------------------------------------------------------------------------------
# Command line


def main(argv=None):
    # Only the program needs these: whoever imports decode() or evaluate() does without them.
    import decoders
    from plumbing.checkpoint import load_model
    from plumbing.cli import choose_device, say
    from plumbing.decoder_tables import NOT_CHOSEN
    from plumbing.show import (answers_to_file, likelihood_report, parse_sample_args, read_request,
                               show, use_color)
    from plumbing.trace import new_history, write

    args = parse_sample_args(__doc__, argv)
    if args.decoder == "list":
        print(decoders.listing())
        return
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    if args.bound:
        say(reason)
        print(likelihood_report(args, model, task, config, device, autocast))
        return
    start, references, sampling = read_request(args, task, config, decoders.choose)
    say(reason)
    history = new_history(args, len(start))
    metrics, answers, stats = evaluate(model, task, config.objective, sampling, start, references,
                                       args.seed, device, autocast, history=history,
                                       restarts=args.restarts)
    if args.puzzle is not None and len(start) > 1:
        metrics[f"pass@{len(start)}"] = bool(metrics["solved"])
    if args.answers:
        answers_to_file(args.answers, task, start, answers, stats)
    counts = {"candidates": show_count(sampling.candidates, task.A),
              "latents": show_count(sampling.latents, task.A - 1)}
    if sampling.decoder:  # the decoder decides
        counts = {**NOT_CHOSEN, "candidates": "-"}
    report = {"task": task.name, "objective": config.objective, "params": model.num_params(),
              **metrics, **asdict(sampling), **counts, "restarts": args.restarts,
              "seed": args.seed, "device": str(device)}
    if args.trace:
        write(args.trace, task, start, references, history, answers, stats, report)
    if args.json:
        print(json.dumps(report))
    else:
        show(task, start, answers, history, stats, report, use_color(args.color))


if __name__ == "__main__":
    from plumbing.cli import end, run
    end(run(main))
