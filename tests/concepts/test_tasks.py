"""The tasks: symmetries, checkers against brute force, vocabulary, text formats, the cache.

    N board side   B batch   A answer cells
"""
import json
import random
import time

import numpy as np
import pytest
import torch

import data
from conftest import LINE, PUZZLE, task_config
from data import make_task
from data.puzzles import generate, random_board, solve
from data.sudoku import symmetry_cells, symmetry_hash
from plumbing.cli import BadInput


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["inplace", "prompt"])
def puzzle_task(request, data_dir):
    """9x9 puzzles in both layouts: givens among the answer cells, or in the prompt."""
    return make_task(task_config("sudoku", board_size=9, data_dir=data_dir, layout=request.param))


def parse(task, text):
    """The one puzzle of a text -> start ids, answer ids or None."""
    ((start, answer, _),), _ = task.read(text, "--puzzle")
    return start, answer


# -- Sudoku --


@pytest.mark.parametrize("N", [4, 6, 9])
def test_symmetries_keep_validity_and_mix(N, data_dir):
    task = make_task(task_config(board_size=N, train_size=20, data_dir=data_dir))
    batch, given = task.train_batch(4000, gen(), "cpu")
    assert not given.any() and (batch[:, 0] == task.BOS).all()
    assert task.check(task.start(batch[:, :1]), batch[:, 1:]).all()
    different = len({tuple(b) for b in batch[:, 1:].tolist()})
    # 20 base boards reach every 4x4 board
    assert different == 288 if N == 4 else different > 3990
    cells = symmetry_cells(50, N, gen(), "cpu").sort(dim=1).values
    assert torch.equal(cells, torch.arange(N * N).expand(50, -1))


def test_augmented_puzzles_stay_puzzles(puzzle_task):
    """Givens and answer move together: they agree, and the answer is still the only solution."""
    batch, given = puzzle_task.train_batch(30, gen(), "cpu")
    P, answer = puzzle_task.P, batch[:, puzzle_task.P:]
    if puzzle_task.in_prompt:
        assert not given.any()
        start = puzzle_task.start(batch[:, :P])
    else:
        start = puzzle_task.start(batch[:, :P], answer.masked_fill(~given, puzzle_task.MASK))
    givens = puzzle_task.givens(start)
    assert ((givens == answer) | (givens < 0)).all() and puzzle_task.check(start, answer).all()
    assert torch.equal(puzzle_task.blanks(start), givens < 0)
    assert (givens >= 0).sum(dim=1).float().std() > 2  # the number of givens varies
    for g, a in list(zip(givens.tolist(), answer.tolist()))[:10]:
        assert solve(g, 9) == [a]


@pytest.mark.parametrize("fraction, low, high", [(0.0, 27, 29), (1.0, 23.5, 25)])
def test_the_fraction_of_minimal_puzzles(fraction, low, high, data_dir):
    """Minimal puzzles have about 24 givens, the others uniformly 20 to 34."""
    task = make_task(task_config("sudoku", board_size=9, data_dir=data_dir,
                                 minimal_fraction=fraction))
    _, given = task.train_batch(2000, gen(), "cpu")
    assert low < given.sum(dim=1).float().mean() < high


def test_symmetry_hash_is_invariant_and_sharp():
    """Equal for symmetric copies; different for different random boards."""
    boards = torch.tensor([random_board(9, random.Random(s)) for s in range(200)])
    base = symmetry_hash(boards)
    for s in range(5):
        moved = boards.gather(1, symmetry_cells(200, 9, gen(s), "cpu"))
        moved = torch.rand(200, 9, generator=gen(s)).argsort(dim=1).gather(1, moved)
        assert (symmetry_hash(moved) == base).all()
    assert len(set(base.tolist())) == 200


