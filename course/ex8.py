"""Exercise 8, the exact sampler: what two cells per step do to a joint distribution.

    M boards, all equally likely   A cells   k cells per step   H entropy, in nats

The sampler knows the truth: it draws each cell from the exact distribution of that cell given the
cells that are known when the step begins. With one cell per step it makes every board with
probability 1/M, in any order. With more, it draws the cells of a step independently.

    python course/ex8.py            # all 288 boards of 4x4: total variation against its bound
"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)

import torch

from data.puzzles import all_boards_4x4
from plumbing.cli import Parser, end, run


def law(boards, order, k):
    """How likely the sampler makes each board: boards (M, A) distinct, order: the A cells -> (M,).

    The cells are taken in this order, k per step (the last step may have fewer). A cell of a step
    has the distribution of that cell among the boards that agree with all earlier steps. In double
    precision; boards that break the rules are not listed, so the sum may be below 1.
    """
    M = len(boards)
    q, fits = torch.ones(M, dtype=torch.double), torch.ones(M, M, dtype=torch.bool)
    for i in range(0, len(order), k):
        agree = [boards[:, None, cell] == boards[None, :, cell] for cell in order[i:i + k]]
        for same in agree:  # row: the board that is being made; column: those that fit so far
            q *= (fits & same).sum(dim=1) / fits.sum(dim=1).double()
        for same in agree:
            fits = fits & same
    return q


def total_variation(q):
    """q (M,) -> float: the distance of the sampler's distribution from 1/M on each of M boards.

    Half the sum of |q - p| over everything the sampler can make: the M boards, and what is not
    listed, which has 1 - sum(q) under the sampler and 0 under the truth.
    """
    return ((q - 1 / len(q)).abs().sum() + 1 - q.sum()).item() / 2


def entropies(boards, columns):
    """H of these cells together, over equally likely boards (M, A) -> float, in nats."""
    counts = boards[:, columns].unique(dim=0, return_counts=True)[1].double()
    p = counts / len(boards)
    return -(p * p.log()).sum().item()


def dependence(boards, cells):
    """What is lost by drawing these cells independently: boards (M, A) -> float, in nats.

    The sum of the H of each cell, less the H of all of them together; this is KL(truth || sampler)
    of the step.
    """
    return sum(entropies(boards, [cell]) for cell in cells) - entropies(boards, list(cells))


def entropy_bound(boards, cells):
    """A bound on dependence() that needs no joint distribution: sum H - max H -> float, in nats.

    (Cells together are at least as uncertain as the most uncertain of them.)
    """
    each = [entropies(boards, [cell]) for cell in cells]
    return sum(each) - max(each)


def over_steps(boards, order, k, of_step):
    """The sum of of_step() over the steps, averaged over what may be known -> float, in nats."""
    total = 0.0
    for i in range(0, len(order), k):
        known, cells = list(order[:i]), list(order[i:i + k])
        if known:
            group = boards[:, known].unique(dim=0, return_inverse=True)[1]
            parts = [boards[group == g] for g in range(int(group.max()) + 1)]
        else:
            parts = [boards]
        total += sum(len(part) / len(boards) * of_step(part, cells) for part in parts)
    return total


def main(argv=None):
    Parser(__doc__).parse_args(argv)
    boards = torch.tensor(all_boards_4x4())
    rows = list(range(16))
    spread = [i // 2 + 8 * (i % 2) for i in range(16)]  # pairs of cells two rows apart
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    print("order          k   valid   total variation   KL (nats)   bound: sum H - max H")
    for name, order in (("row by row", rows), ("two rows apart", spread), ("random", shuffled)):
        for k in (1, 2, 4):
            q = law(boards, order, k)
            kl = over_steps(boards, order, k, dependence)
            bound = over_steps(boards, order, k, entropy_bound)
            print(f"{name:14} {k} {q.sum():7.1%} {max(0.0, total_variation(q)):17.4f} {kl:11.4f} "
                  f"{bound:22.4f}")


if __name__ == "__main__":
    end(run(main))
