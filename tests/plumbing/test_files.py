"""Puzzle files: every format that is accepted, every refusal, and that nothing ends in a traceback.

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
RULE = "+-------+-------+-------+"


def boxed(row):
    """"53..7...." -> "| 5 3 . | . 7 . | . . . |"."""
    return "| " + " | ".join(" ".join(row[i:i + 3]) for i in (0, 3, 6)) + " |"


def banded(rows, gap):
    """Nine lines with the gap before each band but the first."""
    return "\n".join(rows[:3] + [gap] + rows[3:6] + [gap] + rows[6:])


def read(text, N=9, name="FILE"):
    return files.read_sudoku(text, name, N)


def refused(text, N=9, name="FILE"):
    """The message of the refusal; it must be one printable line."""
    with pytest.raises(BadInput) as caught:
        read(text, N, name)
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- accepted --


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
    "rules": banded(ROWS, "---+---+---"),
    "borders": f"{RULE}\n{banded([boxed(row) for row in ROWS], RULE)}\n{RULE}",
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
            continue  # bands are set apart, so boards must be too
        entries, _ = read(text + gap + text + "\n")
        assert [(e.puzzle, e.solution) for e in entries] == [(P, None)] * 2


@pytest.mark.parametrize("line, notes", [
    (f"{P} {S}", []),
    (f"{P},{S}", []),
    (f"{P}\t{S}", []),
    (f"{P} {S} 1.2 easy", ["ignored what stands beside puzzles, like '1.2'"]),
    (f"0000183b305c {P} {S}", ["ignored what stands beside puzzles, like '0000183b305c'"]),
    (f"{P.replace('.', '*')} {S}", ["took '*' for an empty cell"]),
    (f"{P.replace('.', 'x', 3).replace('.', '_')} {S}",
     ["took '_' for an empty cell", "took 'x' for an empty cell"]),
])
def test_puzzle_and_solution_on_a_line(line, notes):
    """The solution follows a blank or comma; other fields and unusual marks are noted once."""
    assert read(f"{line}\n{line}\n") == ([(P, S, "FILE line 1"), (P, S, "FILE line 2")], notes)


def test_all_marks_of_an_empty_cell():
    for mark in ".0*_-xX?":
        assert read(P.replace(".", mark))[0][0].puzzle == P


@pytest.mark.parametrize("N", [4, 6, 9])
def test_the_example_of_a_message_is_legal(N):
    assert read(files.EXAMPLE[N], N)[0][0].puzzle == files.EXAMPLE[N]


def test_a_6x6_board_has_bands_of_two_rows():
    rows = [files.EXAMPLE[6][i:i + 6] for i in range(0, 36, 6)]
    lines = rows[:2] + ["---+---"] + rows[2:4] + ["---+---"] + rows[4:]
    assert read("\n".join(lines), 6)[0][0].puzzle == files.EXAMPLE[6]


def test_a_full_board_is_a_puzzle_too():
    assert read(S)[0][0] == (S, None, "FILE line 1")


def test_places():
    """The first line of a board; the value of an option has no line number."""
    text = f"# by hand\n\n{P}\n" + LINES["borders"] + f"\n; next\n{P} {S}"
    assert [e.place for e in read(text)[0]] == ["FILE line 3", "FILE line 5", "FILE line 18"]
    assert read(P, name="--puzzle")[0][0].place == "--puzzle"
    assert read(LINES["rows"], name="--puzzle")[0][0].place == "--puzzle line 1"


@pytest.mark.parametrize("text, entries, note", [
    (f"quizzes,solutions\n{P},{S}\n{P},{S}\n", [(P, S, "FILE line 2"), (P, S, "FILE line 3")],
     "took column 'quizzes' for the puzzle and 'solutions' for the solution"),
    (f"# set\nid,Puzzle,solution,clues,difficulty\n\n#7,{P},{S},30,2.2", [(P, S, "FILE line 4")],
     "took column 'puzzle' for the puzzle and 'solution' for the solution, "
     "ignored id, clues, difficulty"),
    (f'source;question;answer\n"a;b";"{P}";"{S}"\n', [(P, S, "FILE line 2")],
     "took column 'question' for the puzzle and 'answer' for the solution, ignored source"),
    (f"sudoku\tname\n{P}\tsay \"x\"\n", [(P, None, "FILE line 2")],
     "took column 'sudoku' for the puzzle, ignored name"),
    ('puzzle\n"' + "\n".join(ROWS) + f'"\n# two\n{P}', [(P, None, "FILE line 2"),
     (P, None, "FILE line 12")], "took column 'puzzle' for the puzzle"),
    (f"puzzle,solution\n{P},\n", [(P, None, "FILE line 2")],
     "took column 'puzzle' for the puzzle and 'solution' for the solution"),
])
def test_csv(text, entries, note):
    """Columns are found by name, behind , ; or a tab; fields may be quoted and hold newlines."""
    assert read(text) == (entries, [note])


# -- refused --


@pytest.mark.parametrize("text, N, message", [
    ("", 9, "FILE: holds no puzzle"),
    (" \n\n# nothing\n", 9, "FILE: holds no puzzle"),
    (P[:80], 9, "FILE line 1: 80 characters where 81 are needed"),
    (P + S, 9, "FILE line 1: 162 characters where 81 are needed"),
    (f"{P}\n{P} {S[:80]}", 9, "FILE line 2: 80 characters where 81 are needed"),
    (" ".join(P[:80]), 9, "FILE line 1: 80 characters where 81 are needed"),
    (P, 6, "holds a board of 81 cells (9x9); this model was trained on 6x6"),
    ("\n".join(ROWS), 4, "holds a row of 9 cells; this model was trained on 4x4"),
    ("7" + files.EXAMPLE[6][1:], 6, "'7' is no cell; legal: 1 to 6, and . where it is empty"),
    (P.replace("7", "²"), 9, "'²' is no cell"),
    (P.replace("7", "\0"), 9, r"'\x00' is no cell"),
    (P.replace("7", "\x1b"), 9, r"'\x1b' is no cell"),
    (f"{P} {S.replace('7', 'a')}", 9, "'a' is no cell"),
    (f"{S} {P}", 9, "the solution has an empty cell at row 1 column 3"),
    (f"{P} {S} {S}", 9, "3 boards on a line"),
    (f"{P}/{S}", 9, "neither a board nor a row"),
    ("hello", 9, "'hello' is no puzzle"),
    ("," * 80, 9, "nothing between two commas"),
    (",", 9, "',' is no puzzle"),
    ("53,,7....", 9, "nothing between two commas"),
    ("5 3 .. 7....", 9, "neither a board nor a row"),
    ("-" * 81, 9, "this may be a rule or an empty board"),
    ("\n".join(ROWS[:8]), 9, "FILE line 1: the board that begins here ends after 8 of 9 rows"),
    ("\n".join(ROWS[:8] + ["", *ROWS]), 9, "FILE line 10: a blank line or rule is missing"),
    ("\n".join(ROWS[:6] + ["", *ROWS, "", *ROWS[:3]]), 9, "FILE line 8: a blank line or rule is"),
    ("\n".join(ROWS[:2] + ["---", *ROWS[2:]]), 9, "FILE line 4: a blank line or rule is missing"),
    ("\n".join(ROWS[:3] + [P]), 9, "FILE line 4: a whole board after 3 of the 9 rows"),
    ("\n".join(ROWS).replace(".", "-"), 9, "among rows a - draws rules; write ."),
    (f"id,board\n1,{P}", 9, "'id,board' names no puzzle column; legal names: puzzle, puzz"),
    (f"puzzle,quiz\n{P},{P}", 9, "the columns 'puzzle' and 'quiz' mean the same"),
    (f"puzzle,solution\n{P}\n", 9, "FILE line 2: 1 fields where the header names 2"),
    (f"puzzle,solution\n{P},{P}", 9, "FILE line 2: the solution has an empty cell"),
    (f"puzzle,solution\n{P},{S}\n,,\n", 9, "FILE line 3: 3 fields"),
    (f"puzzle\n{ROWS[0]}\n", 9, "FILE line 2: 9 characters where 81 are needed"),
    (f'puzzle,id\n{P},1\n{P},"2\n', 9, "FILE line 3: broken CSV"),
    (f'puzzle\tid\n"{P}"1\t2\n', 9, r"FILE line 2: broken CSV ('\t' expected"),
])
def test_refusals(text, N, message):
    """Each names the place and what is wrong, and ends with a line that can be copied."""
    said = refused(text, N)
    assert message in said and said.startswith("FILE")
    assert said.endswith(f"; a legal line: {files.EXAMPLE[N]}")


def test_foreign_text_in_messages_is_printable():
    """Of the file and of its name."""
    assert r"'he\x1b[31mllo'" in refused("he\x1b[31mllo")
    assert refused("", name="a\nb").startswith(r"a\nb: ")
    assert files.printable("a\x1b\x9b\u202e\u2066b\t") == r"a\x1b\x9b\u202e\u2066b\t"
    assert files.printable("é ²") == "é ²"
    assert files.printable("x" * 60) == "x" * 60
    assert files.printable("x" * 10**6) == "x" * 57 + "..."


# -- files and lines --


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


@pytest.mark.parametrize("content, message", [
    (b"\x1f\x8b\x08", "byte 2 is not UTF-8 text"),
    (b"\xff\xfe\x00", "not UTF-16 text"),
    (b"1\x002", "it is binary"),
])
def test_read_text_refuses_what_is_no_text(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        files.read_text(str(tmp_path / "p.txt"))


def test_read_text_refuses_what_is_no_file(tmp_path, monkeypatch):
    """Missing, a directory, a pipe (without waiting for its writer), a device, too large."""
    with pytest.raises(BadInput, match="No such file"):
        files.read_text(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="is a directory"):
        files.read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", os.devnull):
        with pytest.raises(BadInput, match="a pipe or a device"):
            files.read_text(file)
    monkeypatch.setattr(files, "LARGEST_FILE", 3)
    (tmp_path / "large").write_text("1234")
    with pytest.raises(BadInput, match="larger than"):
        files.read_text(tmp_path / "large")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_read_text_without_permission(tmp_path):
    (tmp_path / "p.txt").touch(mode=0)
    with pytest.raises(BadInput, match="Permission denied"):
        files.read_text(tmp_path / "p.txt")


def test_data_lines():
    """Blank lines and comments go, the numbers stay."""
    text = "# a\n 1 # b\n\n; c\n% d\n// e\n2#3\n"
    assert files.data_lines(text) == [(2, "1"), (7, "2#3")]
    assert files.data_lines(text, trailing=False) == [(2, "1 # b"), (7, "2#3")]


def test_read_paths():
    """Graph lines come as they are."""
    line = "1,2|2,3/1,3=1,2,3"
    assert files.read_paths(f"# g\n{line}\n\n {line}\n", "F") == [(line, "F line 2"),
                                                                  (line, "F line 4")]
    assert files.read_paths(line, "--puzzle") == [(line, "--puzzle")]
    with pytest.raises(BadInput, match="F holds no puzzle; a legal line: 1,2"):
        files.read_paths("\n# g\n", "F")


# -- fuzz --


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
