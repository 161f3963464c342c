"""Sampling: decode() for the diffusion family and mtp, decode_ar() with a cache, metrics, and the command line.

    B batch   P prompt positions   A answer positions   S = P + A   K answer symbols
    n latents   c candidates   i cells decoded so far   W window   NFE forward passes per sample

One step of decode(): choose the candidates, choose the latents, rank them, predict, commit. Whoever is
not needed is not in the tensor, so a step costs P + i + n + c tokens and fewer latents are really faster.

    python sample.py --ckpt out/ckpt.pt --num 100              # generate, or solve this project's own test puzzles
    python sample.py --ckpt out/ckpt.pt --puzzles FILE --json  # solve a file, print one JSON object
"""
import argparse
import contextlib
import difflib
import json
import math
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch
from tqdm import tqdm

from data import BadInput, make_task, read_puzzles
from model import Transformer

OBJECTIVES = ("mdm", "sidm", "scdm", "ar", "mtp")
ORDERS = ("random", "confidence", "margin", "entropy", "left_to_right")
DEVICES = ("auto", "cpu", "cuda", "mps")
ALL = 10**9  # "all latents", "all candidates": more than any task has


# ---------------------------------------------------------------------------------------------------------
# Dials: what a user may turn at inference, and for which objective


@dataclass
class Dials:
    """How to decode. Counts may exceed what is left; they are cut to it at every step."""
    order: str
    candidates: int       # unknown cells that compete for being committed (orders that look at the model)
    latents: int          # unknown cells that are present and not committed; mtp: W - 1, right after the committed
    tokens_per_step: int  # cells committed in one forward pass
    temperature: float    # 0 is greedy


MEANING = {  # the flags that mean something for each objective
    "mdm": ("order", "candidates", "tokens_per_step", "temperature"),
    "sidm": ("order", "candidates", "tokens_per_step", "temperature"),
    "scdm": ("order", "candidates", "tokens_per_step", "temperature", "latents"),
    "ar": ("temperature",),
    "mtp": ("temperature", "window", "tokens_per_step"),
}


def make_dials(objective, task, trained_window="all", **asked):
    """Defaults of the objective and task, overridden by what was asked (None: not asked). Raises BadInput."""
    asked = {k: v for k, v in asked.items() if v is not None}
    if objective == "mdm" and asked.get("latents", 0) >= task.A - 1:
        asked.pop("latents", None)  # all is what mdm does anyway
    for flag in asked:
        if flag not in MEANING[objective]:
            why = {"mdm": " (all its unknown cells are always latents)", "sidm": " (it has none)"}.get(objective, "") if flag == "latents" else ""
            legal = ", ".join("--" + f.replace("_", "-") for f in MEANING[objective])
            raise BadInput(f"--{flag.replace('_', '-')} has no meaning for objective {objective}{why}; legal: {legal}")
    get = asked.get
    # Puzzles have one answer: greedy, the surest cell first. Generation: T = 1, random order.
    order = get("order", "left_to_right" if objective in ("ar", "mtp") else "confidence" if task.unique_answer else "random")
    if "candidates" in asked and order in ("random", "left_to_right"):
        raise BadInput(f"--candidates has no meaning for --order {order}; legal orders with it: confidence, margin, entropy")
    k = get("tokens_per_step", 1)
    # The paper's window of 8 candidates leaves room for a dial; mdm pays for every cell in any case, so it looks at all.
    candidates = k if order in ("random", "left_to_right") else max(k, get("candidates", ALL if objective == "mdm" else 8))
    if objective == "mtp":
        W = get("window", ALL if trained_window in ("all", "random") else int(trained_window))
        if k > W:
            raise BadInput(f"--tokens-per-step {k} is more than the window {W}; give --window {k} or more")
        latents = W - k
    else:
        latents = {"mdm": ALL, "scdm": get("latents", ALL)}.get(objective, 0)
    temperature = get("temperature", 0.0 if task.unique_answer else 1.0)
    return Dials(order, candidates, latents, k, temperature)


def show_count(n, task):
    """A number of latents or candidates as it is reported: everything there can be is "all"."""
    return "all" if n >= task.A - 1 else n


