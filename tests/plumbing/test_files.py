"""Puzzle files: every format that is accepted, every refusal, and no traceback.

    N board side   P a puzzle, S its solution, both 9x9
"""
import os
import random
import re

import pytest

from data import files
from plumbing.cli import BadInput

P = files.EXAMPLE[9]
S = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
ROWS = [P[i:i + 9] for i in range(0, 81, 9)]
BORDER = "+-------+-------+-------+"


def boxed(row):
    """"53..7...." -> "| 5 3 . | . 7 . | . . . |"."""
    return "| " + " | ".join(" ".join(row[i:i + 3]) for i in (0, 3, 6)) + " |"


def banded(rows, gap):
    """Nine lines with the gap before each band but the first."""
    return "\n".join(rows[:3] + [gap] + rows[3:6] + [gap] + rows[6:])


def read(text, N=9, name="FILE"):
    return files.read_sudoku(text, name, N)


ONE_LINE = {  # text of one puzzle without a solution, in one line
    "plain": P,
    "zeros": P.replace(".", "0"),
    "spaced": " ".join(P),
    "commas": ",".join(P),
    "commas and spaces": ", ".join(P),
    "rows spaced": " ".join(ROWS),
    "rows with commas": ",".join(ROWS),
    "rows with slashes": "/".join(ROWS),
    "with a comment": P + "  # easy",
}
LINES = {  # over nine lines
    "rows": "\n".join(ROWS),
    "rows spaced": "\n".join(" ".join(row) for row in ROWS),
    "rows with commas": "\n".join(",".join(row) for row in ROWS),
    "bands apart": banded(ROWS, ""),
    "boxes apart": "\n".join(f"{r[:3]} {r[3:6]} {r[6:]}" for r in ROWS),
    "boxes with |": "\n".join(f"{r[:3]}|{r[3:6]}|{r[6:]}" for r in ROWS),
    "separators": banded(ROWS, "---+---+---"),
    "borders": f"{BORDER}\n{banded([boxed(row) for row in ROWS], BORDER)}\n{BORDER}",
    "stars at corners": f"*---*\n{banded([f'|{row}|' for row in ROWS], '|---+---|')}\n*---*",
    "zeros, comments": "# one\n" + "\n".join(ROWS[:4] + ["% two"] + ROWS[4:]).replace(".", "0"),
}


@pytest.mark.parametrize("text", [*ONE_LINE.values(), *LINES.values()],
                         ids=[*ONE_LINE, *(f"lines, {kind}" for kind in LINES)])
def test_a_board_in_every_arrangement(text):
    """Once, and twice in a file, with and without a blank line between."""
    entries, _ = read(text)
    assert [(e.puzzle, e.solution) for e in entries] == [(P, None)]
    for gap in ("\n", "\n\n"):
        if "\n\n" in text and gap == "\n":
            continue  # there are gaps between bands, so there must be one between boards
        entries, _ = read(text + gap + text + "\n")
        assert [(e.puzzle, e.solution) for e in entries] == [(P, None)] * 2


@pytest.mark.parametrize("line, notes", [
    (f"{P} {S}", []),
    (f"{P},{S}", []),
    (f"{P}\t{S}", []),
    (f"{P} {S} 1.2 easy", ["ignored other fields, for example '1.2'"]),
    (f"0000183b305c {P} {S}", ["ignored other fields, for example '0000183b305c'"]),
    (f"{P.replace('.', '*')} {S}", ["read '*' as an empty cell"]),
    (f"{P.replace('.', 'x', 3).replace('.', '_')} {S}",
     ["read '_' as an empty cell", "read 'x' as an empty cell"]),
])
def test_puzzle_and_solution_on_a_line(line, notes):
    """The solution follows a blank or comma; other fields and unusual marks are noted once."""
    assert read(f"{line}\n{line}\n") == ([(P, S, "FILE line 1"), (P, S, "FILE line 2")], notes)


SIX = [files.EXAMPLE[6][i:i + 6] for i in range(0, 36, 6)]


@pytest.mark.parametrize("text, N, puzzle", [
    *((P.replace(".", mark), 9, P) for mark in ".0*_-xX?"),
    *((files.EXAMPLE[N], N, files.EXAMPLE[N]) for N in (4, 6, 9)), (S, 9, S),
    ("\n".join([*SIX[:2], "---+---", *SIX[2:4], "---+---", *SIX[4:]]), 6, files.EXAMPLE[6])])
