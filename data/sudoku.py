"""Sudoku: boards and puzzles of side 4, 6 and 9; symmetries, checker, text.

    B batch   N board side   A = N*N cells, row by row   digits are stored as 0..N-1

Two tasks. `sudoku-gen`: prompt = BOS, answer = any valid board. `sudoku`: the one solution of a
puzzle, in one of two layouts:

    inplace   prompt = BOS, answer = the board; givens are answer cells that are known (S = A + 1)
    prompt    prompt = the puzzle, givens or BLANK; answer = the board (S = 2 A, as in the paper)
"""
from collections import Counter
from itertools import combinations

import numpy as np
import torch
from tqdm import tqdm

from data.files import read_sudoku, read_text
from data.puzzles import BOX, TARGETS, TooHard, generate, peers, solve, test_puzzles, units
from data.task import Task, cached
from errors import BadInput, printable, say
from noise import INCREMENT, mix

TEST_SIZE = 1000  # puzzles of the test set; their symmetric copies are removed from training


# --------------------------------------------------------------------------------------------------
# Symmetries


def symmetry_hash(boards, N=9):
    """A number per board, the same for all its symmetric copies: boards (B, A) -> (B,) int64.

    For square boxes only (4x4, 9x9). For two rows, the map "digit above -> digit below" is a
    permutation. Relabelling digits conjugates it, and moving columns does not change it, so its
    cycle type is invariant. The cycle types of each row with the rows of its own band and with the
    others are hashed as multisets, then the bands, then rows and columns (transposition). Different
    classes may share a number; splits by this number are then stricter than needed.
    """
    h = BOX[N][0]
    grids = boards.reshape(-1, N, N).long()
    digits = torch.arange(N, device=boards.device)

    def scramble(x):  # a sum of scrambled numbers is a hash of their multiset
        return mix(x + INCREMENT)

    def side(g):
        inside, across = torch.zeros_like(g[:, 0]), torch.zeros_like(g[:, 0])  # (B, N)
        for a, b in combinations(range(N), 2):
            step = torch.empty_like(g[:, a]).scatter_(1, g[:, a], g[:, b])  # digit in row a -> in b
            at, length = digits.expand_as(step), torch.zeros_like(step)  # (B, N)
            for k in range(1, N + 1):
                at = step.gather(1, at)  # where each digit is after k steps
                length.masked_fill_((at == digits) & (length == 0), k)  # the length of its cycle
            kind = scramble(scramble(length).sum(dim=1))
            for row in (a, b):
                (inside if a // h == b // h else across)[:, row] += kind
        rows = scramble(scramble(inside) + across)  # (B, N)
        return scramble(scramble(rows.reshape(-1, N // h, h).sum(dim=2)).sum(dim=1))  # (B,)

    return scramble(side(grids) + side(grids.transpose(1, 2)))


def symmetry_cells(batch_size, N, generator, device):
    """A random symmetry of each board -> (B, A) int64: the old cell that moves to each cell.

    It permutes bands, rows in a band, stacks and columns in a stack, and transposes if boxes are
    square. With relabelling this is the whole symmetry group (9! * 6**8 * 2 elements on 9x9).
    """
    h, w = BOX[N]

    def random(*shape):
        return torch.rand(batch_size, *shape, generator=generator, device=device)

    def lines(size):  # a permutation of N lines that keeps groups of `size` together -> (B, N)
        groups = random(N // size, 1).argsort(dim=1)
        return (groups * size + random(N // size, size).argsort(dim=2)).flatten(1)

    rows, columns = lines(h), lines(w)
    cells = rows.unsqueeze(2) * N + columns.unsqueeze(1)  # (B, N, N)
    if h == w:
        cells = torch.where(random(1, 1) < 0.5, cells.transpose(1, 2), cells)
    return cells.flatten(1)


# --------------------------------------------------------------------------------------------------
# The task


class Sudoku(Task):
    """sudoku-gen and sudoku, for N = 4, 6, 9."""

    def __init__(self, config):
        self.puzzles = config.task == "sudoku"
        N = self.N = config.board_size or (9 if self.puzzles else 4)
        if N not in BOX:
            raise BadInput(f"--board-size {N} is not available; legal: 4, 6, 9")
        self.in_prompt = self.puzzles and config.layout == "prompt"
        self.minimal_fraction, self.train_file = config.minimal_fraction, config.train_file
        self.seed, self.data_dir = config.seed, config.data_dir
        self.train_size = config.train_size or 20_000
        digits = [str(d + 1) for d in range(N)]
        super().__init__(config.task, P=N * N if self.in_prompt else 1, A=N * N,
                         symbols=digits + ["."], answer_symbols=N, pattern=r".",
                         unique_answer=self.puzzles)
        self.BLANK = N
        self.pool = None

    def _data(self, seed, size):
        describe = {"N": self.N, "puzzles": self.puzzles, "seed": seed, "size": size}
        if self.puzzles:
            describe["givens"] = "minimal"  # more are added later: test_puzzles(), _more_givens()

        def build():
            if seed == "test":
                return test_puzzles(self.N, size)
            return generate(self.N, self.puzzles, seed, size)

        name = f"{self.name}{self.N}-{size}-seed{seed}"
        return cached(self.data_dir, name, describe, build)

    def _sequence(self, board, given):
        """board, given (B, A) -> tokens (B, S) with the whole answer in place."""
        if self.in_prompt:
            return torch.cat([board.masked_fill(~given, self.BLANK), board], dim=1)
        return torch.cat([torch.full_like(board[:, :1], self.BOS), board], dim=1)

    def test_set(self, num):
        """Puzzles: the first `num` of one fixed stream. Generation: empty boards, no reference."""
        if not self.puzzles:
            return self.start(torch.full((num, 1), self.BOS)), None
        tokens, given = self._test_puzzles(num)
        answer = tokens[:, self.P:]
        if self.in_prompt:
            return self.start(tokens[:, :self.P]), answer
        return self.start(tokens[:, :1], answer.masked_fill(~given, self.MASK)), answer

    def _test_puzzles(self, num):
        if num > TEST_SIZE:
            raise BadInput(f"{num} test puzzles were asked for, but the fixed test set has "
                           f"{TEST_SIZE}; give a file with --puzzles")
        data = self._data("test", TEST_SIZE)
        board, given = (torch.from_numpy(data[k][:num]) for k in ("boards", "givens"))
        return self._sequence(board.long(), given), given

    def held_out(self, num):
        """Sequences that are never trained on -> tokens (num, S), given (num, A)."""
        if self.puzzles:
            tokens, given = self._test_puzzles(min(num, TEST_SIZE))
            return tokens, torch.zeros_like(given) if self.in_prompt else given
        board = torch.from_numpy(self._data("held-out", num)["boards"]).long()
        given = torch.zeros_like(board, dtype=torch.bool)
        return self._sequence(board, given), given

    def prepare(self, device):
        """Make the training data before the first step.

        9x9: boards that are symmetric copies of a test puzzle's solution are removed. Not so for
        smaller boards: they have 2 (4x4) and 49 (6x6) classes up to symmetry, so none would remain.
        """
        if self.pool is not None:
            return
        if self.train_file:
            data = self._read_train_file()
        else:
            data = self._data(self.seed, self.train_size)
        boards, givens = (torch.from_numpy(data[k]).to(device) for k in ("boards", "givens"))
        keep = torch.ones(len(boards), dtype=torch.bool, device=device)
        if self.puzzles and self.N == 9:
            test = torch.from_numpy(self._data("test", TEST_SIZE)["boards"]).to(device)
            keep = ~torch.isin(symmetry_hash(boards), symmetry_hash(test))
        if self.train_file:
            file = printable(self.train_file, 200)
            if not keep.any():
                raise BadInput(f"--train-file {file} contains only copies of test puzzles; add "
                               "others")
            say(f"{file}: {keep.sum()} puzzles to train on; {(~keep).sum()} removed as symmetric "
                "copies of test puzzles")
        self.pool = boards[keep], givens[keep]

    def _read_train_file(self):
        puzzles, notes = self.read(read_text(self.train_file), self.train_file)
        for note in notes:
            say(note)
        for start, answer, place in puzzles:
            if answer is None:
                raise BadInput(f"{place}: no solution; --train-file needs one for every puzzle")
        start = torch.tensor([p[0] for p in puzzles])
        given = self.givens(start) >= 0
        for full in given.all(dim=1).nonzero().flatten().tolist():
            raise BadInput(f"{puzzles[full][2]}: the puzzle has no empty cell to train on")
        return {"boards": np.array([p[1] for p in puzzles], np.uint8), "givens": given.numpy()}

    def train_batch(self, batch_size, generator, device):
        """B training boards under random symmetries, on the device -> tokens (B, S), given."""
        self.prepare(device)
        boards, givens = self.pool
        pick = torch.randint(len(boards), (batch_size,), generator=generator, device=device)
        cells = symmetry_cells(batch_size, self.N, generator, device)  # (B, A)
        relabel = torch.rand(batch_size, self.N, generator=generator, device=device).argsort(dim=1)
        board = relabel.gather(1, boards[pick].long().gather(1, cells))  # (B, A)
        if not self.puzzles:
            return self._sequence(board, None), torch.zeros_like(board, dtype=torch.bool)
        given = self._more_givens(givens[pick].gather(1, cells), generator)  # (B, A)
        tokens = self._sequence(board, given)
        return tokens, torch.zeros_like(given) if self.in_prompt else given

    def _more_givens(self, given, generator):
        """Add random givens, except to minimal_fraction of the puzzles; solutions stay unique."""
        B, device = len(given), given.device
        low, high = TARGETS[self.N]
        target = torch.randint(low, high + 1, (B, 1), generator=generator, device=device)
        as_it_is = torch.rand(B, 1, generator=generator, device=device) < self.minimal_fraction
        target = target.masked_fill(as_it_is, 0)
        noise = torch.rand(given.shape, generator=generator, device=device).masked_fill(given, -1.0)
        place = noise.argsort(dim=1).argsort(dim=1)  # (B, A): givens come first
        return given | (place < target)

    def givens(self, start):
        """start (B, S) -> (B, A): the digit given at each cell, or -1."""
        cells = start[:, :self.P] if self.in_prompt else start[:, self.P:]
        return cells.masked_fill(cells >= self.N, -1)

    def blanks(self, start):
        return self.givens(start) < 0

    def check(self, start, answer):
        """(B, S), (B, A) -> (B,) bool: each unit has each digit once; the givens are unchanged."""
        lines = answer[:, torch.tensor(units(self.N), device=answer.device)]  # (B, 3N, N)
        digits = torch.arange(self.N, device=answer.device)
        valid = (lines.sort(dim=2).values == digits).all(dim=2).all(dim=1)
        given = self.givens(start)
        return valid & ((given == answer) | (given < 0)).all(dim=1)

    def mistakes(self, start, answer):
        found, N = self._repeated(answer.tolist()), self.N
        for c, digit in enumerate(self.givens(start[None])[0].tolist()):
            if digit >= 0 and answer[c] < N and answer[c] != digit:
                found.append(f"row {c // N + 1} column {c % N + 1} was given as {digit + 1} "
                             f"and became {int(answer[c]) + 1}")
        return found

    def _repeated(self, cells):
        """Sentences about digits that occur more than once in a row, column or box."""
        found, N = [], self.N
        for i, unit in enumerate(units(N)):
            for digit, count in sorted(Counter(cells[c] for c in unit).items()):
                if digit < N and count > 1:
                    kind, times = ("row", "column", "box")[i // N], f"{count} times"
                    times = "twice" if count == 2 else times
                    found.append(f"{kind} {i % N + 1} holds {digit + 1} {times}")
        return found

    def read(self, text, name, limit=None):
        """A file's text -> [(start ids, answer ids or None, place)], notes. Raises BadInput."""
        entries, notes = read_sudoku(text, name, self.N, limit)
        puzzles = []
        for puzzle, solution, place in tqdm(entries, desc="reading puzzles", delay=2, leave=False):
            try:
                puzzles.append((*self._ids(puzzle, solution), place))
            except BadInput as e:
                raise BadInput(f"{place}: {e}") from None
        return puzzles, notes

    def _ids(self, puzzle, solution):
        """Texts of A characters -> start ids (S), answer ids (A) or None. Raises BadInput."""
        cells = self.encoding.encode_ordinary(puzzle)
        self._no_conflict(cells, "the puzzle")
        if self.in_prompt:
            start = cells + [self.MASK] * self.A
        else:
            start = [self.BOS] + [self.MASK if c == self.BLANK else c for c in cells]
        if solution is None:
            return start, None
        answer = self.encoding.encode_ordinary(solution)
        self._no_conflict(answer, "the solution")
        for cell, (p, a) in enumerate(zip(cells, answer)):
            if p not in (a, self.BLANK):
                raise BadInput(f"the solution has {a + 1} where the puzzle gives {p + 1} "
                               f"(row {cell // self.N + 1} column {cell % self.N + 1})")
        return start, answer

    def _no_conflict(self, cells, what):
        repeated = self._repeated(cells)
        if repeated:
            raise BadInput(f"{what} contradicts itself: {repeated[0]}")

    def format(self, start, answer=None):
        """-> 'puzzle answer', without the puzzle if there are no givens (generation)."""
        given = self.givens(torch.as_tensor(start)[None])[0]
        boards = []
        if self.puzzles or (given >= 0).any():
            boards.append(given.masked_fill(given < 0, self.BLANK))
        if answer is not None:
            boards.append(answer)
        return " ".join(self.format_answer(board) for board in boards)

    def format_answer(self, answer):
        return self.encoding.decode([int(t) for t in answer])

    def reference(self, start):
        """The one solution -> ids, None; or None and the reason. Raises BadInput without any."""
        try:
            found = solve(self.givens(torch.tensor([start]))[0].tolist(), self.N, limit=2,
                          max_nodes=200_000)
        except TooHard:
            return None, "the search for further solutions gave up"
        if not found:
            raise BadInput("the puzzle has no solution")
        return (found[0], None) if len(found) == 1 else (None, "it has several solutions")

    def render(self, start, answer, before=None, color=False):
        """The board: givens bold, cells of this step green, conflicts red, unknown cells dots."""
        N, (h, w) = self.N, BOX[self.N]
        given = self.givens(start[None])[0]
        wrong = {c for c in range(N * N)
                 if answer[c] < N and any(answer[c] == answer[p] for p in peers(N)[c])}
        wrong |= {c for c in range(N * N) if given[c] >= 0 and answer[c] != given[c]}

        def cell_text(cell):
            shown = str(int(answer[cell]) + 1) if answer[cell] < N else "."
            fresh = before is not None and before[cell] != answer[cell]
            style = "31" if cell in wrong else "32" if fresh else "1" if given[cell] >= 0 else ""
            return f"\033[{style}m{shown}\033[0m" if color and style else shown

        lines = []
        for r in range(N):
            if r and r % h == 0:
                lines.append("+".join(["-" * (2 * w + 1)] * (N // w)))
            cells = [cell_text(r * N + c) for c in range(N)]
            groups = [" ".join(cells[g:g + w]) for g in range(0, N, w)]
            lines.append(" " + " | ".join(groups))
        return "\n".join(lines)