# ---------------------------------------------------------------------------------------------------------
# The sampler


def draw(logits, temperature, generator):
    """logits (..., K) -> symbols (...). Temperature 0 takes the largest and ignores the generator."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits / temperature).softmax(dim=-1)
    noise = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / noise).argmax(dim=-1)  # the Gumbel trick: a sample from probs, with no host synchronisation


def sureness(logits, order):
    """How sure the model is of each cell: logits (B, c, K) -> (B, c). Never looks at the sampled symbol."""
    probs = logits.softmax(dim=-1)
    if order == "confidence":
        return probs.amax(dim=-1)
    if order == "margin":
        top = probs.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
    return torch.special.xlogy(probs, probs).sum(dim=-1)  # entropy order: the least entropy first


@torch.no_grad()
def decode(model, task, objective, prompt, dials, generator, history=None):
    """Fill the answer cells of each prompt, `tokens_per_step` at a time (mdm, sidm, scdm, mtp).

    prompt (B, P) -> tokens (B, S), stats {nfe, tokens}: forward passes, and pairs summed over passes, per
    sample. history: a list that receives the (B, S) tokens after each step.
    Every sample has the same number of known cells, so all shapes are plain Python numbers: no
    padding, and nothing that makes the GPU wait. In the released code of arXiv 2602.03769 candidate j also
    sees the j-1 candidates before it; here candidates see known cells, latents and themselves only.
    """
    B, P, A, device = len(prompt), task.P, task.A, prompt.device
    tokens = torch.cat([prompt, prompt.new_full((B, A), task.MASK)], dim=1)  # (B, S)
    known = torch.zeros(B, A, dtype=torch.bool, device=device)
    prompt_cells = torch.arange(P, device=device).expand(B, P)
    nfe = pairs = 0
    i = 0
    while i < A:
        k = min(dials.tokens_per_step, A - i)
        c = min(max(k, dials.candidates), A - i)
        n = min(dials.latents, A - i - c)
        # 1. line the unknown cells up: candidates first, then latents. The line is drawn anew at every step.
        if objective == "mtp":
            line = torch.arange(A, dtype=torch.float, device=device).repeat(B, 1)  # latents stand right behind
        else:
            line = torch.rand(B, A, generator=generator, device=device)
        if dials.order == "left_to_right":
            line[:, i:i + c] = torch.arange(c, device=device) - float(c)  # known cells are a prefix here
        cells = P + line.masked_fill(known, torch.inf).argsort(dim=1)  # (B, A) positions; the last i are known
        # 2. who is present, and who may look at whom (candidates come last)
        present = torch.cat([prompt_cells, cells[:, A - i:], cells[:, c:c + n], cells[:, :c]], dim=1)  # (B, P + i + n + c)
        if objective in ("mdm", "mtp"):
            rank = None  # everything sees everything
        else:  # known 0, latents 1..n in a chain, every candidate n + 1
            rank = torch.arange(1 - P - i, n + c + 1, device=device).clamp(0, n + 1)  # (P + i + n + c,)
        # 3. predict the candidates
        logits = model(tokens.gather(1, present), present, rank)[:, -c:].float()  # (B, c, K)
        # 4. commit k of them
        if c > k:
            pick = sureness(logits, dials.order).topk(k, dim=1).indices  # (B, k)
        else:
            pick = torch.arange(k, device=device).expand(B, k)
        where = cells[:, :c].gather(1, pick)  # (B, k)
        symbols = draw(logits, dials.temperature, generator).gather(1, pick)  # (B, k)
        tokens = tokens.scatter(1, where, symbols)
        known.scatter_(1, where - P, True)
        i += k
        nfe += 1
        pairs += present.shape[1]
        if history is not None:
            history.append(tokens)
    return tokens, {"nfe": nfe, "tokens": pairs}


@torch.no_grad()
def decode_ar(model, task, prompt, temperature, generator, use_cache=True, history=None):
    """Next-token decoding (ar): prompt (B, P) -> tokens (B, S), stats. With the cache each token is fed once:
    P + A - 1 pairs, because the last token is never fed. Without it the whole prefix is fed at every step."""
    tokens = prompt
    cache = model.new_cache() if use_cache else None
    pairs = fed = 0
    for _ in range(task.A):
        new = tokens[:, fed:]
        positions = torch.arange(fed, tokens.shape[1], device=prompt.device)
        logits = model(new, positions, causal=True, cache=cache)[:, -1].float()  # (B, K)
        tokens = torch.cat([tokens, draw(logits, temperature, generator).unsqueeze(1)], dim=1)
        pairs += new.shape[1]
        fed = tokens.shape[1] - 1 if use_cache else 0
        if history is not None:
            history.append(torch.nn.functional.pad(tokens, (0, task.S - tokens.shape[1]), value=task.MASK))
    return tokens, {"nfe": task.A, "tokens": pairs}


# ---------------------------------------------------------------------------------------------------------
# Metrics


def wilson(k, n, z=1.96):
    """The 95 % Wilson interval of k successes in n trials -> (low, high) as rates."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    half = z * (p * (1 - p) / n + zz / (4 * n)) ** 0.5
    return max(0.0, (p + zz / 2 - half) / (1 + zz)), min(1.0, (p + zz / 2 + half) / (1 + zz))


