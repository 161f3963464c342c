"""Ctrl-C or SIGTERM while torch is still loading (seconds): one line and the right code.

A program imports this before torch; plumbing.cli.run takes the two signals over afterwards.
"""
import _signal  # signal itself takes longer to load than all that Python loads before it
import os
import sys


def leave(signum, frame):
    """End at once: nothing is there to be saved, and a half-done import cannot be unwound."""
    word = "Ctrl-C" if signum == _signal.SIGINT else "SIGTERM"
    try:
        os.write(2, f"{os.path.basename(sys.argv[0])}: stopped by {word}\n".encode())
    except OSError:
        pass  # nobody reads it
    os._exit(128 + signum)


_signal.signal(_signal.SIGINT, leave)
_signal.signal(_signal.SIGTERM, leave)
