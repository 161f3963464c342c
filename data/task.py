"""The interface of a task, its vocabulary, and the cache of generated data sets.

    B batch   P prompt positions   A answer positions   S = P + A   V vocabulary   K answer symbols
"""
import contextlib
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import tiktoken
import torch

from errors import say

CACHE_FORMAT = 1  # raise it when a generator changes: old caches are then rebuilt


class Task:
    """One planning task. Subclasses: data/sudoku.py (Sudoku), data/path.py (Star, Planning).

    A sequence is P prompt tokens followed by A answer tokens. Ids 0..K-1 are the symbols that an
    answer may contain; then come symbols that only a prompt or the text format uses; MASK and BOS
    come last. A START is a sequence before decoding: its prompt, and MASK at each unknown answer
    cell. An answer cell that has a symbol in the start is GIVEN.

    Subclasses define:
        train_batch(B, generator, device) -> tokens (B, S) int64, given (B, A) bool
        test_set(num)         -> start (num, S), answers (num, A) or None if any valid one counts
        held_out(num)         -> tokens (num, S), given: as train_batch, but never trained on
        check(start, answer)  -> (B,) bool: valid by the rules and consistent with the start
        mistakes(start, answer)               -> list of sentences, for one sample (S,), (A,)
        render(start, answer, before, color)  -> str for a terminal; `before` is one step earlier
        prepare(device)       makes the training data before the first step
        read(text, name, limit)  -> the first `limit` puzzles of a file, a list of
                                 (start ids, answer ids or None, place), and notes
        reference(start)      -> answer ids, or None and the reason; raises BadInput
        format(start, answer) -> the text that read() reads
        format_answer(answer) -> the part of it that is the answer
    """

    def __init__(self, name, P, A, symbols, answer_symbols, pattern, unique_answer):
        self.name, self.P, self.A, self.S = name, P, A, P + A
        self.K, self.V = answer_symbols, len(symbols) + 2
        self.MASK, self.BOS = len(symbols), len(symbols) + 1
        self.unique_answer = unique_answer  # puzzles: decoded greedily; generation: at T = 1
        # a tiktoken.Encoding, built offline from the task's alphabet: one token per symbol
        self.encoding = tiktoken.Encoding(
            name=name, pat_str=pattern,
            mergeable_ranks={s.encode(): i for i, s in enumerate(symbols)},
            special_tokens={"<mask>": self.MASK, "<bos>": self.BOS})

    def start(self, prompt, cells=None):
        """prompt (B, P), cells (B, A) with MASK if unknown (None: all MASK) -> start (B, S)."""
        if cells is None:
            cells = prompt.new_full((len(prompt), self.A), self.MASK)
        return torch.cat([prompt, cells], dim=1)

    def blanks(self, start):
        """start (B, S) -> (B, A) bool: the unknown cells."""
        return start[:, self.P:] == self.MASK


def cached(data_dir, name, describe, build):
    """The data set `name`, from its cache file or from build() -> dict of numpy arrays.

    The first line of the file is json: `describe` (seed, size, ...), format and the SHA-256 of the
    rest. A truncated, edited or outdated file is reported on stderr and built again.
    """
    file = Path(data_dir) / f"{name}.npz"
    describe, problem = dict(describe, format=CACHE_FORMAT), None
    try:
        head, _, body = file.read_bytes().partition(b"\n")
        if json.loads(head) == dict(describe, sha256=hashlib.sha256(body).hexdigest()):
            return dict(np.load(io.BytesIO(body), allow_pickle=False))
        problem = "does not match its checksum or description"
    except FileNotFoundError:
        pass
    except OSError as e:
        problem = f"cannot be read ({e.strerror})"
    except ValueError:
        problem = "has no readable header"
    if problem:
        say(f"data cache {file} {problem}: building it again")
    arrays = build()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    body = buffer.getvalue()
    head = json.dumps(dict(describe, sha256=hashlib.sha256(body).hexdigest())).encode()
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(head + b"\n" + body)
        os.replace(temporary, file)
    except OSError as e:
        say(f"data cache {file} could not be written ({e.strerror}); continuing without it")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return arrays
