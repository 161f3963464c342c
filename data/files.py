"""Puzzle files of users: text of a file, Sudoku boards in the common formats, lines of graphs.

    N board side (4, 6 or 9)   A = N*N cells of a board, row by row

A text is accepted if it can be read in exactly one way; `notes` say how it was read. Everything
else raises a BadInput: one line that ends with an example of a legal line. This file does not check
whether a board follows the rules or has one solution.
"""
import csv
import os
import re
import stat
from itertools import islice
from typing import NamedTuple

from errors import BadInput, printable

LARGEST_FILE = 200_000_000  # bytes
BAND = {4: 2, 6: 2, 9: 3}  # rows of a box: only after so many rows may a gap follow
EXAMPLE = {
    4: "...2.....3...43.",
    6: "5...42...5..4.3......2..641.........",
    9: "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
}
GRAPH_EXAMPLE = "1,2|2,3/1,3=1,2,3"

EMPTY = ".0*_-xX?"  # marks of an empty cell
UNUSUAL = set(EMPTY) - set(".0")  # reported in a note
LEGAL = {N: set("123456789"[:N] + EMPTY) for N in BAND}
CELLS = LEGAL[9]  # characters that look like a cell of any board
TO_DOT = str.maketrans(dict.fromkeys(EMPTY, "."))
TO_SPACE = str.maketrans(",|/", "   ")  # separators of cells or rows

PUZZLE_NAMES = ("puzzle", "puzzles", "quiz", "quizzes", "question", "sudoku")
SOLUTION_NAMES = ("solution", "solutions", "answer", "answers")


class Entry(NamedTuple):
    puzzle: str  # A characters, 1 to N and . where the cell is empty
    solution: str | None  # A characters, 1 to N
    place: str  # "FILE line 7", for messages


# -- text --


