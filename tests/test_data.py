"""The tasks: counts, uniqueness, symmetries, checkers against brute force, text formats, the cache.

    N board side   B batch   A answer cells
"""
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from conftest import task_config
from data import BadInput, make_task, read_puzzles
from data.sudoku import (TooHard, all_boards_4x4, generate, peers, random_board, random_puzzle, solvable_by_singles, solve,
                         symmetry_cells, symmetry_hash, units)

PUZZLES = os.environ.get("PUZZLES")
LINE = ("53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79 "
        "534678912672195348198342567859761423426853791713924856961537284287419635345286179")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def puzzle_task(data_dir):
    return make_task(task_config("sudoku", board_size=9, data_dir=data_dir))


# -- Sudoku --


def test_units_and_peers():
    assert [len(units(N)) for N in (4, 6, 9)] == [12, 18, 27]
    assert {len(p) for p in peers(9)} == {20} and {len(p) for p in peers(4)} == {7} and {len(p) for p in peers(6)} == {12}
    assert all(sum(c in u for u in units(9)) == 3 for c in range(81))


def test_288_boards_of_side_4():
    """Against brute force: all ways to stack four of the 24 row permutations."""
    rows = list(itertools.permutations(range(4)))
    brute = {sum(b, ()) for b in itertools.product(rows, repeat=4)
             if all(len({sum(b, ())[c] for c in u}) == 4 for u in units(4))}
    assert len(brute) == 288 and {tuple(b) for b in all_boards_4x4()} == brute


@pytest.mark.parametrize("N", [4, 6, 9])
def test_random_boards_are_valid_and_diverse(N):
    boards = {tuple(random_board(N, random.Random(s))) for s in range(50)}
    assert len(boards) > 40 and all(sorted(b[c] for c in u) == list(range(N)) for b in boards for u in units(N))


def test_solver_counts_like_brute_force():
    """Number of completions of random 4x4 prompts, solver against the list of all boards."""
    rng, boards = random.Random(0), all_boards_4x4()
    for _ in range(60):
        prompt = [d if rng.random() < 0.3 else -1 for d in rng.choice(boards)]
        if rng.random() < 0.3:
            prompt[rng.randrange(16)] = rng.randrange(4)  # often a contradiction
        fits = [b for b in boards if all(p in (-1, d) for p, d in zip(prompt, b))]
        assert sorted(solve(prompt, 4, limit=1000)) == sorted(map(list, fits))


def test_puzzles_are_unique_by_a_second_method():
    """20 puzzles: 20-34 givens, and a plain solver without heuristics finds the board and nothing else."""
    def plain(cells, found):
        empty = [c for c in range(81) if cells[c] < 0]
        options = {c: set(range(9)) - {cells[p] for p in peers(9)[c]} for c in empty}
        if not empty:
            found.append(list(cells))
        elif len(found) < 2:
            cell = min(empty, key=lambda c: (len(options[c]), -c))
            for d in sorted(options[cell], reverse=True):
                plain(cells[:cell] + [d] + cells[cell + 1:], found)
        return found
    for s in range(20):
        board, given = random_puzzle(random.Random(s))
        assert 20 <= sum(given) <= 34
        assert plain([d if g else -1 for d, g in zip(board, given)], []) == [board]


def test_search_gives_up_when_told():
    with pytest.raises(TooHard):
        solve([-1] * 81, 9, limit=10**6, max_nodes=500)


@pytest.mark.parametrize("N", [4, 6, 9])
def test_symmetries_keep_validity_and_mix(N, data_dir):
    task = make_task(task_config(board_size=N, train_size=20, data_dir=data_dir))
    batch = task.train_batch(4000, gen(), "cpu")
    assert task.check(batch[:, :1], batch[:, 1:]).all() and (batch[:, 0] == task.BOS).all()
    different = len({tuple(b) for b in batch[:, 1:].tolist()})
    assert different == 288 if N == 4 else different > 3990  # 20 base boards reach every 4x4 board
    assert torch.equal(symmetry_cells(50, N, gen(), "cpu").sort(dim=1).values, torch.arange(N * N).expand(50, -1))


def test_augmented_puzzles_stay_puzzles(puzzle_task):
    """Prompt and answer move together: givens agree with the answer, and the solution is still the only one."""
    batch = puzzle_task.train_batch(30, gen(), "cpu")
    prompt, answer = batch[:, :81], batch[:, 81:]
    assert puzzle_task.check(prompt, answer).all()
    for p, a in list(zip(prompt.tolist(), answer.tolist()))[:10]:
        assert solve([-1 if t == puzzle_task.BLANK else t for t in p], 9) == [a]