def test_other_legal_boards(text, N, puzzle):
    """All marks of an empty cell; the examples of messages; a full board; bands of two rows."""
    assert [(e.puzzle, e.solution) for e in read(text, N)[0]] == [(puzzle, None)]


def test_places():
    """The first line of a board; the value of an option has no line number."""
    text = f"# by hand\n\n{P}\n" + LINES["borders"] + f"\n; next\n{P} {S}"
    assert [e.place for e in read(text)[0]] == ["FILE line 3", "FILE line 5", "FILE line 18"]
    assert read(P, name="--puzzle")[0][0].place == "--puzzle"
    assert read(LINES["rows"], name="--puzzle")[0][0].place == "--puzzle line 1"


@pytest.mark.parametrize("text, entries, note", [
    (f"quizzes,solutions\n{P},{S}\n{P},{S}\n", [(P, S, "FILE line 2"), (P, S, "FILE line 3")],
     "read column 'quizzes' as the puzzle and 'solutions' as the solution"),
    (f"# set\nid,Puzzle,solution,clues,difficulty\n\n#7,{P},{S},30,2.2", [(P, S, "FILE line 4")],
     "read column 'puzzle' as the puzzle and 'solution' as the solution, "
     "ignored id, clues, difficulty"),
    (f'source;question;answer\n"a;b";"{P}";"{S}"\n', [(P, S, "FILE line 2")],
     "read column 'question' as the puzzle and 'answer' as the solution, ignored source"),
    (f"sudoku\tname\n{P}\tsay \"x\"\n", [(P, None, "FILE line 2")],
     "read column 'sudoku' as the puzzle, ignored name"),
    ('puzzle\n"' + "\n".join(ROWS) + f'"\n# two\n{P}', [(P, None, "FILE line 2"),
     (P, None, "FILE line 12")], "read column 'puzzle' as the puzzle"),
    (f"puzzle,solution\n{P},\n", [(P, None, "FILE line 2")],
     "read column 'puzzle' as the puzzle and 'solution' as the solution"),
])
def test_csv(text, entries, note):
    """Columns have names, separated by , ; or tab; fields may be quoted and contain newlines."""
    assert read(text) == (entries, [note])


@pytest.mark.parametrize("text, N, message", [
    ("", 9, "FILE: holds no puzzle"),
    (" \n\n# nothing\n", 9, "FILE: holds no puzzle"),
    (P[:80], 9, "FILE line 1: 80 characters where 81 are needed"),
    (f"{P}\n{P} {S[:80]}", 9, "FILE line 2: 80 characters where 81 are needed"),
    (P, 6, "81 characters where 36 are needed; this model was trained on 6x6 boards"),
    ("\n".join(ROWS), 4, "9 characters where 16 are needed; this model was trained on 4x4"),
    ("7" + files.EXAMPLE[6][1:], 6, "'7' is not a cell; legal: 1 to 6, and . if it is empty"),
    (P.replace("7", "²"), 9, "'²' is not a cell"),
    (P.replace("7", "\x1b"), 9, r"'\x1b' is not a cell"),
    (f"{S} {P}", 9, "the solution has an empty cell at row 1 column 3"),
    (f"{P} {S} {S}", 9, "3 boards on a line"),
    (f"{P}/{S}", 9, "neither a board nor a row"),
    ("hello", 9, "'hello' is not a puzzle"),
    ("he\x1b[31mllo", 9, r"'he\x1b[31mllo' is not a puzzle"),
    ("," * 80, 9, "nothing between two commas"),
    ("5 3 .. 7....", 9, "neither a board nor a row"),
    ("-" * 81, 9, "this may be a separator line or an empty board"),
    ("\n".join(ROWS[:8]), 9, "FILE line 1: the board that begins here ends after 8 of 9 rows"),
    ("\n".join(ROWS[:8] + ["", *ROWS]), 9, "FILE line 10: after 8 rows of a board a blank"),
    ("\n".join(ROWS[:6] + ["", *ROWS, "", *ROWS[:3]]), 9, "FILE line 8: after 6 rows of a board"),
    ("\n".join(ROWS[:2] + ["---", *ROWS[2:]]), 9, "FILE line 4: after 2 rows of a board a blank"),
    ("\n".join(ROWS[:3] + [P]), 9, "FILE line 4: a whole board, but the board above has 3 of 9"),
    ("\n".join(ROWS).replace(".", "-"), 9, "between rows, - is a separator; write ."),
    (f"id,board\n1,{P}", 9, "'id,board' names no puzzle column; legal names: puzzle, puzz"),
    (f"puzzle,quiz\n{P},{P}", 9, "the columns 'puzzle' and 'quiz' mean the same"),
    (f"puzzle,solution\n{P}\n", 9, "FILE line 2: 1 fields where the header names 2"),
    (f"puzzle,solution\n{P},{S}\n,,\n", 9, "FILE line 3: 3 fields"),
    (f"puzzle\n{ROWS[0]}\n", 9, "FILE line 2: 9 characters where 81 are needed"),
    (f'puzzle,id\n{P},1\n{P},"2\n', 9, "FILE line 3: broken CSV"),
    (f'puzzle\tid\n"{P}"1\t2\n', 9, r"FILE line 2: broken CSV ('\t' expected"),
])
def test_refusals(text, N, message):
    """Each names the place and the mistake, and ends with a line that can be copied."""
    with pytest.raises(BadInput) as caught:
        read(text, N)
    error = str(caught.value)
    assert message in error and error.startswith("FILE") and error.isprintable()
    assert error.endswith(f"; a legal line: {files.EXAMPLE[N]}")


