"""Sudoku boards by randomised search; minimal puzzles, thousands at the same time in numpy.

    N board side (4, 6 or 9)   A = N*N cells, row by row   B boards or puzzles   digits are 0..N-1
    L lanes: puzzles that are searched at the same time, each with a search of its own
    mask: the digits that are still possible in a cell, as bits; digit d is the bit 1 << d

A puzzle is a board and its givens. It has exactly one solution, and it is MINIMAL: without any one
of its givens there is a second solution. add_givens() makes easier puzzles: every solution of the
puzzle with more givens also solves the one with fewer, so the solution stays unique.
"""
import math
import os
import random
import signal
import sys
import threading
import time
from contextlib import closing
from functools import lru_cache
from multiprocessing import connection, get_context

import numpy as np
from tqdm import tqdm

BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows, columns of a box
TARGETS = {4: (4, 9), 6: (8, 20), 9: (20, 34)}  # smallest and largest number of givens

# A set is made in chunks. Each has a random stream of its own, whichever process makes it.
BOARD_CHUNK = 100
PUZZLE_CHUNK = 1000  # lanes of minimal_givens: many, to share numpy's cost per call
# A 9x9 board costs about as much as a minimal puzzle, so four puzzles share one board. More would
# save little time, and the set would have fewer different boards.
PER_BOARD = 4


@lru_cache
def units(N):
    """The 3N units (rows, columns, boxes), each a tuple of N cell numbers."""
    h, w = BOX[N]
    rows = [tuple(r * N + c for c in range(N)) for r in range(N)]
    columns = [tuple(r * N + c for r in range(N)) for c in range(N)]
    corners = [r * N + c for r in range(0, N, h) for c in range(0, N, w)]
    boxes = [tuple(k + i * N + j for i in range(h) for j in range(w)) for k in corners]
    return rows + columns + boxes


@lru_cache
def peers(N):
    """For each cell, the sorted other cells that share a unit with it (20 on a 9x9 board)."""
    near = [{c for u in units(N) if cell in u for c in u} for cell in range(N * N)]
    return [sorted(cells - {cell}) for cell, cells in enumerate(near)]