def test_train_and_test_share_no_puzzle_up_to_symmetry(puzzle_task, monkeypatch):
    """Of training data with symmetric copies of test boards exactly the copies are removed."""
    _, boards = puzzle_task.test_set(10)
    copies = boards.gather(1, symmetry_cells(10, 9, gen(), "cpu")).numpy().astype(np.uint8)
    real = puzzle_task._data
    own = real(0, 100)
    planted = {"boards": np.concatenate([own["boards"], copies]),
               "givens": np.concatenate([own["givens"], np.ones_like(copies, bool)])}
    monkeypatch.setattr(puzzle_task, "_data",
                        lambda seed, size: planted if seed == 0 else real(seed, size))
    monkeypatch.setattr(puzzle_task, "pool", None)
    puzzle_task.prepare("cpu")
    assert len(puzzle_task.pool[0]) == 100


def test_held_out_boards_are_not_the_training_ones(data_dir):
    """Generation has another stream; puzzles have the test puzzles with their givens."""
    task = make_task(task_config(board_size=9, train_size=50, data_dir=data_dir))
    tokens, given = task.held_out(20)
    own = {tuple(b) for b in generate(9, False, 0, 50)["boards"].tolist()}
    assert not given.any() and not own & {tuple(b) for b in tokens[:, 1:].tolist()}
    task = make_task(task_config("sudoku", board_size=9, data_dir=data_dir))
    tokens, given = task.held_out(5)
    start, answers = task.test_set(5)
    assert torch.equal(tokens[:, 1:], answers) and torch.equal(given, ~task.blanks(start))


def test_checker_against_the_mistakes(puzzle_task):
    """check() and mistakes() are written differently; they agree on valid boards and on changes."""
    starts, answers = puzzle_task.test_set(5)
    assert puzzle_task.check(starts, answers).all()
    assert not any(puzzle_task.mistakes(s, a) for s, a in zip(starts, answers))
    rng = random.Random(0)
    for _ in range(50):
        i, cell = rng.randrange(5), rng.randrange(81)
        answer = answers[i].clone()
        answer[cell] = (answer[cell] + rng.randrange(1, 9)) % 9
        assert not puzzle_task.check(starts[i:i + 1], answer[None])[0]
        assert puzzle_task.mistakes(starts[i], answer)
    swapped = (answers[:1] + 1) % 9  # a valid board that ignores the givens
    assert not puzzle_task.check(starts[:1], swapped)[0]
    assert "was given" in puzzle_task.mistakes(starts[0], swapped[0])[0]


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


def graph(task, start):
    """-> edges, start node, goal."""
    *flat, first, goal = start[:task.P].tolist()
    return list(zip(flat[0::2], flat[1::2])), first, goal


def test_star_graphs_against_breadth_first_search():
    """The answer is the path that a search finds; degrees and leaves are those of G(d, l)."""
    task = make_task(task_config("star", arms=3, path_len=4, labels=15))
    starts, answers = task.test_set(200)
    assert task.check(starts, answers).all()
    for s, answer in zip(starts, answers):
        edges, start, goal = graph(task, s)
        heads, nodes = [a for a, _ in edges], {n for e in edges for n in e}
        assert answer.tolist() == walk(edges, start, goal) and len(answer) == 4
        assert len(nodes) == 10 and heads.count(start) == 3
        assert len(nodes - set(heads)) == 3 and goal not in heads


def test_planning_graphs_against_breadth_first_search():
    """Two chains share one node; the distance is that of the search, and all 0..5 occur."""
    task = make_task(task_config("planning"))
    starts, answers = task.test_set(600)
    assert task.check(starts, answers).all()
    assert (task.distance(starts).bincount(minlength=6) > 60).all()
    for s, answer in zip(starts[:200], answers):
        edges, start, goal = graph(task, s)
        heads, tails = [a for a, _ in edges], [b for _, b in edges]
        path, nodes = walk(edges, start, goal), set(heads + tails)
        assert answer.tolist() == [t for e in zip(path, path[1:]) for t in e] and len(path) == 6
        assert len(nodes) == 11
        shared = [n for n in nodes if sum(n in e for e in edges) > 2
                  or heads.count(n) == 2 or tails.count(n) == 2]
        assert len(shared) == 1
        assert task.distance(s[None]).item() == len(walk(edges, shared[0], goal)) - 1


