"""The board that every decoder writes on: forward, sample, commit, undo. plain.py is an example.

    B samples   R rows of one forward pass   S = P + A positions   A cells   K symbols

A decoder is a generator over a Board. It calls the model, commits cells, may undo some of them, and
yields after every change until no cell is unknown. The caller keeps the history. The board counts
the costs, so no decoder can forget a draft or a probe.
"""
import torch

from noise import certainty, sample_symbols, uniform

__all__ = ["Board", "certainty", "top_cells"]


def top_cells(score, cells, k):
    """The k of `cells` with the largest score: (B, A), bool (B, A), int or (B,) -> bool (B, A).

    Fewer where there are fewer. Ties go to the first cell, on every device.
    """
    order = score.masked_fill(~cells, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)  # (B, A) of each cell in that order
    k = k.unsqueeze(1) if isinstance(k, torch.Tensor) else k
    return cells & (place < k)


def rank_of(ranks, task, tokens):
    """The ranking of whole boards: tokens (R, S) -> rank (R, S), or None: everything is visible."""
    rank = ranks((tokens[:, task.P:] == task.MASK).long())
    return rank if rank is None else torch.nn.functional.pad(rank, (task.P, 0))  # prompt: rank 0


class Board:
    """Samples that are being decoded. A given cell never changes; a finished sample costs nothing.

    tokens (B, S); given (B, A) bool
    confidence (B, A)   probability of each committed symbol when it was committed; 1 where given
    committed_at (B, A) step of the last commit of each cell; 0 where given
    once_right (B,)     whether some pass had the whole board right, with unknown cells filled by
                        its guesses; only for tasks with one answer (over-denoising loses it again)
    nfe, pairs (B,)     forward passes and (token, position) pairs, with every draft and probe
    undone (B,)         cells undone
    steps               changes made so far
    """

    def __init__(self, model, task, ranks, start, keys, temperature=0.0):
        self.model, self.task, self.ranks, self.keys = model, task, ranks, keys
        self.temperature, self.start, self.tokens = temperature, start, start.clone()
        self.given = start[:, task.P:] != task.MASK
        B, device = len(start), start.device
        self.positions = torch.arange(task.S, device=device)
        self.confidence = self.given.float()
        self.committed_at = torch.zeros(B, task.A, dtype=torch.long, device=device)
        self.nfe, self.pairs, self.undone = torch.zeros(3, B, dtype=torch.long, device=device)
        self.once_right = torch.zeros(B, dtype=torch.bool, device=device)
        self.steps = 0
        self.logits = None  # (B, A, K) from which symbols were last sampled, for the history
        self.absent = None  # (B, A) cells that were left out of the last pass; None: none were

    @property
    def symbols(self):
        """(B, A), a view of tokens: the symbol of each cell; MASK where it is unknown."""
        return self.tokens[:, self.task.P:]

    @property
    def unknown(self):
        """(B, A) bool: the cells that are still to be found."""
        return self.symbols == self.task.MASK

    def unfinished(self):
        """-> (R,): the samples that still have unknown cells."""
        return self.unknown.any(dim=1).nonzero().flatten()

    def rank(self, tokens):
        """rank_of() by the objective of this board."""
        return rank_of(self.ranks, self.task, tokens)

    def forward(self):
        """One forward pass over all unfinished samples -> logits (B, A, K); 0 where finished."""
        rows = self.unfinished()
        predicted = self.predict(self.tokens[rows], rows)
        logits = predicted.new_zeros(len(self.tokens), *predicted.shape[1:])
        logits[rows] = predicted
        return logits

    def predict(self, tokens, rows):
        """One forward pass over boards of your own: tokens (R, S) -> logits (R, A, K) fp32.

        rows (R,): the sample that each board belongs to and is charged to. Several boards may be
        drafts of one sample: they count as one pass of that sample, and as many times the pairs.
        """
        self.charge(rows, self.task.S)
        return self.model(tokens, self.positions, self.rank(tokens))[:, self.task.P:].float()

    def charge(self, rows, pairs):
        """Count a forward pass of samples `rows` (R,) with `pairs` pairs a row: int or (R,)."""
        self.nfe[rows] += 1  # once, even where a sample has several rows
        self.pairs.index_add_(0, rows, torch.zeros_like(rows) + pairs)

    def sample(self, logits):
        """(B, A, K) -> symbols (B, A): the most likely ones at T = 0, else sampled."""
        self.logits = logits
        noise = uniform(self.keys, 2 * self.steps + 1, *logits.shape[1:])
        return sample_symbols(logits, self.temperature, noise)

    def noise(self):
        """(B, A) uniform numbers of this step, independent of the batch: for random orders."""
        return uniform(self.keys, 2 * self.steps, self.task.A)

    def commit(self, cells, symbols, confidence):
        """Write symbols (B, A), with confidence (B, A), into the unknown ones of `cells` (B, A)."""
        unknown = self.unknown
        if self.task.unique_answer:
            guess = torch.where(unknown, symbols, self.symbols)
            self.once_right |= self.task.check(self.start, guess)
        cells = cells & unknown
        self.steps += 1
        self.symbols[cells] = symbols[cells]
        self.confidence[cells] = confidence[cells]
        self.committed_at[cells] = self.steps

    def undo(self, cells):
        """Make `cells` (B, A) unknown again, but never a given one."""
        cells = cells & ~self.given & ~self.unknown
        self.symbols[cells] = self.task.MASK
        self.undone += cells.sum(dim=1)
