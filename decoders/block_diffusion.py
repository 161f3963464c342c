"""Block diffusion, trained: blocks in their order, masked diffusion inside, full blocks cached.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols
    n cells of a block   C positions of the clean copy   T pairs in the forward pass

p(x) = product over blocks of p(block | blocks before it). A second latent dial: an unknown cell of
the current block is a latent, one of a later block is absent. One block is `mdm`; blocks of one
cell are autoregressive (with a mask token in place of the usual shift). The prompt belongs to the
first block, and is fed in each of its passes.

Training feeds [noisy ; clean], under 2 S pairs, and scores every block. Feeding the blocks up to a
random one would need no matrix, only the ranks of decoding, but score one block of many.

Sources: Fast-dLLM v2, arXiv 2509.26328 (matrix, complementary masks, cache); NBDiff, 2512.06776
(token_causal; not its next-token loss, not its growing blocks); CtrlDiff, 2505.14455 (a block size
chosen per step; its abstract was all that was read, so the rule here is another: no policy).

    python -m decoders.block_diffusion train --preset sudoku4 --sizes 4 --out out/b4
    python -m decoders.block_diffusion train --preset sudoku4 --sizes 1,2,4,8,16 --out out/dial
    python -m decoders.block_diffusion decode --ckpt out/dial/ckpt.pt --size 4 --num 200 --json
"""
if __name__ == "__main__":
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)
import argparse
import functools
import json
import platform
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import config as configuration
from config import PRESETS, Config
from data import make_task
from decoders.board import Board, certainty, surest
from diffusion import UNIFORM, draw_turns
from metrics import summarize
from model import visible
from objectives import OBJECTIVES, ORDERS, Objective
from plumbing.checkpoint import check_out, load_checkpoint, load_model, save_checkpoint
from plumbing.cli import (DEVICES, BadInput, Parser, choose_device, end, number, path, printable,
                          run, say)
from plumbing.fast import WARM_STEPS
from plumbing.randomness import sample_keys
from train import check_finite, has_ended, lr_scale, make_state, make_step

# fields of config.Config that the short loop here does not read
WITHOUT_MEANING = ("objective", "window", "stop_at_solved", "eval_every_steps", "eval_samples",
                   "checkpoint_every_steps")

# --------------------------------------------------------------------------------------------------
# Who may look at whom


def draw_lengths(A, sizes, generator, device):
    """Cells of each block: of one size, or of random ones of `sizes`, until A are full -> tuple.

    Random ones are drawn anew at every step; the host waits for them, for they decide shapes.
    """
    if len(sizes) == 1:
        lengths = sizes * A
    else:
        pick = torch.randint(len(sizes), (A,), generator=generator, device=device)
        lengths = [sizes[i] for i in pick.tolist()]
    ends = [sum(lengths[:i]) for i in range(A + 1)]
    return tuple(min(n, A - end) for n, end in zip(lengths, ends) if end < A)


def context_rank(start, token_causal):
    """Ranks of full blocks, all below 0, the rank of the current one. -> (S,).

    start (S,): the position at which the block of each position starts, which rises with the block.
    Equal inside a block: it sees itself and earlier ones (model.visible), and NOTHING that comes
    later, so its keys and values never change: that is what makes the cache exact. token_causal
    (NBDiff): they rise from token to token.
    """
    S = len(start)
    return (torch.arange(S, device=start.device) if token_causal else start) - S


@functools.lru_cache(maxsize=64)
def who_sees_whom(lengths, P, token_causal, device):
    """The matrix that trains all blocks in one pass, over [noisy ; clean] -> bool (S + C, S + C).

    noisy sees its own block, and the clean copy of the blocks before it; clean sees clean by
    context_rank. The clean copy of the last block helps nobody: it is absent, so C < S.
    No ranking says this. Noisy block b and its clean copy must not see each other, so their ranks
    are equal: but then, if <= 0, they do, and if above 0, the noisy block does not see itself.
    """
    sizes = torch.tensor([P + lengths[0], *lengths[1:]])  # the prompt belongs to the first block
    start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes).to(device)  # (S,) of its block
    C = len(start) - int(sizes[-1])
    q, noisy, clean = start.unsqueeze(1), start, start[:C]
    own_block, before = noisy == q, clean < q  # (S, S), (S, C)
    never = own_block.new_zeros(C, len(start))  # clean to noisy
    context = visible(context_rank(start, token_causal)[:C])  # (C, C)
    return torch.cat([torch.cat([own_block, before], 1), torch.cat([never, context], 1)])


# --------------------------------------------------------------------------------------------------
# Training


