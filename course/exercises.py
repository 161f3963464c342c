"""The exercises: number, title, points, what the starter leaves to the student, what turns green.

The starter is cut from the real files along this table (make_starter.py), the tests that are red
before an exercise is solved are course/tests/test_ex<number>.py (all of them, and nothing else),
and the questions of the grader are ask_<number> in asking.py and check_<number> in hidden.py.
"""
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Exercise(NamedTuple):
    number: int
    title: str
    points: int
    cuts: tuple  # (file, function, function, ...): bodies that the student writes
    needs: tuple = ()  # earlier exercises whose functions its tests call

    @property
    def red_tests(self):
        return f"course/tests/test_ex{self.number}.py"


EXERCISES = (
    Exercise(1, "who may look at whom", 10, (("model.py", "visible"),)),
    Exercise(2, "the masking process and the bound", 15,
             (("diffusion.py", "draw_turns", "hidden_nats"),)),
    Exercise(3, "mdm, sidm and scdm are rankings", 10,
             (("diffusion.py", "joint", "independent", "semi_causal"),)),
    Exercise(4, "decode with absent latents, and its cost", 15,
             (("sample.py", "shares", "line_up", "seats", "arrange"),)),
    Exercise(5, "next token with a cache, and a window of latents", 15,
             (("mtp.py", "window_sees_itself", "draw_window", "next_token_nats"),
              ("sample.py", "decode_next_token"))),
    Exercise(6, "the star graph: a guess at the fork", 10,
             (("course/ex6.py", "chance_level", "fork_and_after"),)),
    Exercise(7, "the dial, with an interval", 10, (("metrics.py", "wilson"),)),
    Exercise(8, "two cells per step break the joint distribution", 10,
             (("course/ex8.py", "law", "total_variation", "dependence", "entropy_bound"),)),
    Exercise(9, "an objective of your own", 5, (("course/ex9.py", "sixth"),), needs=(1, 3, 5)),
)


def announced(cut_numbers):
    """The test files that are red while these exercises are unsolved."""
    return sorted(e.red_tests for e in EXERCISES if {e.number, *e.needs} & set(cut_numbers))