def test_symmetry_hash_is_invariant_and_sharp():
    """The same number under every symmetry; different numbers for different random boards."""
    boards = np.array([random_board(9, random.Random(s)) for s in range(200)], np.uint8)
    base = symmetry_hash(boards)
    for s in range(5):
        moved = torch.from_numpy(boards).long().gather(1, symmetry_cells(200, 9, gen(s), "cpu"))
        moved = torch.rand(200, 9, generator=gen(s)).argsort(dim=1).gather(1, moved)
        assert (symmetry_hash(moved.numpy()) == base).all()
    assert len(set(base.tolist())) == 200


def test_train_and_test_share_no_puzzle_up_to_symmetry(puzzle_task, monkeypatch):
    """Plant symmetric copies of test boards in the training data: they, and only they, are dropped."""
    prompts, boards = puzzle_task.test_set(10)
    copies = boards.gather(1, symmetry_cells(10, 9, gen(), "cpu")).numpy().astype(np.uint8)
    real = puzzle_task._data
    own = real(0, 100)
    puzzle_task.pool = None
    planted = {"boards": np.concatenate([own["boards"], copies]), "givens": np.concatenate([own["givens"], np.ones_like(copies, bool)])}
    monkeypatch.setattr(puzzle_task, "_data", lambda seed, size: planted if seed == 0 else real(seed, size))
    puzzle_task.load_pool("cpu")
    assert len(puzzle_task.pool[0]) == 100
    puzzle_task.pool = None


def test_generation_depends_on_the_seed_alone(data_dir):
    """Same puzzles one by one or through worker processes, and a longer set begins with the shorter one."""
    one, many = generate(6, False, 3, 150), generate(6, False, 3, 1050)  # 11 chunks: the process pool
    assert np.array_equal(one["boards"], many["boards"][:150])
    assert not np.array_equal(one["boards"], generate(6, False, 4, 150)["boards"])


def test_singles_solver_agrees_with_a_cell_by_cell_one():
    """The vectorised singles solver against one that fills one naked or hidden single at a time."""
    pairs = [random_puzzle(random.Random(s)) for s in range(30)]

    def by_hand(board, given):
        cells = [d if g else -1 for d, g in zip(board, given)]
        while -1 in cells:
            options = {c: set(range(9)) - {cells[p] for p in peers(9)[c]} for c in range(81) if cells[c] < 0}
            singles = [(c, min(o)) for c, o in options.items() if len(o) == 1]
            for u in units(9):
                for d in range(9):
                    places = [c for c in u if c in options and d in options[c]]
                    if len(places) == 1:
                        singles.append((places[0], d))
            if not singles:
                return False
            cells[singles[0][0]] = singles[0][1]
        return True
    fast = solvable_by_singles(np.array([p[0] for p in pairs], np.uint8), np.array([p[1] for p in pairs], bool))
    assert fast.tolist() == [by_hand(*p) for p in pairs] and 0 < fast.sum() < 30


def test_checker_against_the_mistakes(puzzle_task):
    """check() and mistakes() are written differently; they agree on valid boards and on single and double changes."""
    prompts, answers = puzzle_task.test_set(5)
    assert puzzle_task.check(prompts, answers).all() and not any(puzzle_task.mistakes(p, a) for p, a in zip(prompts, answers))
    rng = random.Random(0)
    for _ in range(50):
        i, cell = rng.randrange(5), rng.randrange(81)
        answer = answers[i].clone()
        answer[cell] = (answer[cell] + rng.randrange(1, 9)) % 9
        assert not puzzle_task.check(prompts[i:i + 1], answer[None])[0] and puzzle_task.mistakes(prompts[i], answer)
    swapped = (answers[:1] + 1) % 9  # a valid board that ignores the givens
    assert not puzzle_task.check(prompts[:1], swapped)[0] and "was given" in puzzle_task.mistakes(prompts[0], swapped[0])[0]


# -- paths --


def walk(edges, start, goal):
    """Breadth-first search -> a shortest path as a list of nodes, or None."""
    seen, queue = {start: None}, [start]
    for node in queue:
        for a, b in edges:
            if a == node and b not in seen:
                seen[b] = a
                queue.append(b)
    if goal not in seen:
        return None
    path = [goal]
    while path[-1] != start:
        path.append(seen[path[-1]])
    return path[::-1]


