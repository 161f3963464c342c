"""How likely a model finds data it never saw, and the entropy of uniformly random boards.

    B batch   P prompt positions   A answer positions   S = P + A   u cells to be found

A masked diffusion model has no likelihood in closed form; its loss bounds it (diffusion.py), and
with many masks per sample the bound is known to within a standard error. A model that decodes in
one fixed order (ar, mtp) has a likelihood, by the chain rule.
"""
import json
import math

import torch
from tqdm import tqdm

from diffusion import draw_turns, hidden_nats
from objectives import OBJECTIVES

# How many Sudoku boards there are: uniformly random ones have log(count) nats per board. Were the
# data uniform, what a model needs beyond that would be its KL to the truth. Randomised search is
# only nearly uniform: its boards have 0.3 (6x6) and 0.8 nats (9x9) less before the symmetries
# that training adds, which take part of that away (LOG.md); 4x4 boards are drawn from the list,
# exactly uniform.
BOARDS = {4: 288, 6: 28_200_960, 9: 6_670_903_752_021_072_936_960}
ROWS = 512  # in a forward pass


def floor_nats(task):
    """The entropy of a uniformly random board, in nats per cell; None for other tasks."""
    return math.log(BOARDS[task.N]) / task.A if task.name == "sudoku-gen" else None


@torch.no_grad()
def held_out_nats(model, task, objective, window, num, draws, device, autocast):
    """-> nats per cell of held-out data: mean over `num` samples, its standard error, exact or not.

    `draws` masks per sample where it is a bound, always the same ones.
    """
    rule = OBJECTIVES[objective]
    tokens, given = task.held_out(num)
    generator = torch.Generator().manual_seed(2**40 + 3)  # on the CPU: the same on all devices
    exact = rule.left_to_right
    if rule.next_token:
        turns = [rule.hide(len(tokens), task.A, window, None, "cpu", given)[0]]
    elif exact:
        turns = list(cuts(given, len(tokens), task.A))
    else:
        turns = list(masks(given, len(tokens), task.A, draws, generator))
    W = task.A if window in ("all", "random") else int(window)
    seen = rule.ranks if not exact else lambda turn, _: rule.ranks(turn, W)
    total, count = torch.zeros(len(tokens)), torch.zeros(len(tokens))
    for turn in tqdm(turns, desc="likelihood", delay=2, leave=False):
        has = (turn > 0).any(dim=1)  # a cut behind the last blank of a sample hides nothing there
        for rows in has.nonzero().flatten().split(ROWS):
            part, t = tokens[rows].to(device), turn[rows].to(device)
            with autocast:
                if rule.next_token:
                    nats = rule.nats(model, part, t, task.A, task, rule.ranks)
                else:  # in a fixed order only the next cell counts, whatever else is predicted
                    nats = hidden_nats(model, part, t, 1 if exact else task.A, task, seen)
            total[rows] += nats.float().cpu()
            count[rows] += 1
    nats = total / count
    return nats.mean().item(), (nats.std() / len(nats) ** 0.5).item(), exact


def masks(given, B, A, draws, generator):
    """`draws` times random masks: turn (B, A), such that each SAMPLE meets all noise levels.

    draw_turns() spreads the levels over the batch; shifting the batch hands them on.
    """
    for draw in range(draws):
        shift = draw * B // draws
        shifted = None if given is None else given.roll(shift, dims=0)
        yield draw_turns(B, A, generator, "cpu", given=shifted).roll(-shift, dims=0)


def cuts(given, B, A):
    """All cuts of a fixed order: turn (B, A) with 0, 1, 2, ... of the cells to be found known."""
    free = torch.ones(B, A, dtype=torch.bool) if given is None else ~given
    place = free.cumsum(dim=1)  # 1, 2, ... of the cells to be found
    for known in range(int(place.max())):
        yield (place - known).masked_fill(~free, 0)


def likelihood_report(args, model, task, config, device, autocast):
    """What sample.py --bound prints: one line, or with --json one object."""
    nats, error, exact = held_out_nats(model, task, config.objective, config.window,
                                       args.num or 256, 32, device, autocast)
    floor = floor_nats(task)
    if args.json:
        return json.dumps({"task": task.name, "objective": config.objective, "nats_per_cell": nats,
                           "standard_error": error, "exact": exact, "floor": floor})
    what = "-log p" if exact else "bound on -log p"
    line = f"{what}: {nats:.4f} +- {error:.4f} nats per cell"
    if floor is None:
        return line
    return (f"{line}; the floor of uniformly random boards, {floor:.4f}, is "
            f"{task.A * (nats - floor):.2f} nats per board lower")
