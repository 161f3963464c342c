"""Sudoku: boards by randomised search, unique 9x9 puzzles, symmetries, checker, text format.

    B batch   N board side (4, 6 or 9)   A = N*N cells, row by row   digits are stored as 0..N-1

Two tasks. `sudoku-gen`: prompt = BOS, answer = any valid board. `sudoku` (9x9): prompt = 81 cells, givens
or BLANK, answer = all 81 cells of the one solution (S = 162, no separator).
"""
import os
import random
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import combinations
from multiprocessing import get_context

import numpy as np
import torch
from tqdm import tqdm

from data import BadInput, Task, cached

BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows, columns of a box
TEST_SIZE = 1000  # puzzles of the fixed test set; training boards that match one up to symmetry are dropped
CHUNK = 100  # boards or puzzles per random stream: puzzle i depends on the seed and i alone, not on the worker count


@lru_cache
def units(N):
    """The 3N units (rows, columns, boxes), each a tuple of N cell numbers."""
    h, w = BOX[N]
    rows = [tuple(r * N + c for c in range(N)) for r in range(N)]
    columns = [tuple(r * N + c for r in range(N)) for c in range(N)]
    boxes = [tuple((r + i) * N + c + j for i in range(h) for j in range(w)) for r in range(0, N, h) for c in range(0, N, w)]
    return rows + columns + boxes


@lru_cache
def peers(N):
    """For each cell, the sorted other cells that share a unit with it (20 on a 9x9 board)."""
    return [sorted({c for u in units(N) if cell in u for c in u} - {cell}) for cell in range(N * N)]


