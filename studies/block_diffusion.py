"""Block diffusion, trained: blocks in order, masked diffusion inside, full blocks cached.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols   R readings
    n cells of a block   C positions of the clean copy   T pairs in the forward pass

p(x) = product over blocks of p(block | blocks before it). The block size is a second dial for
latents: an unknown cell of the current block is a latent, one of a later block is absent. One block
is `mdm`; blocks of one cell are autoregressive (with a MASK token instead of the usual shift). The
prompt belongs to the first block and is fed in each of its passes.

Training feeds [noisy ; clean], fewer than 2 S pairs, and scores every block.

Sources: Fast-dLLM v2, arXiv 2509.26328 (matrix, complementary masks, cache); NBDiff, 2512.06776
(token_causal; not its next-token loss, not its growing blocks); CtrlDiff, 2505.14455 (a block size
chosen at each step; only its abstract was read, so the rule here is a different one: no policy).

    python -m studies.block_diffusion train --preset sudoku4 --sizes 4 --out out/b4
    python -m studies.block_diffusion train --preset sudoku4 --sizes 1,2,4,8,16 --out out/dial
    python -m studies.block_diffusion decode --ckpt out/dial/ckpt.pt --size 4 --num 200 --json
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
from tqdm import tqdm

import config as configuration
from config import PRESETS, Config
from data import make_task
from decoders.board import Board, certainty, top_cells
from diffusion import UNIFORM, cross_entropy, draw_levels
from metrics import summarize
from model import visible
from noise import sample_keys
from objectives import OBJECTIVES, ORDERS, Objective
from plumbing.checkpoint import check_out, load_checkpoint, load_model, save_checkpoint
from plumbing.cli import (BadInput, Parser, add_config_flags, choose_device, end, number,
                          printable, run, say)
from plumbing.fast import WARM_STEPS
from studies.common import add_flags, in_batches, interval_text
from train import check_finite, lr_scale, make_state, make_step

# fields of Config that the short loop here does not read
WITHOUT_MEANING = ("objective", "window", "stop_at_solved", "eval_every_steps", "eval_samples",
                   "checkpoint_every_steps")

# --------------------------------------------------------------------------------------------------
# Who may look at whom


def draw_lengths(A, sizes, generator, device):
    """Cells of each block: of one size, or of random ones of `sizes`, until A are full -> tuple.

    Random ones are drawn anew at every step; the host waits for them, because they decide shapes.
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

    start (S,): the position at which the block of each position starts; it increases with the
    block. Equal ranks inside a block: it sees itself and earlier blocks (model.visible) and NOTHING
    later, so its keys and values never change, which makes the cache exact. token_causal (NBDiff):
    ranks increase from token to token.
    """
    S = len(start)
    return (torch.arange(S, device=start.device) if token_causal else start) - S


@functools.lru_cache(maxsize=64)
def who_sees_whom(lengths, P, token_causal, device):
    """The matrix that trains all blocks in one pass, over [noisy ; clean] -> bool (S + C, S + C).

    noisy sees its own block and the clean copy of the blocks before it; clean sees clean by
    context_rank. No block needs the clean copy of the last one: it is absent, so C < S.
    No ranking can say this. Noisy block b and its clean copy must not see each other, so their
    ranks would be equal; equal ranks <= 0 see each other, and with equal ranks above 0 the noisy
    block would not see itself.
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


def block_levels(given, lengths, generator, rates=UNIFORM):
    """diffusion.draw_levels() in each block separately: given (B, A) -> level (B, A)."""
    return torch.cat([draw_levels(part, generator, rates=rates)
                      for part in given.split(lengths, dim=1)], dim=1)


def mask_in_blocks(given, generator, config, *, sizes):
    """As diffusion.mask_random(), in each block separately -> level (B, A), lengths of blocks."""
    lengths = draw_lengths(given.shape[1], sizes, generator, given.device)
    rates = (config.mask_rate_a, config.mask_rate_b, config.uniform_fraction)
    return block_levels(given, lengths, generator, rates), lengths