def test_any_valid_path_is_solved():
    """check() accepts a path that is not the reference (reasoning-gym#153), and no wrong one."""
    task = make_task(task_config("star", arms=2, path_len=3, labels=9))
    prompt = torch.tensor([[0, 1, 0, 2, 1, 3, 2, 3, 0, 3]])  # two ways from 0 to 3
    start = task.start(prompt)

    def check(*path):
        return task.check(start, torch.tensor([path])).item()

    assert check(0, 1, 3) and check(0, 2, 3)
    wrong = ((0, 1, 2), (1, 1, 3), (0, 3, 3), (0, 0, 3), (2, 1, 3))
    assert not any(check(*path) for path in wrong)
    for path in ((0, 1, 3), (0, 2, 3), *wrong):
        assert check(*path) == (not task.mistakes(start[0], torch.tensor(path)))


@pytest.mark.parametrize("name", ["star", "planning"])
def test_checker_and_mistakes_agree_on_paths(name):
    task = make_task(task_config(name))
    starts, answers = task.test_set(100)
    noise = torch.rand(answers.shape, generator=gen()) < 0.15
    other = torch.randint(task.K, answers.shape, generator=gen(1))
    answers = torch.where(noise, other, answers)
    valid = task.check(starts, answers)
    assert 0 < valid.sum() < 100
    assert valid.tolist() == [not task.mistakes(s, a) for s, a in zip(starts, answers)]


@pytest.mark.parametrize("name", ["star", "planning"])
def test_sets_of_graphs(name):
    """A longer test set begins with the shorter one; held-out graphs differ; a fixed train set."""
    task = make_task(task_config(name, train_size=7))
    short, long = task.test_set(5)[0], task.test_set(250)[0]
    assert torch.equal(long[:5], short)
    assert not (task.held_out(5)[0][:, :task.P] == short[:, :task.P]).all(dim=1).any()
    batch, given = task.train_batch(200, gen(), "cpu")
    assert not given.any() and len({tuple(r) for r in batch.tolist()}) == 7
    assert task.check(task.start(batch[:, :task.P]), batch[:, task.P:]).all()


# -- vocabulary and text --


@pytest.mark.parametrize("config", [
    task_config(), task_config(board_size=6), task_config("sudoku", board_size=9),
    task_config("star", labels=50), task_config("star", labels=7), task_config("planning")])
def test_encoding_is_tiktokens(config):
    """A symbol is one token; answer symbols come first, the special MASK and BOS last."""
    import tiktoken
    task = make_task(config)
    assert isinstance(task.encoding, tiktoken.Encoding) and task.encoding.n_vocab == task.V
    assert task.encoding.decode([task.MASK, task.BOS]) == "<mask><bos>"
    first = 1 if config.task.startswith("sudoku") else 0
    symbols = [task.encoding.decode([i]) for i in range(task.K)]
    assert symbols == [str(i + first) for i in range(task.K)]


@pytest.mark.parametrize("name", ["star", "planning"])
def test_path_text_round_trips(name):
    task = make_task(task_config(name))
    for start, answer in zip(*task.test_set(20)):
        text = task.format(start, answer)
        assert text.endswith("=" + task.format_answer(answer))
        assert parse(task, text) == (start.tolist(), answer.tolist())
        assert parse(task, text.partition("=")[0]) == (start.tolist(), None)


