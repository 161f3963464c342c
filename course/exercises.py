"""The table of exercises: number, title, points, and the functions that the student writes.

make_starter.py cuts these functions out of the real files. As long as exercise k is not solved, all
tests of course/tests/test_ex<k>.py fail, and no others. The grader asks with ask_<k> in asking.py
and compares with check_<k> in hidden.py.
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
             (("diffusion.py", "draw_num_masked", "draw_levels", "masked_loss"),)),
    Exercise(3, "mdm, sidm and scdm are rankings", 10,
             (("diffusion.py", "joint", "independent", "semi_causal"),)),
    Exercise(4, "decode with absent latents, and its cost", 15,
             (("sample.py", "decode_pass"),)),
    Exercise(5, "next token with a cache, and a window of latents", 15,
             (("mtp.py", "window_sees_itself", "draw_window", "next_token_loss"),
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
