"""The board that every decoder writes on: look, draw, commit, undo. What a decoder is: plain.py.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols

A decoder is a generator over a Board: it looks at it, commits cells, perhaps undoes some, and
yields after every change, until no cell is unknown. Whoever runs it keeps the history. Costs are
counted here, so no decoder can forget a draft or a probe.
"""
import torch

from plumbing.randomness import uniform
from sample import certainty, draw

__all__ = ["Board", "certainty", "surest"]


def surest(score, cells, k):
    """The k cells of largest score among `cells`: (B, A), bool (B, A), int or (B,) -> bool (B, A).

    Fewer where there are fewer. Of equal scores the first cell wins, on every device.
    """
    order = score.masked_fill(~cells, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)  # (B, A) of each cell in that order
    k = k.unsqueeze(1) if isinstance(k, torch.Tensor) else k
    return cells & (place < k)


def rank_of(ranks, task, tokens):
    """Who may look at whom on whole boards: tokens (R, S) -> rank (R, S), or None: everything."""
    rank = ranks((tokens[:, task.P:] == task.MASK).long())
    if rank is not None:
        rank = torch.nn.functional.pad(rank, (task.P, 0))  # the prompt has rank 0
    return rank


class Board:
    """Samples that are being decoded. A given cell never changes; a finished sample costs nothing.

    tokens (B, S); given (B, A) bool; sure (B, A): the probability of each committed symbol when it
    was committed, 1 where given; when (B, A): the step of its last commit, 0 where given;
    once_right (B,): whether every cell was right in some pass, the unknown ones as they were
    guessed, by the rules and where they allow one answer (over-denoising is to lose it again);
    nfe (B,): forward passes in which a sample took part; fed (B,): pairs summed over passes, with
    every draft and probe; undone (B,): cells undone; steps: changes made so far.
    """

    def __init__(self, model, task, ranks, start, keys, temperature=0.0):
        self.model, self.task, self.ranks, self.keys = model, task, ranks, keys
        self.temperature, self.tokens = temperature, start.clone()
        self.given = start[:, task.P:] != task.MASK
        B, device = len(start), start.device
        self.positions = torch.arange(task.S, device=device)
        self.sure = self.given.float()
        self.when = torch.zeros(B, task.A, dtype=torch.long, device=device)
        self.nfe, self.fed, self.undone = torch.zeros(3, B, dtype=torch.long, device=device)
        self.once_right = torch.zeros(B, dtype=torch.bool, device=device)
        self.start, self.steps = start, 0
        self.logits = None  # (B, A, K) of the last draw, for whoever keeps the history
        self.absent = None  # (B, A) cells that were left out of the last pass; None: none were

    @property
    def unknown(self):
        """(B, A) bool: the cells that are still to be found."""
        return self.tokens[:, self.task.P:] == self.task.MASK

    @property
    def symbols(self):
        """(B, A): what stands in each cell; MASK where it is unknown."""
        return self.tokens[:, self.task.P:]

    def unfinished(self):
        """-> (R,): the samples that still have something to find."""
        return self.unknown.any(dim=1).nonzero().flatten()

    def forward(self, tokens, rows):
        """One forward pass over all S positions. tokens (R, S) -> logits (R, A, K) fp32.

        rows (R,): whose each is, and who pays. Several rows may be drafts of one sample: they are
        one pass on its clock, and that many times the pairs.
        """
        self.pay(rows, self.task.S)
        return self.model(tokens, self.positions, self.rank(tokens))[:, self.task.P:].float()

    def rank(self, tokens):
        """rank_of() by the objective of this board."""
        return rank_of(self.ranks, self.task, tokens)

    def pay(self, rows, pairs):
        """Samples `rows` (R,) took part in a forward pass of `pairs` pairs a row: int or (R,)."""
        self.nfe[rows] += 1  # once, even where a sample has several rows
        self.fed.index_add_(0, rows, torch.zeros_like(rows) + pairs)

    def look(self):
        """The model's view of every unfinished sample -> logits (B, A, K); 0 where finished."""
        rows = self.unfinished()
        seen = self.forward(self.tokens[rows], rows)
        logits = seen.new_zeros(len(self.tokens), *seen.shape[1:])
        logits[rows] = seen
        return logits

    def draw(self, logits):
        """(B, A, K) -> symbols (B, A): the likeliest at T = 0, else sampled."""
        self.logits = logits
        noise = uniform(self.keys, 2 * self.steps + 1, *logits.shape[1:])
        return draw(logits, self.temperature, noise)

    def noise(self):
        """(B, A) uniform numbers of this step, of each sample its own: for random orders."""
        return uniform(self.keys, 2 * self.steps, self.task.A)

    def commit(self, cells, symbols, confidence):
        """Write symbols (B, A) into the unknown among `cells` (B, A), confidence (B, A) beside."""
        unknown = self.unknown
        if self.task.unique_answer:
            guess = torch.where(unknown, symbols, self.symbols)
            self.once_right |= self.task.check(self.start, guess)
        cells = cells & unknown
        self.steps += 1
        self.symbols[cells] = symbols[cells]  # a view of tokens
        self.sure[cells] = confidence[cells]
        self.when[cells] = self.steps

    def undo(self, cells):
        """Make `cells` (B, A) unknown again, but never a given one."""
        cells = cells & ~self.given & ~self.unknown
        self.symbols[cells] = self.task.MASK
        self.undone += cells.sum(dim=1)