@pytest.mark.parametrize("content", [
    "é1\n2\n3".encode(),
    b"\xef\xbb\xbf\xc3\xa91\r\n2\r\n3",
    b"\xc3\xa91\r2\r3",
    "\ufeffé1\n2\n3".encode("utf-16-le"),
    "\ufeffé1\r\n2\n3".encode("utf-16-be"),
])
def test_read_text_encodings_and_newlines(tmp_path, content):
    (tmp_path / "p.txt").write_bytes(content)
    assert files.read_text(tmp_path / "p.txt") == "é1\n2\n3"


def test_files_that_are_not_text(tmp_path, monkeypatch):
    """Compressed, binary, missing, a directory, a pipe (without a writer), a device, too large."""
    for name, content in (("gz", b"\x1f\x8b\x08"), ("half", b"\xff\xfe\x00"), ("nul", b"1\x002"),
                          ("large", b"1234")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "LARGEST_FILE", 3)
    for name, message in (("gz", "byte 2 is not UTF-8 text"), ("half", "not UTF-16 text"),
                          ("nul", "it is binary"), ("none.txt", "No such file"),
                          ("", "is a directory"), ("pipe", "a pipe or a device"),
                          (os.devnull, "a pipe or a device"), ("large", "larger than")):
        with pytest.raises(BadInput, match=message):
            files.read_text(tmp_path / name)


def test_read_paths():
    """Graph lines are not changed; lines of any kind of comment are skipped."""
    line = "1,2|2,3/1,3=1,2,3"
    assert files.read_paths(f"# g\n{line}\n\n {line} # c\n; a\n% b\n// c\n", "F") == [
        (line, "F line 2"), (f"{line} # c", "F line 4")]
    assert files.read_paths(line, "--puzzle") == [(line, "--puzzle")]
    with pytest.raises(BadInput, match="F holds no puzzle; a legal line: 1,2"):
        files.read_paths("\n# g\n", "F")


def mutated(text, rng):
    """A few characters taken out, put in or exchanged, or a piece repeated or cut."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.choice((0, 1, 1, 5, 100)))
        character = rng.choice("17.0,;|-/#\"\n\r\t\0 ²aé")
        text = text[:i] + rng.choice(("", text[i:j] * 2, character)) + text[j:]
    return text


def test_fuzz_ends_in_boards_or_one_line():
    """Mutated good files and random bytes: boards of legal cells, or a BadInput."""
    rng = random.Random(0)
    good = [*ONE_LINE.values(), *LINES.values(), f"{P} {S} 1.2\n{P}",
            f'puzzle,solution\n"{P}",{S}\n{P},', files.EXAMPLE[4], files.EXAMPLE[6]]
    accepted = 0
    for _ in range(3000):
        N = rng.choice((4, 6, 9, 9, 9))
        text = mutated(rng.choice(good), rng)
        if rng.random() < 0.2:
            text = rng.randbytes(rng.randrange(200)).decode("latin-1")
        try:
            entries, notes = read(text, N)
        except BadInput as error:
            assert str(error).isprintable()
            continue
        accepted += 1
        for puzzle, solution, _ in entries:
            assert re.fullmatch(f"[1-{N}.]{{{N * N}}}", puzzle)
            assert solution is None or re.fullmatch(f"[1-{N}]{{{N * N}}}", solution)
        assert all(note.isprintable() for note in notes)
    assert 100 < accepted < 2000