@pytest.mark.parametrize("task", ["star", "planning"])
def test_graphs_against_breadth_first_search(task):
    """The answer is the path that a search finds; degrees and leaves are those of the definition."""
    task = make_task(task_config(task, arms=3, path_len=4, labels=15))
    prompts, answers = task.test_set(200)
    assert task.check(prompts, answers).all()
    for prompt, answer in zip(prompts, answers):
        *flat, start, goal = prompt.tolist()
        edges = list(zip(flat[0::2], flat[1::2]))
        nodes, heads = set(flat), [a for a, _ in edges]
        path = walk(edges, start, goal)
        if task.name == "star":
            assert answer.tolist() == path and len(path) == 4
            assert len(nodes) == 10 and heads.count(start) == 3 and len(nodes - set(heads)) == 3 and goal not in heads
        else:
            assert answer.tolist() == [t for e in zip(path, path[1:]) for t in e] and len(path) == 6
            assert len(nodes) == 11
            shared = [n for n in nodes if sum(n in e for e in edges) > 2 or heads.count(n) == 2 or [b for _, b in edges].count(n) == 2]
            assert len(shared) == 1 and task.distance(prompt[None]).item() == len(walk(edges, shared[0], goal)) - 1


def test_planning_distances_are_all_there():
    task = make_task(task_config("planning"))
    prompts, _ = task.test_set(600)
    assert (task.distance(prompts).bincount(minlength=6) > 60).all()


def test_any_rule_valid_path_counts():
    """`solved` accepts a path that is not the reference (reasoning-gym#153), and refuses each way of being wrong."""
    task = make_task(task_config("star", arms=2, path_len=3, labels=9))
    prompt = torch.tensor([[0, 1, 0, 2, 1, 3, 2, 3, 0, 3]])  # two ways from 0 to 3
    check = lambda *path: task.check(prompt, torch.tensor([path])).item()
    assert check(0, 1, 3) and check(0, 2, 3)
    assert not (check(0, 1, 2) or check(1, 1, 3) or check(0, 3, 3) or check(0, 0, 3) or check(2, 1, 3))
    for path in ((0, 1, 3), (0, 2, 3), (0, 1, 2), (1, 1, 3), (0, 3, 3)):
        assert check(*path) == (not task.mistakes(prompt[0], torch.tensor(path)))


@pytest.mark.parametrize("name", ["star", "planning"])
def test_checker_and_mistakes_agree_on_paths(name):
    task = make_task(task_config(name))
    prompts, answers = task.test_set(100)
    noise = torch.rand(answers.shape, generator=gen()) < 0.15
    answers = torch.where(noise, torch.randint(task.K, answers.shape, generator=gen(1)), answers)
    valid = task.check(prompts, answers)
    assert 0 < valid.sum() < 100
    assert valid.tolist() == [not task.mistakes(p, a) for p, a in zip(prompts, answers)]


def test_fixed_pool_of_graphs():
    task = make_task(task_config("planning", train_size=7))
    batch = task.train_batch(200, gen(), "cpu")
    assert len({tuple(r) for r in batch.tolist()}) == 7 and task.check(batch[:, :task.P], batch[:, task.P:]).all()


# -- vocabulary and text --


@pytest.mark.parametrize("config", [task_config(), task_config(board_size=6), task_config("sudoku", board_size=9),
                                    task_config("star", labels=50), task_config("star", labels=7), task_config("planning")])
def test_encoding_is_tiktokens(config):
    """Each symbol is one token, answer symbols come first, MASK and BOS are special tokens at the end."""
    import tiktoken
    task = make_task(config)
    assert isinstance(task.encoding, tiktoken.Encoding)
    assert task.encoding.n_vocab == task.V and task.encoding.decode([task.MASK, task.BOS]) == "<mask><bos>"
    first = 1 if config.task.startswith("sudoku") else 0
    assert [task.encoding.decode([i]) for i in range(task.K)] == [str(i + first) for i in range(task.K)]


@pytest.mark.parametrize("name", ["star", "planning"])
def test_path_text_round_trips(name):
    task = make_task(task_config(name))
    for prompt, answer in zip(*task.test_set(20)):
        text = task.format(prompt, answer)
        assert task.parse(text) == (prompt.tolist(), answer.tolist())
        assert task.parse(text.partition("=")[0]) == (prompt.tolist(), None)


def test_sudoku_text_round_trips(puzzle_task):
    prompt, answer = puzzle_task.parse(LINE)
    assert puzzle_task.format(prompt, answer) == LINE
    assert puzzle_task.parse(LINE.replace(".", "0").replace(" ", ",")) == (prompt, answer)
    assert puzzle_task.parse(LINE[:81]) == (prompt, None) and puzzle_task.reference(prompt) == answer