def block_loss(model, tokens, level, lengths, task, ranks, read_every=0, token_causal=False,
               complementary=False):
    """The loss of each sample -> (B,) or (R, B) nats per answer cell. ranks: see who_sees_whom().

    Each block has the mean over its masked cells, weighted by its size: with m uniform on 1..n the
    bound of diffusion.masked_loss(), block by block. complementary (arXiv 2509.26328): the first
    half of the batch under its masks and under their complements, so that each cell is masked once;
    the mean over all cells, without that weight, is no bound; it is -> (B / 2,).
    """
    P, half = task.P, len(tokens) // 2
    masked = level > 0  # (B, A)
    if complementary:
        tokens = tokens[:half].repeat(2, 1)
        masked = torch.cat([masked[:half], ~masked[:half]])
    # 1. mask, and append the clean copy
    noisy = torch.cat([tokens[:, :P], tokens[:, P:].masked_fill(masked, task.MASK)], dim=1)
    mask = who_sees_whom(lengths, P, token_causal, tokens.device)
    C = len(mask) - task.S
    positions = torch.arange(task.S, device=tokens.device)
    # 2. predict
    logits = model(torch.cat([noisy, tokens[:, :C]], dim=1),
                   torch.cat([positions, positions[:C]]), mask,
                   read_every=read_every)  # (B, S + C, K) or (R, B, S + C, K)
    # 3. score
    nll = cross_entropy(logits[..., P:task.S, :], tokens[:, P:]) * masked  # (B, A) or (R, B, A)
    if complementary:
        return (nll[..., :half, :] + nll[..., half:, :]).mean(dim=-1)
    per_block = [n * part.sum(dim=-1) / here.sum(dim=1) for n, part, here in zip(
        lengths, nll.split(lengths, dim=-1), masked.split(lengths, dim=1))]
    return sum(per_block) / task.A


# --------------------------------------------------------------------------------------------------
# Decoding


