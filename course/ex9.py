"""Exercise 9, open: an objective of your own, a new entry of the table in objectives.py.

    python course/ex9.py --preset demo --out out/own        # trains it; flags as for train.py
"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import plumbing.interrupt  # noqa: F401  (first: Ctrl-C while torch is loading)

import diffusion
import mtp
import train
from objectives import OBJECTIVES, Objective
from plumbing.cli import end, run


def sixth():
    """-> the name and the Objective of your own. (main() below trains it as it is.)

    You may choose any ranking, masks and loss, as long as the ranking differs from the five of
    objectives.py, the model never sees a token that it is scored on, and the objective trains and
    decodes.
    """
    # prefix: the next token is predicted as by ar, but the prompt sees itself both ways
    return "prefix", Objective(diffusion.semi_causal, mtp.mask_nothing, mtp.next_token_loss,
                               left_to_right=True, next_token=True, sampling=("temperature",))


def main(argv=None):
    name, objective = sixth()
    OBJECTIVES[name] = objective
    argv = sys.argv[1:] if argv is None else argv
    return train.main(["--objective", name, *argv])


if __name__ == "__main__":
    end(run(main))
