"""What the tests of the exercises share: a task of four cells, and a 'model' that is a table.

The tests of an exercise call no function that another exercise asks for, so you can solve the
exercises in any order.
"""
import os

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars only clutter a test log
import plumbing  # noqa: E402, F401  (before torch: see there)
import torch  # noqa: E402

torch.set_num_threads(1)


class Toy:
    """One prompt token, 4 answer cells of 3 symbols: small enough to enumerate by hand."""
    name, P, A, S, K, V, MASK, BOS, unique_answer = "toy", 1, 4, 5, 3, 5, 3, 4, False


class Table:
    """A 'model' whose prediction depends on the position alone: logits (S, K).

    It remembers the tokens, positions and ranks of every call. Asked for several readings it
    returns two, the first with the symbols in reverse.
    """

    def __init__(self, logits):
        self.logits, self.calls = logits, []

    def __call__(self, tokens, positions, rank=None, cache=None, read_every=0):
        positions = positions.expand(tokens.shape)
        self.calls.append((tokens, positions, rank))
        logits = self.logits[positions]
        return torch.stack([logits.flip(-1), logits]) if read_every else logits

    def new_cache(self):
        return {}


def logits(seed=0, positions=5, symbols=3):
    return torch.randn(positions, symbols, generator=torch.Generator().manual_seed(seed))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def raw(level, W=None):
    """A ranking that hands the level through: the model's rank then shows it."""
    return level
