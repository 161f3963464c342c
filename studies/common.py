"""What the studies share: flags, checkpoints, decoding in batches, reports.

    N samples   B samples of a batch   A cells   S positions
"""
import json
import time

import torch
from tqdm import tqdm

from decoders import OBJECTIVES_DECODED, finish
from decoders.board import Board
from metrics import wilson
from objectives import OBJECTIVES
from plumbing.checkpoint import load_model, write_text
from plumbing.cli import DEVICES, BadInput, number, path


def add_flags(p, num, most=1_000_000, what="samples", **files):
    """--num, --seed and --device; files: help of flags that take a required FILE, by name."""
    for name, words in files.items():
        p.add_argument(f"--{name}", type=path, required=True, metavar="FILE", help=words)
    p.add_argument("--num", type=number(1, most), default=num, help=f"{what}; default {num}")
    p.add_argument("--seed", type=number(0, 2**32), default=0,
                   help="of the order and the sampled symbols; default 0")
    p.add_argument("--device", choices=DEVICES, default="auto", help="where to run")


def add_json_flag(p):
    p.add_argument("--json", type=path, metavar="FILE", help="write all numbers there as well")


def write_json(file, report):
    """Write a report there, if a file was asked for. Raises BadInput."""
    if file:
        write_text(file, json.dumps(report, indent=1) + "\n")


def load(file, device, fits, needed):
    """-> model (frozen), task, config, ranks. Raises BadInput where fits(task) is false.

    needed: the words for a task that fits.
    """
    model, task, config = load_model(file, device)
    if config.objective not in OBJECTIVES_DECODED or not fits(task):
        raise BadInput(f"--ckpt {file}: {config.objective} on {task.name}; needed is "
                       f"{' or '.join(OBJECTIVES_DECODED)} on {needed}")
    model.eval().requires_grad_(False)
    return model, task, config, OBJECTIVES[config.objective].ranks


def load_pair(draft_file, verify_file, device):
    """-> drafter, its ranks, verifier, task. Raises BadInput for two that do not fit together."""
    drafter, task, config = load_model(draft_file, device)
    verifier, other, verify_config = load_model(verify_file, device)
    if config.objective not in OBJECTIVES_DECODED:
        raise BadInput(f"--draft {draft_file}: objective {config.objective} does not predict all "
                       f"unknown cells at once; give one of {' or '.join(OBJECTIVES_DECODED)}")
    if verify_config.objective != "ar":
        raise BadInput(f"--verify {verify_file}: objective {verify_config.objective} is not next-"
                       "token; give one of ar")
    if any(getattr(task, x) != getattr(other, x) for x in ("name", "P", "A", "K", "V")):
        raise BadInput(f"--draft {draft_file} ({task.name}, {task.P} + {task.A} tokens) and "
                       f"--verify {verify_file} ({other.name}, {other.P} + {other.A}) are of "
                       "different tasks; train both on one")
    return drafter, OBJECTIVES[config.objective].ranks, verifier, task


def in_batches(run, start, keys, device, size=128, label="decoding"):
    """run(start (B, S), keys (B,), rows (B,)) -> tensors (B, ...) and stats, batch by batch.

    -> the same over all N samples on the CPU, and the seconds it took.
    """
    parts, began = [], time.perf_counter()
    for rows in tqdm(torch.arange(len(start)).split(size), desc=label, unit="batch", delay=2,
                     leave=False):
        found, stats = run(start[rows].to(device), keys[rows].to(device), rows)
        parts.append((found.cpu(), {name: values.cpu() for name, values in stats.items()}))
    stats = {name: torch.cat([s[name] for _, s in parts]) for name in parts[0][1]}
    return torch.cat([found for found, _ in parts]), stats, time.perf_counter() - began


@torch.no_grad()
def decode_boards(model, task, ranks, start, keys, loop, temperature=0.0, size=128):
    """Decode start (N, S) by loop(board, rows), a generator over a Board of the samples `rows`.

    -> tokens (N, S), stats (N,) each, on the CPU; seconds.
    """
    def run(start, keys, rows):
        board = Board(model, task, ranks, start, keys, temperature)
        return finish(board, loop(board, rows))
    return in_batches(run, start, keys, start.device, size)


def interval_text(k, n):
    """k of n with the 95 % Wilson interval."""
    low, high = (100 * rate for rate in wilson(k, n))
    return f"{k}/{n} ({low:.1f}-{high:.1f} %)"
