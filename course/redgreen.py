"""Check that the tests of exercises that are cut fail, and that all other tests pass.

    python course/redgreen.py            # all exercises cut, then each of them alone: half a minute
    python course/redgreen.py --whole    # with the other tests that are handed out: a minute

One process imports torch, then forks for each tree and runs pytest there.
"""
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from course.exercises import EXERCISES, announced
from course.make_starter import write_starter
from course.planted import forget_the_project
from plumbing.cli import Parser, end, run


class Outcomes:
    """A plugin of pytest: {test: passed, failed or skipped}. An error in a fixture is a failure."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid] = report.outcome

    def pytest_collectreport(self, report):
        if report.failed:
            self.of[report.nodeid] = "failed"


def outcomes(tree, paths):
    """Run the tests of a tree in a fork of this process -> {test: outcome}."""
    import pytest
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.close(read)
            os.chdir(tree)
            forget_the_project()
            plugin = Outcomes()
            with contextlib.redirect_stdout(io.StringIO()):
                pytest.main(["-q", "-p", "no:cacheprovider", *paths], plugins=[plugin])
            with open(write, "w", encoding="utf-8") as pipe:
                json.dump(plugin.of, pipe)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text or "{}")


def differences(cut_numbers, paths=("course/tests",)):
    """A starter with these exercises cut -> unexpected outcomes, number of failures, of tests."""
    with tempfile.TemporaryDirectory() as folder:
        write_starter(Path(folder), cut_numbers)
        found = outcomes(folder, paths)
    red = announced(cut_numbers)
    wrong = [f"{test} {outcome}" for test, outcome in found.items()
             if (outcome == "failed") != (test.partition("::")[0] in red)]
    wrong += [f"{file} holds no test" for file in red
              if not any(test.startswith(file) for test in found)]
    return wrong, sum(outcome == "failed" for outcome in found.values()), len(found)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--whole", action="store_true", help="with tests/concepts of the starter")
    p.add_argument("--quick", action="store_true", help="all cut, and none; not one by one")
    args = p.parse_args(argv)
    everything = [e.number for e in EXERCISES]
    one_by_one = [] if args.quick else [[n] for n in everything]
    code = 0
    for cut_numbers in (everything, *one_by_one, []):
        whole = args.whole and cut_numbers == everything
        paths = ("course/tests", "tests") if whole else ("course/tests",)
        wrong, red, count = differences(cut_numbers, paths)
        print(f"cut {cut_numbers}: {red} of {count} tests red, "
              + ("as announced" if not wrong else f"NOT AS ANNOUNCED: {wrong}"), flush=True)
        code |= bool(wrong)
    return code


if __name__ == "__main__":
    end(run(main))