@lru_cache
def places(N):
    """(row, column, box) of each cell."""
    h, w = BOX[N]
    return [(r, c, r // h * (N // w) + c // w) for r in range(N) for c in range(N)]


# ---------------------------------------------------------------------------------------------------------
# Search


class TooHard(Exception):
    """The search gave up after max_nodes."""


def solve(cells, N, limit=2, rng=None, max_nodes=None):
    """Up to `limit` completions of cells (list of N*N digits 0..N-1, or -1 where empty).

    Depth-first search on bitmasks, the cell with the fewest candidates first. With rng, digits are tried in
    random order. Contradicting givens have no completion. Raises TooHard after max_nodes.
    """
    full = (1 << N) - 1
    row, column, box = [full] * N, [full] * N, [full] * N  # digits still free in each unit
    where = places(N)
    board, empty = list(cells), []
    for cell, digit in enumerate(board):
        r, c, b = where[cell]
        if digit < 0:
            empty.append(cell)
        elif (row[r] & column[c] & box[b]) >> digit & 1:
            row[r] ^= 1 << digit; column[c] ^= 1 << digit; box[b] ^= 1 << digit
        else:
            return []
    found, nodes = [], 0

    def descend():
        nonlocal nodes
        nodes += 1
        if max_nodes and nodes > max_nodes:
            raise TooHard
        if not empty:
            found.append(list(board))
            return len(found) >= limit
        fewest = N + 1
        for i, cell in enumerate(empty):
            r, c, b = where[cell]
            free = row[r] & column[c] & box[b]
            count = free.bit_count()
            if count < fewest:
                fewest, index, mask = count, i, free
                if count < 2:
                    break
        if not fewest:
            return False
        cell, empty[index] = empty[index], empty[-1]  # take it out, in constant time
        empty.pop()
        r, c, b = where[cell]
        digits = [d for d in range(N) if mask >> d & 1]
        if rng:
            rng.shuffle(digits)
        for digit in digits:
            bit = 1 << digit
            board[cell] = digit
            row[r] ^= bit; column[c] ^= bit; box[b] ^= bit
            done = descend()
            row[r] ^= bit; column[c] ^= bit; box[b] ^= bit
            if done:
                return True
        board[cell] = -1
        empty.append(cell)
        empty[index], empty[-1] = empty[-1], empty[index]  # and put it back where it was
        return False

    descend()
    return found


@lru_cache
def all_boards_4x4():
    """The 288 boards of side 4. Randomised search is not uniform on them (total variation about 0.17), so 4x4 draws from this list."""
    return solve([-1] * 16, 4, limit=289)


def random_board(N, rng):
    """A random valid board, a list of N*N digits."""
    return rng.choice(all_boards_4x4()) if N == 4 else solve([-1] * (N * N), N, limit=1, rng=rng)[0]


def random_puzzle(rng):
    """(board, givens): a 9x9 board and a 0/1 list of givens with exactly one solution, 20 to 34 of them.

    Start from 26 random givens; while there is a second solution, give a cell where it differs (about 32 when done).
    Then take givens away, or add some, towards a target drawn from 20..34. Targets under 24 are seldom reached.
    """
    board = random_board(9, rng)
    target = rng.randint(20, 34)
    cells = [-1] * 81
    for cell in rng.sample(range(81), 26):
        cells[cell] = board[cell]
    while other := next((s for s in solve(cells, 9, limit=2, rng=rng) if s != board), None):
        cell = rng.choice([c for c in range(81) if other[c] != board[c]])
        cells[cell] = board[cell]
    given = [c for c in range(81) if cells[c] >= 0]
    rng.shuffle(given)
    excess, refused = len(given) - target, 0
    for cell in given:
        if excess <= 0 or refused > 15:  # going on to the last one would double the time
            break
        # It can go if no other digit in its place leads to a solution: most of them fail after a few nodes.
        others = set(range(9)) - {cells[p] for p in peers(9)[cell]} - {board[cell]}
        if not any(solve(cells[:cell] + [d] + cells[cell + 1:], 9, limit=1) for d in others):
            cells[cell] = -1
            excess -= 1
        else:
            refused += 1
    empty = [c for c in range(81) if cells[c] < 0]
    for cell in rng.sample(empty, max(0, -excess)):
        cells[cell] = board[cell]
    if cells.count(-1) < 81 - 34:  # a rare puzzle that nothing more can be taken from
        return random_puzzle(rng)
    return board, [int(d >= 0) for d in cells]


def _chunk(job):
    """One chunk of boards (and givens, for puzzles), from its own random stream."""
    N, puzzles, seed, index, count = job
    rng = random.Random(f"sudoku {N} {puzzles} {seed} {index}")
    if puzzles:
        return [random_puzzle(rng) for _ in range(count)]
    return [(random_board(N, rng), [0] * (N * N)) for _ in range(count)]


def generate(N, puzzles, seed, size):
    """size boards or puzzles -> dict boards (size, A) uint8, givens (size, A) bool. Same result with any number of processes."""
    jobs = [(N, puzzles, seed, i, min(CHUNK, size - i * CHUNK)) for i in range(-(-size // CHUNK))]
    bar = tqdm(total=size, desc=f"{N}x{N} {'puzzles' if puzzles else 'boards'} (seed {seed})", unit="", delay=2)
    rows = []
    if len(jobs) < 10:
        for part in map(_chunk, jobs):
            rows += part
            bar.update(len(part))
    else:
        # Fork where there is one: it needs no `if __name__ == "__main__"` in the caller's script, and the workers run
        # plain Python, never torch. They leave Ctrl-C to the parent.
        context = get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            try:
                for part in pool.map(_chunk, jobs):
                    rows += part
                    bar.update(len(part))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    bar.close()
    return {"boards": np.array([r[0] for r in rows], np.uint8), "givens": np.array([r[1] for r in rows], bool)}


# ---------------------------------------------------------------------------------------------------------
# Symmetries and difficulty


def symmetry_hash(boards, N=9):
    """A number for each board that no symmetry of Sudoku changes. boards (B, A) -> (B,) int64. Square boxes only.

    For two rows, the map "digit above -> digit below" is a permutation; relabelling digits conjugates it and
    moving columns does nothing, so its cycle type is invariant. We hash, sorted, what each row has with the
    rows of its own band and of the others, then bands, then rows together with columns (transposition).
    Different classes may share a value; a split made by this number only gets stricter by that.
    """
    h = BOX[N][0]
    grids = boards.reshape(-1, N, N).astype(np.int64)

    def mix(x):  # 64-bit scramble, so that sums of scrambled numbers are a hash of a multiset
        x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    def side(g):
        B = len(g)
        inside, across = np.zeros((B, N), np.uint64), np.zeros((B, N), np.uint64)
        for a, b in combinations(range(N), 2):
            step = np.empty((B, N), np.int64)
            np.put_along_axis(step, g[:, a], g[:, b], axis=1)  # digit in row a -> digit in row b
            length, at = np.zeros((B, N), np.int64), np.broadcast_to(np.arange(N), (B, N))
            for k in range(1, N + 1):
                at = np.take_along_axis(step, at, axis=1)
                length[(at == np.arange(N)) & (length == 0)] = k  # cycle length of each digit
            kind = mix(mix(length).sum(axis=1))
            for row in (a, b):
                (inside if a // h == b // h else across)[:, row] += kind
        rows = mix(mix(inside) + across)  # (B, N)
        return mix(mix(rows.reshape(B, N // h, h).sum(axis=2)).sum(axis=1))  # (B,)

    return mix(side(grids) + side(grids.transpose(0, 2, 1))).view(np.int64)


def symmetry_cells(batch_size, N, generator, device):
    """A random symmetry of each board's cells: (B, A) int64, the old cell that comes to stand at each place.

    Bands, rows within a band, stacks, columns within a stack; transposition where boxes are square.
    Together with relabelling this is the whole symmetry group (9! * 6**8 * 2 elements on 9x9).
    """
    h, w = BOX[N]

    def lines(size):  # a permutation of N lines that keeps groups of `size` together -> (B, N)
        groups = torch.rand(batch_size, N // size, 1, generator=generator, device=device).argsort(dim=1)
        inner = torch.rand(batch_size, N // size, size, generator=generator, device=device).argsort(dim=2)
        return (groups * size + inner).flatten(1)

    rows, columns = lines(h), lines(w)
    cells = rows.unsqueeze(2) * N + columns.unsqueeze(1)  # (B, N, N)
    if h == w:
        flip = torch.rand(batch_size, 1, 1, generator=generator, device=device) < 0.5
        cells = torch.where(flip, cells.transpose(1, 2), cells)
    return cells.flatten(1)


def solvable_by_singles(boards, givens):
    """(B,) bool: 9x9 puzzles that naked and hidden singles alone solve. boards, givens (B, 81)."""
    possible = np.ones((len(boards), 81, 9), bool)
    known = givens.copy()
    U = np.array(units(9))  # (27, 9)
    near = np.zeros((81, 81), np.float32)
    for cell in range(81):
        near[cell, peers(9)[cell]] = 1
    while True:
        placed = np.eye(9, dtype=np.float32)[boards] * known[:, :, None]  # (B, 81, 9)
        possible &= np.einsum("ij,bjd->bid", near, placed, optimize=True) == 0
        naked = possible.sum(axis=2) == 1
        hidden = np.zeros_like(possible)
        for u in U:
            only = (possible[:, u] & ~known[:, u, None]).sum(axis=1, keepdims=True) == 1  # (B, 1, 9): one place left
            hidden[:, u] |= possible[:, u] & only
        new = known | naked | hidden.any(axis=2)
        if (new == known).all():
            return known.all(axis=1)
        known = new  # the digit placed is the solution's: in a valid puzzle a single is never wrong


# ---------------------------------------------------------------------------------------------------------
# The task


class Sudoku(Task):
    """sudoku-gen (any N) and sudoku (9x9 puzzles)."""

    def __init__(self, config):
        self.puzzles = config.task == "sudoku"
        N = self.N = config.board_size or (9 if self.puzzles else 4)
        if N not in BOX or (self.puzzles and N != 9):
            raise BadInput(f"board size {N} is not available for task {config.task}; legal: {'9' if self.puzzles else '4, 6, 9'}")
        self.seed, self.train_size, self.data_dir = config.seed, config.train_size or 20_000, config.data_dir
        digits = [str(d + 1) for d in range(N)]
        self.alphabet = f"1-{N} and . or 0 for an empty cell"
        super().__init__(config.task, P=81 if self.puzzles else 1, A=N * N, symbols=digits + ["."],
                         answer_symbols=N, pattern=r".", unique_answer=self.puzzles)
        self.BLANK = N
        self.pool = None

    # -- data --

    def _data(self, seed, size):
        describe = {"N": self.N, "puzzles": self.puzzles, "seed": seed, "size": size}
        name = f"{self.name}{self.N}-{size}-seed{seed}"
        return cached(self.data_dir, name, describe, lambda: generate(self.N, self.puzzles, seed, size))

    def test_set(self, num):
        """Puzzles: the first `num` of one fixed stream. Generation: num BOS prompts and no reference."""
        if not self.puzzles:
            return torch.full((num, 1), self.BOS), None
        if num > TEST_SIZE:
            raise BadInput(f"{num} test puzzles were asked for, and the fixed test set has {TEST_SIZE}; give a file with --puzzles")
        data = self._data("test", TEST_SIZE)
        boards, givens = (torch.from_numpy(data[k][:num]) for k in ("boards", "givens"))
        return boards.long().masked_fill(~givens, self.BLANK), boards.long()

    def load_pool(self, device):
        """Training boards on the device, without any that is a symmetric copy of a test puzzle's solution."""
        data = self._data(self.seed, self.train_size)
        keep = np.ones(len(data["boards"]), bool)
        if self.puzzles:
            test = self._data("test", TEST_SIZE)["boards"]
            keep = ~np.isin(symmetry_hash(data["boards"]), symmetry_hash(test))
        self.pool = [torch.from_numpy(data[k][keep]).to(device) for k in ("boards", "givens")]

    def train_batch(self, batch_size, generator, device):
        """B random training boards under B random symmetries, all on the device -> tokens (B, S)."""
        if self.pool is None:
            self.load_pool(device)
        boards, givens = self.pool
        pick = torch.randint(len(boards), (batch_size,), generator=generator, device=device)
        cells = symmetry_cells(batch_size, self.N, generator, device)  # (B, A)
        relabel = torch.rand(batch_size, self.N, generator=generator, device=device).argsort(dim=1)  # (B, N)
        board = relabel.gather(1, boards[pick].long().gather(1, cells))  # (B, A)
        if not self.puzzles:
            return torch.cat([torch.full_like(board[:, :1], self.BOS), board], dim=1)  # (B, 1 + A)
        prompt = board.masked_fill(~givens[pick].gather(1, cells), self.BLANK)  # (B, 81)
        return torch.cat([prompt, board], dim=1)  # (B, 162)

    # -- checking --

    def check(self, prompt, answer):
        """(B, P), (B, A) -> (B,) bool: every unit holds every digit once, and the givens stand."""
        lines = answer[:, torch.tensor(units(self.N), device=answer.device)]  # (B, 3N, N)
        valid = (lines.sort(dim=2).values == torch.arange(self.N, device=answer.device)).all(dim=2).all(dim=1)
        if self.puzzles:
            valid &= ((prompt == answer) | (prompt == self.BLANK)).all(dim=1)
        return valid

    def mistakes(self, prompt, answer):
        said, N = [], self.N
        for i, unit in enumerate(units(N)):
            kind, place = ("row", "column", "box")[i // N], i % N + 1
            for digit in range(N):
                count = sum(int(answer[c]) == digit for c in unit)
                if count > 1:
                    said.append(f"{kind} {place} holds {digit + 1} {'twice' if count == 2 else f'{count} times'}")
        if self.puzzles:
            said += [f"row {c // N + 1} column {c % N + 1} was given {int(prompt[c]) + 1} and became {int(answer[c]) + 1}"
                     for c in range(N * N) if prompt[c] != self.BLANK and answer[c] < N and prompt[c] != answer[c]]
        return said

    # -- text --

    def parse(self, text):
        """'81 characters[ or ,solution]' -> prompt ids, solution ids or None."""
        if not self.puzzles:
            raise BadInput(f"task {self.name} generates boards and takes no puzzle")
        puzzle, *rest = text.replace(",", " ").split()
        if len(rest) > 1:
            raise BadInput(f"{len(rest) + 1} fields; expected a puzzle and at most one solution")
        prompt = self._board(puzzle, "the puzzle")
        self._no_conflict(prompt, "the puzzle")
        if not rest:
            return prompt, None
        answer = self._board(rest[0], "the solution")
        self._no_conflict(answer, "the solution")
        for cell, (p, a) in enumerate(zip(prompt, answer)):
            if a == self.BLANK:
                raise BadInput(f"the solution has an empty cell at row {cell // 9 + 1} column {cell % 9 + 1}")
            if p not in (a, self.BLANK):
                raise BadInput(f"the solution has {a + 1} where the puzzle gives {p + 1} (row {cell // 9 + 1} column {cell % 9 + 1})")
        return prompt, answer

    def _board(self, text, what):
        if len(text) != self.A:
            raise BadInput(f"{what} has {len(text)} characters; expected {self.A}, row by row, {self.alphabet}")
        return self.encode(text.replace("0", "."), what)

    def _no_conflict(self, board, what):
        said = self.mistakes(board, board)
        if said:
            raise BadInput(f"{what} contradicts itself: {said[0]}")

    def format(self, prompt, answer=None):
        boards = ([] if not self.puzzles else [prompt]) + ([] if answer is None else [answer])
        return " ".join(self.encoding.decode([int(t) for t in b]) for b in boards)

    def reference(self, prompt):
        """The one solution of a prompt, or None where there are several (or the search gives up). Raises BadInput if there is none."""
        try:
            found = solve([-1 if t == self.BLANK else t for t in prompt], 9, limit=2, max_nodes=200_000)
        except TooHard:
            return None
        if not found:
            raise BadInput("the puzzle has no solution")
        return found[0] if len(found) == 1 else None

    def render(self, prompt, answer, before=None, color=False):
        """The board as text. Givens bold, cells committed in this step green, conflicts red, unknown cells a dot."""
        N, (h, w) = self.N, BOX[self.N]
        wrong = {c for c in range(N * N) if answer[c] < N and any(answer[c] == answer[p] for p in peers(N)[c])}
        rule = "+".join(["-" * (2 * w + 1)] * (N // w))
        lines = []
        for r in range(N):
            if r and r % h == 0:
                lines.append(rule)
            line = ""
            for c in range(N):
                cell = r * N + c
                shown = str(int(answer[cell]) + 1) if answer[cell] < N else "."
                if color:
                    given = self.puzzles and prompt[cell] != self.BLANK
                    fresh = before is not None and before[cell] != answer[cell]
                    style = "31" if cell in wrong else "32" if fresh else "1" if given else ""
                    shown = f"\033[{style}m{shown}\033[0m" if style else shown
                line += ("|" if c and c % w == 0 else "") + (" " if c % w == 0 else "") + shown + " "
            lines.append(line.rstrip() if not color else line)
        return "\n".join(lines)
