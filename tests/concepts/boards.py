"""What the tests of decoders/ and studies/ share: puzzles, models with fixed opinions, loops.

    B samples   A cells   K symbols
"""
import torch
from conftest import ToyTask, keys_for, task_config

import decoders
from data import make_task
from decoders.board import Board
from diffusion import joint
from objectives import SamplingParams

TOY = ToyTask()
BOARDS = make_task(task_config())  # 4x4 boards from nothing
PUZZLES = make_task(task_config("sudoku"))  # 4x4 puzzles, each with another number of givens
START, ANSWERS = PUZZLES.test_set(12)
BLANKS = PUZZLES.blanks(START)
COUNT = BLANKS.sum(dim=1)  # cells to find


class Opinions:
    """A 'model' that gives the same logits (A, K) whatever it sees; another table in each pass."""

    def __init__(self, *tables):
        self.tables, self.calls = tables, 0

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        table = self.tables[min(self.calls, len(self.tables) - 1)]
        self.calls += 1
        return torch.nn.functional.pad(table, (0, 0, 1, 0))[positions.expand_as(tokens)]


class Spy:
    """A model that keeps what it was fed and what it said."""

    def __init__(self, model):
        self.model, self.fed, self.said = model, [], []
        self.new_cache = getattr(model, "new_cache", None)

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        more = {} if cache is None else {"cache": cache}
        self.fed.append((tokens.clone(), positions, rank))
        self.said.append(self.model(tokens, positions, rank, **more))
        return self.said[-1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def board_of(model, start=START, task=PUZZLES, ranks=joint, temperature=0.0, keys=None):
    return Board(model, task, ranks, start, keys_for(start) if keys is None else keys, temperature)


@torch.no_grad()
def play(board, loop):
    """Run a loop over a board to its end -> the tokens after each of its steps."""
    return [board.tokens.clone() for _ in loop]


def params_of(name, temperature=0.0, **params):
    """SamplingParams of a decoder: its defaults, and what is asked."""
    settings = decoders.DECODERS[name].settings(params)
    return SamplingParams("-", 1, 0, 1, temperature, name, settings)


@torch.no_grad()
def run(model, name, params=(), temperature=0.0, objective="mdm", start=START, task=PUZZLES,
        seed=0, keys=None):
    """Decode by a decoder -> tokens, stats, history of (B, S) tokens."""
    history, keys = [], keys_for(start, seed) if keys is None else keys
    tokens, stats = decoders.decode(model, task, objective, start,
                                    params_of(name, temperature, **dict(params)), keys, history)
    return tokens, stats, [change["tokens"] for change in history]


def check_alone(decode, rows=(0, 5, 11), costs=("nfe", "tokens")):
    """decode(slice) -> tokens, stats: in a batch and alone a sample has the same answer and cost.

    -> what it gives for the whole batch.
    """
    tokens, stats, *_ = decode(slice(None))
    for i in rows:
        alone, one, *_ = decode(slice(i, i + 1))
        assert torch.equal(alone[0], tokens[i])
        assert all(torch.equal(one[name][0], stats[name][i]) for name in costs)
        if "confidence" in stats:
            assert torch.allclose(one["confidence"][0], stats["confidence"][i], atol=1e-5)
    return tokens, stats