def evaluate(model, task, objective, dials, prompts, references, seed, device, autocast, history=None, label="sampling"):
    """Decode the prompts (num, P) and score them -> metrics (plain numbers), answers (num, A).

    Decoding sees the prompts alone; references (num, A or None) are used after it, to score.
        solved    rule-valid and consistent with the prompt        exact     equal to the reference
        cell_acc  share of answer cells equal to the reference     nfe       forward passes per sample
        tokens    pairs per sample, summed over passes             seconds   decoding all of them, on the wall clock
    """
    generator = torch.Generator(device).manual_seed(seed)
    batch_size = 128 if device.type == "cpu" else 320_000 // task.S  # 128 stay in a CPU's cache: a quarter faster; with fewer tokens a GPU waits for the host
    answers, seconds = [], 0.0
    for part in tqdm(prompts.split(batch_size), desc=label, unit="batch", delay=2, leave=False):
        start = time.perf_counter()
        part = part.to(device)
        with autocast:
            if objective == "ar":
                tokens, stats = decode_ar(model, task, part, dials.temperature, generator, history=history)
            else:
                tokens, stats = decode(model, task, objective, part, dials, generator, history)
        answers.append(tokens[:, task.P:].cpu())  # waits for the device
        seconds += time.perf_counter() - start
    answers = torch.cat(answers)
    num, solved = len(answers), int(task.check(prompts, answers).sum())
    metrics = {"num": num, "solved": solved, "solved_rate": solved / num, "interval": wilson(solved, num), "exact": None, "cell_acc": None}
    if references is not None:
        equal = answers == references
        metrics.update(exact=int(equal.all(dim=1).sum()), cell_acc=equal.float().mean().item())
    return dict(metrics, **stats, seconds=round(seconds, 4)), answers


# ---------------------------------------------------------------------------------------------------------
# Plumbing: device, checkpoint, command line


def choose_device(name):
    """'auto', 'cpu', 'cuda' or 'mps' -> device, autocast context, and a sentence that says what and why."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not available[name]:
        raise BadInput(f"--device {name} was asked, but torch sees no such device here; use --device auto or cpu")
    kind = ("cuda" if available["cuda"] else "cpu") if name == "auto" else name  # mps is untested, so it must be asked for
    device = torch.device(kind)
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where autocast leaves fp32
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return device, torch.autocast("cuda", torch.bfloat16), f"device {torch.cuda.get_device_name()}, bf16 (the GPU has it)"
    why = {"cuda": "the GPU has no bf16", "mps": "untested", "cpu": "bf16 is slow on most CPUs"}[kind]
    return device, contextlib.nullcontext(), f"device {kind}{' (no GPU found)' if kind == 'cpu' and name == 'auto' else ''}, fp32 ({why})"


def load_checkpoint(file):
    """A checkpoint's plain dict, on the CPU. weights_only: a pickle that wants to run code is refused. Raises BadInput."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch also warns about foreign pickles; one line is enough
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"checkpoint {file} does not exist; train one with: python train.py --out DIR") from None
    except Exception as e:  # torch raises many kinds here for truncated, foreign and hostile files
        reason = "it wants to run code" if "weights_only" in str(e).lower() or "Unsupported" in str(e) else str(e).splitlines()[0] if str(e) else type(e).__name__
        raise BadInput(f"checkpoint {file} cannot be loaded ({reason}); it is damaged or not from train.py") from None
    if not isinstance(checkpoint, dict) or not {"model", "step", "config", "versions"} <= checkpoint.keys():
        raise BadInput(f"checkpoint {file} is a torch file, but not one of train.py (no model, step, config, versions)")
    return checkpoint