@lru_cache
def places(N):
    """(row, column, box) of each cell."""
    h, w = BOX[N]
    return [(r, c, r // h * (N // w) + c // w) for r in range(N) for c in range(N)]


# --------------------------------------------------------------------------------------------------
# One board at a time: depth-first search in plain Python


class TooHard(Exception):
    """The search gave up after max_nodes."""


def solve(cells, N, limit=2, rng=None, max_nodes=None):
    """Up to `limit` completions of cells (list of N*N digits 0..N-1, or -1 if empty).

    Depth-first search on bitmasks, the cell with the fewest candidates first. With rng, digits are
    tried in random order. Contradictory givens have no completion. Raises TooHard after max_nodes.
    """
    where, board = places(N), list(cells)
    free = _free_digits(board, N)
    if free is None:
        return []
    row, column, box = free
    empty = [cell for cell, digit in enumerate(board) if digit < 0]
    found, nodes = [], 0

    def descend():  # -> True when enough solutions were found
        nonlocal nodes
        nodes += 1
        if max_nodes and nodes > max_nodes:
            raise TooHard
        if not empty:
            found.append(list(board))
            return len(found) >= limit
        index, mask = _fewest_candidates(empty, where, row, column, box)
        if not mask:
            return False
        cell, empty[index] = empty[index], empty[-1]  # remove it, in constant time
        empty.pop()
        r, c, b = where[cell]
        digits = [d for d in range(N) if mask >> d & 1]
        if rng:
            rng.shuffle(digits)
        for digit in digits:
            bit = 1 << digit
            board[cell] = digit
            row[r] ^= bit
            column[c] ^= bit
            box[b] ^= bit
            done = descend()
            row[r] ^= bit
            column[c] ^= bit
            box[b] ^= bit
            if done:
                return True
        board[cell] = -1
        empty.append(cell)
        empty[index], empty[-1] = empty[-1], empty[index]  # put it back at its index
        return False

    descend()
    return found


def _free_digits(board, N):
    """Masks of the digits still free in each row, column and box; None if digits contradict."""
    full = (1 << N) - 1
    row, column, box = [full] * N, [full] * N, [full] * N
    for (r, c, b), digit in zip(places(N), board):
        if digit < 0:
            continue
        bit = 1 << digit
        if not row[r] & column[c] & box[b] & bit:
            return None
        row[r] ^= bit
        column[c] ^= bit
        box[b] ^= bit
    return row, column, box


def _fewest_candidates(empty, where, row, column, box):
    """The first empty cell with the fewest candidates -> its index in `empty`, its mask."""
    fewest = 99
    for i, cell in enumerate(empty):
        r, c, b = where[cell]
        candidates = row[r] & column[c] & box[b]
        count = candidates.bit_count()
        if count < fewest:
            fewest, index, mask = count, i, candidates
            if count < 2:
                break
    return index, mask


@lru_cache
def all_boards_4x4():
    """The 288 boards of side 4. random_board() draws from this list, and so uniformly.

    Randomised search is not uniform (total variation about 0.17).
    """
    return solve([-1] * 16, 4, limit=289)


def random_board(N, rng):
    """A random valid board, a list of N*N digits. rng is a random.Random."""
    if N == 4:
        return rng.choice(all_boards_4x4())
    return solve([-1] * (N * N), N, limit=1, rng=rng)[0]


def search_nats(board, N):
    """-log of the probability that randomised search finds this board, in nats.

    At each cell that the search visits, the digit is uniform among those that can be completed,
    because the search backtracks from the others. (For 4x4, random_board() uses a list instead.)
    """
    where, made, empty = places(N), [-1] * (N * N), list(range(N * N))
    nats = 0.0
    while empty:
        index, mask = _fewest_candidates(empty, where, *_free_digits(made, N))
        cell, empty[index] = empty[index], empty[-1]
        empty.pop()
        possible = 0
        for digit in range(N):
            if mask >> digit & 1:
                made[cell] = digit
                possible += bool(solve(made, N, limit=1))
        nats += math.log(possible)
        made[cell] = board[cell]
    return nats


# --------------------------------------------------------------------------------------------------
# Many puzzles at a time: minimal givens, on arrays with the lanes last


def minimal_givens(boards, orders, N):
    """Remove each given that can be removed, in the order of `orders`: the rest is minimal.

    boards (B, A) integers, orders (B, A): a permutation of the cells each -> givens (B, A) bool.
    Row i depends on row i alone.

    A given can be removed if no solution has another digit in its cell. As a question about masks:
    the other givens are known, this cell may have any digit but its own, empty cells any digit. A
    lane sweeps until its question is answered. If sweeps make no progress, it splits the search in
    two and puts one half on its stack. Then it asks its next question. Removing other givens only
    adds solutions, so a given that cannot be removed now cannot be removed later: one pass is
    enough.
    """
    B, A = boards.shape
    truth = np.uint16(1) << boards.astype(np.uint16)
    givens = np.ones((B, A), bool)
    asked = np.zeros(B, int)  # questions answered so far
    stack = np.empty((B, A, A), np.uint16)  # a split fixes a cell: at most A halves
    height = np.zeros(B, int)
    rows = np.arange(B)  # the puzzle of each lane
    masks = np.ascontiguousarray(_question(truth, givens, orders, asked, rows, N))  # (A, L)
    while len(rows):
        masks, dead, stuck = _sweep(masks, N)

        # A contradiction: take the half on top of the stack. If it is empty, remove the given.
        stacked = height[rows] > 0
        back, refuted = np.flatnonzero(dead & stacked), np.flatnonzero(dead & ~stacked)
        height[rows[back]] -= 1
        masks[:, back] = stack[rows[back], height[rows[back]]].T
        row = rows[refuted]
        givens[row, orders[row, asked[row]]] = False

        # No progress: if every cell is known, this is a second solution and the given stays.
        # Otherwise split.
        at_rest = np.flatnonzero(stuck & ~dead)
        cell, known = _fewest(np.take(masks, at_rest, axis=1), N)
        split, cell, found = at_rest[~known], cell[~known], at_rest[known]
        row = rows[split]
        first = _first_half(masks[cell, split], truth[row, cell])
        masks[cell, split] ^= first
        stack[row, height[row]] = masks[:, split].T
        height[row] += 1
        masks[cell, split] = first

        # Answered: ask the next question. A lane without further questions is closed.
        answered = np.concatenate([refuted, found])
        height[rows[answered]] = 0
        asked[rows[answered]] += 1
        more = answered[asked[rows[answered]] < A]
        masks[:, more] = _question(truth, givens, orders, asked, rows[more], N)
        if len(more) < len(answered):
            keep = asked[rows] < A
            rows, masks = rows[keep], np.compress(keep, masks, axis=1)
    return givens


def _question(truth, givens, orders, asked, rows, N):
    """Masks (A, L) for puzzles `rows` (L,): is there a solution with another digit in the cell?"""
    full = np.uint16((1 << N) - 1)
    masks = np.where(givens[rows], truth[rows], full)
    cell = orders[rows, asked[rows]]
    masks[np.arange(len(rows)), cell] = full ^ truth[rows, cell]
    return masks.T


def _fewest(masks, N):
    """masks (A, L) -> the cell with the fewest candidates (two or more); is every cell known?"""
    count = np.bitwise_count(masks)
    count[count == 1] = N + 1
    return count.argmin(axis=0), count.min(axis=0) > N


def _first_half(mask, truth):
    """mask (L,) -> the bit to try first: the board's (second solutions are similar), or any."""
    return np.where(mask & truth, truth, mask & -mask)


def _sweep(masks, N):
    """One round of naked and hidden singles in every lane.

    masks (A, L) -> new masks (A, L); dead (L,) bool: a contradiction; stuck (L,) bool: no new
    single, so another sweep would change nothing. Some contradictions are found by later sweeps
    only. But a lane that is not dead and knows every cell is a solution: each unit has N digits.
    """
    known = _is_single(masks)
    placed = masks * known
    grid, boxes = _shaped(placed, N)
    in_rows, in_columns = (np.bitwise_or.reduce(grid, axis=axis) for axis in (1, 0))
    in_boxes = np.bitwise_or.reduce(boxes, axis=(1, 3))
    taken = _around_each_cell(in_rows, in_columns, in_boxes, N)
    new = masks & ~(taken ^ placed)  # naked singles: the other cells of the units lose the digit

    h, w = BOX[N]
    grid, boxes = _shaped(new, N)
    in_rows, one_row = _once_or_more_and_once([grid[:, k] for k in range(N)])
    in_columns, one_column = _once_or_more_and_once([grid[k] for k in range(N)])
    in_box = [boxes[:, i, :, j] for i in range(h) for j in range(w)]
    in_boxes, one_box = _once_or_more_and_once(in_box)
    everywhere = in_rows & in_columns & in_boxes.reshape(in_rows.shape)
    dead = np.bitwise_and.reduce(everywhere, axis=0) != (1 << N) - 1  # no cell for a digit

    hidden = _around_each_cell(one_row, one_column, one_box, N)
    hidden &= new
    np.copyto(new, hidden, where=hidden != 0)  # hidden singles: the only cell for a digit
    dead |= np.minimum.reduce(new, axis=0) == 0  # no digit for a cell
    stuck = (_is_single(new) == known).all(axis=0)
    return new, dead, stuck


def _is_single(masks):
    """Has a mask one bit (or none)?"""
    return (masks & (masks - np.uint16(1))) == 0


def _shaped(masks, N):
    """Two views of (A, L): (row, column, L) and (band, row in it, stack, column in it, L)."""
    h, w = BOX[N]
    L = masks.shape[1]
    return masks.reshape(N, N, L), masks.reshape(N // h, h, N // w, w, L)


def _around_each_cell(rows, columns, boxes, N):
    """rows, columns (N, L), boxes (N // h, N // w, L) -> (A, L): the union for each cell."""
    masks = np.empty((N * N, rows.shape[1]), np.uint16)
    grid, in_boxes = _shaped(masks, N)
    np.bitwise_or(rows[:, None], columns[None], out=grid)
    in_boxes |= boxes[:, None, :, None]
    return masks


def _once_or_more_and_once(cells):
    """N masks of one shape -> the digits that occur in them, the digits that occur in one only."""
    once, twice = cells[0].copy(), np.zeros_like(cells[0])
    both = np.empty_like(once)
    for mask in cells[1:]:
        np.bitwise_and(once, mask, out=both)
        twice |= both
        once |= mask
    return once, once & ~twice


def add_givens(givens, target, rng):
    """Add random givens, up to target: easier puzzles whose solution is still unique.

    givens (B, A) bool, target (B,) int, rng a numpy Generator -> (B, A) bool, `target` givens in
    each row, or the old number if it is larger. Row i does not depend on the rows after it.
    """
    noise = rng.random(givens.shape)
    noise[givens] = -1.0
    place = noise.argsort(axis=1).argsort(axis=1)  # givens first, then other cells, shuffled
    return givens | (place < np.asarray(target)[:, None])


# --------------------------------------------------------------------------------------------------
# Sets of boards and puzzles, by worker processes


def generate(N, puzzles, seed, size, workers=None, per_board=PER_BOARD):
    """`size` boards, or minimal puzzles, up to `per_board` from one board.

    -> dict boards (size, A) uint8, givens (size, A) bool (all False for boards). Row i depends on
    N, puzzles, seed and i alone: a longer set begins with the shorter one, and the number of worker
    processes (default: one per core) does not matter.
    """
    chunk = PUZZLE_CHUNK if puzzles else BOARD_CHUNK
    starts = range(0, size, chunk)
    jobs = [(N, puzzles, seed, i // chunk, min(chunk, size - i), per_board) for i in starts]
    workers = min(workers or _cores(), -(-size // PUZZLE_CHUNK))  # small sets need no workers
    data = {"boards": np.empty((size, N * N), np.uint8), "givens": np.empty((size, N * N), bool)}
    what = "puzzles" if puzzles else "boards"
    bar = tqdm(total=size, desc=f"{N}x{N} {what} (seed {seed})", unit="", delay=2)
    with bar, closing(_in_workers(_chunk, jobs, workers)) as parts:
        for i, (boards, givens) in parts:
            rows = slice(starts[i], starts[i] + len(boards))
            data["boards"][rows], data["givens"][rows] = boards, givens
            bar.update(len(boards))
    return data


def test_puzzles(N, size):
    """The fixed test set: one unique puzzle per board -> dict as from generate().

    The number of givens is uniform in TARGETS (more if the minimal puzzle has more).
    """
    data = generate(N, True, "test", size, per_board=1)
    rng = random.Random(f"sudoku {N} test targets")
    target = [rng.randint(*TARGETS[N]) for _ in range(size)]
    extra = np.random.default_rng(random.Random(f"sudoku {N} test givens").getrandbits(64))
    data["givens"] = add_givens(data["givens"], target, extra)
    return data


def _chunk(job):
    """One chunk, from its random stream -> boards (count, A), givens (count, A)."""
    N, puzzles, seed, index, count, per_board = job
    A = N * N
    rng = random.Random(f"sudoku {N} {puzzles} {seed} {index}")
    if not puzzles:
        boards = [random_board(N, rng) for _ in range(count)]
        return np.array(boards, np.uint8), np.zeros((count, A), bool)
    boards, orders = [], []
    while len(boards) < count:
        boards += [random_board(N, rng)] * per_board
        orders += [rng.sample(range(A), A) for _ in range(per_board)]
    boards, orders = np.array(boards[:count], np.uint8), np.array(orders[:count])
    return boards, minimal_givens(boards, orders, N)


# --------------------------------------------------------------------------------------------------
# Worker processes


def _cores():
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _in_workers(function, jobs, workers):
    """Yield (i, function(jobs[i])) for each job; with several workers, in order of completion.

    Closing the generator ends the workers, whatever they are doing. Raises RuntimeError if a worker
    fails or is killed.
    """
    if workers < 2:
        yield from enumerate(map(function, jobs))
        return
    # Fork if possible: it needs no `if __name__ == "__main__"` in the caller's script. It is safe,
    # because workers run plain Python and numpy's arithmetic, which has no threads, never torch.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    tasks = list(enumerate(jobs))
    processes = {}  # {the pipe of its results: process}
    try:
        for k in range(workers):
            results, end = context.Pipe(duplex=False)
            args = (os.getpid(), end, function, tasks[k::workers])
            processes[results] = context.Process(target=_worker, args=args, daemon=True)
            processes[results].start()
            end.close()  # only the worker has it now, so the pipe ends with the worker
        pipes = list(processes)
        while pipes:
            for results in connection.wait(pipes):
                try:
                    result = results.recv()
                except (EOFError, OSError):  # OSError: it ended in the middle of a result
                    pipes.remove(results)
                    processes[results].join()
                    if code := processes[results].exitcode:
                        raise RuntimeError(f"a worker ended with exit code {code}") from None
                else:
                    yield result
    finally:
        for process in processes.values():
            if process.pid:  # it has been started
                process.kill()
                process.join()


def _worker(parent, results, function, tasks):
    """A worker process. It ignores Ctrl-C (the parent ends it) and ends if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits the parent's handler
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    for i, job in tasks:
        results.send((i, function(job)))


def _end_with_parent(parent):
    """Poll the parent's id: an orphan is given to another parent."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
