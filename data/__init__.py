"""Tasks: what every task offers, the vocabulary, puzzle files, and the cache of generated data sets.

    B batch   P prompt positions   A answer positions   S = P + A   V vocabulary   K answer symbols
"""
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import tiktoken

CACHE_FORMAT = 1  # raise it when a generator changes: old caches are then rebuilt


class BadInput(ValueError):
    """Something the user gave is wrong. The message is one line: value, place, remedy. Programs exit with 2."""


class Task:
    """One planning task. Subclasses: data/sudoku.py (Sudoku), data/path.py (Star, Planning).

    A sequence is P prompt tokens followed by A answer tokens. Ids 0..K-1 are the symbols that an answer
    may hold; after them come symbols that only a prompt or the text format uses; MASK and BOS come last.

    Subclasses give:
        train_batch(B, generator, device) -> tokens (B, S) int64
        test_set(num)                     -> prompts (num, P), answers (num, A) or None where any valid answer counts
        check(prompt, answer)             -> (B,) bool: rule-valid and consistent with the prompt. Never sees a reference.
        mistakes(prompt, answer)          -> list of sentences, for one sample (P,), (A,)
        render(prompt, answer, before, color) -> str for a terminal; `before` is the answer one step earlier
        parse(text)                       -> prompt ids, answer ids or None; raises BadInput
        format(prompt, answer)            -> the text that parse reads
    """

    def __init__(self, name, P, A, symbols, answer_symbols, pattern, unique_answer):
        self.name, self.P, self.A, self.S = name, P, A, P + A
        self.K, self.V = answer_symbols, len(symbols) + 2
        self.MASK, self.BOS = len(symbols), len(symbols) + 1
        self.symbols = set(symbols)
        self.unique_answer = unique_answer  # decides greedy decoding (puzzles) or T = 1 (generation)
        # A real tiktoken.Encoding, built offline from the task's own alphabet: each symbol is one token.
        self.encoding = tiktoken.Encoding(
            name=name, pat_str=pattern,
            mergeable_ranks={s.encode(): i for i, s in enumerate(symbols)},
            special_tokens={"<mask>": self.MASK, "<bos>": self.BOS})

    def encode(self, text, what):
        """Text -> ids. tiktoken panics on characters it does not know, so they are refused here first."""
        for piece in self.pieces(text):
            if piece not in self.symbols:
                raise BadInput(f"{what} holds {piece!r}, which is not a symbol of task {self.name}; legal: {self.alphabet}")
        return self.encoding.encode_ordinary(text)

    def pieces(self, text):
        return text


def make_task(config):
    """config: any object with the task fields of train.Config (task, board_size, arms, ...)."""
    from data import path, sudoku
    if config.task in ("sudoku", "sudoku-gen"):
        return sudoku.Sudoku(config)
    if config.task == "star":
        return path.Star(config)
    if config.task == "planning":
        return path.Planning(config)
    raise BadInput(f"unknown task {config.task!r}; legal: {', '.join(TASKS)}")


TASKS = ("sudoku-gen", "sudoku", "star", "planning")


def read_puzzles(file, task):
    """Puzzle file -> list of (prompt ids, answer ids or None), and where each stands ("FILE line 7").

    One a line; `#` comments and blank lines are skipped. Raises BadInput that names the line.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"cannot read puzzle file {file}: {getattr(e, 'strerror', None) or e}") from None
    puzzles, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                puzzles.append(task.parse(line.strip()))
                places.append(f"{file} line {number}")
            except BadInput as e:
                raise BadInput(f"{file} line {number}: {e}") from None
    if not puzzles:
        raise BadInput(f"{file} holds no puzzle; expected one per line")
    return puzzles, places


def cached(data_dir, name, describe, build):
    """The data set `name`, from its cache file or built anew by build() -> dict of numpy arrays.

    The first line of the file is json: `describe` (seed, size, ...), format and the SHA-256 of the rest.
    A truncated, edited or outdated file is said on stderr and rebuilt.
    """
    file = Path(data_dir) / f"{name}.npz"
    describe = dict(describe, format=CACHE_FORMAT)
    if file.exists():
        head, _, body = file.read_bytes().partition(b"\n")
        try:
            if json.loads(head) == dict(describe, sha256=hashlib.sha256(body).hexdigest()):
                return dict(np.load(io.BytesIO(body), allow_pickle=False))
            reason = "does not match its checksum or description"
        except ValueError:
            reason = "has no readable header"
        print(f"data cache {file} {reason}: building it again", file=sys.stderr)
    arrays = build()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    body = buffer.getvalue()
    head = json.dumps(dict(describe, sha256=hashlib.sha256(body).hexdigest())).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(head + b"\n" + body)
        os.replace(temporary, file)
    except OSError as e:
        print(f"data cache {file} could not be written ({e.strerror}); going on without it", file=sys.stderr)
    return arrays
