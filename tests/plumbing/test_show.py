"""sample.py from end to end, through main(argv): puzzle files, boards on screen, answer files."""
import json
from pathlib import Path

import pytest

import data.sudoku
import sample
from conftest import LINE, PUZZLE, SOLUTION
from data.files import EXAMPLE
from data.puzzles import TooHard
from plumbing.cli import run

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results/demo-dial/scdm-seed0.pt"  # sudoku-gen 6x6, trained
ROWS = [PUZZLE[i:i + 9] for i in range(0, 81, 9)]
SIX = "5.46.16......4..13315.2.16235.4.31.."
NO_SOLUTION = "12345678." + "." * 8 + "9" + "." * 63


@pytest.fixture
def call(tmp_path, tiny_checkpoints, capsys, monkeypatch):
    """-> call(checkpoint, *argv, text=None) -> exit code, stdout, lines of stderr, all printable.

    text: the content of a file, str or bytes, for --puzzles.
    """
    monkeypatch.chdir(tmp_path)

    def call(name, *argv, text=None):
        if text is not None:
            Path("p.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
            argv = (*argv, "--puzzles", "p.txt")
        checkpoint = DEMO if name == "demo" else tiny_checkpoints[name]
        code = run(sample.main, ["--ckpt", str(checkpoint), "--device", "cpu", *argv])
        out, error = capsys.readouterr()
        lines = [line for line in error.splitlines() if not line.startswith("device cpu, fp32")]
        assert all(line.isprintable() for line in lines) and "Traceback" not in error
        assert code == 0 or code == 2 and len(lines) == 1 and not out, (code, out, lines)
        return code, out, lines

    return call


@pytest.fixture
def refused(call):
    """-> refused(...) -> the one line on stderr of a call that ends with exit code 2."""
    def refused(*args, **kw):
        code, _, lines = call(*args, **kw)
        assert code == 2
        return lines[0]
    return refused


@pytest.fixture
def report(call):
    """-> report(...) -> the JSON report, lines of stderr."""
    def report(*args, **kw):
        code, out, lines = call(*args, "--json", **kw)
        assert code == 0, lines
        return json.loads(out), lines
    return report


@pytest.mark.parametrize("text, num, notes", [
    (f"id,quizzes,solutions,level\n1,{PUZZLE},{SOLUTION},easy\n2,{PUZZLE},,hard\n", 2,
     ["read column 'quizzes' as the puzzle and 'solutions' as the solution, ignored id, level"]),
    (b"\xef\xbb\xbf" + f"{PUZZLE}\r\n{LINE}\r\n".encode(), 2, []),
    (f"{PUZZLE}\n".encode("utf-16"), 1, []),
    ("\n".join(ROWS) + "\n\n" + "\n".join(ROWS) + "\n", 2,
     ["read 9 lines of 9 cells as a board"]),
    (PUZZLE.replace(".", "x"), 1, ["read 'x' as an empty cell"]),
    (f"# two\n{LINE}\n\n{LINE.replace(' ', ',')}\n", 2, []),
])
def test_files_are_solved(report, text, num, notes):
    """References are the solutions in the file, or those of the solver; notes are on stderr."""
    found, lines = report("sudoku9", text=text)
    assert (found["num"], found["references"], found["exact"]) == (num, num, 0)
    assert lines == notes and 0 < found["cell_acc"] < 1 and found["nfe"] == PUZZLE.count(".")


def test_a_model_of_boards_solves_puzzles_too(report, refused):
    """sudoku-gen 6x6 decodes greedily if puzzles are given."""
    found, lines = report("demo", text=f"{SIX}\n{EXAMPLE[6]}\n")
    assert found["num"] == found["references"] == 2 and found["temperature"] == 0
    assert found["solved"] == found["exact"] == 2 and not lines
    assert "this model was trained on 6x6 boards" in refused("demo", text=PUZZLE)


@pytest.mark.parametrize("text", ["", "  ", "," * 80, ",,,,,,", "\n\n"])
def test_no_puzzle(refused, text):
    """As a string and as a file."""
    for line in (refused("sudoku9", "--puzzle", text), refused("sudoku9", text=text)):
        assert line.endswith(f"a legal line: {PUZZLE}")


def test_a_full_puzzle_is_solved(report):
    found, _ = report("sudoku9", "--puzzle", SOLUTION)
    assert found["solved"] == found["exact"] == 1 and found["nfe"] == found["tokens"] == 0
    assert found["cell_acc"] == 1
    # beside others: it has no unknown cells, so it does not change cell_acc
    mixed, _ = report("sudoku9", text=f"{SOLUTION}\n{PUZZLE}\n")
    alone, _ = report("sudoku9", text=PUZZLE)
    assert mixed["cell_acc"] == alone["cell_acc"] < 0.5 and mixed["exact"] == 1


def test_the_first_num_of_a_file(refused, report):
    """Lines after them are not read; more than there are is a mistake."""
    rows, graph = "\n".join(ROWS), "1,2|2,3|1,4|4,5/1,3"
    text = f"{LINE}\n{LINE}\n{'7' * 81}\nhello\n"
    for name, num, content in (
            ("sudoku9", 2, text), ("sudoku9", 1, f"puzzle\n{PUZZLE}\n{PUZZLE[:5]}\n"),
            ("sudoku9", 1, f"{rows}\n\n{rows[:40]}"), ("star", 1, f"{graph}\nhello\n")):
        assert report(name, "--num", str(num), text=content)[0]["num"] == num
    for num, content, words in (
            (3, text, "p.txt line 3: the puzzle contradicts itself: row 1 holds 7 9"),
            (3, f"{LINE}\n{LINE}\n", "--num 3 is more than the 2 puzzles in p.txt"),
            (10**12, LINE, "'1000000000000' is not an integer from 1 to 1000000")):
        assert words in refused("sudoku9", "--num", str(num), text=content)


def test_several_answers_to_a_puzzle(call, refused, report):
    """They differ, at T = 1; pass@k needs one of them to be right."""
    found, _ = report("demo", "--puzzle", SIX, "--num", "4")
    assert found["num"] == found["references"] == 4 and found["temperature"] == 1
    assert found["pass@4"] is (found["solved"] > 0)
    three = ("sudoku9", "--puzzle", PUZZLE, "--num", "3")
    found, _ = report(*three)
    assert found["pass@3"] is False and found["distinct"] == 3
    assert report(*three, "--temperature", "0")[0]["distinct"] == 1
    assert ", 3 different answers, pass@3: no" in call(*three)[1]
    assert "--puzzle holds 2 puzzles; give a file with --puzzles" in refused(
        "sudoku9", "--puzzle", f"{PUZZLE}\n{PUZZLE}")
    assert "were both given" in refused("sudoku9", "--puzzle", PUZZLE, text=PUZZLE)


def test_puzzles_without_a_reference(report, refused, monkeypatch):
    """Several solutions: scored by the rules alone, and reported. No solution: refused."""
    found, lines = report("sudoku9", text=f"{'.' * 81}\n{LINE}\n{'.' * 81}\n")
    assert found["num"] == 3 and found["references"] == 1
    assert lines == ["2 of 3 without a reference (it has several solutions; "
                     "first: p.txt line 1): scored by the rules alone"]
    assert found["cell_acc"] == report("sudoku9", text=LINE)[0]["cell_acc"]
    assert "p.txt line 3: the puzzle has no solution" in refused(
        "sudoku9", text=f"# first\n{LINE}\n{NO_SOLUTION}\n")

    def give_up(*args, **kw):
        raise TooHard

    monkeypatch.setattr(data.sudoku, "solve", give_up)
    found, lines = report("sudoku9", "--puzzle", PUZZLE)
    assert found["references"] == 0 and found["exact"] is None and found["cell_acc"] is None
    assert "1 of 1 without a reference (the search for further solutions gave up" in lines[0]


def test_references_of_graphs_are_checked(refused, report):
    """A reference must be a path along the edges; without one any path is valid."""
    graph = "1,2|2,3|1,4|4,5/1,3"
    found, lines = report("star", text=f"{graph}=1,2,3\n{graph}\n")
    assert found["references"] == 1
    assert "1 of 2 without a reference (any path along the edges counts; first: p.txt line 2)" \
        in lines[0]
    for wrong, words in (("3,2,1", "the answer is wrong: step 1: there is no edge 3,2"),
                         ("1,4,5", "the answer is wrong: the path ends at 5, not at 3"),
                         ("1,2", "path '1,2' is not 3 nodes"), ("1,2,9", "does not know")):
        line = refused("star", text=f"{graph}=1,2,3\n{graph}={wrong}\n")
        assert "p.txt line 2: " in line and words in line


def test_an_objective_that_cannot_see_givens(refused, report):
    """Next-token prediction with givens in place is refused; it sees givens of a prompt."""
    assert "cannot see givens" in refused("ar", "--puzzle", EXAMPLE[4])
    assert report("prompt9", text=LINE)[0]["references"] == 1
    assert report("prompt9", "--num", "2")[0]["num"] == 2


def test_escape_characters_stay_out_of_the_terminal(call, refused):
    """Those of puzzle files, CSV headers, strings and paths are shown as \\x1b."""
    esc = "\x1b[31m"
    for text in (f"53{esc}..7\n", f"id,puz{esc}zle,name\n1,2,3\n",
                 f"puzzle\n{PUZZLE[:-1]}\x1b\n", f"{PUZZLE} {SOLUTION[:-1]}\x1b\n"):
        assert r"\x1b" in refused("sudoku9", text=text)
    for text, words in ((f"puz{esc}zle,puzzle\n1,{PUZZLE}\n", r"ignored puz\x1b[31mzle"),
                        (f"{PUZZLE} {esc}\n", r"\x1b[31m")):
        code, _, lines = call("sudoku9", "--json", text=text)
        assert code == 0 and words in lines[0]
    Path(f"a{esc}").write_text("hello")
    for argv in (("--puzzle", f"1{esc}"), ("--puzzles", f"a{esc}"), ("--puzzles", f"b{esc}"),
                 ("--answers", f"none{esc}/", "--num", "1"), ("--order", esc), ("--num", esc),
                 (f"--{esc}", "1"), ("--latents", esc), ("--device", esc)):
        assert r"\x1b" in refused("sudoku9", *argv), argv
    assert r"edge '1,\x1b[31m' is not 2 nodes" in refused(
        "star", "--puzzle", f"1,{esc}|2,3|1,4|4,5/1,3")


def test_answers_are_written(refused, report, tmp_path):
    """A line per sample: puzzle, answer, solved, confidence."""
    found, _ = report("demo", "--answers", "new/a.tsv", text=f"{SIX}\n{EXAMPLE[6]}\n")
    head, *lines = Path("new/a.tsv").read_text(encoding="utf-8").splitlines()
    assert head == "puzzle\tanswer\tsolved\tconfidence"
    fields = [line.split("\t") for line in lines]
    assert [f[0] for f in fields] == [SIX, EXAMPLE[6]]
    assert sum(int(f[2]) for f in fields) == found["solved"]
    for puzzle, answer, solved, confidence in fields:
        fits = all(p in (".", a) for p, a in zip(puzzle, answer))
        assert fits and len(answer) == 36 and 0 < float(confidence) <= 1
    report("star", "--answers", "s.tsv", "--num", "2")
    for line in Path("s.tsv").read_text().splitlines()[1:]:
        assert line.split("\t")[0].count("|") == 3 and line.split("\t")[1].count(",") == 2
    report("demo", "--answers", "g.tsv", "--num", "2")
    assert [line.split("\t")[0] for line in Path("g.tsv").read_text().splitlines()[1:]] == ["", ""]
    for bad, words in ((".", "cannot write .: it is a directory"), ("", "'' is not a path"),
                       ("/dev/null/x", "cannot write /dev/null/x: File exists"),
                       ("new/", "it is a directory")):
        assert words in refused("sudoku9", "--num", "1", "--json", "--answers", bad)
    assert not list(tmp_path.glob("**/*.tmp"))


def test_what_is_printed(call):
    _, text, _ = call("sudoku9", "--puzzle", PUZZLE, "--color", "always")
    assert text.count("step ") == PUZZLE.count(".") and "solved 0/1" in text
    assert "\033[32m" in text and "\033[31m" in text and "mistakes: " in text
    _, text, _ = call("scdm", "--num", "7")
    assert text.count("sample ") == 5 and "\033" not in text  # not a terminal: no colour
    _, text, _ = call("star", "--window", "2")
    assert "=" in text
    assert "order confidence over 35 candidates, latents 1," in call(
        "demo", "--order", "confidence", "--candidates", "35", "--latents", "1")[1]
    assert "order random, latents all" in call("demo")[1]


def test_the_two_checkers_must_agree(call, monkeypatch):
    """`solved` and the mistakes in words come from separate code."""
    monkeypatch.setattr(data.sudoku.Sudoku, "mistakes", lambda *args: [])
    with pytest.raises(RuntimeError, match="the checkers of task sudoku disagree about sample 1"):
        call("sudoku9", "--puzzle", PUZZLE)


@pytest.mark.parametrize("flags", [["--decoder", "eb"], ["--latents", "0"], ["--restarts", "2"],
                                   ["--puzzles", "p.txt"], ["--temperature", "0"]])
def test_a_bound_decodes_nothing(flags, capsys):
    assert run(sample.main, ["--ckpt", "none.pt", "--bound", *flags]) == 2
    assert f"--bound decodes nothing, so {flags[0]} has no meaning" in capsys.readouterr().err


def test_a_bound_is_printed(call, report):
    line = call("scdm", "--bound", "--num", "8")[1]
    assert line.startswith("bound on -log p: 1.3") and "nats per board lower\n" in line
    found, _ = report("star", "--bound", "--num", "8")
    assert found["exact"] and found["floor"] is None and 2 < found["nats_per_cell"] < 2.5


def test_a_restart_shows_the_board_that_it_ends_with(call):
    """The steps are those of the last attempt, not of a failed one."""
    for seed in range(40):
        flags = ("--latents", "0", "--seed", str(seed), "--temperature", "1.5")
        failed = call("demo", *flags)[1]
        if "mistakes:" in failed:
            break
    code, out, _ = call("demo", *flags, "--restarts", "60")
    assert "\nvalid\n" in out and "solved 1/1" in out
    board = out[out.index("step 36 of 36"):out.index("valid")]
    assert out.count("step 36 of 36") == 1 and board not in failed