def hide_in_blocks(batch_size, A, window, generator, device, given, rates=UNIFORM, *, sizes):
    """As diffusion.hide(), in every block of its own -> turn (B, A), lengths of the blocks."""
    lengths = draw_lengths(A, sizes, generator, device)
    turns = [draw_turns(batch_size, n, generator, device, rates=rates) for n in lengths]  # (B, n)
    return torch.cat(turns, dim=1), lengths


def block_nats(model, tokens, turn, lengths, task, ranks, token_causal=False, complementary=False):
    """The loss of each sample -> (B,) nats per answer cell; ranks: not used, see who_sees_whom().

    Each block has the mean over its hidden cells, weighted by its size: with m uniform on 1..n the
    bound of diffusion.hidden_nats(), block by block. complementary (arXiv 2509.26328): the first
    half of the batch under its masks and under their complements, so that each cell is hidden once;
    the mean over all cells, without that weight, is no bound; it is -> (B / 2,).
    """
    P, A = task.P, task.A
    hidden = turn > 0  # (B, A)
    if complementary:
        half = len(tokens) // 2
        tokens = tokens[:half].repeat(2, 1)
        hidden = torch.cat([hidden[:half], ~hidden[:half]])
    # 1. hide, and put the clean copy behind
    noisy = torch.cat([tokens[:, :P], tokens[:, P:].masked_fill(hidden, task.MASK)], dim=1)
    mask = who_sees_whom(lengths, P, token_causal, tokens.device)
    C = len(mask) - task.S
    positions = torch.arange(task.S, device=tokens.device)
    # 2. predict
    logits = model(torch.cat([noisy, tokens[:, :C]], dim=1),
                   torch.cat([positions, positions[:C]]), mask)  # (B, S + C, K)
    # 3. score
    logits = logits[:, P:task.S].float().transpose(1, 2)  # (B, K, A)
    nll = F.cross_entropy(logits, tokens[:, P:], reduction="none") * hidden  # (B, A)
    if complementary:
        return (nll[:half] + nll[half:]).mean(dim=1)
    per_block = [n * part.sum(dim=1) / here.sum(dim=1) for n, part, here in zip(
        lengths, nll.split(lengths, dim=1), hidden.split(lengths, dim=1))]
    return sum(per_block) / A


# --------------------------------------------------------------------------------------------------
# Decoding


