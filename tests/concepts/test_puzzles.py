"""Boards and puzzles: counts, uniqueness and minimality by another method, streams, workers.

    N board side   A = N*N cells   B boards or puzzles   texts show digits 1..N, and . where empty
"""
import itertools
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import puzzles
from data.puzzles import (TARGETS, TooHard, add_givens, all_boards_4x4, generate, minimal_givens,
                          peers, places, random_board, solve, units)

SIDES = [4, 6, 9]
BOX_SHAPE = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # written again: the oracle shares nothing


def oracle(cells, N, limit=2):
    """Up to `limit` completions by exact cover (Knuth's Algorithm X), as tuples of digits.

    Each of the 4 A constraints (a cell is filled; a row, column, box has a digit) holds once.
    """
    h, w = BOX_SHAPE[N]
    meets = {(r, c, d): (("cell", r, c), ("row", r, d), ("column", c, d),
                         ("box", r // h * (N // w) + c // w, d))
             for r, c, d in itertools.product(range(N), repeat=3) if cells[r * N + c] in (-1, d)}
    kinds = itertools.product(("cell", "row", "column", "box"), range(N), range(N))
    found = []

    def search(open_, chosen):  # open_: {constraint that is not met: choices that meet it}
        if not open_:
            found.append(tuple(d for _, _, d in sorted(chosen)))
            return
        for choice in min(open_.values(), key=len):
            conflicts = set().union(*(open_[constraint] for constraint in meets[choice]))
            left = dict(open_)
            for constraint in {c for other in conflicts for c in meets[other]} & open_.keys():
                left[constraint] = open_[constraint] - conflicts
            for constraint in meets[choice]:
                del left[constraint]
            search(left, [*chosen, choice])
            if len(found) >= limit:
                return

    search({kind: {choice for choice in meets if kind in meets[choice]} for kind in kinds}, [])
    return found


def prompt(board, givens):
    return [int(d) if g else -1 for d, g in zip(board, givens)]


def pairs(data):
    return list(zip(data["boards"].tolist(), data["givens"].tolist()))


def text(cells):
    return "".join("." if d < 0 else str(d + 1) for d in cells)


# -- boards --


def test_units_peers_and_places():
    assert [len(units(N)) for N in SIDES] == [12, 18, 27]
    assert [{len(p) for p in peers(N)} for N in SIDES] == [{7}, {12}, {20}]
    assert all(sum(c in u for u in units(9)) == 3 for c in range(81))
    for N in SIDES:
        for cell, (r, c, b) in enumerate(places(N)):
            assert all(cell in u for u in (units(N)[r], units(N)[N + c], units(N)[2 * N + b]))


def test_288_boards_of_side_4():
    """Against brute force: all ways to stack four of the 24 row permutations."""
    rows = list(itertools.permutations(range(4)))
    brute = {sum(b, ()) for b in itertools.product(rows, repeat=4)
             if all(len({b[c // 4][c % 4] for c in u}) == 4 for u in units(4)[4:])}
    assert len(brute) == 288 and {tuple(b) for b in all_boards_4x4()} == brute


@pytest.mark.parametrize("N", SIDES)
def test_random_boards_are_valid_and_diverse(N):
    boards = {tuple(random_board(N, random.Random(s))) for s in range(50)}
    assert len(boards) > 40
    assert all(sorted(b[c] for c in u) == list(range(N)) for b in boards for u in units(N))


@pytest.mark.parametrize("N, by_seed_1, row_101", [
    (4, "1432321423414123", "2143342143121234"),
    (6, "315624426531254316631245163452542163", "254163163245345621612534536412421356"),
    (9, "639251748458367912172849365713682459985134276246795183824573691591426837367918524",
     "274196358369875142185423697936782514742651983851349726527968431418537269693214875")])
def test_boards_are_those_of_earlier_versions(N, by_seed_1, row_101):
    """Published results were measured on generated boards, so these must not change."""
    assert text(random_board(N, random.Random(1))) == by_seed_1
    data = generate(N, False, 0, 102)
    assert text(data["boards"][101].tolist()) == row_101 and not data["givens"].any()


def test_solver_counts_like_brute_force():
    """Completions of random 4x4 prompts, solver and oracle against the list of all boards."""
    rng, boards = random.Random(0), all_boards_4x4()
    for _ in range(60):
        cells = [d if rng.random() < 0.3 else -1 for d in rng.choice(boards)]
        if rng.random() < 0.3:
            cells[rng.randrange(16)] = rng.randrange(4)  # often a contradiction
        fits = sorted(tuple(b) for b in boards if all(p in (-1, d) for p, d in zip(cells, b)))
        assert sorted(map(tuple, solve(cells, 4, limit=1000))) == fits
        assert sorted(oracle(cells, 4, limit=1000)) == fits
    with pytest.raises(TooHard):
        solve([-1] * 81, 9, limit=10**6, max_nodes=500)


# -- puzzles --


@pytest.mark.parametrize("N", SIDES)
def test_puzzles_are_unique_and_minimal_by_a_second_method(N):
    """20 puzzles have one solution, their board; 5 have a second one if any given is removed."""
    for i, (board, givens) in enumerate(pairs(generate(N, True, 1, 20))):
        cells = prompt(board, givens)
        assert oracle(cells, N) == [tuple(board)] and solve(cells, N) == [board]
        for cell in range(N * N):
            if givens[cell] and i % 4 == 0:
                fewer = cells[:cell] + [-1] + cells[cell + 1:]
                assert len(oracle(fewer, N)) == 2


@pytest.mark.parametrize("N, B", [(4, 30), (6, 5), (9, 2)])
def test_givens_are_removed_in_the_order_of_orders(N, B):
    """All lanes together, against the oracle: one puzzle and one given at a time."""
    rng = random.Random(2)
    boards = np.array([random_board(N, rng) for _ in range(B)])
    orders = np.array([rng.sample(range(N * N), N * N) for _ in range(B)])
    together = minimal_givens(boards, orders, N)
    for i in range(B):
        cells = boards[i].tolist()
        for cell in orders[i]:
            fewer = list(cells)
            fewer[cell] = -1
            if len(oracle(fewer, N)) == 1:
                cells = fewer
        assert [d >= 0 for d in cells] == together[i].tolist()
        alone = minimal_givens(boards[i:i + 1], orders[i:i + 1], N)[0]
        assert (alone == together[i]).all()  # other lanes make no difference


def test_a_board_has_at_most_four_puzzles_and_they_differ():
    """Like random minimal 9x9 puzzles they have 24.4 givens on average."""
    data = generate(9, True, 3, 202)
    _, counts = np.unique(data["boards"], axis=0, return_counts=True)
    assert sorted(counts) == [2] + [4] * 50
    assert len(np.unique(data["givens"], axis=0)) == 202
    assert 23.9 < data["givens"].sum(axis=1).mean() < 24.9


@pytest.mark.parametrize("N", SIDES)
def test_more_givens_up_to_the_target(N):
    """Old givens stay, their number is the target or the old number, the solution is unique."""
    data = generate(N, True, 4, 12)
    few, target = data["givens"], np.arange(12) * (N * N + 5) // 11  # from 0 to more than A
    more = add_givens(few, target, np.random.default_rng(0))
    assert more[few].all() and more.dtype == bool
    assert (more.sum(axis=1) == np.clip(target, few.sum(axis=1), N * N)).all()
    for board, givens in zip(data["boards"].tolist(), more):
        assert oracle(prompt(board, givens), N) == [tuple(board)]


def test_extra_givens_are_uniform_over_cells():
    few = np.zeros((20_000, 16), bool)
    few[:, 3] = True
    more = add_givens(few, np.full(20_000, 6), np.random.default_rng(0))
    rate = np.delete(more.mean(axis=0), 3)  # each of 15 cells in 5 of 15 draws
    assert abs(rate - 1 / 3).max() < 0.015 and more[:, 3].all()


@pytest.mark.parametrize("N", SIDES)
def test_test_puzzles(N):
    """Unique, with all numbers of givens; the first ones do not depend on the size of the set."""
    low, high = TARGETS[N]
    data, short = puzzles.test_puzzles(N, 150), puzzles.test_puzzles(N, 7)
    assert all((data[k][:7] == short[k]).all() for k in data)
    count = data["givens"].sum(axis=1)
    assert low <= count.min() < (low + high) / 2 < count.max() == high
    assert N == 4 or len(np.unique(data["boards"], axis=0)) == 150
    assert all(oracle(prompt(*p), N) == [tuple(p[0])] for p in pairs(data)[:20])


# -- streams and workers --


FIRST = {  # the first puzzle of the training set with seed 0, and of the test set
    4: ("....4..33..41...", ".2..4.23..14...2"),
    6: ("..4..25.........36.4....2...6..1....", "5.46.16......4..13315.2.16235.4.31.."),
    9: ("1....4....28.5.........13.5...6...3.......86.8.3.1...9......5..2.4..8..15.6.2...8",
        "...9...5...6...3.8...2.5.....1.4.5872.5...1.....8......7........29..7..38...2..4.")}


@pytest.mark.parametrize("N", SIDES)
def test_puzzles_are_those_of_earlier_versions(N):
    sets = generate(N, True, 0, 1), puzzles.test_puzzles(N, 1)
    assert tuple(text(prompt(*pairs(data)[0])) for data in sets) == FIRST[N]


@pytest.mark.parametrize("N, is_puzzle", [(4, True), (4, False)])
def test_sets_depend_on_the_seed_alone(N, is_puzzle):
    """Any number of workers makes the same set; a longer set begins with the shorter one."""
    most = generate(N, is_puzzle, 3, 2105, workers=3)
    for size, workers in ((0, 2), (1, 1), (150, 1), (1101, 1), (1101, 2)):
        data = generate(N, is_puzzle, 3, size, workers=workers)
        for key, dtype in (("boards", np.uint8), ("givens", bool)):
            assert data[key].shape == (size, N * N) and data[key].dtype == dtype
            assert (data[key] == most[key][:size]).all()
    other = generate(N, is_puzzle, 4, 150)
    assert (other["boards"] != most["boards"][:150]).any()


def square(x):
    return x * x


def fail_at_7(x):
    if x == 7:
        os._exit(3)
    time.sleep(0.01)


def hold(x):
    time.sleep(60 * (x > 1))


def test_jobs_in_workers():
    """Each job is done once; a dead worker raises; closing early does not wait for workers."""
    assert dict(puzzles._in_workers(square, range(20), 3)) == {x: x * x for x in range(20)}
    with pytest.raises(RuntimeError, match="exit code 3"):
        list(puzzles._in_workers(fail_at_7, range(20), 2))
    begin = time.monotonic()
    results = puzzles._in_workers(hold, range(4), 2)
    next(results)
    results.close()
    assert time.monotonic() - begin < 10 and not multiprocessing.active_children()


PARENT = r"""
import os, time
import puzzles

def job(_):
    os.write(1, b"%d\n" % os.getpid())  # one write: two workers share the pipe
    time.sleep(60)

list(puzzles._in_workers(job, range(2), 2))
"""


def running(pid):
    """Is there such a process, and is it not a zombie?"""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_their_parent(signum):
    folder = Path(puzzles.__file__).parent  # imported from there, without the package and torch
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=folder, text=True,
                              stdout=subprocess.PIPE)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    try:
        assert all(map(running, workers))
        parent.send_signal(signum)
        parent.wait(5)
        deadline = time.monotonic() + 5
        while any(map(running, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(running, workers))
    finally:
        parent.kill()
        for pid in filter(running, workers):
            os.kill(pid, signal.SIGKILL)
        parent.stdout.close()


def test_how_far_search_is_from_uniform():
    """All 288 boards: the probabilities sum to 1, and their total variation from 1/288 is 1/6.

    KL to uniform: 0.0589 nats. Boards that the search finds have these frequencies.
    """
    boards = all_boards_4x4()
    q = [math.exp(-puzzles.search_nats(board, 4)) for board in boards]
    assert sum(q) == pytest.approx(1) and len(set(q)) > 1
    assert sum(abs(p - 1 / 288) for p in q) / 2 == pytest.approx(1 / 6)
    assert sum(p * math.log(288 * p) for p in q) == pytest.approx(0.0589, abs=1e-4)
    made = [tuple(solve([-1] * 16, 4, limit=1, rng=random.Random(s))[0]) for s in range(4000)]
    likely = {tuple(board) for board, p in zip(boards, q) if p > 1 / 288}
    expected = sum(p for p in q if p > 1 / 288)
    found = sum(board in likely for board in made) / 4000
    assert abs(found - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5