def read_text(file):
    """The text of a file in UTF-8 or UTF-16 (with a BOM), with "\\n" for every newline.

    Raises BadInput if the file is missing, unreadable, not a regular file, too large or not text.
    """
    name = printable(file, limit=200)
    try:
        status = os.stat(file)  # before opening: opening a pipe would wait for its writer
        if stat.S_ISDIR(status.st_mode):
            raise BadInput(f"cannot read {name}: it is a directory; give a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"cannot read {name}: it is a pipe or a device; save its text in a file")
        with open(file, "rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror}; give a text file") from None
    if len(content) > LARGEST_FILE:
        megabytes = LARGEST_FILE // 1_000_000
        raise BadInput(f"cannot read {name}: it is larger than {megabytes} MB; split it")
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} is not UTF-{16 if utf16 else 8} text"
        raise BadInput(f"cannot read {name}: {what}; unpack it or save it as UTF-8") from None
    if "\0" in text:
        raise BadInput(f"cannot read {name}: it is binary (contains NUL); give a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_comment(line, trailing=True):
    """The line stripped, "" if blank or a comment. trailing: " #" begins a comment, too."""
    line = line.strip()
    if line.startswith(("#", ";", "%", "//")):
        return ""
    if trailing and "#" in line:
        return re.split(r"\s#", line, maxsplit=1)[0].rstrip()
    return line


def placer(text, name):
    """A function from a line number to its name in messages: "FILE line 7"."""
    name = printable(name, limit=200)
    if name.startswith("--") and "\n" not in text.strip():
        return lambda number: name  # the value of a flag has one line
    return lambda number: f"{name} line {number}"


def read_paths(text, name, limit=None):
    """Graph puzzles, one per line -> list of (line, place). Raises BadInput if there is none.

    Only whole lines are comments here. The task reads what is in a line.
    """
    place = placer(text, name)
    lines = [(line, place(number)) for number, raw in enumerate(text.split("\n"), start=1)
             if (line := without_comment(raw, trailing=False))]
    if not lines:
        raise BadInput(f"{printable(name, 200)} holds no puzzle; a legal line: {GRAPH_EXAMPLE}")
    return lines[:limit]


# -- sudoku --


def read_sudoku(text, name, N, limit=None):
    """Puzzles in any of the formats -> (list of Entry, list of notes: how the text was read).

    A line holds a puzzle, optionally with its solution and other fields; or a puzzle with
    separators between its cells or rows; or one row, and N such lines are a puzzle. Or the text is
    CSV with a header. Reads the first `limit` puzzles and ignores the rest.
    Raises BadInput that names the place and the mistake, and shows a legal line.
    """
    notes = {}  # kind -> sentence: each kind is reported once
    lines, place = text.split("\n"), placer(text, name)
    first = next((i for i, line in enumerate(lines) if without_comment(line)), 0)
    try:
        header = csv_header(lines[first])
    except BadInput as error:
        raise refusal(place(first + 1), error, N) from None
    if header:
        found = read_csv(lines, first, header, place, N, notes)
    else:
        found = read_lines(lines, place, N, notes)
    entries = list(islice(found, limit))
    if not entries:
        raise refusal(printable(name, 200), "holds no puzzle", N)
    return entries, list(notes.values())


def refusal(place, what, N):
    """A BadInput that says what is wrong at `place` and shows a line that can be copied."""
    return BadInput(f"{place}: {what}; a legal line: {EXAMPLE[N]}")


class Row(NamedTuple):
    cells: str  # N characters
    gap: str  # between it and the line before: " " for a blank line, "-" for a separator line
    place: str


def read_lines(lines, place, N, notes):
    """All formats but CSV: yields each Entry. Raises BadInput."""
    rows, gap = [], ""  # rows of the unfinished board
    for number, raw in enumerate(lines, start=1):
        line = without_comment(raw)
        if not line:
            gap += "" if raw.strip() else " "  # a comment is not a gap
            continue
        try:
            if is_separator(line, N):
                gap += "-"
                continue
            cells, solution = read_line(line, N, notes)
            if len(cells) == N:
                rows.append(Row(cells, gap, place(number)))
                check_row(rows, N)
            elif rows:
                raise BadInput(f"a whole board, but the board above has {len(rows)} of {N} rows")
        except BadInput as error:
            raise refusal(place(number), error, N) from None
        gap = ""
        if not rows:
            yield Entry(cells, solution, place(number))
        elif len(rows) == N:
            notes["rows"] = f"read {N} lines of {N} cells as a board"
            yield Entry("".join(row.cells for row in rows), None, rows[0].place)
            rows = []
    if rows:
        what = f"the board that begins here ends after {len(rows)} of {N} rows"
        raise refusal(rows[0].place, what, N)


def is_separator(line, N):
    """Is this a line around a board or between bands, like "------+-------+------"?

    Raises BadInput if it could also be an empty board.
    """
    if line[0] not in "-=+|*" or not set(line) <= set("-=+|* \t") or not set(line) & set("-="):
        return False
    if set(line) <= LEGAL[N] and len(line) == N * N:
        raise BadInput("this may be a separator line or an empty board; write . for an empty cell")
    return True


def check_row(rows, N):
    """Raises BadInput if the last row cannot belong to the rows before it.

    Blank and separator lines are legal between bands only, the same ones before each band. So a
    board that lacks rows is not completed with rows of the next board.
    """
    above, band = len(rows) - 1, BAND[N]
    expected = "" if above % band else rows[min(above, band)].gap
    if rows[-1].gap != expected:
        raise BadInput(f"after {above} rows of a board a blank or separator line is missing, or "
                       "there is one too many")


def read_line(line, N, notes):
    """One line -> (puzzle, solution or None), or (the N cells of a row, None). Raises BadInput."""
    A, legal = N * N, LEGAL[N]
    fields = line.replace(",", " ").split()
    boards = [field for field in fields if len(field) == A and set(field) <= legal]
    if not boards:
        cells = one_board(line, N)
        if len(cells) == N and "-" in cells:
            raise BadInput("between rows, - is a separator; write . for an empty cell")
        return with_dots(cells, notes), None
    if len(boards) > 2:
        raise BadInput(f"{len(boards)} boards on a line; only a puzzle and its solution are legal")
    for field in (field for field in fields if field not in boards):
        if 2 * len(field) > N * N and mostly_cells(field):  # a board with a mistake
            raise BadInput(complaint(field, [field], N))
        notes.setdefault("field", f"ignored other fields, for example '{printable(field)}'")
    puzzle = with_dots(boards[0], notes)
    return puzzle, check_solution(boards[1], N) if len(boards) == 2 else None


def check_solution(cells, N):
    """The solution, unchanged. Raises BadInput if a cell is empty."""
    empty = cells.translate(TO_DOT).find(".")
    if empty >= 0:
        row, column = empty // N + 1, empty % N + 1
        raise BadInput(f"the solution has an empty cell at row {row} column {column}")
    return cells


def one_board(text, N):
    """The A cells of a board or N cells of a row, without separators. Raises BadInput."""
    if ",," in "".join(text.split()):
        raise BadInput("nothing between two commas; write . for an empty cell")
    pieces = text.translate(TO_SPACE).split()
    cells = "".join(pieces)
    even = len({len(piece) for piece in pieces}) == 1  # single cells, or parts of rows, or rows
    if even and len(cells) in (N, N * N) and set(cells) <= LEGAL[N]:
        return cells
    raise BadInput(complaint(text, pieces, N))


def with_dots(cells, notes):
    """The cells with . for each mark of an empty cell; unusual marks are noted."""
    for mark in sorted(UNUSUAL & set(cells)):
        notes[mark] = f"read '{mark}' as an empty cell"
    return cells.translate(TO_DOT)


def mostly_cells(text):
    """Was this meant as cells of some board? Three of four characters are digits or marks."""
    return 4 * sum(character in CELLS for character in text) > 3 * len(text)


def wrong_length(count, N):
    return f"{count} characters where {N * N} are needed; this model was trained on {N}x{N} boards"


def complaint(line, pieces, N):
    """What is wrong with a line that is not a board: a phrase. pieces: the line, split."""
    text = max(pieces, key=len, default="")
    if 2 * len(text) <= N * N:  # no piece is nearly a board: they are cells or rows of one
        text = "".join(pieces)
    if not mostly_cells(text):
        return f"'{printable(line)}' is not a puzzle"
    if len(text) not in (N, N * N):
        return wrong_length(len(text), N)
    for character in text:
        if character not in LEGAL[N]:
            return f"'{printable(character)}' is not a cell; legal: 1 to {N}, and . if it is empty"
    return f"these cells are neither a board nor a row of {N} cells"


# -- CSV --


def csv_header(line):
    """(delimiter, column names) if the line names a puzzle column, else None.

    Raises BadInput if it names columns and none of them is a puzzle.
    """
    for delimiter in ",;\t":
        try:
            names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter))]
        except csv.Error:
            continue
        if set(names) & set(PUZZLE_NAMES):
            return delimiter, names
        words = [name for name in names if name[:1].isalpha() and not set(name) <= CELLS]
        if len(words) == len(names) > 1:
            legal = ", ".join(PUZZLE_NAMES)
            raise BadInput(f"'{printable(line)}' names no puzzle column; legal names: {legal}")
    return None