def block_diffusion(board, size, k=1, tau=1.0, order="confidence", token_causal=False, cached=True,
                    sure=0.0):
    """Block after block: in each the k surest cells of every pass, and those with max p > tau.

    The first pass over a block also feeds the one before it, now that it is full, to the cache; no
    pass is spent on that alone. cached=False feeds all blocks up to the current one in every pass:
    the same logits from more pairs. order: also random or left_to_right; under the latter the size
    of a block changes nothing but who is a latent. Rows that have filled their block wait for the
    others of the batch, and do not pay. sure (0: off; for a board of one sample): after a block
    whose commits had a mean max p of `sure` or more the next is twice as long, after others half as
    long. No cell of the answer may be given.
    """
    task, model, positions = board.task, board.model, board.positions
    cache = model.new_cache() if cached else None
    starts = torch.zeros_like(positions)  # (S,) where the block of each position starts
    start, first, n = 0, 0, size  # first: the position from which on a pass is fed
    while start < task.S:
        end = min(max(start, task.P) + n, task.S)  # the prompt belongs to the first block
        cells = slice(max(start, task.P) - task.P, end - task.P)
        here = torch.zeros_like(board.given)  # (B, A)
        here[:, cells] = True
        starts[start:end] = start
        board.steps = cells.start  # noise goes with the block: who waited has the same as alone
        rank = context_rank(starts, token_causal).masked_fill(positions >= start, 0)  # (S,)
        while (board.unknown & here).any():
            unknown = board.unknown & here  # (B, A)
            board.pay(unknown.any(dim=1).nonzero().flatten(), end - first)
            seen = model(board.tokens[:, first:end], positions[first:end], rank[first:end],
                         cache=cache)[:, cells.start - cells.stop:].float()  # (B, n, K)
            if cached:  # what is full stays, what was fed of the current block is forgotten
                cache["length"] = first = start
            logits = seen.new_zeros(*here.shape, task.K)  # (B, A, K)
            logits[:, cells] = seen
            probs = logits.softmax(dim=-1)
            confidence = probs.amax(dim=-1)  # (B, A)
            score = board.noise() if order == "random" else certainty(probs, order)
            if order == "left_to_right":
                score = (-positions[:task.A]).float().expand_as(confidence)
            chosen = surest(score, unknown, k) | unknown & (confidence > tau)
            board.commit(chosen, board.draw(logits), confidence)
            yield
        if sure:
            n = 2 * n if board.sure[0, cells].mean() >= sure else max(n // 2, 1)
        start = end


@torch.no_grad()
def decode(model, task, start, keys, temperature, history=None, **knobs):
    """start (B, S) -> tokens (B, S), stats: nfe and tokens, each (B,), as sample.decode().

    Raises BadInput for given cells.
    """
    if (start[:, task.P:] != task.MASK).any():
        raise BadInput("block diffusion fills blocks in their order and cannot see givens that "
                       "stand further on; train it with --layout prompt")
    parts = []
    for rows in torch.arange(len(start)).split(1 if knobs.get("sure") else 128):
        board = Board(model, task, None, start[rows], keys[rows], temperature)
        for _ in block_diffusion(board, **knobs):
            if history is not None:
                history.append(board.tokens.clone())
        parts.append((board.tokens, board.nfe, board.fed))
    tokens, nfe, fed = (torch.cat(part) for part in zip(*parts))
    return tokens, {"nfe": nfe, "tokens": fed}


# --------------------------------------------------------------------------------------------------
# The program


def objective(sizes, token_causal=False, complementary=False):
    """-> a row for objectives.py:OBJECTIVES. Its "window" are the lengths of the blocks."""
    nats = functools.partial(block_nats, token_causal=token_causal, complementary=complementary)
    return Objective(None, functools.partial(hide_in_blocks, sizes=sizes), nats, dials=())


def train(config, how):
    """Train and save OUT/ckpt.pt, which also holds `how`: sizes, token_causal, complementary."""
    OBJECTIVES["block"] = objective(**how)
    configuration.check(config)
    check_out(config, resume=False)
    device, autocast, reason = choose_device(config.device)
    task = make_task(config)
    check_sizes(how["sizes"], task)
    if config.task == "sudoku" and config.layout == "inplace":
        raise BadInput("block diffusion cannot see givens that stand further on; "
                       "give --layout prompt")
    if config.compile and len(how["sizes"]) > 1:
        raise BadInput("--compile records one step, and several --sizes make many; "
                       "give --no-compile")
    if how["complementary"] and config.batch_size % (2 * config.accumulate):
        raise BadInput(f"--complementary needs pairs: --batch-size {config.batch_size} is not a "
                       f"multiple of twice --accumulate {config.accumulate}")
    state = make_state(config, task, device, autocast)
    task.prepare(device)
    say(f"{task.name} block, {state.model.num_params():,} parameters, {reason}")
    step, began = make_step(state), time.perf_counter()
    with tqdm(total=config.max_steps, unit="step", desc=f"{task.name} block") as bar:
        while not has_ended(state):
            loss = step(lr_scale(state.step, state.seconds, config))
            state.step += 1
            bar.update()
            if config.compile and state.step <= WARM_STEPS:  # compiling is not on the clock
                loss.item()  # waits for a GPU
                began = time.perf_counter()
            if state.step % config.log_every_steps == 0 or state.step == config.max_steps:
                bar.set_postfix_str(f"loss {loss.item():.5f}")  # waits for a GPU
                check_finite([loss.item()], state.step, Path(config.out) / "ckpt.pt")
            state.seconds = time.perf_counter() - began
    Path(config.out).mkdir(parents=True, exist_ok=True)
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    save_checkpoint({"model": state.model.state_dict(), "step": state.step, "block": how,
                     "config": asdict(config), "versions": versions},
                    Path(config.out) / "ckpt.pt")


def check_sizes(sizes, task):
    for size in sizes:
        if not 1 <= size <= task.A:
            raise BadInput(f"a block of {size} cells was asked for; this task has {task.A}; legal: "
                           f"1 to {task.A}")


@torch.no_grad()
def held_out_nats(model, task, size, how, num, draws=8):
    """Nats per cell of held-out data, in expectation a bound; for blocks of one cell it is exact.
    """
    tokens, _ = task.held_out(num)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(2**40 + 4)  # on the CPU: the same on all devices
    total = 0.0
    for _ in range(draws):
        turn, lengths = hide_in_blocks(len(tokens), task.A, None, generator, "cpu", None,
                                       sizes=[size])
        for rows in torch.arange(len(tokens)).split(256):
            total += block_nats(model, tokens[rows].to(device), turn[rows].to(device), lengths,
                                task, None, how["token_causal"]).sum().item()
    return total / draws / len(tokens)


def report(args, size, model, task, config, how, device, autocast):
    """Decode the own test set -> a dict of plain numbers."""
    start, _ = task.test_set(args.num)
    keys = sample_keys(args.seed, start, copies_differ=not task.unique_answer)
    temperature, order = (0.0, "confidence") if task.unique_answer else (1.0, "random")
    order = args.order or order
    began = time.perf_counter()
    with autocast:
        tokens, stats = decode(model, task, start.to(device), keys.to(device), temperature,
                               size=size, k=args.k, tau=args.tau, order=order, sure=args.sure,
                               token_causal=how["token_causal"], cached=not args.no_cache)
        seconds = time.perf_counter() - began
        nats = held_out_nats(model, task, size, how, args.num)
    metrics = summarize(task, start, tokens[:, task.P:].cpu(), None, stats, seconds)
    return {"task": task.name, "objective": "block", "params": model.num_params(),
            "trained_sizes": how["sizes"], "token_causal": how["token_causal"],
            "complementary": how["complementary"], "size": size, "held_out_nats": nats, **metrics,
            "order": order, "k": args.k, "tau": args.tau, "sure": args.sure,
            "cached": not args.no_cache, "seed": args.seed, "device": str(device)}


def show_decoded(args, file, sizes=None):
    """Decode a checkpoint at `sizes` (None: those it was trained with) and print a line for each.
    """
    OBJECTIVES["block"] = objective([1])  # so that the config of the checkpoint is a legal one
    device, autocast, reason = choose_device(args.device)
    how = load_checkpoint(file).get("block")
    if not isinstance(how, dict) or how.keys() != {"sizes", "token_causal", "complementary"}:
        raise BadInput(f"{printable(file, 200)} is no checkpoint of decoders.block_diffusion; "
                       "sample.py decodes those of train.py")
    model, task, config = load_model(file, device)
    sizes = sizes or how["sizes"]
    check_sizes(sizes, task)
    say(reason)
    for size in sizes:
        r = report(args, size, model, task, config, how, device, autocast)
        low, high = r["interval"]
        print(json.dumps(r) if args.json else
              f"{task.name} in blocks of {size}: solved {r['solved']}/{r['num']} = "
              f"{100 * r['solved'] / r['num']:.1f} % (95 % interval {100 * low:.1f}-"
              f"{100 * high:.1f}), {r['nfe']} forward passes and {r['tokens']} tokens per sample, "
              f"{r['held_out_nats']:.4f} nats per held-out cell")


def parse_sizes(text):
    """argparse type: 9, or 1,3,9."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a size like 9 or 1,3,9")
    return [int(part) for part in parts]


def add_decoding_flags(p):
    p.add_argument("--num", type=number(1, 1_000_000), default=256, help="samples; default 256")
    p.add_argument("--order", choices=ORDERS, help="which cell of the block next; default: "
                   "confidence where there is one answer, else random")
    p.add_argument("--k", type=number(1, 256), default=1, help="cells per pass; default 1")
    p.add_argument("--tau", type=number(0.0, 1.0, kind=float), default=1.0,
                   help="also commit what is surer than this; default 1: nothing")
    p.add_argument("--sure", type=number(0.0, 1.0, kind=float), default=0.0,
                   help="double the block after one as sure as this, else halve it; default 0: off")
    p.add_argument("--no-cache", action="store_true", help="feed full blocks again in every pass")
    p.add_argument("--json", action="store_true", help="print one JSON object for each size")


def main_decode(argv):
    p = Parser("Decode a checkpoint of block diffusion on its own test set.")
    p.add_argument("--ckpt", type=path, required=True, metavar="FILE", help="of train")
    p.add_argument("--size", type=parse_sizes, metavar="N[,N...]",
                   help="cells of a block; default as trained")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="of order and symbols")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    add_decoding_flags(p)
    args = p.parse_args(argv)
    show_decoded(args, args.ckpt, args.size)


def main_train(argv):
    p = Parser("Train block diffusion and decode it on its own test set.")
    p.add_argument("--preset", choices=sorted(PRESETS), help="a set of fields; flags override it")
    p.add_argument("--sizes", type=parse_sizes, required=True, metavar="N[,N...]",
                   help="cells of a block; several: every step draws them at random")
    p.add_argument("--token-causal", action="store_true",
                   help="full blocks see from token to token (NBDiff), not block to block")
    p.add_argument("--complementary", action="store_true",
                   help="half the samples, each under a mask and its complement (Fast-dLLM v2)")
    configuration.add_flags(p)
    add_decoding_flags(p)
    args = p.parse_args(argv)
    asked = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}
    for name in WITHOUT_MEANING:
        if name in asked:
            raise BadInput(f"--{name.replace('_', '-')} has no meaning for block diffusion")
    config = Config(**{**PRESETS.get(args.preset, {}), **asked, "objective": "block"})
    how = {"sizes": args.sizes, "token_causal": args.token_causal,
           "complementary": args.complementary}
    train(config, how)
    args.seed, args.device = 0, config.device  # of decoding
    show_decoded(args, Path(config.out) / "ckpt.pt")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return main_train(argv[1:])
    if argv[:1] == ["decode"]:
        return main_decode(argv[1:])
    raise BadInput("say train or decode; python -m decoders.block_diffusion train --help shows how")


if __name__ == "__main__":
    end(run(main))