def build_model(config, task):
    return Transformer(task.V, task.K, task.S, config.width, config.depth, config.heads)


def load_model(file, device):
    """-> model (fp32, on the device), task, config namespace."""
    checkpoint = load_checkpoint(file)
    config = SimpleNamespace(**checkpoint["config"])
    try:
        task = make_task(config)
        model = build_model(config, task)
        model.load_state_dict({k: v.float() for k, v in checkpoint["model"].items()})
    except (AttributeError, RuntimeError) as e:
        raise BadInput(f"checkpoint {file} does not fit this version of the program: {str(e).splitlines()[0]}") from None
    return model.to(device), task, config


class Parser(argparse.ArgumentParser):
    """argparse, with one clear line on stderr for a mistake, and the nearest legal flag or value."""

    def __init__(self, **kw):
        super().__init__(allow_abbrev=False, **kw)

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [f for a in self._actions for f in a.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1, 0.5)
            raise BadInput(f"unknown argument {unknown[0]}{f'; did you mean {near[0]}?' if near else '; --help lists the legal ones'}")
        return args

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), [str(c) for c in action.choices], 1, 0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadInput(f"{action.option_strings[0]} {value!r} is unknown; {hint}legal: {', '.join(map(str, action.choices))}")

    def error(self, message):
        raise BadInput(message)


def number(low, high=math.inf, all_=False, kind=int):
    """argparse type: a finite number from `low` to `high`, or the word all."""
    def parse(text):
        if all_ and text == "all":
            return ALL
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == math.inf:
            bounds = f">= {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'} {bounds}{' or the word all' if all_ else ''}")
        return value
    return parse


def run(main, argv=None):
    """Call main(argv); a mistake is one line on stderr and exit code 2, Ctrl-C is 130. No traceback for either."""
    program = os.path.basename(sys.argv[0]) or "nanolatent"
    try:
        return main(argv) or 0
    except BadInput as e:
        print(f"{program}: {e}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(f"{program}: out of memory on the GPU; lower --batch-size (training) or --num (sampling)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        print(f"{program}: {e.filename or 'a file'}: {e.strerror}", file=sys.stderr)
        return 2


def parse_args(argv):
    p = Parser(description=__doc__.split("\n")[0] + " Dials without a meaning for the checkpoint's objective are refused.")
    p.add_argument("--ckpt", required=True, metavar="FILE", help="checkpoint of train.py; carries task, objective and sizes")
    p.add_argument("--num", type=number(1), help="how many samples; default: the whole --puzzles file, else 1")
    p.add_argument("--puzzle", metavar="STRING", help="one puzzle (81 characters, or a graph in its task's text format)")
    p.add_argument("--puzzles", metavar="FILE", help="one puzzle per line, optionally with its solution; # comments are skipped")
    p.add_argument("--latents", type=number(0, all_=True), metavar="N|all", help="scdm: latent tokens, redrawn each step; default all")
    p.add_argument("--window", type=number(1, all_=True), metavar="W|all", help="mtp: window, W - 1 of it latents; default as trained")
    p.add_argument("--order", choices=ORDERS, help="which cell next; default: confidence for puzzles, random for generation")
    p.add_argument("--candidates", type=number(1, all_=True), metavar="N|all", help="cells that compete for being next; default: all for mdm, 8 for sidm and scdm")
    p.add_argument("--tokens-per-step", type=number(1), metavar="K", help="cells committed per forward pass; default 1")
    p.add_argument("--temperature", type=number(0.0, kind=float), metavar="T", help="0 is greedy; default: 0 for puzzles, 1 for generation")
    p.add_argument("--seed", type=number(0, 2**32), default=0, help="of the order, the latents and the sampled symbols; default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")
    p.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="auto: when stdout is a terminal")
    p.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    return p.parse_args(argv)


