"""Mistakes in what a user gave: one clear line that names the value, the place and the remedy."""
import sys


class BadInput(ValueError):
    """Something the user gave is wrong. One line: value, place, remedy. Programs exit with 2."""


class Stopped(KeyboardInterrupt):
    """SIGTERM: treated like Ctrl-C (what can be saved is saved), with an exit code of its own."""


def printable(text, limit=80):
    """Foreign text for a terminal: control characters escaped, shortened to `limit`."""
    text = str(text)[:limit + 1]  # escapes make it longer, never shorter
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def say(line):
    """Print one line on stderr; control characters in it are escaped."""
    print(printable(line, 2000), file=sys.stderr, flush=True)