@pytest.mark.skipif(not PUZZLES, reason="PUZZLES names no folder")
def test_every_line_of_the_puzzle_folder(puzzle_task):
    """Every line of every file reads, writes back the same, and its solution is rule-valid."""
    star = make_task(task_config("star", arms=3, path_len=3, labels=50))
    for file in sorted(Path(PUZZLES).glob("*.txt")):
        task = star if file.name.startswith("star") else puzzle_task
        lines = [l for l in file.read_text(encoding="utf-8").splitlines() if l.strip() and not l.startswith("#")]
        puzzles, places = read_puzzles(file, task)
        assert [task.format(*p) for p in puzzles] == lines and len(places) == len(lines)
        assert task.check(*(torch.tensor(x) for x in zip(*puzzles))).all()


def test_render_shows_board_and_marks(puzzle_task):
    prompts, answers = puzzle_task.test_set(1)
    plain = puzzle_task.render(prompts[0], answers[0])
    assert "\033" not in plain and sum(c.isdigit() for c in plain) == 81 and len(plain.splitlines()) == 11
    wrong = answers[0].clone()
    cell = int((prompts[0] == puzzle_task.BLANK).nonzero()[0])
    wrong[cell] = (wrong[cell] + 1) % 9
    assert f"\033[31m{int(wrong[cell]) + 1}" in puzzle_task.render(prompts[0], wrong, None, color=True)
    assert "\033[31m" not in puzzle_task.render(prompts[0], answers[0], None, color=True)


@pytest.mark.parametrize("text, word", [
    ("1" * 80, "80 characters"), ("x" + "." * 80, "'x'"), ("11" + "." * 79, "row 1 holds 1 twice"), (LINE.replace("534678", "543678"), "contradicts itself"),
    (LINE[:81] + " " + LINE[:81], "empty cell"), (LINE + " 3", "3 fields"), ("\u00b2" + "." * 80, "'\u00b2'")])
def test_bad_sudoku_text(puzzle_task, text, word):
    with pytest.raises(BadInput, match=word):
        puzzle_task.parse(text)


def test_no_solution_is_said(puzzle_task):
    prompt, _ = puzzle_task.parse("12345678." + "." * 8 + "9" + "." * 63)  # row 1 needs a 9 where column 9 has one
    with pytest.raises(BadInput, match="no solution"):
        puzzle_task.reference(prompt)


@pytest.mark.parametrize("text, word", [
    ("0,1|1,2|0,3|3,4", "no '/'"), ("0,1|1,2|0,3/0,2", "3 edges"), ("0,1|1,2|0,3|3,99/0,2", "99"), ("0,1|1,2|0,3|3/0,2", "edge '3'"),
    ("0,1|1,2|0,3|3,4/0,9", "no path"), ("0,1|1,2|0,3|3,4/0,2=0,1", "path '0,1'"), ("0,1|1,2|0,3|3,x/0,2", "3,x"), ("0,1|1,2|0,3|3,12/0,2", "12")])
def test_bad_star_text(text, word):
    with pytest.raises(BadInput, match=word):
        make_task(task_config("star", labels=11)).parse(text)


def test_bad_line_is_named(tmp_path, puzzle_task):
    file = tmp_path / "p.txt"
    file.write_text("# a comment\n\n" + (LINE + "\n") * 4 + LINE[:50] + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 7: the puzzle has 50 characters"):
        read_puzzles(file, puzzle_task)
    file.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no puzzle"):
        read_puzzles(file, puzzle_task)


# -- cache --


def test_cache_is_used_and_damage_is_noticed(tmp_path, capsys):
    """An intact cache is read; truncated, edited, or for other settings, it is rebuilt with a word on stderr."""
    calls = []

    def build():
        calls.append(1)
        return {"x": np.arange(1000) ** 2}
    get = lambda **describe: data.cached(tmp_path, "set", {"seed": 1, **describe}, build)["x"]
    assert np.array_equal(get(), get()) and len(calls) == 1
    file = tmp_path / "set.npz"
    whole = file.read_bytes()
    assert json.loads(whole.partition(b"\n")[0]).keys() == {"seed", "format", "sha256"}
    for damaged in (whole[:len(whole) // 2], whole[:-20] + b"x" + whole[-19:], b"", b"junk\n" + whole):
        file.write_bytes(damaged)
        assert np.array_equal(get(), np.arange(1000) ** 2) and "building it again" in capsys.readouterr().err
    assert len(calls) == 5 and file.read_bytes() == whole
    get(seed=2)
    assert len(calls) == 6


def test_unwritable_cache_is_no_reason_to_stop(capsys):
    assert data.cached("/dev/null/x", "set", {}, lambda: {"x": np.ones(1)})["x"] == 1
    assert "going on without it" in capsys.readouterr().err