def load_prompts(args, task):
    """-> prompts (num, P), references (num, A) or None. Raises BadInput for what cannot be solved."""
    if args.puzzle is None and args.puzzles is None:
        return task.test_set(args.num or 1)
    if args.puzzle is not None and args.puzzles is not None:
        raise BadInput("--puzzle and --puzzles were both given; give one")
    if args.puzzle is not None:
        try:
            puzzles, places = [task.parse(args.puzzle.strip())], ["--puzzle"]
        except BadInput as e:
            raise BadInput(f"--puzzle: {e}") from None
    else:
        puzzles, places = read_puzzles(args.puzzles, task)
        if args.num and args.num > len(puzzles):
            raise BadInput(f"--num {args.num} is more than the {len(puzzles)} puzzles of {args.puzzles}")
        puzzles = puzzles[:args.num]
    references = []
    for (prompt, answer), place in zip(puzzles, places):
        try:
            references.append(task.reference(prompt) if answer is None else answer)
        except BadInput as e:
            raise BadInput(f"{place}: {e}") from None
    have_all = all(r is not None for r in references)
    return torch.tensor([p for p, _ in puzzles]), torch.tensor(references) if have_all else None


def show(task, prompts, answers, history, color, solved):
    """Boards for the terminal: every step of a single sample, the end of the first five otherwise; mistakes in words."""
    for s in range(min(len(prompts), 5)):
        before = torch.full_like(answers[s], task.MASK)
        if len(prompts) == 1:
            for step, tokens in enumerate(history, 1):
                now = tokens[s, task.P:].cpu()
                print(f"step {step} of {len(history)}\n{task.render(prompts[s], now, before, color)}\n")
                before = now
        else:
            print(f"sample {s + 1}\n{task.render(prompts[s], answers[s], answers[s], color)}")
        said = task.mistakes(prompts[s], answers[s])
        assert bool(solved[s]) == (not said)  # two checkers, written differently, must agree
        print("valid\n" if not said else "mistakes: " + "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "") + "\n")


def main(argv=None):
    args = parse_args(argv)
    device, autocast, reason = choose_device(args.device)
    model, task, config = load_model(args.ckpt, device)
    dials = make_dials(config.objective, task, config.window, order=args.order, candidates=args.candidates, latents=args.latents,
                       tokens_per_step=args.tokens_per_step, temperature=args.temperature, window=args.window)
    prompts, references = load_prompts(args, task)
    print(reason, file=sys.stderr)
    history = [] if len(prompts) == 1 and not args.json else None
    metrics, answers = evaluate(model, task, config.objective, dials, prompts, references, args.seed, device, autocast, history=history)
    say = {**asdict(dials), "candidates": show_count(dials.candidates, task), "latents": show_count(dials.latents, task)}
    report = dict(task=task.name, objective=config.objective, params=model.num_params(), **metrics, **say, seed=args.seed, device=str(device))
    if args.json:
        print(json.dumps(report))
        return
    color = args.color == "always" or args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    show(task, prompts, answers, history, color, task.check(prompts, answers))
    low, high = metrics["interval"]
    print(f"{task.name} {config.objective}: solved {metrics['solved']}/{metrics['num']} = {100 * metrics['solved_rate']:.1f} % "
          f"(95 % interval {100 * low:.1f}-{100 * high:.1f})" + ("" if references is None else f", exact {metrics['exact']}, cells {100 * metrics['cell_acc']:.1f} %"))
    print(f"order {dials.order}, latents {say['latents']}, {metrics['nfe']} forward passes and {metrics['tokens']} tokens per sample, {metrics['seconds']:.2f} s")


if __name__ == "__main__":
    sys.exit(run(main))