def block_diffusion(board, size, k=1, tau=1.0, order="confidence", token_causal=False, cached=True,
                    sure=0.0):
    """Block after block: commit the k most certain cells of every pass, and those with max p > tau.

    The first pass over a block also feeds the finished block before it to the cache; no pass is
    spent on that alone. cached=False feeds all blocks up to the current one in every pass: the same
    logits from more pairs. order: also random or left_to_right; under the latter the block size
    decides only which cells are latents. Samples that have filled their block wait for the others
    of the batch and are not charged. sure (0: off; for a board of one sample): after a block whose
    commits had a mean max p of at least `sure` the next is twice as long, otherwise half as long.
    No cell of the answer may be given.
    """
    task, model, positions = board.task, board.model, board.positions
    cache = model.new_cache() if cached else None
    starts = torch.zeros_like(positions)  # (S,) where the block of each position starts
    start, first, n = 0, 0, size  # first: the first position that a pass feeds
    while start < task.S:
        end = min(max(start, task.P) + n, task.S)  # the prompt belongs to the first block
        cells = slice(max(start, task.P) - task.P, end - task.P)
        here = torch.zeros_like(board.given)  # (B, A)
        here[:, cells] = True
        starts[start:end] = start
        board.steps = cells.start  # noise depends on the block: waiting changes nothing
        rank = context_rank(starts, token_causal).masked_fill(positions >= start, 0)  # (S,)
        while (board.unknown & here).any():
            unknown = board.unknown & here  # (B, A)
            board.charge(unknown.any(dim=1).nonzero().flatten(), end - first)
            predicted = model(board.tokens[:, first:end], positions[first:end], rank[first:end],
                              cache=cache)[:, cells.start - cells.stop:].float()  # (B, n, K)
            if cached:  # full blocks stay cached, the current one is computed again
                cache["length"] = first = start
            logits = predicted.new_zeros(*here.shape, task.K)  # (B, A, K)
            logits[:, cells] = predicted
            probs = logits.softmax(dim=-1)
            confidence = probs.amax(dim=-1)  # (B, A)
            score = board.noise() if order == "random" else certainty(probs, order)
            if order == "left_to_right":
                score = (-positions[:task.A]).float().expand_as(confidence)
            chosen = top_cells(score, unknown, k) | unknown & (confidence > tau)
            board.commit(chosen, board.sample(logits), confidence)
            yield
        if sure:
            n = 2 * n if board.confidence[0, cells].mean() >= sure else max(n // 2, 1)
        start = end


@torch.no_grad()
def decode(model, task, start, keys, temperature, history=None, **params):
    """start (N, S) -> tokens (N, S), stats: nfe and tokens, each (N,); seconds. On the CPU.

    history: a list that receives the tokens after every pass. Raises BadInput for given cells.
    """
    if (start[:, task.P:] != task.MASK).any():
        raise BadInput("block diffusion fills blocks in order and cannot see givens that stand "
                       "further on; train it with --layout prompt")

    def run(start, keys, rows):
        board = Board(model, task, None, start, keys, temperature)
        for _ in block_diffusion(board, **params):
            if history is not None:
                history.append(board.tokens.clone())
        return board.tokens, {"nfe": board.nfe, "tokens": board.pairs}
    return in_batches(run, start, keys, start.device, 1 if params.get("sure") else 128)


# --------------------------------------------------------------------------------------------------
# The program


def objective(sizes, token_causal=False, complementary=False):
    """-> an entry for objectives.py:OBJECTIVES. Its window W is the lengths of the blocks."""
    loss = functools.partial(block_loss, token_causal=token_causal, complementary=complementary)
    return Objective(None, functools.partial(mask_in_blocks, sizes=sizes), loss, sampling=())


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
    if how["complementary"] and config.batch_size % (2 * config.grad_accum_steps):
        raise BadInput(f"--complementary needs pairs: --batch-size {config.batch_size} is not a "
                       f"multiple of twice --grad-accum-steps {config.grad_accum_steps}")
    state = make_state(config, task, device, autocast)
    task.prepare(device)
    say(f"{task.name} block, {state.model.num_params():,} parameters, {reason}")
    step, began = make_step(state), time.perf_counter()
    with tqdm(total=config.max_steps, unit="step", desc=f"{task.name} block") as bar:
        while not state.has_ended():
            loss = step(lr_scale(state.step, state.seconds, config))
            state.step += 1
            bar.update()
            if config.compile and state.step <= WARM_STEPS:  # compiling is not training time
                loss.item()  # waits for a GPU
                began = time.perf_counter()
            if state.step % config.log_every_steps == 0 or state.step == config.max_steps:
                bar.set_postfix_str(f"loss {loss.item():.5f}")  # waits for a GPU
                check_finite([loss.item()], state.step, state.file)
            state.seconds = time.perf_counter() - began
    Path(config.out).mkdir(parents=True, exist_ok=True)
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    save_checkpoint({"model": state.model.state_dict(), "step": state.step, "block": how,
                     "config": asdict(config), "versions": versions}, state.file)


def check_sizes(sizes, task):
    for size in sizes:
        if not 1 <= size <= task.A:
            raise BadInput(f"a block of {size} cells was asked for; this task has {task.A}; legal: "
                           f"1 to {task.A}")


@torch.no_grad()
def held_out_nats(model, task, size, how, num, device, draws=8):
    """Nats per cell of held-out data: in expectation a bound, exact for blocks of one cell."""
    tokens, given = task.held_out(num)
    generator = torch.Generator().manual_seed(2**40 + 4)  # on the CPU: the same on all devices
    lengths, total = draw_lengths(task.A, [size], generator, "cpu"), 0.0
    for _ in range(draws):
        level = block_levels(given, lengths, generator)
        for rows in torch.arange(len(tokens)).split(256):
            total += block_loss(model, tokens[rows].to(device), level[rows].to(device), lengths,
                                task, None, token_causal=how["token_causal"]).sum().item()
    return total / draws / len(tokens)


def report(args, size, model, task, how, device, autocast):
    """Decode the in-house test set -> a dict of plain numbers."""
    start, _ = task.test_set(args.num)
    keys = sample_keys(args.seed, start, copies_differ=not task.unique_answer)
    temperature, order = (0.0, "confidence") if task.unique_answer else (1.0, "random")
    asked = {"order": args.order or order, "k": args.k, "tau": args.tau, "sure": args.sure,
             "cached": not args.no_cache}
    with autocast:
        tokens, stats, seconds = decode(model, task, start.to(device), keys.to(device), temperature,
                                        size=size, token_causal=how["token_causal"], **asked)
        nats = held_out_nats(model, task, size, how, args.num, device)
    metrics = summarize(task, start, tokens[:, task.P:], None, stats, seconds)
    return {"task": task.name, "objective": "block", "params": model.num_params(),
            "trained_sizes": how["sizes"], "token_causal": how["token_causal"],
            "complementary": how["complementary"], "size": size, "held_out_nats": nats, **metrics,
            **asked, "seed": args.seed, "device": str(device)}


def show_decoded(args, file, sizes=None):
    """Decode a checkpoint with blocks of `sizes` (None: as trained) and print a line for each."""
    OBJECTIVES["block"] = objective([1])  # so that the config of the checkpoint is a legal one
    device, autocast, reason = choose_device(args.device)
    how = load_checkpoint(file).get("block")
    if not isinstance(how, dict) or how.keys() != {"sizes", "token_causal", "complementary"}:
        raise BadInput(f"{printable(file, 200)} is no checkpoint of studies.block_diffusion; "
                       "sample.py decodes those of train.py")
    model, task, _ = load_model(file, device)
    sizes = sizes or how["sizes"]
    check_sizes(sizes, task)
    say(reason)
    for size in sizes:
        r = report(args, size, model, task, how, device, autocast)
        print(json.dumps(r) if args.json else
              f"{task.name} in blocks of {size}: solved {interval_text(r['solved'], r['num'])}, "
              f"{r['nfe']} forward passes and {r['tokens']} tokens per sample, "
              f"{r['held_out_nats']:.4f} nats per held-out cell")


def parse_sizes(text):
    """argparse type: 9, or 1,3,9."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a size like 9 or 1,3,9")
    return [int(part) for part in parts]


def add_training_flags(p):
    p.add_argument("--preset", choices=sorted(PRESETS), help="a set of fields; flags override it")
    p.add_argument("--sizes", type=parse_sizes, required=True, metavar="N[,N...]",
                   help="cells of a block; several: every step draws them at random")
    p.add_argument("--token-causal", action="store_true",
                   help="full blocks see from token to token (NBDiff), not block to block")
    p.add_argument("--complementary", action="store_true",
                   help="half the samples, each under a mask and its complement (Fast-dLLM v2)")
    p.add_argument("--num", type=number(1, 1_000_000), default=256, help="samples; default 256")
    add_config_flags(p)


def add_decoding_flags(p):
    p.add_argument("--order", choices=ORDERS, help="which cell of the block next; default: "
                   "confidence where there is one answer, else random")
    p.add_argument("--k", type=number(1, 256), default=1, help="cells per pass; default 1")
    p.add_argument("--tau", type=number(0.0, 1.0, kind=float), default=1.0,
                   help="also commit cells with more confidence than this; default 1: none")
    p.add_argument("--sure", type=number(0.0, 1.0, kind=float), default=0.0,
                   help="double the block after one of at least this mean confidence, else halve "
                   "it; default 0: off")
    p.add_argument("--no-cache", action="store_true", help="feed full blocks again in every pass")
    p.add_argument("--json", action="store_true", help="print one JSON object for each size")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["decode"]:
        p = Parser("Decode a checkpoint of block diffusion on its in-house test set.")
        add_flags(p, 256, ckpt="of train")
        p.add_argument("--size", type=parse_sizes, metavar="N[,N...]",
                       help="cells of a block; default as trained")
    elif argv[:1] == ["train"]:
        p = Parser("Train block diffusion and decode it on its in-house test set.")
        add_training_flags(p)
    else:
        raise BadInput("say train or decode; "
                       "python -m studies.block_diffusion train --help shows how")
    add_decoding_flags(p)
    args = p.parse_args(argv[1:])
    if argv[0] == "train":
        asked = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}
        for name in (name for name in WITHOUT_MEANING if name in asked):
            raise BadInput(f"--{name.replace('_', '-')} has no meaning for block diffusion")
        config = Config(**{**PRESETS.get(args.preset, {}), **asked, "objective": "block"})
        train(config, {"sizes": args.sizes, "token_causal": args.token_causal,
                       "complementary": args.complementary})
        args.ckpt, args.size = Path(config.out) / "ckpt.pt", None
        args.seed, args.device = 0, config.device  # of decoding
    show_decoded(args, args.ckpt, args.size)


if __name__ == "__main__":
    end(run(main))
