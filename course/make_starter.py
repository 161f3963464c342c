"""Write the starter tree of the course: the real files, with the bodies of the exercises cut out.

    python course/make_starter.py OUT            # everything that the students are to write is cut
    python course/make_starter.py OUT --only 4   # one exercise alone; the others are solved

There is no second code base: what is handed out is this project, so it cannot drift from it.
"""
import ast
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from course.exercises import EXERCISES, ROOT
from plumbing.cli import BadInput, Parser, end, number, path, printable, run

# What is handed out. Not the tests that contain a solution in other words, nor results, logs and
# the project's own README, which tell what the students are to measure; and no grader.
HANDED_OUT = ("*.py", "data/*.py", "decoders/*.py", "plumbing/*.py", "viewer/*.*",
              "Makefile", "requirements.txt", "pyproject.toml", "LICENSE", ".gitignore",
              "tests/conftest.py", "tests/concepts/test_puzzles.py",
              "tests/concepts/test_tasks.py",
              "course/ex*.py", "course/tests/*.py",
              "results/demo-dial/scdm-seed0.pt")
NOT_HANDED_OUT = ("course/exercises.py", "decoders/exact.py",
                  "decoders/adjust.py")  # it needs exact.py


def handed_out():
    """-> the files of the starter, relative to the project."""
    found = {f.relative_to(ROOT).as_posix() for pattern in HANDED_OUT for f in ROOT.glob(pattern)}
    return sorted(found.difference(NOT_HANDED_OUT))


def cut(source, names, exercise):
    """Python source -> the same, with the bodies of these functions replaced by a red flag.

    The docstring stays: it is the specification. Raises KeyError for a function that is not there.
    """
    functions = {node.name: node for node in ast.parse(source).body
                 if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines(keepends=True)
    for node in sorted((functions[name] for name in names), key=lambda f: -f.lineno):
        has_docstring = ast.get_docstring(node) is not None
        first = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
        flag = f'    raise NotImplementedError("exercise {exercise}: {node.name}")\n'
        lines[first:node.end_lineno] = [flag]
    return "".join(lines)


def write_starter(out, cut_numbers):
    """The starter tree in `out`, a folder that is new or empty."""
    for name in handed_out():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, out / name)
    shutil.copyfile(ROOT / "course" / "README.md", out / "README.md")
    tests = out / "pyproject.toml"
    tests.write_text(tests.read_text(encoding="utf-8").replace(
        'testpaths = ["tests"]', 'testpaths = ["tests", "course/tests"]'), encoding="utf-8")
    for exercise in EXERCISES:
        if exercise.number in cut_numbers:
            for name, *functions in exercise.cuts:
                source = (out / name).read_text(encoding="utf-8")
                (out / name).write_text(cut(source, functions, exercise.number), encoding="utf-8")


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("out", metavar="OUT", type=path, help="a folder that is new or empty")
    p.add_argument("--only", type=number(1, len(EXERCISES)), help="cut this exercise alone")
    args = p.parse_args(argv)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{printable(out, 200)} is there already and not an empty folder")
    write_starter(out, [args.only] if args.only else [e.number for e in EXERCISES])
    print(f"{printable(out, 200)}: {len(handed_out())} files; go on with README.md")


if __name__ == "__main__":
    end(run(main))
