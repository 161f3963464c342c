"""Metrics: each has one definition, here. summarize() reports decoded samples.

    B batch   P prompt positions   A answer positions   S = P + A

    solved     rule-valid and consistent with what was given; any valid answer counts (task.check)
    exact      equal to the reference, among the samples that have one (`references`)
    cell_acc   share of the cells to be found that equal the reference
    distinct   different answers among all of them
    nfe        forward passes per sample, mean
    tokens     (token, position) pairs per sample, summed over passes, mean
    seconds    decoding all samples, on the wall clock
    undone     with --decoder: cells committed and made unknown again, mean
    order_tau  with --decoder: Kendall's tau of the order of commits and of cells, mean

held_out_likelihood() says how likely a model finds held-out data. A masked diffusion model has
no likelihood in closed form; its loss bounds it (diffusion.py), and with many masks per sample the
bound is known to within a standard error. A model that decodes in one fixed order (ar, mtp) has a
likelihood, by the chain rule.
"""
import math

import torch
from tqdm import tqdm

from diffusion import draw_levels, masked_loss
from errors import BadInput
from objectives import OBJECTIVES


def wilson(k, n, z=1.96):
    """The 95 % Wilson interval of k successes in n trials -> (low, high) as rates."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    half = z * (p * (1 - p) / n + zz / (4 * n)) ** 0.5
    return max(0.0, (p + zz / 2 - half) / (1 + zz)), min(1.0, (p + zz / 2 + half) / (1 + zz))


SUMMED = ("nfe", "tokens", "undone")  # of each sample, over its restarts
MEANS = (*SUMMED, "order_tau")  # reported as means over samples; the last two are of decoders/


def summarize(task, start, answers, references, stats, seconds):
    """What is reported of decoded samples -> plain numbers; `solved` (num,) is put into stats."""
    stats["solved"] = task.check(start, answers)
    num, solved = len(answers), int(stats["solved"].sum())
    report = {"num": num, "solved": solved, "solved_rate": solved / num,
              "interval": wilson(solved, num), "distinct": len(answers.unique(dim=0)),
              **score(task, start, answers, references)}
    for name in (name for name in MEANS if name in stats):
        mean = stats[name].double().mean().item()
        report[name] = int(mean) if mean.is_integer() else round(mean, 2)
    return dict(report, seconds=round(seconds, 4))


def show_count(count, most):
    """A number of latents, candidates or cells as reported: `most` or more is "all"."""
    return "all" if count >= most else count


def score(task, start, answers, references):
    """What can only be said where there is a reference -> references, exact, cell_acc."""
    if references is None:
        return {"references": 0, "exact": None, "cell_acc": None}
    has, blank = references[:, 0] >= 0, task.blanks(start)
    equal = (answers == references)[has]
    to_find = blank[has]
    if not len(equal):
        return {"references": 0, "exact": None, "cell_acc": None}
    found, cells = int((equal & to_find).sum()), int(to_find.sum())
    return {"references": len(equal), "exact": int(equal.all(dim=1).sum()),
            "cell_acc": found / cells if cells else 1.0}


# --------------------------------------------------------------------------------------------------
# Likelihood

# How many Sudoku boards there are: uniformly random ones have log(count) nats per board. If the
# data were uniform, what a model needs beyond that would be its KL divergence from the truth.
# Randomised search is only nearly uniform: its entropy is 0.3 (6x6) and 0.8 nats (9x9) below that;
# random symmetries in training recover part of it (LOG.md). 4x4 boards are drawn from the complete
# list, exactly uniformly.
BOARDS = {4: 288, 6: 28_200_960, 9: 6_670_903_752_021_072_936_960}
ROWS = 512  # sequences in a forward pass


def entropy_floor(task):
    """The entropy of a uniformly random board, in nats per cell; None for other tasks."""
    return math.log(BOARDS[task.N]) / task.A if task.name == "sudoku-gen" else None


@torch.no_grad()
def held_out_likelihood(model, task, objective, window, num, draws, device, autocast):
    """-> nats per cell of held-out data: mean over `num` samples, its standard error, exact or not.

    Where it is a bound it takes `draws` masks per sample, always the same ones.
    """
    rule = OBJECTIVES[objective]
    if not rule.bound:
        legal = ", ".join(name for name, other in OBJECTIVES.items() if other.bound)
        raise BadInput(f"the likelihood bound of objective {objective} is not implemented; "
                       f"it can be had for {legal}")
    tokens, given = task.held_out(num)
    generator = torch.Generator().manual_seed(2**40 + 3)  # on the CPU: the same on all devices
    exact = rule.left_to_right
    W = task.A if window in ("all", "random") else int(window)
    ranks = (lambda level, _: rule.ranks(level, W)) if exact else rule.ranks
    if rule.next_token:
        levels = [rule.mask(given, None, None)[0]]
    elif exact:
        levels = list(cuts(given))
    else:
        levels = list(masks(given, draws, generator))
    total, count = torch.zeros(len(tokens)), torch.zeros(len(tokens))
    for level in tqdm(levels, desc="likelihood", delay=2, leave=False):
        has = (level > 0).any(dim=1)  # a cut behind the last blank of a sample masks nothing there
        for chosen in has.nonzero().flatten().split(ROWS):
            part, masked = tokens[chosen].to(device), level[chosen].to(device)
            with autocast:
                if rule.next_token:
                    nats = rule.loss(model, part, masked, task.A, task, rule.ranks)
                else:  # in a fixed order only the next cell is scored, whatever else is predicted
                    nats = masked_loss(model, part, masked, 1 if exact else task.A, task, ranks)
            total[chosen] += nats.float().cpu()
            count[chosen] += 1
    nats = total / count
    return nats.mean().item(), (nats.std() / len(nats) ** 0.5).item(), exact


def masks(given, draws, generator):
    """`draws` times random masks: level (B, A), such that each SAMPLE meets all noise levels.

    draw_levels() spreads the noise levels over the batch; shifting the batch hands them on.
    """
    for draw in range(draws):
        shift = draw * len(given) // draws
        yield draw_levels(given.roll(shift, dims=0), generator).roll(-shift, dims=0)


def cuts(given):
    """All cuts of a fixed order: level (B, A) with 0, 1, 2, ... of the cells to be found known."""
    place = (~given).cumsum(dim=1)  # 1, 2, ... of the cells to be found
    for known in range(int(place.max())):
        yield (place - known).masked_fill(given, 0)