def test_sudoku_text_round_trips(puzzle_task):
    start, answer = parse(puzzle_task, LINE)
    assert puzzle_task.format(start, answer) == LINE
    assert puzzle_task.format_answer(answer) == LINE[82:]
    assert parse(puzzle_task, LINE.replace(".", "0").replace(" ", ",")) == (start, answer)
    assert parse(puzzle_task, PUZZLE) == (start, None)
    assert puzzle_task.reference(start) == (answer, None)
    assert puzzle_task.blanks(torch.tensor([start])).tolist() == [[c == "." for c in PUZZLE]]


@pytest.mark.parametrize("text, word", [
    ("z" + "." * 80, "'z'"), ("11" + "." * 79, "row 1 holds 1 twice"),
    (LINE.replace("534678", "543678"), "the solution contradicts itself: column 2 holds 4 twice"),
    ("1" + LINE[1:], r"the solution has 5 where the puzzle gives 1 \(row 1 column 1\)")])
def test_bad_sudoku_text(puzzle_task, text, word):
    with pytest.raises(BadInput, match=word):
        parse(puzzle_task, text)


GRAPH = "0,1|1,2|0,3|3,4"


@pytest.mark.parametrize("text, word", [
    (GRAPH, "no '/'"), ("0,1|1,2|0,3/0,2", "3 edges"), ("0,1|1,2|0,3|3,99/0,2", "99"),
    ("0,1|1,2|0,3|3/0,2", "edge '3'"), (f"{GRAPH}/0,9", "no path"),
    (f"{GRAPH}/0,2=0,1", "path '0,1'"), ("0,1|1,2|0,3|3,x/0,2", "3,x"),
    ("0,1|1,2|0,3|3,12/0,2", "12"), (f"{GRAPH}/0,2=2,1,0", "the answer is wrong: step 1: there is"),
    (f"{GRAPH}/0,2=0,3,4", "the answer is wrong: the path ends at 4, not at 2")])
def test_bad_star_text(text, word):
    with pytest.raises(BadInput, match=word):
        parse(make_task(task_config("star", labels=11)), text)


def test_reading_a_large_file_takes_seconds(puzzle_task):
    """0.4 ms a line at most."""
    began = time.process_time()
    assert len(puzzle_task.read(f"{LINE}\n" * 5000, "FILE")[0]) == 5000
    assert time.process_time() - began < 2


# -- cache --


def test_cache_is_used_and_damage_is_noticed(tmp_path, capsys):
    """An intact cache is read; a truncated, edited or outdated one is built again."""
    calls = []

    def build():
        calls.append(1)
        return {"x": np.arange(1000) ** 2}

    def get(**describe):
        return data.cached(tmp_path, "set", {"seed": 1, **describe}, build)["x"]

    assert np.array_equal(get(), get()) and len(calls) == 1
    file = tmp_path / "set.npz"
    whole = file.read_bytes()
    assert json.loads(whole.partition(b"\n")[0]).keys() == {"seed", "format", "sha256"}
    for damaged in (whole[:1000], whole[:-20] + b"x" + whole[-19:], b"", b"junk\n" + whole):
        file.write_bytes(damaged)
        assert np.array_equal(get(), np.arange(1000) ** 2)
        assert "building it again" in capsys.readouterr().err
    assert len(calls) == 5 and file.read_bytes() == whole
    get(seed=2)
    assert len(calls) == 6 and [f.name for f in tmp_path.iterdir()] == ["set.npz"]


def test_an_unwritable_or_unreadable_cache(tmp_path, capsys):
    """The data are built all the same; the folder's name is escaped on the terminal."""
    (tmp_path / "file").touch()
    (tmp_path / "set.npz").mkdir()
    for folder, words in (("/dev/null/x\x1b", "continuing without it"),
                          (tmp_path / "file", "continuing without it"),
                          (tmp_path, "cannot be read (Is a directory)")):
        assert data.cached(folder, "set", {}, lambda: {"x": np.ones(1)})["x"] == 1
        error = capsys.readouterr().err
        assert words in error and "\x1b" not in error
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "set.npz"]
