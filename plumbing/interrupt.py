"""Ctrl-C or SIGTERM while torch is still loading (seconds): one line and the right exit code.

A program imports this before torch; plumbing.cli.run installs other handlers afterwards.
"""
import _signal  # because `signal` takes longer to load than all that Python loads before
import os
import sys


def leave(signum, frame):
    """End at once: there is nothing to save yet."""
    word = "Ctrl-C" if signum == _signal.SIGINT else "SIGTERM"
    try:
        os.write(2, f"{os.path.basename(sys.argv[0])}: stopped by {word}\n".encode())
    except OSError:
        pass  # stderr is closed
    os._exit(128 + signum)


_signal.signal(_signal.SIGINT, leave)
_signal.signal(_signal.SIGTERM, leave)