def read_csv(lines, first, header, place, N, notes):
    """The rows below the header, lines[first]: yields each Entry. Raises BadInput."""
    delimiter, names = header
    number = first + 1  # the line on which a row begins: quoted fields may contain newlines
    rows = csv.reader((line + "\n" for line in lines[number:]), delimiter=delimiter,
                      skipinitialspace=True, strict=True)  # strict: an open quote is an error
    try:
        puzzle, solution = take_columns(names, notes)
        number += 1
        for row in rows:
            if not is_comment(row, names, puzzle):
                boards = csv_boards(row, names, puzzle, solution, N, notes)
                yield Entry(*boards, place(number))
            number = first + 2 + rows.line_num
    except csv.Error as error:
        raise refusal(place(number), f"broken CSV ({printable(error)})", N) from None
    except BadInput as error:
        raise refusal(place(number), error, N) from None


def take_columns(names, notes):
    """(puzzle column, solution column or None), from 0. Raises BadInput if there are two."""
    puzzles = [i for i, name in enumerate(names) if name in PUZZLE_NAMES]
    solutions = [i for i, name in enumerate(names) if name in SOLUTION_NAMES]
    for taken in (puzzles, solutions):
        if len(taken) > 1:
            same = " and ".join(f"'{names[i]}'" for i in taken)
            raise BadInput(f"the columns {same} mean the same; keep one")
    others = [name for i, name in enumerate(names) if i not in puzzles + solutions]
    note = f"read column '{names[puzzles[0]]}' as the puzzle"
    note += f" and '{names[solutions[0]]}' as the solution" if solutions else ""
    note += f", ignored {printable(', '.join(others))}" if others else ""
    notes["columns"] = note
    return puzzles[0], solutions[0] if solutions else None


def is_comment(row, names, puzzle):
    """Is this row blank or a comment? A "#" may also begin the id of a complete row."""
    if len(row) < 2 and not "".join(row).strip():
        return True
    return row[0].startswith("#") and (puzzle == 0 or len(row) != len(names))


def csv_boards(row, names, puzzle, solution, N, notes):
    """One row -> (puzzle, solution or None). Raises BadInput."""
    if len(row) != len(names):
        raise BadInput(f"{len(row)} fields where the header names {len(names)}")
    boards = [one_board(row[puzzle], N)]
    if solution is not None and row[solution].strip():
        boards.append(check_solution(one_board(row[solution], N), N))
    if N in [len(board) for board in boards]:
        raise BadInput(wrong_length(N, N))
    return with_dots(boards[0], notes), boards[1] if len(boards) == 2 else None
