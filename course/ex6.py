"""Exercise 6, the star graph: where a path goes wrong, and how often a guess is right.

    B batch   P prompt positions   E edges   A answer positions (the nodes of the path)

    python course/ex6.py --ckpt out/w1/ckpt.pt
"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)

import torch

from objectives import make_sampling_params
from plumbing.checkpoint import load_model
from plumbing.cli import BadInput, Parser, choose_device, end, number, path, run
from sample import evaluate


def edges_of(prompt):
    """prompt (B, P): E edges of two tokens each, start, goal -> edges (B, E, 2), start, goal."""
    return prompt[:, :-2].view(len(prompt), -1, 2), prompt[:, -2], prompt[:, -1]


def chance_level(prompt, A):
    """The fraction of graphs that a random walk solves: prompt (B, P), A nodes in a path -> float.

    The walk begins at the start and takes A - 1 steps. Each step follows one of the edges that
    leave the node, all of them equally likely; where no edge leaves, the walk fails. The walk
    solves a graph if its last node is the goal. (On a star with d arms of l = A nodes this is 1/d.)
    """
    total = 0.0
    for edges, start, goal in zip(*(part.tolist() for part in edges_of(prompt))):
        here = {start: 1.0}  # the probability of being at each node
        for _ in range(A - 1):
            there = {}
            for node, p in here.items():
                ahead = [b for a, b in edges if a == node]
                for b in ahead:
                    there[b] = there.get(b, 0.0) + p / len(ahead)
            here = there
        total += here.get(goal, 0.0)
    return total / len(prompt)


def fork_and_after(prompt, answers):
    """Where a path is right: prompt (B, P) of star graphs, answers (B, A) -> two rates, floats.

    1. At the fork: the answers whose second node is the one that leads to the goal.
    2. After it: of all later steps (B times A - 2 of them) those that follow an edge, wherever they
       lead. The graph alone says what is right; no reference is needed.
    """
    edges, start, goal = edges_of(prompt)
    right = goal.clone()  # walk back from the goal: every node but the start has one predecessor
    for _ in range(edges.shape[1]):
        before = (edges[:, :, 0] * (edges[:, :, 1] == right[:, None])).sum(dim=1)
        right = torch.where(before == start, right, before)
    fork = (answers[:, 1] == right).float().mean().item()
    steps = torch.stack([answers[:, 1:-1], answers[:, 2:]], dim=2)  # (B, A - 2, 2)
    on_edge = (steps[:, :, None] == edges[:, None]).all(dim=3).any(dim=2)
    return fork, on_edge.float().mean().item()


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--ckpt", metavar="FILE", type=path, required=True)
    p.add_argument("--num", type=number(1, 100_000), default=1000, help="graphs (default: 1000)")
    args = p.parse_args(argv)
    device, autocast, _ = choose_device("auto")
    model, task, config = load_model(args.ckpt, device)
    if task.name != "star":
        raise BadInput(f"{args.ckpt} is a model of {task.name}, not of star graphs")
    start, references = task.test_set(args.num)
    sampling = make_sampling_params(config.objective, task, config.window)
    metrics, answers, _ = evaluate(model, task, config.objective, sampling, start, references, 0,
                                   device, autocast)
    fork, after = fork_and_after(start[:, :task.P], answers)
    low, high = metrics["interval"]
    print(f"{config.objective}, window {config.window}, {args.num} graphs: "
          f"solved {metrics['solved_rate']:.1%} ({low:.1%} to {high:.1%}), "
          f"chance {chance_level(start[:, :task.P], task.A):.1%}, "
          f"right at the fork {fork:.1%}, along an edge after it {after:.1%}")


if __name__ == "__main__":
    end(run(main))
